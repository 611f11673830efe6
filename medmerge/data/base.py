"""What every dataset has in common: the table, its error, and reading files strictly.

The modules that know the datasets (`skin`, `fundus`, `labelled`, `synthetic` and others) build on
this one, and `tables` puts them behind one function.
"""

from __future__ import annotations

import csv
import io
import os
import re
import warnings
import zipfile
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


def read_rows(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """Reads a comma or tab separated file as stripped strings, empty where there is no value.

    Nothing is taken for a number, a truth value or a missing value: a class may be called "NA".
    The separator is a tab where the first line has one.

    Args:
        path: The file, UTF-8 with or without a byte order mark, or a zip file of it alone, as
            Kaggle serves some.
        columns: Columns that must be there.

    Raises:
        DataError: The file is not such a table, has no row, has two columns of one name, or lacks
            a column.
    """
    columns = list(columns)
    frame = _read_table(path, columns)
    _check_columns(path, frame, columns)
    return frame


def read_matching(
    path: Path, columns: Iterable[str], optional: Iterable[str] = ()
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Reads as `read_rows`, with columns matched as in `match_columns`; returns notes on these.

    Args:
        path: The file.
        columns: Columns that must be there.
        optional: Columns that may be there.

    Raises:
        DataError: As `read_rows`, or two columns match one.
    """
    columns = list(columns)
    frame, notes = match_columns(_read_table(path, columns), [*columns, *optional])
    _check_columns(path, frame, columns)
    return frame, tuple(f"{path.name}: {note}" for note in notes)


def match_columns(frame: pd.DataFrame, columns: Iterable[str]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Renames columns that differ from a wanted one only by case, spaces, underscores or hyphens.

    A column that is there under its exact name stays, whatever else resembles it; one that nothing
    resembles is left for the caller to miss.

    Args:
        frame: Any frame with names of columns as strings.
        columns: The wanted names.

    Returns:
        The frame, and a sentence that lists the renamed columns, if there are any.

    Raises:
        DataError: Two columns resemble a wanted one.
    """
    renamed: dict[str, str] = {}
    columns = list(columns)
    for wanted in columns:
        if wanted in frame.columns:
            continue
        near = [name for name in frame.columns if _plain(name) == _plain(wanted) and name not in columns]
        if len(near) > 1:
            raise DataError(f"The columns {' and '.join(near)} could both be {wanted}; keep one and call it {wanted}")
        renamed.update((name, wanted) for name in near)
    if not renamed:
        return frame, ()
    listed = ", ".join(f"{name} as {wanted}" for name, wanted in renamed.items())
    return frame.rename(columns=renamed), (f"Columns read under other names: {listed}.",)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _check_columns(path: Path, frame: pd.DataFrame, columns: list[str]) -> None:
    absent = [column for column in columns if column not in frame.columns]
    if absent:
        raise DataError(f"{path} has no column {', '.join(absent)}; its columns are {', '.join(frame.columns)}")


def _read_table(path: Path, columns: list[str]) -> pd.DataFrame:
    """Returns all columns of a file; `columns` are those that it should have, for the messages."""
    try:
        text = _read_text(path)
        _check_header(path, text.partition("\n")[0].rstrip("\r"), columns)
        with warnings.catch_warnings():
            # A line longer than the header is only a warning to pandas, which cuts it.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                io.StringIO(text),
                sep=_separator(text.partition("\n")[0]),
                dtype=str,
                keep_default_na=False,
                index_col=False,
            )
    except (
        OSError,
        UnicodeError,
        zipfile.BadZipFile,
        csv.Error,
        pd.errors.ParserError,
        pd.errors.ParserWarning,
    ) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    except pd.errors.EmptyDataError as error:
        needed = f"; it needs the columns {', '.join(columns)}" if columns else ""
        raise DataError(f"{path} is empty{needed}") from error
    _check_lengths(path, text)
    frame.columns = frame.columns.str.strip()
    if frame.empty:
        _check_columns(path, frame, columns)
        raise DataError(f"{path} has a header and no row")
    return frame.apply(lambda column: column.str.strip())


def _check_lengths(path: Path, text: str) -> None:
    """Raises for a line that ends early: pandas would take what is missing for empty values."""
    rows = csv.reader(io.StringIO(text), delimiter=_separator(text.partition("\n")[0]))
    width = len(next(rows, ()))
    for row in rows:
        if len(row) < width and "".join(row).strip():
            raise DataError(
                f"{path}, line {rows.line_num}: the row {','.join(row)!r} has {len(row)} of {width} values. Was the "
                "file cut short? Get it again, or write a comma for each empty value"
            )


def _read_text(path: Path) -> str:
    if path.suffix != ".zip":
        return path.read_text(encoding="utf-8-sig")
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
        if len(names) != 1:
            raise DataError(f"{path} has {len(names)} files instead of one table; unpack it")
        return archive.read(names[0]).decode("utf-8-sig")


def _separator(header: str) -> str:
    return "\t" if "\t" in header else ","


def _check_header(path: Path, header: str, columns: list[str]) -> None:
    """Raises for semicolons between the columns, and for two columns of one name, which pandas would rename."""
    names = [name.strip() for row in csv.reader([header], delimiter=_separator(header)) for name in row]
    if len(names) <= 2 and header.count(";") >= max(1, len(columns) - 1):
        raise DataError(
            f"{path} is separated by ';': its first line is {header.strip()!r}. Save it again with ',' between the "
            "columns (or tabs), such as with "
            "pandas.read_csv(file, sep=';', dtype=str, keep_default_na=False).to_csv(file, index=False)"
        )
    twice = first_duplicate(name for name in names if name)
    if twice is not None:
        raise DataError(f"{path} has two columns called {twice}; its columns are {', '.join(names)}. Keep one of them")


def image_names(path: Path, values: pd.Series, pattern: str, example: str) -> tuple[list[str], tuple[str, ...]]:
    """Checks a column of names of images; `.jpg` and the like are taken off, which a note says.

    Args:
        path: The labels file, for messages.
        values: The column.
        pattern: Regular expression that matches every whole name of the official file.
        example: A name as it should be.

    Raises:
        DataError: A name does not match.
    """
    suffixes = "|".join(re.escape(suffix) for suffix in IMAGE_SUFFIXES)
    names = values.str.replace(f"({suffixes})$", "", case=False, regex=True)
    wrong = ~names.str.fullmatch(pattern)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{path}: row {row + 1} names the image {values.iloc[row]!r}, and {int(wrong.sum()):,} of {len(values):,} "
            f"rows are so; an official name is like {example}. Were the images renamed? Get the file again"
        )
    changed = int((names != values).sum())
    notes = (f"{path.name}: the suffix is taken off {changed:,} names of images.",) if changed else ()
    return names.tolist(), notes


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
