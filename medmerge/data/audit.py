"""What a split hides: groups and images on both sides, copies, labels that disagree; and what two datasets share.

Images that look nearly the same are found by imagehash's `phash` of 16 x 16: the image in grey at 64 px, its 256 lowest
frequencies (discrete cosine transform), a bit each for above or below their median. The distance of two images is the
number of bits that differ: 128 on average for unrelated ones. Within 32, measured on images of 64 px, are all copies
saved again as JPEG of quality 50, all of half the size, 92 % or more of those with a fifth more light or contrast or
that lost 1 % on each side; but few that lost more or were turned by 2 degrees, and no mirrored one. Of HAM10000's
images 116 pairs are, all of one lesion by the look of them. With 64 bits, the usual size, the same copies are found
among 10,444 pairs of Kermany's X-rays, which resemble each other too much for it. Fundus photographs, whose bright
disc decides most bits, and images of 28 px need a closer threshold: within 8 bits pairs look like copies, from about 12
on many are different eyes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
import pandas as pd
from PIL import Image

from medmerge.data import splits
from medmerge.data.table import CATALOGUE, SPLITS, Table

SEVERITIES = ("leak", "look", "not checked", "ok")

HASH_SIZE = 16
BITS = HASH_SIZE**2
MAX_DISTANCE = 32
"""Pairs up to this distance are candidates: to be looked at, not proof. See the module's text."""

_EXAMPLES = 3
_ROWS = 64
ARCHIVES = {"ham10k": "isic", "isic2019": "isic"}
"""Datasets whose ids are of one archive, so that equal ids are the same image."""

ORIGINS = {name: archive for known in CATALOGUE for name, archive in known.origins.items()}
"""Where datasets were drawn from that gave the images names, and most of them bytes, of their own."""


@dataclass(frozen=True, eq=False)
class Audit:
    """The findings on a dataset and its split, each a table that is empty where there is nothing.

    Attributes:
        summary: A row for each finding, the worst first: `finding`, its name; `severity`, "leak" (training
            has met test images), "look" (judge by eye), "not checked" or "ok"; `count`, int64; `sentence`;
            `examples`, ids or groups.
        counts: Images of each class by part; see `splits.count`.
        straddling: Groups in more than one part, the largest first: `group`; images in `train`, `val`, `test`.
        identical: Sets of byte-identical files: `digest`; the tuples `ids`, `labels` and `parts`, aligned;
            `straddles`, whether they are in more than one part; `conflicting`, whether labels differ;
            `groups`, the number of their groups, int64.
        near: Pairs of images that look nearly the same, the closest first: the ids `a` and `b`; `distance`,
            bits of 256; `same_group`; `same_label`; `part_a`; `part_b`. They are candidates, to be looked
            at. Byte-identical files are left to `identical` where digests are known.
    """

    summary: pd.DataFrame
    counts: pd.DataFrame
    straddling: pd.DataFrame
    identical: pd.DataFrame
    near: pd.DataFrame


def audit(
    table: Table,
    parts: np.ndarray,
    *,
    digests: Sequence[str | None] | None = None,
    pixels: np.ndarray | None = None,
    distance: int = MAX_DISTANCE,
) -> Audit:
    """Looks for what a split hides.

    Args:
        table: The dataset; its images are not read.
        parts: str [N], "train", "val" or "test".
        digests: SHA-256 of each file; None or "" where it is not known. Without any, copies are not looked for.
        pixels: uint8 [N, S, S, 3], best of 64 px. Without any, near-duplicates are not looked for.
        distance: Bits of 256 that may differ in near-duplicates.
    """
    straddling = _straddling(table, parts)
    identical = _identical(table, parts, digests)
    close = _near(table, parts, digests, pixels, distance)
    rows = {
        "groups": _group_finding(table, parts, straddling),
        "identical files": _file_finding(identical, digests, parts),
        "conflicting labels": _conflict_finding(identical),
        "near-duplicates": _near_finding(close, None if pixels is None else distance),
    }
    found = sorted(((name, *row) for name, row in rows.items() if row), key=lambda row: SEVERITIES.index(row[1]))
    summary = pd.DataFrame(found, columns=["finding", "severity", "count", "sentence", "examples"])
    return Audit(summary.astype({"count": np.int64}), splits.count(table, parts), straddling, identical, close)


def hashes(pixels: np.ndarray) -> np.ndarray:
    """Hashes images.

    Args:
        pixels: uint8 [N, S, S, 3], RGB. 64 px are taken as they are, others are resized.

    Returns:
        uint64 [N, 4].
    """
    bits = np.empty((len(pixels), BITS), dtype=bool)
    for row, image in enumerate(pixels):
        bits[row] = imagehash.phash(Image.fromarray(np.asarray(image)), hash_size=HASH_SIZE).hash.ravel()
    return np.packbits(bits, axis=1).view(np.uint64)


def pairs(hashed: np.ndarray, distance: int = MAX_DISTANCE) -> tuple[np.ndarray, np.ndarray]:
    """Finds all pairs of images that are close.

    All pairs are compared, in blocks: memory grows with the close ones alone.

    Args:
        hashed: uint64 [N, W].
        distance: The largest number of bits that may differ.

    Returns:
        The pairs, int64 [M, 2], each with the lower row first; and their distances, int64 [M], in
        rising order.
    """
    found = [np.empty((0, 3), dtype=np.int64)]
    for top in range(0, len(hashed), _ROWS):
        bits = np.bitwise_count(hashed[top : top + _ROWS, None] ^ hashed[None, top:]).sum(axis=2, dtype=np.int64)
        rows, columns = np.nonzero(np.triu(bits <= distance, k=1))
        found.append(np.stack([bits[rows, columns], rows + top, columns + top], axis=1))
    closest = np.concatenate(found)
    closest = closest[np.lexsort(closest.T[::-1])]
    return closest[:, 1:], closest[:, 0]


def leakage(keys: Sequence[str | None], parts: np.ndarray) -> pd.DataFrame:
    """Counts the images of val and test that share something with an image of train.

    Args:
        keys: What may be shared, for each image: its group, or the digest of its file; None or "" where it
            is not known, which is shared with nothing.
        parts: str [N], "train", "val" or "test".

    Returns:
        The rows val and test of `images` and `shared`, int64, and `share`, their ratio (NaN for no images).
    """
    given = pd.Series(list(keys), dtype=object)
    known = given.notna() & (given != "")
    met = (given.isin(set(given[known & (parts == "train")])) & known).to_numpy()
    rows = {part: (int((parts == part).sum()), int(met[parts == part].sum())) for part in ("val", "test")}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["images", "shared"], dtype=np.int64)
    return frame.assign(share=frame["shared"] / frame["images"])


def shared(
    a: Table, b: Table, digests_a: Sequence[str | None] | None = None, digests_b: Sequence[str | None] | None = None
) -> pd.DataFrame:
    """Lists the images of one dataset that another has too, such as of a target and its source.

    Args:
        a: The dataset that was trained on.
        b: The dataset whose images are looked for.
        digests_a, digests_b: SHA-256 of the files, aligned with the tables, where they are known.

    Returns:
        The rows of `b` that are found, by id: `id`, `group`, and `shares`: "image" (the same id of one archive),
        "file" (another id, the same bytes) or "group" (another image of the patient or lesion). See `met`.
    """
    images, seen = _columns(b, digests_b), _columns(a, digests_a).assign(dataset=a.name)
    by_name = met(images.assign(sha256=""), seen.assign(sha256=""), b.name)
    by_file = met(images, seen, b.name)
    found = images[["id", "group"]].assign(shares=by_name.mask((by_file == "image") & (by_name != "image"), "file"))
    return found[found["shares"] != ""].reset_index(drop=True)


def hidden(name: str, others: Iterable[str]) -> list[str]:
    """Names those of `others` that may share images with a dataset which neither ids nor files can tell."""
    archive = _archive(name)
    own = ORIGINS.get(archive, archive)
    named = {other: _archive(other) for other in sorted(set(others))}
    return [other for other, its in named.items() if own and its != archive and ORIGINS.get(its, its) == own]


def met(images: pd.DataFrame, seen: pd.DataFrame, name: str) -> pd.Series:
    """Tells for each image whether it, or another of its patient or lesion, is among those seen.

    Images are the same if their files are byte-identical, or if their ids are equal and of one archive: of one dataset
    (but not of two lists of users' own files), or of HAM10000 and ISIC-2019, without `_downsampled` at the end.

    Args:
        images: A dataset's images: the columns id, group and sha256 (empty where it is not known).
        seen: Another's: the columns dataset, id, group and sha256.
        name: The dataset of `images`.

    Returns:
        str, with the index of `images`: "image" (the same), "group" (another of the group), or "".
    """
    archive = _archive(name)
    ids = set(_plain(seen["id"][seen["dataset"].map(_archive) == archive])) if archive else set()
    digests = set(seen["sha256"]) - {""}
    groups = set(seen["group"][seen["group"] != seen["id"]])
    same = _plain(images["id"]).isin(ids) | images["sha256"].isin(digests)
    found = np.select([same, images["group"].isin(groups)], ["image", "group"], "")
    return pd.Series(found, index=images.index, dtype=object)


def _archive(name: str) -> str:
    """The name within which ids are unique; "" for users' own lists, whose ids are paths."""
    if name in ("csv", "folder"):
        return ""
    return ARCHIVES.get(name, re.sub(r"_(64|128|224)$", "", name))


def _plain(ids: pd.Series) -> pd.Series:
    return ids.astype(str).str.removesuffix("_downsampled")


def _columns(table: Table, digests: Sequence[str | None] | None) -> pd.DataFrame:
    known = [""] * len(table.frame) if digests is None else [digest or "" for digest in digests]
    return table.frame[["id", "group"]].assign(sha256=known)


def _straddling(table: Table, parts: np.ndarray) -> pd.DataFrame:
    counts = pd.crosstab(table.frame["group"].astype(object), parts).reindex(columns=list(SPLITS), fill_value=0)
    counts = counts[(counts > 0).sum(axis=1) > 1].rename_axis(index="group", columns=None)
    order = counts.sum(axis=1).sort_values(ascending=False, kind="stable").index
    return counts.loc[order].reset_index()


def _images(table: Table, parts: np.ndarray, digests: Sequence[str | None] | None) -> pd.DataFrame:
    """Returns id, group, sha256, label and part of each image.

    The label is its class; multi-label all that it has, those that are not known with a question mark.
    """
    if table.multilabel:
        names = np.where(np.isnan(table.labels), [f"{name}?" for name in table.classes], table.classes)
        labels = [", ".join(row[has]) for row, has in zip(names, table.labels != 0, strict=True)]
    else:
        labels = [table.classes[label] for label in table.labels]
    return _columns(table, digests).assign(label=labels, part=parts).astype(object)


def _identical(table: Table, parts: np.ndarray, digests: Sequence[str | None] | None) -> pd.DataFrame:
    columns = ["digest", "ids", "labels", "parts", "straddles", "conflicting", "groups"]
    frame = _images(table, parts, digests)
    frame = frame[(frame["sha256"] != "") & frame["sha256"].duplicated(keep=False)]
    rows = []
    for digest, members in sorted(frame.groupby("sha256"), key=lambda pair: tuple(pair[1]["id"])):
        ids, labels, owners = (tuple(members[name]) for name in ("id", "label", "part"))
        rows.append((digest, ids, labels, owners, len({*owners}) > 1, len({*labels}) > 1, members["group"].nunique()))
    return pd.DataFrame(rows, columns=columns).astype({"straddles": bool, "conflicting": bool, "groups": np.int64})


def _near(table: Table, parts: np.ndarray, digests: Sequence | None, pixels: np.ndarray | None, distance: int):
    """Returns the pairs, without those of identical files."""
    hashed = np.empty((0, BITS // 64), dtype=np.uint64) if pixels is None else hashes(pixels)
    found, distances = pairs(hashed, distance)
    images = _images(table, parts, digests)
    a, b = (images.iloc[rows].reset_index(drop=True) for rows in found.T)
    frame = pd.DataFrame({"a": a["id"], "b": b["id"], "distance": distances})
    for what in ("group", "label"):
        frame[f"same_{what}"] = (a[what] == b[what]).astype(bool)
    frame = frame.assign(part_a=a["part"], part_b=b["part"])
    copies = ((a["sha256"] == b["sha256"]) & (a["sha256"] != "")).astype(bool)
    return frame[~copies].reset_index(drop=True)


Finding = tuple[str, int, str, str]
"""Severity, count, sentence and examples."""


def _group_finding(table: Table, parts: np.ndarray, straddling: pd.DataFrame) -> Finding:
    groups, count = table.frame["group"], len(straddling)
    if groups.is_unique:
        told = "No two images share a group: if patients or lesions have several images, the labels do not say so."
        return "look", 0, told, ""
    if not count:
        return "ok", 0, f"Each of the {groups.nunique():,} groups is in one part.", ""
    told = f"{_number(count, 'group is', 'groups are')} in more than one part: {_met(groups, parts)} have another image"
    return "leak", count, f"{told} of their group in train.", _some(straddling["group"])


def _file_finding(identical: pd.DataFrame, digests: Sequence[str | None] | None, parts: np.ndarray) -> Finding:
    known = sum(map(bool, digests or ()))
    if not known:
        return "not checked", 0, "Byte-identical files: their digests are not known.", ""
    of = "" if known == len(digests) else f" among the {known:,} whose digest is known"
    if identical.empty:
        return "ok", 0, f"No two files are byte-identical{of}.", ""
    cut, ungrouped = identical[identical["straddles"]], identical[identical["groups"] > 1]
    severity, told, shown = "ok", "each is in one group.", identical
    if len(cut):
        apart = f"{_number(len(cut), 'is', 'are')} in more than one part"
        severity, told, shown = "leak", f"{apart}, and {_met(digests, parts)} have a copy in train.", cut
    elif len(ungrouped):
        told = f"this split cuts none, but {len(ungrouped):,} with several groups may be cut by another."
        severity, shown = "look", ungrouped
    sets = f"{_number(len(identical), 'set', 'sets')} of byte-identical files"
    told = f"{sets}, {identical['ids'].map(len).sum():,} images{of}: {told}"
    return severity, len(identical), told, _some(shown["ids"])


def _conflict_finding(identical: pd.DataFrame) -> Finding | None:
    rows = identical[identical["conflicting"]]
    shown = [f"{'='.join(row.ids)} ({' / '.join(row.labels)})" for row in rows.itertuples()]
    told = f"{_number(len(rows), 'set', 'sets')} of byte-identical files with different labels."
    return ("look", len(rows), told, _some(shown)) if shown else None


def _near_finding(close: pd.DataFrame, distance: int | None) -> Finding:
    if distance is None:
        return "not checked", 0, "Near-duplicates: the images were not decoded, or not all are here.", ""
    within = f"within {distance} of {BITS} bits of their perceptual hash"
    if close.empty:
        return "ok", 0, f"No two different files look alike ({within}).", ""
    cut, apart = close[close["part_a"] != close["part_b"]], close[~close["same_group"]]
    unlike = (~close["same_label"]).sum()
    parts = f"{len(cut):,} in different parts, {len(apart):,} of different groups, {unlike:,} of different labels"
    told = f"{_number(len(close), 'pair', 'pairs')} of images look alike ({within}): {parts}."
    first = next(found for found in (cut, apart, close) if len(found))
    severity = "look" if len(cut) or len(apart) or unlike else "ok"
    return severity, len(close), told, _some(zip(first["a"], first["b"], strict=True))


def _met(keys: Sequence[str | None], parts: np.ndarray) -> str:
    images, met, share = leakage(keys, parts).loc["test"]
    return f"{met:,.0f} of {images:,.0f} test images ({100 * share:.1f} %)"


def _number(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _some(values: Iterable[str | Sequence[str]]) -> str:
    """The first few of what was found; ids that belong together with an equals sign."""
    listed = [value if isinstance(value, str) else "=".join(value) for value in values]
    return ", ".join(listed[:_EXAMPLES] + ["..."] * (len(listed) > _EXAMPLES))
