"""Where the time of a step goes, part by part, and what its arithmetic and traffic would take on this machine at best.

Operations are timed by PyTorch's profiler. They are counted one by one as PyTorch dispatches them: floating point
operations of convolutions and matrix products, and the bytes of all tensors that an operation reads and writes. What
the machine does is measured beside: arithmetic of a large matrix product and of a large convolution, and a large copy.
"""

import contextlib
import functools
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from medmerge import backbones, devices
from medmerge.study import cost
from medmerge.study.cost import Step

PROFILED = ("ft", "kernel")
"""The variants of :data:`medmerge.study.cost.VARIANTS` of which a step is taken apart."""

PARTS = {
    "convolution": "convolutions, forward",
    "convolution_backward": "convolutions, backward",
    "normalisation": "batch norms",
    "merge": "weighted mean of kernels",
    "casts": "casts and copies",
    "other": "activations, pooling, joins, head, loss",
    "optimizer": "AdamW",
    "prepare": "normalising images",
    "calls": "between operations",
}
"""Parts of a step, each with its name in tables. The weighted mean holds its backward pass, that of w; ``"calls"`` is
what is left of the step: Python, autograd's bookkeeping, PyTorch's way to an operation."""

WARM_UP = 2
"""Steps before those that are kept."""

_MOVE_NOTHING = ("empty", "new_empty", "_unsafe_view", "as_strided_", "set_", "resize_", "detach_")
_OVERWRITE = ("copy_", "fill_", "zero_")
_READ_ONLY = {"_fused_adamw_": ("grads",)}  # its schema allows for unscaling them, which happens with a scaler alone


def part(name: str, node: str, region: str) -> str:
    """The part, a key of :data:`PARTS`, of an operation.

    Args:
        name: the operation's, without its namespace, such as ``"convolution_backward"``.
        node: the autograd node that it runs for, such as ``"LerpBackward1"``, or ``""`` in a forward pass.
        region: that of :class:`medmerge.study.cost.Step`, or ``""``.
    """
    if region:
        return region
    if "convolution" in name:
        return "convolution_backward" if "backward" in name else "convolution"
    if "batch_norm" in name or "layer_norm" in name:
        return "normalisation"
    if name.startswith("lerp") or node.startswith("LerpBackward"):
        return "merge"
    return "casts" if name in ("_to_copy", "copy_", "clone") else "other"


class Count(TorchDispatchMode):
    """Counts what is computed in its context.

    Attributes:
        flops: floating point operations by part, as :class:`torch.utils.flop_counter.FlopCounterMode` counts them.
        bytes: bytes that operations read and write, by part: each tensor that an operation takes once, and each that it
            gives or changes once. Views and allocations move nothing.
        names: the operations, without their namespace.
    """

    def __init__(self):
        super().__init__()
        self.flops, self.bytes, self.names = defaultdict(int), defaultdict(int), set()
        self._region = ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        space, _, name = func.name().partition(".")[0].partition("::")
        if space != "aten":
            return out
        self.names.add(name)
        node = torch._C._current_autograd_node()
        where = part(name, node.name() if node else "", self._region)
        if count := flop_registry.get(func._overloadpacket):
            self.flops[where] += count(*args, **(kwargs or {}), out_val=out)
        self.bytes[where] += moved(func, args, kwargs or {}, out)
        return out

    @contextlib.contextmanager
    def region(self, name: str) -> Iterator[None]:
        """Counts all to one part, for :class:`medmerge.study.cost.Step`."""
        self._region = name
        yield
        self._region = ""


def moved(func: torch._ops.OpOverload, args: tuple, kwargs: dict, out: object) -> int:
    """Bytes that one call reads and writes, each tensor once; see :class:`Count`."""
    schema, name = func._schema, func.name().partition(".")[0].removeprefix("aten::")
    returned = [found.alias_info for found in schema.returns]
    if name.startswith(_MOVE_NOTHING) or any(alias is not None and not alias.is_write for alias in returned):
        return 0
    total = 0
    given = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | kwargs
    for argument in schema.arguments:
        writes = argument.alias_info is not None and argument.alias_info.is_write
        writes = writes and argument.name not in _READ_ONLY.get(name, ())
        reads = not (writes and (name in _OVERWRITE or argument.kwarg_only))
        total += (reads + writes) * _bytes(given.get(argument.name))
    outs = out if isinstance(out, (tuple, list)) and len(returned) > 1 else [out]
    return total + sum(_bytes(value) for alias, value in zip(returned, outs, strict=False) if alias is None)


def _bytes(value: object) -> int:
    """Bytes of the tensors in an argument; of an expanded one those that are there."""
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)


def count(step: Step) -> Count:
    """What one step computes; the step is taken."""
    counter = Count()
    step.region = counter.region
    with counter:
        step()
    del step.region
    return counter


def times(step: Step, names: set[str]) -> tuple[float, dict[str, float]]:
    """One step under the profiler.

    Args:
        names: its operations, from :func:`count`. What runs within one of them counts to it; what runs within none, to
            ``"calls"``.

    Returns:
        Seconds of the step by the clock, and of each part. These sum to the step on a CPU; on a GPU an operation's time
        is that of its kernels, and ``"calls"`` the time in which none of them runs.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler writes to stderr where there is no GPU
    device, parts = step.task.device, dict.fromkeys(PARTS, 0.0)
    on_gpu = device.type == "cuda"
    step.region = lambda region: record_function(f"medmerge::{region}")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        seconds = _seconds(step, device)
    del step.region
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CPU and (found := _part(event, names)):
            parts[found] += 1e-6 * (event.self_device_time_total if on_gpu else event.self_cpu_time_total)
    parts["calls"] = seconds - sum(parts.values())
    return seconds, parts


def _part(event: FunctionEvent, names: set[str]) -> str:
    """The part of the outermost of ``names`` that an event runs within; ``""`` within none."""
    operation = node = region = ""
    while event is not None:
        space, _, name = event.name.partition("::")
        if space == "aten" and name in names:
            operation, node = name, ""
        elif event.name.startswith("autograd::engine::evaluate_function: "):
            node = node or event.name.rpartition(" ")[2]
        elif space == "medmerge":
            region = name
        event = event.cpu_parent
    return part(operation, node, region) if operation else ""


def machine(device: torch.device, precision: str) -> dict[str, float]:
    """What the device does at best, on the threads that are set: the fastest of several calls each.

    Returns:
        ``product`` and ``convolution``: floating point operations a second of a large matrix product and of a large
        3x3 convolution (channels last) in ``precision``; ``copy``: bytes a second, read and written, of a copy too
        large for caches.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    large = 8 if device.type == "cuda" else 1
    make = functools.partial(torch.randn, device=device, dtype=dtype)
    side, channels, images = 1024 * large, 128 * large, 32
    a, b = make(side, side), make(side, side)
    x = make(images, channels, 16, 16).contiguous(memory_format=torch.channels_last)
    kernels = make(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    source = torch.zeros(2**26 * large, device=device)  # 256 MiB
    target = torch.zeros_like(source)
    convolve = 2 * x.numel() * channels * 9
    with torch.inference_mode():
        return {
            "product": 2 * side**3 / _best(lambda: a @ b, device),
            "convolution": convolve / _best(lambda: F.conv2d(x, kernels, padding=1), device),
            "copy": 2 * source.nbytes / _best(lambda: target.copy_(source), device),
        }


def _best(call: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    return min(_seconds(call, device) for _ in range(WARM_UP + repeats))


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    wait = functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - started


def measure(
    backbone: str, image_size: int, batch_size: int, *, repeats: int = 5, device: str = "auto", precision: str = "auto"
) -> dict:
    """Take the steps of :data:`PROFILED` apart on one machine.

    Args:
        backbone, image_size, batch_size, device, precision: as for :func:`medmerge.study.cost.measure`.
        repeats: steps that are timed, each with the profiler and without.

    Returns:
        What was asked and the machine, as :func:`medmerge.study.cost.measure` gives it; ``machine``: as
        :func:`machine`;
        ``steps``: by variant ``seconds`` (median step without the profiler), ``profiled`` (median step with it) and
        ``parts``, which are those of that step: ``seconds``, ``flops`` and ``bytes`` each.
    """
    task, load = cost.noise(image_size, batch_size, device, precision), os.getloadavg()[0]
    precision = devices.choose_precision(precision, task.device)
    with devices.memory_kept(), devices.seeded(task.device, 0):
        sources = [backbones.backbone(backbone, "random") for _ in range(2)]
        best = machine(task.device, precision)
        taken = {name: _apart(cost.step(name, sources, task), repeats) for name in PROFILED}
    return {**cost.circumstances(backbone, task, repeats, load), "machine": best, "steps": taken}


def _apart(step: Step, repeats: int) -> dict:
    counted = [count(step) for _ in range(WARM_UP)][-1]
    plain = sorted(_seconds(step, step.task.device) for _ in range(repeats))
    profiled = [times(step, counted.names) for _ in range(WARM_UP + repeats)][WARM_UP:]
    seconds, parts = sorted(profiled, key=lambda one: one[0])[repeats // 2]
    each = {
        name: {"seconds": parts[name], "flops": counted.flops[name], "bytes": counted.bytes[name]} for name in PARTS
    }
    return {"seconds": plain[repeats // 2], "profiled": seconds, "parts": each}
