"""A dataset as a table of images: what a loader lists, checked, cut to what is here, and encoded; and the catalogue."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

SPLITS = ("train", "val", "test")
POLICIES = {"ignore": np.nan, "zeros": 0.0, "ones": 1.0}
"""What a label that is uncertain, or blank, is taken for (Irvin et al. 2019, section 3: U-Ignore, U-Zeros, U-Ones)."""

_MISSING = {
    *("nan", "na", "n/a", "n.a.", "#n/a", "#na", "<na>", "nat", "none", "null", "nil", "missing", "unknown", "unk"),
    *("not available", "not known", "not applicable", "undefined", "empty"),
}


class DataError(ValueError):
    """Bad or missing data. The message names the value, what is allowed, and the next step."""


@dataclass(frozen=True)
class Entry:
    """What is known of a dataset beforehand: what it is, where it comes from, on which terms, how a folder of it looks.

    Attributes:
        name: As in `loaders.DATASETS`; one entry may stand for several, such as "medmnist:<name>".
        title: One line that says what it holds.
        licence: The terms of use of the images and labels, as their publisher states them.
        url: Where to get it; "" where there is nothing to get.
        tree: The folder as unpacked, "" where no folder is needed.
        paper: Its part in the paper's experiments: "source", "target", or "" if it has none.
        stated: Number of images in the paper (section 3), 0 for a dataset that it does not have.
        files: The number that the official files give when they are read as described.
        why: Sentences that explain the number, and the difference where there is one.
        expected: Sentences for those whose folder is another: what it must hold, and where to get it.
        rows: Rows of the official labels files, by their names without suffix, or images of official folders.
        origins: For datasets that this entry stands for, the archive that they were drawn from.
    """

    name: str
    title: str
    licence: str
    url: str = ""
    tree: str = ""
    paper: str = ""
    stated: int = 0
    files: int = 0
    why: str = ""
    expected: str = ""
    rows: dict[str, int] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


CATALOGUE = tuple(
    Entry(**values) for values in yaml.safe_load(Path(__file__).with_name("catalogue.yaml").read_text(encoding="utf-8"))
)
"""All datasets, the paper's six first; the texts are in `catalogue.yaml`, beside this module."""

PAPER_NUMBERS = {known.name: known for known in CATALOGUE if known.paper}
"""The paper's six datasets, whose numbers of images it states."""


def entry(name: str) -> Entry | None:
    """Returns what is known about a dataset, such as "ham10k" or "medmnist:retinamnist_64", or None."""
    return next((known for known in CATALOGUE if re.fullmatch(known.name.replace("<name>", ".+"), name)), None)


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
        expected: Sentences that say which files belong where and how to get them.
        rows: For each official labels file or folder, by its name: rows that it has, and officially.
    """

    frame: pd.DataFrame
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    expected: str = ""
    rows: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def label_columns(classes: Iterable[str]) -> list[str]:
    """Names of a multi-label frame's columns of labels."""
    return [f"label:{name}" for name in classes]


def is_missing(value: str | None) -> bool:
    """Whether a cell says that there is no value: empty, signs alone such as "-" and "?", NA, NaN, None, unknown."""
    if not isinstance(value, str):
        return True
    plain = " ".join(re.split(r"[\s_]+", value.casefold())).strip()
    return plain in _MISSING or re.fullmatch(r"[^\w+]*", plain) is not None


def plain_form(value: str) -> str:
    """What is left of a value without what only its form tells: 7, 7.0 and 007; case; blanks and underscores; Unicode.

    Args:
        value: A label, a group, an id, or the name of a folder or column.
    """
    text = unicodedata.normalize("NFKC", value).casefold()
    text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    text = " ".join(re.split(r"[\s_]+", text)).strip()
    if len(text) < 20 and re.fullmatch(r"[+-]?\d+([.,]\d*)?(e[+-]?\d)?", text):
        return str(Decimal(text.replace(",", ".")).normalize() + 0)
    return re.sub(r"\d+", lambda digits: digits[0].lstrip("0") or "0", text)


def check_forms(name: str, what: str, values: Iterable[str], form: Callable[[str], Hashable] = plain_form) -> None:
    """Checks that no two values differ only in their form.

    Raises:
        DataError: Two do; both are named.
    """
    first: dict[Hashable, str] = {}
    for value in dict.fromkeys(values):
        other = first.setdefault(form(value), value)
        if other != value:
            raise DataError(
                f"{name}: the {what} {other!r} and {value!r} differ only in form (number, case, blanks or Unicode). "
                "Write them alike if they are the same, or rename one"
            )


def digest(rows: Iterable[Iterable]) -> str:
    """SHA-256 in hex over lists of texts and numbers, each as a line of JSON in ASCII with a line feed."""
    hasher = hashlib.sha256()
    for row in rows:
        hasher.update(json.dumps(list(row)).encode() + b"\n")
    return hasher.hexdigest()


def first_duplicate(values: Iterable[str]) -> str | None:
    """Returns the first value that occurs a second time, or None."""
    series = pd.Series(list(values), dtype=object)
    return next(iter(series[series.duplicated()]), None)


def settle(
    name: str,
    listing: Listing,
    where: str | os.PathLike | None,
    missing: str,
    exclude: set[str],
    policies: Mapping[str, str],
) -> Table:
    """Checks what a dataset's files say, leaves out what is missing or unwanted, and encodes the labels.

    Arguments, result and errors are those of `loaders.load_table`; `where` is the folder, for messages.
    """
    notes = [*listing.notes, *_check_counts(name, listing, missing)]
    twice = first_duplicate(listing.frame["id"])
    if twice is not None:
        raise DataError(f"{name}: the image {twice} is listed more than once")
    multilabel = "label" not in listing.frame
    if not multilabel:
        _check_labels(name, listing)
    frame, left_out = _leave_out(name, listing, where, missing, exclude)
    notes += left_out
    if multilabel:
        frame, classes = _findings(name, listing, frame, policies, notes)
    else:
        classes = _classes(name, listing, frame, notes)
    alone = int(frame["group"].isna().sum())
    if alone:
        notes.append(f"{alone:,} of {len(frame):,} images carry no group; each is a group of its own.")
    return Table(name, _encode(frame, classes, multilabel), classes, tuple(notes))


def _check_counts(name: str, listing: Listing, missing: str) -> list[str]:
    """Compares labels files with the official ones; returns a note on each that is shorter."""
    for file, (found, official) in listing.rows.items():
        added = "rows were added. Get it again, or use the dataset csv for a list of your own"
        cut = f"{official - found:,} are missing. Get it again, or set missing: drop to work with a part"
        if found > official or (found < official and missing == "error"):
            counted = f"{name}: {file} has {found:,} rows, the official file {official:,}"
            raise DataError(f"{counted}: {added if found > official else cut}")
    short = {file: rows for file, rows in listing.rows.items() if rows[0] < rows[1]}
    return [f"{file} has {found:,} of the official {official:,} rows." for file, (found, official) in short.items()]


def _check_labels(name: str, listing: Listing) -> None:
    wrong = ~listing.frame["label"].isin(listing.classes)
    if not wrong.any():
        return
    image, label = listing.frame[["id", "label"]][wrong].iloc[0]
    what = f"the label {label!r}, which is none of {', '.join(listing.classes)}"
    if is_missing(label):
        so = f"{wrong.sum():,} rows are so; label them or remove them. A class that is meant so takes another name"
        what = f"no label ({label!r}), and {so}"
    raise DataError(f"{name}: row {wrong.to_numpy().argmax() + 1}, image {image}, has {what}")


def _leave_out(
    name: str, listing: Listing, where: str | os.PathLike | None, missing: str, exclude: set[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Returns the rows that remain, and notes on those that do not."""
    frame, notes = listing.frame, []
    if frame["path"].isna().all() and missing != "keep":
        raise DataError(f"{name}: no image of {len(frame):,} is in {where}. {listing.expected}")
    if exclude:
        excluded = frame["id"].isin(exclude)
        notes.append(f"{excluded.sum():,} of {len(frame):,} images are left out by exclude.")
        frame = frame[~excluded]
    absent = frame["path"].isna()
    if absent.any() and missing == "error":
        lost = f"{absent.sum():,} of {len(frame):,} images are missing in {where}, first {min(frame['id'][absent])}"
        raise DataError(f"{name}: {lost}. {listing.expected} To work with a partial download, set missing: drop.")
    if absent.any() and missing == "drop":
        notes.append(f"{(~absent).sum():,} of {len(frame):,} images are here.")
        frame = frame[~absent]
    if frame.empty:
        raise DataError(f"{name}: of {len(listing.frame):,} images in {where} none is left. {' '.join(notes)}")
    return frame, notes


def _classes(name: str, listing: Listing, frame: pd.DataFrame, notes: list[str]) -> tuple[str, ...]:
    """Returns the classes without those that lost all their images, which a note says."""
    present, listed = set(frame["label"]), set(listing.frame["label"])
    if len(present) < 2:
        said = f"all {len(frame):,} images are of one class, {present.pop()}; learning to tell classes apart takes two"
        raise DataError(f"{name}: {said}. {' '.join(listing.notes)}".rstrip())
    if emptied := [label for label in listing.classes if label in listed - present]:
        notes.append(f"Classes with no image left, taken out: {', '.join(emptied)}.")
    return tuple(label for label in listing.classes if label not in emptied)


def _findings(
    name: str, listing: Listing, frame: pd.DataFrame, policies: Mapping[str, str], notes: list[str]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Returns the frame with uncertain and blank labels as the policies say, and the classes that tell images apart."""
    columns = label_columns(listing.classes)
    values = frame[columns].to_numpy(dtype=np.float32, copy=True)
    for what, members in (("uncertain", values == -1), ("blank", np.isnan(values))):
        if members.any():
            notes.append(f"{members.sum():,} {what} labels are taken as {policies[what]}.")
        values[members] = POLICIES[policies[what]]
    told = (values == 1).any(axis=0) & (values == 0).any(axis=0)
    if not told.any():
        raise DataError(f"{name}: among {len(frame):,} images no class is both present and absent; nothing to learn")
    classes = np.array(listing.classes, dtype=object)
    if not told.all():
        notes.append(f"Classes that all images have or none has, taken out: {', '.join(classes[~told])}.")
    return frame.assign(**dict(zip(columns, values.T, strict=True))), tuple(classes[told])


def _encode(frame: pd.DataFrame, classes: tuple[str, ...], multilabel: bool) -> pd.DataFrame:
    """Sorts by id and gives the columns their final types."""
    frame = frame.sort_values("id", ignore_index=True)
    index = {label: position for position, label in enumerate(classes)}
    labels = frame[label_columns(classes)] if multilabel else frame["label"].map(index).astype(np.int64).to_frame()
    return pd.DataFrame(
        {
            "id": frame["id"].astype(str),
            "path": frame["path"].astype(object).where(frame["path"].notna(), None),
            **labels.to_dict("series"),
            "group": frame["group"].fillna(frame["id"]).astype(str),
            "split": frame["split"].astype(object),
        }
    )
