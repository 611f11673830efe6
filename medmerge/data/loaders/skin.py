"""HAM10000 (ISIC-2018 task 3) and ISIC-2019: dermoscopic images of pigmented skin lesions.

All 10,015 images of HAM10000 are in the training set of ISIC-2019, under the same `lesion_id`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medmerge.data.reading import Source, index_images, read_rows
from medmerge.data.table import DataError, Listing, first_duplicate

HAM10K_CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
ISIC2018_COLUMNS = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
ISIC2019_CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
ISIC2019_UNKNOWN = "UNK"

_NAMES = (r"ISIC_\d+(_downsampled)?", "ISIC_0024306")
_HAM10K_METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab")
_HAM10K_FOLDERS = ("HAM10000_images_part_1", "HAM10000_images_part_2", "images", "ISIC2018_Task3_Training_Input", ".")


def ham10k(root: Path | None) -> Listing:
    """HAM10000: 10,015 images of 7,470 lesions in 7 classes, and ISIC-2018 task 3's other parts.

    Source: Tschandl et al., Scientific Data 5, 180161 (2018); Codella et al., arXiv:1902.03368.
    HAM10000 is the training part of ISIC-2018 task 3, whose validation (193) and test (1,512)
    images are others. A part whose folder of images is there is read too, and then the official
    split is there; the group is the lesion, which the archive does not tell for these two parts.

    Args:
        root: Folder of the dataset, as unpacked from Dataverse, Kaggle or the ISIC archive.

    Raises:
        DataError: A labels file is missing, broken, or does not fit another, or no image is there.
    """
    source = Source("ham10k", root)
    folder = source.folder
    metadata = next((folder / name for name in _HAM10K_METADATA if (folder / name).is_file()), None)
    frame = _metadata(source, metadata) if metadata else _isic2018_truth(source, "Training")
    if metadata and metadata.name != _HAM10K_METADATA[0]:
        source.notes.append(f"Labels are from {metadata.name}.")
    found = index_images(folder / name for name in _HAM10K_FOLDERS)
    parts = [frame.assign(path=frame["id"].map(found.get), split="train")]
    for part, split in (("Validation", "val"), ("Test", "test")):
        folders = [folder / f"ISIC2018_Task3_{part}_{kind}" for kind in ("Input", "Images")]
        truth = _truth_file(folder, part)
        if any(images.is_dir() for images in folders):
            frame = _isic2018_truth(source, part)
            parts.append(frame.assign(path=frame["id"].map(index_images(folders).get), split=split))
        elif truth:
            source.notes.append(f"{truth.name} is left out: there is no folder {folders[0].name}.")
    listed = pd.concat(parts, ignore_index=True)
    return source.listing(listed if len(parts) > 1 else listed.drop(columns="split"), HAM10K_CLASSES)


def isic2019(root: Path | None) -> Listing:
    """ISIC-2019 training set: 25,331 images in 8 classes; the group is the lesion.

    2,084 images carry no lesion id. The ninth column of the ground truth, UNK, is empty in the
    training set and is a class only if some image is in it. No official split.

    Args:
        root: Folder of the dataset, as unpacked.

    Raises:
        DataError: The ground truth or the metadata is missing or broken, they are not about the
            same images, or no image is there.
    """
    source = Source("isic2019", root)
    names = ("ISIC_2019_Training_GroundTruth.csv", "ISIC_2019_Training_Metadata.csv")
    truth_path, metadata_path = map(source.file, names)
    truth = source.table(truth_path, ("image", *ISIC2019_CLASSES), (ISIC2019_UNKNOWN,))
    ids = source.images(truth_path, truth["image"], *_NAMES)
    labels_by_row, classes = _one_hot(truth, truth_path, ISIC2019_CLASSES, ISIC2019_UNKNOWN)
    lesions = _lesions(source, metadata_path, truth_path, ids)
    downsampled = sum(image.endswith("_downsampled") for image in ids)
    if downsampled:
        source.notes.append(f"{downsampled:,} of {len(ids):,} ids end in _downsampled.")
    found = index_images([source.folder / "ISIC_2019_Training_Input"])
    columns = {"id": ids, "path": map(found.get, ids), "label": labels_by_row, "group": map(lesions.get, ids)}
    return source.listing(pd.DataFrame(columns, dtype=object), classes)


def _isic2018_truth(source: Source, part: str) -> pd.DataFrame:
    """Returns `id`, `label` and `group` ("" for none) of one part of ISIC-2018 task 3."""
    name = f"ISIC2018_Task3_{part}_GroundTruth"
    path = _truth_file(source.folder, part) or source.file(f"{name}.csv")
    if "dx" in read_rows(path, ())[0]:  # Dataverse gives it in the format of HAM10000_metadata
        return _metadata(source, path)
    truth = source.table(path, ("image", *ISIC2018_COLUMNS))
    ids = source.images(path, truth["image"], *_NAMES)
    labels = [label.lower() for label in _one_hot(truth, path, ISIC2018_COLUMNS)[0]]
    lesions = {}
    if part == "Training":
        grouping = "ISIC2018_Task3_Training_LesionGroupings.csv"
        places = (grouping, f"{grouping.removesuffix('.csv')}/{grouping}", f"{name}/{grouping}")
        lesions = _lesions(source, source.file(*places), path, ids)
    return pd.DataFrame({"id": ids, "label": labels, "group": [lesions.get(id, "") for id in ids]}, dtype=object)


def _metadata(source: Source, path: Path) -> pd.DataFrame:
    table = source.table(path, ("lesion_id", "image_id", "dx"))
    ids = source.images(path, table["image_id"], *_NAMES)
    return pd.DataFrame({"id": ids, "label": table["dx"], "group": table["lesion_id"]}, dtype=object)


def _truth_file(folder: Path, part: str) -> Path | None:
    name = f"ISIC2018_Task3_{part}_GroundTruth"
    candidates = [folder / place / f"{name}{suffix}" for place in (name, ".") for suffix in (".csv", ".tab")]
    return next((path for path in candidates if path.is_file()), None)


def _lesions(source: Source, path: Path, truth_path: Path, ids: Sequence[str]) -> dict[str, str]:
    """Returns the lesion of each image, "" for none.

    Raises:
        DataError: The file lists an image twice, or its images and those of the ground truth differ
            by more than the rows that either file is short of.
    """
    table = source.table(path, ("image", "lesion_id"))
    images = source.images(path, table["image"], *_NAMES)
    twice = first_duplicate(images)
    if twice is not None:
        raise DataError(f"{path} lists the image {twice} more than once; keep one row an image")
    official = source.rows[truth_path.name][1]
    strange, without = sorted(set(images) - set(ids)), sorted(set(ids) - set(images))
    if len(strange) > max(0, official - len(ids)) or len(without) > max(0, official - len(table)):
        counts = f"{len(strange):,} are only in the first, {len(without):,} only in the second"
        such = f"such as {' and '.join(found[0] for found in (strange, without) if found)}"
        again = "Get both files again: without lesions a split leaks"
        raise DataError(f"{path} and {truth_path.name} are not about the same images: {counts}, {such}. {again}")
    return dict(zip(images, table["lesion_id"], strict=True))


def _one_hot(
    truth: pd.DataFrame, path: Path, classes: tuple[str, ...], unknown: str | None = None
) -> tuple[list[str], tuple[str, ...]]:
    """Returns the name of each row's class, and the classes, of which `unknown` is one if some row is of it."""
    columns = [*classes, *({unknown} & set(truth.columns))]
    values = truth[columns].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    wrong = ~(np.isin(values, (0.0, 1.0)).all(axis=1) & (values.sum(axis=1) == 1.0))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        given = ", ".join(f"{name}={truth[name].iloc[row]!r}" for name in columns)
        rows = f"{wrong.sum():,} of {len(truth):,} rows are so"
        raise DataError(f"{path}: image {truth['image'].iloc[row]} is not in exactly one class ({given}); {rows}")
    index = values.argmax(axis=1)
    known = tuple(columns) if (index == len(classes)).any() else classes
    return [columns[position] for position in index], known
