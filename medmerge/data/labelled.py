"""A user's own images: listed in a CSV file, or in a folder for each class."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pandas as pd

from medmerge.data.base import (
    IMAGE_SUFFIXES,
    SPLITS,
    DataError,
    Listing,
    dataset_folder,
    first_duplicate,
    listing_frame,
)
from medmerge.data.reading import read_matching

FOLDER_SUFFIXES = (*IMAGE_SUFFIXES, ".bmp", ".dcm", ".dicom", ".gif", ".tif", ".tiff", ".webp")
PREFIX = "label:"
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

_CSV_EXPECTED = (
    "The dataset csv is a folder of images and a CSV file with the columns image,label and, if "
    "wanted, group and split; image is a path relative to the folder. Where an image may have any number of "
    "classes, it has labels (such as Edema|Effusion; empty for none) instead of label, or a column label:<class> "
    "for each class (1 present, 0 absent, -1 uncertain, or blank)."
)
_FOLDER_EXPECTED = (
    "The dataset folder is <root>/<class>/*.jpg (or .png and so on), or, with its own split, "
    "<root>/train/<class>/*.jpg, <root>/val/<class>/*.jpg and <root>/test/<class>/*.jpg."
)


def labelled_csv(root: Path | None, labels: str | None) -> Listing:
    """Images of a folder with the labels of a CSV file `image,label[,group][,split]`.

    Classes are the labels in alphabetical order; labels stay strings ("10" comes before "2"). An
    image's id is its path relative to the folder, with forward slashes. Instead of `label` the
    file may have `labels`, any number of classes with "|" between them, or a column
    `label:<class>` for each class: the dataset is then multi-label, in the latter case with the
    classes in the order of the columns.

    Args:
        root: Folder of the images.
        labels: Path of the CSV file; if there is no such file, it is looked for in `root`.

    Raises:
        DataError: The file is missing or lacks a column, an image is listed twice or lies
            outside the folder, a label is empty or no number, two classes differ by case alone, a
            split is none of train, val and test, or labels are given in two ways.
    """
    folder = dataset_folder("csv", root, _CSV_EXPECTED)
    path = _labels_file(folder, labels)
    rows, notes = read_matching(path, ("image",), ("label", "labels", "group", "split"))
    ids = [_relative(image, path, line) for line, image in enumerate(rows["image"], start=2)]
    twice = first_duplicate(ids)
    if twice is not None:
        raise DataError(f"{path} lists the image {twice} more than once; keep one row an image")
    splits = rows.get("split")
    if splits is not None:
        _check_splits(splits, path)
    values, classes, used = _read_labels(rows, path)
    _check_case("csv", classes, path)
    unused = [name for name in rows.columns if name not in ("image", "group", "split", *used)]
    return Listing(
        frame=listing_frame(
            ids,
            [str(folder / image) if (folder / image).is_file() else None for image in ids],
            values,
            rows.get("group"),
            splits,
        ),
        classes=classes,
        notes=(*notes, *((f"Columns not used: {', '.join(unused)}.",) if unused else ())),
        expected=_CSV_EXPECTED,
    )


def labelled_folder(root: Path | None, labels: str | None = None) -> Listing:
    """Images in a folder for each class, or in such folders within `train`, `val` and `test`.

    Classes are the names of the folders in alphabetical order. An image's id is its path below
    `root`, with forward slashes; images in folders within a class's belong to the class. `valid`
    and `validation` are read as `val`. Names that begin with a dot are passed over.

    Args:
        root: Folder of the folders.
        labels: Not used.

    Raises:
        DataError: There is no folder with an image, folders of a split and others lie side by
            side, or two classes differ by case alone.
    """
    folder = dataset_folder("folder", root, _FOLDER_EXPECTED)
    places, loose = _class_folders(folder)
    ids, classes, splits, others, empty = [], [], [], Counter(), []
    for place, split in places:
        images, rest = _images_below(place)
        others += rest
        if not images:
            empty.append(place.relative_to(folder).as_posix())
        ids += [image.relative_to(folder).as_posix() for image in images]
        classes += [place.name] * len(images)
        splits += [split] * len(images)
    if not ids:
        raise DataError(f"folder: no folder in {folder} has an image. {_FOLDER_EXPECTED}")
    names = tuple(sorted(set(classes)))
    _check_case("folder", names, folder)
    return Listing(
        frame=listing_frame(ids, [str(folder / image) for image in ids], classes, splits=splits),
        classes=names,
        notes=_folder_notes(loose, others, empty),
        expected=_FOLDER_EXPECTED,
    )


def _check_case(name: str, classes: tuple[str, ...], where: Path) -> None:
    same = first_duplicate(label.casefold() for label in classes)
    if same is not None:
        alike = [label for label in classes if label.casefold() == same]
        raise DataError(f"{name}: the classes {' and '.join(alike)} in {where} differ by case alone; rename one")


def _labels_file(folder: Path, labels: str | None) -> Path:
    if labels is None:
        raise DataError(f"csv needs labels, the path of the CSV file. {_CSV_EXPECTED}")
    candidates = (Path(labels).expanduser(), folder / labels)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise DataError(f"There is no labels file {labels}, nor {candidates[1]}. {_CSV_EXPECTED}")


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


def _read_labels(rows: pd.DataFrame, path: Path) -> tuple[pd.Series | pd.DataFrame, tuple[str, ...], list[str]]:
    """Returns the labels as `listing_frame` takes them, the classes, and the columns that were read."""
    by_class = [name for name in rows.columns if name.startswith(PREFIX)]
    given = [name for name in ("label", "labels") if name in rows.columns] + by_class[:1]
    if not given:
        raise DataError(f"{path} has no column label; its columns are {', '.join(rows.columns)}. {_CSV_EXPECTED}")
    if len(given) > 1:
        raise DataError(f"{path} gives labels in two ways, {' and '.join(given)}; keep one. {_CSV_EXPECTED}")
    if given == ["label"]:
        # An empty label is left for the check that all datasets share, which needs no class for it.
        return rows["label"], tuple(sorted(set(rows["label"]) - {""})), given
    if given == ["labels"]:
        values = _split_labels(rows["labels"], path)
        return values, tuple(values.columns), given
    values = _numbers(rows[by_class].rename(columns=lambda name: name.removeprefix(PREFIX).strip()), path)
    return values, tuple(values.columns), by_class


def _split_labels(column: pd.Series, path: Path) -> pd.DataFrame:
    """Returns float32 [N, K] of 1 and 0 from texts such as "Edema|Effusion", a column for each class."""
    sets = [{name.strip() for name in text.split("|")} - {""} for text in column]
    classes = sorted(set().union(*sets))
    # A class may have a comma, but not another class beside it.
    listed = {name: {part.strip() for part in name.split(",")} - {name} for name in classes}
    joined = [name for name in classes if ";" in name or listed[name] & set(classes)]
    if joined:
        mark = ";" if ";" in joined[0] else ","
        raise DataError(f"{path} has the class {joined[0]!r} in labels; put '|' between classes, not {mark!r}")
    if not classes:
        raise DataError(f"{path} has no class in labels: the column is empty in all {len(column):,} rows")
    return pd.DataFrame({name: [np.float32(name in given) for given in sets] for name in classes}, dtype=np.float32)


def _numbers(texts: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Returns the columns of labels as float32, NaN where blank."""
    twice = first_duplicate(texts.columns)
    if twice is not None or "" in texts.columns:
        raise DataError(
            f"{path} has two columns {PREFIX}{twice}" if twice else f"{path} has a column {PREFIX} of no class"
        )
    values = texts.replace("", np.nan).apply(pd.to_numeric, errors="coerce")
    wrong = values.isna() & (texts != "")
    if wrong.to_numpy().any():
        row, column = (int(index[0]) for index in np.nonzero(wrong.to_numpy()))
        raise DataError(
            f"{path}, line {row + 2}: {PREFIX}{texts.columns[column]} is {texts.iloc[row, column]!r}; "
            "a label is 1 (present), 0 (absent), -1 (uncertain) or blank"
        )
    return values.astype(np.float32)


def _class_folders(folder: Path) -> tuple[list[tuple[Path, str | None]], int]:
    """Returns the folders of classes, each with its part of the split, and the number of files beside them."""
    inside, loose = _visible(folder)
    parts = [place for place in inside if place.name.lower() in SPLIT_FOLDERS]
    if not parts:
        _check_depth(folder, inside)
        return [(place, None) for place in inside], loose
    if len(parts) < len(inside):
        other = next(place for place in inside if place not in parts)
        raise DataError(
            f"folder: {folder} has the folder {parts[0].name} of a split beside {other.name}; "
            f"move what is no class of the split out of it. {_FOLDER_EXPECTED}"
        )
    places: list[tuple[Path, str | None]] = []
    for part in parts:
        below, files = _visible(part)
        places += [(place, SPLIT_FOLDERS[part.name.lower()]) for place in below]
        loose += files
    return places, loose


def _check_depth(folder: Path, inside: list[Path]) -> None:
    """Raises where the only folder holds the folders of the classes, which is one level too high."""
    if len(inside) == 1 and len(_visible(inside[0])[0]) > 1:
        raise DataError(f"folder: the only folder in {folder} is {inside[0].name}; give {inside[0]} as the root")


def _visible(folder: Path) -> tuple[list[Path], int]:
    """Returns the folders in a folder, sorted, and the number of its files, hidden ones not counted."""
    entries = [entry for entry in sorted(folder.iterdir()) if not _hidden(entry.name)]
    folders = [entry for entry in entries if entry.is_dir()]
    return folders, len(entries) - len(folders)


def _images_below(place: Path) -> tuple[list[Path], Counter]:
    """Returns the images in a folder and in those within it, sorted, and the suffixes of the other files."""
    images, others = [], Counter()
    for parent, folders, files in os.walk(place):
        folders[:] = sorted(name for name in folders if not _hidden(name))
        for name in sorted(files):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in FOLDER_SUFFIXES and not _hidden(name):
                images.append(Path(parent, name))
            elif not _hidden(name):
                others[suffix or "no suffix"] += 1
    return images, others


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _folder_notes(loose: int, others: Counter, empty: list[str]) -> tuple[str, ...]:
    notes = []
    if loose:
        notes.append(f"{loose:,} files beside the folders of classes are left out.")
    if others:
        notes.append(f"{others.total():,} files that are no images are left out: {', '.join(sorted(others))}.")
    if empty:
        notes.append(f"Folders without an image, left out: {', '.join(empty)}.")
    return tuple(notes)
