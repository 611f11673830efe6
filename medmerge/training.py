"""One training loop and the two phases that use it: linear probe and fine-tune (paper, sections 2 and 3).

Nothing here can reach test data: a :class:`~medmerge.task.Task` holds the training and validation images only. Nothing
is printed; to see a line an epoch: ``logging.basicConfig(level="INFO", format="%(message)s")``, or
``Task(..., on_epoch=print)``.
"""

import copy
import functools
import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn
from torch.nn.utils import parametrize

from medmerge import batchnorm, checkpoints, devices
from medmerge.backbones import Classifier
from medmerge.devices import memory_kept, seeded
from medmerge.merge import KernelMerge
from medmerge.samples import Batch, Batches, Samples, prepare, to_device
from medmerge.sources import kernel_layers
from medmerge.stats import evaluation
from medmerge.task import Progress, Protocol, Task, TrainingError

PHASES = ("linear_probe", "fine_tune")


def linear_probe(model: Classifier, task: Task, free: str | None = None) -> None:
    """Train a classifier's head on frozen kernels, in place (LP; Kumar et al. 2022).

    Of a :class:`~medmerge.merge.KernelMerge` the merging weights and normalisation layers learn too (paper, section
    2). Where nothing of the backbone changes, the features of samples are computed once; those of batches in every
    epoch, since augmentation may change them.

    Args:
        model: a ``backbone`` and a ``head``.
        task: images and protocol; gains history and cost.
        free: what of the batch norms changes, one of :data:`~medmerge.task.FREE`; by default the protocol's
            ``batchnorm_free`` for a merge, and for any other backbone nothing or, with ``lp_batchnorm`` ``"train"``,
            their statistics.

    Raises:
        TrainingError: as :func:`fit`.
    """
    protocol, backbone, (train, val) = task.protocol, model.backbone, task.parts
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
        fit(model, train, val, "linear_probe", task, still)
    elif isinstance(train, Batches) or isinstance(val, Batches):
        fit(model, train, val, "linear_probe", task, [backbone])
    else:
        model.to(task.device)
        started = time.perf_counter()
        train, val = (features(backbone, samples, task) for samples in (train, val))
        task.cost["features"] = {"seconds": time.perf_counter() - started}
        fit(model.head, train, val, "linear_probe", replace(task, progress=None))


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
    """Train all of a classifier, in place (FT); with ``ft_epochs`` of 0 it stays as it is.

    Raises:
        TrainingError: as :func:`fit`.
    """
    model.requires_grad_(True)
    if task.protocol.ft_epochs:
        fit(model, *task.parts, "fine_tune", task)


def fit(
    model: nn.Module, train: Samples | Batches, val: Samples | Batches, phase: str, task: Task, still: Sequence = ()
) -> None:
    """Minimise :func:`loss` over one phase; leave ``model`` at the selected epoch.

    An interrupted phase goes on after the last epoch that is on disk, and ends with the same numbers: the order of the
    images and the random state are functions of seed, phase and epoch (:class:`~medmerge.task.Task` says where that
    does not hold). A finished one is read from its checkpoint.

    Args:
        model: maps a batch of inputs to logits ``[B, num_classes]``.
        train, val: images as a task has them, or features computed once.
        phase: one of :data:`PHASES`; the protocol gives its epochs and learning rate.
        task: the rest; gains rows of history and the phase's cost.
        still: modules that stay in eval mode.

    Raises:
        TrainingError: fewer than two training images, logits of another shape, or a loss that is not finite (epoch and
            step are named).
    """
    protocol, device = task.protocol, task.device
    rate, epochs, lr = {
        "linear_probe": ("lp_lr", protocol.lp_epochs, protocol.lp_lr),
        "fine_tune": ("ft_lr", protocol.ft_epochs, protocol.ft_lr),
    }[phase]
    if len(train) < 2:
        raise TrainingError(f"training needs at least two images, got {len(train)}")
    devices.channels_last(model.to(device))
    optimizer = torch.optim.AdamW(parameter_groups(model, protocol), lr=lr, fused=True)
    path = task.checkpoints / f"{phase}.pt" if task.checkpoints else None
    merge = getattr(model, "backbone", None)
    watch = functools.partial(kernel_shares, merge) if isinstance(merge, KernelMerge) else None
    state = checkpoints.Phase(model, optimizer, phase, f"{task.key}/{phase}", path, task.score, watch)
    task.history.extend(state.history)
    progress = task.progress or Progress(epochs * len(train), bar=False)
    progress.advance(state.epoch * len(train))
    devices.reset_peak_memory(device)
    while state.epoch < epochs:
        started = time.perf_counter()
        with memory_kept(), seeded(device, task.seed, PHASES.index(phase), state.epoch):
            model.train()
            for module in still:
                module.eval()
            where = f"{phase}, epoch {state.epoch + 1}"
            found = _train_epoch(model, optimizer, train, task, where, f"{rate}, which is {lr:g}")
            row = {"train_loss": found, **validate(model, val, task)}
        seconds = time.perf_counter() - started
        state.advance(row, seconds, devices.peak_memory(device), last=state.epoch + 1 == epochs)
        task.history.append(state.history[-1])
        progress.advance(len(train), seconds, _line(state, epochs, len(train)))
        if task.on_epoch:
            task.on_epoch(state.history[-1])
    if protocol.select == "best":
        model.load_state_dict(state.best)
    if state.watched:
        task.kernel_history = {name: torch.stack([w[name] for w in state.watched]) for name in state.watched[0]}
    task.cost[phase] = {
        "seconds": state.seconds,
        "images_per_second": epochs * len(train) / state.seconds,
        "peak_memory_mib": state.peak_memory,
    }


def _line(state: checkpoints.Phase, epochs: int, images: int) -> str:
    row, name = state.history[-1], "AUROC" if "auroc" in state.score else "F1"
    return (
        f"{state.name} {state.epoch}/{epochs}  loss {row['train_loss']:.4f}  validation {name} {row[state.score]:.4f} "
        f"(best {state.best_score:.4f})  {state.epoch * images / state.seconds:.0f} images/s"
    )


def _train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, train: Samples | Batches, task: Task, where: str, rate: str
) -> float:
    """One pass over the training images; returns the mean loss. Nothing in it waits for a GPU."""
    found, sizes = [], []
    for batch in train.shuffled(task.protocol.batch_size):
        found.append(step(model, optimizer, batch, task))
        sizes.append(len(batch[1]))
    losses = torch.stack(found).cpu()
    if not torch.isfinite(losses).all():
        number = int((~torch.isfinite(losses)).nonzero()[0])
        raise TrainingError(f"the loss is {losses[number].item()} in {where}, step {number + 1}: lower {rate}")
    return float(np.average(losses.double().numpy(), weights=sizes))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, task: Task) -> Tensor:
    """One training step on one batch; returns its loss, which stays on the device.

    Raises:
        TrainingError: the model's logits are not ``[B, num_classes]``.
    """
    inputs, labels = to_device(batch, task.device)
    optimizer.zero_grad(set_to_none=True)
    with task.autocast:
        logits = model(prepare(inputs))
    if logits.shape != (len(labels), task.num_classes):
        raise TrainingError(
            f"of {len(labels)} images the network gives {list(logits.shape)}, not one logit for each of the task's "
            f"{task.num_classes} classes"
        )
    value = loss(logits.float(), labels)
    value.backward()
    optimizer.step()
    return value.detach()


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


def seconds_per_image(model: nn.Module, task: Task, steps: int = 3) -> float:
    """What training takes an image, by ``steps`` steps after a first one on a copy of ``model``, which stays as it is.

    Times ``images x epochs`` it estimates a phase before it starts.
    """
    model = copy.deepcopy(model).to(task.device).train()
    devices.channels_last(model)
    optimizer = torch.optim.AdamW(parameter_groups(model, task.protocol), fused=True)
    train, _ = task.parts
    taken, images = [], []
    with memory_kept(), seeded(task.device, task.seed):
        for batch in itertools.islice(train.shuffled(task.protocol.batch_size), steps + 1):
            started = time.perf_counter()
            step(model, optimizer, batch, task).item()
            taken.append(time.perf_counter() - started)
            images.append(len(batch[1]))
    return sum(taken[1:] or taken) / sum(images[1:] or images)


def kernel_shares(merge: KernelMerge) -> dict[str, Tensor]:
    """The merging weights as a history keeps them: w - 1/n of every kernel, float16, on the CPU.

    Of two sources the first one's, ``[kernels]``; of n > 2 all, ``[n, kernels]``. What is learnt lies close to 1/n, and
    float16 is finest around 0. With a weight a parameter, a kernel's mean.
    """
    n = merge.num_sources
    dims = 2 if n > 2 else 1
    means = {name: w.reshape(*w.shape[:dims], -1).float().mean(-1) for name, w in merge.kernel_weights().items()}
    return {name: (w - 1 / n).half().cpu() for name, w in means.items()}


def validate(model: nn.Module, val: Samples | Batches, task: Task) -> dict[str, float]:
    """Loss and scores on the validation images, as a history keeps them, in eval mode."""
    logits, labels = _outputs(model, val, task)
    if task.multilabel:
        scores = evaluation.metrics(labels.numpy(), logits.sigmoid().numpy(), [str(k) for k in range(task.num_classes)])
        kept = ("accuracy", "macro_f1", "macro_auroc")
        chosen = {name: value for name in kept if (value := scores[name]) is not None}
        if "macro_auroc" not in chosen:
            raise TrainingError("no class is both present and absent in the validation images: make that part larger")
        return {"val_loss": loss(logits, labels).item(), **{f"val_{name}": value for name, value in chosen.items()}}
    predicted, truth = logits.argmax(1).numpy(), labels.numpy()
    classes = range(task.num_classes)
    return {
        "val_loss": loss(logits, labels).item(),
        "val_accuracy": float(accuracy_score(truth, predicted)),
        "val_macro_f1": float(f1_score(truth, predicted, average="macro", labels=classes, zero_division=0)),
    }


def predict(model: nn.Module, data: Samples | Batches | Iterable[Batch], task: Task) -> np.ndarray:
    """Probabilities, float32 ``[N, num_classes]``, in eval mode: of one class an image, or of each by itself.

    Args:
        model: maps a batch of inputs to logits ``[B, num_classes]``.
        data: images as :class:`~medmerge.task.Task` takes them; the rows are in the order in which they come, so that a
            ``DataLoader`` must not shuffle. Labels are checked but not used.
        task: says where and how to compute.
    """
    model.to(task.device)
    data = data if isinstance(data, (Samples, Batches)) else Batches(data, "images", task.num_classes)
    logits, _ = _outputs(model, data, task)
    return (logits.sigmoid() if task.multilabel else logits.softmax(1)).numpy()


def features(backbone: nn.Module, samples: Samples, task: Task) -> Samples:
    """``samples`` with a frozen backbone's features, float32 ``[N, num_features]``, in place of images (eval mode)."""
    values, _ = _outputs(backbone, samples, task)
    return replace(samples, inputs=values, rows=torch.arange(len(samples)))


def _outputs(model: nn.Module, data: Samples | Batches, task: Task) -> Batch:
    """What ``model`` returns in eval mode for all images, float32, and their labels, both on the CPU.

    Its mode is left as it was. Merged kernels are computed once. What is random in somebody's batches is the same in
    every pass.
    """
    found: list[Batch] = []
    training = model.training
    model.eval()
    with seeded(task.device, task.seed), parametrize.cached():
        for inputs, labels in data.ordered(4 * task.protocol.batch_size):
            with torch.inference_mode(), task.autocast:
                found.append((model(prepare(*to_device((inputs,), task.device))).float(), labels))
    model.train(training)
    return torch.cat([one for one, _ in found]).cpu(), torch.cat([one for _, one in found]).cpu()


def parameter_groups(model: nn.Module, protocol: Protocol) -> list[dict]:
    """What learns, in groups for AdamW: kernels of convolutions and linear layers decay by ``weight_decay``; merging
    weights have a rate (``w_lr``) and a decay (``w_decay``) of their own; everything else does not decay.
    """
    kernels = {id(layer.module._parameters.get(layer.weight)) for layer in kernel_layers(model)}
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
