"""A folder of decoded pixels that is never seen half-written.

An entry is two files: `<name>.npy`, uint8 pixels, and `<name>.json`, their shape and the SHA-256
of each image's content. Both are written under another name and moved into place, the pixels
first: where there is a JSON file, the pixels beside it were complete. A process that needs an entry
which another one builds waits for it, by a lock on `.<name>.lock` that the system frees if the
other one dies. Where the file system knows no locks, both do the work and put the same files in
place.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from medmerge import files
from medmerge.data.base import DataError

_HINT = "Name another folder with the environment variable MEDMERGE_CACHE."


def folder(given: str | os.PathLike | None = None) -> Path:
    """Returns the cache folder: as given, else MEDMERGE_CACHE, else ~/.cache/medmerge.

    Raises:
        DataError: It cannot be made.
    """
    chosen = given or os.environ.get("MEDMERGE_CACHE") or Path.home() / ".cache" / "medmerge"
    path = Path(chosen).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"The cache folder {path} cannot be made: {error}. {_HINT}") from error
    return path


def load_or_build(
    directory: Path,
    name: str,
    shape: tuple[int, ...],
    *,
    build: Callable[[np.ndarray], list[str]],
) -> tuple[np.ndarray, list[str]]:
    """Returns an entry of the cache, which `build` fills if it is absent or damaged.

    Args:
        directory: The cache folder.
        name: Name of the entry; whatever decides its pixels must be in it.
        shape: Shape of the pixels, images first.
        build: Called with a uint8 array of that shape to fill; returns a digest for each image.

    Returns:
        The pixels, a copy-on-write memory map of dtype uint8, and the digests.

    Raises:
        DataError: The folder is full or cannot be written.
    """
    entry = _read(directory, name, shape)
    if entry is not None:
        return entry
    try:
        with files.locked(directory / f".{name}.lock", f"decoding {name}") as alone:
            # Whoever held the lock before may have built the entry.
            entry = _read(directory, name, shape)
            if entry is not None:
                return entry
            if alone:
                files.remove_leftovers(directory, f"{name}.*")
            check_space(directory, int(np.prod(shape, dtype=np.int64)), "the images")
            _write(directory, name, shape, build)
    except files.DiskError as error:
        raise DataError(f"{error}. {_HINT}") from error
    entry = _read(directory, name, shape)
    if entry is None:
        raise DataError(f"The cache entry {name} in {directory} was removed while it was written")
    return entry


def check_space(directory: Path, needed: int, what: str) -> None:
    """Raises before a full disk ends the process: to a memory map it is a bus error.

    Args:
        directory: A folder.
        needed: Bytes that are going to be written to it.
        what: What they are, for the message.

    Raises:
        DataError: The disk has less than that.
    """
    free = shutil.disk_usage(directory).free
    if free < needed + 2**20:
        raise DataError(
            f"The cache folder {directory} has {free / 1e9:.2f} GB free and {what} take {needed / 1e9:.2f} GB. {_HINT}"
        )


def hash_row(hasher, values: list) -> None:
    """Feeds a list of texts and numbers to a hash, so that no two lists feed it the same."""
    hasher.update(json.dumps(values).encode() + b"\n")


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(directory: Path, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, list[str]] | None:
    """Returns the entry if it is complete, else None."""
    path = directory / f"{name}.npy"
    try:
        sidecar = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
        pixels = np.lib.format.open_memmap(path, mode="c")
        whole = pixels.offset + pixels.nbytes == path.stat().st_size
        digests = sidecar["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not whole or pixels.shape != shape or pixels.dtype != np.uint8 or len(digests) != shape[0]:
        return None
    return pixels, digests


def _write(directory: Path, name: str, shape: tuple[int, ...], build: Callable[[np.ndarray], list[str]]) -> None:
    try:
        with files.replacing(directory / f"{name}.npy") as temporary:
            pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            digests = build(pixels)
            pixels.flush()
            del pixels
        files.write(directory / f"{name}.json", json.dumps({"shape": list(shape), "sha256": digests}))
    except OSError as error:
        raise DataError(f"The cache {directory} cannot be written: {error}. {_HINT}") from error
