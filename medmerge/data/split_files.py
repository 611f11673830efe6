"""A split as a small CSV file: to cite it, to share it, and to use it again.

The first line is a comment: `# ` and a JSON object that says which dataset it is, how the split was
drawn, the number of images, and the split's fingerprint. The rest is a table `id,split`, sorted by
id. pandas reads it with `comment="#"`; ids that have a "#" are quoted for that.
"""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medmerge import files
from medmerge.data import splits
from medmerge.data.table import DataError, Table, digest

_AGAIN = "Get the file again from where it was published, or draw the split again"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitFile:
    """A split read from a file.

    Attributes:
        dataset: Name of the dataset that was split.
        method: "grouped", "random" or "official"; see `splits.split`.
        fractions: Shares of train, val and test that were asked for.
        seed: Seed of the split.
        fingerprint: See `fingerprint`.
        parts: "train", "val" or "test" of each id, in the order of the ids.
    """

    dataset: str
    method: str
    fractions: tuple[float, ...]
    seed: int
    fingerprint: str
    parts: dict[str, str]


def fingerprint(ids: Sequence[str], parts: Sequence[str]) -> str:
    """Names a split: the same on any machine and for any order of the rows.

    Args:
        ids: N ids.
        parts: N parts, aligned with them.

    Returns:
        SHA-256 in hex over the pairs sorted by id, each as a line of JSON, `["id", "part"]`, in
        ASCII with a line feed.
    """
    return digest(sorted(zip(map(str, ids), map(str, parts), strict=True)))


def write(
    path: str | os.PathLike,
    table: Table,
    parts: np.ndarray,
    *,
    method: str,
    fractions: tuple[float, float, float],
    seed: int,
) -> str:
    """Writes a split; a file that is there is replaced, and never left half-written.

    Args:
        path: The file to write; its folder is made if needed.
        table: The dataset.
        parts: str [N], as `splits.split` returns.
        method, fractions, seed: What it was drawn with, to be written down.

    Returns:
        The fingerprint.

    Raises:
        DataError: The file cannot be written.
    """
    ids = table.frame["id"].tolist()
    rows = sorted(zip(ids, parts.tolist(), strict=True))
    head = {"dataset": table.name, "method": method, "fractions": list(fractions), "seed": seed}
    head |= {"images": len(ids), "sha256": fingerprint(ids, parts)}
    target = Path(path).expanduser()
    quoting = csv.QUOTE_ALL if any("#" in image for image in ids) else csv.QUOTE_MINIMAL
    try:
        with files.replacing(target) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(f"# {json.dumps(head)}\n")
            csv.writer(file, quoting=quoting, lineterminator="\n").writerows([["id", "split"], *rows])
    except (OSError, files.DiskError) as error:
        raise DataError(f"The split cannot be written to {target}: {error}") from error
    return head["sha256"]


def read(path: str | os.PathLike) -> SplitFile:
    """Reads a split and checks it against its fingerprint.

    Raises:
        DataError: The file is not there or is no such file, or the rows are not those that were written.
    """
    file = Path(path).expanduser()
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            first = lines.readline()
            rows = pd.read_csv(lines, dtype=str, keep_default_na=False) if first.startswith("#") else None
    except (OSError, ValueError) as error:
        raise DataError(f"The split {file} cannot be read: {error}. {_AGAIN}") from error
    try:
        head = {} if rows is None else json.loads(first.removeprefix("#"))
        named = head["dataset"], head["method"], tuple(head["fractions"]), head["seed"]
        count, expected = head["images"], head["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        begin = "does not begin as a split file does, with '# ' and a JSON object"
        raise DataError(f"{file} {begin}; a program may have changed its first line. {_AGAIN}") from error
    if list(rows) != ["id", "split"]:
        raise DataError(f"{file}, line 2: the columns are id,split, not {','.join(rows)}. {_AGAIN}")
    ids, parts = rows["id"], rows["split"].fillna("")
    actual = fingerprint(ids, parts)
    if actual != expected:
        holds = f"it holds {len(rows):,} images with the fingerprint {actual[:12]}"
        raise DataError(f"{file} was edited after it was written: {holds}, not {count} with {expected}. {_AGAIN}")
    return SplitFile(*named, actual, dict(sorted(zip(ids, parts, strict=True))))


def apply(table: Table, path: str | os.PathLike) -> np.ndarray:
    """Assigns each image the part that a file says.

    Args:
        table: The dataset, or a part of it: ids of the file that the table does not have, as in a
            partial download, are passed over with a warning that counts them.
        path: A file that `write` made.

    Returns:
        str [N], "train", "val" or "test", aligned with `table.frame`.

    Raises:
        DataError: As `read` says, the table has an image that the file has not, a part is empty,
            or a class has no image in train.

    Logs a warning if the file is of another dataset or cuts the table's groups.
    """
    given = read(path)
    ids = table.frame["id"].tolist()
    absent = sorted(set(ids) - given.parts.keys())
    if absent:
        raise DataError(
            f"{table.name}: {len(absent):,} of {len(ids):,} images are not in the split {path}, first {absent[0]}. "
            "Leave them out with exclude, or take a split of all images"
        )
    unused = len(given.parts) - len(ids)
    if unused:
        _logger.warning(
            "%s: %s splits %d images, of which %d are not in this dataset as it is here",
            *(table.name, path, len(given.parts), unused),
        )
    if given.dataset != table.name:
        _logger.warning("%s: %s is a split of %s", table.name, path, given.dataset)
    parts = np.array([given.parts[image] for image in ids], dtype="<U5")
    splits.warn_of_straddling(table.name, table.frame["group"], parts)
    splits.check(table, parts)
    return parts
