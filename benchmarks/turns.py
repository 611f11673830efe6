"""Processes that take turns at one machine, so that whatever slows it down slows all of them.

A case is a function of this package's and its arguments. It is built in a process of its own, and then asked for one
call after another; while it computes, the others wait.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from medmerge import devices
from medmerge.study.cost import clock, timed

WARM_UP = {"cpu": 2, "cuda": 6}
"""Rounds before those that are kept."""

Call = Callable[[], float | None]


@dataclass
class Measured:
    """What a case took.

    Attributes:
        seconds: of every call, by :func:`medmerge.study.cost.clock`.
        values: what the calls returned, such as a loss.
    """

    seconds: list[float] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)

    def ratios(self, other: "Measured") -> list[float]:
        """Quartiles, over rounds, of this case's seconds over the other's in the same round; the second: median."""
        each = [a / b for a, b in zip(self.seconds, other.seconds, strict=True)]
        return [round(float(q), 4) for q in np.quantile(each, (0.25, 0.5, 0.75))]


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
        context = multiprocessing.get_context("spawn")
        workers = {name: stack.enter_context(ProcessPoolExecutor(1, context)) for name in cases}

        def ask(name: str, function: Callable, *arguments: object):
            try:
                return workers[name].submit(function, *arguments).result()
            except Exception as error:
                raise RuntimeError(f"{name}: {type(error).__name__}: {error}") from error

        for name, (make, arguments) in cases.items():
            ask(name, _build, make, arguments, device, torch.get_num_threads())
        for turn in range(before + rounds):
            for name in draw.permutation(list(cases)).tolist():
                seconds, value = ask(name, _timed)
                if turn >= before:
                    found[name].seconds.append(seconds)
                    found[name].values.append(value)
    return found


_BUILT: list[tuple[Call, torch.device, contextlib.ExitStack]] = []
"""The one case of a process, where it computes, and the setting that holds for it."""


def _build(make: Callable[..., Call], arguments: dict, device: str, threads: int) -> None:
    torch.set_num_threads(threads)
    setting = contextlib.ExitStack()
    if arguments.pop("keep", True):
        setting.enter_context(devices.memory_kept())
    _BUILT.append((make(**arguments), torch.device(device), setting))


def _timed() -> tuple[float, float | None]:
    """Seconds of a call and what it returned."""
    ((call, device, _),) = _BUILT
    return timed(call, device)


def machine(device: torch.device) -> dict:
    """The machine in words and numbers."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    size = {"cores": os.cpu_count(), "memory_gib": round(memory)}
    size["precision"] = devices.choose_precision("auto", device)
    return {"device": devices.describe(device), **size, "torch": torch.__version__, "clock": clock(device)}
