"""Controls for learnt merging weights: what a merge's validation score owes to the value of each w.

The network as its linear probe left it is scored again, without training, with its weights replaced: by their start, by
each layer's mean, by the same values shuffled among a layer's kernels, by random ones of the same spread, and by either
source alone. If a shuffle does not lower the score, which kernel has which w does not matter.
"""

import pandas as pd
import torch
from torch import Tensor

from medmerge import batchnorm
from medmerge.backbones import Classifier
from medmerge.devices import seeded
from medmerge.training import Task, validate

DRAWS = 3
"""Shuffles, and random draws, by run."""


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


def evaluate(merging: Classifier, task: Task) -> pd.DataFrame:
    """Validation scores of a merge with its weights replaced; ``merging`` is left as it was.

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
