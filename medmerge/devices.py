"""Where and in what precision to compute, and what it cost in memory."""

import contextlib
import ctypes
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16")


def choose_device(device: str) -> torch.device:
    """The device that ``"auto"``, ``"cpu"`` or ``"cuda"`` stands for here.

    Raises:
        ValueError: a GPU is asked for where there is none.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device: {device!r}, but PyTorch sees no GPU here; set device: cpu or auto")
    return torch.device(device)


def choose_precision(precision: str, device: torch.device) -> str:
    """What ``"auto"`` stands for on a device: ``"bf16"`` where its hardware computes in it, else ``"fp32"``."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if _capabilities().get("amx_bf16") or _capabilities().get("avx512_bf16") else "fp32"


def _capabilities() -> dict:
    """What the processor can do, as far as this PyTorch tells."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def channels_last(model: nn.Module) -> None:
    """Lay out all 4-D parameters and buffers of ``model`` as channels last, in place."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def describe(device: torch.device) -> str:
    """The hardware in words, such as ``"NVIDIA A100-SXM4-40GB"`` or ``"x86_64 CPU, 2 threads, AMX bf16"``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capabilities = _capabilities()
    units = {"amx_bf16": "AMX bf16", "avx512_bf16": "AVX-512 bf16", "avx512_f": "AVX-512", "avx2": "AVX2"}
    unit = next((name for key, name in units.items() if capabilities.get(key)), "")
    machine, threads = capabilities.get("architecture", ""), torch.get_num_threads()
    words = (f"{machine} CPU".strip(), f"{threads} thread" + "s" * (threads > 1), unit)
    return ", ".join(word for word in words if word)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, the device's or the machine's."""
    words = ("not enough memory", "can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def reset_peak_memory(device: torch.device) -> None:
    """Start :func:`peak_memory` anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> float:
    """Peak memory since the reset, in MiB: allocated on the GPU, or resident in the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage / (2**20 if sys.platform == "darwin" else 2**10)


_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -4, -1, -2, -3  # names of mallopt(3), by malloc.h
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 2**26}
_USUAL = {_MMAP_MAX: 2**16, _TRIM_THRESHOLD: 2**26, _TOP_PAD: 2**17, _MMAP_THRESHOLD: 2**25}  # as glibc adapts them
_keeping = 0


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """Within this, memory that is freed stays with the process, where it has glibc; afterwards it is given back.

    A step frees its activations and asks for as much again. By default glibc gives large pieces back to the system,
    which must then clear them page by page: on a CPU up to a third of a step's time. Values do not change, peaks by
    some percent. Contexts may be nested. It is about memory that the main thread asks for, where training runs.
    """
    global _keeping
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        yield
        return
    _keeping += 1
    try:
        _set(library, _KEPT)
        yield
    finally:
        _keeping -= 1
        if not _keeping:
            _set(library, _USUAL)
            library.malloc_trim(0)


def _set(library: ctypes.CDLL, options: dict[int, int]) -> None:
    for option, value in options.items():
        library.mallopt(option, value)


@contextlib.contextmanager
def seeded(device: torch.device, *key: int) -> Iterator[None]:
    """Random state from ``key`` alone, and deterministic cuDNN; both are as before afterwards."""
    derived = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        torch.manual_seed(derived)
        yield
