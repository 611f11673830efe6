"""From parameters to records: what has run, what can run, and running what is left: sources, training, one test."""

import contextlib
import dataclasses
import functools
import json
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pandas as pd
from torch import nn

from medmerge import backbones, data, devices, files
from medmerge.approaches import APPROACHES, FINE_TUNED
from medmerge.approaches.paper import Outcome, classifier
from medmerge.approaches.rivals import PARTS
from medmerge.backbones import state_sha256
from medmerge.data import split_files
from medmerge.data.table import SPLITS
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
from medmerge.task import Progress, duration
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
    problems, todo = impossible(p), []
    if not problems:
        asked = [(row, seed) for seed in p.seeds for row in rows(p)]
        todo = [one for one in asked if (only is None or one in only) and not finished(p, *one)]
        problems = inputs.missing(_left(p, todo), needed(todo).difference(coming)) if todo else []
    if problems:
        raise ParameterError("\n".join(problems))
    return todo


def _left(p: Parameters, todo: Collection[tuple[Row, int]]) -> Parameters:
    """The parameters with the seeds of what is left to run: sources of other seeds are not needed."""
    return p.model_copy(update={"seeds": [seed for seed in p.seeds if seed in {one for _, one in todo}]})


def impossible(p: Parameters) -> list[str]:
    """A line for each thing for which no run could start, wherever it is tried: unknown names, rows that cannot be."""
    problems = [f"approaches: unknown {n!r}; {meant(n, APPROACHES)}" for n in p.approaches if n not in APPROACHES]
    try:
        parameter = "backbone"
        backbones.check_name(p.backbone)
        parameter = "image_size"
        backbones.check_image_size(p.backbone, p.image_size)
    except ValueError as error:
        problems.append(f"{parameter}: {error}")
    for name in ("target_data", "exclude_data"):
        if (given := getattr(p, name)) not in data.DATASETS and (given or name == "target_data"):
            problems.append(f"{name}: unknown {given!r}; {meant(given, data.DATASETS)}")
    if problems:
        return problems
    for name in p.approaches:
        if APPROACHES[name].merges and not p.source_data:
            problems.append(f"approaches: {name} merges two sources; give source_data and source_weights")
        if name in FINE_TUNED and 0 in (p.ft_epochs, *p.vary.get("ft_epochs", [])):
            problems.append(f"ft_epochs: 0 leaves nothing of the approach {name}; take it out of approaches")
    read, shared = set().union(*map(reads, p.approaches)), of_role("data")
    problems += [f"vary: {name} is read by none of {', '.join(p.approaches)}" for name in p.vary if name not in read]
    return problems + [f"vary: {name} is shared by all runs of a study" for name in p.vary if name in shared]


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
    asked = [(row, seed) for row in rows(p) for seed in p.seeds if only is None or (row, seed) in only]
    for row, seed in asked:
        if p.save_weights:  # of a seed's only row
            _share(p, seed, replace=(row, seed) in todo)
        if (folder(p, row, seed) / LOCK).exists():  # who finished it died before it had cleared up
            with _alone(p, row, seed):
                pass
    return [finished(p, *one) for one in asked]


def _train(p: Parameters, todo: list[tuple[Row, int]], dataset: data.Dataset, overlap: Mapping[str, Mapping]) -> None:
    """Compute what is left, one run after the other; says before how long it will take, and on the way."""
    images = {one: len(dataset.train) * epochs(p, one[0]) for one in todo}
    rate = seconds_an_image(p, *todo[0], dataset) if sum(images.values()) else None
    progress = Progress(sum(images.values()), rate=rate)
    amount = f"{len(dataset.train):,} training images x {sum(epochs(p, row) for row, _ in todo):,} epochs in all"
    time = f", about {duration(progress.left)} by a few timed steps" if rate is not None else ""
    place = devices.describe(devices.choose_device(p.device))
    log.info("%d run%s to do, %s%s, on %s", len(todo), "s" * (len(todo) > 1), amount, time, place)
    for number, (row, seed) in enumerate(todo, 1):
        with _alone(p, row, seed) as unfinished, devices.memory_kept():
            progress.run(f"run {number} of {len(todo)}: {row.label}, seed {seed}")
            if unfinished:
                shared = {name: overlap[name] for name in row.sources if name in overlap}
                run_row(p, row, seed, dataset, shared, progress)
            else:
                progress.advance(images[row, seed])
    progress.close()


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
            if not unfinished:
                clear(where)
        yield unfinished


def done(p: Parameters) -> list[Record]:
    """The finished runs of those that the parameters ask for."""
    return [record for row in rows(p) for seed in p.seeds if (record := finished(p, row, seed))]


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
    precision = devices.choose_precision(p.precision, devices.choose_device(p.device))
    key = json.dumps([definition_hash(defined), precision, dataset.fingerprint, prints])
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
        metrics, predictions = _tested(outcome.model, dataset, task)
        stages, tables = {}, dict(outcome.tables)
        if outcome.probed is not None:
            stages["linear_probe"], tables["predictions_linear_probe"] = _tested(outcome.probed, dataset, task)
    named = {"approach": row.approach, "title": row.title, "sources": list(row.sources), "settings": dict(row.settings)}
    content = {
        "definition": defined,
        "hash": definition_hash(defined),
        "row": named,
        "seed": seed,
        "parameters": p.model_dump(),
        "data": _described(p, dataset) | {"overlap": dict(overlap or {})},
        "sources": prints,
        "metrics": metrics,
        "stages": stages,
        "choices": dict(outcome.choices),
        "network": state_sha256(outcome.model),
        "cost": task.cost,
        "device": devices.describe(task.device),
        "precision": precision,
        "provenance": provenance(),
    }
    _keep(outcome, where, p.model_copy(update={"seeds": [seed]}), row, dataset)
    weights = {name: w.numpy() for name, w in outcome.kernel_weights.items()}
    moved = {name: w.numpy() for name, w in task.kernel_history.items()}
    record = records.write(where, content, task.history_frame(), predictions, weights, moved, tables)
    clear(where)
    return record


def _tested(model: nn.Module, dataset: data.Dataset, task: Task) -> tuple[dict, pd.DataFrame]:
    """Metrics and predictions of a network on the test images."""
    probabilities = records.kept(predict(model, dataset.test, task))
    labels, classes = dataset.test.labels.numpy(), dataset.classes
    frame = records.prediction_frame(dataset.test.ids, labels, probabilities, classes)
    return evaluation.metrics(labels, probabilities, classes), frame


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
        wanted = images, {source: prints[source]}
        if record is None or (record.run["data"]["fingerprint"], record.run["sources"]) != wanted:
            return None
        classifier = load(path)
        if record.run.get("network", "") not in ("", state_sha256(classifier)):
            raise backbones.CheckpointError(f"{path} is not the network that the record beside it tells of")
    except (FileNotFoundError, RecordError):
        return None
    except backbones.CheckpointError as error:
        log.warning("%s: training anew", error)
        return None
    log.info("recalled the network of %s, seed %s", other.label, seed)
    return classifier, record.run["cost"]


def _keep(outcome: Outcome, where: Path, p: Parameters, row: Row, dataset: data.Dataset) -> None:
    """Write the trained network with the images that it or its sources learnt from, and what a probe learnt."""
    if isinstance(outcome.model, backbones.Classifier):
        save(outcome.model, where / MODEL, trained_on=p.target_data, classes=json.dumps(dataset.classes))
        images = pd.concat([dataset.images.assign(dataset=p.target_data), inputs.learnt_from(p, row.sources)])
        images.to_csv(inputs.images_list(where / MODEL), index=False)
    if outcome.merge is not None:
        save_learnt(outcome.merge, where / MERGE)


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


def clear(where: Path) -> None:
    """Remove the checkpoints of a finished run."""
    for checkpoint in (where / MODEL).parent.glob("*.pt"):
        checkpoint.unlink(missing_ok=True)
    shutil.rmtree((where / MODEL).parent / PARTS, ignore_errors=True)


def seconds_an_image(p: Parameters, row: Row, seed: int, dataset: data.Dataset) -> float:
    """What training takes an image, by a few timed steps of FT."""
    p = row.parameters(p)
    task = Task(dataset.train, dataset.val, len(dataset.classes), seed, protocol(p))
    with _memory_explained(p, row, seed, task):
        return seconds_per_image(classifier(inputs.load_source(p, row.sources[0], seed), task), task)


def protocol(p: Parameters) -> Protocol:
    """How to train, as the parameters say."""
    return Protocol(**{f.name: getattr(p, f.name) for f in dataclasses.fields(Protocol)})


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
