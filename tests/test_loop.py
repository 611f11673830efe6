"""The steps of an epoch: batches on their way, recorded steps beside eager ones, nothing that waits for the device."""

import contextlib
import copy
import logging
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from medmerge import Classifier, KernelMerge, backbone, devices, loop, training
from medmerge.data import Samples
from medmerge.devices import seeded
from medmerge.serving import batches, resident, stream
from medmerge.task import Protocol, Task

CPU = torch.device("cpu")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SIZE = 8


def samples(count: int, several: bool = False) -> Samples:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count + 5, 3, 32, 32), dtype=torch.uint8, generator=draw)
    rows = torch.randperm(count + 5, generator=draw)[:count]
    labels = torch.randint(0, 2, (count, 3), generator=draw).float() if several else torch.arange(count) % 3
    return Samples(images, rows, labels, tuple(map(str, range(count))))


def model(dropout: float = 0.0) -> Classifier:
    torch.manual_seed(0)
    merge = KernelMerge([backbone("densenet_small", "random") for _ in range(2)])
    whole = Classifier(merge, 3)
    whole.head = nn.Sequential(nn.Dropout(dropout), whole.head)
    return whole


def steps(network: nn.Module, device: torch.device = CPU) -> loop.Steps:
    groups = training.parameter_groups(network.to(device), Protocol())
    optimizer = torch.optim.AdamW(groups, lr=1e-2, fused=True)
    return loop.Steps(network, optimizer, lambda: torch.autocast(device.type, enabled=False), SIZE, device)


def trained(one: loop.Steps, data: Samples, epochs: int = 2) -> tuple[list[float], dict]:
    losses = []
    for number in range(epochs):
        with seeded(one.device, 3, number):
            found, sizes = loop.epoch(one, data)
        assert sum(sizes) == len(data)
        losses += found.tolist()
    return losses, copy.deepcopy(one.model.state_dict())


def same(a: tuple, b: tuple) -> bool:
    return a[0] == b[0] and all(torch.equal(value, b[1][key]) for key, value in a[1].items())


# ---------------------------------------------------------------- batches on their way


def test_a_stream_gives_the_batches_in_their_order_one_ahead():
    data, fetched = samples(21), []

    class Watched(Samples):
        def batch(self, positions):
            fetched.append(len(fetched))
            return super().batch(positions)

    watched = Watched(data.inputs, data.rows, data.labels, data.ids)
    positions = batches(torch.randperm(21, generator=torch.Generator().manual_seed(1)), 6)
    for number, (inputs, labels) in enumerate(stream(watched, positions, CPU)):
        assert torch.equal(inputs, data.inputs[data.rows[positions[number]]])
        assert torch.equal(labels, data.labels[positions[number]])
        assert len(fetched) == min(number + 2, len(positions)), "the next one is gathered, no other"
    assert number == len(positions) - 1
    assert list(stream(watched, [], CPU)) == []


@pytest.mark.gpu
@GPU
def test_a_streamed_epoch_is_the_resident_one():
    device, data = torch.device("cuda"), samples(45)
    order = batches(torch.randperm(45, generator=torch.Generator().manual_seed(1)), 4)
    there = resident(data, device)
    pairs = zip(stream(data, order, device), stream(there, [o.to(device) for o in order], device), strict=True)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


# ---------------------------------------------------------------- recorded steps


def pretend(monkeypatch, record) -> None:
    """Recording as a GPU does it, on the CPU: ``record`` computes nothing, what it returns does the step."""
    monkeypatch.setattr(devices, "records_steps", lambda device: True)
    monkeypatch.setattr(devices, "record", record)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_recorded_steps_give_the_numbers_of_eager_ones(monkeypatch, dropout):
    data = samples(43)  # five full batches and one of three
    expected = trained(steps(model(dropout)), data)
    recorded, replayed = [], []

    def record(step, device):
        recorded.append(all(group["capturable"] for group in one.optimizer.param_groups))
        return lambda: (replayed.append(1), step())

    pretend(monkeypatch, record)
    one = steps(model(dropout))
    assert same(trained(one, data), expected)
    assert recorded == [True] and not any(group["capturable"] for group in one.optimizer.param_groups)
    assert len(replayed) == 10 - loop.WARM_UP, "the last batch of an epoch is never replayed"


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted\nmore"), MemoryError("1 MiB are free")])
def test_what_cannot_be_recorded_runs_call_by_call(monkeypatch, caplog, error):
    data, attempts = samples(43), []
    expected = trained(steps(model()), data)

    def record(step, device):
        attempts.append(1)
        raise error

    pretend(monkeypatch, record)
    with caplog.at_level(logging.INFO):
        assert same(trained(steps(model()), data), expected)
    assert len(attempts) == 1 and str(error).split("\n")[0] in caplog.text and "more" not in caplog.text


def test_a_step_that_waits_for_the_device_is_not_recorded(monkeypatch, caplog):
    @contextlib.contextmanager
    def aside(device):
        yield ["called a synchronizing CUDA operation"]

    pretend(monkeypatch, lambda step, device: pytest.fail("recorded"))
    monkeypatch.setattr(devices, "aside", aside)
    with caplog.at_level(logging.INFO):
        trained(steps(model()), samples(43))
    assert caplog.text.count("a step waits for the GPU") == 1


def test_where_there_is_no_gpu_nothing_is_recorded(monkeypatch):
    monkeypatch.setattr(devices, "record", lambda step, device: pytest.fail("recorded"))
    one = steps(model())
    trained(one, samples(43))
    assert not one.records and not any(group["capturable"] for group in one.optimizer.param_groups)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_on_a_gpu_recorded_steps_give_the_numbers_of_eager_ones(monkeypatch, dropout):
    device, data = torch.device("cuda"), samples(43)
    one = steps(model(dropout), device)
    found = trained(one, data)
    assert one._replay is not None
    monkeypatch.setattr(devices, "records_steps", lambda device: False)
    assert same(found, trained(steps(model(dropout), device), data))


# ---------------------------------------------------------------- nothing waits


class Strict(TorchDispatchMode):
    """Fails where the host would need a value that the device computes, or a size that depends on one."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "repeat_interleave")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").partition(".")[0]
        assert not any(name.strip("_").startswith(one.strip("_")) for one in self.WAITS), f"{name} waits"
        if name.startswith("index"):
            indices = [i for i in args[1] if i is not None] if isinstance(args[1], (list, tuple)) else []
            assert all(i.dtype != torch.bool for i in indices), f"{name} by a mask waits"
        return func(*args, **(kwargs or {}))


def test_strict_notices_what_waits():
    x = torch.arange(3.0)
    for waits in (lambda: x.sum().item(), lambda: bool(x.sum() > 2), lambda: x[x > 1], lambda: float(x[0])):
        with pytest.raises(AssertionError, match="waits"), Strict():
            waits()


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("replays", [False, True])
def test_no_step_of_an_epoch_waits_for_the_device(monkeypatch, several, replays):
    if replays:
        pretend(monkeypatch, lambda step, device: step)
    one, data = steps(model(0.5)), samples(43, several)
    with seeded(CPU, 0), Strict():
        loop.epoch(one, data)
        loop.outputs(one.model, data, one.precision, 16, CPU)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("resides", [False, True])
def test_on_a_gpu_no_step_waits(monkeypatch, resides):
    device, data = torch.device("cuda"), samples(43)
    one, data = steps(model(0.5), device), resident(data, device) if resides else data
    loop.epoch(one, data)  # records
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop.epoch(one, data)
        loop.outputs(one.model, data, one.precision, 16, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_phase_is_steps_of_the_loop(monkeypatch):
    """`fit` under recording gives the history of `fit` without."""
    histories = []
    for replays in (False, True):
        if replays:
            pretend(monkeypatch, lambda step, device: step)
        options = {"lp_epochs": 2, "lp_lr": 1e-2, "batch_size": SIZE, "precision": "fp32", "device": "cpu"}
        task = Task(samples(43), samples(20), 3, protocol=Protocol(**options))
        training.linear_probe(model(0.5), task)
        histories.append(task.history)
    assert histories[0] == histories[1]


FAULTS = """
import resource
import statistics
import torch
from medmerge import devices

def faults(times):
    counts = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)  # 64 MiB
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return statistics.median(counts)  # a busy system takes a page back now and then

def mib(name):
    return int(open("/proc/self/status").read().split(name + ":")[1].split()[0]) / 1024

def left(gib):
    before = mib("VmSize")
    torch.empty(gib * 2**28)  # no page of it is touched, and it is more than any piece that is free
    return mib("VmSize") - before

cleared = faults(3)
assert cleared > 20, "64 MiB are 16,384 pages of 4 KiB, or 32 of 2 MiB"
with devices.memory_kept():
    faults(8)  # a tensor's place is aligned, so that a piece just freed may be too short: the first few take new ones
    with devices.memory_kept():
        faults(1)
    kept, held = faults(9), mib("VmRSS")
    assert left(1) > 256, "a context within ends it"
assert kept < 0.05 * cleared + 8, f"{kept} of {cleared} pages cleared again"
given = held - mib("VmRSS")
assert given > 60, f"{given} of 64 MiB given back afterwards"
assert left(2) < 64, "it goes on afterwards"
"""


@pytest.mark.skipif(devices._glibc() is None, reason="the C library is not glibc")
def test_memory_that_a_step_frees_stays_with_the_process_and_is_given_back_afterwards():
    """In a process of its own: pages that the system clears for tensors that are made and freed."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_elsewhere_nothing_changes(monkeypatch):
    monkeypatch.setattr(devices, "_glibc", lambda: None)
    with devices.memory_kept():
        assert devices._keeping == 0
    monkeypatch.undo()
    with pytest.raises(ZeroDivisionError), devices.memory_kept():
        _ = 1 / 0
    assert devices._keeping == 0
