"""EyePACS, APTOS 2019 and a set of four eye conditions: photographs of the back of the eye."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medmerge.data.reading import dataset_folder, first_file, image_names, index_images, read_rows
from medmerge.data.table import DataError, Listing, listing_frame

GRADES = ("0", "1", "2", "3", "4")
"""Of diabetic retinopathy: none, mild, moderate, severe, proliferative."""

FUNDUS4_CLASSES = ("cataract", "diabetic_retinopathy", "glaucoma", "normal")

ROWS = {
    "trainLabels.csv": 35_126,
    "retinopathy_solution.csv": 53_576,
    "train.csv": 3_662,
    "the folder cataract": 1_038,
    "the folder diabetic_retinopathy": 1_098,
    "the folder glaucoma": 1_007,
    "the folder normal": 1_074,
}
"""Rows of each official labels file; images of each folder of fundus4."""

_EYE = (r"\d+_(left|right)", "10_left")
_EYEPACS_PARTS = {"train": "trainLabels.csv", "test": "retinopathy_solution.csv"}
_EYEPACS_EXPECTED = (
    "The folder must hold trainLabels.csv, retinopathy_solution.csv and the images *_left.jpeg and *_right.jpeg in "
    "train and test, or beside them (Kaggle serves them as train.zip.001 and so on, which 7-Zip unpacks together). "
    "Get them from https://www.kaggle.com/c/diabetic-retinopathy-detection/data; retinopathy_solution.csv, the labels "
    "of test, was published in that competition's forum after its end."
)
_APTOS_NAMES = (r"[0-9a-f]{12}", "000c1434d8d7")
_APTOS_EXPECTED = (
    "The folder must hold train.csv (id_code, diagnosis) and the images *.png in train_images. Get them from "
    "https://www.kaggle.com/c/aptos2019-blindness-detection/data. The images of test.csv have no public labels."
)
_FUNDUS4_EXPECTED = (
    f"The folder must hold the folders {', '.join(FUNDUS4_CLASSES)} with images. Get them from "
    "https://www.kaggle.com/datasets/gunavenkatdoddi/eye-diseases-classification."
)
GLAUCOMA_ORIGINALS = 407
"""Images in the folder glaucoma of fundus4 that are no copies; the copies count among these."""

_COPY = re.compile(r"_(\d+)_\d+")


def eyepacs(root: Path | None, labels: str | None = None) -> Listing:
    """EyePACS (Kaggle 2015): 88,702 images in 5 grades of retinopathy; the group is the patient.

    The official split is train (35,126 images, 17,563 patients) and test (53,576 and 26,788), two
    eyes a patient. The public and private parts of test are read alike.

    Args:
        root: Folder of the competition as unpacked, or of Kaggle's inputs with it in
            `diabetic-retinopathy-detection` and the images in `diabetic-retinopathy-train-unzipped`
            and `-test-unzipped`.
        labels: Not used.

    Raises:
        DataError: Both labels files are missing, one is broken, or no image is there. That one is
            missing is left to `load_table`, which counts its rows.
    """
    folder = dataset_folder("eyepacs", root, _EYEPACS_EXPECTED)
    homes = (folder, folder / "diabetic-retinopathy-detection")
    ids, paths, grades, splits, notes, rows = [], [], [], [], (), {}
    for split, name in _EYEPACS_PARTS.items():
        path = next((home / f for home in homes for f in (name, f"{name}.zip") if (home / f).is_file()), None)
        rows[name] = (0, ROWS[name])
        if path is None:
            continue
        table, table_notes = read_rows(path, ("image", "level"))
        images, name_notes = image_names(path, table["image"], *_EYE)
        places = [place for home in homes for place in (home / split, home)]
        found = index_images([*places, folder / f"diabetic-retinopathy-{split}-unzipped" / split])
        rows[name] = (len(table), ROWS[name])
        notes += (*table_notes, *name_notes)
        ids += images
        paths += map(found.get, images)
        grades += table["level"].tolist()
        splits += [split] * len(images)
    if not ids:
        first_file("eyepacs", folder, tuple(_EYEPACS_PARTS.values()), _EYEPACS_EXPECTED)
    groups = [f"EyePACS {image.partition('_')[0]}" for image in ids]
    return Listing(listing_frame(ids, paths, grades, groups, splits), GRADES, notes, _EYEPACS_EXPECTED, rows)


def aptos2019(root: Path | None, labels: str | None = None) -> Listing:
    """APTOS 2019 (Kaggle): 3,662 images in 5 grades of retinopathy; no groups, no official split.

    The competition's test images have no public labels and are not listed.

    Args:
        root: Folder of the competition as unpacked, or of Kaggle's inputs with it in
            `aptos2019-blindness-detection`.
        labels: Not used.

    Raises:
        DataError: The labels file is missing or broken, or no image is there.
    """
    folder = dataset_folder("aptos2019", root, _APTOS_EXPECTED)
    path = first_file("aptos2019", folder, ("train.csv", "aptos2019-blindness-detection/train.csv"), _APTOS_EXPECTED)
    table, notes = read_rows(path, ("id_code", "diagnosis"))
    ids, name_notes = image_names(path, table["id_code"], *_APTOS_NAMES)
    found = index_images([path.parent / "train_images", path.parent, folder / "train_images", folder])
    frame = listing_frame(ids, map(found.get, ids), table["diagnosis"])
    rows = {path.name: (len(ids), ROWS[path.name])}
    return Listing(frame, GRADES, (*notes, *name_notes), _APTOS_EXPECTED, rows)


def fundus4(root: Path | None, labels: str | None = None) -> Listing:
    """A Kaggle collection of 4,217 photographs: cataract, diabetic retinopathy, glaucoma, normal.

    An image's id is its path below `root`. The names tell where the images come from:

    - diabetic_retinopathy has EyePACS training images (74 % of grade 0); the group is the patient,
      spelt as in `eyepacs`;
    - elsewhere `<number>_left.jpg` is an image of ODIR-5K; the group is its patient, who may be in
      two folders;
    - `_<index>_<number>.jpg`, 1,240 in cataract and glaucoma, are flipped and shifted copies, named
      as Keras' `save_to_dir` names them: the index is that of the original among the sorted files
      of the folder at that time. Copies of one image are a group. In glaucoma those files are still
      there, and the original is in the group; in cataract they are not, and it is not.

    Args:
        root: Folder that has the four folders.
        labels: Not used.

    Raises:
        DataError: A folder is missing, or an image in diabetic_retinopathy is not named as in EyePACS.
    """
    folder = dataset_folder("fundus4", root, _FUNDUS4_EXPECTED)
    ids, paths, classes, groups, rows = [], [], [], [], {}
    for name in FUNDUS4_CLASSES:
        if not (folder / name).is_dir():
            raise DataError(f"fundus4: there is no folder {name} in {folder}. {_FUNDUS4_EXPECTED}")
        files = sorted(index_images([folder / name]).values())
        names = [Path(path).name for path in files]
        key = f"the folder {name}"
        rows[key] = (len(files), ROWS[key])
        ids += [f"{name}/{file}" for file in names]
        paths += files
        classes += [name] * len(files)
        groups += _fundus4_groups(name, names)
    frame = listing_frame(ids, paths, classes, groups)
    return Listing(frame, FUNDUS4_CLASSES, _copy_notes(frame), _FUNDUS4_EXPECTED, rows)


def _fundus4_groups(folder: str, names: Sequence[str]) -> list[str | None]:
    """Returns the group of each image of a folder, None for one that has none."""
    originals = [name for name in names if not _COPY.match(name)]
    if folder != "glaucoma" or len(originals) != GLAUCOMA_ORIGINALS:
        originals = []
    groups: list[str | None] = []
    for name in names:
        copy = _COPY.match(name)
        if copy is None:
            groups.append(_patient(folder, name))
        elif int(copy[1]) < len(originals):
            original = originals[int(copy[1])]
            groups.append(_patient(folder, original) or f"{folder}/{original}")
        else:
            groups.append(f"fundus4 {folder} {copy[1]}")
    return groups


def _copy_notes(frame: pd.DataFrame) -> tuple[str, ...]:
    copies = frame["id"].str.partition("/")[2].str.match(_COPY)
    alone = copies & frame["group"].str.startswith("fundus4 ", na=False)
    if not copies.any():
        return ()
    return (
        f"{copies.sum():,} of {len(frame):,} images are flipped or shifted copies of others; {alone.sum():,} of them "
        "are in groups without the original, which their names do not tell.",
    )


def _patient(folder: str, name: str) -> str | None:
    """Returns the patient that the name of an original tells."""
    eye = re.match(r"(\d+)_(left|right)\.", name)
    if folder == "diabetic_retinopathy":
        if eye is None:
            raise DataError(f"fundus4: {folder}/{name} is not named as in EyePACS, such as {_EYE[1]}.jpeg")
        return f"EyePACS {eye[1]}"
    return f"ODIR {eye[1]}" if eye else None
