"""A GPU for each process: runs that start side by side on one machine take different ones, without being told."""

import contextlib
import itertools
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import torch
from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


def visible() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them; CUDA is not started."""
    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name.strip() for name in named.split(",")][:count] if named else [str(number) for number in range(count)]


@contextlib.contextmanager
def claimed(device: str) -> Iterator[str | None]:
    """Leave this process, and those that it starts, the visible GPU that the fewest others have claimed.

    Call it before CUDA starts. A claim is a lock on a file, which the system frees when the process ends, however it
    ends. Nobody waits: with more processes than GPUs they share. Claims of other users, and of programs that make
    none, are not seen; a scheduler that gives a job one GPU has decided already, and nothing is changed.

    Args:
        device: as in the parameters; with ``"cpu"`` nothing is claimed.

    Yields:
        The GPU's name in ``CUDA_VISIBLE_DEVICES``, or None where there was nothing to choose.
    """
    names = visible() if device != "cpu" else []
    if len(names) < 2:
        yield None
        return
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    with _first_free(names) as name:
        os.environ["CUDA_VISIBLE_DEVICES"] = name
        log.info("GPU %s of %s", name, ", ".join(names))
        try:
            yield name
        finally:
            os.environ.pop("CUDA_VISIBLE_DEVICES")
            os.environ |= {"CUDA_VISIBLE_DEVICES": before} if before is not None else {}


@contextlib.contextmanager
def _first_free(names: list[str]) -> Iterator[str]:
    """The first GPU without a claim, else the first with one, and so on."""
    folder = Path(tempfile.gettempdir(), f"medmerge-gpus-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    for claims, name in ((claims, name) for claims in itertools.count() for name in names):
        lock = FileLock(folder / f"{quote(name, safe='')}.{claims}.lock", fallback_to_soft=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        try:
            yield name
        finally:
            lock.release()
        return
