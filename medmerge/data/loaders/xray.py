"""RSNA Pneumonia, Kermany's paediatric set and a list of NIH ChestX-ray14: chest radiographs, ill or not."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medmerge.data.reading import dataset_folder, first_file, index_images, read_rows
from medmerge.data.table import SPLITS, DataError, Listing, listing_frame

RSNA_CLASSES = ("Normal", "Lung Opacity")
RSNA_LEFT_OUT = "No Lung Opacity / Not Normal"
KERMANY_CLASSES = ("NORMAL", "PNEUMONIA")
NIH_CLASSES = ("No Finding", "Pneumonia")

ROWS = {"stage_2_train_labels.csv": 30_227, "stage_2_detailed_class_info.csv": 30_227}
"""Rows of RSNA's official labels files, a row a box, or a row a patient without any."""

COUNTS = {
    "train/NORMAL": 1_341,
    "train/PNEUMONIA": 3_875,
    "val/NORMAL": 8,
    "val/PNEUMONIA": 8,
    "test/NORMAL": 234,
    "test/PNEUMONIA": 390,
}
"""Images in each of Kermany's folders. In the authors' own archive val's are part of train."""

_RSNA_EXPECTED = (
    "The folder must hold stage_2_train_labels.csv, stage_2_detailed_class_info.csv and the images "
    "stage_2_train_images/<patientId>.dcm. Get them from "
    "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/data."
)
_KERMANY_EXPECTED = (
    "The folder, or chest_xray in it, must hold train and test, and may hold val, each with the folders NORMAL and "
    "PNEUMONIA of JPEG images. Get it from https://data.mendeley.com/datasets/rscbjbr9sj or "
    "https://www.kaggle.com/datasets/paultimothymooney/chest-xray-pneumonia."
)
_KERMANY_GROUPS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(person\d+_(?:bacteria|virus))_\d+(?:_\d+)?",
        r"((?:NORMAL2-)?IM-\d+)-\d+(?:-\d+)?",
        r"(?:NORMAL|BACTERIA|VIRUS)-(\d+)-\d+",
    )
)
_NIH_EXPECTED = (
    "The folder must hold labels.csv with the columns image, patient and finding, and the images in images, or as in "
    "the archive in images_001/images to images_012/images. Get them from "
    "https://nihcc.app.box.com/v/ChestXray-NIHCC."
)


def rsna(root: Path | None, labels: str | None = None) -> Listing:
    """RSNA Pneumonia, stage 2: 14,863 radiographs, 8,851 Normal and 6,012 Lung Opacity.

    Source: Shih et al., Radiology: AI 1(1), 2019. The labels have a row for each box, and 26,684
    patients with one image each. The third class, "No Lung Opacity / Not Normal", is left out, as
    the paper's number says. The group is the patient's id. The images were drawn from NIH
    ChestX-ray14, where one patient has several: ids that differ here may be one person there. No
    official split.

    A patient that the detailed class info lacks is a Lung Opacity if the labels have a box for it,
    since all those with a box are, and no others.

    Args:
        root: Folder of the competition's files, as unpacked.
        labels: Not used.

    Raises:
        DataError: A labels file is missing or broken, lists a box twice, has a Target that is not
            0 or 1 or that disagrees with the class, a patient's class is unknown, or the files' patients differ.
    """
    folder = dataset_folder("rsna", root, _RSNA_EXPECTED)
    paths = [first_file("rsna", folder, (name,), _RSNA_EXPECTED) for name in ROWS]
    boxes, notes = read_rows(paths[0], ("patientId", "x", "y", "width", "height", "Target"))
    info, info_notes = read_rows(paths[1], ("patientId", "class"))
    twice = boxes.duplicated()
    if twice.any():
        raise DataError(
            f"{paths[0]}: {twice.sum():,} rows are there twice, the first of patient "
            f"{boxes['patientId'][twice].iloc[0]}; get the file again"
        )
    patients = pd.DataFrame(
        {
            "Target": _by_patient(paths[0], boxes, "Target", ("0", "1")),
            "class": _by_patient(paths[1], info, "class", (*RSNA_CLASSES, RSNA_LEFT_OUT)),
        }
    )
    short = [ROWS[path.name] - len(rows) for path, rows in zip(paths, (boxes, info), strict=True)]
    patients, class_notes = _rsna_classes(paths[1], patients, short)
    kept = patients[patients["class"] != RSNA_LEFT_OUT]
    left_out = f"{len(patients) - len(kept):,} of {len(patients):,} patients are {RSNA_LEFT_OUT!r} and left out."
    images = folder / "stage_2_train_images"
    names = set(os.listdir(images)) if images.is_dir() else set()
    found = [str(images / f"{patient}.dcm") if f"{patient}.dcm" in names else None for patient in kept.index]
    rows = {paths[0].name: (len(boxes), ROWS[paths[0].name])}
    if short[1] < 0:
        rows[paths[1].name] = (len(info), ROWS[paths[1].name])
    frame = listing_frame(kept.index, found, kept["class"], kept.index)
    return Listing(frame, RSNA_CLASSES, (*notes, *info_notes, *class_notes, left_out), _RSNA_EXPECTED, rows)


def _by_patient(path: Path, rows: pd.DataFrame, column: str, allowed: Sequence[str]) -> pd.Series:
    """Returns the one value that a column has for each patient."""
    wrong = ~rows[column].isin(allowed)
    if wrong.any():
        row = rows[wrong].iloc[0]
        listed = ", ".join(allowed)
        raise DataError(f"{path}: patient {row['patientId']} has the {column} {row[column]!r}; it is one of {listed}")
    pairs = rows[["patientId", column]].drop_duplicates()
    both = pairs[pairs["patientId"].duplicated(keep=False)]
    if len(both):
        values = " and ".join(repr(value) for value in both[column][both["patientId"] == both["patientId"].iloc[0]])
        raise DataError(f"{path}: patient {both['patientId'].iloc[0]} has the {column} {values}; get the file again")
    return pairs.set_index("patientId")[column]


def _rsna_classes(path: Path, patients: pd.DataFrame, short: list[int]) -> tuple[pd.DataFrame, list[str]]:
    """Returns Target and class of each patient that has a Target, and a note if the file of classes is short.

    A file lacks no more patients than it is short of rows, in the order Target, class.
    """
    for column, room in zip(("Target", "class"), short, strict=True):
        absent = patients.index[patients[column].isna()]
        if len(absent) > max(0, room):
            raise DataError(
                f"{path} and stage_2_train_labels.csv are not about the same patients: {len(absent):,} are in one "
                f"alone, first {absent[0]}. Were they renamed? Get both files again"
            )
    patients, notes = patients[patients["Target"].notna()], []
    unknown = patients.index[patients["class"].isna()]
    boxed = patients["Target"] == "1"
    wrong = patients.index[boxed != (patients["class"].fillna("Lung Opacity") == "Lung Opacity")]
    if len(wrong):
        target, given = patients.fillna("unknown").loc[wrong[0]]
        raise DataError(
            f"{path}: patient {wrong[0]} has the class {given!r} and the Target {target} in stage_2_train_labels.csv; "
            "a Lung Opacity has Target 1, the other classes 0. Get both files again"
        )
    if short[1] > 0:
        follows = "each patient has another one"
        if len(unknown):
            follows = f"the class of {len(unknown):,} (first {unknown[0]}) follows from Target 1, Lung Opacity"
        rows = f"{ROWS[path.name] - short[1]:,} of the official {ROWS[path.name]:,} rows"
        notes.append(f"{path.name} has {rows}, which makes no difference: {follows}.")
    return patients.fillna({"class": "Lung Opacity"}), notes


def kermany(root: Path | None, labels: str | None = None) -> Listing:
    """Kermany's chest X-rays of children: 5,856 images, NORMAL or PNEUMONIA, with the official split.

    Source: Kermany et al., Cell 172, 1122 (2018). Read from the folders: Kaggle's copy with val,
    or without it; the authors' archive, whose val is in train.

    The group comes from the file's name, together with what the name begins with, as the numbers
    alone are used again. Measured on 5,840 images: 170 of the 202 numbers after "person" in test
    also occur in train, but none with the same cause: person100_virus is in train, and
    person100_bacteria in test. Taken with the cause, no group of 203 in test is among the 2,443 in
    train. In NORMAL likewise: IM-0115 and NORMAL2-IM-0115 are two, of 225 groups in test none is
    among the 1,211 in train, though 94 of 202 numbers are. That is what a split by patient looks
    like with numbers given within each series, so a number is a patient only within its series.
    The names of the authors' archive carry the patient's number by itself.

    Args:
        root: The folder chest_xray, or the one above it.
        labels: Not used.

    Raises:
        DataError: A folder is missing, has another class, or a name is of another form.
    """
    folder = _kermany_folder(dataset_folder("kermany", root, _KERMANY_EXPECTED))
    for split in SPLITS:
        _check_classes(folder / split)
    found = {place: _kermany_images(folder / place) for place in COUNTS}
    rows = {place: (len(images), COUNTS[place]) for place, images in found.items()}
    notes = []
    if not found["val/NORMAL"] and not found["val/PNEUMONIA"]:
        notes.append("The 16 official validation images are in no folder val.")
        for name in KERMANY_CLASSES:
            images, official = rows[f"train/{name}"]
            # The authors' archive has them in train.
            rows[f"train/{name}"] = (images, official + COUNTS[f"val/{name}"] * (images > official))
            del rows[f"val/{name}"]
    paths = [path for images in found.values() for path in images]
    places = [place.split("/") for place, images in found.items() for _ in images]
    ids = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    groups = [_kermany_group(path, id) for path, id in zip(paths, ids, strict=True)]
    return Listing(
        frame=listing_frame(ids, paths, [name for _, name in places], groups, [split for split, _ in places]),
        classes=KERMANY_CLASSES,
        notes=tuple(notes),
        expected=_KERMANY_EXPECTED,
        rows=rows,
    )


def _kermany_folder(root: Path) -> Path:
    for folder in (root, root / "chest_xray", root / "chest_xray" / "chest_xray"):
        if (folder / "train").is_dir():
            return folder
    raise DataError(f"kermany: there is no folder train in {root}. {_KERMANY_EXPECTED}")


def _check_classes(folder: Path) -> None:
    """Raises for a folder beside those of the two classes, as in datasets that were made from this one."""
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        if (folder / name).is_dir() and name not in KERMANY_CLASSES and not name.startswith((".", "__")):
            raise DataError(f"kermany: {folder} has a folder {name}; the classes are {' and '.join(KERMANY_CLASSES)}")


def _kermany_images(folder: Path) -> list[str]:
    """Returns the images in a folder, without the companions that macOS adds."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [
        str(folder / name)
        for name in names
        if name.lower().endswith((".jpeg", ".jpg", ".png")) and not name.startswith(".")
    ]


def _kermany_group(path: str, stem: str) -> str:
    for pattern in _KERMANY_GROUPS:
        match = pattern.fullmatch(stem)
        if match:
            return match[1]
    raise DataError(
        f"kermany: {path} is no official name, such as person1_bacteria_2.jpeg or IM-0115-0001.jpeg, so its patient is "
        "unknown. Get the files again, or use the dataset csv for images of your own"
    )


def nih_pneumonia(root: Path | None, labels: str | None = None) -> Listing:
    """A list of NIH ChestX-ray14 images with No Finding or Pneumonia; the group is the patient.

    Source: Wang et al., CVPR 2017, whose labels were mined from reports. The list says which image
    has which finding; the list of this study has 500 of each, of which 474 carry Pneumonia in the
    archive's first label release. No official split. RSNA Pneumonia was drawn from the same
    archive.

    Args:
        root: Folder of labels.csv and the images.
        labels: Not used.

    Raises:
        DataError: The list is missing or broken, or a patient is not the one of the image's name.
    """
    folder = dataset_folder("nih_pneumonia", root, _NIH_EXPECTED)
    path = first_file("nih_pneumonia", folder, ("labels.csv",), _NIH_EXPECTED)
    rows, notes = read_rows(path, ("image", "patient", "finding"))
    patients = [
        _nih_patient(path, image, patient) for image, patient in zip(rows["image"], rows["patient"], strict=True)
    ]
    if "Pneumonia" in rows:
        ill = rows["finding"] == "Pneumonia"
        bare = int((ill & (rows["Pneumonia"] != "1")).sum())
        if bare:
            notes = (*notes, f"{bare:,} of {ill.sum():,} images of Pneumonia lack it in the archive's first labels.")
    ids = [os.path.splitext(image)[0] for image in rows["image"]]
    found = index_images(
        [folder / "images", *(folder / f"images_{part:03d}" / "images" for part in range(1, 13)), folder]
    )
    return Listing(
        frame=listing_frame(ids, [found.get(id) for id in ids], rows["finding"], [f"NIH {name}" for name in patients]),
        classes=NIH_CLASSES,
        notes=notes,
        expected=_NIH_EXPECTED,
    )


def _nih_patient(path: Path, image: str, patient: str) -> str:
    """Returns the patient with its eight digits, which a spreadsheet may have cut."""
    match = re.fullmatch(r"(\d{8})_\d{3}(?:\.\w+)?", image)
    if match is None:
        raise DataError(
            f"{path}: the image {image!r} has no official name, such as 00000061_012.png; get the list again"
        )
    if patient.zfill(8) != match[1]:
        raise DataError(f"{path}: the image {image} is listed for patient {patient!r}; by its name it is of {match[1]}")
    return match[1]
