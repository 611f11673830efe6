"""One run, from its images to its folder: sources, training, one test, the record."""

import contextlib
import dataclasses
import functools
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
from torch import nn

from medmerge import backbones, data, devices, files
from medmerge.approaches import APPROACHES
from medmerge.approaches.paper import Outcome, classifier
from medmerge.approaches.rivals import PARTS
from medmerge.backbones import state_sha256
from medmerge.data import split_files
from medmerge.data.table import SPLITS
from medmerge.saving import load, save, save_learnt
from medmerge.stats import evaluation
from medmerge.study import inputs, records
from medmerge.study.definitions import MERGE, MODEL, Row, definition, definition_hash, finished, folder, part
from medmerge.study.measured import provenance
from medmerge.study.params import Parameters
from medmerge.study.records import Record, RecordError
from medmerge.task import Progress
from medmerge.training import Protocol, Task, TrainingError, predict, seconds_per_image

log = logging.getLogger(__name__)


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
        metrics, predictions = _tested(outcome.model, dataset, task)
        stages, tables = {}, dict(outcome.tables)
        if outcome.probed is not None:
            stages["linear_probe"], tables["predictions_linear_probe"] = _tested(outcome.probed, dataset, task)
    content = {
        "definition": defined,
        "hash": definition_hash(defined),
        "row": {"approach": row.approach, "title": row.title, "sources": list(row.sources)}
        | {"settings": dict(row.settings)},
        "seed": seed,
        "parameters": p.model_dump(),
        "data": _described(p, dataset) | {"overlap": dict(overlap or {})},
        "sources": prints,
        "metrics": metrics,
        "stages": stages,
        **_circumstances(outcome, task),
    }
    _keep(outcome, where, p.model_copy(update={"seeds": [seed]}), row, dataset)
    weights, moved = (
        {name: w.numpy() for name, w in learnt.items()} for learnt in (outcome.kernel_weights, task.kernel_history)
    )
    record = records.write(where, content, task.history_frame(), predictions, weights, moved, tables)
    clear(where)
    return record


def _tested(model: nn.Module, dataset: data.Dataset, task: Task) -> tuple[dict, pd.DataFrame]:
    """Metrics and predictions of a network on the test images."""
    probabilities = records.kept(predict(model, dataset.test, task))
    labels, classes = dataset.test.labels.numpy(), dataset.classes
    frame = records.prediction_frame(dataset.test.ids, labels, probabilities, classes)
    return evaluation.metrics(labels, probabilities, classes), frame


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
