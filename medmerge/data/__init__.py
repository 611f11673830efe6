"""Datasets: each as a table, split by patient or lesion, decoded once, served in batches.

:func:`load` leads from a dataset's name to the three parts that are trained, validated and tested on.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from medmerge.data import split_files, splits
from medmerge.data.images import Images, glance, load_images
from medmerge.data.loaders import DATASETS, known_names, listed_ids, load_table
from medmerge.data.reading import read_ids
from medmerge.data.splits import split
from medmerge.data.table import CATALOGUE, PAPER_NUMBERS, DataError, Entry, Table, digest, entry
from medmerge.samples import Samples

__all__ = [
    "CATALOGUE",
    "DATASETS",
    "DataError",
    "Dataset",
    "Entry",
    "Images",
    "PAPER_NUMBERS",
    "Samples",
    "Table",
    "entry",
    "glance",
    "known_names",
    "listed_ids",
    "load",
    "load_images",
    "load_table",
    "read_ids",
    "split",
]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset, split and decoded.

    Attributes:
        name: Its name, such as "isic2019".
        classes: Names of the classes; labels index them, or are a column for each (multi-label).
        train: What is learnt from.
        val: What choices are made on.
        test: What is read once, by the evaluation.
        counts: Images, int64: a row for each class, the columns train, val and test. Of a
            multi-label dataset the images that have the class.
        table: The images, sorted by id, with their groups.
        parts: str [N], train, val or test, aligned with the table.
        digests: N SHA-256, of each image's file, aligned with the table.
        fingerprint: SHA-256 in hex over the fingerprint of the images (their ids, class names
            and contents) and the part that each id is in.
        notes: Sentences: what was left out, what was read leniently, and which images look odd.
    """

    name: str
    classes: tuple[str, ...]
    train: Samples
    val: Samples
    test: Samples
    counts: pd.DataFrame
    table: Table
    parts: np.ndarray
    digests: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...]

    @property
    def multilabel(self) -> bool:
        """Whether an image may have any number of classes."""
        return self.table.multilabel

    @property
    def images(self) -> pd.DataFrame:
        """A row for each image, sorted by id, with the columns id, group, sha256 (of its file) and split."""
        return self.table.frame[["id", "group"]].assign(sha256=self.digests, split=self.parts)


def load(
    name: str,
    root: Path | None = None,
    *,
    image_size: int,
    resize: str = "stretch",
    split: str = "grouped",
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
    split_seed: int = 0,
    split_file: Path | None = None,
    group_identical: bool = False,
    cache: Path | None = None,
    **reading,
) -> Dataset:
    """Reads, splits and decodes a dataset.

    Args:
        name: A key of `loaders.DATASETS`.
        root: Folder of the dataset as unpacked; it is only read.
        image_size: Side of the images in pixels.
        resize: How they get it; see `images.load_images`.
        split: "grouped", "random" or "official" (see `splits.split`), or "file".
        fractions: Shares of train, val and test.
        split_seed: Seed of the split.
        split_file: The split, if it is "file"; see `split_files`.
        group_identical: Whether "grouped" keeps byte-identical files together too.
        cache: Folder of the decoded images; see `images.load_images`.
        reading: `labels`, `missing`, `exclude`, `uncertain` and `blank`, as for `load_table`.

    Returns:
        The dataset. The images of its three parts are views of one memory-mapped array.

    Raises:
        DataError: As `load_table`, `splits.split`, `split_files.apply` and `load_images` say.

    Logs the notes.
    """
    table = load_table(name, root, **reading)
    images = load_images(table, image_size, resize=resize, cache=cache)
    if group_identical:
        table = splits.join_identical(table, images.digests)
    if split == "file":
        parts = split_files.apply(table, split_file)
    else:
        parts = splits.split(table, method=split, fractions=fractions, seed=split_seed)
    notes = (*table.notes, *images.notes)
    for note in notes:
        _logger.info("%s: %s", name, note)
    inputs = torch.from_numpy(images.pixels).permute(0, 3, 1, 2)
    return Dataset(
        name=name,
        classes=table.classes,
        **{part: _samples(table, inputs, parts == part) for part in splits.SPLITS},
        counts=splits.count(table, parts),
        table=table,
        parts=parts,
        digests=images.digests,
        fingerprint=digest([[images.fingerprint], *sorted(zip(table.frame["id"], parts.tolist(), strict=True))]),
        notes=notes,
    )


def _samples(table: Table, inputs: torch.Tensor, members: np.ndarray) -> Samples:
    rows = np.flatnonzero(members)
    return Samples(
        inputs=inputs,
        rows=torch.from_numpy(rows.astype(np.int64)),
        labels=torch.from_numpy(table.labels[rows]),
        ids=tuple(table.frame["id"].iloc[rows]),
    )
