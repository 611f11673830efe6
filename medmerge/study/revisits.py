"""What can be done with a finished run whose networks are still here: rebuild its merge, try other merging weights."""

import copy
import functools
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from medmerge import backbones
from medmerge.approaches import APPROACHES
from medmerge.approaches.paper import MergeOptions
from medmerge.merge import KernelMerge, zeros_like
from medmerge.saving import load_learnt
from medmerge.study import inputs
from medmerge.study.definitions import MERGE
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.records import Record, RecordError
from medmerge.study.row import protocol
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
        return Task(val, val, self.merging.head.out_features, protocol=protocol(p))

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
