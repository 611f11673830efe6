"""EyePACS, APTOS 2019 and a set of four eye conditions: photographs of the back of the eye."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medmerge.data.reading import Source, index_images
from medmerge.data.table import DataError, Listing

GRADES = ("0", "1", "2", "3", "4")
"""Of diabetic retinopathy: none, mild, moderate, severe, proliferative."""

FUNDUS4_CLASSES = ("cataract", "diabetic_retinopathy", "glaucoma", "normal")

_EYE = (r"\d+_(left|right)", "10_left")
_EYEPACS_PARTS = {"train": "trainLabels.csv", "test": "retinopathy_solution.csv"}
_APTOS_NAMES = (r"[0-9a-f]{12}", "000c1434d8d7")
GLAUCOMA_ORIGINALS = 407
"""Images in the folder glaucoma of fundus4 that are no copies; the copies count among these."""

_COPY = re.compile(r"_(\d+)_\d+")


def eyepacs(root: Path | None) -> Listing:
    """EyePACS (Kaggle 2015): 88,702 images in 5 grades of retinopathy; the group is the patient.

    The official split is train (35,126 images, 17,563 patients) and test (53,576 and 26,788), two
    eyes a patient. The public and private parts of test are read alike.

    Args:
        root: Folder of the competition as unpacked, or of Kaggle's inputs with it in
            `diabetic-retinopathy-detection` and the images in `diabetic-retinopathy-train-unzipped`
            and `-test-unzipped`.

    Raises:
        DataError: Both labels files are missing, one is broken, or no image is there. That one is
            missing is left to `load_table`, which counts its rows.
    """
    source, parts = Source("eyepacs", root), []
    homes = (source.folder, source.folder / "diabetic-retinopathy-detection")
    for split, name in _EYEPACS_PARTS.items():
        path = next((home / f for home in homes for f in (name, f"{name}.zip") if (home / f).is_file()), None)
        if path is None:
            source.count(name, 0)
            continue
        table = source.table(path, ("image", "level"))
        ids = source.images(path, table["image"], *_EYE)
        places = [place for home in homes for place in (home / split, home)]
        found = index_images([*places, source.folder / f"diabetic-retinopathy-{split}-unzipped" / split])
        groups = [f"EyePACS {image.partition('_')[0]}" for image in ids]
        columns = {"id": ids, "path": map(found.get, ids), "label": table["level"], "group": groups, "split": split}
        parts.append(pd.DataFrame(columns, dtype=object))
    if not parts:
        source.file(*_EYEPACS_PARTS.values())
    return source.listing(pd.concat(parts, ignore_index=True), GRADES)


def aptos2019(root: Path | None) -> Listing:
    """APTOS 2019 (Kaggle): 3,662 images in 5 grades of retinopathy; no groups, no official split.

    The competition's test images have no public labels and are not listed.

    Args:
        root: Folder of the competition as unpacked, or of Kaggle's inputs with it in
            `aptos2019-blindness-detection`.

    Raises:
        DataError: The labels file is missing or broken, or no image is there.
    """
    source = Source("aptos2019", root)
    path = source.file("train.csv", "aptos2019-blindness-detection/train.csv")
    table = source.table(path, ("id_code", "diagnosis"))
    ids = source.images(path, table["id_code"], *_APTOS_NAMES)
    found = index_images([path.parent / "train_images", path.parent, source.folder / "train_images", source.folder])
    columns = {"id": ids, "path": map(found.get, ids), "label": table["diagnosis"]}
    return source.listing(pd.DataFrame(columns, dtype=object), GRADES)


def fundus4(root: Path | None) -> Listing:
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

    Raises:
        DataError: A folder is missing, or an image in diabetic_retinopathy is not named as in EyePACS.
    """
    source, rows = Source("fundus4", root), []
    for name in FUNDUS4_CLASSES:
        folder = source.folder / name
        if not folder.is_dir():
            raise DataError(f"fundus4: there is no folder {name} in {source.folder}. {source.expected}")
        paths = sorted(index_images([folder]).values())
        source.count(f"the folder {name}", len(paths))
        names = [Path(path).name for path in paths]
        groups = _fundus4_groups(name, names)
        rows += [(f"{name}/{n}", path, name, group) for n, path, group in zip(names, paths, groups, strict=True)]
    frame = pd.DataFrame(rows, columns=["id", "path", "label", "group"], dtype=object)
    copies = frame["id"].str.partition("/")[2].str.match(_COPY)
    alone = copies & frame["group"].str.startswith("fundus4 ", na=False)
    if copies.any():
        source.notes.append(
            f"{copies.sum():,} of {len(frame):,} images are flipped or shifted copies of others; {alone.sum():,} of "
            "them are in groups without the original, which their names do not tell."
        )
    return source.listing(frame, FUNDUS4_CLASSES)


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


def _patient(folder: str, name: str) -> str | None:
    """Returns the patient that the name of an original tells."""
    eye = re.match(r"(\d+)_(left|right)\.", name)
    if folder == "diabetic_retinopathy":
        if eye is None:
            raise DataError(f"fundus4: {folder}/{name} is not named as in EyePACS, such as {_EYE[1]}.jpeg")
        return f"EyePACS {eye[1]}"
    return f"ODIR {eye[1]}" if eye else None
