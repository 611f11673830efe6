"""What a step of each phase costs: seconds, numbers that learn, arithmetic and memory, measured once and kept.

A step is that of `medmerge.training`, on one batch of random images: what is measured does not depend on their
values. Nothing is scored, so no data and no trained weights are needed.
``results/<track>/cost/<backbone>-<size>px.json`` is what :func:`measure` returned.
"""

import copy
import functools
import gc
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medmerge import backbones, devices, training
from medmerge.approaches.paper import classifier
from medmerge.data import Samples
from medmerge.merge import KernelMerge
from medmerge.study.measured import Measured, Sheet, provenance
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.places import home
from medmerge.training import Protocol, Task

CLASSES = 7
"""Width of the head, as for HAM10000's classes."""

PROFILED = ("ft", "kernel")
"""The variants whose operations are timed one by one."""

WARM_UP = 2
"""Rounds before those that are kept."""


@dataclass(frozen=True)
class Variant:
    """What is measured under one name.

    Attributes:
        title: its name in tables.
        learns: ``"nothing"`` (the pass that computes features), ``"head"``, ``"merge"`` (merging weights, batch norms
            and the head) or ``"all"``.
        cached: whether its inputs are features, not images.
        sources, granularity: networks that it starts from, and of a merge as for :class:`~medmerge.merge.KernelMerge`.
    """

    title: str
    learns: str
    cached: bool = False
    sources: int = 1
    granularity: str = ""


VARIANTS = {
    "features": Variant("LP: pass that computes the features", "nothing"),
    "lp_cached": Variant("LP: step on the features", "head", cached=True),
    "lp": Variant("LP: step through the frozen backbone", "head"),
    "ft": Variant("FT", "all"),
    "kernel": Variant("MedMerge probe, w a kernel", "merge", sources=2, granularity="kernel"),
    "parameter": Variant("MedMerge probe, w a parameter", "merge", sources=2, granularity="parameter"),
    "layer": Variant("MedMerge probe, w a layer", "merge", sources=2, granularity="layer"),
    "model": Variant("MedMerge probe, w a model", "merge", sources=2, granularity="model"),
    "softmax3": Variant("Probe of three sources, softmax, a kernel", "merge", sources=3, granularity="kernel"),
}
"""All that is measured. Fine-tuning after a merge is FT: what was merged is folded by then."""


class Timed(Sheet):
    """One variant: seconds of each round, numbers that learn, FLOPs of a step, bytes by :func:`memory`'s kinds, and a
    GPU's peak in MiB.
    """

    seconds: list[float]
    trainable: int
    flops: int
    memory: dict[str, int]
    peak_memory_mib: float | None


class CostSheet(Sheet):
    """A record of costs.

    Attributes:
        load: processes that wanted to run, on average over the minute before and over the last minute, this one among
            them at the end.
        clock: ``"cpu"`` for the processor's time, which other processes hardly change, where one thread of a CPU
            computes, else ``"wall"``.
        variants: by name in :data:`VARIANTS`.
        profile: of :data:`PROFILED`, as :func:`profile` gives it.
    """

    backbone: str
    image_size: int
    batch_size: int
    classes: int
    repeats: int
    kind: str
    device: str
    precision: str
    threads: int
    cores: int | None
    clock: str
    load: list[float]
    variants: dict[str, Timed]
    provenance: dict
    profile: dict[str, dict[str, float]] = {}

    def seconds(self, name: str) -> np.ndarray:
        """Seconds of a step of a variant in every round, float64 ``[repeats]``."""
        return np.array(self.variants[name].seconds)

    def ratio(self, name: str, to: str = "ft") -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile over the rounds of one variant's seconds over another's."""
        return quartiles(self.seconds(name) / self.seconds(to))


def quartiles(values: np.ndarray) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return low, median, high


class Step:
    """A variant ready to run: each call is one step on one and the same batch, of which it returns the loss.

    Args:
        model: a classifier with ``requires_grad`` set, or the head alone where ``samples`` holds features. Where
            nothing of its backbone learns, that stays in eval mode, as in the linear probe.
        samples: one batch.
        task: the protocol, device and precision.
        lr: AdamW's learning rate.

    With nothing that learns, a call computes features as :func:`medmerge.training.features` does, and returns None.
    """

    def __init__(self, model: nn.Module, samples: Samples, task: Task, lr: float):
        self.model, self.samples, self.task = model, samples, task
        devices.channels_last(model.to(task.device))
        backbone = getattr(model, "backbone", model)
        model.train()
        backbone.train(any(parameter.requires_grad for parameter in backbone.parameters()))
        inputs, labels = samples.batch(torch.arange(len(samples)))
        self.inputs, self.labels = inputs.to(task.device), labels.to(task.device)
        groups = training.parameter_groups(model, task.protocol)
        learns = any(group["params"] for group in groups)
        self.optimizer = torch.optim.AdamW(groups, lr=lr, fused=True) if learns else None

    def __call__(self) -> Tensor | None:
        if self.optimizer is None:
            training.features(self.model.backbone, self.samples, self.task)
            return None
        return training.step(self.model, self.optimizer, (self.inputs, self.labels), self.task)


def step(name: str, sources: list[nn.Module], task: Task) -> Step:
    """A variant of :data:`VARIANTS` on the training images of ``task``, which are one batch.

    Args:
        sources: as many backbones as it needs, or more; they are copied.
    """
    variant = VARIANTS[name]
    merges = variant.sources > 1
    if merges:
        backbone = KernelMerge(sources[: variant.sources], granularity=variant.granularity)
    else:
        backbone = copy.deepcopy(sources[0])
    model, samples = classifier(backbone, task), task.train
    model.backbone.requires_grad_(variant.learns in ("merge", "all"))
    model.head.requires_grad_(variant.learns != "nothing")
    if variant.cached:
        model.to(task.device)
        model, samples = model.head, training.features(model.backbone, samples, task)
    return Step(model, samples, task, task.protocol.ft_lr if variant.learns == "all" else task.protocol.lp_lr)


def trainable(step: Step) -> int:
    """Numbers that learn."""
    return sum(parameter.numel() for parameter in step.model.parameters() if parameter.requires_grad)


def flops(step: Step) -> int:
    """Floating point operations of one step, forward and backward, of convolutions and matrix products alone.

    A multiplication and an addition count as two. Element-wise arithmetic, such as the weighted mean itself, batch
    norms and the optimiser, is not counted (:class:`torch.utils.flop_counter.FlopCounterMode`).
    """
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def memory(step: Step) -> dict[str, int]:
    """Bytes that a step holds when its forward pass is done, by what they are for; the same in every run.

    ``parameters`` learn; ``frozen`` are parameters that do not and buffers, among them a merge's copies of its sources'
    kernels; ``gradients`` and ``optimizer`` belong to the parameters; ``saved`` is what is kept for the backward pass
    beyond all these. Gradients are held from the first backward pass on: within a step they replace what was saved,
    so the sum is a bound rather than the peak. Temporary tensors are not counted.
    """
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    parameters, buffers = list(step.model.parameters()), list(step.model.buffers())
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    states = step.optimizer.state.values() if step.optimizer else ()
    held = {tensor.untyped_storage().data_ptr() for tensor in [*parameters, *buffers, step.inputs, step.labels]}
    return {
        "parameters": _bytes(learning),
        "frozen": _bytes([*(one for one in parameters if not one.requires_grad), *buffers]),
        "gradients": _bytes(parameter.grad for parameter in learning if parameter.grad is not None),
        "optimizer": _bytes(value for state in states for value in state.values() if isinstance(value, Tensor)),
        "saved": sum(size for address, size in kept.items() if address not in held),
    }


def measure(p: Parameters) -> CostSheet:
    """Measure the variants on this machine.

    Every round times one step of each variant, in an order drawn anew, so that whatever slows the machine down slows
    all of them; ratios within a round say more than seconds. Memory and arithmetic are taken one variant at a time.

    Args:
        p: ``backbone``, whose weights are random; ``image_size``; ``batch_size``; ``cost_repeats``, rounds that are
            kept after :data:`WARM_UP` that are not; ``device`` and ``precision``.
    """
    task, load = noise(p.image_size, p.batch_size, p.device, p.precision), os.getloadavg()[0]
    with devices.memory_kept(), devices.seeded(task.device, 0):
        sources = [backbones.backbone(p.backbone, "random") for _ in range(max(v.sources for v in VARIANTS.values()))]
        measured = {name: _alone(name, sources, task) for name in VARIANTS}
        steps = {name: step(name, sources, task) for name in VARIANTS}
        seconds = {name: [] for name in VARIANTS}
        draw = np.random.default_rng(0)
        for _ in range(WARM_UP + p.cost_repeats):
            for name in draw.permutation(list(VARIANTS)).tolist():
                seconds[name].append(timed(steps[name], task.device)[0])
    return CostSheet(
        backbone=p.backbone,
        image_size=p.image_size,
        batch_size=p.batch_size,
        classes=CLASSES,
        repeats=p.cost_repeats,
        kind=task.device.type,
        device=devices.describe(task.device),
        precision=devices.choose_precision(p.precision, task.device),
        threads=torch.get_num_threads(),
        cores=os.cpu_count(),
        clock=clock(task.device),
        load=[round(load, 2), round(os.getloadavg()[0], 2)],
        variants={name: Timed(seconds=seconds[name][WARM_UP:], **measured[name]) for name in VARIANTS},
        profile={name: profile(steps[name]) for name in PROFILED},
        provenance=provenance(),
    )


def profile(step: Step, count: int = 8) -> dict[str, float]:
    """Seconds of one step by PyTorch's operators, the ``count`` that take longest and ``"others"``, by its profiler."""
    on_gpu = step.task.device.type == "cuda"
    with torch.profiler.profile() as found:
        step()
    taken = {
        e.key: 1e-6 * (e.self_device_time_total if on_gpu else e.self_cpu_time_total) for e in found.key_averages()
    }
    longest = sorted(taken, key=taken.get, reverse=True)[:count]
    return {name: taken[name] for name in longest} | {"others": sum(taken.values()) - sum(map(taken.get, longest))}


def noise(image_size: int, batch_size: int, device: str, precision: str) -> Task:
    """A task whose training images are one batch of noise."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch_size, 3, image_size, image_size), dtype=torch.uint8, generator=draw)
    labels = torch.arange(batch_size) % CLASSES
    batch = Samples(images, torch.arange(batch_size), labels, tuple(map(str, range(batch_size))))
    return Task(batch, batch, CLASSES, protocol=Protocol(batch_size=batch_size, device=device, precision=precision))


def _alone(name: str, sources: list[nn.Module], task: Task) -> dict:
    """What does not need a clock, with nothing else on the device."""
    on_gpu, before = task.device.type == "cuda", 0
    if on_gpu:
        gc.collect()
        before = torch.cuda.memory_allocated(task.device)
        devices.reset_peak_memory(task.device)
    one = step(name, sources, task)
    for _ in range(2):
        one()
    peak = devices.peak_memory(task.device) - before / 2**20 if on_gpu else None
    return {"trainable": trainable(one), "flops": flops(one), "memory": memory(one), "peak_memory_mib": peak}


def clock(device: torch.device) -> str:
    """Which clock times the steps: see :class:`CostSheet`."""
    return "cpu" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


def timed(call: Callable[[], object], device: torch.device) -> tuple[float, object]:
    """Seconds of a call that computes on a device, by :func:`clock`, and what it returns."""
    now = time.process_time if clock(device) == "cpu" else time.perf_counter
    wait = functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    started = now()
    found = call()
    wait()
    return now() - started, found


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def check(p: Parameters) -> None:
    """Refuse what cannot be measured.

    Raises:
        ParameterError: no such backbone, or no number of rounds.
    """
    if p.backbone not in backbones.names():
        raise ParameterError(f"backbone: unknown {p.backbone!r} (medmerge.backbones.names())")
    if not p.cost_repeats:
        raise ParameterError("cost_repeats: 0; a page on costs needs one round at least, and twenty for its quartiles")


def _asked(p: Parameters) -> dict:
    asked = {"backbone": p.backbone, "image_size": p.image_size, "batch_size": p.batch_size, "repeats": p.cost_repeats}
    return asked | {name: value for name, value in (("kind", p.device), ("precision", p.precision)) if value != "auto"}


SHEET = Measured(
    where=lambda p: home() / p.results / p.track / "cost" / f"{p.backbone}-{p.image_size}px.json",
    asked=_asked,
    measure=measure,
    load=lambda path: CostSheet.model_validate_json(path.read_bytes()),
    check=check,
)
"""The record of costs that the parameters ask for."""


def state(p: Parameters) -> dict[str, Path | None]:
    """The record by name, and where it is; as :meth:`SHEET.state <medmerge.study.measured.Measured.state>`."""
    return {SHEET.where(p).stem: SHEET.state(p)}


def run(p: Parameters) -> CostSheet:
    """The record; as :meth:`SHEET.run <medmerge.study.measured.Measured.run>`."""
    return SHEET.run(p)
