"""Decode every image once, keep the pixels in a cache, and look at them.

An entry of the cache is two files: `<name>.npy`, uint8 pixels, and `<name>.json`, the SHA-256 of
each image's content and what is odd about it. Both are written under another name and moved into
place, the pixels first: where there is a JSON file, the pixels beside it were complete. A process
that needs an entry which another one builds waits for it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.contrib.concurrent import thread_map

from medmerge import files
from medmerge.data import decode
from medmerge.data.table import DataError, Table, digest

RESAMPLING = "pillow-bilinear-antialiased-1"
"""Names the rule from file to pixels; another rule needs another name, or caches go stale."""

FILL = (124, 116, 104)
"""What lies around a padded image: the mean of ImageNet, which normalisation takes to zero."""

_ODD = {
    "blank": "are of one colour all over",
    "few": "have 2 to 32 grey levels: masks, drawings, or photographs that lost most of their depth",
    "dark": "are nearly black (99.5 % of each below 32 of 255): was a depth or a window taken for another?",
}
_THREADS = 8


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
        notes: Sentences on images that look odd: blank, of few grey levels, nearly black.
    """

    pixels: np.ndarray
    digests: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()


def load_images(table: Table, size: int, *, resize: str = "stretch", cache: Path | None = None) -> Images:
    """Decodes the images of a table, or finds them decoded in the cache.

    An image's path is a file (of any kind that Pillow reads, or DICOM: see `decode.read_dicom`), a
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

    Raises:
        DataError: An image is missing or cannot be decoded (all of them are named), the 16-bit
            images leave their upper bits empty, or the cache cannot be written.
    """
    if resize not in ("stretch", "pad"):
        raise DataError(f"resize is {resize!r}; it is stretch or pad")
    folder = Path(cache or os.environ.get("MEDMERGE_CACHE") or "~/.cache/medmerge").expanduser()
    shape, name = (len(table.frame), size, size, 3), f"{table.name.replace(':', '-')}-{size}px-"
    name += _key(table, size, resize)[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (entry := _read(folder, name, shape)) is None:
            with files.locked(folder / f".{name}.lock", f"decoding {name}") as alone:
                # Whoever held the lock before may have built the entry.
                if _read(folder, name, shape) is None:
                    if alone:
                        files.remove_leftovers(folder, f"{name}.*")
                    _build(folder, name, shape, table, resize)
                entry = _read(folder, name, shape)
    except (OSError, files.DiskError) as error:
        way = "Name another with the environment variable MEDMERGE_CACHE"
        raise DataError(f"The cache {folder} cannot be used: {error}. {way}") from error
    if entry is None:
        raise DataError(f"The cache entry {name} in {folder} was removed while it was written")
    pixels, sidecar = entry
    fingerprint = digest(sorted(zip(table.frame["id"], _label_texts(table), sidecar["sha256"], strict=True)))
    return Images(pixels, tuple(sidecar["sha256"]), fingerprint, _oddities(table, sidecar))


def glance(table: Table, count: int = 32) -> tuple[str, ...]:
    """Decodes a few images, spread over the table, and says what is odd about them; the cache stays as it is.

    Raises:
        DataError: As `load_images`.
    """
    here = table.frame[table.frame["path"].notna()]
    rows = np.unique(np.linspace(0, len(here) - 1, min(count, len(here))).astype(int))
    with tempfile.TemporaryDirectory() as folder:
        return load_images(replace(table, frame=here.iloc[rows].reset_index(drop=True)), 32, cache=Path(folder)).notes


def _read(directory: Path, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, dict] | None:
    """Returns an entry, pixels as a copy-on-write memory map, if it is complete, else None."""
    path = directory / f"{name}.npy"
    try:
        sidecar = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
        pixels = np.lib.format.open_memmap(path, mode="c")
        whole = pixels.offset + pixels.nbytes == path.stat().st_size
        whole = whole and len(sidecar["sha256"]) == shape[0] and "odd" in sidecar
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (pixels, sidecar) if whole and pixels.shape == shape and pixels.dtype == np.uint8 else None


def _build(directory: Path, name: str, shape: tuple[int, ...], table: Table, resize: str) -> None:
    """Decodes the images of a table into an entry."""
    free, needed = shutil.disk_usage(directory).free, int(np.prod(shape, dtype=np.int64))
    if free < needed + 2**20:  # to a memory map a full disk is a bus error, which ends the process
        raise OSError(f"it has {free / 1e9:.2f} GB free and the images take {needed / 1e9:.2f} GB")
    with files.replacing(directory / f"{name}.npy") as temporary:
        pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        sidecar = _decode_all(table, pixels, resize, directory)
        pixels.flush()
        del pixels
    files.write(directory / f"{name}.json", json.dumps(sidecar))


def _decode_all(table: Table, pixels: np.ndarray, resize: str, folder: Path) -> dict:
    """Fills `pixels`, row by row in threads; returns the digests, and the rows of what is odd."""
    paths, ids = table.frame["path"].tolist(), table.frame["id"].tolist()
    arrays = decode.open_arrays(paths, folder)

    def decode_row(row: int) -> tuple[str, str | None, int | None] | str:
        try:
            pixels[row], found = _decode(paths[row], pixels.shape[1], resize, arrays)
        except MemoryError:
            raise
        except Exception as error:
            return str(error)  # the error itself would keep the file's content
        return found.digest, _look(found.image), found.peak

    options = {"max_workers": _THREADS, "desc": f"decoding {table.name}", "unit": "image", "disable": None}
    found = thread_map(decode_row, range(len(paths)), **options)
    failed = [row for row, one in enumerate(found) if isinstance(one, str)]
    if failed:
        listed = "".join(f"\n{ids[row]}: {paths[row]} ({found[row]})" for row in failed)
        way = "Get the files again, or leave the images out: --exclude FILE, with these ids, one a line"
        raise DataError(f"{table.name}: {len(failed):,} of {len(paths):,} images cannot be decoded. {way}:{listed}")
    digests, kinds, peaks = zip(*found, strict=True)
    _check_depth(table.name, [peak for peak in peaks if peak is not None])
    odd = {kind: [row for row, one in enumerate(kinds) if one == kind] for kind in _ODD}
    return {"sha256": digests, "odd": odd}


def _decode(path: str, size: int, resize: str, arrays: decode.Arrays) -> tuple[np.ndarray, decode.Decoded]:
    """Returns uint8 [size, size, 3], and the image that it was made from."""
    found = decode.read_image(path, arrays)
    image = found.image
    if resize == "pad":
        image = _padded(image, size)
    elif image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image), found


def _padded(image: Image.Image, size: int) -> Image.Image:
    """The image, made smaller if it must be, in the middle of a square of `FILL`; odd pixels go right and down."""
    scale = min(1.0, size / max(image.size))
    sides = [max(1, round(scale * side)) for side in image.size]
    if sides != list(image.size):
        image = image.resize(sides, Image.Resampling.BILINEAR)
    square = Image.new("RGB", (size, size), FILL)
    square.paste(image, [(size - side) // 2 for side in sides])
    return square


def _look(image: Image.Image) -> str | None:
    """Returns what is odd about an image of its own size, a key of `_ODD`; under 256 pixels nothing is."""
    counts = np.array(image.histogram()).reshape(3, 256)
    levels = int((counts > 0).sum(axis=1).max())
    if image.width * image.height < 256 or (levels > 32 and counts[:, :32].sum() < 0.995 * counts.sum()):
        return None
    return "blank" if levels == 1 else "few" if levels <= 32 else "dark"


def _check_depth(name: str, peaks: list[int]) -> None:
    """Raises where no 16-bit image uses the upper bits: as 16 bits, 12 would come out in 17 shades of black."""
    largest = max(peaks, default=0)
    if 0 < largest < 2**15:
        bits = next(bits for bits in (8, 10, 12, 14, 15) if largest < 2**bits)
        scaled = f"Image.fromarray((np.asarray(image) * (255 / {2**bits - 1})).round().astype(np.uint8))"
        black = f"exceeds {largest:,}, as of {bits} bits; taken as 16 they would be nearly black"
        raise DataError(f"{name}: no value of the {len(peaks):,} 16-bit images {black}. Scale all alike: {scaled}")


def _oddities(table: Table, sidecar: dict) -> tuple[str, ...]:
    ids = table.frame["id"].to_numpy()
    return tuple(
        f"{len(rows):,} of {len(ids):,} images {_ODD[kind]}: {', '.join([*ids[rows[:3]], *['...'] * (len(rows) > 3)])}."
        for kind, rows in sidecar["odd"].items()
        if rows
    )


def _key(table: Table, size: int, resize: str) -> str:
    """Hashes what decides the pixels: their rule, and the state of each image file."""
    rows = [[RESAMPLING, size] if resize == "stretch" else [RESAMPLING, size, resize, *FILL]]
    for image, path in zip(table.frame["id"], table.frame["path"], strict=True):
        try:
            rows.append([image, path, *decode.state(path)])
        except OSError as error:
            raise DataError(f"{table.name}: the image {path} is gone: {error}") from error
    return digest(rows)


def _label_texts(table: Table) -> list[str]:
    """Returns each image's class name; in a multi-label table every class with 1, 0 or nan."""
    if not table.multilabel:
        return [table.classes[label] for label in table.frame["label"]]
    return [
        json.dumps([[name, f"{value:g}"] for name, value in zip(table.classes, values, strict=True)])
        for values in table.labels.tolist()
    ]
