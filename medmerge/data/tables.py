"""Each dataset as one table: `load_table` is the only way in, whatever the files look like."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from medmerge.data import chexpert, fundus, labelled, medmnist_sets, skin, synthetic, xray
from medmerge.data.base import DataError, Listing, Table, first_duplicate, label_columns

__all__ = ["DATASETS", "DataError", "Table", "listed_ids", "load_table"]

Loader = Callable[[Path | None, str | None], Listing]

DATASETS: dict[str, Loader] = {
    "ham10k": skin.ham10k,
    "isic2019": skin.isic2019,
    "eyepacs": fundus.eyepacs,
    "aptos2019": fundus.aptos2019,
    "chexpert": chexpert.chexpert,
    "rsna": xray.rsna,
    "kermany": xray.kermany,
    "nih_pneumonia": xray.nih_pneumonia,
    "fundus4": fundus.fundus4,
    **{name: partial(medmnist_sets.listing, name) for name in medmnist_sets.SETS},
    "csv": labelled.labelled_csv,
    "folder": labelled.labelled_folder,
    **{name: partial(synthetic.listing, name) for name in synthetic.SETS},
}
"""The datasets that are known, each with the function that lists it from `root` and `labels`."""

MISSING = ("error", "drop", "keep")
POLICIES = {"ignore": np.nan, "zeros": 0.0, "ones": 1.0}
"""What a label that is uncertain, or blank, is taken for (Irvin et al. 2019, section 3: U-Ignore, U-Zeros, U-Ones)."""


def load_table(
    name: str,
    root: str | os.PathLike | None = None,
    *,
    labels: str | None = None,
    missing: str = "error",
    exclude: Collection[str] = (),
    uncertain: str = "ignore",
    blank: str = "zeros",
) -> Table:
    """Reads a dataset's labels, groups and official split, and finds its images.

    Args:
        name: A key of `DATASETS`.
        root: Folder of the dataset as unpacked; it is only read. Drawn images ("synthetic:...")
            need none.
        labels: Path of the labels file, for "csv" only.
        missing: What to do with images that are listed and not on the disk: "error"; "drop", to
            go on with a partial download; or "keep", to study the labels without the images.
            Labels files that are shorter than the official ones are an error in the first case,
            and noted in the others; longer ones are always an error.
        exclude: Ids to leave out, such as those of the images that a source model was trained
            on. Ids that the dataset does not have are passed over.
        uncertain: What a multi-label dataset's uncertain labels (-1) are taken for: "ignore"
            (not known: left out of losses and scores), "zeros" (absent), "ones" (present).
        blank: The same for empty labels, findings that a report does not mention.

    Returns:
        The table. A class left without images by `exclude` or by `missing="drop"` is taken out
        of `classes`, with a note.

    Raises:
        DataError: The name is unknown, files are missing or broken, a label is empty or none of
            the classes, an id comes twice, no image is left, or only one class is.
    """
    loader = _find_loader(name)
    _check_arguments(name, labels, missing, exclude, {"uncertain": uncertain, "blank": blank})
    listing = loader(root, labels)
    row_notes = _check_counts(name, listing, missing)
    multilabel = "label" not in listing.frame
    (_check_findings if multilabel else _check_rows)(name, listing)
    frame, notes = _leave_out(name, listing, missing, set(exclude), root)
    if multilabel:
        frame, label_notes = _settle(frame, label_columns(listing.classes), uncertain, blank)
        notes += label_notes
    classes, class_notes = (_kept_findings if multilabel else _kept_classes)(name, listing, frame)
    return Table(
        name=name,
        frame=_encode(frame, classes, multilabel),
        classes=classes,
        notes=(*listing.notes, *row_notes, *notes, *class_notes, *_group_notes(frame)),
    )


def listed_ids(name: str, root: str | os.PathLike | None = None) -> frozenset[str]:
    """Ids of all images that a dataset's own files list, whether they are on the disk or not.

    Args:
        name: A key of `DATASETS`, but not "csv".
        root: Folder of the dataset as unpacked.

    Raises:
        DataError: The name is unknown, or the dataset's own files are missing or broken.
    """
    return frozenset(_find_loader(name)(root, None).frame["id"])


def _find_loader(name: str) -> Loader:
    if name in DATASETS:
        return DATASETS[name]
    near = difflib.get_close_matches(str(name).lower(), DATASETS, n=1, cutoff=0.0)
    raise DataError(f"There is no dataset {name!r}; the nearest is {near[0]!r}, of {known_names()}")


def known_names() -> str:
    """Lists the names of all datasets, those of MedMNIST as one."""
    names = ["medmnist:<name>[_64|_128|_224]" if name in medmnist_sets.SETS else name for name in DATASETS]
    return ", ".join(dict.fromkeys(names))


def _check_arguments(
    name: str, labels: str | None, missing: str, exclude: Collection[str], policies: dict[str, str]
) -> None:
    if missing not in MISSING:
        raise DataError(f"missing is {missing!r}; it is one of {', '.join(MISSING)}")
    for parameter, policy in policies.items():
        if policy not in POLICIES:
            raise DataError(f"{parameter} is {policy!r}; it is one of {', '.join(POLICIES)}")
    if isinstance(exclude, str):
        raise DataError(f"exclude is the text {exclude!r}; give a list of ids")
    if labels is not None and name != "csv":
        raise DataError(f"{name} has its own labels; labels={labels!r} is for the dataset csv")


def _check_counts(name: str, listing: Listing, missing: str) -> list[str]:
    """Compares labels files with the official ones; returns a note on each that is shorter."""
    notes = []
    for file, (found, official) in listing.rows.items():
        if found > official:
            raise DataError(
                f"{name}: {file} has {found:,} rows, the official file {official:,}: rows were added, by augmentation "
                "or by joining files. Get the official file again, or use the dataset csv for a list of your own"
            )
        if found < official and missing == "error":
            raise DataError(
                f"{name}: {file} has {found:,} rows, the official file {official:,}: {official - found:,} are missing. "
                "Get it again, or set missing: drop to work with a part"
            )
        if found < official:
            notes.append(f"{file} has {found:,} of the official {official:,} rows.")
    return notes


def _check_rows(name: str, listing: Listing) -> None:
    """Raises for an id that comes twice, an empty label, or one that is no class."""
    _check_ids(name, listing)
    for row, (image, label) in enumerate(zip(listing.frame["id"], listing.frame["label"], strict=True), start=1):
        if label.lower() in ("", "nan"):
            raise DataError(f"{name}: row {row}, image {image}, has no label ({label!r}); label it or remove the row")
        if label not in listing.classes:
            raise DataError(
                f"{name}: row {row}, image {image}, has the label {label!r}, which is none of "
                f"{', '.join(listing.classes)}"
            )


def _check_findings(name: str, listing: Listing) -> None:
    """Raises for an id that comes twice, or a label of a multi-label dataset that is none of 1, 0, -1 and blank."""
    _check_ids(name, listing)
    for finding in listing.classes:
        values = listing.frame[f"label:{finding}"]
        wrong = ~(values.isna() | values.isin((1, 0, -1)))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise DataError(
                f"{name}: row {row + 1}, image {listing.frame['id'].iloc[row]}, has {finding} = {values.iloc[row]:g}; "
                "a label is 1 (present), 0 (absent), -1 (uncertain) or blank"
            )


def _check_ids(name: str, listing: Listing) -> None:
    twice = first_duplicate(listing.frame["id"])
    if twice is not None:
        raise DataError(f"{name}: the image {twice} is listed more than once")


def _leave_out(
    name: str, listing: Listing, missing: str, exclude: set[str], root: str | os.PathLike | None
) -> tuple[pd.DataFrame, list[str]]:
    """Returns the rows that remain, and notes on those that do not."""
    frame, notes = listing.frame, []
    absent = frame["path"].isna()
    if absent.all() and missing != "keep":
        raise DataError(f"{name}: no image of {len(frame):,} is in {root}. {listing.expected}")
    excluded = frame["id"].isin(exclude)
    if excluded.any():
        notes.append(f"{excluded.sum():,} of {len(frame):,} images are left out by exclude.")
        frame, absent = frame[~excluded], absent[~excluded]
    if absent.any() and missing == "error":
        raise DataError(
            f"{name}: {absent.sum():,} of {len(frame):,} images are missing in {root}, first "
            f"{min(frame['id'][absent])}. {listing.expected} To work with a partial download, set "
            "missing: drop."
        )
    if absent.any() and missing == "drop":
        notes.append(f"{(~absent).sum():,} of {len(frame):,} images are here.")
        frame = frame[~absent]
    if frame.empty:
        raise DataError(
            f"{name}: of {len(listing.frame):,} images, {excluded.sum():,} are left out by exclude "
            f"and {absent.sum():,} are missing in {root}: none is left"
        )
    return frame, notes


def _kept_classes(name: str, listing: Listing, frame: pd.DataFrame) -> tuple[tuple[str, ...], list[str]]:
    """Returns the classes without those that lost all their images, and a note on these."""
    present, listed = set(frame["label"]), set(listing.frame["label"])
    if len(present) < 2:
        raise DataError(
            f"{name}: all {len(frame):,} images are of one class, {present.pop()}; learning to "
            "tell classes apart takes two"
        )
    emptied = [label for label in listing.classes if label in listed - present]
    classes = tuple(label for label in listing.classes if label not in emptied)
    if not emptied:
        return classes, []
    return classes, [f"Classes with no image left, taken out: {', '.join(emptied)}."]


def _settle(frame: pd.DataFrame, columns: list[str], uncertain: str, blank: str) -> tuple[pd.DataFrame, list[str]]:
    """Returns the frame with uncertain and blank labels as the policies say, and notes on how many there were."""
    values = frame[columns].to_numpy(dtype=np.float32, copy=True)
    notes = []
    for what, members, policy in (("uncertain", values == -1, uncertain), ("blank", np.isnan(values), blank)):
        if members.any():
            notes.append(f"{members.sum():,} {what} labels are taken as {policy}.")
        values[members] = POLICIES[policy]
    return frame.assign(**dict(zip(columns, values.T, strict=True))), notes


def _kept_findings(name: str, listing: Listing, frame: pd.DataFrame) -> tuple[tuple[str, ...], list[str]]:
    """Returns the classes of a multi-label dataset that some image has and some has not, and a note on the others."""
    values = frame[label_columns(listing.classes)]
    told_apart = ((values == 1).any() & (values == 0).any()).to_numpy()
    classes = tuple(np.array(listing.classes, dtype=object)[told_apart])
    left_out = [label for label in listing.classes if label not in classes]
    if not classes:
        raise DataError(f"{name}: among {len(frame):,} images no class is both present and absent; nothing to learn")
    if not left_out:
        return classes, []
    return classes, [f"Classes that all images have or none has, taken out: {', '.join(left_out)}."]


def _group_notes(frame: pd.DataFrame) -> list[str]:
    alone = int(frame["group"].isna().sum())
    if not alone:
        return []
    return [f"{alone:,} of {len(frame):,} images carry no group; each is a group of its own."]


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
