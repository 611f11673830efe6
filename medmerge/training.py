"""One training loop and the two phases that use it: linear probe and fine-tune (paper, sections 2 and 3).

Nothing here can reach test data: a :class:`Task` holds the training and validation images only.
"""

import functools
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn

from medmerge import batchnorm, loop
from medmerge.checkpoints import Progress
from medmerge.data import Samples
from medmerge.devices import channels_last, memory_kept, peak_memory, reset_peak_memory, seeded
from medmerge.loop import loss
from medmerge.merge import KernelMerge
from medmerge.serving import prepare, resident
from medmerge.stats import evaluation
from medmerge.task import Protocol, Task

__all__ = [
    "FREE",
    "PHASES",
    "TrainingError",
    "features",
    "fine_tune",
    "fit",
    "kernel_shares",
    "linear_probe",
    "parameter_groups",
    "predict",
    "prepare",
    "validate",
]

log = logging.getLogger(__name__)

PHASES = ("linear_probe", "fine_tune")

FREE = ("both", "affine", "statistics", "none")
"""What of batch norms can change in a linear probe. ``"both"``: all, as in fine-tuning (the paper's "unfrozen");
``"affine"``: scale and shift learn, inputs are normalised by running statistics that stay; ``"statistics"``: inputs are
normalised by the batch's, running ones follow, scale and shift stay; ``"none"``: all stay. Layer norms and other
parameters of a channel have no statistics; they go with ``"affine"``."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped and what to change."""


def linear_probe(model: nn.Module, task: Task, free: str | None = None) -> None:
    """Train a classifier's head on frozen kernels, in place (LP; Kumar et al. 2022).

    Of a :class:`~medmerge.merge.KernelMerge` the merging weights and normalisation layers learn too (paper, section
    2). Where nothing of the backbone changes, its features are computed once.

    Args:
        free: what of the batch norms changes, one of :data:`FREE`; by default the protocol's ``batchnorm_free`` for a
            merge, and for any other backbone nothing or, with ``lp_batchnorm`` ``"train"``, their statistics.
    """
    protocol, backbone = task.protocol, model.backbone
    if free is None:
        plain = {"eval": "none", "train": "statistics"}[protocol.lp_batchnorm]
        free = protocol.batchnorm_free if isinstance(backbone, KernelMerge) else plain
    model.requires_grad_(True)
    backbone.requires_grad_(False)
    for parameter in _learning(backbone, free, protocol):
        parameter.requires_grad_(True)
    moves = free in ("both", "statistics") and bool(batchnorm.layers(backbone))
    if moves or any(parameter.requires_grad for parameter in backbone.parameters()):
        still = [] if moves else list(batchnorm.layers(backbone).values())
        fit(model, task.train, task.val, "linear_probe", task, still)
        return
    model.to(task.device)
    started = time.perf_counter()
    train, val = (features(backbone, samples, task) for samples in (task.train, task.val))
    task.cost["features"] = {"seconds": time.perf_counter() - started}
    fit(model.head, train, val, "linear_probe", task)


def _learning(backbone: nn.Module, free: str, protocol: Protocol) -> list[nn.Parameter]:
    """The backbone's parameters that learn in a linear probe in which ``free`` of its batch norms changes."""
    affine = free in ("both", "affine")
    if not isinstance(backbone, KernelMerge):
        return [p for m in batchnorm.layers(backbone).values() for p in m.parameters()] if affine else []
    weights = backbone.merging_parameters()
    others = {id(p): p for p in backbone.parameters()}
    for w in weights:
        del others[id(w)]
    return (weights if protocol.w_lr != 0 else []) + (list(others.values()) if affine else [])


def fine_tune(model: nn.Module, task: Task) -> None:
    """Train all of a classifier, in place (FT); with ``ft_epochs`` of 0 it stays as it is."""
    model.requires_grad_(True)
    if not task.protocol.ft_epochs:
        return
    fit(model, task.train, task.val, "fine_tune", task)


def fit(
    model: nn.Module, train: Samples, val: Samples, phase: str, task: Task, still: Sequence[nn.Module] = ()
) -> None:
    """Minimise :func:`~medmerge.loop.loss` over one phase; leave ``model`` at the selected epoch.

    An interrupted phase goes on after the last epoch that is on disk, and ends with the same numbers: the order of the
    images and the random state are functions of seed, phase and epoch. A finished one is read from its checkpoint.

    Args:
        model: maps a batch of inputs to logits ``[B, num_classes]``.
        train, val: images, or features computed once.
        phase: one of :data:`PHASES`; the protocol gives its epochs and learning rate.
        task: the rest; gains rows of history and the phase's cost.
        still: modules that stay in eval mode.

    Raises:
        TrainingError: fewer than two training images, or a loss that is not finite (epoch and step are named).
    """
    short = {"linear_probe": "lp", "fine_tune": "ft"}[phase]
    epochs, lr = getattr(task.protocol, f"{short}_epochs"), getattr(task.protocol, f"{short}_lr")
    if len(train) < 2:
        raise TrainingError(f"training needs at least two images, got {len(train)}")
    device = task.device
    channels_last(model.to(device))
    train, val = resident(train, device), resident(val, device)
    optimizer = torch.optim.AdamW(parameter_groups(model, task.protocol), lr=lr, fused=True)
    path = task.checkpoints / f"{phase}.pt" if task.checkpoints else None
    merge = getattr(model, "backbone", None)
    watch = functools.partial(kernel_shares, merge) if isinstance(merge, KernelMerge) else None
    state = Progress(model, optimizer, phase, f"{task.key}/{phase}", path, task.score, watch)
    steps = loop.Steps(model, optimizer, lambda: task.autocast, task.protocol.batch_size, device)
    reset_peak_memory(device)
    while state.epoch < epochs:
        started = time.perf_counter()
        with memory_kept(), seeded(device, task.seed, PHASES.index(phase), state.epoch):
            model.train()
            for module in still:
                module.eval()
            where = f"{phase}, epoch {state.epoch + 1}"
            train_loss = _train_epoch(steps, train, f"{short}_lr, which is {lr:g}", where)
            scores = validate(model, val, task)
        row, seconds = {"train_loss": train_loss, **scores}, time.perf_counter() - started
        state.advance(row, seconds, peak_memory(device), last=state.epoch + 1 == epochs)
        _report(phase, state, epochs, len(train))
    if task.protocol.select == "best":
        model.load_state_dict(state.best)
    task.history.extend(state.history)
    if state.watched:
        task.kernel_history = {name: torch.stack([w[name] for w in state.watched]) for name in state.watched[0]}
    task.cost[phase] = {
        "seconds": state.seconds,
        "images_per_second": epochs * len(train) / state.seconds,
        "peak_memory_mib": state.peak_memory,
    }


def kernel_shares(merge: KernelMerge) -> dict[str, Tensor]:
    """The merging weights as a history keeps them: w - 1/n of every kernel, float16, on the CPU.

    Of two sources the first one's, ``[kernels]``; of n > 2 all, ``[n, kernels]``. What is learnt lies close to 1/n, and
    float16 is finest around 0. With a weight a parameter, a kernel's mean.
    """
    n = merge.num_sources
    dims = 2 if n > 2 else 1
    means = {name: w.reshape(*w.shape[:dims], -1).float().mean(-1) for name, w in merge.kernel_weights().items()}
    return {name: (w - 1 / n).half().cpu() for name, w in means.items()}


def _train_epoch(steps: loop.Steps, train: Samples, rate: str, where: str) -> float:
    """One pass over the training images; returns the mean loss."""
    found, sizes = loop.epoch(steps, train)
    losses = found.cpu()
    if not torch.isfinite(losses).all():
        step = int((~torch.isfinite(losses)).nonzero()[0]) + 1
        raise TrainingError(f"the loss is {losses[step - 1].item()} in {where}, step {step}: lower {rate}")
    return float(np.average(losses.double().numpy(), weights=sizes))


def validate(model: nn.Module, val: Samples, task: Task) -> dict[str, float]:
    """Loss and scores on the validation images, as a history keeps them, in eval mode."""
    logits = _logits(model, val, task)
    labels = val.labels.cpu()
    if task.multilabel:
        scores = evaluation.metrics(labels.numpy(), logits.sigmoid().numpy(), [str(k) for k in range(task.num_classes)])
        if scores["macro_auroc"] is None:
            raise TrainingError("no class is both present and absent in the validation images: make that part larger")
        chosen = {f"val_{name}": scores[name] for name in ("accuracy", "macro_f1", "macro_auroc")}
        return {"val_loss": loss(logits, labels).item(), **chosen}
    predicted, truth = logits.argmax(1).numpy(), labels.numpy()
    classes = range(task.num_classes)
    return {
        "val_loss": loss(logits, labels).item(),
        "val_accuracy": float(accuracy_score(truth, predicted)),
        "val_macro_f1": float(f1_score(truth, predicted, average="macro", labels=classes, zero_division=0)),
    }


def predict(model: nn.Module, samples: Samples, task: Task) -> np.ndarray:
    """Probabilities, float32 ``[N, num_classes]``, in eval mode: of one class an image, or of each by itself."""
    model.to(task.device)
    logits = _logits(model, samples, task)
    return (logits.sigmoid() if task.multilabel else logits.softmax(1)).numpy()


def features(backbone: nn.Module, samples: Samples, task: Task) -> Samples:
    """``samples`` with a frozen backbone's features, float32 ``[N, num_features]``, in place of images (eval mode)."""
    values = _logits(backbone, samples, task)
    return replace(samples, inputs=values, rows=torch.arange(len(samples)))


def _logits(model: nn.Module, samples: Samples, task: Task) -> Tensor:
    """What ``model`` returns in eval mode for all samples, float32 on the CPU."""
    size = 4 * task.protocol.batch_size
    return loop.outputs(model, samples, lambda: task.autocast, size, task.device).cpu().clone()


def parameter_groups(model: nn.Module, protocol: Protocol) -> list[dict]:
    """What learns, in groups for AdamW: kernels of convolutions and linear layers decay by ``weight_decay``; merging
    weights have a rate (``w_lr``) and a decay (``w_decay``) of their own; everything else does not decay.
    """
    kernels = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if (isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and name == "weight")
        or (isinstance(module, nn.MultiheadAttention) and name == "in_proj_weight")
    }
    merges = [module for module in model.modules() if isinstance(module, KernelMerge)]
    merging = {id(w) for merge in merges for w in merge.merging_parameters()}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if id(p) in kernels], "weight_decay": protocol.weight_decay},
        {"params": [p for p in learning if id(p) not in kernels | merging], "weight_decay": 0.0},
    ]
    if weights := [p for p in learning if id(p) in merging]:
        rate = {} if protocol.w_lr is None else {"lr": protocol.w_lr}
        groups.append({"params": weights, "weight_decay": protocol.w_decay, **rate})
    return groups


def _report(phase: str, state: Progress, epochs: int, images: int) -> None:
    row, rate = state.history[-1], state.epoch * images / state.seconds
    left = (epochs - state.epoch) * state.seconds / state.epoch
    log.info(
        "%s %d/%d  loss %.4f  validation %s %.4f (best %.4f)  %.0f images/s  %d:%02d left",
        *(phase, state.epoch, epochs, row["train_loss"], "AUROC" if "auroc" in state.score else "F1"),
        *(row[state.score], state.best_score, rate),
        *divmod(round(left), 60),
    )
