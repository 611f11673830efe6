"""How a command ends: the errors that a user can mend, being asked to stop, and exit statuses."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from medmerge.data import DataError
from medmerge.files import DiskError
from medmerge.study.params import ParameterError
from medmerge.study.records import RecordError
from medmerge.training import TrainingError
from medmerge.weightfiles import CheckpointError

EXPECTED = (ParameterError, DataError, CheckpointError, RecordError, TrainingError, DiskError, ConnectionError)
"""Errors that a user can mend: shown as a message, without a traceback."""

STOPPED = "stopped. What is finished is kept; the same command goes on from the last checkpoint"


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM), as schedulers do."""


def status(call: Callable[[], int], name: str = "medmerge", stopped: str = STOPPED) -> int:
    """What a call returns; where it cannot go on, a line on standard error and the exit status that goes with it.

    Args:
        name: what the line begins with.
        stopped: the line's text after an interrupt; nothing is printed where it is empty.

    Returns:
        The call's own; 2 after one of :data:`EXPECTED`; 130 after Ctrl-C and 143 after SIGTERM.
    """
    try:
        with _terminable():
            return call()
    except EXPECTED as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        if stopped:
            print(f"\n{name}: {stopped}", file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130


def about(path: Path, error: Exception) -> str:
    """What an error says, with the file that it is about before it unless it names that itself."""
    return str(error) if str(path) in str(error) else f"{path}: {error}"


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises :class:`Terminated`, so that what is half-written is cleared away."""

    def terminate(*_) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
