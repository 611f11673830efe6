"""MedMNIST: twelve sets of two-dimensional medical images at 28, 64, 128 and 224 pixels.

What a set is (its classes, numbers of images, address and checksum) is taken from the `medmnist`
package, which takes seconds to import and is imported when a set is read.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from medmerge.data.reading import Source
from medmerge.data.table import SPLITS, DataError, Listing, label_columns

KINDS = "path chest derma oct pneumonia retina breast blood tissue organa organc organs"
SETS: dict[str, tuple[str, int]] = {
    f"medmnist:{kind}mnist" + (f"_{size}" if size != 28 else ""): (f"{kind}mnist", size)
    for kind in KINDS.split()
    for size in (28, 64, 128, 224)
}
"""The sets' names here, each with its name and size there."""


def listing(name: str, root: Path | None) -> Listing:
    """Lists a MedMNIST set from its npz file; images are rows of the file, and stay there.

    ChestMNIST is multi-label, the others have one label an image. The official split is complete.
    There are no groups: the files do not tell patients. An image's id is such as "train/00017",
    its path such as "/x/retinamnist.npz#train/17".

    Source: Yang et al., Scientific Data 10, 41 (2023), https://medmnist.com.

    Args:
        name: A key of `SETS`.
        root: The folder that has the file, or that has it one folder below.

    Raises:
        DataError: The file is missing or damaged, an array has another shape or type than the
            official one, or a label is no class.
    """
    from medmnist import INFO

    flag, size = SETS[name]
    info, file, key = INFO[flag], f"{name.removeprefix('medmnist:')}.npz", "" if size == 28 else f"_{size}"
    command = f"medmnist.{info['python_class']}('train', download=True, size={size}, root='.')"
    expected = (
        f"The folder must hold {file}, with the MD5 {info[f'MD5{key}']}. Get it from {info[f'url{key}']}, "
        f'or with: python -c "import medmnist; {command}"'
    )
    source = Source(name, root, expected)
    path = source.file(file, *sorted(f"{found.parent.name}/{file}" for found in source.folder.glob(f"*/{file}")))
    counts, classes = info["n_samples"], tuple(info["label"].values())
    multilabel = "multi-label" in info["task"]
    image = (size, size, 3) if info["n_channels"] == 3 else (size, size)
    official = {f"{part}_images": (counts[part], *image) for part in SPLITS}
    official |= {f"{part}_labels": (counts[part], len(classes) if multilabel else 1) for part in SPLITS}
    try:
        for array, shape in official.items():
            found, dtype = _header(path, array)
            if found != shape or (dtype != np.uint8 if array.endswith("images") else dtype.kind not in "iu"):
                wrong = f"{array} is {dtype} {list(found)}, officially uint8 {list(shape)}"
                raise DataError(f"{path}: {wrong}. Is it the file of another size or set?")
        with np.load(path) as arrays:
            values = np.concatenate([arrays[f"{part}_labels"] for part in SPLITS])
    except DataError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}. Get it again. {expected}") from error
    top = 1 if multilabel else len(classes) - 1
    if values.min() < 0 or values.max() > top:
        raise DataError(f"{path}: its labels go from {values.min()} to {values.max()}, officially 0 to {top}")
    digits = max(5, len(str(max(counts.values()) - 1)))
    rows = [
        (f"{part}/{row:0{digits}d}", f"{path}#{part}/{row}", part) for part in SPLITS for row in range(counts[part])
    ]
    frame = pd.DataFrame(rows, columns=["id", "path", "split"], dtype=object)
    if multilabel:
        labels = pd.DataFrame(values, columns=label_columns(classes), dtype=np.float32)
        return source.listing(pd.concat([frame, labels], axis=1), classes)
    return source.listing(frame.assign(label=np.array(classes, dtype=object)[values[:, 0]]), classes)


def _header(path: Path, array: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array, which is not read."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{array}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return shape, dtype
