"""CheXpert v1.0 and v1.0-small: chest radiographs with fourteen observations each."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

from medmerge.data.reading import dataset_folder, read_rows
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
ROWS = {"train.csv": 223_414, "valid.csv": 234, "test_labels.csv": 668, "groundtruth.csv": 500}
"""Rows of the official labels files: 224,316 images in the first three, as published; the last has a row a study."""

FRONTAL = {"train": 191_027, "val": 202, "test": 518}
"""Frontal images of each part, 191,747 in all, the paper's number. Train's and test's are as counted by others."""

_FOLDERS = ("", "CheXpert-v1.0", "CheXpert-v1.0-small", "CheXpert-v1.0 batch 1 (validate & csv)")
_BATCHES = tuple(f"CheXpert-v1.0 batch {number} (train {number - 1})" for number in (2, 3, 4))
_BY_STUDY = ("groundtruth.csv", "test_groundtruth_by_study.csv")
_PARTS = {"train": "train", "valid": "val", "test": "test"}
_VIEW = r"view\d+_(?P<side>frontal|lateral)"
_PATH = re.compile(
    rf"(?:(?P<prefix>.*)/)?(?P<folder>train|valid|test)/(?P<study>patient\d+/study\d+)/(?P<view>{_VIEW})(?P<suffix>\.\w+)"
)
_STUDY = re.compile(r"(?:(?P<prefix>.*)/)?(?P<folder>test)/(?P<study>patient\d+/study\d+)")
_OFFICIAL_PREFIXES = (None, "CheXpert-v1.0", "CheXpert-v1.0-small")
_EXPECTED = (
    "The folder, or CheXpert-v1.0 or CheXpert-v1.0-small in it, must hold train.csv, valid.csv and the images "
    "train/patient*/study*/view*_frontal.jpg and valid/...; the official test split further takes test_labels.csv, or "
    "groundtruth.csv with a row a study, and the images test/.... Get them from "
    "https://stanfordaimi.azurewebsites.net/datasets/8cbd9ed4-2eb9-4565-affc-111cf4f7ebe2; the test labels are at "
    "https://github.com/rajpurkarlab/cheXpert-test-set-labels."
)


def chexpert(root: Path | None, labels: str | None = None) -> Listing:
    """CheXpert: 191,747 frontal radiographs with 13 findings each; the group is the patient.

    Source: Irvin et al., AAAI 2019, arXiv:1901.07031. The files have 14 observations. The paper
    that is reproduced says 13 pathologies, and is read as all but "No Finding", which says that
    there is none. A label is 1, 0, -1 (uncertain) or blank (not
    mentioned). Lateral views are left out, as the paper's number says.

    Part train and val are train.csv and valid.csv. Part test is test_labels.csv, a row an image;
    or, from the labels by study, each frontal image that is found in test/ (a study without any is
    listed by itself, as a missing image). Without either there is no part test. An image's id is
    "train/patient00001/study1/view1_frontal": the same in each version of the dataset. Paths may
    begin with any folders before train/, valid/ and test/.

    Args:
        root: The folder of train.csv, or the one above it. The archive's four batches, unpacked
            side by side, will do too.
        labels: Not used.

    Raises:
        DataError: A labels file is missing or broken, lists an image of another part or one with
            a path of another form, or a label is no number.
    """
    root = dataset_folder("chexpert", root, _EXPECTED)
    folder = _labels_folder(root)
    test_file = _test_file(root, folder)
    frame, rows, notes = _read_all(folder, test_file)
    places = _places(root, folder, test_file)
    if test_file is None:
        notes.append("There is no test_labels.csv and no groundtruth.csv, so no official test split.")
    elif test_file.name in _BY_STUDY:
        frame, study_notes = _with_views(frame, places["test"])
        notes += study_notes
    twice = frame.duplicated(["folder", "image"])
    if twice.any():  # a lateral image too: it stands where another row was
        row = frame[twice].iloc[0]
        raise DataError(f"chexpert: the image {row['folder']}/{row['image']} is listed more than once")
    lateral = frame["side"] == "lateral"
    if lateral.any():
        notes.append(f"{lateral.sum():,} of {len(frame):,} images are lateral and left out.")
    frame = frame[~lateral]
    return Listing(
        frame=listing_frame(
            [f"{part}/{image}" for part, image in zip(frame["folder"], frame["image"], strict=True)],
            _paths(frame, places),
            frame[list(CLASSES)],
            [f"CheXpert {image.partition('/')[0]}" for image in frame["image"]],
            frame["folder"].map(_PARTS),
        ),
        classes=CLASSES,
        notes=tuple(notes),
        expected=_EXPECTED,
        rows=rows,
    )


def _labels_folder(root: Path) -> Path:
    """Returns the folder that has train.csv and valid.csv."""
    found = [root / name for name in _FOLDERS if (root / name / "train.csv").is_file()]
    if not found:
        raise DataError(f"chexpert: there is no train.csv in {root}. {_EXPECTED}")
    if len(found) > 1 and found[0] != root:
        raise DataError(f"chexpert: {root} holds {' and '.join(path.name for path in found)}; give one of them as root")
    if not (found[0] / "valid.csv").is_file():
        raise DataError(f"chexpert: there is no valid.csv in {found[0]}. {_EXPECTED}")
    return found[0]


def _test_file(root: Path, folder: Path) -> Path | None:
    """Returns the labels of part test: by image if there are any, else by study."""
    places = (folder, root, root / "CheXpert")
    candidates = (place / name for name in ("test_labels.csv", *_BY_STUDY) for place in places)
    return next((path for path in candidates if path.is_file()), None)


def _places(root: Path, folder: Path, test_file: Path | None) -> dict[str, list[Path]]:
    """Returns where the patients' folders of each part may be."""
    places = {part: [folder / part] for part in _PARTS}
    places["train"] += [near / batch for near in (root, folder.parent) for batch in _BATCHES]
    if test_file is not None:
        places["test"] += [test_file.parent / "test", root / "test"]
    return places


def _read_all(folder: Path, test_file: Path | None) -> tuple[pd.DataFrame, dict[str, tuple[int, int]], list[str]]:
    """Returns `_read`'s frames of all labels files as one, found and official rows of each, and notes."""
    files = [(folder / "train.csv", "train", "train.csv"), (folder / "valid.csv", "valid", "valid.csv")]
    if test_file is not None:
        official = "groundtruth.csv" if test_file.name in _BY_STUDY else "test_labels.csv"
        files.append((test_file, "test", official))
    frames, rows, notes = [], {}, []
    for file, part, official in files:
        frame, found, file_notes = _read(file, part, file.name in _BY_STUDY)
        frames.append(frame)
        rows[file.name] = (found, ROWS[official])
        notes += file_notes
    return pd.concat(frames, ignore_index=True), rows, notes


def _read(path: Path, part: str, by_study: bool) -> tuple[pd.DataFrame, int, list[str]]:
    """Reads a labels file.

    Returns:
        A frame with the columns `folder`, `image` ("patient00001/study1/view1_frontal", or without
        the view if by study), `side`, `suffix`, and the classes as numbers; the number of rows of
        the file; and notes.
    """
    column, pattern = ("Study", _STUDY) if by_study else ("Path", _PATH)
    rows, notes = read_rows(path, (column, *CLASSES), ("Frontal/Lateral",))
    matches = [pattern.fullmatch(value.replace("\\", "/").rstrip("/")) for value in rows[column]]
    for value, match in zip(rows[column], matches, strict=True):
        if match is None or match["folder"] != part:
            example = f"{part}/patient00001/study1" + ("" if by_study else "/view1_frontal.jpg")
            raise DataError(f"{path}: {column} {value!r} is none of this file's, which are like {example}")
    found = pd.DataFrame([match.groupdict() for match in matches], dtype=object)
    if by_study:
        frame = found.assign(image=found["study"], side="frontal", suffix=None)
    else:
        frame = found.assign(image=found["study"] + "/" + found["view"], side=_sides(path, rows, found["side"]))
    frame = frame[["folder", "image", "side", "suffix"]].assign(**_numbers(path, rows, column))
    notes = [*notes, *_prefix_notes(path, found["prefix"])]
    if part != "test" and "Frontal/Lateral" not in rows:
        notes.append(f"{path.name} has no column Frontal/Lateral; views are as the images' names say.")
    return frame, len(rows), notes


def _sides(path: Path, rows: pd.DataFrame, by_name: pd.Series) -> pd.Series:
    """Returns "frontal" or "lateral" for each row: as the file says, else as the image's name does."""
    if "Frontal/Lateral" not in rows:
        return by_name
    sides = rows["Frontal/Lateral"].str.lower()
    wrong = ~sides.isin(("frontal", "lateral"))
    if wrong.any():
        row = rows[wrong].iloc[0]
        raise DataError(f"{path}: {row['Path']} is {row['Frontal/Lateral']!r}; a view is Frontal or Lateral")
    return sides


def _numbers(path: Path, rows: pd.DataFrame, column: str) -> dict[str, np.ndarray]:
    """Returns each class's labels as numbers, NaN where there is none."""
    columns = {}
    for name in CLASSES:
        values = pd.to_numeric(rows[name], errors="coerce").to_numpy(dtype=np.float32)
        wrong = np.isnan(values) & (rows[name] != "").to_numpy()
        if wrong.any():
            row = rows[wrong].iloc[0]
            raise DataError(
                f"{path}: {row[column]} has {name} = {row[name]!r}; a label is 1 (present), 0 (absent), -1 (uncertain) "
                "or blank"
            )
        columns[name] = values
    return columns


def _prefix_notes(path: Path, prefixes: pd.Series) -> list[str]:
    others = sorted({prefix for prefix in prefixes if prefix not in _OFFICIAL_PREFIXES})
    if not others:
        return []
    return [f"{path.name}: paths begin with {' or '.join(others[:3])}, which is passed over."]


def _with_views(frame: pd.DataFrame, places: list[Path]) -> tuple[pd.DataFrame, list[str]]:
    """Replaces each study of part test by its frontal images; one without any stays, as an image that is missing."""
    by_image, by_study = frame[frame["folder"] != "test"], frame[frame["folder"] == "test"]
    twice = by_study.duplicated("image")
    if twice.any():
        raise DataError(f"chexpert: the study {by_study['image'][twice].iloc[0]} is listed more than once")
    found, empty = [], 0
    for study in by_study.itertuples(index=False):
        views = _views(places, study.image)
        empty += not views
        found += [study._replace(image=f"{study.image}/{view}", suffix=suffix) for view, suffix in views] or [study]
    notes = [f"The test labels are by study: {len(by_study):,} studies, {len(found) - empty:,} frontal images."]
    if empty:
        notes.append(f"Test studies without a frontal image here, each listed as one image: {empty:,}.")
    views = pd.DataFrame([tuple(row) for row in found], columns=frame.columns)
    return pd.concat([by_image, views], ignore_index=True), notes


def _views(places: list[Path], study: str) -> list[tuple[str, str]]:
    """Returns name and suffix of a study's frontal images."""
    folder = next((place / study for place in places if (place / study).is_dir()), None)
    names = sorted(os.listdir(folder)) if folder is not None else []
    return [os.path.splitext(name) for name in names if re.fullmatch(r"view\d+_frontal\.\w+", name)]


def _paths(frame: pd.DataFrame, places: dict[str, list[Path]]) -> list[str | None]:
    """Returns the file of each image, None where it is not there."""
    patients: dict[str, dict[str, Path]] = {}
    for part, folders in places.items():
        patients[part] = {}
        for folder in folders:
            for name in os.listdir(folder) if folder.is_dir() else ():
                patients[part].setdefault(name, folder)
    paths = []
    for part, image, suffix in zip(frame["folder"], frame["image"], frame["suffix"], strict=True):
        folder = patients[part].get(image.partition("/")[0])
        path = None if folder is None or suffix is None else f"{folder}/{image}{suffix}"
        paths.append(path if path is not None and os.path.isfile(path) else None)
    return paths
