"""What is compared: FT, LP-FT and MedMerge, each a few lines on top of the two phases (paper, section 4).

An approach is a function of one or several backbones and a :class:`~medmerge.training.Task`. It returns a trained
:class:`~medmerge.backbones.Classifier` and, where it merged, the learnt merging weights. It never sees test data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medmerge.backbones import Classifier
from medmerge.devices import seeded
from medmerge.merge import KernelMerge
from medmerge.training import Task, fine_tune, linear_probe

LINEAR_PROBE = frozenset({"lp_epochs", "lp_lr"})


@dataclass(frozen=True)
class Outcome:
    """What an approach ends with.

    Attributes:
        model: the trained classifier, an ordinary network.
        kernel_weights: the first source's learnt weight w by layer, as
            :meth:`~medmerge.merge.KernelMerge.kernel_weights` gives it; empty where nothing was merged.
        merge: the merging classifier as its linear probe left it, before it was folded; None where nothing was merged.
    """

    model: Classifier
    kernel_weights: Mapping[str, Tensor]
    merge: Classifier | None = None


@dataclass(frozen=True)
class Approach:
    """An entry of :data:`APPROACHES`.

    Attributes:
        title: its name in tables.
        run: the function; takes its sources, the task and the settings that it reads.
        merges: whether it takes all sources at once; otherwise it is run from each source alone.
        settings: the merging options that ``run`` takes by keyword.
        reads: parameters that its numbers depend on, beyond those that all approaches share.
    """

    title: str
    run: Callable[..., Outcome]
    merges: bool = False
    settings: tuple[str, ...] = ()
    reads: frozenset[str] = frozenset()


def ft(source: nn.Module, task: Task) -> Outcome:
    """Full fine-tuning from one source (FT)."""
    model = classifier(source, task)
    fine_tune(model, task)
    return Outcome(model, {})


def lp_ft(source: nn.Module, task: Task) -> Outcome:
    """Linear probe, then full fine-tuning, from one source (LP-FT; Kumar et al. 2022)."""
    model = classifier(source, task)
    linear_probe(model, task)
    fine_tune(model, task)
    return Outcome(model, {})


def medmerge(sources: Sequence[nn.Module], task: Task, **settings) -> Outcome:
    """Learn the merge during the linear probe, fold it, fine-tune the result (MedMerge, section 2).

    Args:
        settings: options of :class:`~medmerge.merge.KernelMerge`.
    """
    merge = KernelMerge(sources, **settings)
    model = classifier(merge, task)
    linear_probe(model, task)
    merging = classifier(merge, task)
    merging.head.load_state_dict(model.head.state_dict())
    model.backbone = merge.fold()
    fine_tune(model, task)
    return Outcome(model, {name: w.cpu() for name, w in merge.kernel_weights().items()}, merging)


def classifier(backbone: nn.Module, task: Task) -> Classifier:
    """A backbone with a new head, whose initial values depend on the task's seed alone."""
    with seeded(torch.device("cpu"), task.seed):
        return Classifier(backbone, task.num_classes)


APPROACHES = {
    "ft": Approach("FT", ft),
    "lp_ft": Approach("LP-FT", lp_ft, reads=LINEAR_PROBE | {"lp_batchnorm"}),
    "medmerge": Approach(
        "MedMerge",
        medmerge,
        merges=True,
        settings=("granularity", "batchnorm", "normalisation"),
        reads=LINEAR_PROBE | {"granularity", "batchnorm", "normalisation"},
    ),
}
"""Every approach by its name in parameter files."""
