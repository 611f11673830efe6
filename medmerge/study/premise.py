"""What the paper supposes of its sources, measured: how far apart they are, and what lies on the line between them.

The paper speaks of different initialisations, but its medical sources were fine-tuned from the very ImageNet weights
that they are merged with. Then a merged kernel c + w (b - c) is a scaled task vector within one basin; sources from
different initial values are another matter (Frankle et al. 2020; Ainsworth et al. 2023).
"""

import copy

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from medmerge.backbones import Classifier
from medmerge.batchnorm import layers, reestimate
from medmerge.training import Task, loss, validate


@torch.no_grad()
def distances(b: nn.Module, c: nn.Module) -> pd.DataFrame:
    """How far two networks of one architecture are from each other, layer by layer.

    Returns:
        A row for each convolution and linear layer, in the networks' order: ``layer``; ``kind``, its class; ``shape``,
        of the weight, such as ``"64x3x7x7"``; ``kernels``; ``distance``, the L2 norm of b - c by the mean of both
        norms: 0 where they are equal, about 1.41 where they have nothing in common; ``cosine`` of the angle between
        the weights; ``kernel_cosine``, the mean of the cosines of the single kernels, with their quantiles ``low``
        (5 %), ``median`` and ``high`` (95 %). Of kernels that are zero there is no cosine: NaN where there is no other.

    Raises:
        ValueError: the networks have other layers or shapes; the first that differs is named.
    """
    ours, theirs = _kernels(b), _kernels(c)
    for name in ours | theirs:
        shapes = [list(kernels[name][1].shape) if name in kernels else "missing" for kernels in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name} is {shapes[0]} in the first network and {shapes[1]} in the second")
    rows = []
    for name, (kind, first) in ours.items():
        second = theirs[name][1]
        norms = first.norm() + second.norm()
        single = _cosines(first.flatten(1), second.flatten(1))
        known = single[~single.isnan()]
        low, median, high = np.quantile(known, [0.05, 0.5, 0.95]) if len(known) else [np.nan] * 3
        rows.append(
            {"layer": name, "kind": kind, "shape": "x".join(map(str, first.shape)), "kernels": len(first)}
            | {"distance": float(2 * (first - second).norm() / norms) if norms else np.nan}
            | {"cosine": float(_cosines(first.flatten()[None], second.flatten()[None]))}
            | {"kernel_cosine": float(known.mean()), "low": low, "median": median, "high": high}
        )
    return pd.DataFrame(rows)


def _kernels(network: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Class and weight, float64 on the CPU, of each convolution and linear layer."""
    return {
        name: (type(module).__name__, module.weight.detach().double().cpu())
        for name, module in network.named_modules()
        if isinstance(module, (_ConvNd, nn.Linear))
    }


def _cosines(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of each row of ``[rows, entries]`` with the other's, NaN where either is zero."""
    cosines = F.cosine_similarity(first, second, dim=1, eps=0)
    return torch.where((first.norm(dim=1) > 0) & (second.norm(dim=1) > 0), cosines.clamp(-1, 1), torch.nan)


def line(
    b: Classifier, c: Classifier, task: Task, *, steps: int = 11, beyond: float = 0.25, measure: bool = False
) -> pd.DataFrame:
    """Loss and scores on the validation images along the straight line c + a (b - c) between two classifiers.

    Parameters and running statistics lie on the line; beyond its ends a variance that would be negative is 0. The mean
    of two networks' statistics is not what the network between them needs (`medmerge.batchnorm`), so they may
    be measured anew as well, on training images. Test images are never read.

    Args:
        b, c: of one architecture and with the same classes. Neither is changed.
        task: the images, and how to compute.
        steps: points from a = 0 to a = 1, both included; two or more.
        beyond: how far to go on beyond both ends, rounded to whole steps.
        measure: whether to add the line with batch norm's statistics re-estimated at every point.

    Returns:
        A row a point and kind of statistics, by growing a: ``a``; ``statistics`` (``"interpolated"`` or
        ``"re-estimated"``); ``val_loss`` and the scores of :func:`~medmerge.training.validate`.

    Raises:
        ValueError: fewer than two steps, or classifiers of different shapes.
    """
    if steps < 2 or beyond < 0:
        raise ValueError(f"steps={steps} and beyond={beyond}: a line needs two points or more, and beyond >= 0")
    wrong = next((key for key, pair in _pairs(b, c).items() if len({tensor.shape for tensor in pair}) != 1), None)
    if wrong or b.state_dict().keys() != c.state_dict().keys():
        raise ValueError(f"the classifiers differ in {wrong or 'their layers'}: there is no line between them")
    more = round(beyond * (steps - 1))
    rows = []
    for step in range(-more, steps + more):
        a = step / (steps - 1)
        model = between(b, c, a).to(task.device)
        rows.append({"a": a, "statistics": "interpolated", **validate(model, task.val, task)})
        if measure:
            with task.autocast:
                reestimate(model, task.measured)
            rows.append({"a": a, "statistics": "re-estimated", **validate(model, task.val, task)})
    return pd.DataFrame(rows)


@torch.no_grad()
def between(b: nn.Module, c: nn.Module, a: float) -> nn.Module:
    """The network c + a (b - c), every floating-point tensor of it; at 0 and 1 it is c and b to the bit."""
    model = copy.deepcopy(c)
    for first, second in _pairs(b, model).values():
        if second.is_floating_point():
            second.copy_(torch.lerp(second, first.to(second.device), a))
    for norm in layers(model).values():
        norm.running_var.clamp_(min=0)
    return model.eval()


def _pairs(b: nn.Module, c: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    ours, theirs = b.state_dict(), c.state_dict()
    return {key: (ours[key], theirs[key]) for key in ours if key in theirs}


def barrier(table: pd.DataFrame, column: str = "val_loss") -> pd.Series:
    """Height of the barrier between the ends of a line: the largest loss in between less the mean of both ends'.

    Zero or less: the two are linearly connected (Frankle et al., "Linear Mode Connectivity and the Lottery Ticket
    Hypothesis", ICML 2020). The largest is taken over the ends too; what lies beyond them does not count.

    Args:
        table: as :func:`line` gives it.
        column: a loss.

    Returns:
        By ``statistics``. For the re-estimated ones the ends are re-estimated too.
    """
    inside = table[table["a"].between(0, 1)]
    grouped = inside.sort_values("a").groupby("statistics", sort=False)[column]
    return grouped.agg(lambda loss: loss.max() - (loss.iloc[0] + loss.iloc[-1]) / 2)


def prior_loss(task: Task) -> float:
    """Validation loss of answering every image with the training images' class shares: what knowing nothing costs.

    One image is added to every class, so that a class that is not in the training images costs a finite loss.
    """
    labels = task.train.labels.cpu()
    if task.multilabel:
        present, known = labels.nansum(0).double() + 1, (~labels.isnan()).sum(0).double() + 2
        logits = torch.logit(present / known)
    else:
        logits = torch.log(torch.bincount(labels, minlength=task.num_classes).double() + 1)
    return loss(logits.float().expand(len(task.val), -1), task.val.labels.cpu()).item()
