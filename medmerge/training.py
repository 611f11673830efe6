"""One training loop and the two phases that use it: linear probe and fine-tune (paper, sections 2 and 3).

Nothing here can reach test data: a :class:`Task` holds the training and validation images only.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn

from medmerge import batchnorm, evaluation
from medmerge.checkpoints import Progress
from medmerge.data import Samples
from medmerge.devices import (
    channels_last,
    choose_device,
    choose_precision,
    peak_memory,
    reset_peak_memory,
    seeded,
)
from medmerge.merge import KernelMerge
from medmerge.serving import batches, images, prepare, resident, to_device

log = logging.getLogger(__name__)

PHASES = ("linear_probe", "fine_tune")

FREE = ("both", "affine", "statistics", "none")
"""What of batch norms can change in a linear probe. ``"both"``: all, as in fine-tuning (the paper's "unfrozen");
``"affine"``: scale and shift learn, inputs are normalised by running statistics that stay; ``"statistics"``: inputs are
normalised by the batch's, running ones follow, scale and shift stay; ``"none"``: all stay. Layer norms and other
parameters of a channel have no statistics; they go with ``"affine"``."""


MEASURED = 2048
"""Training images on which batch norm is measured, at most."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped and what to change."""


@dataclass(frozen=True)
class Protocol:
    """How to train: the paper's section 3 and, where it is silent, the defaults of the book's protocol.

    Attributes:
        lp_epochs, ft_epochs: epochs of the linear probe and of fine-tuning.
        lp_lr, ft_lr: AdamW's learning rates, constant within a phase.
        batch_size: images a step.
        weight_decay: of the weights of convolutions and linear layers; merging weights, normalisation and biases
            have none.
        select: the epoch that a phase hands on: ``"best"`` by validation macro F1 (of several labels an image: macro
            AUROC), the first of equals, or ``"last"``.
        lp_batchnorm: mode of a frozen backbone's batch norms in the linear probe: ``"eval"`` (running statistics, as
            Kumar et al. 2022) or ``"train"`` (batch statistics, running ones drift).
        batchnorm_free: what of a merge's batch norms changes in its linear probe, one of :data:`FREE`.
        w_lr: learning rate of the merging weights; None for ``lp_lr``, 0 to leave them where they start.
        w_decay: AdamW's decay of the merging weights, towards 0, which is the last source (affine) or equal shares
            (softmax).
        precision: ``"fp32"``, ``"bf16"`` (autocast), or ``"auto"``: bf16 where the device computes in it.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"``: a GPU where there is one.
    """

    lp_epochs: int = 50
    lp_lr: float = 1e-4
    ft_epochs: int = 50
    ft_lr: float = 1e-5
    batch_size: int = 32
    weight_decay: float = 0.01
    select: str = "best"
    lp_batchnorm: str = "eval"
    batchnorm_free: str = "both"
    w_lr: float | None = None
    w_decay: float = 0.0
    precision: str = "auto"
    device: str = "auto"


@dataclass
class Task:
    """What an approach is given: training and validation images, the protocol, and a place for what is learnt.

    Attributes:
        train, val: images (uint8 ``[N, 3, S, S]`` RGB) with labels, of one kind: a class each, int64 ``[N]``, or any
            number of classes each, float32 ``[N, K]`` of 1, 0 and NaN (not known).
        num_classes: width of the head.
        seed: decides the head's initialisation and the order of the images, alike for all approaches.
        protocol: how to train.
        checkpoints: folder for interrupted phases, or None to keep none.
        key: names what is being computed; a checkpoint with another key is not used.
        history: a row an epoch, filled by :func:`fit`.
        kernel_history: the merging weights after every epoch of a merge's linear probe, by layer, float16
            ``[epochs, kernels]`` of w - 0.5 for two sources (see :func:`kernel_shares`); filled by :func:`fit`.
        cost: by phase seconds, images a second and peak memory in MiB, filled by :func:`fit`.
        sources: what the approach's sources were trained on; names them where it chooses between networks.
        recall: gives the finished network of another approach from one source, both by name, and its cost; or None
            where the study does not have it. See `medmerge.ingredients`.
    """

    train: Samples
    val: Samples
    num_classes: int
    seed: int = 0
    protocol: Protocol = field(default_factory=Protocol)
    checkpoints: Path | None = None
    key: str = ""
    history: list[dict] = field(default_factory=list)
    kernel_history: dict[str, Tensor] = field(default_factory=dict)
    cost: dict[str, dict[str, float]] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    recall: Callable[[str, str], tuple[nn.Module, dict] | None] | None = None

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several of the classes, or none."""
        return self.train.labels.ndim == 2

    def history_frame(self) -> pd.DataFrame:
        """The history with its columns, which are there although nothing was trained."""
        auroc = ["val_macro_auroc"] if self.multilabel else []
        columns = ["phase", "epoch", "train_loss", "val_loss", "val_accuracy", "val_macro_f1", *auroc]
        return pd.DataFrame(self.history, columns=None if self.history else columns)

    @property
    def score(self) -> str:
        """Column of the history that decides which epoch is best.

        Of several labels an image macro AUROC: at a threshold of 0.5 rare findings have an F1 of 0 for many epochs.
        """
        return "val_macro_auroc" if self.multilabel else "val_macro_f1"

    @property
    def device(self) -> torch.device:
        """Where the protocol's ``device`` is here."""
        return choose_device(self.protocol.device)

    def measured(self) -> Iterator[Tensor]:
        """Training images to measure batch norm on: prepared batches, :data:`MEASURED` images at most."""
        return images(self.train, self.protocol.batch_size, self.device, self.seed, MEASURED)

    @property
    def autocast(self) -> torch.autocast:
        """The context to compute in, for the protocol's ``precision``."""
        enabled = choose_precision(self.protocol.precision, self.device) == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)


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
    """Minimise :func:`loss` over one phase; leave ``model`` at the selected epoch.

    An interrupted phase goes on after its last whole epoch, and ends with the same numbers: the order of the images
    and the random state are functions of seed, phase and epoch. A finished one is read from its checkpoint.

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
    reset_peak_memory(device)
    while state.epoch < epochs:
        started = time.perf_counter()
        with seeded(device, task.seed, PHASES.index(phase), state.epoch):
            model.train()
            for module in still:
                module.eval()
            where = f"{phase}, epoch {state.epoch + 1}"
            train_loss = _train_epoch(model, train, optimizer, task, f"{short}_lr, which is {lr:g}", where)
            scores = validate(model, val, task)
        state.advance({"train_loss": train_loss, **scores}, time.perf_counter() - started, peak_memory(device))
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


def _train_epoch(
    model: nn.Module, train: Samples, optimizer: torch.optim.Optimizer, task: Task, rate: str, where: str
) -> float:
    """One pass over the training images; returns the mean loss."""
    batch_size = task.protocol.batch_size
    order = torch.randperm(len(train)).to(train.rows.device)
    losses, sizes = [], []
    for positions in batches(order, batch_size):
        inputs, labels = to_device(train.batch(positions), task.device)
        with task.autocast:
            logits = model(prepare(inputs))
        value = loss(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        losses.append(value.detach())
        sizes.append(len(positions))
    steps = torch.stack(losses).cpu()
    if not torch.isfinite(steps).all():
        step = int((~torch.isfinite(steps)).nonzero()[0]) + 1
        raise TrainingError(f"the loss is {steps[step - 1].item()} in {where}, step {step}: lower {rate}")
    return float(np.average(steps.double().numpy(), weights=sizes))


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over images; of several labels an image, binary cross-entropy over the labels that are known.

    Args:
        logits: float ``[B, K]``.
        labels: class indices, int64 ``[B]``, or float ``[B, K]`` of 1, 0 and NaN (not known: no part in the loss).
    """
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels)
    known = ~labels.isnan()
    each = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    return torch.where(known, each, 0).sum() / known.sum().clamp(min=1)


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
    """What ``model`` returns in eval mode for all samples, float32 on the CPU. The model's mode is left as it was."""
    training = model.training
    model.eval()
    outputs = []
    with torch.inference_mode():
        for positions in torch.arange(len(samples), device=samples.rows.device).split(4 * task.protocol.batch_size):
            inputs, _ = to_device(samples.batch(positions), task.device)
            with task.autocast:
                outputs.append(model(prepare(inputs)).float())
    model.train(training)
    return torch.cat(outputs).cpu().clone()


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
