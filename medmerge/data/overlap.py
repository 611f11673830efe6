"""Which images of one dataset another has too: the leak that no split of either can mend."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd

ARCHIVES = {"ham10k": "isic", "isic2019": "isic"}
"""Datasets whose ids are of one archive, so that equal ids are the same image."""

ORIGINS = {
    "medmnist:dermamnist": "isic",
    "medmnist:pneumoniamnist": "kermany",
    "medmnist:chestmnist": "nih",
    "nih_pneumonia": "nih",
    "rsna": "nih",
    "medmnist:organamnist": "lits",
    "medmnist:organcmnist": "lits",
    "medmnist:organsmnist": "lits",
}
"""Where datasets were drawn from that gave the images names, and most of them bytes, of their own."""


def hidden(name: str, others: Iterable[str]) -> list[str]:
    """Names those of `others` that may share images with a dataset which neither ids nor files can tell."""
    archive = _archive(name)
    own = ORIGINS.get(archive, archive)
    named = {other: _archive(other) for other in sorted(set(others))}
    return [other for other, its in named.items() if own and its != archive and ORIGINS.get(its, its) == own]


def met(images: pd.DataFrame, seen: pd.DataFrame, name: str) -> pd.Series:
    """Tells for each image whether it, or another of its patient or lesion, is among those seen.

    Images are the same if their files are byte-identical, or if their ids are equal and come from
    one archive: from the same dataset (but not from two lists of users' own files), or from HAM10000
    and ISIC-2019, where `_downsampled` at the end of an id is not counted.

    Args:
        images: A dataset's images: the columns id, group and sha256 (empty where it is not known).
        seen: Another's: the columns dataset, id, group and sha256.
        name: The dataset of `images`.

    Returns:
        str, with the index of `images`: "image" (the same image), "group" (another image of the
        group), or "".
    """
    archive = _archive(name)
    ids = set(_plain(seen["id"][seen["dataset"].map(_archive) == archive])) if archive else set()
    digests = set(seen["sha256"]) - {""}
    groups = set(seen["group"][seen["group"] != seen["id"]])
    same = _plain(images["id"]).isin(ids) | images["sha256"].isin(digests)
    found = pd.Series("", index=images.index, dtype=object)
    found[images["group"].isin(groups)] = "group"
    found[same] = "image"
    return found


def _archive(name: str) -> str:
    """The name within which ids are unique; "" for users' own lists, whose ids are paths."""
    if name in ("csv", "folder"):
        return ""
    return ARCHIVES.get(name, re.sub(r"_(64|128|224)$", "", name))


def _plain(ids: pd.Series) -> pd.Series:
    return ids.astype(str).str.removesuffix("_downsampled")
