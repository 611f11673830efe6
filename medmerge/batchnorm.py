"""Batch norm in merged networks: what its statistics are, what they should be, and how to measure them again.

The mean of two networks' running statistics is not what the merged network's channels do: for a merged kernel
``w b + (1 - w) c`` the variance is ``w² s_b² + (1 - w)² s_c² + 2 w (1 - w) cov(b, c)``, below the mean of the variances
unless the two agree, and in eval mode the error compounds with depth (Jordan et al. 2023, REPAIR).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

Batches = Callable[[], Iterable[Tensor]]
"""Gives prepared images ``[B, 3, H, W]`` on the model's device, in batches of two at least; the same at every call."""


def layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms that keep running statistics, by name, in the model's order."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


@torch.no_grad()
def reestimate(model: nn.Module, batches: Batches) -> None:
    """Replace the running statistics by the mean of what ``batches`` show, in place (REPAIR's "BN reset").

    One pass in which batch norms normalise by their batch, so that every layer sees what the layers before it would
    give with the right statistics. Everything else, dropout too, is in eval mode: this differs from
    ``torch.optim.swa_utils.update_bn``, which puts the whole model in train mode. Modes, momenta and
    ``num_batches_tracked`` are left as they were. A model without batch norm is not changed.

    Raises:
        ValueError: there is no batch.
    """
    norms = layers(model)
    if not norms:
        return
    with _modes_kept(model), parametrize.cached():
        model.eval()
        for module in norms.values():
            module.train()
            module.momentum = None
            module.reset_running_stats()
        seen = sum(model(batch) is not None for batch in batches())
    if not seen:
        raise ValueError("there are no images to measure batch norm's statistics on")


@torch.no_grad()
def repair(merged: nn.Module, sources: Sequence[nn.Module], batches: Batches) -> None:
    """Give every batch norm of ``merged`` an output with the mean and spread that the sources' have, in place.

    REPAIR (Jordan et al. 2023) for networks with batch norm: per channel, the goal is the mean over the sources of the
    output's mean and of its standard deviation, each measured on ``batches`` in eval mode. Shift and scale become that
    goal (the scale keeps the sign that it has in ``merged``), then the statistics are re-estimated.

    Args:
        merged: a merge of the sources, with batch norms of the same number and shapes in the same order.
    """
    measured = [moments(source, batches, outputs=True) for source in sources]
    for i, norm in enumerate(layers(merged).values()):
        if norm.weight is None:
            continue
        means, variances = zip(*(list(found.values())[i] for found in measured), strict=True)
        spread = torch.stack([variance.sqrt() for variance in variances]).mean(0).to(norm.weight)
        norm.bias.copy_(torch.stack(means).mean(0))
        norm.weight.copy_(torch.copysign(spread, norm.weight))
    reestimate(merged, batches)


@torch.no_grad()
def moments(model: nn.Module, batches: Batches, outputs: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of every batch norm's input (or output) over all images and positions, in eval mode.

    Returns:
        By layer name two tensors, float64 ``[channels]`` on the CPU; the variance is the biased one.
    """
    sums: dict[str, list[Any]] = {}

    def add(name: str, values: Tensor) -> None:
        values = values.detach().double().transpose(0, 1).flatten(1)
        count = torch.tensor(float(values.shape[1]), dtype=torch.float64)
        new = [count, values.sum(1).cpu(), values.square().sum(1).cpu()]
        sums[name] = [a + b for a, b in zip(sums.get(name, [0, 0, 0]), new, strict=True)]

    def watch(name: str) -> Callable:
        return lambda module, inputs, output: add(name, output if outputs else inputs[0])

    norms = layers(model)
    handles = [module.register_forward_hook(watch(name)) for name, module in norms.items()]
    try:
        with _modes_kept(model), parametrize.cached():
            model.eval()
            for batch in batches():
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: (first / count, (second / count - (first / count).square()).clamp(min=0))
        for name, (count, first, second) in ((name, sums[name]) for name in norms if name in sums)
    }


def report(model: nn.Module, batches: Batches) -> pd.DataFrame:
    """Running against actual statistics of every batch norm's input, in eval mode: why a merged network may start at
    chance.

    Returns:
        A row a layer, in the model's order: ``layer``, ``channels``; ``variance_ratio``, the median over channels of
        actual by running variance, with quartiles ``low`` and ``high``; ``mean_shift``, the mean over channels of
        ``|actual mean - running mean|`` in running standard deviations. All 1 and 0 where the statistics are right.
    """
    rows = []
    norms: dict[str, Any] = layers(model)
    for name, (mean, variance) in moments(model, batches).items():
        running_mean, running_var = (t.double().cpu() for t in (norms[name].running_mean, norms[name].running_var))
        ratio = variance / (running_var + norms[name].eps)
        shift = (mean - running_mean).abs() / (running_var + norms[name].eps).sqrt()
        low, median, high = ratio.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
        rows.append(
            {"layer": name, "channels": len(ratio), "variance_ratio": median, "low": low, "high": high}
            | {"mean_shift": float(shift.mean())}
        )
    return pd.DataFrame(rows, columns=["layer", "channels", "variance_ratio", "low", "high", "mean_shift"])


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    """Put back every module's mode, and every batch norm's momentum and count of batches."""
    modes = {module: module.training for module in model.modules()}
    own: list[Any] = list(layers(model).values())
    norms = [(m, m.momentum, m.num_batches_tracked.clone()) for m in own]
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, momentum, count in norms:
            module.momentum = momentum
            module.num_batches_tracked.copy_(count)
