"""From parameters to records: what is to run, what has run, and one run from its images to its folder."""

import dataclasses
import difflib
import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch import nn

from medmerge import backbones, data, devices, evaluation, records
from medmerge.approaches import APPROACHES
from medmerge.backbones import backbone, save_backbone, state_sha256
from medmerge.params import ParameterError, Parameters
from medmerge.records import Record, RecordError
from medmerge.training import Protocol, Task, predict

log = logging.getLogger(__name__)

PROTOCOL = 1
"""Counts changes of meaning: of a default, or of how a parameter is used. Part of what defines a run."""

BACKBONE = Path("checkpoint", "backbone.safetensors")
"""The trained backbone, in a run's folder; git ignores it."""

_COMMON = (
    *("target_data", "target_missing", "exclude_data", "split", "fractions", "split_seed", "backbone", "image_size"),
    *("batch_size", "ft_epochs", "ft_lr", "weight_decay", "select", "precision"),
)


@dataclass(frozen=True)
class Row:
    """A row of the paper's Table 1: an approach and what its sources were trained on."""

    approach: str
    sources: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its folder, such as ``"lp_ft-ham10k"``."""
        return "-".join((self.approach, *self.sources))

    @property
    def title(self) -> str:
        return APPROACHES[self.approach].title


def rows(p: Parameters) -> list[Row]:
    """The rows that the parameters ask for: merging approaches once, the others from each source."""
    sources = [p.base_data, *([p.source_data] if p.source_data else [])]
    return [
        Row(name, names)
        for name in p.approaches
        for names in ([tuple(sources)] if APPROACHES[name].merges else [(source,) for source in sources])
    ]


def folder(p: Parameters, row: Row, seed: int) -> Path:
    """Where a run's record lies: ``results/<track>/<pair>/<backbone>/<row>/seed<k>``."""
    return home() / p.results / p.track / p.pair / p.backbone / row.name / f"seed{seed}"


def definition(p: Parameters, row: Row, seed: int) -> dict:
    """The parameters that a run's numbers depend on; paths and devices are not among them."""
    read = [name for name in Parameters.model_fields if name in {*_COMMON, *APPROACHES[row.approach].reads}]
    return {"approach": row.approach, "sources": list(row.sources), "seed": seed} | {n: getattr(p, n) for n in read}


def definition_hash(values: dict) -> str:
    """SHA-256 over a definition. Defaults are left out, so that a new parameter leaves old records finished."""
    fields = Parameters.model_fields
    chosen = {name: value for name, value in values.items() if name not in fields or value != fields[name].default}
    return hashlib.sha256(json.dumps([PROTOCOL, chosen], sort_keys=True).encode()).hexdigest()


def finished(p: Parameters, row: Row, seed: int) -> Record | None:
    """The record of a run, if it is finished.

    Raises:
        RecordError: its folder holds a run of another definition; the message names the first difference.
    """
    where, wanted = folder(p, row, seed), definition(p, row, seed)
    try:
        record = records.read(where)
    except FileNotFoundError:
        return None
    if record.run["hash"] != definition_hash(wanted):
        there = record.run["definition"]
        names = [name for name in {**wanted, **there} if wanted.get(name) != there.get(name)]
        what = f"{names[0]} is {there.get(names[0])!r} there and {wanted.get(names[0])!r} here" if names else "protocol"
        raise RecordError(
            f"{where} holds a finished run of another definition: {what}. Give this one another `pair` name, or move "
            "that folder away"
        )
    return record


def check(p: Parameters) -> list[tuple[Row, int]]:
    """What is left to run, after a check that it can: names are known, files are there, so is the device.

    Raises:
        ParameterError: with a line for each thing that is wrong or missing.
    """
    problems = [_unknown("approaches", name, list(APPROACHES)) for name in p.approaches if name not in APPROACHES]
    if p.backbone not in backbones.names():
        problems.append(_unknown("backbone", p.backbone, backbones.names()))
    for name in ("target_data", "exclude_data") if p.exclude_data else ("target_data",):
        if getattr(p, name) not in data.DATASETS:
            problems.append(_unknown(name, getattr(p, name), list(data.DATASETS)))
    if not p.source_data and any(APPROACHES[name].merges for name in p.approaches if name in APPROACHES):
        problems.append("approaches: medmerge merges two sources; give source_data and source_weights")
    todo = [] if problems else [(row, seed) for seed in p.seeds for row in rows(p) if not finished(p, row, seed)]
    if todo:
        problems = _missing(p, {source for row, _ in todo for source in row.sources})
    if problems:
        raise ParameterError("\n".join(problems))
    return todo


def _missing(p: Parameters, sources: set[str]) -> list[str]:
    problems, places = [], f"here or under $MEDMERGE_DATA ({os.environ.get('MEDMERGE_DATA')})"
    try:
        devices.choose_device(p.device)
    except ValueError as error:
        problems.append(str(error))
    for name, weights in (("base", p.base_weights), ("source", p.source_weights)):
        if getattr(p, f"{name}_data") not in sources:
            continue
        if backbones.is_path(weights) and not resolve(weights).is_file():
            step = "run the source notebook first" if name == "source" else "give a path, or imagenet to download"
            problems.append(f"{name}_weights: no file {weights} {places}; {step}")
        elif not backbones.is_path(weights) and weights not in ("random", "zeros"):
            try:
                backbones.check_weights(p.backbone, weights)
            except ValueError as error:
                problems.append(f"{name}_weights: {error}")
    for name in ("target_root", "exclude_root"):
        dataset = getattr(p, name.replace("root", "data"))
        if dataset and not dataset.startswith("synthetic:") and not getattr(p, name):
            problems.append(f"{name}: {dataset} needs the folder that it was unpacked to")
    for name in ("target_root", "exclude_root", "target_labels"):
        path = getattr(p, name)
        if path and not resolve(path).exists():
            problems.append(f"{name}: no {path} {places}")
    return problems


def run(p: Parameters) -> list[Record]:
    """Run what is not finished, and return the records of all rows and seeds that ``p`` asks for, in that order.

    With everything finished neither images nor weights are needed.

    Raises:
        ParameterError, DataError, CheckpointError: before any training starts.
        RecordError: finished runs of this study were computed from other images or weights.
    """
    todo = check(p)
    if todo:
        dataset = load_data(p)
        _check_sources(p, {source for row, _ in todo for source in row.sources})
        for row, seed in todo:
            log.info("%s from %s, seed %d", row.title, " + ".join(row.sources), seed)
            run_row(p, row, seed, dataset)
    if p.save_weights:
        _share(p, replace=bool(todo))
    return [finished(p, row, seed) for row in rows(p) for seed in p.seeds]


def check_inputs(p: Parameters, todo: list[tuple[Row, int]]) -> None:
    """Read the labels, draw the split and load the sources that ``todo`` needs; images are not decoded.

    Raises:
        DataError, CheckpointError, RecordError: as :func:`run`, at the price of seconds.
    """
    table = data.load_table(p.target_data, **_where(p))
    data.split(table, method=p.split, fractions=tuple(p.fractions), seed=p.split_seed)
    _check_sources(p, {source for row, _ in todo for source in row.sources})


def _where(p: Parameters) -> dict:
    """What :func:`~medmerge.data.load_table` needs to know about the target."""
    root = resolve(p.exclude_root) if p.exclude_root else None
    return {
        "root": resolve(p.target_root) if p.target_root else None,
        "labels": str(resolve(p.target_labels)) if p.target_labels else None,
        "missing": p.target_missing,
        "exclude": data.listed_ids(p.exclude_data, root) if p.exclude_data else (),
    }


def load_data(p: Parameters) -> data.Dataset:
    """The target dataset, split and decoded, after a check that finished runs of this study saw the same."""
    dataset = data.load(
        p.target_data,
        **_where(p),
        image_size=p.image_size,
        split=p.split,
        fractions=tuple(p.fractions),
        split_seed=p.split_seed,
    )
    for row in rows(p):
        for seed in p.seeds:
            record = finished(p, row, seed)
            if record and record.run["data"]["fingerprint"] != dataset.fingerprint:
                raise RecordError(
                    f"{record.folder} was computed on other images, labels or splits than are here now; give this "
                    "study another `pair` name, or restore the data"
                )
    return dataset


def _check_sources(p: Parameters, sources: set[str]) -> None:
    """Load every source, so that none fails hours later, and compare it with what finished runs started from."""
    done = [record for row in rows(p) for seed in p.seeds if (record := finished(p, row, seed))]
    for name in sorted(sources):
        fixed = backbones.is_path(p.base_weights if name == p.base_data else p.source_weights)
        prints = {}
        for seed in p.seeds[:1] if fixed else p.seeds:
            prints[seed] = state_sha256(load_source(p, name, seed))
        for record in done:
            there = record.run["sources"].get(name)
            if there and there != prints[p.seeds[0] if fixed else record.run["seed"]]:
                raise RecordError(
                    f"{record.folder} started from other weights of {name} than are here now; give this study another "
                    "`pair` name, or restore the weights"
                )


def run_row(p: Parameters, row: Row, seed: int, dataset: data.Dataset) -> Record:
    """One run: load the sources, train, test once, write the record."""
    where, defined = folder(p, row, seed), definition(p, row, seed)
    approach = APPROACHES[row.approach]
    sources = [load_source(p, name, seed) for name in row.sources]
    prints = {name: state_sha256(source) for name, source in zip(row.sources, sources, strict=True)}
    protocol = Protocol(**{f.name: getattr(p, f.name) for f in dataclasses.fields(Protocol)})
    key = json.dumps([definition_hash(defined), dataset.fingerprint, prints])
    task = Task(dataset.train, dataset.val, len(dataset.classes), seed, protocol, where / "checkpoint", key)
    options = {name: getattr(p, name) for name in approach.settings}
    outcome = approach.run(sources if approach.merges else sources[0], task, **options)

    probabilities = predict(outcome.model, dataset.test, task)
    labels = dataset.test.labels.numpy()
    content = {
        "definition": defined,
        "hash": definition_hash(defined),
        "row": {"approach": row.approach, "title": row.title, "sources": list(row.sources)},
        "seed": seed,
        "parameters": p.model_dump(),
        "data": {
            "name": dataset.name,
            "classes": list(dataset.classes),
            "counts": dataset.counts.to_dict(),
            "fingerprint": dataset.fingerprint,
            "notes": list(dataset.notes),
        },
        "sources": prints,
        "metrics": evaluation.metrics(labels, probabilities, dataset.classes),
        "cost": task.cost,
        "device": devices.describe(task.device),
        "precision": devices.choose_precision(p.precision, task.device),
        "provenance": records.provenance(),
    }
    predictions = pd.DataFrame({"id": dataset.test.ids, "label": [dataset.classes[k] for k in labels]})
    for k, name in enumerate(dataset.classes):
        predictions[f"p_{name}"] = probabilities[:, k]
    weights = {name: w.numpy() for name, w in outcome.kernel_weights.items()}
    save_backbone(outcome.model.backbone, where / BACKBONE, p.backbone, trained_on=p.target_data)
    record = records.write(where, content, pd.DataFrame(task.history), predictions, weights)
    for checkpoint in task.checkpoints.glob("*.pt"):
        checkpoint.unlink()
    return record


def load_source(p: Parameters, name: str, seed: int) -> nn.Module:
    """The backbone trained on ``name`` (``base_data`` or ``source_data``).

    A random one depends on the seed and on which of the two it is.
    """
    base = name == p.base_data
    weights = p.base_weights if base else p.source_weights
    with devices.seeded(devices.choose_device("cpu"), seed, *(() if base else (1,))):
        return backbone(p.backbone, resolve(weights) if backbones.is_path(weights) else weights)


def _share(p: Parameters, replace: bool) -> None:
    """Copy the trained backbone, which lies beside the record of the only run, to where ``save_weights`` says."""
    path = folder(p, rows(p)[0], p.seeds[0]) / BACKBONE
    target = home() / Path(p.save_weights).expanduser()
    if path.is_file() and (replace or not target.is_file()):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        shutil.copyfile(path, partial)
        partial.replace(target)
    elif not target.is_file():
        log.warning("save_weights: this finished run's network is not here; to train again, move its record away")


def home() -> Path:
    """The project's folder: the nearest one from here upwards that holds ``_config.yml``, else the working folder."""
    here = Path.cwd()
    return next((path for path in (here, *here.parents) if (path / "_config.yml").is_file()), here)


def resolve(path: str) -> Path:
    """A path of the parameters: absolute, or from the project's folder, or from ``$MEDMERGE_DATA``."""
    given = Path(os.path.expandvars(path)).expanduser()
    places = [home() / given]
    if "MEDMERGE_DATA" in os.environ:
        places.append(Path(os.environ["MEDMERGE_DATA"]) / given)
    return next((place for place in places if place.exists()), places[-1])


def _unknown(parameter: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 3)
    return f"{parameter}: unknown {name!r}; " + (f"did you mean {' or '.join(near)}?" if near else f"known: {known}")
