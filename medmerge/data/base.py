"""What every dataset has in common: the table, its error, and where files lie.

The modules that know the datasets (`skin`, `fundus`, `labelled`, `synthetic` and others) build on
this one, and `tables` puts them behind one function.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class DataError(ValueError):
    """Bad or missing data. The message names the value, what is allowed, and the next step."""


@dataclass(frozen=True, eq=False)
class Table:
    """A dataset as a table of images that are on the disk.

    Attributes:
        name: The dataset's name, such as "isic2019".
        frame: One row an image, sorted by id, with a `RangeIndex` and the columns

            - `id`: str, unique;
            - `path`: str, where the image is: a file, a name for `synthetic.draw`, or an array's
              row in an npz file, such as "retinamnist.npz#train/17"; None where it is listed and
              not there, which only `load_table(missing="keep")` lets through;
            - `label`: int64, an index into `classes`; in a multi-label dataset instead a column
              for each class, `label:<class>`: float32, 1 present, 0 absent, NaN not known, which
              is left out of losses and scores;
            - `group`: str, what must not be cut by a split: the patient or the lesion. An image
              without one is a group of its own, named by its id;
            - `split`: "train", "val" or "test" of the official split, None where there is none.
        classes: Names of the classes in the dataset's official order.
        notes: Sentences: what was left out, and what was read leniently.
    """

    name: str
    frame: pd.DataFrame
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def multilabel(self) -> bool:
        """Whether an image may have any number of classes."""
        return "label" not in self.frame

    @property
    def labels(self) -> np.ndarray:
        """Class indices, int64 [N]; multi-label float32 [N, K] of 1, 0 and NaN (not known)."""
        if self.multilabel:
            return self.frame[label_columns(self.classes)].to_numpy(dtype=np.float32)
        return self.frame["label"].to_numpy(dtype=np.int64, copy=True)


@dataclass(frozen=True, eq=False)
class Listing:
    """What a dataset's own files say, before anything is left out.

    Attributes:
        frame: Columns `id`, `path` (None where the image is not on the disk), `label` (name of
            the class), `group` (None where there is none), `split` (None likewise); any order.
            Multi-label: instead of `label`, for each class a column `label:<class>` of float32:
            1 present, 0 absent, -1 uncertain, NaN blank.
        classes: Names of the classes in the dataset's official order.
        notes: What was read leniently.
        expected: A sentence that says which files belong where and how to get them.
        rows: For each labels file that is always the same, by its name, the rows that it has and
            the rows of the official file.
    """

    frame: pd.DataFrame
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    expected: str = field(default="")
    rows: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def label_columns(classes: Iterable[str]) -> list[str]:
    """Names of a multi-label frame's columns of labels."""
    return [f"label:{name}" for name in classes]


def listing_frame(ids, paths, labels, groups=None, splits=None) -> pd.DataFrame:
    """Builds the frame of a `Listing`; empty strings in the last two columns become None.

    `labels` are the names of the classes, or a frame with a column of numbers for each class.
    """

    def optional(values):
        return [None] * len(ids) if values is None else [value or None for value in values]

    columns = {
        "id": list(ids),
        "path": list(paths),
        "group": optional(groups),
        "split": optional(splits),
    }
    frame = pd.DataFrame(columns, dtype=object)
    if not isinstance(labels, pd.DataFrame):
        frame.insert(2, "label", pd.Series(list(labels), dtype=object))
        return frame
    return pd.concat([frame, labels.astype(np.float32).add_prefix("label:").reset_index(drop=True)], axis=1)


def dataset_folder(name: str, root: str | os.PathLike | None, expected: str) -> Path:
    """Returns the folder of a dataset.

    Raises:
        DataError: No folder is given, or it is not there.
    """
    if root is None:
        raise DataError(f"{name} needs the folder that it was unpacked to. {expected}")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"{name}: there is no folder {folder}. {expected}")
    return folder


def first_file(name: str, root: Path, candidates: Sequence[str], expected: str) -> Path:
    """Returns the first of `candidates` that is a file in `root`.

    Raises:
        DataError: None of them is.
    """
    for candidate in candidates:
        if (root / candidate).is_file():
            return root / candidate
    raise DataError(f"{name}: there is no {candidates[0]} in {root}. {expected}")


def index_images(folders: Iterable[Path]) -> dict[str, str]:
    """Maps the name without suffix of each image in the folders to its path.

    Folders that are not there are passed over; a folder within itself (`images/images`, as some
    archives unpack) is looked into; the first folder that has a name wins.
    """
    found: dict[str, str] = {}
    for folder in folders:
        for candidate in (folder, folder / folder.name):
            if not candidate.is_dir():
                continue
            with os.scandir(candidate) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    stem, suffix = os.path.splitext(entry.name)
                    if suffix.lower() in IMAGE_SUFFIXES and not stem.startswith("."):
                        found.setdefault(stem, entry.path)
    return found


def first_duplicate(values: Iterable[str]) -> str | None:
    """Returns the first value that occurs a second time, or None."""
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
