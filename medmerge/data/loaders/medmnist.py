"""MedMNIST: twelve sets of two-dimensional medical images at 28, 64, 128 and 224 pixels.

What a set is (its classes, numbers of images, address and checksum) is taken from the `medmnist`
package, which takes seconds to import and is imported when a set is read.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from medmerge.data.reading import Source
from medmerge.data.table import SPLITS, DataError, Listing, label_columns

_KINDS = (
    "path",
    "chest",
    "derma",
    "oct",
    "pneumonia",
    "retina",
    "breast",
    "blood",
    "tissue",
    "organa",
    "organc",
    "organs",
)
NAMES = tuple(f"{kind}mnist" for kind in _KINDS)
SIZES = (28, 64, 128, 224)
SETS: Mapping[str, tuple[str, int]] = {
    f"medmnist:{name}" + (f"_{size}" if size != 28 else ""): (name, size) for name in NAMES for size in SIZES
}
"""The sets' names here, each with its name and size there."""

_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def listing(name: str, root: Path | None, labels: str | None = None) -> Listing:
    """Lists a MedMNIST set from its npz file; images are rows of the file, and stay there.

    ChestMNIST is multi-label, the others have one label an image. The official split is complete.
    There are no groups: the files do not tell patients. An image's id is such as "train/00017",
    its path such as "/x/retinamnist.npz#train/17".

    Source: Yang et al., Scientific Data 10, 41 (2023), https://medmnist.com.

    Args:
        name: A key of `SETS`.
        root: The folder that has the file, or that has it one folder below.
        labels: Not used.

    Raises:
        DataError: The file is missing or damaged, an array has another shape or type than the
            official one, or a label is no class.
    """
    flag, size = SETS[name]
    info = _info(flag)
    file = f"{name.removeprefix('medmnist:')}.npz"
    expected = _expected(info, file, size)
    source = Source(name, root, expected)
    path = source.file(file, *sorted(f"{found.parent.name}/{file}" for found in source.folder.glob(f"*/{file}")))
    classes = tuple(info["label"][str(index)] for index in range(len(info["label"])))
    multilabel = "multi-label" in info["task"]
    try:
        _check_arrays(path, info, size, len(classes) if multilabel else 1)
        with np.load(path) as arrays:
            values = [arrays[f"{part}_labels"] for part in SPLITS]
    except DataError:
        raise
    except _UNREADABLE as error:
        raise DataError(f"{path} cannot be read: {error}. Get it again. {expected}") from error
    for part, given in zip(SPLITS, values, strict=True):
        _check_labels(path, part, given, 2 if multilabel else len(classes))
    values = np.concatenate(values)
    counts = info["n_samples"]
    digits = max(5, len(str(max(counts.values()) - 1)))
    rows = [(part, row) for part in SPLITS for row in range(counts[part])]
    frame = pd.DataFrame(
        {
            "id": [f"{part}/{row:0{digits}d}" for part, row in rows],
            "path": [f"{path}#{part}/{row}" for part, row in rows],
            "split": [part for part, _ in rows],
        },
        dtype=object,
    )
    if multilabel:
        labels = pd.DataFrame(values, columns=label_columns(classes), dtype=np.float32)
        return source.listing(pd.concat([frame, labels], axis=1), classes)
    return source.listing(frame.assign(label=np.array(classes, dtype=object)[values[:, 0]]), classes)


@cache
def _info(flag: str) -> dict:
    from medmnist import INFO

    return INFO[flag]


def _expected(info: dict, file: str, size: int) -> str:
    key = "" if size == 28 else f"_{size}"
    command = f"medmnist.{info['python_class']}('train', download=True, size={size}, root='.')"
    return (
        f"The folder must hold {file}, with the MD5 {info[f'MD5{key}']}. Get it from {info[f'url{key}']}, "
        f'or with: python -c "import medmnist; {command}"'
    )


def _check_arrays(path: Path, info: dict, size: int, width: int) -> None:
    """Compares the shapes and types in the file, read without the arrays, with the official ones."""
    image = (size, size, 3) if info["n_channels"] == 3 else (size, size)
    with zipfile.ZipFile(path) as archive:
        for part in SPLITS:
            count = info["n_samples"][part]
            for array, shape in ((f"{part}_images", (count, *image)), (f"{part}_labels", (count, width))):
                given, dtype = _header(archive, f"{array}.npy")
                if given != shape or (dtype != np.uint8 if array.endswith("images") else dtype.kind not in "iu"):
                    raise DataError(
                        f"{path}: {array} is {dtype} {list(given)}, officially uint8 {list(shape)}. "
                        "Is it the file of another size or set?"
                    )


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return shape, dtype


def _check_labels(path: Path, part: str, values: np.ndarray, count: int) -> None:
    wrong = (values < 0) | (values >= count)
    if wrong.any():
        row, column = (int(index[0]) for index in np.nonzero(wrong))
        raise DataError(
            f"{path}: row {row}, column {column} of {part}_labels is {values[row, column]}; it is from 0 to {count - 1}"
        )
