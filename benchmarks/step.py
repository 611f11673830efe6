"""A step of MedMerge's linear probe against a step of fine-tuning, and against another way to write it."""

import gc
import itertools
from collections.abc import Iterator, Sequence
from statistics import median

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks import turns
from medmerge import KernelMerge, backbones, training
from medmerge.backbones import Classifier
from medmerge.devices import seeded
from medmerge.sources import kernel_layers
from medmerge.study import cost

GIVEN_BACK = "FT, memory given back"
"""A step of fine-tuning in a process that leaves to the C library what becomes of memory that is freed."""

ROUNDS = {32: 2, 64: 40, 224: 15}
BATCH = {64: 32, 224: 8}
"""Images a step by their size: four networks at work fit the memory of a small machine."""


class Functional(nn.Module):
    """A dictionary of all merged kernels, handed to `torch.func.functional_call` (FusionBench, AdaMerging's ports).

    The same parameters as `KernelMerge`, and the same numbers.

    Args:
        sources: two backbones whose kernel layers have no biases.
    """

    def __init__(self, sources: Sequence[nn.Module]):
        super().__init__()
        merge = KernelMerge(sources)
        self.network, self.names = merge.fold(), list(merge.kernel_weights())
        self.num_features, self.w = self.network.num_features, nn.ParameterList()
        for i, name in enumerate(self.names):
            first, second = (source.get_submodule(name).weight.detach().clone() for source in sources)
            self.network.get_submodule(name).weight = nn.Parameter(first, requires_grad=False)
            self.register_buffer(f"second_{i}", second)
            self.w.append(nn.Parameter(torch.full((len(first),), 0.5)))

    def forward(self, x: Tensor) -> Tensor:
        """What the network with the merged kernels returns."""
        merged = {}
        for i, (name, w) in enumerate(zip(self.names, self.w, strict=True)):
            first, second = self.network.get_submodule(name).weight, getattr(self, f"second_{i}")
            merged[f"{name}.weight"] = torch.lerp(second, first, w.view(-1, *[1] * (first.dim() - 1)))
        return functional_call(self.network, merged, (x,))


WAYS: dict[str, type[nn.Module]] = {"KernelMerge": KernelMerge, "functional_call with a merged dictionary": Functional}
"""By name; the first is this package's."""


def make(backbone: str, image_size: int, batch_size: int, way: str, device: str) -> turns.Call:
    """A training step on a batch of noise, of a way or of FT, with the same head in all. Each call returns the loss."""
    task = cost.noise(image_size, batch_size, device, "auto")
    with seeded(task.device, 0):
        networks = [backbones.backbone(backbone, "random") for _ in range(2)]
        head = Classifier(networks[0], cost.CLASSES).head.state_dict()
    if way == "FT":
        step = cost.step("ft", networks, task)
    else:
        step = cost.Step(Classifier(WAYS[way](networks), cost.CLASSES), task.train, task, task.protocol.lp_lr)
    step.model.head.load_state_dict(head)
    batch = step.inputs, step.labels
    return lambda: training.step(step.model, step.optimizer, batch, task).item()


def requested(**case: object) -> float:
    """MiB of all tensors at the peak of two such steps, the second of which has AdamW's, counted by the allocator."""
    gc.collect()  # nothing that was left by others is freed meanwhile
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        step = make(**case)
        step(), step()
    there = torch.autograd.DeviceType.CUDA if case["device"] == "cuda" else torch.autograd.DeviceType.CPU
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    events = sorted((event for event in events if event.device_type() == there), key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events)) / 2**20


def kernel_mib(backbone: str) -> float:
    """MiB of one copy of a backbone's kernels, in single precision."""
    layers = kernel_layers(backbones.backbone(backbone, "random"))
    return sum(layer.module.get_parameter(layer.weight).numel() for layer in layers) * 4 / 2**20


def measure(device: torch.device, small: bool) -> Iterator[dict]:
    """A row a backbone, image size and way; the ways of one network and FT take turns."""
    sizes, networks = ({32: 8}, ["densenet_small"]) if small else (BATCH, ["densenet121", "resnet50"])
    for (image_size, batch), backbone in itertools.product(sizes.items(), networks):
        case = {"backbone": backbone, "image_size": image_size, "batch_size": batch, "device": device.type}
        ways = {way: case | {"way": way} for way in ("FT", *WAYS)}
        cases = {way: (make, arguments) for way, arguments in ways.items()}
        cases[GIVEN_BACK] = (make, ways["FT"] | {"keep": False})
        found = turns.measure(cases, ROUNDS[image_size], device.type)
        counted = {way: requested(**arguments) for way, arguments in ways.items()}
        ft, ours, copy = found["FT"], found[next(iter(WAYS))], kernel_mib(backbone)
        for way in (*WAYS, GIVEN_BACK):
            yield {
                **{"backbone": backbone, "image size": image_size, "batch": batch, "way": way},
                "FT step, ms": round(1000 * median(ft.seconds), 2),
                "step, ms": round(1000 * median(found[way].seconds), 2),
                "of FT": found[way].ratios(ft),
                "KernelMerge of it": ours.ratios(found[way]),
                "counted copies above FT": round((counted.get(way, counted["FT"]) - counted["FT"]) / copy, 3),
                "loss": found[way].values[-1],
            }
