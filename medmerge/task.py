"""What an approach is given: images, how to train on them, a place for what is learnt, and how far it has come."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from medmerge import devices
from medmerge.devices import seeded
from medmerge.samples import Batch, Batches, Samples, checked, prepare, to_device

log = logging.getLogger(__name__)

FREE = ("both", "affine", "statistics", "none")
"""What of batch norms can change in a linear probe. ``"both"``: all, as in fine-tuning (the paper's "unfrozen");
``"affine"``: scale and shift learn, inputs are normalised by running statistics that stay; ``"statistics"``: inputs are
normalised by the batch's, running ones follow, scale and shift stay; ``"none"``: all stay. Layer norms and other
parameters of a channel have no statistics; they go with ``"affine"``."""

MEASURED = 2048
"""Training images on which batch norm is measured, at most."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped and what to change."""


@dataclass(frozen=True)
class Protocol:
    """How to train: the paper's section 3 and, where it is silent, the defaults of the book's protocol.

    Attributes:
        lp_epochs, ft_epochs: epochs of the linear probe and of fine-tuning.
        lp_lr, ft_lr: AdamW's learning rates, constant within a phase.
        batch_size: images a step; batches that are given keep their own size.
        weight_decay: of the weights of convolutions and linear layers; merging weights, normalisation and biases
            have none.
        select: the epoch that a phase hands on: ``"best"`` by validation macro F1 (of several labels an image: macro
            AUROC), the first of equals, or ``"last"``.
        lp_batchnorm: mode of a frozen backbone's batch norms in the linear probe: ``"eval"`` (running statistics, as
            Kumar et al. 2022) or ``"train"`` (batch statistics, running ones drift).
        batchnorm_free: what of a merge's batch norms changes in its linear probe, one of :data:`FREE`.
        w_lr: learning rate of the merging weights; None for ``lp_lr``, 0 to leave them where they start.
        w_decay: AdamW's decay of the merging weights, towards 0, which is the last source (affine) or equal shares
            (softmax).
        precision: ``"fp32"``, ``"bf16"`` (autocast), or ``"auto"``: bf16 where the device computes in it.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"``: a GPU where there is one.

    Raises:
        ValueError: one of these has another value.
    """

    lp_epochs: int = 50
    lp_lr: float = 1e-4
    ft_epochs: int = 50
    ft_lr: float = 1e-5
    batch_size: int = 32
    weight_decay: float = 0.01
    select: str = "best"
    lp_batchnorm: str = "eval"
    batchnorm_free: str = "both"
    w_lr: float | None = None
    w_decay: float = 0.0
    precision: str = "auto"
    device: str = "auto"

    def __post_init__(self):
        named = {"select": ("best", "last"), "lp_batchnorm": ("eval", "train"), "batchnorm_free": FREE}
        for name, allowed in {**named, "precision": devices.PRECISIONS}.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: {getattr(self, name)!r} is none of {', '.join(allowed)}")
        least = {"lp_epochs": 0, "ft_epochs": 0, "lp_lr": 0, "ft_lr": 0, "batch_size": 2, "weight_decay": 0}
        for name, value in {**least, "w_lr": 0, "w_decay": 0}.items():
            if not (getattr(self, name) is None or getattr(self, name) >= value):
                raise ValueError(f"{name}: {getattr(self, name)!r} is not {value} or more")


class Progress:
    """Training that is to come in one run or several, counted in images x epochs.

    Epochs on features that were computed once are not counted: they cost next to nothing.

    Args:
        images: images x epochs of all runs.
        bar: whether to draw a bar on standard error instead of logging a line an epoch; None: if it is a terminal.
        rate: seconds an image, as far as they are known before (:func:`medmerge.training.seconds_per_image`).
    """

    def __init__(self, images: int, bar: bool | None = None, rate: float | None = None):
        self.images, self.done = images, 0
        self._rate, self._timed, self._seconds = rate, 0, 0.0
        shown = sys.stderr.isatty() if bar is None else bar
        self._bar = tqdm(total=images, unit=" images", unit_scale=True, disable=not shown)

    def run(self, title: str) -> None:
        """Say which run begins, such as ``"run 3 of 10: FT lesions, seed 1"``."""
        self._bar.set_description(title)
        if self._bar.disable:
            log.info("%s", title)

    def advance(self, images: int, seconds: float | None = None, line: str = "") -> None:
        """Count ``images`` more that were trained on, in ``seconds``, or None if that was before; say ``line``."""
        self.done += images
        if seconds is not None:
            self._timed, self._seconds = self._timed + images, self._seconds + seconds
        self._bar.set_postfix_str(line, refresh=False)
        self._bar.update(images)
        if line and self._bar.disable:
            left = self.left
            log.info("%s%s", line, "" if left is None else f"  {duration(left)} left")

    @property
    def left(self) -> float | None:
        """Seconds that what is left will take, by what was timed so far; None before anything was."""
        rate = self._seconds / self._timed if self._timed else self._rate
        return None if rate is None else max(self.images - self.done, 0) * rate

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def duration(seconds: float) -> str:
    """Seconds as ``"m:ss"`` or ``"h:mm:ss"``."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


@dataclass
class Task:
    """What an approach is given: training and validation images, the protocol, and a place for what is learnt.

    Images are decoded ones (:class:`~medmerge.samples.Samples`), or any batches (:class:`~medmerge.samples.Batches`
    says which), such as a ``DataLoader`` with your own transforms and augmentation::

        task = Task(train_loader, val_loader, num_classes=3, protocol=Protocol(lp_epochs=5, ft_epochs=5))

    Batches are gone through once here, to check them before anything starts. Samples are shuffled by seed, phase and
    epoch, and an interrupted phase ends with the numbers of one that was not. So it does with batches in which all
    that is random is drawn from PyTorch's own generator in every pass, as by a ``DataLoader`` and
    ``torchvision.transforms.v2``, but not with a ``generator`` or ``persistent_workers`` of its own.

    Attributes:
        train, val: images with labels, of one kind: a class each, or any number of classes each.
        num_classes: width of the head.
        seed: decides the head's initialisation and the order of the images, alike for all approaches.
        protocol: how to train.
        checkpoints: folder for interrupted phases, or None to keep none.
        key: names what is being computed; a checkpoint with another key is not used.
        history: a row an epoch, filled by :func:`~medmerge.training.fit` as epochs end.
        kernel_history: the merging weights after every epoch of a merge's linear probe, by layer, float16
            ``[epochs, kernels]`` of w - 0.5 for two sources (see :func:`~medmerge.training.kernel_shares`); filled by
            :func:`~medmerge.training.fit`.
        cost: by phase seconds, images a second and peak memory in MiB, filled by :func:`~medmerge.training.fit`.
        sources: what the approach's sources were trained on; names them where it chooses between networks.
        recall: gives the finished network of another approach from one source, both by name, and its cost; or None
            where the study does not have it. See `medmerge.approaches.rivals`.
        on_epoch: called after every epoch with its row, when ``history`` has it and the checkpoint is written.
        progress: of the runs that this one belongs to; by default every phase is told by itself.

    Raises:
        TypeError, ValueError: images or labels that cannot be learnt from; the message says what they should be.
    """

    train: Samples | Batches | Iterable[Batch]
    val: Samples | Batches | Iterable[Batch]
    num_classes: int
    seed: int = 0
    protocol: Protocol = field(default_factory=Protocol)
    checkpoints: Path | None = None
    key: str = ""
    history: list[dict] = field(default_factory=list)
    kernel_history: dict[str, Tensor] = field(default_factory=dict)
    cost: dict[str, dict[str, float]] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    recall: Callable[[str, str], tuple[nn.Module, dict] | None] | None = None
    on_epoch: Callable[[dict], object] | None = None
    progress: Progress | None = None

    def __post_init__(self):
        self.train = train = checked(self.train, "training images", self.num_classes)
        self.val = val = checked(self.val, "validation images", self.num_classes)
        if train.multilabel != val.multilabel:
            raise ValueError("training and validation labels must be of one kind: a class each, or any number each")

    @property
    def parts(self) -> tuple[Samples | Batches, Samples | Batches]:
        """Training and validation images, as they were checked."""
        return self.train, self.val  # type: ignore[return-value]

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several of the classes, or none."""
        return self.parts[0].multilabel

    def history_frame(self) -> pd.DataFrame:
        """The history with its columns, which are there although nothing was trained."""
        auroc = ["val_macro_auroc"] if self.multilabel else []
        columns = ["phase", "epoch", "train_loss", "val_loss", "val_accuracy", "val_macro_f1", *auroc]
        return pd.DataFrame(self.history, columns=None if self.history else columns)

    @property
    def score(self) -> str:
        """Column of the history that decides which epoch is best.

        Of several labels an image macro AUROC: at a threshold of 0.5 rare findings have an F1 of 0 for many epochs.
        """
        return "val_macro_auroc" if self.multilabel else "val_macro_f1"

    @property
    def device(self) -> torch.device:
        """Where the protocol's ``device`` is here."""
        return devices.choose_device(self.protocol.device)

    def measured(self, limit: int = MEASURED) -> Iterator[Tensor]:
        """Training images to measure on, ``limit`` at most, the same at every call: prepared batches on the device."""
        with seeded(torch.device("cpu"), self.seed):
            for batch in self.parts[0].shuffled(self.protocol.batch_size, limit):
                yield prepare(to_device(batch, self.device)[0])

    @property
    def autocast(self) -> torch.autocast:
        """The context to compute in, for the protocol's ``precision``."""
        enabled = devices.choose_precision(self.protocol.precision, self.device) == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)
