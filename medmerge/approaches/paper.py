"""FT, LP-FT, MedMerge and its controls, each a few lines on top of the two phases (paper, section 4).

An approach is a function of one or several backbones and a :class:`~medmerge.task.Task`. It returns a trained
:class:`~medmerge.backbones.Classifier` and, where it merged, the learnt merging weights. It never sees test data.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
import torch
from torch import Tensor, nn

from medmerge import batchnorm
from medmerge.approaches import matching
from medmerge.backbones import Classifier
from medmerge.devices import seeded
from medmerge.merge import KernelMerge, zeros_like
from medmerge.training import Task, fine_tune, linear_probe, validate

DRAWS = 3
"""Shuffles, and random draws, by run, of the controls for learnt weights (:func:`replaced_weights`)."""


@dataclass(frozen=True)
class Outcome:
    """What an approach ends with.

    Attributes:
        model: the trained classifier, an ordinary network; of an ensemble several.
        kernel_weights: the first source's learnt weight w by layer, as
            :meth:`~medmerge.merge.KernelMerge.kernel_weights` gives it; empty where nothing was merged.
        probed: the classifier as the linear probe left it, a merge before it was folded; None where there was no probe.
        tables: further tables for the record, by name: ``batchnorm`` (:func:`medmerge.batchnorm.report` before and
            after the probe) and ``controls`` (:func:`replaced_weights`).
        choices: what was chosen on the validation images beyond an epoch, such as a coefficient, in JSON's types.
    """

    model: Classifier
    probed: Classifier | None = None
    kernel_weights: Mapping[str, Tensor] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    choices: Mapping[str, object] = field(default_factory=dict)

    @property
    def merge(self) -> Classifier | None:
        """The merging classifier as its linear probe left it; None where no merge was learnt."""
        return self.probed if self.kernel_weights else None


@dataclass(frozen=True)
class MergeOptions:
    """How a merge begins.

    Attributes:
        granularity, normalisation: as for :class:`~medmerge.merge.KernelMerge`.
        batchnorm: where batch norms start: as for :class:`~medmerge.merge.KernelMerge`, or at the mean with statistics
            measured on training images, ``"reestimated"``, with scale and shift set to the sources' spread too,
            ``"repair"`` (`medmerge.batchnorm`).
        align: ``"weights"`` first permutes the channels of every source but the first to match the first's
            (:func:`medmerge.approaches.matching.align`); ``"none"`` merges them as they are.
    """

    granularity: str = "kernel"
    batchnorm: str | int = "mean"
    normalisation: str = "auto"
    align: str = "none"

    def start(self, sources: Sequence[nn.Module], image_size: int = 224) -> tuple[KernelMerge, list[nn.Module]]:
        """The merge before it sees images of ``image_size``, and the sources as they were merged."""
        first, *others = sources
        if self.align == "weights":
            others = [matching.align(first, other, image_size=image_size) for other in others]
        norms = "mean" if self.batchnorm in ("reestimated", "repair") else self.batchnorm
        options = {"granularity": self.granularity, "batchnorm": norms, "normalisation": self.normalisation}
        return KernelMerge([first, *others], **options), [first, *others]


def ft(source: nn.Module, task: Task) -> Outcome:
    """Full fine-tuning from one source (FT)."""
    model = classifier(source, task)
    fine_tune(model, task)
    return Outcome(model)


def lp_ft(source: nn.Module, task: Task, free: str | None = None) -> Outcome:
    """Linear probe, then full fine-tuning, from one source (LP-FT; Kumar et al. 2022).

    Args:
        free: as for :func:`~medmerge.training.linear_probe`.
    """
    model = classifier(source, task)
    linear_probe(model, task, free)
    probed = copy.deepcopy(model)
    fine_tune(model, task)
    return Outcome(model, probed)


def lp_norms_ft(source: nn.Module, task: Task) -> Outcome:
    """LP-FT whose linear probe trains batch norm too: what MedMerge's probe does, without a merge."""
    return lp_ft(source, task, task.protocol.batchnorm_free)


def medmerge(
    sources: Sequence[nn.Module], task: Task, *, learn: bool = True, score_controls: bool = True, **options
) -> Outcome:
    """Learn the merge during the linear probe, fold it, fine-tune the result (MedMerge, section 2).

    Args:
        learn: whether the merging weights learn.
        score_controls: whether to score replacements of the learnt weights (:func:`replaced_weights`).
        options: those of :class:`MergeOptions`.
    """
    begins = MergeOptions(**options)
    merge, sources = begins.start(sources, task.train.image_size)
    measure(merge, sources, task, begins.batchnorm)
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
        return Outcome(model, probed, tables=tables)
    if score_controls and len(sources) == 2 and merge.granularity == "kernel":
        tables["controls"] = replaced_weights(probed, task)
    weights = {name: w.cpu() for name, w in merge.kernel_weights().items()}
    return Outcome(model, probed, kernel_weights=weights, tables=tables)


def fixed_w(sources: Sequence[nn.Module], task: Task, **options) -> Outcome:
    """MedMerge whose merging weights stay at their start, 0.5: only batch norm and the head learn in the probe."""
    return medmerge(sources, task, learn=False, **options)


def medmerge_zeros(source: nn.Module, task: Task, **options) -> Outcome:
    """MedMerge of one source with zeros (paper, section 4, "combining with zeros"): w is what is kept of a kernel."""
    return medmerge([source, zeros_like(source)], task, **options)


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


def substitutes(weights: dict[str, Tensor], seed: int = 0) -> list[tuple[str, int, dict[str, Tensor]]]:
    """Replacements of the learnt weights of two sources.

    Args:
        weights: w by layer, as :meth:`~medmerge.merge.KernelMerge.kernel_weights` gives it, a weight a kernel.
        seed: decides shuffles and draws.

    Returns:
        (control, draw, weights): ``learnt``, ``start`` (0.5), ``layer mean``, ``first source`` (1), ``second source``
        (0) once each; ``shuffled`` (within layers) and ``random`` (normal, with the mean and standard deviation of
        all learnt weights) :data:`DRAWS` times.
    """
    everything = torch.cat([w.flatten() for w in weights.values()])
    mean, sd = everything.mean().item(), everything.std(correction=0).item()
    constant = {
        name: {layer: torch.full_like(w, value) for layer, w in weights.items()}
        for name, value in (("start", 0.5), ("first source", 1.0), ("second source", 0.0))
    }
    found = [("learnt", 0, weights), *((name, 0, value) for name, value in constant.items())]
    found.append(("layer mean", 0, {layer: torch.full_like(w, w.mean().item()) for layer, w in weights.items()}))
    for draw in range(DRAWS):
        with seeded(torch.device("cpu"), seed, draw):
            shuffled = {layer: w[torch.randperm(len(w))] for layer, w in weights.items()}
            random = {layer: (mean + sd * torch.randn(w.shape)).to(w) for layer, w in weights.items()}
        found += [("shuffled", draw, shuffled), ("random", draw, random)]
    return found


def replaced_weights(merging: Classifier, task: Task) -> pd.DataFrame:
    """Controls for learnt merging weights: a merge's validation scores with its weights replaced, without training.

    They are replaced by their start, by each layer's mean, by the same values shuffled among a layer's kernels, by
    random ones of the same spread, and by either source alone. If a shuffle does not lower the score, which kernel has
    which w does not matter. ``merging`` is left as it was.

    Args:
        merging: a classifier whose backbone is a :class:`~medmerge.merge.KernelMerge` of two sources with a weight a
            kernel, as its linear probe left it.

    Returns:
        A row each: ``control``, ``draw``, ``score`` (validation macro F1, or macro AUROC of several labels an image)
        with batch norm as learnt, and ``reestimated``, the score after its statistics were measured again on
        training images (without which a change of w is punished for statistics that no longer fit).
    """
    merge, device = merging.backbone, task.device
    merging.to(device)
    kept = {name: tensor.clone() for name, tensor in merging.state_dict().items()}
    learnt = {name: w.cpu() for name, w in merge.kernel_weights().items()}
    rows = []
    try:
        for control, draw, weights in substitutes(learnt, task.seed):
            merge.set_kernel_weights(weights)
            score = validate(merging, task.val, task)[task.score]
            with task.autocast:
                batchnorm.reestimate(merge, task.measured)
            again = validate(merging, task.val, task)[task.score]
            rows.append({"control": control, "draw": draw, "score": score, "reestimated": again})
            merging.load_state_dict(kept)
    finally:
        merging.load_state_dict(kept)
    return pd.DataFrame(rows)


def classifier(backbone: nn.Module, task: Task) -> Classifier:
    """A backbone with a new head, whose initial values depend on the task's seed alone."""
    with seeded(torch.device("cpu"), task.seed):
        return Classifier(backbone, task.num_classes)
