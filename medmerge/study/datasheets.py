"""What a study must know about its datasets, measured once and kept: counts, groups, copies, and what splits leak.

``results/<track>/data/<dataset>.json`` is a dataset's sheet, ``overlaps.json`` says which datasets share images. Pages
are drawn from these records, without images or labels.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medmerge import backbones, data, files
from medmerge.data import splits
from medmerge.data.audit import audit, leakage, shared
from medmerge.data.images import hash_row
from medmerge.data.reading import read_rows
from medmerge.data.table import Table
from medmerge.study import probes, records
from medmerge.study.inputs import home, resolve
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.records import RecordError

log = logging.getLogger(__name__)

FORMAT = 1
"""Counts changes of what a sheet holds or how it is computed."""

PAPER_FRACTIONS = {"isic2019": (0.6, 0.2, 0.2)}
"""Shares of the paper's random splits (section 3); 80/10/10 for all others."""


def check(p: Parameters) -> list[str]:
    """Names of the datasets that have no sheet yet.

    Raises:
        ParameterError: an unknown dataset, or a folder or file that is needed and not there.
        RecordError: a sheet was made with other parameters, or is damaged.
    """
    problems, todo = [], [name for name in _listed(p.datasets) if read(p, name) is None]
    for name, folder in _listed(p.datasets).items():
        if name not in data.DATASETS:
            problems.append(f"datasets: there is no dataset {name!r}; known are {data.known_names()}")
        elif name in todo and not resolve(folder).is_dir():
            problems.append(f"datasets: no folder {folder} for {name}, here or under $MEDMERGE_DATA")
    for name, file in _listed(p.digests).items():
        if name in todo and not resolve(file).is_file():
            problems.append(f"digests: no file {file} for {name}, here or under $MEDMERGE_DATA")
    if todo and backbones.is_path(p.base_weights) and not resolve(p.base_weights).is_file():
        problems.append(f"base_weights: no file {p.base_weights}, here or under $MEDMERGE_DATA")
    if problems:
        raise ParameterError("\n".join(problems))
    return todo


def run(p: Parameters) -> tuple[dict[str, dict], list[dict]]:
    """Make the sheets that are not there yet; returns all by dataset, and what each two datasets share.

    With all of them there neither images nor labels are needed.

    Raises:
        ParameterError, RecordError, DataError: as :func:`check`, or labels or images that cannot be read.
    """
    todo, tables = check(p), {}
    overlaps = read(p, "overlaps")
    if todo or overlaps is None:
        tables = {name: _load(p, name) for name in _listed(p.datasets)}
    for name in todo:
        log.info("%s: %d images listed, %d here", name, len(tables[name].table.frame), len(tables[name].pixels))
        _write(p, name, _sheet(p, tables[name]))
    if tables:
        _write(p, "overlaps", {"pairs": _overlaps(p, tables)})
    return {name: read(p, name) for name in _listed(p.datasets)}, read(p, "overlaps")["pairs"]


def read(p: Parameters, name: str) -> dict | None:
    """A sheet, or None if it was not made yet.

    Raises:
        RecordError: it cannot be read, or was made with other parameters.
    """
    path = _path(p, name)
    if not path.is_file():
        return None
    try:
        sheet = json.loads(path.read_bytes())
        there = sheet["definition"]
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path} is damaged ({error}); restore it, or remove it to measure again") from error
    if there != _definition(p, name):
        raise RecordError(f"{path} was measured with other parameters: {there}; remove it to measure again")
    return sheet


def _path(p: Parameters, name: str) -> Path:
    return home() / p.results / p.track / "data" / f"{name.replace(':', '-')}.json"


def _definition(p: Parameters, name: str) -> dict:
    values = {"dataset": name, "seeds": list(p.seeds), "image_size": p.image_size, "format": FORMAT}
    if name == "overlaps":
        return values | {"datasets": list(_listed(p.datasets))}
    return values | {"backbone": p.backbone, "base_data": p.base_data}


def _listed(values: list[str]) -> dict[str, str]:
    """``name=place`` entries as a dictionary."""
    pairs = [entry.partition("=") for entry in values]
    wrong = [name for name, sign, place in pairs if not (name and sign and place)]
    if wrong:
        raise ParameterError(f"datasets, digests: {wrong[0]!r} is not name=place, such as ham10k=ham10000")
    return {name: place for name, _, place in pairs}


def _write(p: Parameters, name: str, content: Mapping) -> None:
    sheet = {"definition": _definition(p, name), **content, "provenance": records.provenance()}
    files.write(_path(p, name), json.dumps(sheet, indent=1, ensure_ascii=False) + "\n")


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A dataset with whatever is known about its images.

    Attributes:
        table: all images that its label files list.
        part: those that are here, or None if none is.
        pixels: uint8 [M, S, S, 3], theirs.
        digests: of each file of the table, "" where it is not known.
        elsewhere: counts of a list of digests, where one is given: files without labels, and how many of these
            are among those with.
    """

    table: Table
    part: Table | None
    pixels: np.ndarray
    digests: list[str]
    elsewhere: dict[str, int] | None


def _load(p: Parameters, name: str) -> _Loaded:
    root = resolve(_listed(p.datasets)[name])
    table = data.load_table(name, root, missing="keep")
    part, pixels, known, elsewhere = None, np.empty((0, 0, 0, 3), dtype=np.uint8), {}, None
    if name in _listed(p.digests):
        rows, _ = read_rows(resolve(_listed(p.digests)[name]), ("id", "sha256"))
        labelled = rows["id"].isin(table.frame["id"])
        both = set(rows["sha256"][labelled]) & set(rows["sha256"][~labelled])
        elsewhere = {"unlabelled": int((~labelled).sum()), "files shared with unlabelled images": len(both)}
        known = dict(zip(rows["id"], rows["sha256"], strict=True))
    if table.frame["path"].notna().any():
        part = data.load_table(name, root, missing="drop")
        images = data.load_images(part, p.image_size)
        pixels, known = images.pixels, known | dict(zip(part.frame["id"], images.digests, strict=True))
    return _Loaded(table, part, pixels, [known.get(image, "") for image in table.frame["id"]], elsewhere)


def _sheet(p: Parameters, loaded: _Loaded) -> dict:
    table, digests = loaded.table, loaded.digests
    frame = table.frame
    sizes = frame["group"].value_counts()
    everywhere = np.full(len(frame), "train")
    found = audit(table, everywhere, digests=digests if any(digests) else None)
    return {
        "name": table.name,
        "listed": len(frame),
        "here": len(loaded.pixels),
        "labels": _fingerprint(table),
        "multilabel": table.multilabel,
        "classes": splits.count(table, everywhere)["train"].to_dict(),
        "official": frame["split"].value_counts().to_dict(),
        "groups": len(sizes),
        "images in groups of several": int(sizes[sizes > 1].sum()),
        "largest group": int(sizes.max()),
        "notes": list(table.notes),
        "identical": {
            "checked": sum(map(bool, digests)),
            "sets": len(found.identical),
            "files": int(found.identical["ids"].map(len).sum()),
            "sets of several groups": int((found.identical["groups"] > 1).sum()),
            "sets of several labels": int(found.identical["conflicting"].sum()),
        },
        "elsewhere": loaded.elsewhere,
        "leaks": _leaks(p, table, digests),
        "near": _near(loaded),
        "probes": [] if loaded.part is None else probes.scores(p, loaded.part, loaded.pixels),
    }


def _fingerprint(table: Table) -> str:
    hasher = hashlib.sha256()
    for row in table.frame.drop(columns=["path"]).astype(str).itertuples(index=False):
        hash_row(hasher, list(row))
    return hasher.hexdigest()


def _leaks(p: Parameters, table: Table, digests: list[str]) -> list[dict]:
    """For every way to split and every seed: the test images whose group, or whose file, is in train too."""
    rows, fractions = [], PAPER_FRACTIONS.get(table.name, (0.8, 0.1, 0.1))
    official = ["official"] if {"train", "test"} <= set(table.frame["split"].dropna()) else []
    for method in (*probes.METHODS, *official):
        for seed in p.seeds if method != "official" else p.seeds[:1]:
            parts = splits.split(table, method=method, fractions=fractions, seed=seed)
            groups = leakage(probes.shared_groups(table), parts).loc["test"]
            files = leakage(digests, parts).loc["test"] if any(digests) else None
            rows.append(
                {
                    "split": method,
                    "fractions": list(fractions),
                    "seed": seed,
                    "test": int(groups["images"]),
                    "groups": int(groups["shared"]),
                    "files": None if files is None else int(files["shared"]),
                }
            )
    return rows


def _near(loaded: _Loaded) -> dict | None:
    """Pairs of images that look nearly the same, among those that are here; byte-identical ones not counted."""
    part = loaded.part
    if part is None:
        return None
    known = dict(zip(loaded.table.frame["id"], loaded.digests, strict=True))
    digests = [known[image] for image in part.frame["id"]]
    pairs = audit(part, np.full(len(digests), "train"), digests=digests, pixels=loaded.pixels).near
    apart = pairs[~pairs["same_group"]]
    return {
        "pairs": len(pairs),
        "pairs of two groups": len(apart),
        "of them within 8 bits": int((apart["distance"] <= 8).sum()),
        "of them with two labels": int((~apart["same_label"]).sum()),
        "closest of two groups": apart[["a", "b", "distance"]].head(5).values.tolist(),
    }


def _overlaps(p: Parameters, tables: Mapping[str, _Loaded]) -> list[dict]:
    """For every two datasets that share anything: how much, and how much of random test images a source has seen."""
    rows = []
    for one in tables:
        for other in tables:
            a, b = tables[one], tables[other]
            if one == other or not len(found := shared(a.table, b.table, a.digests, b.digests)):
                continue
            kinds = found["shares"].value_counts()
            row = {"in": one, "of": other, "listed": len(b.table.frame)}
            row |= {kind: int(kinds.get(kind, 0)) for kind in ("image", "file", "group")}
            seen = b.table.frame["id"].isin(found["id"]).to_numpy()
            drawn = [_test(b.table, seed) for seed in p.seeds]
            rows.append(row | {"share of random test": float(np.mean([seen[test].mean() for test in drawn]))})
    return rows


def _test(table: Table, seed: int) -> np.ndarray:
    return (
        splits.split(table, method="random", fractions=PAPER_FRACTIONS.get(table.name, (0.8, 0.1, 0.1)), seed=seed)
        == "test"
    )
