"""Chest radiographs: CheXpert with its findings; RSNA Pneumonia, Kermany's and a list of NIH's, ill or not."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path

import pandas as pd

from medmerge.data.reading import Source, index_images, label_numbers
from medmerge.data.table import SPLITS, DataError, Listing, first_duplicate, label_columns

RSNA_CLASSES = ("Normal", "Lung Opacity")
RSNA_LEFT_OUT = "No Lung Opacity / Not Normal"
KERMANY_CLASSES = ("NORMAL", "PNEUMONIA")
NIH_CLASSES = ("No Finding", "Pneumonia")

LABELS = "stage_2_train_labels.csv"
_KERMANY_NAME = re.compile(
    r"(person\d+_(?:bacteria|virus))_\d+(?:_\d+)?|((?:NORMAL2-)?IM-\d+)-\d+(?:-\d+)?"
    r"|(?:NORMAL|BACTERIA|VIRUS)-(\d+)-\d+"
)

CHEXPERT_CLASSES = (
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

_CHEXPERT_FOLDERS = (".", "CheXpert-v1.0", "CheXpert-v1.0-small")
_CHEXPERT_PARTS = {"train": "train", "valid": "val", "test": "test"}
_CHEXPERT_PATH = re.compile(
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
    homes = [source.folder / name for name in _CHEXPERT_FOLDERS]
    found = [home for home in homes if (home / "train.csv").is_file()]
    if len(found) > 1 and found[0] != homes[0]:
        raise DataError(
            f"chexpert: {source.folder} holds {' and '.join(path.name for path in found)}; give one as root"
        )
    folder = found[0] if found else source.folder
    parts = [_chexpert_part(source, source.file(f"{part}.csv", within=folder), part) for part in ("train", "valid")]
    if (folder / "test_labels.csv").is_file():
        parts.append(_chexpert_part(source, folder / "test_labels.csv", "test"))
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
    columns = {"group": "CheXpert " + frame["patient"], "split": frame["folder"].map(_CHEXPERT_PARTS)}
    columns["path"] = [path if os.path.isfile(path) else None for path in paths]
    return source.listing(frame[["id", *label_columns(CHEXPERT_CLASSES)]].assign(**columns), CHEXPERT_CLASSES)


def _chexpert_part(source: Source, path: Path, part: str) -> pd.DataFrame:
    """Reads a labels file: `id`, `folder`, `patient`, `side`, `suffix` and the labels as numbers."""
    rows = source.table(path, ("Path", *CHEXPERT_CLASSES))
    frame = rows["Path"].str.replace("\\", "/").str.extract(f"^{_CHEXPERT_PATH.pattern}$")
    wrong = frame["folder"] != part
    if wrong.any():
        like = f"{part}/patient00001/study1/view1_frontal.jpg"
        raise DataError(f"{path}: Path {rows['Path'][wrong].iloc[0]!r} is none of this file's, which are like {like}")
    frame["id"] = frame["folder"] + "/" + frame["patient"] + "/" + frame["image"]
    others = sorted(set(frame["prefix"].dropna()) - set(_CHEXPERT_FOLDERS))
    if others:
        source.notes.append(f"{path.name}: paths begin with {' or '.join(others[:3])}, which is passed over.")
    return pd.concat([frame, label_numbers(path, rows[list(CHEXPERT_CLASSES)]).add_prefix("label:")], axis=1)


def rsna(root: Path | None) -> Listing:
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

    Raises:
        DataError: A labels file is missing or broken, lists a box twice, has a Target that is not
            0 or 1 or that disagrees with the class, a patient's class is unknown, or the files' patients differ.
    """
    source = Source("rsna", root)
    paths = [source.file(f"stage_2_{name}.csv") for name in ("train_labels", "detailed_class_info")]
    boxes = source.table(paths[0], ("patientId", "x", "y", "width", "height", "Target"))
    info = source.table(paths[1], ("patientId", "class"))
    if (twice := boxes.duplicated()).any():
        first = f"the first of patient {boxes['patientId'][twice].iloc[0]}"
        raise DataError(f"{paths[0]}: {twice.sum():,} rows are there twice, {first}; get the file again")
    given = {
        "Target": _by_patient(paths[0], boxes, "Target", ("0", "1")),
        "class": _by_patient(paths[1], info, "class", (*RSNA_CLASSES, RSNA_LEFT_OUT)),
    }
    patients = _rsna_classes(source, paths[1], pd.DataFrame(given))
    kept = patients[patients["class"] != RSNA_LEFT_OUT]
    left_out = f"{len(patients) - len(kept):,} of {len(patients):,} patients are {RSNA_LEFT_OUT!r} and left out."
    source.notes.append(left_out)
    images = source.folder / "stage_2_train_images"
    names = set(os.listdir(images)) if images.is_dir() else set()
    found = [str(images / f"{patient}.dcm") if f"{patient}.dcm" in names else None for patient in kept.index]
    columns = {"id": kept.index, "path": found, "label": kept["class"].tolist(), "group": kept.index}
    return source.listing(pd.DataFrame(columns, dtype=object), RSNA_CLASSES)


def _by_patient(path: Path, rows: pd.DataFrame, column: str, allowed: Sequence[str]) -> pd.Series:
    """Returns the one value that a column has for each patient."""
    pairs = rows[["patientId", column]].drop_duplicates()
    wrong = pairs[~pairs[column].isin(allowed) | pairs["patientId"].duplicated(keep=False)]
    if len(wrong):
        patient = wrong["patientId"].iloc[0]
        values = " and ".join(repr(value) for value in pairs[column][pairs["patientId"] == patient])
        raise DataError(f"{path}: patient {patient} has the {column} {values}; it is one of {', '.join(allowed)}")
    return pairs.set_index("patientId")[column]


def _rsna_classes(source: Source, path: Path, patients: pd.DataFrame) -> pd.DataFrame:
    """Returns Target and class of each patient that has a Target.

    A file lacks no more patients than it is short of rows. That the file of classes is short is noted, and no more.
    """
    short = [official - found for found, official in source.rows.values()]
    for column, room in zip(("Target", "class"), short, strict=True):
        absent = patients.index[patients[column].isna()]
        if len(absent) > max(0, room):
            only = f"{len(absent):,} are in one alone, first {absent[0]}"
            raise DataError(f"{path} and {LABELS} are not about the same patients: {only}. Get both files again")
    patients = patients[patients["Target"].notna()]
    unknown = patients.index[patients["class"].isna()]
    opacity = patients["class"].fillna("Lung Opacity") == "Lung Opacity"
    wrong = patients.fillna("unknown")[(patients["Target"] == "1") != opacity]
    if len(wrong):
        target, label = wrong.iloc[0]
        said = f"patient {wrong.index[0]} has the class {label!r} and the Target {target} in {LABELS}"
        raise DataError(f"{path}: {said}; a Lung Opacity has Target 1, the others 0. Get both files again")
    if short[1] > 0:
        follows = "each patient has another one"
        if len(unknown):
            follows = f"the class of {len(unknown):,} (first {unknown[0]}) follows from Target 1, Lung Opacity"
        found, official = source.rows[path.name]
        rows = f"{found:,} of the official {official:,} rows"
        source.notes.append(f"{path.name} has {rows}, which makes no difference: {follows}.")
    if short[1] >= 0:
        del source.rows[path.name]
    return patients.fillna({"class": "Lung Opacity"})


def kermany(root: Path | None) -> Listing:
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

    Raises:
        DataError: A folder is missing, has another class, or a name is of another form.
    """
    source = Source("kermany", root)
    homes = (source.folder, source.folder / "chest_xray", source.folder / "chest_xray" / "chest_xray")
    folder = next((home for home in homes if (home / "train").is_dir()), None)
    if folder is None:
        raise DataError(f"kermany: there is no folder train in {source.folder}. {source.expected}")
    images = []
    for split in SPLITS:
        _check_classes(folder / split)
        for name in KERMANY_CLASSES:
            paths = sorted(index_images([folder / split / name]).values())
            source.count(f"{split}/{name}", len(paths))
            images += [(Path(path).stem, path, name, _kermany_group(path), split) for path in paths]
    if not any(source.rows[f"val/{name}"][0] for name in KERMANY_CLASSES):
        source.notes.append("The 16 official validation images are in no folder val.")
        for name in KERMANY_CLASSES:
            found, official = source.rows[f"train/{name}"]
            # The authors' archive has them in train.
            moved = source.rows.pop(f"val/{name}")[1]
            source.rows[f"train/{name}"] = (found, official + moved * (found > official))
    return source.listing(
        pd.DataFrame(images, columns=["id", "path", "label", "group", "split"], dtype=object), KERMANY_CLASSES
    )


def _check_classes(folder: Path) -> None:
    """Raises for a folder beside those of the two classes, as in datasets that were made from this one."""
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        if (folder / name).is_dir() and name not in KERMANY_CLASSES and not name.startswith((".", "__")):
            raise DataError(f"kermany: {folder} has a folder {name}; the classes are {' and '.join(KERMANY_CLASSES)}")


def _kermany_group(path: str) -> str:
    match = _KERMANY_NAME.fullmatch(Path(path).stem)
    if match is None:
        like = "person1_bacteria_2.jpeg or IM-0115-0001.jpeg, so its patient is unknown"
        raise DataError(f"kermany: {path} is no official name, such as {like}. Use the dataset folder for your own")
    return match[match.lastindex]


def nih_pneumonia(root: Path | None) -> Listing:
    """A list of NIH ChestX-ray14 images with No Finding or Pneumonia; the group is the patient.

    Source: Wang et al., CVPR 2017, whose labels were mined from reports. The list says which image
    has which finding; the list of this study has 500 of each, of which 474 carry Pneumonia in the
    archive's first label release. No official split. RSNA Pneumonia was drawn from the same
    archive.

    Args:
        root: Folder of labels.csv and the images.

    Raises:
        DataError: The list is missing or broken, or a patient is not the one of the image's name.
    """
    source = Source("nih_pneumonia", root)
    path = source.file("labels.csv")
    rows = source.table(path, ("image", "patient", "finding"))
    ill = rows["finding"] == "Pneumonia"
    bare = int((ill & (rows["Pneumonia"] != "1")).sum()) if "Pneumonia" in rows else 0
    if bare:
        source.notes.append(f"{bare:,} of {ill.sum():,} images of Pneumonia lack it in the archive's first labels.")
    ids = [os.path.splitext(image)[0] for image in rows["image"]]
    archives = (source.folder / f"images_{part:03d}" / "images" for part in range(1, 13))
    found = index_images([source.folder / "images", *archives, source.folder])
    patients = map(_nih_patient, repeat(path), rows["image"], rows["patient"])
    columns = {"id": ids, "path": map(found.get, ids), "label": rows["finding"], "group": patients}
    return source.listing(pd.DataFrame(columns, dtype=object), NIH_CLASSES)


def _nih_patient(path: Path, image: str, patient: str) -> str:
    """Returns the group: the patient with its eight digits, which a spreadsheet may have cut."""
    match = re.fullmatch(r"(\d{8})_\d{3}(?:\.\w+)?", image)
    if match is None:
        raise DataError(f"{path}: {image!r} is no official name, such as 00000061_012.png; get the list again")
    if patient.zfill(8) != match[1]:
        raise DataError(f"{path}: the image {image} is listed for patient {patient!r}; by its name it is of {match[1]}")
    return f"NIH {match[1]}"
