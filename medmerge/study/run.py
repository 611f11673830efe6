"""From parameters to records: what has run, what can run, and one run from its images to its folder."""

import contextlib
import dataclasses
import functools
import json
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pandas as pd

from medmerge import backbones, data, devices, files
from medmerge.approaches import APPROACHES, FINE_TUNED
from medmerge.approaches.ingredients import PARTS
from medmerge.approaches.paper import Outcome, classifier
from medmerge.backbones import state_sha256
from medmerge.data import split_files
from medmerge.data.table import SPLITS
from medmerge.progress import Progress, duration
from medmerge.saving import load, save, save_learnt
from medmerge.stats import evaluation
from medmerge.study import inputs, records
from medmerge.study.definitions import (
    MERGE,
    MODEL,
    Row,
    definition,
    definition_hash,
    epochs,
    finished,
    folder,
    needed,
    part,
    reads,
    rows,
    split_path,
)
from medmerge.study.measured import provenance
from medmerge.study.params import ParameterError, Parameters, meant, of_role, of_seed
from medmerge.study.places import home
from medmerge.study.records import Record, RecordError
from medmerge.training import Protocol, Task, TrainingError, predict, seconds_per_image

log = logging.getLogger(__name__)

LOCK = ".lock"
"""File in a run's folder while a process computes it."""


def check(
    p: Parameters, only: Collection[tuple[Row, int]] | None = None, coming: Collection[str] = ()
) -> list[tuple[Row, int]]:
    """What is left to run, after a check that it can: names are known, files are there, so is the device.

    Args:
        only: rows and seeds to look at; all by default.
        coming: names of sources whose weights need not be there yet.

    Raises:
        ParameterError: with a line for each thing that is wrong or missing.
    """
    if problems := impossible(p):
        raise ParameterError("\n".join(problems))
    asked = [(row, seed) for seed in p.seeds for row in rows(p)]
    todo = [one for one in asked if (only is None or one in only) and not finished(p, *one)]
    if todo and (problems := inputs.missing(_left(p, todo), needed(todo).difference(coming))):
        raise ParameterError("\n".join(problems))
    return todo


def _left(p: Parameters, todo: Collection[tuple[Row, int]]) -> Parameters:
    """The parameters with the seeds of what is left to run: sources of other seeds are not needed."""
    return p.model_copy(update={"seeds": [seed for seed in p.seeds if seed in {one for _, one in todo}]})


def impossible(p: Parameters) -> list[str]:
    """A line for each thing for which no run could start, wherever it is tried: unknown names, rows that cannot be."""
    problems = [f"approaches: unknown {n!r}; {meant(n, APPROACHES)}" for n in p.approaches if n not in APPROACHES]
    problems += _architecture(p)
    for name in ("target_data", "exclude_data") if p.exclude_data else ("target_data",):
        if (given := getattr(p, name)) not in data.DATASETS:
            problems.append(f"{name}: unknown {given!r}; {meant(given, data.DATASETS)}")
    merging = [name for name in p.approaches if name in APPROACHES and APPROACHES[name].merges]
    if merging and not p.source_data:
        problems.append(f"approaches: {merging[0]} merges two sources; give source_data and source_weights")
    tuned = [name for name in p.approaches if name in FINE_TUNED]
    if tuned and 0 in (p.ft_epochs, *p.vary.get("ft_epochs", [])):
        problems.append(f"ft_epochs: 0 leaves nothing of the approach {tuned[0]}; take it out of approaches")
    if not problems:
        read, shared = set().union(*map(reads, p.approaches)), of_role("data")
        problems = [f"vary: {n} is read by none of {', '.join(p.approaches)}" for n in p.vary if n not in read]
        problems += [f"vary: {name} is shared by all runs of a study" for name in p.vary if name in shared]
    return problems


def _architecture(p: Parameters) -> list[str]:
    """A line if the backbone is not known, or does not take images of this size."""
    try:
        parameter = "backbone"
        backbones.check_name(p.backbone)
        parameter = "image_size"
        backbones.check_image_size(p.backbone, p.image_size)
    except ValueError as error:
        return [f"{parameter}: {error}"]
    return []


def check_inputs(p: Parameters, todo: list[tuple[Row, int]]) -> list[str]:
    """Everything that can be checked about the inputs of ``todo`` in seconds; returns warnings.

    See :func:`medmerge.study.inputs.check_inputs`.
    """
    return inputs.check_inputs(_left(p, todo), needed(todo), done(p))


def load_data(p: Parameters) -> data.Dataset:
    """The target dataset, split and decoded, if it is the one that finished runs of this study saw."""
    return inputs.load_data(p, done(p))


def run(p: Parameters, only: Collection[tuple[Row, int]] | None = None) -> list[Record]:
    """Run what is not finished, and return the records of all rows and seeds that ``p`` asks for, in that order.

    With everything finished neither images nor weights are needed.

    Args:
        only: rows and seeds to run and to return; all by default.

    Raises:
        ParameterError, DataError, CheckpointError: before any training starts.
        RecordError: finished runs of this study were computed from other images or weights.
    """
    todo = check(p, only)
    if todo:
        dataset = load_data(p)
        inputs.check_sources(_left(p, todo), needed(todo), done(p))
        overlap = inputs.overlap(_left(p, todo), dataset.images, needed(todo))
        inputs.warn_of_overlap(overlap)
        drawn = {"method": p.split, "fractions": tuple(p.fractions), "seed": p.split_seed}
        with files.locked(split_path(p).with_name(".split.lock"), str(split_path(p))) as alone:
            if alone:
                files.remove_leftovers(split_path(p).parent)
            split_files.write(split_path(p), dataset.table, dataset.parts, **drawn)
        _train(p, todo, dataset, overlap)
    for seed in p.seeds if p.save_weights else ():
        if only is None or any(one == seed for _, one in only):
            _share(p, seed, replace=any(one == seed for _, one in todo))
    asked = [(row, seed) for row in rows(p) for seed in p.seeds if only is None or (row, seed) in only]
    for row, seed in asked:
        if (folder(p, row, seed) / LOCK).exists():  # who finished it died before it had cleared up
            with _alone(p, row, seed):
                pass
    return [finished(p, *one) for one in asked]


def _train(p: Parameters, todo: list[tuple[Row, int]], dataset: data.Dataset, overlap: Mapping[str, Mapping]) -> None:
    """Compute what is left, one run after the other; says before how long it will take, and on the way."""
    images = {one: len(dataset.train) * epochs(p, one[0]) for one in todo}
    rate = _seconds_per_image(p, *todo[0], dataset) if sum(images.values()) else None
    progress = Progress(sum(images.values()), rate=rate)
    log.info(
        "%d run%s to do, %s training images x %s epochs in all%s, on %s",
        *(len(todo), "s" * (len(todo) > 1), f"{len(dataset.train):,}", f"{sum(epochs(p, row) for row, _ in todo):,}"),
        "" if rate is None else f", about {duration(progress.left)} by a few timed steps",
        devices.describe(devices.choose_device(p.device)),
    )
    for number, (row, seed) in enumerate(todo, 1):
        with _alone(p, row, seed) as unfinished, devices.memory_kept():
            progress.run(f"run {number} of {len(todo)}: {row.label}, seed {seed}")
            if unfinished:
                shared = {name: overlap[name] for name in row.sources if name in overlap}
                run_row(p, row, seed, dataset, shared, progress)
            else:
                progress.advance(images[row, seed])
    progress.close()


def _seconds_per_image(p: Parameters, row: Row, seed: int, dataset: data.Dataset) -> float:
    p = row.parameters(p)
    task = Task(dataset.train, dataset.val, len(dataset.classes), seed, protocol(p))
    with _memory_explained(p, row, seed, task):
        return seconds_per_image(classifier(inputs.load_source(p, row.sources[0], seed), task), task)


@contextlib.contextmanager
def _alone(p: Parameters, row: Row, seed: int) -> Iterator[bool]:
    """Wait for another process that computes this run, if there is one; yield whether it is left to do."""
    where, what = folder(p, row, seed), f"{row.label}, seed {seed}"
    with files.locked(where / LOCK, what) as alone:
        unfinished = not finished(p, row, seed)
        if not unfinished:
            log.info("%s: finished by another process", what)
        if alone:
            files.remove_leftovers(where)
            files.remove_leftovers(where / MODEL.parent)
        if alone and not unfinished:
            _clear(where)
        yield unfinished


def _clear(where: Path) -> None:
    """Remove the checkpoints of a finished run."""
    for checkpoint in (where / MODEL).parent.glob("*.pt"):
        checkpoint.unlink(missing_ok=True)
    shutil.rmtree((where / MODEL).parent / PARTS, ignore_errors=True)


def done(p: Parameters) -> list[Record]:
    """The finished runs of those that the parameters ask for."""
    return [record for row in rows(p) for seed in p.seeds if (record := finished(p, row, seed))]


def run_row(
    p: Parameters,
    row: Row,
    seed: int,
    dataset: data.Dataset,
    overlap: Mapping[str, Mapping] | None = None,
    progress: Progress | None = None,
) -> Record:
    """One run: load the sources, train, test once, write the record.

    Args:
        overlap: what :func:`medmerge.study.inputs.overlap` found about the row's sources.
        progress: of all runs that are asked for.
    """
    where, defined = folder(p, row, seed), definition(p, row, seed)
    approach, p = APPROACHES[row.approach], row.parameters(p)
    sources = [inputs.load_source(p, name, seed) for name in row.sources]
    prints = {name: state_sha256(source) for name, source in zip(row.sources, sources, strict=True)}
    key = json.dumps([definition_hash(defined), dataset.fingerprint, prints])
    task = Task(
        *(dataset.train, dataset.val, len(dataset.classes), seed, protocol(p), where / MODEL.parent, key),
        sources=row.sources,
        recall=functools.partial(_recall, p, row, seed, dataset.fingerprint, prints),
        progress=progress,
        on_epoch=lambda _: files.write(where / "history.csv", records.history_text(task.history_frame())),
    )
    with _memory_explained(p, row, seed, task):
        options = {name: getattr(p, name) for name in approach.settings}
        outcome = approach.run(sources if approach.merges else sources[0], task, **options)
        networks = {"": outcome.model} | ({} if outcome.probed is None else {"linear_probe": outcome.probed})
        found = {stage: records.kept(predict(model, dataset.test, task)) for stage, model in networks.items()}

    labels, classes = dataset.test.labels.numpy(), dataset.classes
    scores = {stage: evaluation.metrics(labels, each, classes) for stage, each in found.items()}
    frames = {stage: records.prediction_frame(dataset.test.ids, labels, each, classes) for stage, each in found.items()}
    content = {
        "definition": defined,
        "hash": definition_hash(defined),
        "row": {"approach": row.approach, "title": row.title, "sources": list(row.sources)}
        | {"settings": dict(row.settings)},
        "seed": seed,
        "parameters": p.model_dump(),
        "data": _described(p, dataset) | {"overlap": dict(overlap or {})},
        "sources": prints,
        "metrics": scores.pop(""),
        "stages": scores,
        **_circumstances(outcome, task),
    }
    _keep(outcome, where, _left(p, [(row, seed)]), row, dataset)
    weights, moved = (
        {name: w.numpy() for name, w in learnt.items()} for learnt in (outcome.kernel_weights, task.kernel_history)
    )
    predictions = frames.pop("")
    tables = {f"predictions_{stage}": frame for stage, frame in frames.items()} | dict(outcome.tables)
    record = records.write(where, content, task.history_frame(), predictions, weights, moved, tables)
    _clear(where)
    return record


def _circumstances(outcome: Outcome, task: Task) -> dict:
    """What a record keeps of how its network came about."""
    return {
        "choices": dict(outcome.choices),
        "network": state_sha256(outcome.model),
        "cost": task.cost,
        "device": devices.describe(task.device),
        "precision": devices.choose_precision(task.protocol.precision, task.device),
        "provenance": provenance(),
    }


@contextlib.contextmanager
def _memory_explained(p: Parameters, row: Row, seed: int, task: Task) -> Iterator[None]:
    """Turn an error that says that memory ran out into one that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not devices.out_of_memory(error):
            raise
        precision = devices.choose_precision(p.precision, task.device)
        raise TrainingError(
            f"{row.label}, seed {seed}: out of memory on {devices.describe(task.device)}, with batch_size "
            f"{p.batch_size}, image_size {p.image_size} and precision {precision}: lower one of them, or take a larger "
            "machine. What is finished is kept"
        ) from error


def _recall(
    p: Parameters, row: Row, seed: int, images: str, prints: Mapping[str, str], approach: str, source: str
) -> tuple[backbones.Classifier, dict] | None:
    """The finished network of ``approach`` from ``source`` under ``row``'s settings, and its cost.

    None if there is no such run of these images and weights, or if its network is not here, damaged or of another run:
    then it must be trained.
    """
    other = part(row, approach, source)
    path = folder(p, other, seed) / MODEL
    try:
        record = finished(p, other, seed)
        if (
            not record
            or record.run["data"]["fingerprint"] != images
            or record.run["sources"] != {source: prints[source]}
        ):
            return None
        classifier = load(path)
    except (FileNotFoundError, RecordError):
        return None
    except backbones.CheckpointError as error:
        log.warning("%s: training anew", error)
        return None
    if record.run.get("network", "") not in ("", state_sha256(classifier)):
        log.warning("%s is not the network that the record beside it tells of: training anew", path)
        return None
    log.info("recalled the network of %s, seed %s", other.label, seed)
    return classifier, record.run["cost"]


def protocol(p: Parameters) -> Protocol:
    """How to train, as the parameters say."""
    return Protocol(**{f.name: getattr(p, f.name) for f in dataclasses.fields(Protocol)})


def _described(p: Parameters, dataset: data.Dataset) -> dict:
    """The target as its records keep it."""
    return {
        "name": dataset.name,
        "classes": list(dataset.classes),
        "multilabel": dataset.multilabel,
        "counts": dataset.counts.to_dict(),
        "images": {part: int((dataset.parts == part).sum()) for part in SPLITS},
        "split": {"method": p.split, "fingerprint": split_files.fingerprint(dataset.table.frame["id"], dataset.parts)},
        "fingerprint": dataset.fingerprint,
        "notes": list(dataset.notes),
    }


def _keep(outcome: Outcome, where: Path, p: Parameters, row: Row, dataset: data.Dataset) -> None:
    """Write the trained network with the images that it or its sources learnt from, and what a probe learnt."""
    if isinstance(outcome.model, backbones.Classifier):
        save(outcome.model, where / MODEL, trained_on=p.target_data, classes=json.dumps(dataset.classes))
        images = pd.concat([dataset.images.assign(dataset=p.target_data), inputs.learnt_from(p, row.sources)])
        images.to_csv(inputs.images_list(where / MODEL), index=False)
    if outcome.merge is not None:
        save_learnt(outcome.merge, where / MERGE)


def _share(p: Parameters, seed: int, replace: bool) -> None:
    """Copy the trained network, which lies beside the record of a seed's only run, to where ``save_weights`` says."""
    path = folder(p, rows(p)[0], seed) / MODEL
    target = home() / Path(of_seed(p.save_weights, seed)).expanduser()
    if path.is_file() and (replace or not target.is_file()):
        for origin, copy in ((inputs.images_list(path), inputs.images_list(target)), (path, target)):
            with files.replacing(copy) as temporary:
                shutil.copyfile(origin, temporary)
    elif not target.is_file():
        log.warning("save_weights: this finished run's network is not here; to train again, move its record away")
