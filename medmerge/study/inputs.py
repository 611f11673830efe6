"""What runs read: the target's images and the sources' weights, checked before anything starts, and whether they met.

A source that was trained on images of the target's test part has seen the answers. Weights that a run saves carry the
list of the images that they were trained on; it is compared with every target that they are taken to.
"""

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path

import pandas as pd
from safetensors import SafetensorError, safe_open
from torch import nn

from medmerge import backbones, data, devices
from medmerge.backbones import backbone, state_sha256
from medmerge.data import split_files
from medmerge.data.audit import hidden, met
from medmerge.data.table import SPLITS
from medmerge.study.params import SEED, Parameters, of_seed
from medmerge.study.places import home, nothing_at, resolve, weights
from medmerge.study.records import Record, RecordError

log = logging.getLogger(__name__)

OWN = ("csv", "folder")
"""Datasets of one's own, of whose images nothing is known beforehand."""


def missing(p: Parameters, sources: Iterable[str]) -> list[str]:
    """A line for each thing that the parameters name and that is not there: device, weights, folders, files."""
    problems = []
    try:
        devices.choose_device(p.device)
    except ValueError as error:
        problems.append(str(error))
    for name, given in weights(p).items():
        parameter = {p.base_data: "base_weights", p.source_data: "source_weights"}.get(name, "more_weights")
        if name in sources and backbones.is_path(given):
            files = [file for seed in p.seeds if not resolve(file := of_seed(given, seed)).is_file()]
            problems += [f"{parameter}: {nothing_at(file, 'file')}; {_maker(given)}" for file in files[:1]]
        elif name in sources and given not in ("random", "zeros"):
            try:
                backbones.check_weights(p.backbone, given)
            except ValueError as error:
                problems.append(f"{parameter}: {error}")
    for name in ("target_root", "exclude_root", "source_root", "target_labels", "split_file"):
        path, dataset = getattr(p, name), {"target_root": p.target_data, "exclude_root": p.exclude_data}.get(name)
        lost = nothing_at(path) if path and not resolve(path).exists() else ""
        wanted = _wanted(dataset) if dataset and (lost or not path) else ""
        if lost or wanted:
            problems.append(f"{name}: {'. '.join(filter(None, (lost, wanted)))}")
    return problems + _inside(p)


def _maker(weights: str) -> str:
    """How to come by weights that are not here: the parameter file of the project that saves them, if one does."""
    for path in sorted(home().glob("params/*/*.yaml")):
        if re.search(rf"save_weights\W+{re.escape(weights)}", path.read_text(encoding="utf-8", errors="replace")):
            return f"`medmerge run {path.relative_to(home())}` makes it"
    return "give the path of a file that is there, or imagenet to download torchvision's"


def _wanted(dataset: str) -> str:
    """What the folder of a dataset must hold and where to get it, in the dataset's own words; nothing of one's own."""
    try:
        if dataset not in OWN and not dataset.startswith("synthetic:"):
            data.load_table(dataset)
    except data.DataError as error:
        return str(error)
    return ""


def _inside(p: Parameters) -> list[str]:
    """A line for each place that is to be written in a dataset's folder."""
    problems = []
    for name in filter(partial(getattr, p), ("results", "save_weights")):
        place = home() / Path(getattr(p, name)).expanduser()
        for parameter in filter(partial(getattr, p), ("target_root", "exclude_root", "source_root")):
            root = resolve(getattr(p, parameter))
            if place.resolve().is_relative_to(root.resolve()):
                problems.append(f"{name}: {place} is in {parameter} ({root}), which is only read; name a place outside")
    return problems


def check_inputs(p: Parameters, sources: Iterable[str], done: Iterable[Record]) -> list[str]:
    """Read the labels, look at a few images, draw the split and load ``sources``.

    Args:
        sources: names of the sources that are needed (``base_data``, ``source_data``).
        done: finished runs of this study, which must have started from the same weights.

    Returns:
        Warnings: a sentence for whatever is odd about one's own labels and about a few images, and for each source
        that has seen images of the target.

    Raises:
        DataError, CheckpointError, RecordError: what a run would end with, at the price of seconds.
    """
    table, drawn = data.load_table(p.target_data, **_where(p)), {"fractions": tuple(p.fractions), "seed": p.split_seed}
    if p.split == "file":
        parts = split_files.apply(table, resolve(p.split_file))
    else:
        parts = data.split(table, method=p.split, **drawn)
    check_sources(p, sources, done)
    images = table.frame[["id", "group"]].assign(sha256="", split=parts)
    met = [overlap_sentence(name, found) for name, found in overlap(p, images, sources).items() if _meets(found)]
    own = table.notes if p.target_data in OWN else ()
    return [*(f"{p.target_data}: {note}" for note in (*own, *data.glance(table))), *met]


def load_data(p: Parameters, done: Iterable[Record] = ()) -> data.Dataset:
    """The target dataset, split and decoded, after a check that the finished runs of its study saw the same."""
    dataset = data.load(
        p.target_data,
        **_where(p),
        image_size=p.image_size,
        resize=p.resize,
        split=p.split,
        fractions=tuple(p.fractions),
        split_seed=p.split_seed,
        split_file=resolve(p.split_file) if p.split_file else None,
        group_identical=p.group_identical,
    )
    for record in done:
        if record.run["data"]["fingerprint"] != dataset.fingerprint:
            raise RecordError(
                f"{record.folder} was computed on other images, labels or splits than are here now; give this "
                "study another `pair` name, or restore the data"
            )
    return dataset


def _where(p: Parameters) -> dict:
    """What :func:`~medmerge.data.load_table` needs to know about the target."""
    return {
        "root": resolve(p.target_root) if p.target_root else None,
        "labels": str(resolve(p.target_labels)) if p.target_labels else None,
        "missing": p.target_missing,
        "exclude": _excluded(p),
        "uncertain": p.target_uncertain,
        "blank": p.target_blank,
    }


def _excluded(p: Parameters) -> Collection[str]:
    """Ids of the target's images to leave out: those of a dataset, or with "csv" those that a file lists."""
    if not p.exclude_data:
        return ()
    root = resolve(p.exclude_root) if p.exclude_root else None
    return data.read_ids(root) if p.exclude_data == "csv" else data.listed_ids(p.exclude_data, root)


def load_source(p: Parameters, name: str, seed: int) -> nn.Module:
    """The backbone trained on ``name`` (``base_data``, ``source_data`` or one of ``more_data``).

    A random one depends on the seed and on which of the sources it is.
    """
    given, number = weights(p, seed)[name], list(weights(p)).index(name)
    with devices.seeded(devices.choose_device("cpu"), seed, *((number,) if number else ())):
        return backbone(p.backbone, resolve(given) if backbones.is_path(given) else given, p.image_size)


def check_sources(p: Parameters, sources: Iterable[str], done: Iterable[Record]) -> None:
    """Load every source, so that none fails hours later, and compare it with what finished runs started from."""
    first: dict[str, str] = {}
    for name in sorted(sources):
        fixed = backbones.is_path(weights(p)[name]) and SEED not in weights(p)[name]
        prints = {seed: state_sha256(load_source(p, name, seed)) for seed in (p.seeds[:1] if fixed else p.seeds)}
        if (twin := first.setdefault(next(iter(prints.values())), name)) != name:
            log.warning("WARNING: %s and %s are the same weights: there is nothing to choose between", twin, name)
        for record in done:
            there, seed = record.run["sources"].get(name), p.seeds[0] if fixed else record.run["seed"]
            if there and there != prints.get(seed, there):
                raise RecordError(
                    f"{record.folder} started from other weights of {name} than are here now; give this study another "
                    "`pair` name, or restore the weights"
                )


def images_list(weights: Path) -> Path:
    """Where the list of the images that weights were trained on lies: beside them."""
    return weights.with_suffix(".images.csv")


def overlap(p: Parameters, images: pd.DataFrame, sources: Iterable[str]) -> dict[str, dict]:
    """How many of the target's images each source has seen in its own training or validation part.

    Args:
        images: the target's, with the columns id, group, sha256 (empty: not known) and split.

    Returns:
        By source ``{"images": {"train": n, "val": n, "test": n}, "groups": {...}, "allowed": bool}``: the same image,
        or another of the same patient or lesion. ``{"unknown": reason}`` where it cannot be known which images a
        medical source has seen. A source without any image list or dataset of ours (ImageNet) is left out.
    """
    found = {}
    for name in sorted(sources):
        seen = _seen(p, name)
        if isinstance(seen, str):
            found[name] = {"unknown": seen}
        elif seen is not None:
            kinds, alike = met(images, seen, p.target_data), hidden(p.target_data, seen["dataset"])
            counts = pd.crosstab(kinds, images["split"].to_numpy()).reindex(index=["image", "group"], columns=SPLITS)
            by_kind = counts.fillna(0).astype(int).T.to_dict()
            found[name] = {"images": by_kind["image"], "groups": by_kind["group"], "allowed": p.allow_overlap}
            if alike and not (kinds != "").any():
                words = f"{' and '.join(alike)} and {p.target_data} hold images of one archive, named anew"
                found[name] = {"unknown": words}
    return found


def overlap_sentence(name: str, found: Mapping) -> str:
    """What :func:`overlap` found about one source, in words."""
    parts = [
        f"{found['images'][part]:,} {part} images that the source has seen, and {found['groups'][part]:,} more of "
        "patients or lesions that it has seen"
        for part in SPLITS
        if found["images"][part] or found["groups"][part]
    ]
    scored = any(found[kind][part] for kind in ("images", "groups") for part in ("val", "test"))
    worth = " Scores on them say less than they seem to." if scored else ""
    return (
        f"{name}: the target shares images with this source's training data: {'; '.join(parts)}.{worth} Leave them out "
        "(exclude_data), or say that they are meant (allow_overlap: true)"
    )


def warn_of_overlap(found: Mapping[str, Mapping]) -> None:
    """Log a warning for every source that has seen target images and was not meant to, or was and has not."""
    for name, one in found.items():
        if _meets(one):
            log.warning("WARNING: %s", overlap_sentence(name, one))
        elif one.get("allowed") and not _shared(one):
            log.warning("WARNING: allow_overlap: true, but the target holds no image that %s has seen", name)


def _meets(found: Mapping) -> bool:
    return "unknown" not in found and not found["allowed"] and _shared(found)


def _shared(found: Mapping) -> bool:
    return any(found["images"].values()) or any(found["groups"].values())


def _seen(p: Parameters, name: str) -> pd.DataFrame | str | None:
    """The images that a source was trained on, or why they are not known, or None where it is no dataset of ours."""
    found = [_seen_by(p, name, given) for given in dict.fromkeys(weights(p, seed)[name] for seed in p.seeds)]
    unknown = [one for one in found if not isinstance(one, pd.DataFrame)]
    return unknown[0] if unknown else pd.concat(found).drop_duplicates(ignore_index=True)


def _seen_by(p: Parameters, name: str, given: str) -> pd.DataFrame | str | None:
    origin = ""
    if backbones.is_path(given):
        path = resolve(given)
        origin = _trained_on(path)
        if images_list(path).is_file():
            return _read_list(images_list(path), origin)
    of_source = name == p.source_data
    if name in data.DATASETS and name not in OWN and of_source and p.source_root:
        frame = data.load_table(name, resolve(p.source_root), missing="keep").frame
        return frame[["id", "group"]].assign(dataset=name, sha256="")
    if name not in data.DATASETS and not origin:
        return None
    more = ", and source_root does not say where its dataset is" if of_source and not p.source_root else ""
    return f"the weights{f', trained on {origin},' if origin else ''} come without a list of their images{more}"


def _read_list(path: Path, origin: str) -> pd.DataFrame | str:
    """The images of a list but those of test parts, or why they are not known."""
    try:
        seen = pd.read_csv(path, dtype=str, keep_default_na=False)
        learnt = seen[seen["split"] != "test"][["dataset", "id", "group", "sha256"]]
    except (ValueError, KeyError) as error:
        return f"{path.name} cannot be read ({error})"
    if origin and origin not in set(seen["dataset"]):
        return f"{path.name} is of other weights: it lists no image of {origin}, which these were trained on"
    return learnt


def _trained_on(path: Path) -> str:
    """The dataset that weights of ours name in their header; empty for any others."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("trained_on", "")
    except (OSError, SafetensorError):
        return ""


def learnt_from(p: Parameters, sources: Iterable[str]) -> pd.DataFrame:
    """The images that sources were trained on, as far as they are known, for the list of a network made from them.

    Returns:
        The columns dataset, id, group, sha256 and split ("source").
    """
    columns = ["dataset", "id", "group", "sha256"]
    found = [seen for name in sorted(sources) if isinstance(seen := _seen(p, name), pd.DataFrame)]
    seen = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns, dtype=str)
    return seen[columns].drop_duplicates(ignore_index=True).assign(split="source")
