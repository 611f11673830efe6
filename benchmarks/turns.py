"""Processes that take turns at one machine, so that whatever slows it down slows all of them.

A case is a function of this package's and its arguments. It is built in a process of its own, whose peak memory is
therefore the case's own, and then asked for one call after another; while it computes, the others wait.
"""

import contextlib
import functools
import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from medmerge import devices
from medmerge.study.cost import clock

WARM_UP = {"cpu": 2, "cuda": 6}
"""Rounds before those that are kept."""

Call = Callable[[], float | None]


@dataclass
class Measured:
    """What a case took.

    Attributes:
        seconds: of every call, by :func:`medmerge.study.cost.clock`.
        values: what the calls returned, such as a loss.
        peak_mib: most memory in use during the calls, beyond what the process took before the case was built.
    """

    seconds: list[float] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)
    peak_mib: float = 0.0

    def ratios(self, other: "Measured") -> list[float]:
        """Quartiles, over rounds, of this case's seconds over the other's in the same round; the second: median."""
        each = [a / b for a, b in zip(self.seconds, other.seconds, strict=True)]
        return [round(float(q), 4) for q in np.quantile(each, (0.25, 0.5, 0.75))]

    def ratio(self, other: "Measured") -> float:
        """The median of these."""
        return self.ratios(other)[1]


def timed(call: Call, device: torch.device) -> tuple[float, float | None]:
    """Seconds of a call and what it returned."""
    now = time.process_time if clock(device) == "cpu" else time.perf_counter
    wait = functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    started = now()
    value = call()
    wait()
    return now() - started, value


def measure(
    cases: Mapping[str, tuple[Callable[..., Call], dict]], rounds: int, device: str = "cpu", warm_up: int | None = None
) -> dict[str, Measured]:
    """Build all cases, then call each once a round, in an order drawn anew.

    Args:
        cases: by name a function, found by its module and name in another process too, and its arguments; it returns
            what is to be called. An argument ``keep`` is not the function's: False gives memory that is freed back to
            the system, which training does not (:func:`medmerge.devices.memory_kept`).
        rounds: that are kept.
        device: where they compute, ``"cpu"`` or ``"cuda"``.
        warm_up: rounds before those; by default :data:`WARM_UP`.

    Returns:
        :class:`Measured` by name.

    Raises:
        RuntimeError: a case ended in an error, or was killed (most likely for its memory).
    """
    found, draw = {name: Measured() for name in cases}, np.random.default_rng(0)
    before = WARM_UP[device] if warm_up is None else warm_up
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(_worker(name, *case, device)) for name, case in cases.items()}
        for turn in range(before + rounds):
            for name in draw.permutation(list(cases)).tolist():
                seconds, value = _ask(workers[name], name, turn < before)
                if turn >= before:
                    found[name].seconds.append(seconds)
                    found[name].values.append(value)
        for name, worker in workers.items():
            found[name].peak_mib = _ask(worker, name, None)
    return found


@contextlib.contextmanager
def _worker(name: str, make: Callable[..., Call], arguments: dict, device: str):
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    threads = torch.get_num_threads()
    process = context.Process(target=_serve, args=(there, make, arguments, device, threads), daemon=True)
    process.start()
    there.close()
    try:
        _receive(here, name)
        yield here
    finally:
        here.close()
        process.join(10)
        process.kill()


def _ask(connection, name: str, order: bool | None):
    connection.send(order)
    return _receive(connection, name)


def _receive(connection, name: str):
    try:
        answer = connection.recv()
    except EOFError:
        raise RuntimeError(f"{name}: its process was killed, most likely for its memory") from None
    if isinstance(answer, BaseException):
        raise RuntimeError(f"{name}: {answer!r}") from answer
    return answer


def _serve(connection, make: Callable[..., Call], arguments: dict, name: str, threads: int) -> None:
    """Build a case and answer; an order is whether the call warms up, or None for the peak of the others."""
    torch.set_num_threads(threads)
    try:
        keep = arguments.pop("keep", True)
        with devices.memory_kept() if keep else contextlib.nullcontext():
            _answer(connection, make, arguments, torch.device(name))
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        return
    except Exception as error:
        connection.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _answer(connection, make: Callable[..., Call], arguments: dict, device: torch.device) -> None:
    before = _resident(device)
    call = make(**arguments)
    connection.send(None)
    warm = True
    while True:
        order = connection.recv()
        if order is None:
            connection.send(devices.peak_memory(device) - before)
            continue
        if warm and not order:
            gc.collect()
            devices.reset_peak_memory(device)
        warm = order
        connection.send(timed(call, device))


def _resident(device: torch.device) -> float:
    """MiB in use now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    devices.reset_peak_memory(device)
    return devices.peak_memory(device)


def machine(device: torch.device) -> dict:
    """The machine in words and numbers; ``load``: processes that wanted to run, on average over the last minute."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        **{"device": devices.describe(device), "kind": device.type, "threads": torch.get_num_threads()},
        **{"cores": os.cpu_count(), "memory_gib": round(memory), "load": round(os.getloadavg()[0], 2)},
        **{"precision": devices.choose_precision("auto", device), "torch": torch.__version__, "clock": clock(device)},
    }
