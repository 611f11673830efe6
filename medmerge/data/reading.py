"""Label files, read strictly: nothing is taken for a number or a missing value, and a file that was cut is refused."""

from __future__ import annotations

import csv
import io
import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from medmerge.data.base import IMAGE_SUFFIXES, DataError, first_duplicate


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
