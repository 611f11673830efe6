"""What can be done with a finished run whose networks are still here: rebuild its merge, try other merging weights."""

import copy
import functools
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import nn

from medmerge import backbones, data
from medmerge.approaches import APPROACHES
from medmerge.approaches.paper import MergeOptions
from medmerge.merge import KernelMerge, zeros_like
from medmerge.saving import load_learnt
from medmerge.stats import evaluation
from medmerge.study import inputs
from medmerge.study.definitions import MERGE
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.records import Record, RecordError
from medmerge.study.run import protocol
from medmerge.training import Protocol, Task, predict


class Trial:
    """Validation scores of one merge with the merging weights of a layer replaced. Called by the explorer.

    Args:
        merging: the classifier, whose backbone is a :class:`~medmerge.merge.KernelMerge`. Its weights are put back
            after every trial.
        val: the validation images.
        protocol: batch size, device and precision.

    Attributes:
        metric: what the scores are, in words.
    """

    def __init__(self, merging: backbones.Classifier, val: data.Samples, protocol: Protocol):
        if not isinstance(merging.backbone, KernelMerge):
            raise TypeError(f"the backbone is a {type(merging.backbone).__name__}, not a KernelMerge")
        self.merging, self.val = merging, val
        self.task = Task(val, val, merging.head.out_features, protocol=protocol)
        self.metric = "macro AUROC" if self.task.multilabel else "macro F1"
        self._scores: dict[tuple[str, float | None], float] = {}

    @property
    def images(self) -> int:
        """Number of validation images."""
        return len(self.val)

    def __call__(self, layer: str, w: float | None) -> float:
        """The score with ``w`` in all kernels of ``layer``, or as learnt (None); computed once.

        Raises:
            KeyError: there is no such layer.
        """
        if w is None:
            layer = ""
        if (layer, w) not in self._scores:
            merge = self.merging.backbone
            learnt = copy.deepcopy([parameter.data for parameter in merge.parameters()])
            try:
                if w is not None:
                    merge.set_kernel_weights({layer: w})
                self._scores[layer, w] = self._score()
            finally:
                for parameter, value in zip(merge.parameters(), learnt, strict=True):
                    parameter.data.copy_(value)
        return self._scores[layer, w]

    def _score(self) -> float:
        probabilities = predict(self.merging, self.val, self.task)
        classes = [str(k) for k in range(self.task.num_classes)]
        scores = evaluation.metrics(self.val.labels.numpy(), probabilities, classes)
        return scores["macro_auroc" if self.task.multilabel else "macro_f1"]


class Later:
    """A :class:`Trial` that is loaded when it is first asked, since its images and sources take seconds.

    Args:
        prepare: gives the trial.
        metric, images: as the trial's.
    """

    def __init__(self, prepare: Callable[[], Trial], metric: str, images: int):
        self.prepare, self.metric, self.images = prepare, metric, images
        self._trial: Trial | None = None

    def __call__(self, layer: str, w: float | None) -> float:
        """As :class:`Trial`'s; raises what ``prepare`` raises."""
        self._trial = self._trial or self.prepare()
        return self._trial(layer, w)


def trial(record: Record) -> Trial:
    """What other merging weights do to a merged run's validation score: its network as the linear probe left it.

    Raises:
        RecordError, ParameterError, CheckpointError: as :func:`merged_classifier`.
        RecordError, DataError: the images here are others, or not here.
    """
    merging, _ = merged_classifier(record)
    p = parameters(record)
    return Trial(merging, inputs.load_data(p, [record]).val, protocol(p))


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


def later_trials(runs: Iterable[Record]) -> dict[Path, Later]:
    """:func:`trial` by folder, for the runs of which what the linear probe learnt is here; loaded when first asked."""
    return {
        r.folder: Later(functools.partial(trial, r), "macro AUROC" if r.multilabel else "macro F1", r.images["val"])
        for r in runs
        if (r.folder / MERGE).is_file()
    }
