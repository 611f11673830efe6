"""Label files and folders of images, read strictly: what could be read in two ways is refused."""

from __future__ import annotations

import csv
import io
import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from medmerge.data.table import DataError, Listing, entry, first_duplicate, is_missing, plain_form

Image.init()
DICOM_SUFFIXES = (".dcm", ".dicom")
IMAGE_SUFFIXES = frozenset(
    {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN} | set(DICOM_SUFFIXES)
)
"""Suffixes of the files that are read as images: all that Pillow opens, and DICOM."""

_NO_TABLES = {
    b"PK\x03\x04": "an Excel workbook or another zip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"version https://git-lfs": "a pointer of Git LFS, without the file itself (git lfs pull fetches it)",
    b"<": "a web page or XML",
    b"%PDF": "a PDF",
    b"\x1f\x8b": "compressed with gzip",
    b"PAR1": "a Parquet file",
}
"""What a file that begins so is."""


def is_dicom(content: bytes) -> bool:
    """Whether a file that begins so is DICOM, whatever its suffix."""
    return content[128:132] == b"DICM"


def read_rows(path: Path, columns: Iterable[str], optional: Iterable[str] = ()) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Reads a table of text as stripped strings, empty where there is no value.

    Nothing is taken for a number, a truth value or a missing value. Columns are separated as a
    first line `sep=...` says, else by tabs where the header has one, else by semicolons where it has
    them and no comma, else by commas. A wanted column is found under a name that differs only by
    case, blanks, underscores or hyphens, unless it is there under its own.

    Args:
        path: The file, UTF-8 or UTF-16, or a zip file of it alone, as Kaggle serves some.
        columns: Columns that must be there.
        optional: Columns that may be there.

    Returns:
        The rows, and notes on what was read leniently.

    Raises:
        DataError: The file is not such a table, has no row, lacks a column or has two of one name,
            or a row has more or fewer values than the header.
    """
    columns = list(columns)
    try:
        text = _read_text(path)
        stated = re.match(r'"?sep=(.)"?\r?\n', text, re.IGNORECASE)
        text = text[stated.end() :] if stated else text
        header = text.partition("\n")[0]
        separator = "\t" if "\t" in header else ";" if ";" in header and "," not in header else ","
        separator = stated[1] if stated else separator
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows = [(reader.line_num, row) for row in reader if any(row)]
    except (OSError, UnicodeError, zipfile.BadZipFile, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    if len(rows) < 2:
        raise DataError(f"{path} has no rows; it needs a header with {', '.join(columns)}, and a row an image")
    names = [name.strip() for name in rows[0][1]]
    for line, row in rows:
        if len(row) != len(names):
            has = f"line {line}, {separator.join(row)!r}, has {len(row)} of {len(names)} values"
            way = f"Was the file cut short? Write {separator!r} for each empty value, and quote values that hold one"
            raise DataError(f"{path} cannot be read as a table: {has}. {way}")
    twice = first_duplicate(name for name in names if name)
    if twice is not None:
        raise DataError(f"{path} has two columns called {twice}; keep one of them")
    frame = pd.DataFrame([row for _, row in rows[1:]], columns=names, dtype=object)
    frame, notes = _match_columns(path, frame, columns, optional)
    return frame.apply(lambda column: column.str.strip()), notes


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
            if len(names) != 1:
                raise DataError(f"{path} has {len(names)} files instead of one table; unpack it")
            content = archive.read(names[0])
    marked = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    kind = next((kind for start, kind in _NO_TABLES.items() if content.startswith(start)), None)
    if kind or (b"\0" in content and not marked):
        kind = kind or "UTF-16 without a mark, or no text"
        raise DataError(f"{path} cannot be read as a table: it is {kind}. Save or export the table as CSV in UTF-8")
    try:
        return content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n")
        text = content.splitlines()[line].decode("latin-1").strip()
        reads = f"line {line + 1} is not UTF-8. As Latin-1 (Windows-1252) it reads {text!r}; if that is right"
        raise DataError(f"{path} cannot be read as a table: {reads}, save it as UTF-8 (Excel: 'CSV UTF-8')") from error


def _match_columns(
    path: Path, frame: pd.DataFrame, columns: list[str], optional: Iterable[str]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Renames columns whose names resemble a wanted one, and checks that all that must be there are."""
    renamed: dict[str, str] = {}
    wanted = [*columns, *optional]
    for name in wanted:
        alike = [other for other in frame if other not in wanted and _squeezed(other) == _squeezed(name)]
        alike = [] if name in frame else alike
        if len(alike) > 1:
            raise DataError(f"{path}: the columns {' and '.join(alike)} could both be {name}; keep one as {name}")
        renamed |= dict.fromkeys(alike, name)
    frame = frame.rename(columns=renamed)
    absent = [name for name in columns if name not in frame]
    if absent:
        raise DataError(f"{path} has no column {', '.join(absent)}; its columns are {', '.join(frame)}")
    listed = ", ".join(f"{name_here} as {name}" for name_here, name in renamed.items())
    return frame, (f"{path.name}: Columns read under other names: {listed}.",) if renamed else ()


def _squeezed(name: str) -> str:
    return re.sub(r"[\s-]+", "", plain_form(name))


def read_ids(path: str | os.PathLike) -> frozenset[str]:
    """Reads a list of ids of images, such as those to leave out.

    Args:
        path: A text file with an id a line, where empty lines and those that begin with # are
            passed over; or a table with a column `id` or `image`.

    Raises:
        DataError: The file cannot be read, or lists nothing.
    """
    file = Path(path).expanduser()
    try:
        lines = [line.strip() for line in _read_text(file).splitlines()]
    except (OSError, UnicodeError, zipfile.BadZipFile) as error:
        raise DataError(f"The list of ids {file} cannot be read: {error}") from error
    listed = [line for line in lines if line and not line.startswith("#")]
    header = {plain_form(name.strip(' "')) for name in re.split(r"[,;\t]", listed[0])} if listed else set()
    column = next((name for name in ("id", "image") if name in header), None)
    if column:
        return frozenset(read_rows(file, (column,))[0][column]) - {""}
    if not listed:
        raise DataError(f"{file} lists no id; write one a line, or a table with a column id")
    return frozenset(listed)


def label_numbers(path: Path, texts: pd.DataFrame) -> pd.DataFrame:
    """Returns the columns of labels, one for each class, as float32, NaN where blank.

    Raises:
        DataError: A text is none of 1, 0, -1 and blank.
    """
    blank = texts.isin([text for text in pd.unique(texts.to_numpy().ravel()) if is_missing(text)])
    values = texts.mask(blank).apply(pd.to_numeric, errors="coerce")
    wrong = np.argwhere(~(blank | values.isin((1, 0, -1))).to_numpy())
    if len(wrong):
        row, column = wrong[0]
        given = f"{texts.columns[column]} is {texts.iloc[row, column]!r}"
        allowed = "1 (present), 0 (absent), -1 (uncertain) or blank"
        raise DataError(f"{path}, row {row + 1}: {given}; a label is {allowed}")
    return values.astype(np.float32)


class Source:
    """The folder of a dataset as its loader reads it; gathers what is to be said about it.

    Args:
        name: The dataset.
        root: Its folder.
        expected: What the folder must hold, if the catalogue does not say.

    Attributes:
        folder: Its folder.
        notes: Sentences on what was read leniently or left out; loaders add theirs.
        rows: See `Listing`.

    Raises:
        DataError: No folder is given, or it is not there.
    """

    def __init__(self, name: str, root: str | os.PathLike | None, expected: str = ""):
        known = entry(name)
        self.name, self.expected, self._official = name, expected or known.expected, known.rows
        self.notes: list[str] = []
        self.rows: dict[str, tuple[int, int]] = {}
        if root is None:
            raise DataError(f"{name} needs the folder that it was unpacked to. {self.expected}")
        self.folder = Path(root).expanduser()
        if not self.folder.is_dir():
            raise DataError(f"{name}: there is no folder {self.folder}. {self.expected}")

    def file(self, *candidates: str, within: Path | None = None) -> Path:
        """Returns the first of `candidates` that is a file in the folder, or in another.

        Raises:
            DataError: None of them is.
        """
        folder = within or self.folder
        found = next((folder / name for name in candidates if (folder / name).is_file()), None)
        if found is None:
            raise DataError(f"{self.name}: there is no {candidates[0]} in {folder}. {self.expected}")
        return found

    def table(self, path: Path, columns: Iterable[str], optional: Iterable[str] = ()) -> pd.DataFrame:
        """Reads a table as `read_rows` does, and counts its rows where the official number is known."""
        frame, notes = read_rows(path, columns, optional)
        self.notes += notes
        if path.name.partition(".")[0] in self._official:
            self.count(path.name.removesuffix(".zip"), len(frame))
        return frame

    def count(self, what: str, found: int) -> None:
        """Notes how many rows or images were found of an official file or folder."""
        self.rows[what] = (found, self._official[what.partition(".")[0]])

    def images(self, path: Path, values: pd.Series, pattern: str, example: str) -> list[str]:
        """Checks a column of names of images; `.jpg` and the like are taken off, which a note says.

        Args:
            path: The labels file, for messages.
            values: The column.
            pattern: Regular expression that matches every whole name of the official file.
            example: A name as it should be.

        Raises:
            DataError: A name does not match.
        """
        names = values.str.replace(r"\.(jpe?g|png)$", "", case=False, regex=True)
        wrong = ~names.str.fullmatch(pattern)
        if wrong.any():
            row, so = int(wrong.argmax()), f"{wrong.sum():,} of {len(values):,} rows are so"
            named = f"row {row + 1} names the image {values.iloc[row]!r}, and {so}; an official name is like {example}"
            raise DataError(f"{path}: {named}. Were the images renamed? Get the file again")
        if changed := int((names != values).sum()):
            self.notes.append(f"{path.name}: the suffix is taken off {changed:,} names of images.")
        return names.tolist()

    def listing(self, frame: pd.DataFrame, classes: Iterable[str]) -> Listing:
        """Returns the listing of a frame that may lack `group` and `split`; what is missing in them becomes None."""
        frame = frame.copy()
        for name in ("group", "split"):
            values = frame.get(name, [None] * len(frame))
            frame[name] = pd.Series([None if is_missing(v) else v for v in values], frame.index, dtype=object)
        return Listing(frame, tuple(classes), tuple(self.notes), self.expected, self.rows)


def index_images(folders: Iterable[Path]) -> dict[str, str]:
    """Maps the name without suffix of each JPEG and PNG file in the folders to its path.

    Folders that are not there are passed over; a folder within itself (`images/images`, as some
    archives unpack) is looked into; the first folder that has a name wins.
    """
    found: dict[str, str] = {}
    for folder in folders:
        for candidate in (folder, folder / folder.name):
            for name in sorted(os.listdir(candidate)) if candidate.is_dir() else ():
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in (".jpg", ".jpeg", ".png") and not stem.startswith("."):
                    found.setdefault(stem, f"{candidate}/{name}")
    return found
