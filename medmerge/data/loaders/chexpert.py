"""CheXpert v1.0 and v1.0-small: chest radiographs with fourteen observations each."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pandas as pd

from medmerge.data.reading import Source, label_numbers
from medmerge.data.table import DataError, Listing, first_duplicate, label_columns

CLASSES = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
FRONTAL = {"train": 191_027, "val": 202, "test": 518}
"""Frontal images of each part, 191,747 in all, the paper's number. Train's and test's are as counted by others."""

_FOLDERS = (".", "CheXpert-v1.0", "CheXpert-v1.0-small")
_PARTS = {"train": "train", "valid": "val", "test": "test"}
_PATH = re.compile(
    r"(?:(?P<prefix>.*)/)?(?P<folder>train|valid|test)/(?P<patient>patient\d+)/"
    r"(?P<image>study\d+/view\d+_(?P<side>frontal|lateral))(?P<suffix>\.\w+)"
)


def chexpert(root: Path | None) -> Listing:
    """CheXpert: 191,747 frontal radiographs with 13 findings each; the group is the patient.

    Source: Irvin et al., AAAI 2019, arXiv:1901.07031. The files have 14 observations. The paper
    that is reproduced says 13 pathologies, and is read as all but "No Finding", which says that
    there is none. A label is 1, 0, -1 (uncertain) or blank (not mentioned). Lateral views are left
    out, as the paper's number says.

    Part train and val are train.csv and valid.csv, part test is test_labels.csv; without it there
    is none. An image's id is such as "train/patient00001/study1/view1_frontal".

    Args:
        root: The folder of the labels files, or the one above it.

    Raises:
        DataError: A labels file is missing or broken, lists an image of another part or one with
            a path of another form, or a label is no number.
    """
    source = Source("chexpert", root)
    found = [source.folder / name for name in _FOLDERS if (source.folder / name / "train.csv").is_file()]
    if len(found) > 1 and found[0] != source.folder:
        raise DataError(
            f"chexpert: {source.folder} holds {' and '.join(path.name for path in found)}; give one as root"
        )
    folder = found[0] if found else source.folder
    parts = [_read(source, source.file(f"{part}.csv", within=folder), part) for part in ("train", "valid")]
    if (folder / "test_labels.csv").is_file():
        parts.append(_read(source, folder / "test_labels.csv", "test"))
    else:
        source.notes.append("There is no test_labels.csv, so no official test split.")
    frame = pd.concat(parts, ignore_index=True)
    twice = first_duplicate(frame["id"])
    if twice is not None:  # a lateral image too: it stands where another row was
        raise DataError(f"chexpert: the image {twice} is listed more than once")
    lateral = frame["side"] == "lateral"
    if lateral.any():
        source.notes.append(f"{lateral.sum():,} of {len(frame):,} images are lateral and left out.")
    frame = frame[~lateral].reset_index(drop=True)
    paths = f"{folder}/" + frame["id"] + frame["suffix"]
    columns = {"group": "CheXpert " + frame["patient"], "split": frame["folder"].map(_PARTS)}
    columns["path"] = [path if os.path.isfile(path) else None for path in paths]
    return source.listing(frame[["id", *label_columns(CLASSES)]].assign(**columns), CLASSES)


def _read(source: Source, path: Path, part: str) -> pd.DataFrame:
    """Reads a labels file: `id`, `folder`, `patient`, `side`, `suffix` and the labels as numbers."""
    rows = source.table(path, ("Path", *CLASSES))
    frame = rows["Path"].str.replace("\\", "/").str.extract(f"^{_PATH.pattern}$")
    wrong = frame["folder"] != part
    if wrong.any():
        like = f"{part}/patient00001/study1/view1_frontal.jpg"
        raise DataError(f"{path}: Path {rows['Path'][wrong].iloc[0]!r} is none of this file's, which are like {like}")
    frame["id"] = frame["folder"] + "/" + frame["patient"] + "/" + frame["image"]
    others = sorted(set(frame["prefix"].dropna()) - set(_FOLDERS))
    if others:
        source.notes.append(f"{path.name}: paths begin with {' or '.join(others[:3])}, which is passed over.")
    return pd.concat([frame, label_numbers(path, rows[list(CLASSES)]).add_prefix("label:")], axis=1)
