"""CheXpert v1.0 and v1.0-small: chest radiographs with fourteen observations each."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

from medmerge.data.reading import dataset_folder, first_file, read_rows
from medmerge.data.table import DataError, Listing, listing_frame

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
ROWS = {"train.csv": 223_414, "valid.csv": 234, "test_labels.csv": 668}
"""Rows of the official labels files: 224,316 images, as published."""

FRONTAL = {"train": 191_027, "val": 202, "test": 518}
"""Frontal images of each part, 191,747 in all, the paper's number. Train's and test's are as counted by others."""

_FOLDERS = (".", "CheXpert-v1.0", "CheXpert-v1.0-small")
_PARTS = {"train": "train", "valid": "val", "test": "test"}
_PATH = re.compile(
    r"(?:(?P<prefix>.*)/)?(?P<folder>train|valid|test)/(?P<patient>patient\d+)/"
    r"(?P<image>study\d+/view\d+_(?P<side>frontal|lateral))(?P<suffix>\.\w+)"
)
_EXPECTED = (
    "The folder, or CheXpert-v1.0 or CheXpert-v1.0-small in it, must hold train.csv, valid.csv and the images "
    "train/patient*/study*/view*_frontal.jpg and valid/...; the official test split further takes test_labels.csv and "
    "the images test/.... Get them from "
    "https://stanfordaimi.azurewebsites.net/datasets/8cbd9ed4-2eb9-4565-affc-111cf4f7ebe2."
)


def chexpert(root: Path | None, labels: str | None = None) -> Listing:
    """CheXpert: 191,747 frontal radiographs with 13 findings each; the group is the patient.

    Source: Irvin et al., AAAI 2019, arXiv:1901.07031. The files have 14 observations. The paper
    that is reproduced says 13 pathologies, and is read as all but "No Finding", which says that
    there is none. A label is 1, 0, -1 (uncertain) or blank (not mentioned). Lateral views are left
    out, as the paper's number says.

    Part train and val are train.csv and valid.csv, part test is test_labels.csv; without it there
    is none. An image's id is such as "train/patient00001/study1/view1_frontal".

    Args:
        root: The folder of the labels files, or the one above it.
        labels: Not used.

    Raises:
        DataError: A labels file is missing or broken, lists an image of another part or one with
            a path of another form, or a label is no number.
    """
    root = dataset_folder("chexpert", root, _EXPECTED)
    found = [root / name for name in _FOLDERS if (root / name / "train.csv").is_file()]
    if len(found) > 1 and found[0] != root:
        raise DataError(f"chexpert: {root} holds {' and '.join(path.name for path in found)}; give one of them as root")
    folder = found[0] if found else root
    files = {part: first_file("chexpert", folder, (f"{part}.csv",), _EXPECTED) for part in ("train", "valid")}
    notes = []
    if (folder / "test_labels.csv").is_file():
        files["test"] = folder / "test_labels.csv"
    else:
        notes.append("There is no test_labels.csv, so no official test split.")
    frames, rows = [], {}
    for part, path in files.items():
        frame, file_notes = _read(path, part)
        frames.append(frame)
        rows[path.name] = (len(frame), ROWS[path.name])
        notes += file_notes
    frame = pd.concat(frames, ignore_index=True)
    twice = frame["id"].duplicated()
    if twice.any():  # a lateral image too: it stands where another row was
        raise DataError(f"chexpert: the image {frame['id'][twice].iloc[0]} is listed more than once")
    lateral = frame["side"] == "lateral"
    if lateral.any():
        notes.append(f"{lateral.sum():,} of {len(frame):,} images are lateral and left out.")
    frame = frame[~lateral]
    paths = [f"{folder}/{image}{suffix}" for image, suffix in zip(frame["id"], frame["suffix"], strict=True)]
    listed = listing_frame(
        frame["id"],
        [path if os.path.isfile(path) else None for path in paths],
        frame[list(CLASSES)],
        "CheXpert " + frame["patient"],
        frame["folder"].map(_PARTS),
    )
    return Listing(listed, CLASSES, tuple(notes), _EXPECTED, rows)


def _read(path: Path, part: str) -> tuple[pd.DataFrame, list[str]]:
    """Reads a labels file: `id`, `folder`, `patient`, `side`, `suffix` and the classes as numbers; and notes."""
    rows, notes = read_rows(path, ("Path", *CLASSES), ("Frontal/Lateral",))
    frame = rows["Path"].str.replace("\\", "/").str.extract(f"^{_PATH.pattern}$")
    wrong = frame["folder"] != part
    if wrong.any():
        raise DataError(
            f"{path}: Path {rows['Path'][wrong].iloc[0]!r} is none of this file's, which are like "
            f"{part}/patient00001/study1/view1_frontal.jpg"
        )
    frame["id"] = frame["folder"] + "/" + frame["patient"] + "/" + frame["image"]
    if "Frontal/Lateral" in rows:
        frame["side"] = rows["Frontal/Lateral"].str.lower()
        wrong = ~frame["side"].isin(("frontal", "lateral"))
        if wrong.any():
            given = rows["Frontal/Lateral"][wrong].iloc[0]
            raise DataError(f"{path}: {rows['Path'][wrong].iloc[0]} is {given!r}; a view is Frontal or Lateral")
    elif part != "test":
        notes = (*notes, f"{path.name} has no column Frontal/Lateral; views are as the images' names say.")
    for name in CLASSES:
        frame[name] = pd.to_numeric(rows[name], errors="coerce").astype(np.float32)
        wrong = frame[name].isna() & (rows[name] != "")
        if wrong.any():
            raise DataError(
                f"{path}: {rows['Path'][wrong].iloc[0]} has {name} = {rows[name][wrong].iloc[0]!r}; a label is 1 "
                "(present), 0 (absent), -1 (uncertain) or blank"
            )
    others = sorted(set(frame["prefix"].dropna()) - set(_FOLDERS))
    if others:
        notes = (*notes, f"{path.name}: paths begin with {' or '.join(others[:3])}, which is passed over.")
    return frame, list(notes)
