"""What approaches that combine finished networks share: the networks, their weighted mean, and its validation score.

A study that has the networks of its other rows on disk hands them over (:attr:`~medmerge.task.Task.recall`);
otherwise they are trained here, in a place of their own. Either way they are the same, bit for bit on the CPU.
"""

import contextlib
import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from medmerge import batchnorm
from medmerge.approaches import CORE
from medmerge.approaches.paper import classifier
from medmerge.devices import channels_last
from medmerge.training import Task, linear_probe, validate

PARTS = "parts"
"""Folder of the checkpoints of networks that are trained on the way, below the task's own."""


def names(sources: Sequence[nn.Module], task: Task) -> tuple[str, ...]:
    """What the sources were trained on, or their positions where the task does not say."""
    return task.sources or tuple(map(str, range(len(sources))))


def label(approach: str, name: str) -> str:
    """A network in words, as a record's label has it, such as ``"LP-FT ham10k"``."""
    return f"{CORE[approach].title} {name}"


def finished(approach: str, source: nn.Module, name: str, task: Task) -> nn.Module:
    """The network that ``"ft"`` or ``"lp_ft"`` from one source ends with, recalled or else trained.

    Its seconds count as the task's own, under ``cost["ingredients"]``; those that were recalled, and so spent
    earlier, also as ``recalled_seconds``.

    Args:
        source: a backbone; it is copied and never changed.
        name: what it was trained on.
    """
    found = task.recall(approach, name) if task.recall else None
    if found:
        model, cost = found
    else:
        part = _part(task, f"{approach}-{name}")
        model, cost = CORE[approach].run(copy.deepcopy(source), part).model, part.cost
    _spend(task, cost, recalled=bool(found))
    return _settled(model, task)


def probed(source: nn.Module, name: str, task: Task) -> nn.Module:
    """A copy of a source with a linear-probed head: what LP-FT's first phase ends with. Counted as :func:`finished`."""
    part = _part(task, f"probe-{name}")
    model = classifier(copy.deepcopy(source), part)
    linear_probe(model, part)
    _spend(task, part.cost, recalled=False)
    return _settled(model, task)


@torch.no_grad()
def blend(networks: Sequence[nn.Module], shares: Sequence[float] | None = None) -> nn.Module:
    """The weighted mean of networks of one architecture: a copy of the first with mixed tensors.

    All floating-point parameters and buffers are mixed, a head's and batch norms' running statistics included;
    integer buffers are the first's.

    Args:
        shares: a number for each network, which sum to one; equal by default.
    """
    shares = [1 / len(networks)] * len(networks) if shares is None else shares
    mixed, states = copy.deepcopy(networks[0]), [network.state_dict() for network in networks]
    for name, tensor in mixed.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(sum(share * state[name] for share, state in zip(shares, states, strict=True)))
    return mixed


def score(model: nn.Module, task: Task) -> float:
    """The validation score that the task goes by: macro F1, or macro AUROC of several labels an image."""
    return validate(model, task.val, task)[task.score]


def reestimated(model: nn.Module, task: Task) -> nn.Module:
    """``model``, with batch norm's statistics measured again on training images: a mean's own are stale."""
    with task.autocast:
        batchnorm.reestimate(model, task.measured)
    return model


@contextlib.contextmanager
def timed(task: Task, phase: str) -> Iterator[None]:
    """Add the block's seconds to the task's ``cost[phase]``."""
    started = time.perf_counter()
    yield
    spent = task.cost.setdefault(phase, {"seconds": 0.0})
    spent["seconds"] += time.perf_counter() - started


def _part(task: Task, name: str) -> Task:
    """A task on the same images with its own history, cost and checkpoints."""
    place = task.checkpoints / PARTS / name if task.checkpoints else None
    return replace(
        task, checkpoints=place, key=f"{task.key}/{name}", history=[], kernel_history={}, cost={}, recall=None
    )


def _spend(task: Task, cost: Mapping[str, Mapping[str, float]], recalled: bool) -> None:
    seconds = sum(phase["seconds"] for phase in cost.values())
    memory = max((phase.get("peak_memory_mib", 0.0) for phase in cost.values()), default=0.0)
    spent = task.cost.setdefault("ingredients", {"seconds": 0.0, "recalled_seconds": 0.0, "peak_memory_mib": 0.0})
    spent["seconds"] += seconds
    spent["recalled_seconds"] += seconds * recalled
    spent["peak_memory_mib"] = max(spent["peak_memory_mib"], memory)


def _settled(model: nn.Module, task: Task) -> nn.Module:
    """The network where and how it would be after training, so that a recalled one computes the same."""
    channels_last(model.to(task.device))
    return model
