"""FT, LP-FT, MedMerge and its controls, each a few lines on top of the two phases (paper, section 4).

An approach is a function of one or several backbones and a :class:`~medmerge.task.Task`. It returns a trained
:class:`~medmerge.backbones.Classifier` and, where it merged, the learnt merging weights. It never sees test data.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
import torch
from torch import Tensor, nn

from medmerge import batchnorm, matching
from medmerge.backbones import Classifier
from medmerge.controls import evaluate as replaced_weights
from medmerge.devices import seeded
from medmerge.merge import KernelMerge, zeros_like
from medmerge.training import Task, fine_tune, linear_probe

LINEAR_PROBE = frozenset({"lp_epochs", "lp_lr"})

MEASURED_STARTS = ("reestimated", "repair")
"""Starts of batch norm that take images to compute."""


@dataclass(frozen=True)
class Outcome:
    """What an approach ends with.

    Attributes:
        model: the trained classifier, an ordinary network; of an ensemble several.
        kernel_weights: the first source's learnt weight w by layer, as
            :meth:`~medmerge.merge.KernelMerge.kernel_weights` gives it; empty where nothing was merged.
        merge: the merging classifier as its linear probe left it, before it was folded; None where no merge was learnt.
        probed: the classifier as the linear probe left it; None where there was none.
        tables: further tables for the record, by name: ``batchnorm`` (:func:`medmerge.batchnorm.report` before and
            after the probe) and ``controls`` (:func:`medmerge.controls.evaluate`).
        choices: what was chosen on the validation images beyond an epoch, such as a coefficient, in JSON's types.
    """

    model: Classifier
    kernel_weights: Mapping[str, Tensor]
    merge: Classifier | None = None
    probed: Classifier | None = None
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    choices: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Approach:
    """An entry of :data:`medmerge.registry.APPROACHES`.

    Attributes:
        title: its name in tables.
        run: the function; takes its sources, the task and the settings that it reads.
        merges: whether it takes all sources at once; otherwise it is run from each source alone.
        settings: the merging options that ``run`` takes by keyword.
        reads: parameters that its numbers depend on, beyond those that all approaches share.
        combines: approaches whose finished networks, from each of its sources alone, it takes.
    """

    title: str
    run: Callable[..., Outcome]
    merges: bool = False
    settings: tuple[str, ...] = ()
    reads: frozenset[str] = frozenset()
    combines: tuple[str, ...] = ()


def ft(source: nn.Module, task: Task) -> Outcome:
    """Full fine-tuning from one source (FT)."""
    model = classifier(source, task)
    fine_tune(model, task)
    return Outcome(model, {})


def lp_ft(source: nn.Module, task: Task) -> Outcome:
    """Linear probe, then full fine-tuning, from one source (LP-FT; Kumar et al. 2022)."""
    model = classifier(source, task)
    linear_probe(model, task)
    probed = copy.deepcopy(model)
    fine_tune(model, task)
    return Outcome(model, {}, probed=probed)


def lp_norms_ft(source: nn.Module, task: Task) -> Outcome:
    """LP-FT whose linear probe trains batch norm too: what MedMerge's probe does, without a merge."""
    model = classifier(source, task)
    linear_probe(model, task, task.protocol.batchnorm_free)
    probed = copy.deepcopy(model)
    fine_tune(model, task)
    return Outcome(model, {}, probed=probed)


def medmerge(
    sources: Sequence[nn.Module],
    task: Task,
    *,
    align: str = "none",
    batchnorm: str | int = "mean",
    learn: bool = True,
    score_controls: bool = True,
    **settings,
) -> Outcome:
    """Learn the merge during the linear probe, fold it, fine-tune the result (MedMerge, section 2).

    Args:
        align: ``"weights"`` first permutes the channels of every source but the first to match the first's
            (:func:`medmerge.matching.align`); ``"none"`` merges them as they are.
        batchnorm: where batch norms start: as for :class:`~medmerge.merge.KernelMerge`, or at the mean with statistics
            measured on training images, ``"reestimated"``, with scale and shift set to the sources' spread too,
            ``"repair"`` (`medmerge.batchnorm`).
        learn: whether the merging weights learn.
        score_controls: whether to score replacements of the learnt weights (`medmerge.controls`).
        settings: further options of :class:`~medmerge.merge.KernelMerge`.
    """
    sources = aligned(sources, align, task.train.image_size)
    merge = start(sources, batchnorm=batchnorm, **settings)
    measure(merge, sources, task, batchnorm)
    task = task if learn else replace(task, protocol=replace(task.protocol, w_lr=0.0))
    model = classifier(merge, task)
    before = _diagnosis(merge, task, "before probe")
    linear_probe(model, task)
    tables = {"batchnorm": pd.concat([before, _diagnosis(merge, task, "after probe")])}
    probed = classifier(merge, task)
    probed.head.load_state_dict(model.head.state_dict())
    model.backbone = merge.fold()
    fine_tune(model, task)
    if not learn:
        return Outcome(model, {}, probed=probed, tables=tables)
    if score_controls and len(sources) == 2 and merge.granularity == "kernel":
        tables["controls"] = replaced_weights(probed, task)
    return Outcome(model, {name: w.cpu() for name, w in merge.kernel_weights().items()}, probed, probed, tables)


def aligned(sources: Sequence[nn.Module], align: str, image_size: int) -> list[nn.Module]:
    """The sources as they are, or each further one permuted to match the first (:func:`medmerge` says by what)."""
    first, *others = sources
    if align == "none":
        return [first, *others]
    return [first, *(matching.align(first, other, image_size=image_size) for other in others)]


def start(
    sources: Sequence[nn.Module],
    *,
    batchnorm: str | int = "mean",
    align: str = "none",
    score_controls: bool = True,
    **settings,
) -> KernelMerge:
    """The merge that :func:`medmerge` begins with, of sources that are aligned already, before it sees images."""
    return KernelMerge(sources, batchnorm="mean" if batchnorm in MEASURED_STARTS else batchnorm, **settings)


def fixed_w(sources: Sequence[nn.Module], task: Task, **settings) -> Outcome:
    """MedMerge whose merging weights stay at their start, 0.5: only batch norm and the head learn in the probe."""
    return medmerge(sources, task, learn=False, **settings)


def medmerge_zeros(source: nn.Module, task: Task, **settings) -> Outcome:
    """MedMerge of one source with zeros (paper, section 4, "combining with zeros"): w is what is kept of a kernel."""
    return medmerge([source, zeros_like(source)], task, **settings)


def measure(merge: nn.Module, sources: Sequence[nn.Module], task: Task, start: str | int) -> None:
    """Measure a merge's batch norms on training images, in place, where their ``start`` asks for it."""
    with task.autocast:
        merge.to(task.device)
        if start == "reestimated":
            batchnorm.reestimate(merge, task.measured)
        elif start == "repair":
            batchnorm.repair(merge, [copy.deepcopy(source).to(task.device) for source in sources], task.measured)


def _diagnosis(merge: KernelMerge, task: Task, when: str) -> pd.DataFrame:
    """:func:`medmerge.batchnorm.report` with a column that says when."""
    with task.autocast:
        return batchnorm.report(merge.to(task.device), task.measured).assign(when=when)


def classifier(backbone: nn.Module, task: Task) -> Classifier:
    """A backbone with a new head, whose initial values depend on the task's seed alone."""
    with seeded(torch.device("cpu"), task.seed):
        return Classifier(backbone, task.num_classes)


_PROBED = frozenset({"batchnorm_free", "w_lr", "w_decay"})
_MERGED = {
    "merges": True,
    "settings": ("granularity", "batchnorm", "normalisation", "align", "score_controls"),
    "reads": LINEAR_PROBE | _PROBED | {"granularity", "batchnorm", "normalisation", "align"},
}

CORE = {
    "ft": Approach("FT", ft),
    "lp_ft": Approach("LP-FT", lp_ft, reads=LINEAR_PROBE | {"lp_batchnorm"}),
    "lp_norms_ft": Approach("LP-FT, norms free", lp_norms_ft, reads=LINEAR_PROBE | {"batchnorm_free"}),
    "medmerge": Approach("MedMerge", medmerge, **_MERGED),
    "medmerge_zeros": Approach(
        "MedMerge with zeros",
        medmerge_zeros,
        settings=tuple(name for name in _MERGED["settings"] if name != "align"),
        reads=_MERGED["reads"] - {"align"},
    ),
    "fixed_w": Approach("MedMerge, w fixed", fixed_w, **_MERGED | {"reads": _MERGED["reads"] - {"w_lr", "w_decay"}}),
}
"""These approaches by their names in parameter files; `medmerge.registry` has all."""
