"""HAM10000 and ISIC-2019: dermoscopic images of pigmented skin lesions.

All 10,015 images of HAM10000 are in the training set of ISIC-2019, under the same `lesion_id`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from medmerge.data.base import (
    DataError,
    Listing,
    dataset_folder,
    first_file,
    index_images,
    listing_frame,
    read_rows,
)

HAM10K_CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
ISIC2019_CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
ISIC2019_UNKNOWN = "UNK"

_HAM10K_METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab")
_HAM10K_FOLDERS = (
    "HAM10000_images_part_1",
    "HAM10000_images_part_2",
    "images",
    "ISIC2018_Task3_Training_Input",
)
_HAM10K_EXPECTED = (
    "The folder must hold HAM10000_metadata.csv (Dataverse also calls it HAM10000_metadata or "
    "HAM10000_metadata.tab) and the images ISIC_*.jpg in HAM10000_images_part_1 and "
    "HAM10000_images_part_2, in images, in ISIC2018_Task3_Training_Input, or beside it. Get them "
    "from Harvard Dataverse, https://doi.org/10.7910/DVN/DBW86T, or the ISIC archive, "
    "https://challenge.isic-archive.com/data/#2018."
)
_ISIC2019_EXPECTED = (
    "The folder must hold ISIC_2019_Training_GroundTruth.csv, ISIC_2019_Training_Metadata.csv and "
    "the images ISIC_*.jpg in ISIC_2019_Training_Input. Get them from "
    "https://challenge.isic-archive.com/data/#2019."
)


def ham10k(root: Path | None, labels: str | None = None) -> Listing:
    """HAM10000: 10,015 images of 7,470 lesions in 7 classes; the group is the lesion.

    Source: Tschandl et al., Scientific Data 5, 180161 (2018). There is no official split: the
    paper's validation and test images are those of ISIC-2018 task 3, which are other images.

    Args:
        root: Folder of the dataset, as unpacked.
        labels: Not used.

    Raises:
        DataError: The metadata is missing or broken, or no image is there.
    """
    folder = dataset_folder("ham10k", root, _HAM10K_EXPECTED)
    metadata = first_file("ham10k", folder, _HAM10K_METADATA, _HAM10K_EXPECTED)
    rows = read_rows(metadata, ("lesion_id", "image_id", "dx"))
    found = index_images([*(folder / name for name in _HAM10K_FOLDERS), folder])
    notes = () if metadata.name == _HAM10K_METADATA[0] else (f"Labels are from {metadata.name}.",)
    return Listing(
        frame=listing_frame(rows["image_id"], rows["image_id"].map(found.get), rows["dx"], rows["lesion_id"]),
        classes=HAM10K_CLASSES,
        notes=notes,
        expected=_HAM10K_EXPECTED,
    )


def isic2019(root: Path | None, labels: str | None = None) -> Listing:
    """ISIC-2019 training set: 25,331 images in 8 classes; the group is the lesion.

    2,084 images carry no lesion id. The ninth column of the ground truth, UNK, is empty in the
    training set and is a class only if some image is in it. No official split.

    Args:
        root: Folder of the dataset, as unpacked.
        labels: Not used.

    Raises:
        DataError: The ground truth or the metadata is missing or broken, or no image is there.
    """
    folder = dataset_folder("isic2019", root, _ISIC2019_EXPECTED)
    names = ("ISIC_2019_Training_GroundTruth.csv", "ISIC_2019_Training_Metadata.csv")
    truth_path, metadata_path = (first_file("isic2019", folder, (name,), _ISIC2019_EXPECTED) for name in names)
    truth = read_rows(truth_path, ("image", *ISIC2019_CLASSES))
    labels_by_row, classes = _one_hot(truth, truth_path)
    metadata = read_rows(metadata_path, ("image", "lesion_id"))
    lesions = dict(zip(metadata["image"], metadata["lesion_id"], strict=True))
    found = index_images([folder / "ISIC_2019_Training_Input"])
    return Listing(
        frame=listing_frame(
            truth["image"],
            truth["image"].map(found.get),
            labels_by_row,
            truth["image"].map(lambda image: lesions.get(image, "")),
        ),
        classes=classes,
        expected=_ISIC2019_EXPECTED,
    )


def _one_hot(truth: pd.DataFrame, path: Path) -> tuple[list[str], tuple[str, ...]]:
    """Returns the name of each row's class, and the classes."""
    columns = [*ISIC2019_CLASSES, *({ISIC2019_UNKNOWN} & set(truth.columns))]
    values = truth[columns].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    wrong = ~(np.isin(values, (0.0, 1.0)).all(axis=1) & (values.sum(axis=1) == 1.0))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        given = ", ".join(f"{name}={truth[name].iloc[row]!r}" for name in columns)
        raise DataError(
            f"{path}: image {truth['image'].iloc[row]} is not in exactly one class ({given}); "
            f"{int(wrong.sum()):,} of {len(truth):,} rows are so. Each row needs one 1 and zeros."
        )
    index = values.argmax(axis=1)
    unknown = len(ISIC2019_CLASSES)
    classes = tuple(columns) if (index == unknown).any() else ISIC2019_CLASSES
    return [columns[position] for position in index], classes
