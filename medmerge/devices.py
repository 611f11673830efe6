"""Where and in what precision to compute, and what it cost in memory."""

import contextlib
import ctypes
import functools
import resource
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

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
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "fp32"


def channels_last(model: nn.Module) -> None:
    """Lay out all 4-D parameters and buffers of ``model`` as channels last, in place."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def describe(device: torch.device) -> str:
    """The hardware in words, such as ``"NVIDIA A100-SXM4-40GB"`` or ``"x86_64 CPU, 2 threads, AMX bf16"``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
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


_MMAP_MAX, _TOP_PAD, _TRIM_THRESHOLD, _MMAP_THRESHOLD = -4, -2, -1, -3  # names of mallopt(3), by malloc.h
_keeping = 0


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """Within this, memory that is freed stays with the process, where it has glibc; elsewhere nothing changes.

    A step frees its activations and asks for as much again. By default glibc gives large pieces back to the system,
    which must then clear them page by page: on a CPU up to a third of a step's time. Afterwards what is free is given
    back. Values do not change, peaks by some percent. Contexts may be nested. It is about memory that the main thread
    asks for, where training runs.
    """
    global _keeping
    library = _glibc()
    if library is None:
        yield
        return
    if not _keeping:
        for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 2**26)):
            library.mallopt(parameter, value)
    _keeping += 1
    try:
        yield
    finally:
        _keeping -= 1
        if not _keeping:  # what glibc itself arrives at, once a program has freed something large
            for parameter, value in ((_MMAP_MAX, 2**16), (_TRIM_THRESHOLD, 2**26), (_TOP_PAD, 2**17)):
                library.mallopt(parameter, value)
            library.mallopt(_MMAP_THRESHOLD, 2**25)
            library.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    names = ("mallopt", "malloc_trim", "gnu_get_libc_version")
    return library if all(hasattr(library, name) for name in names) else None


@contextlib.contextmanager
def seeded(device: torch.device, *key: int) -> Iterator[None]:
    """Random state from ``key`` alone, and deterministic cuDNN; both are as before afterwards."""
    derived = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        torch.manual_seed(derived)
        yield


class Courier:
    """Takes batches to a device beside its computation; to where they are already, without a copy.

    To a GPU a batch goes through page-locked memory and on a stream of its own. PyTorch's allocators keep both sides
    of a copy until it is over: page-locked memory is not handed out again before (caching host allocator), and
    ``record_stream`` keeps the batch until what computes on it is done.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.lane = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, batch: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], "torch.cuda.Event | None"]:
        """Set a batch off; returns at once, with what :meth:`receive` needs."""
        if self.lane is None or all(tensor.device.type == "cuda" for tensor in batch):
            return batch, None
        locked = [tensor.pin_memory() for tensor in batch]
        with torch.cuda.stream(self.lane):
            sent = tuple(tensor.to(self.device, non_blocking=True) for tensor in locked)
            return sent, self.lane.record_event()

    def receive(self, sent: tuple[tuple[Tensor, ...], "torch.cuda.Event | None"]) -> tuple[Tensor, ...]:
        """The batch, which the present stream will have once its copy is over; the host does not wait."""
        batch, arrived = sent
        if arrived is not None:
            here = torch.cuda.current_stream(self.device)
            here.wait_event(arrived)
            for tensor in batch:
                tensor.record_stream(here)
        return batch


def records_steps(device: torch.device) -> bool:
    """Whether :func:`record` can be tried on a device."""
    return device.type == "cuda"


@contextlib.contextmanager
def aside(device: torch.device) -> Iterator[list]:
    """On a GPU a stream of its own, which waits for the present one and is waited for, as recording asks for.

    Gives a list, which afterwards holds a warning for each call that made the host wait for the GPU.
    """
    if device.type != "cuda":
        yield []
        return
    here, other, mode = torch.cuda.current_stream(device), _side(device), torch.cuda.get_sync_debug_mode()
    other.wait_stream(here)
    with warnings.catch_warnings(record=True) as waited:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode(max(mode, 1))
        try:
            with torch.cuda.stream(other):
                yield waited
        finally:
            torch.cuda.set_sync_debug_mode(mode)
            here.wait_stream(other)
    for warning in [warning for warning in waited if "synchroniz" not in str(warning.message)]:
        waited.remove(warning)
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@functools.cache
def _side(device: torch.device) -> "torch.cuda.Stream":
    """One stream a device: PyTorch keeps freed memory by stream."""
    return torch.cuda.Stream(device)


def record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Record what ``step`` asks a GPU to do, without doing it; each call of what is returned does it once.

    The step must work on the same tensors each time and must not look at their values. The peak of the steps so far
    says how much memory the recorded one takes up for good, beside that of steps which are not recorded.

    Raises:
        MemoryError: less than twice that is free.
        RuntimeError: the step does what cannot be recorded.
    """
    needed = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if (free := torch.cuda.mem_get_info(device)[0] + unused) < 2 * needed:
        raise MemoryError(f"{free / 2**20:.0f} MiB are free, twice {needed / 2**20:.0f} MiB are needed")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph):
        step()
    return graph.replay
