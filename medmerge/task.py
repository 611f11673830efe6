"""What an approach is given: images, how to train on them, and a place for what is learnt."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from medmerge.data import Samples
from medmerge.devices import choose_device, choose_precision
from medmerge.serving import images

MEASURED = 2048
"""Training images on which batch norm is measured, at most."""


@dataclass(frozen=True)
class Protocol:
    """How to train: the paper's section 3 and, where it is silent, the defaults of the book's protocol.

    Attributes:
        lp_epochs, ft_epochs: epochs of the linear probe and of fine-tuning.
        lp_lr, ft_lr: AdamW's learning rates, constant within a phase.
        batch_size: images a step.
        weight_decay: of the weights of convolutions and linear layers; merging weights, normalisation and biases
            have none.
        select: the epoch that a phase hands on: ``"best"`` by validation macro F1 (of several labels an image: macro
            AUROC), the first of equals, or ``"last"``.
        lp_batchnorm: mode of a frozen backbone's batch norms in the linear probe: ``"eval"`` (running statistics, as
            Kumar et al. 2022) or ``"train"`` (batch statistics, running ones drift).
        batchnorm_free: what of a merge's batch norms changes in its linear probe, one of
            :data:`~medmerge.training.FREE`.
        w_lr: learning rate of the merging weights; None for ``lp_lr``, 0 to leave them where they start.
        w_decay: AdamW's decay of the merging weights, towards 0, which is the last source (affine) or equal shares
            (softmax).
        precision: ``"fp32"``, ``"bf16"`` (autocast), or ``"auto"``: bf16 where the device computes in it.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"``: a GPU where there is one.
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


@dataclass
class Task:
    """What an approach is given: training and validation images, the protocol, and a place for what is learnt.

    Attributes:
        train, val: images (uint8 ``[N, 3, S, S]`` RGB) with labels, of one kind: a class each, int64 ``[N]``, or any
            number of classes each, float32 ``[N, K]`` of 1, 0 and NaN (not known).
        num_classes: width of the head.
        seed: decides the head's initialisation and the order of the images, alike for all approaches.
        protocol: how to train.
        checkpoints: folder for interrupted phases, or None to keep none.
        key: names what is being computed; a checkpoint with another key is not used.
        history: a row an epoch, filled by :func:`~medmerge.training.fit`.
        kernel_history: the merging weights after every epoch of a merge's linear probe, by layer, float16
            ``[epochs, kernels]`` of w - 0.5 for two sources (see :func:`~medmerge.training.kernel_shares`); filled by
            :func:`~medmerge.training.fit`.
        cost: by phase seconds, images a second and peak memory in MiB, filled by :func:`~medmerge.training.fit`.
        sources: what the approach's sources were trained on; names them where it chooses between networks.
        recall: gives the finished network of another approach from one source, both by name, and its cost; or None
            where the study does not have it. See `medmerge.approaches.ingredients`.
    """

    train: Samples
    val: Samples
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

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several of the classes, or none."""
        return self.train.labels.ndim == 2

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
        return choose_device(self.protocol.device)

    def measured(self) -> Iterator[Tensor]:
        """Training images to measure batch norm on: prepared batches, :data:`MEASURED` images at most."""
        return images(self.train, self.protocol.batch_size, self.device, self.seed, MEASURED)

    @property
    def autocast(self) -> torch.autocast:
        """The context to compute in, for the protocol's ``precision``."""
        enabled = choose_precision(self.protocol.precision, self.device) == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)
