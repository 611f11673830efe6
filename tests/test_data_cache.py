"""The cache of decoded images: never half-written, never stale, safe to share."""

import os
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from data_fixtures import write_ham10k, write_image

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
    images, again = (load_images(table, 8, cache=cache) for _ in range(2))
    assert len(decoded) == 14 and again.fingerprint == images.fingerprint and (again.pixels == images.pixels).all()
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".npy"]


def test_changed_file_is_decoded_again(table, cache):
    before = load_images(table, 8, cache=cache)
    path = write_image(Path(table.frame["path"][2]), seed=99)
    after = load_images(table, 8, cache=cache)
    assert after.fingerprint != before.fingerprint
    assert [row for row in range(14) if (before.pixels[row] != after.pixels[row]).any()] == [2]
    os.utime(path, ns=(1, 1))  # the same content at another time
    assert load_images(table, 8, cache=cache).fingerprint == after.fingerprint


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_damaged_entry_is_built_again(table, cache, decoded, suffix):
    images = load_images(table, 8, cache=cache)
    expected, path = images.pixels.copy(), entry(cache, suffix)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content + b"}", b"", b"[1]" * 9, None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        decoded.clear()
        again = load_images(table, 8, cache=cache)
        assert len(decoded) == 14 and again.fingerprint == images.fingerprint and (again.pixels == expected).all()
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
        load_images(table, 8, cache=cache)
    assert list(cache.iterdir()) == []


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
    images = load_images(load_table("ham10k", root, missing="drop"), 32, cache=Path(cache))
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


def test_cache_that_cannot_be(table, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Not a directory.*MEDMERGE_CACHE"):
        load_images(table, 8, cache=tmp_path / "file" / "cache")
    with pytest.raises(DataError, match=r"GB free and the images take .*MEDMERGE_CACHE"):
        load_images(table, 2**20, cache=tmp_path / "cache")
