"""Which image trains, which validates and which tests."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from medmerge.data.table import SPLITS, DataError, Table

METHODS = ("grouped", "random", "official")
MAX_FOLDS = 20

_logger = logging.getLogger(__name__)


def split(
    table: Table, *, method: str = "grouped", fractions: tuple[float, float, float] = (0.6, 0.2, 0.2), seed: int = 0
) -> np.ndarray:
    """Assigns each image to train, val or test.

    The result depends on the ids, labels and groups and on the seed, and neither on the order of
    the rows nor on the machine.

    How close a grouped split comes to the fractions: let a part be f of the k folds. Where all
    images of each group are in one stratum, the part's images of a stratum are within f (k - f) / k
    of the stratum's largest groups of their share. That is less than one group for a single fold;
    for several it may be more, as the folds of a stratum differ by up to one group, and a part adds
    these differences up. Where groups mix strata there is no such bound: scikit-learn then weighs
    one stratum against another. It also takes balances within 1e-5 of each other as equal, which
    made no difference in tables of up to 90,000 images.

    Args:
        table: The dataset.
        method: One of

            - "grouped": by `group`, so that no patient or lesion is on two sides, and stratified
              by label: the folds of scikit-learn's `StratifiedGroupKFold`, as few as express the
              fractions. A multi-label image belongs to the stratum of its rarest class, see
              `strata`.
            - "random": by image, not stratified, as the paper reads ("a random 60%, 20%, and 20%
              split", section 3). Images of one lesion end on both sides.
            - "official": the dataset's own. Where it has no val, val is drawn from train as in
              "grouped", with the share val / (train + val) of `fractions`.
        fractions: Shares of train, val and test: positive, with sum 1; for the folds, multiples
            of 1/k for some k up to 20.
        seed: From 0 to 2**32 - 1.

    Returns:
        str [N], "train", "val" or "test", aligned with `table.frame`.

    Raises:
        DataError: An argument is not as said above, there is no official split, a part is empty,
            or a class has no image in train.

    Logs a warning for a class that val or test lacks, for an official split that cuts groups, and
    for a part that large groups keep 5 points or more from its share.
    """
    _check_arguments(method, fractions, seed)
    order = np.argsort(table.frame["id"].to_numpy(dtype=object), kind="stable")
    frame = table.frame.iloc[order].assign(stratum=strata(table)[order])
    if method == "grouped":
        parts = _grouped(table, frame, fractions, SPLITS, seed)
        _warn_of_sizes(table.name, parts, fractions)
    elif method == "random":
        parts = _random(len(frame), fractions, seed)
    else:
        parts = _official(table, frame, fractions, seed)
    result = np.empty_like(parts)
    result[order] = parts
    check(table, result)
    return result


def strata(table: Table) -> np.ndarray:
    """What a grouped split balances: int64 [N], the class of each image.

    Of a multi-label image it is the rarest class that it has, by the number of images in the table
    that have it (the first of equally rare ones): common classes come out balanced without help,
    rare ones do not. Images that have no class, or none that is known, are a stratum of their own,
    `len(table.classes)`.
    """
    if not table.multilabel:
        return table.labels
    positive = table.labels == 1
    rarest_first = np.argsort(positive.sum(axis=0), kind="stable")
    rarest = rarest_first[positive[:, rarest_first].argmax(axis=1)]
    return np.where(positive.any(axis=1), rarest, len(table.classes)).astype(np.int64)


def count(table: Table, parts: np.ndarray) -> pd.DataFrame:
    """Counts images: int64, a row for each class and a column for each of train, val, test.

    Multi-label: the images that have the class, so that one image may count in several rows, or
    in none; `sizes` gives the number of images.
    """
    has = table.labels == 1 if table.multilabel else table.labels[:, None] == np.arange(len(table.classes))
    columns = {part: has[parts == part].sum(axis=0) for part in SPLITS}
    return pd.DataFrame(columns, index=list(table.classes), dtype=np.int64)


def sizes(parts: np.ndarray) -> pd.Series:
    """Counts images: int64, for train, val and test."""
    return pd.Series({part: int((parts == part).sum()) for part in SPLITS}, dtype=np.int64)


def join_identical(table: Table, digests: Sequence[str | None]) -> Table:
    """Joins groups that share a file, so that a grouped split keeps byte-identical images together.

    Groups are joined in chains: if A shares a file with B, and B another one with C, all three
    become one group, called as the first of them in alphabetical order.

    Args:
        table: The dataset.
        digests: A digest of each image's file, aligned with `table.frame`; None or "" where it is
            not known.

    Returns:
        The table with other groups and a note that says how many were joined, or the same table
        if there are none to join.
    """
    names, groups = np.unique(table.frame["group"].to_numpy(dtype=str), return_inverse=True)
    known = np.array([bool(digest) for digest in digests])
    _, files = np.unique([digest for digest in digests if digest], return_inverse=True)
    nodes = len(names) + len(files)
    edges = coo_array((np.ones(known.sum()), (groups[known], len(names) + files)), shape=(nodes, nodes))
    _, components = connected_components(edges, directed=False)
    _, first, members = np.unique(components[: len(names)], return_index=True, return_inverse=True)
    if len(first) == len(names):
        return table
    joined = int((np.bincount(members) > 1)[members].sum())
    note = f"{joined:,} groups that share byte-identical files are joined into {joined - len(names) + len(first):,}."
    frame = table.frame.assign(group=names[first[members]][groups].astype(object))
    return replace(table, frame=frame.astype({"group": table.frame["group"].dtype}), notes=(*table.notes, note))


def check(table: Table, parts: np.ndarray) -> None:
    """Checks that a split can be trained and tested on.

    Raises:
        DataError: A part is empty, or a class has no image in train; logs a warning for a class
            that val or test lacks.
    """
    counts, images = count(table, parts), sizes(parts)
    if not images.all():
        empty = f"{images.idxmin()} is empty with {len(parts):,} images"
        raise DataError(f"{table.name}: {empty}; it takes more images or groups, or other fractions")
    for part in SPLITS:
        absent = "; ".join(_number(table, label) for label in counts.index[counts[part] == 0])
        needs = f"{absent}; to be in each part it takes 3 groups or more"
        if absent and part == "train":
            way = "Get more images, take another split_seed, leave the class out with exclude, or merge it with another"
            raise DataError(f"{table.name}: no image to train on in class {needs}. {way}")
        if absent:
            _logger.warning("%s: %s has no image of %s", table.name, part, needs)


def _number(table: Table, label: str) -> str:
    """A class with the number of its images and of their groups."""
    index = table.classes.index(label)
    members = table.labels[:, index] == 1 if table.multilabel else table.labels == index
    images, groups = int(members.sum()), table.frame["group"][members].nunique()
    return f"{label} ({images:,} image{'s' * (images != 1)}, {groups:,} group{'s' * (groups != 1)})"


def warn_of_straddling(name: str, groups: Sequence[str], parts: np.ndarray) -> None:
    """Logs a warning if groups are in more than one part."""
    shared = int((pd.Series(parts).groupby(np.asarray(groups)).nunique() > 1).sum())
    if shared:
        _logger.warning("%s: %d groups are in more than one part of the split", name, shared)


def _check_arguments(method: str, fractions: tuple[float, ...], seed: int) -> None:
    if method not in METHODS:
        raise DataError(f"There is no split {method!r}; it is one of {', '.join(METHODS)}")
    if len(fractions) != 3 or min(fractions) <= 0 or not math.isclose(sum(fractions), 1.0, abs_tol=1e-6):
        total = f"the sum {sum(fractions):g}"
        raise DataError(f"fractions {fractions} have {total}; give train, val and test, each above 0, that add up to 1")
    if not 0 <= seed < 2**32:
        raise DataError(f"the split's seed is {seed}; it is from 0 to {2**32 - 1}")


def _folds(shares: tuple[float, ...]) -> list[int]:
    """Returns the number of folds for each share, out of as few folds as express them all."""
    for total in range(len(shares), MAX_FOLDS + 1):
        folds = [round(share * total) for share in shares]
        if all(number and abs(share - number / total) < 1e-6 for share, number in zip(shares, folds, strict=True)):
            return folds
    given = ", ".join(f"{share:g}" for share in shares)
    are = f"are not multiples of 1/k for any k up to {MAX_FOLDS}, as equal folds of groups are"
    raise DataError(f"The shares {given} {are}; take near ones, such as 0.65, 0.15, 0.2, or 0.6, 0.2, 0.2")


def _grouped(
    table: Table, frame: pd.DataFrame, shares: tuple[float, ...], names: tuple[str, ...], seed: int
) -> np.ndarray:
    """Deals whole groups to `names`, the first of which takes what the others leave."""
    folds = _folds(shares)
    total, labels, groups = sum(folds), frame["stratum"].to_numpy(), frame["group"].to_numpy(dtype=str)
    if frame["group"].nunique() < total or np.bincount(labels).max() < total:
        there = (
            f"there are {frame['group'].nunique()} groups, and {'; '.join(_number(table, n) for n in table.classes)}"
        )
        takes = f"the shares take {total} folds, and so {total} groups and {total} images of a class or more"
        raise DataError(f"{table.name}: {takes}; {there}. Get more images, or take simpler shares: 0.5, 0.25, 0.25")
    splitter = StratifiedGroupKFold(total, shuffle=True, random_state=seed)
    owners = np.repeat([*names[1:], names[0]], [*folds[1:], folds[0]])
    parts = np.full(len(frame), names[0], dtype="<U5")
    with warnings.catch_warnings():
        # A class with fewer images than folds is judged by what it ends up with, afterwards.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for owner, (_, members) in zip(owners, splitter.split(labels, labels, groups), strict=True):
            parts[members] = owner
    return parts


def _random(count: int, fractions: tuple[float, ...], seed: int) -> np.ndarray:
    bounds = np.rint(np.cumsum(fractions)[:2] * count).astype(int)
    parts = np.empty(count, dtype="<U5")
    pieces = np.split(np.random.default_rng(seed).permutation(count), bounds)
    for name, members in zip(SPLITS, pieces, strict=True):
        parts[members] = name
    return parts


def _official(table: Table, frame: pd.DataFrame, fractions: tuple[float, ...], seed: int) -> np.ndarray:
    if frame["split"].isna().all():
        raise DataError(f"{table.name} has no official split; take split: grouped or split: random")
    without = frame["id"][frame["split"].isna()]
    if len(without):
        raise DataError(f"{table.name}: {len(without):,} images have no official split, first {without.iloc[0]}")
    parts = frame["split"].to_numpy(dtype="<U5")
    absent = {"train", "test"} - set(parts)
    if absent:
        lacks = " and no ".join(sorted(absent))
        raise DataError(f"{table.name}: the official split has no {lacks}; take split: grouped or split: random")
    if "val" not in parts:
        train, val, _ = fractions
        rest, shares = parts == "train", (train / (train + val), val / (train + val))
        parts[rest] = _grouped(table, frame[rest], shares, ("train", "val"), seed)
    warn_of_straddling(table.name, frame["group"], parts)
    return parts


def _warn_of_sizes(name: str, parts: np.ndarray, fractions: tuple[float, ...]) -> None:
    """Tells of a part that a few large groups keep far from its share."""
    for part, share in zip(SPLITS, fractions, strict=True):
        if abs((actual := (parts == part).mean()) - share) > 0.05:
            has = f"{100 * actual:.0f} % of the images instead of {100 * share:.0f} %"
            _logger.warning("%s: %s has %s: some groups are too large", name, part, has)
