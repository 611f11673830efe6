"""The command line, and how a command ends: errors that a user can mend, being asked to stop, exit statuses."""

import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

_EXPECTED = {
    "builtins": "ConnectionError",
    "medmerge.backbones": "CheckpointError",
    "medmerge.data": "DataError",
    "medmerge.files": "DiskError",
    "medmerge.study.params": "ParameterError",
    "medmerge.study.records": "RecordError",
    "medmerge.training": "TrainingError",
}

STOPPED = "stopped. What is finished is kept; the same command goes on from the last checkpoint"


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM), as schedulers do."""


def expected() -> tuple[type[Exception], ...]:
    """Errors that a user can mend: shown as a message, without a traceback. Nothing is imported to know them."""
    return tuple(getattr(sys.modules[module], name) for module, name in _EXPECTED.items() if module in sys.modules)


def status(call: Callable[[], int]) -> int:
    """What a call returns; where it cannot go on, a line on standard error and the exit status that goes with it.

    Returns:
        The call's own; 2 after one of :func:`expected`; 130 after Ctrl-C and 143 after SIGTERM, which ends a call as
        Ctrl-C does, so that what is half-written is cleared away.
    """

    def terminate(*_) -> None:
        raise Terminated

    heard = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminate) if heard else None
    try:
        return call()
    except KeyboardInterrupt as error:
        print(f"\nmedmerge: {STOPPED}", file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130
    except expected() as error:
        print(f"medmerge: {error}", file=sys.stderr)
        return 2
    finally:
        if heard:
            signal.signal(signal.SIGTERM, before)


def about(path: Path, error: Exception) -> str:
    """What an error says, with the file that it is about before it unless it names that itself."""
    return str(error) if str(path) in str(error) else f"{path}: {error}"
