"""The cache of decoded images: never half-written, never stale, safe to share."""

import errno
import fcntl
import os
import re
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from data_fixtures import load_at_once, write_ham10k, write_image

from medmerge.data import DataError, load_images, load_table
from medmerge.data import images as images_module


@pytest.fixture
def table(tmp_path):
    return load_table("ham10k", write_ham10k(tmp_path / "ham"), missing="drop")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch):
    """The paths that were decoded, in a list that grows."""
    paths, decode = [], images_module._decode

    def spy(path, *arguments):
        paths.append(path)
        return decode(path, *arguments)

    monkeypatch.setattr(images_module, "_decode", spy)
    return paths


def entry(cache, suffix):
    (path,) = cache.glob(f"*{suffix}")
    return path


def test_second_load_decodes_nothing(table, cache, decoded):
    images = load_images(table, 8, cache=cache)
    pixels, fingerprint = images.pixels, images.fingerprint
    assert len(decoded) == 14
    loaded = load_images(table, 8, cache=cache)
    again, same = loaded.pixels, loaded.fingerprint
    assert len(decoded) == 14 and same == fingerprint and (again == pixels).all()
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".npy"]


def test_changed_file_is_decoded_again(table, cache):
    images = load_images(table, 8, cache=cache)
    before, fingerprint = images.pixels, images.fingerprint
    path = write_image(type(cache)(table.frame["path"][2]), seed=99)
    images = load_images(table, 8, cache=cache)
    after, other = images.pixels, images.fingerprint
    assert other != fingerprint
    assert [row for row in range(14) if (before[row] != after[row]).any()] == [2]
    os.utime(path, ns=(1, 1))  # the same content at another time
    assert load_images(table, 8, cache=cache).fingerprint == other


@pytest.mark.parametrize("suffix", [".npy", ".json"])
@pytest.mark.parametrize("damage", ["truncated", "longer", "empty", "removed", "garbage"])
def test_damaged_entry_is_built_again(table, cache, decoded, suffix, damage):
    images = load_images(table, 8, cache=cache)
    pixels, fingerprint = images.pixels, images.fingerprint
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
    loaded = load_images(table, 8, cache=cache)
    again, same = loaded.pixels, loaded.fingerprint
    assert len(decoded) == 28 and same == fingerprint and (again == expected).all()
    assert entry(cache, suffix).read_bytes() == content


def test_writing_to_the_pixels_leaves_the_cache(table, cache):
    pixels = load_images(table, 8, cache=cache).pixels
    content = entry(cache, ".npy").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.from_numpy(pixels).zero_()
    assert entry(cache, ".npy").read_bytes() == content
    assert load_images(table, 8, cache=cache).pixels.any()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interrupt_leaves_nothing(table, cache, monkeypatch, error):
    decode = images_module._decode

    def interrupted(path, *arguments):
        if path.endswith("ISIC_0000007.jpg"):
            raise error
        return decode(path, *arguments)

    monkeypatch.setattr(images_module, "_decode", interrupted)
    with pytest.raises(error):
        load_images(table, 8, cache=cache, workers=2)
    assert list(cache.iterdir()) == []


def test_image_removed_after_the_table_was_read(table, cache):
    os.unlink(table.frame["path"][4])
    with pytest.raises(DataError, match=r"ISIC_0000004\.jpg is gone"):
        load_images(table, 8, cache=cache)


def test_two_processes_at_once(table, cache, processes):
    barrier, results = processes.Barrier(2), processes.Queue()
    root = str(cache.parent / "ham")
    workers = [processes.Process(target=load_at_once, args=(barrier, results, root, str(cache))) for _ in range(2)]
    for worker in workers:
        worker.start()
    answers = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    images = load_images(table, 32, cache=cache)
    assert answers == [(images.fingerprint, int(images.pixels.astype(np.int64).sum()))] * 2
    assert len(list(cache.iterdir())) == 2


def decode_slowly(root: str, cache: str, begun, results, seconds: float) -> None:
    """In a process of its own: loads images, so many seconds for each; says when the first has begun."""
    decode, count = images_module._decode, 0

    def slowly(*arguments):
        nonlocal count
        count += 1
        begun.set()
        time.sleep(seconds)
        return decode(*arguments)

    images_module._decode = slowly
    images = load_images(load_table("ham10k", root, missing="drop"), 32, cache=Path(cache), workers=1)
    results.put((count, images.fingerprint))


@pytest.fixture
def other(table, cache, processes):
    """Starts a process that decodes the table's images into the cache, and waits until it is at work."""
    started = []

    def start(seconds):
        begun, results = processes.Event(), processes.Queue()
        arguments = (str(cache.parent / "ham"), str(cache), begun, results, seconds)
        started.append(processes.Process(target=decode_slowly, args=arguments))
        started[-1].start()
        assert begun.wait(timeout=120)
        return started[-1], results

    yield start
    for process in started:
        process.kill()
        process.join(timeout=60)


def test_second_process_waits_and_decodes_nothing(table, cache, decoded, other, caplog):
    process, results = other(seconds=0.2)
    images = load_images(table, 32, cache=cache)
    assert decoded == [] and re.search(r"decoding ham10k-32px-\S+: waiting for another process", caplog.text)
    assert results.get(timeout=60) == (14, images.fingerprint)
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".npy"]


def test_second_process_takes_over_from_one_that_dies(table, cache, decoded, other, caplog):
    process, _ = other(seconds=600)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(load_images(table, 32, cache=cache)))
    thread.start()
    while "waiting for another process" not in caplog.text:
        time.sleep(0.05)
    assert decoded == [] and len(list(cache.glob(".*.npy.*.partial"))) == 1
    process.kill()
    thread.join(timeout=60)
    assert len(decoded) == 14 and answers[0].pixels.any()
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".npy"]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_systems_without_locks(table, cache, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    expected = np.array(load_images(table, 8, cache=cache).pixels)
    entry(cache, ".json").unlink()
    monkeypatch.setattr(fcntl, "flock", refuse)
    part = cache / f".{entry(cache, '.npy').name}.of-another-process.partial"
    part.touch()
    assert (load_images(table, 8, cache=cache).pixels == expected).all()
    assert part.exists()  # nobody knows that its process has ended


# Speed and memory.


def test_images_are_decoded_side_by_side(table, cache, monkeypatch):
    meeting, decode = threading.Barrier(2), images_module._decode

    def meet(*arguments):
        meeting.wait(timeout=60)  # broken, unless two are decoded at once
        return decode(*arguments)

    monkeypatch.setattr(images_module, "_decode", meet)
    assert load_images(table, 8, cache=cache, workers=2).pixels.any()


# The folder.


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
