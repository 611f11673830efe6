"""Decoding, the cache that is never half-written, and batches."""

import json
import multiprocessing
import os
import warnings

import numpy as np
import pytest
import torch
from data_fixtures import load_at_once, real, write_csv, write_ham10k, write_image
from PIL import Image

from medmerge.data import DataError, Samples, Table, load_images, load_table
from medmerge.data import images as images_module
from medmerge.data.images import to_rgb


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


# Pixels.


def test_pixels_are_those_of_pillow(table, cache):
    pixels, _ = load_images(table, 8, cache=cache, workers=3)
    assert pixels.shape == (14, 8, 8, 3) and pixels.dtype == np.uint8
    for row, path in enumerate(table.frame["path"]):
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR))
        assert (pixels[row] == expected).all()


def test_real_images_keep_their_look(tmp_path):
    root = real("ham10000", "images")
    names = sorted(path.name for path in root.iterdir())[:6]
    rows = "".join(f"{name},{'ab'[index % 2]}\n" for index, name in enumerate(names))
    table = load_table("csv", root, labels=write_csv(tmp_path, "image,label\n" + rows))
    pixels, _ = load_images(table, 64, cache=tmp_path / "cache")
    for row, name in enumerate(names):
        with Image.open(root / name) as image:
            full = np.asarray(image.convert("RGB"))
        # Antialiasing keeps the mean; taking every n-th pixel would not keep the smoothness.
        assert np.abs(pixels[row].mean((0, 1)) - full.mean((0, 1))).max() < 1.0
        assert pixels[row].std() <= full.std()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16", "I", "YCbCr"])
def test_every_mode_becomes_rgb(mode):
    grey = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    if mode in ("I;16", "I"):
        image = Image.fromarray(
            grey.astype(np.uint16) * 257 if mode == "I;16" else grey.astype(np.int32) * 257
        )
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    assert image.mode == mode
    result = np.asarray(to_rgb(image))
    assert result.shape == (8, 8, 3) and result.dtype == np.uint8
    if mode not in ("1", "P"):  # these dither
        assert np.abs(result.astype(int) - grey[..., None]).max() <= 8


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path, cache):
    values = np.array([[0, 257, 32768, 65535]] * 4, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    write_image(tmp_path / "flat.png")
    table = load_table("csv", tmp_path, labels=write_csv(tmp_path, "image,label\ndeep.png,a\nflat.png,b\n"))
    pixels, _ = load_images(table, 4, cache=cache)
    assert pixels[0, 0, :, 0].tolist() == [0, 1, 128, 255]
    assert (pixels[0] == pixels[0, :, :, :1]).all()


@pytest.mark.parametrize("array", [np.full((4, 4), 70000, np.int32), np.full((4, 4), 0.5, np.float32)])
def test_values_without_a_range_are_refused(tmp_path, cache, array):
    Image.fromarray(array).save(tmp_path / "a.tiff")
    write_image(tmp_path / "b.png")
    table = load_table("csv", tmp_path, labels=write_csv(tmp_path, "image,label\na.tiff,a\nb.png,b\n"))
    with pytest.raises(DataError, match=r"1 of 2 images cannot be decoded, first .*a\.tiff \((values|float)"):
        load_images(table, 4, cache=cache)


def test_transparent_palette_does_not_warn():
    image = Image.new("P", (4, 4))
    image.info["transparency"] = bytes(range(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_rgb(image).mode == "RGB"


def test_orientation_tag_is_ignored_and_aspect_not_kept(tmp_path, cache):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    image = Image.new("RGB", (40, 10), "red")
    image.paste("blue", (20, 0, 40, 10))
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    write_image(tmp_path / "b.png")
    table = load_table("csv", tmp_path, labels=write_csv(tmp_path, "image,label\na.jpg,a\nb.png,b\n"))
    pixels, _ = load_images(table, 10, cache=cache)
    assert (pixels[0, :, 0, 0] > 200).all() and (pixels[0, :, -1, 2] > 200).all()


# The fingerprint.


def test_fingerprint_follows_contents_ids_and_class_names_only(table, cache, tmp_path):
    _, fingerprint = load_images(table, 8, cache=cache)
    assert len(fingerprint) == 64
    assert load_images(table, 9, cache=cache)[1] == fingerprint
    moved = load_table("ham10k", write_ham10k(tmp_path / "elsewhere", folder="HAM10000_images_part_1"))
    assert load_images(moved, 8, cache=cache)[1] == fingerprint
    backwards = Table(table.name, table.frame[::-1], table.classes)
    assert load_images(backwards, 8, cache=cache)[1] == fingerprint

    relabelled = table.frame.assign(label=table.frame["label"].where(table.frame.index != 3, 0))
    renamed = table.frame.assign(id=table.frame["id"].replace("ISIC_0000003", "ISIC_0000103"))
    for other in (
        Table(table.name, relabelled, table.classes),
        Table(table.name, renamed, table.classes),
        Table(table.name, table.frame, ("other", *table.classes[1:])),
        Table(table.name, table.frame[:-1], table.classes),
    ):
        assert load_images(other, 8, cache=cache)[1] != fingerprint


# The cache.


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
    workers = [
        context.Process(target=load_at_once, args=(barrier, results, root, str(cache))) for _ in range(2)
    ]
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


# Batches.


def test_batches_are_rows_of_the_shared_storage():
    inputs = torch.arange(10 * 3 * 2 * 2, dtype=torch.uint8).reshape(10, 3, 2, 2)
    rows = torch.tensor([7, 2, 9])
    samples = Samples(inputs, rows, torch.tensor([0, 1, 2]), ("g", "b", "i"))
    assert len(samples) == 3
    batch, labels = samples.batch(torch.tensor([2, 0]))
    assert torch.equal(batch, inputs[[9, 7]]) and labels.tolist() == [2, 0]
    batch.zero_()
    assert inputs[9].any()
