"""Decode every image once, keep the pixels in a cache, serve batches."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from medmerge.data import cache as pixel_cache
from medmerge.data import synthetic
from medmerge.data.base import DataError, Table

RESAMPLING = "pillow-bilinear-antialiased-1"
"""Names the rule from file to pixels; another rule needs another name, or caches go stale."""

_UNDECODABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True, eq=False)
class Samples:
    """The images of one part of a split, in storage that all parts share.

    Attributes:
        inputs: [M, ...], all of the dataset. Of images: uint8 [M, 3, S, S], RGB, a channels-last
            view of the cached pixels. Of features: float.
        rows: int64 [N], the rows of `inputs` that belong to this part.
        labels: int64 [N], indices into the dataset's classes.
        ids: N ids.
    """

    inputs: Tensor
    rows: Tensor
    labels: Tensor
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns copies of the inputs and labels at `positions`, an int64 [B] below N."""
        return self.inputs[self.rows[positions]], self.labels[positions]


def load_images(
    table: Table, size: int, *, cache: Path | None = None, workers: int | None = None
) -> tuple[np.ndarray, str]:
    """Decodes the images of a table, or finds them decoded in the cache.

    Images become RGB and are resized to `size` x `size` with Pillow's antialiased bilinear
    filter; the aspect is not kept, as in the paper. Alpha and EXIF orientation are ignored, 16-bit
    grey is scaled to 8 bits. Memory does not grow with the number of images.

    Args:
        table: The dataset.
        size: Side in pixels.
        cache: Folder of the cache; else the environment's MEDMERGE_CACHE, else
            ~/.cache/medmerge. An entry serves as long as ids, paths, sizes and times of change
            of the image files stay as they are.
        workers: Threads; one for each available core, 8 at most, by default.

    Returns:
        uint8 [N, size, size, 3], RGB, rows aligned with `table.frame`: a memory map that is
        private to the process, so that writing to it leaves the cache as it is. And the
        fingerprint: SHA-256 in hex over each image's id, class name and SHA-256 of its file (of
        its pixels, for drawn images), in the order of ids. It depends on no decoder and no size.

    Raises:
        DataError: An image is missing or cannot be decoded, or the cache cannot be written.
    """
    if size < 1:
        raise DataError(f"image_size is {size}; it is a number of pixels, 1 or more")
    paths = table.frame["path"].tolist()
    shape = (len(paths), size, size, 3)
    key = _key(table, size)
    name = f"{table.name.replace(':', '-')}-{size}px-{key[:32]}"

    def decode_all(pixels: np.ndarray) -> list[str]:
        return _decode_all(table.name, paths, pixels, workers)

    pixels, digests = pixel_cache.load_or_build(pixel_cache.folder(cache), name, shape, build=decode_all)
    return pixels, _fingerprint(table, digests)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any Pillow image of defined range to 8-bit RGB.

    16-bit grey, which Pillow calls "I;16" or "I", is divided by 257, so that 65535 becomes 255.

    Raises:
        ValueError: Floating-point values, or integers beyond 16 bits: their range is not known.
    """
    if image.mode == "F":
        raise ValueError("floating-point values have no defined range")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values from {values.min()} to {values.max()} exceed 16 bits")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _decode(path: str, size: int) -> tuple[np.ndarray, str]:
    """Returns uint8 [size, size, 3] and the SHA-256 of the file or of the drawn pixels."""
    if synthetic.is_drawn(path):
        drawn = synthetic.draw(path)
        image, content = Image.fromarray(drawn), drawn.tobytes()
    else:
        content = Path(path).read_bytes()
        image = to_rgb(Image.open(io.BytesIO(content)))
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image), hashlib.sha256(content).hexdigest()


def _decode_all(name: str, paths: list[str], pixels: np.ndarray, workers: int | None) -> list[str]:
    """Fills `pixels`, row by row in threads, and returns the digests of the contents."""
    failures: dict[int, Exception] = {}

    def decode_row(row: int) -> str:
        try:
            pixels[row], digest = _decode(paths[row], pixels.shape[1])
        except _UNDECODABLE as error:
            failures[row] = error
            return ""
        return digest

    digests = _in_threads(decode_row, len(paths), workers, f"decoding {name}")
    if failures:
        first = min(failures)
        raise DataError(
            f"{name}: {len(failures):,} of {len(paths):,} images cannot be decoded, first "
            f"{paths[first]} ({failures[first]}). Get the files again, or leave their ids out "
            "with exclude."
        )
    return digests


def _in_threads(function: Callable[[int], str], count: int, workers: int | None, title: str) -> list[str]:
    """Maps `function` over range(count); an interrupt does not wait for what has not begun."""
    threads = workers if workers is not None else min(8, pixel_cache.available_cores())
    pool = ThreadPoolExecutor(max_workers=threads)
    try:
        return list(tqdm(pool.map(function, range(count)), title, total=count, disable=None))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _key(table: Table, size: int) -> str:
    """Hashes what decides the pixels: their rule, and the state of each image file."""
    hasher = hashlib.sha256()
    pixel_cache.hash_row(hasher, [RESAMPLING, size])
    for image, path in zip(table.frame["id"], table.frame["path"], strict=True):
        if synthetic.is_drawn(path):
            state = [synthetic.VERSION]
        else:
            try:
                status = Path(path).stat()
            except OSError as error:
                raise DataError(f"{table.name}: the image {path} is gone: {error}") from error
            state = [status.st_size, status.st_mtime_ns]
        pixel_cache.hash_row(hasher, [image, path, *state])
    return hasher.hexdigest()


def _fingerprint(table: Table, digests: list[str]) -> str:
    hasher = hashlib.sha256()
    labels = (table.classes[label] for label in table.frame["label"])
    for row in sorted(zip(table.frame["id"], labels, digests, strict=True)):
        pixel_cache.hash_row(hasher, list(row))
    return hasher.hexdigest()
