"""The cache of decoded images: never half-written, never stale, safe to share."""

import json
import multiprocessing
import os
import warnings

import numpy as np
import pytest
import torch
from data_fixtures import load_at_once, write_csv, write_ham10k, write_image

from medmerge.data import DataError, Table, load_images, load_table
from medmerge.data import images as images_module


@pytest.fixture
def table(tmp_path):
    return load_table("ham10k", write_ham10k(tmp_path / "ham"))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch):
    """The paths that were decoded, in a list that grows."""
    paths, decode = [], images_module._decode

    def spy(path, size):
        paths.append(path)
        return decode(path, size)

    monkeypatch.setattr(images_module, "_decode", spy)
    return paths


def entry(cache, suffix):
    (path,) = cache.glob(f"*{suffix}")
    return path


def test_second_load_decodes_nothing(table, cache, decoded):
    pixels, fingerprint = load_images(table, 8, cache=cache)
    assert len(decoded) == 14
    again, same = load_images(table, 8, cache=cache)
    assert len(decoded) == 14 and same == fingerprint and (again == pixels).all()
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".npy"]


def test_other_labels_use_the_same_pixels(table, cache, decoded):
    load_images(table, 8, cache=cache)
    load_images(Table(table.name, table.frame.assign(label=0), table.classes), 8, cache=cache)
    assert len(decoded) == 14


def test_changed_file_is_decoded_again(table, cache):
    before, fingerprint = load_images(table, 8, cache=cache)
    path = write_image(type(cache)(table.frame["path"][2]), seed=99)
    after, other = load_images(table, 8, cache=cache)
    assert other != fingerprint
    assert [row for row in range(14) if (before[row] != after[row]).any()] == [2]
    os.utime(path, ns=(1, 1))  # the same content at another time
    assert load_images(table, 8, cache=cache)[1] == other


def test_another_file_of_the_same_name_size_and_time_is_decoded(cache, tmp_path):
    """As where two datasets number their images alike, in a format of fixed size."""
    seen = set()
    for folder in ("first", "second"):
        for name in ("a.bmp", "b.bmp"):
            os.utime(write_image(tmp_path / folder / name, seed=len(folder)), ns=(1, 1))
        labels = write_csv(tmp_path / folder, "image,label\na.bmp,a\nb.bmp,b\n")
        seen.add(load_images(load_table("csv", tmp_path / folder, labels=labels), 8, cache=cache)[1])
    assert len(seen) == 2


@pytest.mark.parametrize("suffix", [".npy", ".json"])
@pytest.mark.parametrize("damage", ["truncated", "longer", "empty", "removed", "garbage"])
def test_damaged_entry_is_built_again(table, cache, decoded, suffix, damage):
    pixels, fingerprint = load_images(table, 8, cache=cache)
    expected = pixels.copy()
    path = entry(cache, suffix)
    content = path.read_bytes()
    changed = {
        "truncated": content[: len(content) // 2],
        "longer": content + b"}",
        "empty": b"",
        "garbage": b"[1]" * 9,
    }
    path.unlink() if damage == "removed" else path.write_bytes(changed[damage])
    again, same = load_images(table, 8, cache=cache)
    assert len(decoded) == 28 and same == fingerprint and (again == expected).all()
    assert entry(cache, suffix).read_bytes() == content


def test_sidecar_of_other_length_is_not_believed(table, cache, decoded):
    _, fingerprint = load_images(table, 8, cache=cache)
    path = entry(cache, ".json")
    sidecar = json.loads(path.read_text())
    path.write_text(json.dumps({**sidecar, "sha256": sidecar["sha256"][:-1]}))
    assert load_images(table, 8, cache=cache)[1] == fingerprint
    assert len(decoded) == 28


def test_writing_to_the_pixels_leaves_the_cache(table, cache):
    pixels, _ = load_images(table, 8, cache=cache)
    content = entry(cache, ".npy").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.from_numpy(pixels).zero_()
    assert entry(cache, ".npy").read_bytes() == content
    assert load_images(table, 8, cache=cache)[0].any()


def test_undecodable_files_are_counted_and_leave_nothing(table, cache):
    truncated, empty = table.frame["path"][5], table.frame["path"][9]
    with open(truncated, "r+b") as file:
        file.truncate(300)
    open(empty, "wb").close()
    with pytest.raises(DataError, match=r"2 of 14 images cannot be decoded, first .*ISIC_0000005\.jpg"):
        load_images(table, 8, cache=cache)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interrupt_leaves_nothing(table, cache, monkeypatch, error):
    decode = images_module._decode

    def interrupted(path, size):
        if path.endswith("ISIC_0000007.jpg"):
            raise error
        return decode(path, size)

    monkeypatch.setattr(images_module, "_decode", interrupted)
    with pytest.raises(error):
        load_images(table, 8, cache=cache, workers=2)
    assert list(cache.iterdir()) == []


def test_image_removed_after_the_table_was_read(table, cache):
    os.unlink(table.frame["path"][4])
    with pytest.raises(DataError, match=r"ISIC_0000004\.jpg is gone"):
        load_images(table, 8, cache=cache)


def test_two_processes_at_once(table, cache):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    root = str(cache.parent / "ham")
    workers = [context.Process(target=load_at_once, args=(barrier, results, root, str(cache))) for _ in range(2)]
    for worker in workers:
        worker.start()
    answers = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    pixels, fingerprint = load_images(table, 32, cache=cache)
    assert answers == [(fingerprint, int(pixels.astype(np.int64).sum()))] * 2
    assert len(list(cache.iterdir())) == 2


def test_entry_replaced_while_it_is_in_use(table, cache):
    pixels, _ = load_images(table, 8, cache=cache)
    expected = np.array(pixels)
    entry(cache, ".json").unlink()
    load_images(table, 8, cache=cache)
    assert (pixels == expected).all()


def test_where_the_cache_is(table, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDMERGE_CACHE", str(tmp_path / "named"))
    load_images(table, 8)
    assert len(list((tmp_path / "named").iterdir())) == 2
    monkeypatch.delenv("MEDMERGE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load_images(table, 8)
    assert len(list((tmp_path / "home" / ".cache" / "medmerge").iterdir())) == 2


def test_cache_that_cannot_be(table, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be made.*MEDMERGE_CACHE"):
        load_images(table, 8, cache=tmp_path / "file" / "cache")
    with pytest.raises(DataError, match=r"GB free and the images take .*MEDMERGE_CACHE"):
        load_images(table, 2**20, cache=tmp_path / "cache")
    with pytest.raises(DataError, match="image_size is 0"):
        load_images(table, 0, cache=tmp_path / "cache")
