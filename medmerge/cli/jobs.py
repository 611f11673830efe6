"""Work side by side, each piece in a process of its own that is forked from one which has loaded PyTorch already."""

import functools
import gc
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

import torch

from medmerge.cli import endings
from medmerge.study.params import ParameterError


@dataclass(frozen=True)
class Job:
    """A piece of work.

    Attributes:
        name: one of its own; its lines begin with it.
        call: a function at the top of a module; it returns an exit status.
        arguments: what it is called with; they can be pickled.
        after: names of jobs that must have ended before.
        companion: runs in a second process, which is forked from the job's own before that does anything, and is sent
            what the job has for it. Where there is fork, ``call`` gets a :class:`Companion` as a last argument.
    """

    name: str
    call: Callable[..., int]
    arguments: tuple = ()
    after: tuple[str, ...] = ()
    companion: Callable[[Connection], None] | None = None


@dataclass(frozen=True)
class Companion:
    """The second process of a job, and the connection on which it waits; without the job it ends."""

    process: BaseProcess
    connection: Connection


def check(at_once: int) -> None:
    """Refuse a number of processes that is none.

    Raises:
        ParameterError: it is less than one.
    """
    if at_once < 1:
        raise ParameterError(f"--jobs {at_once}: at least 1; as many as there are cores, or GPUs, is a good number")


def run(jobs: Sequence[Job], at_once: int, loaded: Sequence[str] = ()) -> int:
    """Run jobs in their order, some at a time; the largest of their exit statuses.

    A job that fails stops no other. Where this process is interrupted, or dies, its jobs are told to stop (SIGTERM).
    Each has the same share of the processor's cores as threads, unless ``OMP_NUM_THREADS`` is set.

    Args:
        at_once: jobs at a time, at least one.
        loaded: names of modules, besides their own, that jobs find loaded where there is fork.
    """
    context = _context([*sorted({job.call.__module__ for job in jobs}), *loaded])
    waiting, running, found = list(jobs), {}, 0
    try:
        while waiting or running:
            unfinished = {job.name for job in waiting} | set(running)
            free = [job for job in waiting if unfinished.isdisjoint(job.after)]
            for job in free[: at_once - len(running)]:
                waiting.remove(job)
                running[job.name] = context.Process(target=_work, args=(job, at_once), name=job.name)
                running[job.name].start()
            multiprocessing.connection.wait([process.sentinel for process in running.values()])
            for name in [name for name, process in running.items() if not process.is_alive()]:
                found = max(found, _status(name, running.pop(name)))
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()
    return found


def _context(modules: list[str]) -> BaseContext:
    """Where processes come from: forks of one that has loaded these modules, where there is fork."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *modules])
    return context


def _work(job: Job, at_once: int) -> None:
    """In a process of its own: the job, whose parent alone hears Ctrl-C and says that it was stopped."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # modules stay: statsmodels would look through them all at every correction by Holm
    companion = _companion(job)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(format=f"{job.name}: %(message)s", stream=sys.stdout)
    logging.getLogger("medmerge").setLevel("INFO")  # papermill's own would tell of every cell
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // at_once))
    try:
        call = functools.partial(job.call, *job.arguments, *companion)
        sys.exit(endings.status(call, f"medmerge: {job.name}", stopped=""))
    finally:
        for one in companion:  # at its exit this process would wait for one that still waits to hear of it
            one.process.kill()


def _companion(job: Job) -> list[Companion]:
    """The job's, if it asks for one, in a list. To be called while this process has a single thread."""
    if job.companion is None or multiprocessing.get_start_method() == "spawn":
        return []
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_accompany, args=(job.companion, here, there))
    process.start()
    there.close()
    return [Companion(process, here)]


def _accompany(call: Callable[[Connection], None], here: Connection, there: Connection) -> None:
    here.close()  # so that the job's end is the only one, and its closing is seen
    call(there)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _status(name: str, process: BaseProcess) -> int:
    """The exit status of a job that has ended, with a line where something else ended it."""
    if process.exitcode >= 0:
        return process.exitcode
    reason = signal.Signals(-process.exitcode).name
    print(f"medmerge: {name}: its process was ended by {reason}; the same command goes on", file=sys.stderr)
    return 128 - process.exitcode
