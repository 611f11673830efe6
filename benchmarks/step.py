"""A step of MedMerge's linear probe against a step of fine-tuning, and against another way to write it."""

import gc
import itertools
from collections.abc import Iterator
from statistics import median

import torch

from benchmarks import turns
from benchmarks.settings import Settings
from benchmarks.ways import WAYS
from medmerge import backbones, devices, training
from medmerge.backbones import Classifier
from medmerge.devices import seeded
from medmerge.sources import kernel_layers
from medmerge.study import cost
from medmerge.training import Task

GIVEN_BACK = "FT, memory given back"
"""A step of fine-tuning in a process that leaves to the C library what becomes of memory that is freed."""

ROUNDS = {32: 2, 64: 40, 224: 15}


def prepared(
    backbone: str, image_size: int, batch_size: int, way: str, device: str, sources: int = 2
) -> tuple[cost.Step, Task]:
    """A step on a batch of noise, of a way or of FT, with the same head in all."""
    task = cost.noise(image_size, batch_size, device, "auto")
    with seeded(task.device, 0):
        networks = [backbones.backbone(backbone, "random") for _ in range(sources)]
        head = Classifier(networks[0], cost.CLASSES).head.state_dict()
    if way == "FT":
        step = cost.step("ft", networks, task)
    else:
        step = cost.Step(Classifier(WAYS[way](networks), cost.CLASSES), task.train, task, task.protocol.lp_lr)
    step.model.head.load_state_dict(head)
    return step, task


def make(**case: object) -> turns.Call:
    """One training step of :func:`prepared`, as training takes it. Each call returns the loss."""
    step, task = prepared(**case)
    batch = step.inputs, step.labels
    return lambda: training.step(step.model, step.optimizer, batch, task).item()


def requested(**case: object) -> turns.Call:
    """Counts the MiB of all tensors at the peak of two such steps, the second of which has AdamW's.

    Unlike the peak of a process it has nothing of what the C library holds between pieces in use.
    """

    def call() -> float:
        gc.collect()  # nothing that was left by others is freed meanwhile
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profiled:
            step = make(**case)
            step(), step()
        events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
        there = torch.autograd.DeviceType.CUDA if case["device"] == "cuda" else torch.autograd.DeviceType.CPU
        here = [event for event in events if event.device_type() == there]
        return max(itertools.accumulate(event.nbytes() for event in sorted(here, key=lambda e: e.start_ns()))) / 2**20

    return call


def kernel_mib(backbone: str) -> float:
    """MiB of one copy of a backbone's kernels, in single precision."""
    layers = kernel_layers(backbones.backbone(backbone, "random"))
    return sum(layer.module.get_parameter(layer.weight).numel() for layer in layers) * 4 / 2**20


def measure(settings: Settings) -> Iterator[dict]:
    """A row a backbone, image size and way; the ways of one network and FT take turns."""
    device = devices.choose_device(settings.device)
    batch, sizes = (8, (32,)) if settings.small else (32, (64, 224))
    for image_size in sizes:
        for backbone in ("densenet_small",) if settings.small else ("densenet121", "resnet50"):
            case = {"backbone": backbone, "image_size": image_size, "batch_size": batch, "device": device.type}
            cases = {way: (make, case | {"way": way}) for way in ("FT", *WAYS)}
            cases[GIVEN_BACK] = (make, case | {"way": "FT", "keep": False})
            found = turns.measure(cases, ROUNDS[image_size], device.type)
            counted = {way: _requested(case, way) for way in ("FT", *WAYS)}
            yield from (_row(case, way, found, counted) for way in (*WAYS, GIVEN_BACK))


def _requested(case: dict, way: str) -> float:
    return turns.measure({way: (requested, case | {"way": way})}, 1, case["device"], 0)[way].values[0]


def _row(case: dict, way: str, found: dict[str, turns.Measured], counted: dict[str, float]) -> dict:
    ft, probe, ours = found["FT"], found[way], found[next(iter(WAYS))]
    copy = kernel_mib(case["backbone"])
    return {
        **{"backbone": case["backbone"], "image size": case["image_size"], "batch": case["batch_size"], "way": way},
        "FT step, ms": round(1000 * median(ft.seconds), 2),
        "step, ms": round(1000 * median(probe.seconds), 2),
        "of FT": probe.ratios(ft),
        "KernelMerge of it": ours.ratios(probe),
        "FT memory, MiB": round(ft.peak_mib),
        "memory, MiB": round(probe.peak_mib),
        "copies above FT": round((probe.peak_mib - ft.peak_mib) / copy, 2),
        "counted copies above FT": round((counted.get(way, counted["FT"]) - counted["FT"]) / copy, 3),
        "loss": probe.values[-1],
    }
