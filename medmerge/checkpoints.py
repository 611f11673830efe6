"""The state of an interrupted phase of training, on disk.

A file is sealed: the SHA-256 of the rest, in hex, stands before an archive of :func:`torch.save`, whose own checksums
PyTorch does not verify. A file of which a byte is missing or another is never used. No file can run code: what is not
tensors and plain values is refused.
"""

import copy
import hashlib
import io
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from medmerge import files

log = logging.getLogger(__name__)


SEAL = 64
"""Bytes of the seal."""

SHARE = 0.05
"""Of a phase's time, what writing checkpoints may take."""


class Progress:
    """How far a phase has come, on disk: an interrupted phase goes on from there.

    Kept are the weights, the optimiser's state, the history, what is watched, and the weights of the best epoch. A
    random state is not: every epoch draws its own from seed, phase and epoch, and nothing else is random.

    It is written after the first epoch and the last, and between them as often as :data:`SHARE` allows: a kill
    costs up to twenty times what a write takes, or the epoch that it falls into.

    Args:
        model, optimizer: what is trained; set to the checkpoint's state where there is one with the same key.
        phase: the phase's name, noted in every row of history.
        key: names what is being computed; a checkpoint with another key is not used.
        path: the checkpoint file, or None to keep none. The one before stays until the next is whole and on the disk.
        score: the column of an epoch's scores that says which epoch is best; higher is better.
        watch: tensors to keep of every epoch, by name, or None; a resumed phase has those of all its epochs, or none.

    Attributes:
        history: a row an epoch: ``phase``, ``epoch`` (from 1) and the epoch's scores.
        watched: what ``watch`` gave after each epoch, an entry an epoch.
        best: state dict of the epoch with the best score so far, the first of equals.
        seconds: time spent in the epochs done, interruptions not counted.
        peak_memory: MiB.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        phase: str,
        key: str,
        path: Path | None = None,
        score: str = "val_macro_f1",
        watch: Callable[[], dict[str, Tensor]] | None = None,
    ):
        self.model, self.optimizer, self.phase, self.key, self.path = model, optimizer, phase, key, path
        self.score, self.watch = score, watch
        self.history: list[dict] = []
        self.watched: list[dict[str, Tensor]] = []
        self.best: dict[str, Tensor] = {}
        self.seconds = self.peak_memory = self._due = 0.0
        if self.path and self.path.exists():
            self._resume()

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    @property
    def best_score(self) -> float:
        return max((row[self.score] for row in self.history), default=float("-inf"))

    def advance(self, scores: dict[str, float], seconds: float, memory: float, last: bool = False) -> None:
        """Note an epoch, keep its weights if they are the best so far, write the checkpoint where one is due."""
        if scores[self.score] > self.best_score:
            self.best = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
        self.history.append({"phase": self.phase, "epoch": self.epoch + 1, **scores})
        if self.watch:
            self.watched.append(self.watch())
        self.seconds += seconds
        self.peak_memory = max(self.peak_memory, memory)
        if self.path and (last or time.monotonic() >= self._due):
            started = time.monotonic()
            self._save()
            self._due = time.monotonic() + (time.monotonic() - started) * (1 / SHARE - 1)

    def _save(self) -> None:
        state = {"key": self.key, "history": self.history, "best": self.best, "seconds": self.seconds}
        state |= {"peak_memory": self.peak_memory, "watched": self.watched, "model": self.model.state_dict()}
        write({**state, "optimizer": self.optimizer.state_dict()}, self.path)

    def _resume(self) -> None:
        try:
            state = read(self.path)
            if state["key"] != self.key:
                log.info("%s belongs to a run with other parameters: starting over", self.path)
                return
            model, optimizer = copy.deepcopy(self.model), self.optimizer
            model.load_state_dict(state["model"])
            history, best, seconds = list(state["history"]), dict(state["best"]), float(state["seconds"])
            memory, watched = float(state["peak_memory"]), list(state.get("watched", []))
            optimizer.load_state_dict(state["optimizer"])  # last: a phase that starts over has a new one
        except Exception as error:  # tensors of another network may raise nearly anything
            log.warning("%s cannot be used (%s): starting the phase over", self.path, error)
            return
        self.model.load_state_dict(state["model"])
        self.history, self.best, self.watched = history, best, watched
        if len(self.watched) < self.epoch:  # begun before it was kept: rather no such history than a part of it
            self.watch, self.watched = None, []
        self.seconds, self.peak_memory = seconds, memory


def write(state: dict, path: Path) -> None:
    """Write a checkpoint of tensors and plain values, sealed, in one atomic step.

    Raises:
        medmerge.files.DiskError: the disk is full or cannot be written.
    """
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        file.write(bytes(SEAL))
        sealing = _Sealing(file)
        try:
            torch.save(state, sealing)
        except RuntimeError as error:  # PyTorch's word for what went wrong in `write`
            raise sealing.error or error from error
        file.seek(0)
        file.write(sealing.digest.hexdigest().encode())


def read(path: Path) -> dict:
    """What :func:`write` wrote, on the CPU.

    Raises:
        ValueError: the file is damaged, or was not written by :func:`write`.
    """
    content = path.read_bytes()
    if hashlib.sha256(content[SEAL:]).hexdigest().encode() != content[:SEAL]:
        raise ValueError("it is damaged, or not a checkpoint of an interrupted phase")
    return torch.load(io.BytesIO(content[SEAL:]), map_location="cpu", weights_only=True)


class _Sealing:
    """A file to write to, which keeps the digest of what was written and the first error."""

    def __init__(self, file: io.BufferedIOBase):
        self.file, self.digest, self.error = file, hashlib.sha256(), None

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()
