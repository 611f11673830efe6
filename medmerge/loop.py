"""The steps of one epoch: forward, backward, AdamW; on a GPU recorded once and replayed.

Nothing in an epoch waits for the device: images come by :func:`medmerge.serving.stream`, losses stay where they are
computed until the epoch is over.
"""

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from medmerge import devices
from medmerge.data import Samples
from medmerge.serving import batches, prepare, stream

log = logging.getLogger(__name__)

WARM_UP = 3
"""Steps of a phase on full batches before one is recorded. They train as all others do."""

Precision = Callable[[], torch.autocast]
"""Gives the context to compute the forward pass in, such as autocast, anew at every call."""


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over images; of several labels an image, binary cross-entropy over the labels that are known.

    Args:
        logits: float ``[B, K]``.
        labels: class indices, int64 ``[B]``, or float ``[B, K]`` of 1, 0 and NaN (not known: no part in the loss).
    """
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels)
    known = ~labels.isnan()
    each = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    return torch.where(known, each, 0).sum() / known.sum().clamp(min=1)


class Steps:
    """Training steps of one phase: each call is one, on one batch, and returns its loss, which stays on the device.

    On a GPU a step is some thousand small kernels, and starting them takes longer than running them. After
    :data:`WARM_UP` steps on full batches, :func:`medmerge.devices.record` therefore takes one down as a CUDA graph,
    which further full batches replay. Recording computes nothing and a replay runs the very kernels of the eager step,
    with the random numbers it would have drawn, so the numbers are those of eager steps. Batches of another size, and
    all where recording fails or memory is short, are computed eagerly.

    Args:
        model: maps prepared inputs to logits ``[B, K]``.
        optimizer: AdamW, fused: on a GPU its step counters are there too.
        precision: the context of the forward pass.
        size: images of a full batch.
        device: where all this is.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision, size: int, device: torch.device
    ):
        self.model, self.optimizer, self.precision, self.size, self.device = model, optimizer, precision, size, device
        self.records, self.full = devices.records_steps(device), 0
        self._replay: Callable[[], None] | None = None
        self._inputs = self._labels = self._loss = None

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        if not self.records or len(inputs) != self.size:
            return self.eager(inputs, labels)
        if self.full < WARM_UP:
            self.full += 1
            with devices.aside(self.device) as waited:
                value = self.eager(inputs, labels)
            if waited and self.full == WARM_UP:
                self._give_up("a step waits for the GPU")
            return value
        if self._replay is None and not self._recorded(inputs, labels):
            return self.eager(inputs, labels)
        self._inputs.copy_(inputs)
        self._labels.copy_(labels)
        self._replay()
        return self._loss.clone()

    def eager(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One step, call by call."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision():
            logits = self.model(prepare(inputs))
        value = loss(logits.float(), labels)
        value.backward()
        self.optimizer.step()
        return value.detach()

    def _recorded(self, inputs: Tensor, labels: Tensor) -> bool:
        """Record a step on buffers of its own; whether that worked. If not, no other attempt is made."""
        self._inputs, self._labels = inputs.clone(), labels.clone()
        self.optimizer.zero_grad(set_to_none=True)  # the gradients of a replay belong to the graph

        def step() -> None:
            self._loss = self.eager(self._inputs, self._labels)

        self._capturable(True)
        try:
            self._replay = devices.record(step, self.device)
        except (RuntimeError, MemoryError) as error:
            self._give_up(str(error).split("\n")[0])
            self.optimizer.zero_grad(set_to_none=True)
        finally:
            self._capturable(False)
        return self._replay is not None

    def _capturable(self, value: bool) -> None:
        """Say that the optimiser is recorded; it warns where it is said and not so."""
        for group in self.optimizer.param_groups:
            group["capturable"] = value

    def _give_up(self, why: str) -> None:
        log.info("steps are not recorded as a CUDA graph, and run call by call: %s", why)
        self.records, self._inputs, self._labels, self._loss = False, None, None, None


def epoch(steps: Steps, train: Samples) -> tuple[Tensor, list[int]]:
    """One pass over the training images, in an order drawn from torch's random state.

    Returns:
        The loss of every step, ``[steps]``, still on the device, and the number of images of every step.
    """
    order = torch.randperm(len(train)).to(train.rows.device, non_blocking=True)
    positions = batches(order, steps.size)
    losses = [steps(inputs, labels) for inputs, labels in stream(train, positions, steps.device)]
    return torch.stack(losses), [len(batch) for batch in positions]


def outputs(model: nn.Module, samples: Samples, precision: Precision, size: int, device: torch.device) -> Tensor:
    """What ``model`` returns in eval mode for all samples, float32, on the device. Its mode is left as it was.

    A merge's kernels are computed once for all of them.
    """
    training = model.training
    model.eval()
    with torch.inference_mode(), parametrize.cached():
        positions = torch.arange(len(samples), device=samples.rows.device).split(size)
        found = []
        for inputs, _ in stream(samples, positions, device):
            with precision():
                found.append(model(prepare(inputs)).float())
    model.train(training)
    return torch.cat(found)
