"""Where to compute, and the memory that training keeps to itself."""

import subprocess
import sys

import pytest
import torch

from medmerge import devices


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there():
    with pytest.raises(ValueError, match="sees no GPU here; set device: cpu or auto"):
        devices.choose_device("cuda")
    assert devices.choose_device("auto").type == "cpu"
    assert devices.choose_precision("auto", devices.choose_device("auto")) in ("bf16", "fp32")


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (MemoryError(), True),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_what_says_that_memory_ran_out(error, found):
    assert devices.out_of_memory(error) == found
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**50)
    assert devices.out_of_memory(real.value)


FAULTS = """
import resource, statistics, torch
from medmerge import devices

def faults(times):
    counts = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)  # 64 MiB
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return statistics.median(counts)  # a busy system takes a page back now and then

def resident():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) / 1024

cleared = faults(3)
assert cleared > 20, "64 MiB are 16,384 pages of 4 KiB, or 32 of 2 MiB"
with devices.memory_kept():
    with devices.memory_kept():
        faults(8)  # a tensor's place is aligned, so that a piece just freed may be too short: the first take new ones
    kept, held = faults(9), resident()
assert kept < 0.05 * cleared + 8, f"{kept} of {cleared} pages cleared again"
assert held - resident() > 60, "64 MiB are given back afterwards"
assert faults(3) > 0.5 * cleared, "afterwards all is as before"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is not glibc")
def test_memory_that_a_step_frees_stays_with_the_process_and_is_given_back_afterwards():
    """In a process of its own: pages that the system clears for tensors that are made and freed."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
