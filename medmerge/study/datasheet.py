"""What a study must know about its datasets, measured once and kept: counts, groups, copies, and what splits leak.

``results/<track>/data/<dataset>.json`` is a dataset's sheet, ``overlaps.json`` says which datasets share images. Pages
are drawn from these records, without images or labels.
"""

import functools
import itertools
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medmerge import backbones, data, devices
from medmerge.data import splits
from medmerge.data.audit import audit, leakage, shared
from medmerge.data.reading import read_rows
from medmerge.data.table import Table, digest
from medmerge.study.measured import Measured, provenance
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.places import home, nothing_at, resolve
from medmerge.training import Protocol, Task, features

log = logging.getLogger(__name__)

FORMAT = 1
"""Counts changes of what a sheet holds or how it is computed."""

METHODS = ("random", "grouped")
PROBE_FRACTIONS = (0.8, 0.1, 0.1)
CLASSIFIERS = {"nearest neighbour": KNeighborsClassifier(1), "linear probe": LogisticRegression(max_iter=2000)}
"""The nearest neighbour finds a copy if there is one; a linear probe is what the paper's first phase trains."""

OVERLAPS = "overlaps"
"""Name of the record that says which datasets share images."""


def check(p: Parameters) -> None:
    """Refuse datasets that cannot be measured here and are not yet.

    Raises:
        ParameterError: an unknown dataset, or a folder or file that is needed and not there.
        RecordError: a sheet was made with other parameters, or is damaged.
    """
    folders = _listed(p.datasets)
    unknown = [name for name in folders if name not in data.DATASETS]
    problems = [f"datasets: there is no dataset {name!r}; known are {data.known_names()}" for name in unknown]
    todo = [name for name in folders if name not in unknown and _sheet(name).read(p) is None]
    for parameter, places in (("datasets", folders), ("digests", _listed(p.digests))):
        gone = [name for name in todo if name in places and not resolve(places[name]).exists()]
        problems += [f"{parameter}: {nothing_at(places[name], f'{name} in')}" for name in gone]
    if todo and backbones.is_path(p.base_weights) and not resolve(p.base_weights).is_file():
        problems.append(f"base_weights: {nothing_at(p.base_weights, 'file')}")
    if problems:
        raise ParameterError("\n".join(problems))


def state(p: Parameters) -> dict[str, Path | None]:
    """Where each sheet is, by dataset, and with ``overlaps`` what they share; None where one is not there.

    Raises:
        RecordError: as :func:`check`.
    """
    return {name: _sheet(name).state(p) for name in [*_listed(p.datasets), OVERLAPS]}


def run(p: Parameters) -> tuple[dict[str, dict], list[dict]]:
    """Make the sheets that are not there yet; returns all by dataset, and what each two datasets share.

    With all of them there neither images nor labels are needed.

    Raises:
        ParameterError, RecordError, DataError: as :func:`check`, or labels or images that cannot be read.
    """
    check(p)
    load = functools.cache(functools.partial(_load, p))
    sheets = {name: _sheet(name, load).run(p) for name in _listed(p.datasets)}
    return sheets, _sheet(OVERLAPS, load).run(p)["pairs"]


def _sheet(name: str, load: Callable[[str], "_Loaded"] | None = None) -> Measured[dict]:
    """The record of a dataset, or of what all of them share; ``load`` gives a dataset by name where it is measured."""

    def asked(p: Parameters) -> dict:
        values = {"dataset": name, "seeds": list(p.seeds), "image_size": p.image_size, "format": FORMAT}
        if name == OVERLAPS:
            return values | {"datasets": list(_listed(p.datasets))}
        return values | {"backbone": p.backbone, "base_data": p.base_data}

    def measure(p: Parameters) -> dict:
        if name == OVERLAPS:
            content = {"pairs": _overlaps(p, {one: load(one) for one in _listed(p.datasets)})}
        else:
            content = _measured(p, load(name))
        return {"definition": asked(p), **content, "provenance": provenance()}

    return Measured(
        where=lambda p: home() / p.results / p.track / "data" / f"{name.replace(':', '-')}.json",
        asked=asked,
        measure=measure,
        definition=lambda sheet: sheet["definition"],
        load=lambda path: json.loads(path.read_bytes()),
    )


def _listed(values: list[str]) -> dict[str, str]:
    """``name=place`` entries as a dictionary."""
    pairs = [entry.partition("=") for entry in values]
    if wrong := [entry for entry, pair in zip(values, pairs, strict=True) if not all(pair)]:
        raise ParameterError(f"datasets, digests: {wrong[0]!r} is not name=place, such as ham10k=ham10000")
    return {name: place for name, _, place in pairs}


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


def _measured(p: Parameters, loaded: _Loaded) -> dict:
    table, frame, digests = loaded.table, loaded.table.frame, loaded.digests
    everywhere, sizes = np.full(len(frame), "train"), frame["group"].value_counts()
    same = audit(table, everywhere, digests=digests if any(digests) else None).identical
    return {
        "name": table.name,
        "listed": len(frame),
        "here": len(loaded.pixels),
        "labels": digest(frame.drop(columns=["path"]).astype(str).itertuples(index=False)),
        "multilabel": table.multilabel,
        "classes": splits.count(table, everywhere)["train"].to_dict(),
        "official": frame["split"].value_counts().to_dict(),
        "groups": len(sizes),
        "images in groups of several": int(sizes[sizes > 1].sum()),
        "notes": list(table.notes),
        "identical": {
            "checked": sum(map(bool, digests)),
            "sets": len(same),
            "files": int(same["ids"].map(len).sum()),
            "sets of several groups": int((same["groups"] > 1).sum()),
            "sets of several labels": int(same["conflicting"].sum()),
        },
        "elsewhere": loaded.elsewhere,
        "leaks": _leaks(p, table, digests),
        "near": None if loaded.part is None else _near(loaded),
        "probes": [] if loaded.part is None else probe_scores(p, loaded.part, loaded.pixels),
    }


def _fractions(table: Table) -> tuple[float, float, float]:
    """Shares of the paper's random splits (section 3)."""
    return (0.6, 0.2, 0.2) if table.name == "isic2019" else (0.8, 0.1, 0.1)


def _leaks(p: Parameters, table: Table, digests: list[str]) -> list[dict]:
    """For every way to split and every seed: the test images whose group, or whose file, is in train too."""
    rows, fractions = [], _fractions(table)
    official = {"train", "test"} <= set(table.frame["split"].dropna())
    for method, seed in [*itertools.product(METHODS, p.seeds), *[("official", p.seeds[0])][: int(official)]]:
        parts = splits.split(table, method=method, fractions=fractions, seed=seed)
        groups = leakage(shared_groups(table), parts).loc["test"]
        files = int(leakage(digests, parts).loc["test", "shared"]) if any(digests) else None
        rows.append(
            {"split": method, "fractions": list(fractions), "seed": seed}
            | {"test": int(groups["images"]), "groups": int(groups["shared"]), "files": files}
        )
    return rows


def _near(loaded: _Loaded) -> dict:
    """Pairs of images that look nearly the same, among those that are here; byte-identical ones not counted."""
    known = dict(zip(loaded.table.frame["id"], loaded.digests, strict=True))
    digests = [known[image] for image in loaded.part.frame["id"]]
    pairs = audit(loaded.part, np.full(len(digests), "train"), digests=digests, pixels=loaded.pixels).near
    apart = pairs[~pairs["same_group"]]
    close = int((apart["distance"] <= 8).sum())
    return {"pairs": len(pairs), "pairs of two groups": len(apart), "of them within 8 bits": close}


def _overlaps(p: Parameters, tables: Mapping[str, _Loaded]) -> list[dict]:
    """For every two datasets that share anything: how much, and how much of random test images a source has seen."""
    rows = []
    for one, other in itertools.permutations(tables, 2):
        a, b = tables[one], tables[other]
        found = shared(a.table, b.table, a.digests, b.digests)
        if found.empty:
            continue
        seen, fractions = b.table.frame["id"].isin(found["id"]).to_numpy(), _fractions(b.table)
        drawn = [splits.split(b.table, method="random", fractions=fractions, seed=seed) == "test" for seed in p.seeds]
        rows.append(
            {"in": one, "of": other, "listed": len(b.table.frame)}
            | {kind: int((found["shares"] == kind).sum()) for kind in ("image", "file", "group")}
            | {"share of random test": float(np.mean([seen[test].mean() for test in drawn]))}
        )
    return rows


def probe_scores(p: Parameters, table: Table, pixels: np.ndarray) -> list[dict]:
    """Macro F1 of the classifiers on a frozen network's features, for both ways to split and every seed.

    Args:
        p: ``backbone`` and ``base_weights``, a network that has not seen the images; ``seeds``, one draw each.
        table: single-label, its images all here. One with fewer than 5 % of them in groups of several is left out.
        pixels: uint8 ``[N, S, S, 3]``, aligned with it.

    Returns:
        A row each: ``probe``, ``split``, ``seed``, ``macro_f1``.
    """
    if table.multilabel or (shared_groups(table) != "").mean() < 0.05:
        return []
    inputs, labels, rows = _features(p, table, pixels), table.labels, []
    for method, seed in itertools.product(METHODS, p.seeds):
        parts = splits.split(table, method=method, fractions=PROBE_FRACTIONS, seed=seed)
        train, test = parts == "train", parts == "test"
        for name, classifier in CLASSIFIERS.items():
            fitted = make_pipeline(StandardScaler(), classifier).fit(inputs[train], labels[train])
            score = f1_score(labels[test], fitted.predict(inputs[test]), average="macro", zero_division=0)
            rows.append({"probe": name, "split": method, "seed": seed, "macro_f1": float(score)})
        log.info("%s: probes on the %s split of seed %d done", table.name, method, seed)
    return rows


def shared_groups(table: Table) -> np.ndarray:
    """The group of each image, str ``[N]``, empty for an image that is a group of its own."""
    frame = table.frame
    return frame["group"].where(frame["group"].duplicated(keep=False), "").to_numpy(dtype=object)


def _features(p: Parameters, table: Table, pixels: np.ndarray) -> np.ndarray:
    """float32 ``[N, F]``: the images through the base network, frozen."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    samples = data.Samples(images, torch.arange(len(pixels)), torch.from_numpy(table.labels), tuple(table.frame["id"]))
    task = Task(samples, samples, len(table.classes), protocol=Protocol(device=p.device, precision=p.precision))
    with devices.seeded(devices.choose_device("cpu"), 0):
        weights = resolve(p.base_weights) if backbones.is_path(p.base_weights) else p.base_weights
        network = backbones.backbone(p.backbone, weights, p.image_size).to(task.device)
    return features(network, samples, task).inputs.numpy()
