"""Each dataset as one table: `load_table` is the only way in, whatever the files look like."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from medmerge.data import labelled, skin, synthetic
from medmerge.data.base import DataError, Listing, Table, first_duplicate

__all__ = ["DATASETS", "DataError", "Table", "listed_ids", "load_table"]

Loader = Callable[[Path | None, str | None], Listing]

DATASETS: dict[str, Loader] = {
    "ham10k": skin.ham10k,
    "isic2019": skin.isic2019,
    "csv": labelled.labelled_csv,
    **{name: partial(synthetic.listing, name) for name in synthetic.SETS},
}
"""The datasets that are known, each with the function that lists it from `root` and `labels`."""


def load_table(
    name: str,
    root: str | os.PathLike | None = None,
    *,
    labels: str | None = None,
    missing: str = "error",
    exclude: Collection[str] = (),
) -> Table:
    """Reads a dataset's labels, groups and official split, and finds its images.

    Args:
        name: A key of `DATASETS`.
        root: Folder of the dataset as unpacked; it is only read. Drawn images ("synthetic:...")
            need none.
        labels: Path of the labels file, for "csv" only.
        missing: What to do with images that are listed and not on the disk: "error", or "drop"
            to go on with a partial download.
        exclude: Ids to leave out, such as those of the images that a source model was trained
            on. Ids that the dataset does not have are passed over.

    Returns:
        The table. A class left without images by `exclude` or by `missing="drop"` is taken out
        of `classes`, with a note.

    Raises:
        DataError: The name is unknown, files are missing or broken, a label is empty or none of
            the classes, an id comes twice, no image is left, or only one class is.
    """
    loader = _find_loader(name)
    if missing not in ("error", "drop"):
        raise DataError(f"missing is {missing!r}; it is one of error, drop")
    if isinstance(exclude, str):
        raise DataError(f"exclude is the text {exclude!r}; give a list of ids")
    if labels is not None and name != "csv":
        raise DataError(f"{name} has its own labels; labels={labels!r} is for the dataset csv")
    listing = loader(root, labels)
    _check_rows(name, listing)
    frame, notes = _leave_out(name, listing, missing, set(exclude), root)
    classes, class_notes = _kept_classes(name, listing, frame)
    group_notes = _group_notes(frame)
    return Table(
        name=name,
        frame=_encode(frame, classes),
        classes=classes,
        notes=(*listing.notes, *notes, *class_notes, *group_notes),
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
    known = ", ".join(DATASETS)
    raise DataError(f"There is no dataset {name!r}; the nearest is {near[0]!r}, of {known}")


def _check_rows(name: str, listing: Listing) -> None:
    """Raises for an id that comes twice, an empty label, or one that is no class."""
    ids, labels = listing.frame["id"], listing.frame["label"]
    twice = first_duplicate(ids)
    if twice is not None:
        raise DataError(f"{name}: the image {twice} is listed more than once")
    for row, (image, label) in enumerate(zip(ids, labels, strict=True), start=1):
        if label.lower() in ("", "nan"):
            raise DataError(f"{name}: row {row}, image {image}, has no label ({label!r}); label it or remove the row")
        if label not in listing.classes:
            raise DataError(
                f"{name}: row {row}, image {image}, has the label {label!r}, which is none of "
                f"{', '.join(listing.classes)}"
            )


def _leave_out(
    name: str, listing: Listing, missing: str, exclude: set[str], root: str | os.PathLike | None
) -> tuple[pd.DataFrame, list[str]]:
    """Returns the rows that remain, and notes on those that do not."""
    frame, notes = listing.frame, []
    absent = frame["path"].isna()
    if absent.all():
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
    if absent.any():
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


def _group_notes(frame: pd.DataFrame) -> list[str]:
    alone = int(frame["group"].isna().sum())
    if not alone:
        return []
    return [f"{alone:,} of {len(frame):,} images carry no group; each is a group of its own."]


def _encode(frame: pd.DataFrame, classes: tuple[str, ...]) -> pd.DataFrame:
    """Sorts by id and gives the columns their final types."""
    frame = frame.sort_values("id", ignore_index=True)
    index = {label: position for position, label in enumerate(classes)}
    return pd.DataFrame(
        {
            "id": frame["id"].astype(str),
            "path": frame["path"].astype(str),
            "label": frame["label"].map(index).astype(np.int64),
            "group": frame["group"].fillna(frame["id"]).astype(str),
            "split": frame["split"].astype(object),
        }
    )
