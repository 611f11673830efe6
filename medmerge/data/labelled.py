"""A user's own images, listed in a CSV file."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

import pandas as pd

from medmerge.data.base import (
    SPLITS,
    DataError,
    Listing,
    dataset_folder,
    first_duplicate,
    listing_frame,
    read_rows,
)

_EXPECTED = (
    "The dataset csv is a folder of images and a CSV file with the columns image,label and, if "
    "wanted, group and split; image is a path relative to the folder."
)


def labelled_csv(root: Path | None, labels: str | None) -> Listing:
    """Images of a folder with the labels of a CSV file `image,label[,group][,split]`.

    Classes are the labels in alphabetical order; labels stay strings ("10" comes before "2"). An
    image's id is its path relative to the folder, with forward slashes.

    Args:
        root: Folder of the images.
        labels: Path of the CSV file; if there is no such file, it is looked for in `root`.

    Raises:
        DataError: The file is missing or lacks a column, an image is listed twice or lies
            outside the folder, a label is empty, or a split is none of train, val and test.
    """
    folder = dataset_folder("csv", root, _EXPECTED)
    path = _labels_file(folder, labels)
    rows = read_rows(path, ("image", "label"))
    ids = [_relative(image, path, line) for line, image in enumerate(rows["image"], start=2)]
    twice = first_duplicate(ids)
    if twice is not None:
        raise DataError(f"{path} lists the image {twice} more than once; keep one row an image")
    splits = rows.get("split")
    if splits is not None:
        _check_splits(splits, path)
    # An empty label is left for the check that all datasets share, which needs no class for it.
    classes = tuple(sorted(set(rows["label"]) - {""}))
    unused = [name for name in rows.columns if name not in ("image", "label", "group", "split")]
    return Listing(
        frame=listing_frame(
            ids,
            [str(folder / image) if (folder / image).is_file() else None for image in ids],
            rows["label"],
            rows.get("group"),
            splits,
        ),
        classes=classes,
        notes=(f"Columns not used: {', '.join(unused)}.",) if unused else (),
        expected=_EXPECTED,
    )


def _labels_file(folder: Path, labels: str | None) -> Path:
    if labels is None:
        raise DataError(f"csv needs labels, the path of the CSV file. {_EXPECTED}")
    candidates = (Path(labels).expanduser(), folder / labels)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise DataError(f"There is no labels file {labels}, nor {candidates[1]}. {_EXPECTED}")


def _relative(image: str, path: Path, line: int) -> str:
    """Returns the image's path below the folder in its one spelling."""
    posix = PurePosixPath(image.replace("\\", "/"))
    if posix.is_absolute() or PureWindowsPath(image).drive or ".." in posix.parts:
        raise DataError(
            f"{path}, line {line}: image {image!r} leads out of the folder of images; "
            "give a path relative to that folder, without '..'"
        )
    if not posix.parts:
        raise DataError(f"{path}, line {line}: the column image is empty")
    return str(posix)


def _check_splits(splits: pd.Series, path: Path) -> None:
    for line, split in enumerate(splits, start=2):
        if split not in SPLITS:
            raise DataError(
                f"{path}, line {line}: split {split!r} is none of {', '.join(SPLITS)}; name one "
                "in every row, or leave the column out"
            )
