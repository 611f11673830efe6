"""What can be done with a finished run: rebuild its merge, try other merging weights, compute it once more."""

import copy
import functools
import gzip
import hashlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from medmerge import backbones
from medmerge.approaches import APPROACHES
from medmerge.approaches.paper import MergeOptions
from medmerge.merge import KernelMerge, zeros_like
from medmerge.saving import load_learnt
from medmerge.study import inputs
from medmerge.study import run as study
from medmerge.study.definitions import MERGE, Row, chosen
from medmerge.study.measured import Sheet, save_json
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.records import Record, RecordError, reading
from medmerge.training import Task, validate


class Trial:
    """Validation scores of a merged run, as its linear probe left it, with the merging weights of a layer replaced.

    Called by the explorer. Its images and sources, which take seconds, are loaded when it is first called.

    Attributes:
        metric: what the scores are, in words.
        images: number of validation images.
    """

    def __init__(self, record: Record):
        self.record = record
        self.metric, self.images = "macro AUROC" if record.multilabel else "macro F1", record.images["val"]
        self._scores: dict[tuple[str, float | None], float] = {}

    @functools.cached_property
    def merging(self) -> backbones.Classifier:
        """The run's classifier, as :func:`merged_classifier` gives it; its weights are put back after every trial."""
        return merged_classifier(self.record)[0]

    @functools.cached_property
    def task(self) -> Task:
        """Its validation images, and how to compute."""
        p = parameters(self.record)
        val = inputs.load_data(p, [self.record]).val
        return Task(val, val, self.merging.head.out_features, protocol=study.protocol(p))

    def __call__(self, layer: str, w: float | None) -> float:
        """The score with ``w`` in all kernels of ``layer``, or as learnt (None); computed once.

        Raises:
            KeyError: there is no such layer.
            RecordError, ParameterError, DataError, CheckpointError: as :func:`merged_classifier`, or the images here
                are others.
        """
        asked = ("" if w is None else layer, w)
        if asked not in self._scores:
            merge: KernelMerge = self.merging.backbone
            learnt = copy.deepcopy([parameter.data for parameter in merge.parameters()])
            try:
                if w is not None:
                    merge.set_kernel_weights({layer: w})
                self._scores[asked] = validate(self.merging, self.task.val, self.task)[self.task.score]
            finally:
                for parameter, value in zip(merge.parameters(), learnt, strict=True):
                    parameter.data.copy_(value)
        return self._scores[asked]


def later_trials(runs: Iterable[Record]) -> dict[Path, Trial]:
    """A :class:`Trial` by folder, of the runs of which what the linear probe learnt is here."""
    return {record.folder: Trial(record) for record in runs if (record.folder / MERGE).is_file()}


def merged_classifier(record: Record) -> tuple[backbones.Classifier, list[nn.Module]]:
    """A merged run's classifier as its linear probe left it, rebuilt, and the sources that it merges.

    Returns:
        The classifier, whose backbone is a :class:`~medmerge.merge.KernelMerge`, and the sources as they were merged:
        aligned where the run did so, and zeros as second where one source was merged with zeros.

    Raises:
        RecordError: the run merged nothing, what its probe learnt is not kept here, or the sources here are others.
        ParameterError, CheckpointError: its sources are not here, or the folder of its images is not.
    """
    path, run = record.folder / MERGE, record.run
    if not path.is_file():
        raise RecordError(f"no {path}: what the linear probe learnt lies only where the run was computed")
    p = parameters(record)
    approach, names = APPROACHES[record.approach], run["row"]["sources"]
    if problems := inputs.missing(p, names):
        raise ParameterError("\n".join(problems))
    inputs.check_sources(p, names, [record])
    options = MergeOptions(**{name: getattr(p, name) for name in approach.settings if name != "score_controls"})
    sources = [inputs.load_source(p, name, run["seed"]) for name in names]
    if not approach.merges:
        sources.append(zeros_like(sources[0]))
    merge, sources = options.start(sources, p.image_size)
    merging = backbones.Classifier(merge, len(run["data"]["classes"]))
    load_learnt(merging, path)
    return merging, sources


def parameters(record: Record) -> Parameters:
    """The parameters that a run was made with, its row's settings included; those that are no longer known left out."""
    known = {name: value for name, value in record.run["parameters"].items() if name in Parameters.model_fields}
    return Parameters.parse(known | {"seeds": [record.run["seed"]]})


# ---------------------------------------------------------------- computed once more

CIRCUMSTANCES = ("cost", "device", "provenance", "parameters")
"""What ``run.json`` may differ in: where, by which commit and how fast. Its ``definition`` is compared."""


class Rerun(Sheet):
    """What a second computation of a run found.

    Attributes:
        record: SHA-256 of the record's ``run.json`` that it was held against.
        device: where it was computed, in words.
        commit: of the package, as in a record's provenance.
        same: names of the record's files that came out byte for byte the same; of ``run.json`` all but circumstances.
        different: names of those that did not.
        metrics: its own scores on the test images.
    """

    format: int = 1
    record: str
    device: str
    commit: str
    same: tuple[str, ...]
    different: tuple[str, ...]
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class Compared:
    """A record and its rerun."""

    record: Record
    rerun: Rerun

    def sentence(self) -> str:
        """What was found, for a terminal."""
        name = f"{self.record.label}, seed {self.record.run['seed']}"
        same, different = len(self.rerun.same), self.rerun.different
        if not different:
            return f"{name}: all {same} files of the record the same, byte for byte"
        metric = "macro_auroc" if self.record.multilabel else "macro_f1"
        there, here = self.record.run["metrics"][metric], self.rerun.metrics[metric]
        return (
            f"{name}: {same} files of the record the same, {len(different)} different ({', '.join(different)}). "
            f"{metric}: {here:.4f} on {self.rerun.device}, {there:.4f} on {self.record.run['device']}"
        )


def rerun(p: Parameters, row: Row, seed: int) -> Compared:
    """Compute a finished run again, in a folder of its own that is removed, and write what was found beside its study.

    Raises:
        ParameterError: the run is not finished, or what it needs is not here.
        RecordError: the images or weights that are here are not those that it was computed from.
        DataError, CheckpointError, TrainingError, DiskError: as :func:`medmerge.study.run.run`.
    """
    record = study.finished(p, row, seed)
    if record is None:
        raise ParameterError(f"{row.label}, seed {seed} is not finished: there is nothing to hold a rerun against")
    with tempfile.TemporaryDirectory(prefix="medmerge-rerun-") as name:
        asked = {"precision": record.run["definition"].get("precision", "auto"), "results": name, "save_weights": ""}
        apart, only = p.model_copy(update=asked | {"seeds": [seed]}), {(row, seed)}
        study.check(apart, only)
        inputs.load_data(apart, [record])
        inputs.check_sources(apart, row.sources, [record])
        (again,) = study.run(apart, only)
        there, here = content(record.folder), content(again.folder)
    names = sorted(there.keys() | here.keys())
    found = Rerun(
        record=_digest(record),
        device=again.run["device"],
        commit=again.run["provenance"]["commit"],
        same=tuple(file for file in names if there.get(file) == here.get(file)),
        different=tuple(file for file in names if there.get(file) != here.get(file)),
        metrics=again.run["metrics"],
    )
    save_json(rerun_path(record), found)
    return Compared(record, found)


def rerun_path(record: Record) -> Path:
    """Where the rerun of a run is kept: ``<pair>/reruns/<backbone>-<row>-seed<k>.json``."""
    return record.folder.parents[2] / "reruns" / f"{'-'.join(record.folder.parts[-3:])}.json"


def reruns(runs: Sequence[Record]) -> list[Compared]:
    """The reruns that there are of some records.

    Raises:
        RecordError: a file is damaged, or was held against another record.
    """
    found = []
    for record in runs:
        if (where := rerun_path(record)).is_file():
            with reading(where, "restore it, or remove it"):
                found.append(Compared(record, Rerun.model_validate_json(where.read_bytes())))
            if found[-1].rerun.record != _digest(record):
                raise RecordError(
                    f"{where} is about another record than the one of {record.folder}; run medmerge rerun again"
                )
    return found


def _digest(record: Record) -> str:
    return hashlib.sha256((record.folder / "run.json").read_bytes()).hexdigest()


def content(folder: Path) -> dict[str, bytes]:
    """The files of a record by name, ``run.json`` without its circumstances; what lies in folders below is no part.

    Those that are compressed are here as they were before, content and name: what counts is what they hold.

    Raises:
        RecordError: a compressed file is damaged.
    """
    found = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            with reading(file):
                raw = file.read_bytes()
                found[file.name.removesuffix(".gz")] = gzip.decompress(raw) if file.suffix == ".gz" else raw
    run = json.loads(found["run.json"])
    run["definition"] = chosen(run["definition"])
    found["run.json"] = json.dumps({name: value for name, value in run.items() if name not in CIRCUMSTANCES}).encode()
    return found
