"""The state of an interrupted phase of training, on disk.

A file is the SHA-256 of the rest, in hex, and an archive of :func:`torch.save`, whose own checksums PyTorch does not
verify. One with a byte missing or changed is never used, and none can run code: what is not tensors and plain values is
refused.
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
"""Bytes of the digest."""

SHARE = 0.05
"""Of a phase's time, what writing checkpoints may take."""


class Phase:
    """How far a phase of training has come, on disk: an interrupted one goes on from there.

    Kept are the weights, the optimiser's state, the history, what is watched, and the weights of the best epoch. A
    random state is not: every epoch draws its own from seed, phase and epoch. It is written after the first epoch and
    the last, and between them as often as :data:`SHARE` allows: a kill costs up to twenty times what a write takes, or
    the epoch that it falls into.

    Args:
        model, optimizer: what is trained; set to the checkpoint's state where there is one with the same key.
        name: the phase's name, noted in every row of history.
        key: names what is being computed; a checkpoint with another key is not used.
        path: the checkpoint file, or None to keep none. The one before stays until the next is whole and on the disk.
        score: the column of an epoch's scores that says which epoch is best; higher is better.
        watch: tensors to keep of every epoch, by name, or None; a resumed phase has those of all its epochs.

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
        name: str,
        key: str,
        path: Path | None = None,
        score: str = "val_macro_f1",
        watch: Callable[[], dict[str, Tensor]] | None = None,
    ):
        self.model, self.optimizer, self.name, self.key, self.path = model, optimizer, name, key, path
        self.score, self.watch = score, watch
        self.history: list[dict] = []
        self.watched: list[dict[str, Tensor]] = []
        self.best: dict[str, Tensor] = {}
        self.seconds = self.peak_memory = self._due = 0.0
        if path and path.exists():
            self._resume(path)

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
        self.history.append({"phase": self.name, "epoch": self.epoch + 1, **scores})
        if self.watch:
            self.watched.append(self.watch())
        self.seconds += seconds
        self.peak_memory = max(self.peak_memory, memory)
        if self.path and (last or time.monotonic() >= self._due):
            started = time.monotonic()
            kept = {name: getattr(self, name) for name in _KEPT}
            write({**kept, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, self.path)
            self._due = time.monotonic() + (time.monotonic() - started) * (1 / SHARE - 1)

    def _resume(self, path: Path) -> None:
        try:
            state = read(path)
            if state["key"] != self.key:
                log.info("%s belongs to a run with other parameters: starting over", path)
                return
            kept = {name: state[name] for name in _KEPT}
            copy.deepcopy(self.model).load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])  # last: a phase that starts over has a new one
        except Exception as error:  # tensors of another network may raise nearly anything
            log.warning("%s cannot be used (%s): starting the phase over", path, error)
            return
        self.model.load_state_dict(state["model"])
        vars(self).update(kept)


_KEPT = ("key", "history", "watched", "best", "seconds", "peak_memory")


def write(state: dict, path: Path) -> None:
    """Write a checkpoint of tensors and plain values with its digest, whole or not at all.

    Raises:
        medmerge.files.DiskError: the disk is full or cannot be written.
    """
    content = io.BytesIO()
    torch.save(state, content)
    files.write(path, hashlib.sha256(content.getbuffer()).hexdigest().encode() + content.getbuffer())


def read(path: Path) -> dict:
    """What :func:`write` wrote, on the CPU.

    Raises:
        ValueError: the file is damaged, or was not written by :func:`write`.
    """
    content = path.read_bytes()
    if hashlib.sha256(content[SEAL:]).hexdigest().encode() != content[:SEAL]:
        raise ValueError("it is damaged, or not a checkpoint of an interrupted phase")
    return torch.load(io.BytesIO(content[SEAL:]), map_location="cpu", weights_only=True)
