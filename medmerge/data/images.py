"""Decode every image once, keep the pixels in a cache, serve batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from medmerge.data import cache as pixel_cache
from medmerge.data import decode
from medmerge.data.base import DataError, Table

RESAMPLING = "pillow-bilinear-antialiased-1"
"""Names the rule from file to pixels; another rule needs another name, or caches go stale."""

FILL = (124, 116, 104)
"""What lies around a padded image: the mean of ImageNet, which normalisation takes to zero."""

_CHUNK = 16  # images that a thread takes at a time, at most


@dataclass(frozen=True, eq=False)
class Images:
    """The decoded images of a table.

    Attributes:
        pixels: uint8 [N, S, S, 3], RGB, rows aligned with `table.frame`: a memory map that is
            private to the process, so that writing to it leaves the cache as it is.
        digests: N SHA-256 in hex, aligned likewise: of the file's bytes, or of the pixels where
            an image is drawn or is a row of an npz file.
        fingerprint: SHA-256 in hex over each image's id, class name and digest, in the order of
            ids. It depends on no decoder and no size.
    """

    pixels: np.ndarray
    digests: tuple[str, ...]
    fingerprint: str


def load_images(
    table: Table, size: int, *, resize: str = "stretch", cache: Path | None = None, workers: int | None = None
) -> Images:
    """Decodes the images of a table, or finds them decoded in the cache.

    An image's path is a file (of any kind that Pillow reads, or DICOM: see `dicom.read_dicom`), a
    row of an npz file, or a drawing. Images become RGB and are brought to `size` x `size` with
    Pillow's antialiased bilinear filter. Alpha and EXIF orientation are ignored, 16-bit grey is
    scaled to 8 bits. Memory does not grow with the number of images; npz files are unpacked in the
    cache folder for as long as they are read.

    Args:
        table: The dataset.
        size: Side in pixels.
        resize: "stretch", which does not keep the aspect, as in the paper; or "pad", which keeps
            it and never enlarges: the image lies in the middle of `FILL`, as MedMNIST+'s
            benchmark has it (Doerrich et al. 2025).
        cache: Folder of the cache; else the environment's MEDMERGE_CACHE, else
            ~/.cache/medmerge. An entry serves as long as ids, paths, sizes and times of change
            of the image files stay as they are.
        workers: Threads; one for each available core, 8 at most, by default.

    Raises:
        DataError: An image is missing or cannot be decoded, or the cache cannot be written.
    """
    if size < 1:
        raise DataError(f"image_size is {size}; it is a number of pixels, 1 or more")
    if resize not in ("stretch", "pad"):
        raise DataError(f"resize is {resize!r}; it is stretch or pad")
    paths = table.frame["path"].tolist()
    shape = (len(paths), size, size, 3)
    key = _key(table, size, resize)
    name = f"{table.name.replace(':', '-')}-{size}px-{key[:32]}"
    folder = pixel_cache.folder(cache)

    def decode_all(pixels: np.ndarray) -> list[str]:
        return _decode_all(table.name, paths, pixels, resize, folder, workers)

    pixels, digests = pixel_cache.load_or_build(folder, name, shape, build=decode_all)
    return Images(pixels, tuple(digests), _fingerprint(table, digests))


def _decode(path: str, size: int, resize: str, arrays: decode.Arrays) -> tuple[np.ndarray, str]:
    """Returns uint8 [size, size, 3] and the digest of the image's content."""
    image, digest = decode.read_image(path, arrays)
    if resize == "pad":
        image = _padded(image, size)
    elif image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image), digest


def _padded(image: Image.Image, size: int) -> Image.Image:
    """The image, made smaller if it must be, in the middle of a square of `FILL`; odd pixels go right and down."""
    scale = min(1.0, size / max(image.size))
    sides = [max(1, round(scale * side)) for side in image.size]
    if sides != list(image.size):
        image = image.resize(sides, Image.Resampling.BILINEAR)
    square = Image.new("RGB", (size, size), FILL)
    square.paste(image, [(size - side) // 2 for side in sides])
    return square


def _decode_all(
    name: str, paths: list[str], pixels: np.ndarray, resize: str, folder: Path, workers: int | None
) -> list[str]:
    """Fills `pixels`, row by row in threads, and returns the digests of the contents."""
    arrays = decode.Arrays(folder)
    digests = [""] * len(paths)
    failures: dict[int, str] = {}

    def decode_row(row: int) -> None:
        try:
            pixels[row], digests[row] = _decode(paths[row], pixels.shape[1], resize, arrays)
        except DataError:
            raise
        except decode.UNDECODABLE as error:
            failures[row] = str(error)  # the error itself would keep the file's content

    _in_threads(decode_row, len(paths), workers, f"decoding {name}")
    if failures:
        first = min(failures)
        raise DataError(
            f"{name}: {len(failures):,} of {len(paths):,} images cannot be decoded, first "
            f"{paths[first]} ({failures[first]}). Get the files again, or leave their ids out "
            "with exclude."
        )
    return digests


def _in_threads(function: Callable[[int], None], count: int, workers: int | None, title: str) -> None:
    """Calls `function` with 0 to count - 1; an interrupt does not wait for what has not begun."""

    def call(rows: range) -> int:
        for row in rows:
            function(row)
        return len(rows)

    threads = workers if workers is not None else min(8, pixel_cache.available_cores())
    # One call an image would keep a record of each.
    length = max(1, min(_CHUNK, count // (4 * threads)))
    chunks = [range(count)[start : start + length] for start in range(0, count, length)]
    pool = ThreadPoolExecutor(max_workers=threads)
    try:
        with tqdm(total=count, desc=title, unit="image", disable=None) as bar:
            for done in pool.map(call, chunks):
                bar.update(done)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _key(table: Table, size: int, resize: str) -> str:
    """Hashes what decides the pixels: their rule, and the state of each image file."""
    hasher = hashlib.sha256()
    pixel_cache.hash_row(hasher, [RESAMPLING, size] if resize == "stretch" else [RESAMPLING, size, resize, *FILL])
    for image, path in zip(table.frame["id"], table.frame["path"], strict=True):
        try:
            state = decode.state(path)
        except OSError as error:
            raise DataError(f"{table.name}: the image {path} is gone: {error}") from error
        pixel_cache.hash_row(hasher, [image, path, *state])
    return hasher.hexdigest()


def _fingerprint(table: Table, digests: list[str]) -> str:
    hasher = hashlib.sha256()
    for row in sorted(zip(table.frame["id"], _label_texts(table), digests, strict=True)):
        pixel_cache.hash_row(hasher, list(row))
    return hasher.hexdigest()


def _label_texts(table: Table) -> list[str]:
    """Returns each image's class name; in a multi-label table every class with 1, 0 or nan."""
    if not table.multilabel:
        return [table.classes[label] for label in table.frame["label"]]
    return [
        json.dumps([[name, f"{value:g}"] for name, value in zip(table.classes, values, strict=True)])
        for values in table.labels.tolist()
    ]
