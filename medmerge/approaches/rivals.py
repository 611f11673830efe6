"""What else could be made of the same networks: the rivals of MedMerge, each a few lines on top of the two phases.

Some merge the sources, without learning how, and go on with LP-FT (:func:`average`, :func:`fisher`); the others combine
networks that are already fine-tuned (:func:`interpolation`, :func:`wise_ft`, :func:`soup`, :func:`ensemble`). Whatever
they choose, they choose on the validation images, and note it in :attr:`~medmerge.approaches.paper.Outcome.choices`.
The mean of fine-tuned networks has batch-norm statistics of its own, measured again on training images: the mean of
theirs would break it (mlfoundations/model-soups, issue 13).

A study that has the networks of its other rows on disk hands them over (:attr:`~medmerge.task.Task.recall`); otherwise
they are trained here, in a place of their own. Either way they are the same, bit for bit on the CPU.
"""

import contextlib
import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from medmerge.approaches import CORE
from medmerge.approaches.paper import MergeOptions, Outcome, classifier, lp_ft, measure
from medmerge.batchnorm import reestimate
from medmerge.devices import channels_last, seeded
from medmerge.training import Task, linear_probe, validate

PARTS = "parts"
"""Folder of the checkpoints of networks that are trained on the way, below the task's own."""

COEFFICIENTS = tuple(k / 10 for k in range(11))
"""Shares that a straight line between two networks is tried at."""

FISHER_FLOOR = 1e-12
"""A source's Fisher information of a parameter counts as this at least, beside a norm of 1 over all parameters."""


def average(sources: Sequence[nn.Module], task: Task, *, batchnorm: str | int = "mean") -> Outcome:
    """LP-FT from the uniform average of the sources: a uniform soup (Wortsman et al. 2022) of initial values.

    Args:
        batchnorm: what becomes of normalisation layers, as for :class:`~medmerge.merge.KernelMerge`.
    """
    merged = averaged(sources, batchnorm)
    measure(merged, sources, task, batchnorm)
    return lp_ft(merged, task)


def fisher(
    sources: Sequence[nn.Module], task: Task, *, batchnorm: str | int = "mean", fisher_images: int = 256
) -> Outcome:
    """LP-FT from the Fisher-weighted average of the sources (Matena & Raffel 2022).

    Each source's Fisher information is that of its classifier on the target: the source with a linear-probed head.
    It decides over the parameters, batch norms' affine ones included; running statistics know no Fisher information.

    Args:
        batchnorm: what becomes of running statistics, as for :func:`average`.
        fisher_images: training images to estimate it on, drawn by the task's seed.
    """
    merged = averaged(sources, batchnorm)
    probes = [probed(source, name, task) for source, name in zip(sources, names(sources, task), strict=True)]
    with timed(task, "fisher"):
        diagonals = [diagonal_fisher(probe, task, fisher_images) for probe in probes]
        parameters = [dict(source.named_parameters()) for source in sources]
        merged.load_state_dict(fisher_mean(parameters, diagonals), strict=False)
    measure(merged, sources, task, batchnorm)
    return lp_ft(merged, task)


def interpolation(sources: Sequence[nn.Module], task: Task) -> Outcome:
    """The best network on the straight line between the two fine-tuned ones, from each source (no further training).

    Both heads start from the same values. The coefficient is the share of the network from the first source.

    Raises:
        ValueError: not two sources.
    """
    if len(sources) != 2:
        raise ValueError(f"interpolation: a line is between two networks, and there are {len(sources)} sources")
    first, second = (finished("ft", *pair, task) for pair in zip(sources, names(sources, task), strict=True))
    return best_between(second, first, task)


def wise_ft(source: nn.Module, task: Task) -> Outcome:
    """The best network between one source's linear probe and its LP-FT (WiSE-FT; Wortsman et al. 2022).

    The coefficient is the share of the fine-tuned network, 1 for LP-FT itself.
    """
    (name,) = names([source], task)
    return best_between(probed(source, name, task), finished("lp_ft", source, name, task), task)


def soup(sources: Sequence[nn.Module], task: Task) -> Outcome:
    """Greedy soup of the networks that FT and LP-FT from each source end with (Wortsman et al. 2022, recipe 1).

    From the best on the validation images to the worst (equals in the order of FT, LP-FT and the sources): one joins
    the average if the average's validation score does not fall.
    """
    networks = {
        label(approach, name): finished(approach, source, name, task)
        for approach in ("ft", "lp_ft")
        for source, name in zip(sources, names(sources, task), strict=True)
    }
    with timed(task, "search"):
        scores = {name: score(network, task) for name, network in networks.items()}
        order = sorted(networks, key=scores.__getitem__, reverse=True)
        kept, model, reached = order[:1], networks[order[0]], scores[order[0]]
        for name in order[1:]:
            tried = reestimated(blend([networks[one] for one in (*kept, name)]), task)
            if (now := score(tried, task)) >= reached:
                kept, model, reached = [*kept, name], tried, now
    return Outcome(model, choices={"soup": kept, "validation": {**scores, "soup": reached}})


def ensemble(sources: Sequence[nn.Module], task: Task) -> Outcome:
    """The fine-tuned networks from all sources, by the mean of their logits.

    An upper bound rather than a rival: it costs one inference a source, where all others end as one network.
    """
    called = names(sources, task)
    networks = [finished("ft", *pair, task) for pair in zip(sources, called, strict=True)]
    used = {"networks at every inference": [label("ft", name) for name in called]}
    return Outcome(Ensemble(networks), choices=used)


class Ensemble(nn.Module):
    """Several classifiers side by side; ``forward`` returns the mean of their logits, float32 ``[N, num_classes]``."""

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of images ``[N, 3, H, W]``."""
        return torch.stack([network(x).float() for network in self.networks]).mean(0)


def averaged(sources: Sequence[nn.Module], batchnorm: str | int = "mean") -> nn.Module:
    """The uniform average of backbones: their merge with equal weights, folded."""
    return MergeOptions(granularity="model", batchnorm=batchnorm).start(sources)[0].fold()


def best_between(begin: nn.Module, end: nn.Module, task: Task) -> Outcome:
    """The network with the best validation score on the straight line between two, the first of equals.

    Tried at :data:`COEFFICIENTS`, which are the share of ``end``. The ends are the networks as they are; in between,
    the statistics of batch norms are estimated anew.
    """
    model, coefficient, scores = begin, 0.0, {}
    with timed(task, "search"):
        for share in COEFFICIENTS:
            ends = {0.0: begin, 1.0: end}
            tried = ends[share] if share in ends else reestimated(blend([begin, end], [1 - share, share]), task)
            scores[share] = score(tried, task)
            if scores[share] > scores[coefficient]:
                model, coefficient = tried, share
    validation = {f"{share:.1f}": value for share, value in scores.items()}
    return Outcome(model, choices={"coefficient": coefficient, "validation": validation})


def diagonal_fisher(model: nn.Module, task: Task, limit: int) -> dict[str, Tensor]:
    """Diagonal of a classifier's Fisher information on the task's training images, by its backbone's parameters.

    The true Fisher information, not the empirical one: the expectation over labels is the model's own and exact, as
    in Matena & Raffel's code; the images' labels play no part. One gradient an image and class, in eval mode and
    float32.

    Args:
        limit: images to take at most, drawn by the task's seed.

    Returns:
        float64 tensors, shaped as the parameters.
    """
    backbone = model.backbone.requires_grad_(True)
    parameters = dict(backbone.named_parameters())
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    model.eval()
    drawn = task.measured(limit)
    with seeded(task.device, task.seed):
        for image in (one for batch in drawn for one in batch.split(1)):
            logits = model(image)[0]
            if task.multilabel:  # labels independent of each other: E[(d log p)²] is p (1 - p) (d logit)², summed
                terms, weights = logits, logits.sigmoid() * (1 - logits.sigmoid())
            else:
                terms, weights = logits.log_softmax(0), logits.softmax(0)
            for term, weight in zip(terms, weights.detach(), strict=True):
                gradients = torch.autograd.grad(term, [*parameters.values()], retain_graph=True)
                for name, gradient in zip(parameters, gradients, strict=True):
                    total[name] += weight * gradient.double().square()
    return {name: value / min(limit, len(task.train)) for name, value in total.items()}


def fisher_mean(
    parameters: Sequence[Mapping[str, Tensor]], diagonals: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Mean of n sources' parameters, each weighted by its Fisher information: F_b / (F_b + F_c) for two.

    Each source's Fisher information is first divided by its L2 norm over all parameters, as in Matena & Raffel's
    code, so that the more confident classifier (with the smaller one) does not lose everywhere, and counts as
    :data:`FISHER_FLOOR` at least: where no source knows anything, all count alike.

    Args:
        parameters, diagonals: by name, for each source.
    """
    norms = [torch.stack([f.double().norm() for f in one.values()]).norm() for one in diagonals]
    mean = {}
    for name, first in parameters[0].items():
        weights = [
            (one[name].double() / norm.clamp(min=torch.finfo(torch.float64).tiny)).clamp(min=FISHER_FLOOR)
            for one, norm in zip(diagonals, norms, strict=True)
        ]
        mixed = sum(w * one[name].detach().to(w.device) for w, one in zip(weights, parameters, strict=True))
        mean[name] = (mixed / sum(weights)).to(first.dtype)
    return mean


# ---------------------------------------------------------------- what is combined


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
        reestimate(model, task.measured)
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
