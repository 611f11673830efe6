"""What is learnt from: decoded images, or anybody's batches of images and labels, as a network takes them."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from medmerge.devices import seeded

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Batch = tuple[Tensor, Tensor]
"""Images (or features) and their labels."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Decoded images of one part of a split, in storage that all parts share.

    Attributes:
        inputs: ``[M, ...]``, all of the dataset: images, uint8 RGB ``[M, 3, H, W]``, or features, float ``[M, F]``.
        rows: int64 ``[N]``, the rows of ``inputs`` that belong to this part.
        labels: a class each, int64 ``[N]``, or any number of classes each, float32 ``[N, K]`` of 1, 0 and NaN (not
            known).
        ids: N ids.
    """

    inputs: Tensor
    rows: Tensor
    labels: Tensor
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several of the classes, or none."""
        return self.labels.ndim == 2

    @property
    def image_size(self) -> int:
        """Width of the images in pixels."""
        return self.inputs.shape[-1]

    def batch(self, positions: Tensor) -> Batch:
        """Copies of the inputs and labels at ``positions``, an int64 ``[B]`` below N."""
        return self.inputs[self.rows[positions]], self.labels[positions]

    def shuffled(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """Batches of ``size`` in an order drawn from torch's random state; of the first ``limit`` alone, if given."""
        order = torch.randperm(len(self))[:limit]
        return joined(map(self.batch, order.split(size)))

    def ordered(self, size: int) -> Iterator[Batch]:
        """Batches of ``size`` in the samples' own order."""
        return map(self.batch, torch.arange(len(self)).split(size))


class Batches:
    """Anybody's batches of images and labels behind the interface of :class:`Samples`. Sizes and order are theirs.

    Every batch is checked whenever it is read.

    Args:
        source: gives pairs of tensors at every ``iter``. Images are uint8 RGB ``[B, 3, H, W]``, which are normalised
            as ImageNet's, or floats ``[B, C, ...]``, which are taken as they are. Labels are integers ``[B]`` from 0
            to ``num_classes - 1``, or floats ``[B, num_classes]`` of 1, 0 and NaN (not known).
        what: what errors call it.
        num_classes: width of the head.

    Raises:
        TypeError: it cannot be gone through again and again, or (when read) does not give pairs of tensors.
        ValueError: when read: images or labels of another type, shape or range, or no images.
    """

    def __init__(self, source: Iterable[Batch], what: str, num_classes: int):
        kind = type(source).__name__
        if isinstance(source, Iterator):
            again = "give a DataLoader, a list of batches, or an object whose __iter__ starts anew"
            raise TypeError(f"{what}: a {kind} can be gone through once, and every epoch goes through it; {again}")
        if not isinstance(source, Iterable) or isinstance(source, (Tensor, str, dict)):
            wrap = "wrap a dataset in torch.utils.data.DataLoader, or put pairs of tensors into a list"
            raise TypeError(f"{what}: a {kind} does not give batches (images, labels); {wrap}")
        self.source, self.what, self.num_classes = source, what, num_classes
        self.images = self.image_size = 0
        self.multilabel = False

    def __len__(self) -> int:
        return self.images

    def checked(self) -> "Batches":
        """Go through all batches once; afterwards the number of images and their kind are known."""
        kinds = set()
        with seeded(torch.device("cpu"), 0):
            for inputs, labels in self.ordered():
                kinds.add((labels.ndim == 2, inputs.shape[1:2]))
                self.images += len(inputs)
                self.image_size = inputs.shape[-1]
        if len(kinds) > 1:
            raise ValueError(f"{self.what}: batches with other channels or other kinds of labels than those before")
        ((self.multilabel, _),) = kinds
        return self

    def shuffled(self, size: int = 0, limit: int | None = None) -> Iterator[Batch]:
        """A pass in the source's own order; of the first ``limit`` images alone, if given."""
        return joined(self.ordered() if limit is None else _first(self.ordered(), limit))

    def ordered(self, size: int = 0) -> Iterator[Batch]:
        """A pass in the source's own order.

        Raises:
            TypeError, ValueError: as the class says.
        """
        number = 0
        for number, batch in enumerate(self.source, 1):
            yield _checked(batch, f"{self.what}, batch {number}", self.num_classes)
        if not number:
            raise ValueError(f"{self.what}: no batches, at least in this pass; every pass must start anew")


def checked(data: Samples | Batches | Iterable[Batch], what: str, num_classes: int) -> Samples | Batches:
    """Whatever can be learnt from, known to be right: somebody's batches are gone through once, samples looked at."""
    if isinstance(data, Batches):
        return data
    if not isinstance(data, Samples):
        return Batches(data, what, num_classes).checked()
    _labels(data.labels, what, num_classes)
    if data.inputs.dtype != torch.uint8 and not data.inputs.is_floating_point():
        raise ValueError(f"{what}: inputs are {data.inputs.dtype}; they must be uint8 or floats")
    return data


def _checked(batch: object, where: str, num_classes: int) -> Batch:
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)):
        given = [type(t).__name__ for t in batch] if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise TypeError(f"{where}: {given}; give a pair of tensors, images [B, 3, H, W] and labels [B]")
    images, labels = batch
    described = f"{where}: images are {images.dtype} {list(images.shape)}"
    right = images.is_floating_point() and images.ndim > 1 and bool(images.isfinite().all())
    if not right and not (images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3):
        raise ValueError(f"{described}; give uint8 RGB [B, 3, H, W], or finite floats that are normalised already")
    labels = _labels(labels, where, num_classes)
    if not len(images) or len(labels) != len(images):
        raise ValueError(f"{described}, with {len(labels)} labels; give one for each, and one image at least")
    return images, labels


def _labels(labels: Tensor, where: str, num_classes: int) -> Tensor:
    """Labels as int64 ``[B]`` or float32 ``[B, num_classes]``."""
    if labels.ndim == 1 and not labels.is_floating_point() and labels.dtype != torch.bool:
        wrong, allowed = labels[(labels < 0) | (labels >= num_classes)], f"0 to {num_classes - 1}"
        labels = labels.long()
    elif labels.ndim == 2 and labels.is_floating_point() and labels.shape[1] == num_classes:
        wrong, allowed = labels[(labels != 0) & (labels != 1) & ~labels.isnan()], "1, 0 and NaN (not known)"
        labels = labels.float()
    else:
        given = f"{where}: labels are {labels.dtype} {list(labels.shape)}; give a class each, integers [B]"
        several = f"floats [B, {num_classes}] of 1, 0 and NaN (not known)"
        raise ValueError(f"{given}, or any number of the {num_classes} classes each, {several}")
    if len(wrong):
        raise ValueError(f"{where}: a label is {wrong[0].item():g}; with {num_classes} classes they are {allowed}")
    return labels


def joined(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches; a last one of one image joins the one before it, since batch norm has no variance of one."""
    held: list[Batch] = []
    for batch in batches:
        if len(held) == 2:
            yield held.pop(0)
        held.append(batch)
    if len(held) == 2 and len(held[1][1]) == 1:
        (inputs, labels), (one, label) = held
        held = [(torch.cat([inputs, one]), torch.cat([labels, label]))]
    yield from held


def _first(batches: Iterable[Batch], limit: int) -> Iterator[Batch]:
    """The first ``limit`` images."""
    for inputs, labels in batches:
        yield inputs[:limit], labels[:limit]
        limit -= len(inputs)
        if limit <= 0:
            return


def to_device(batch: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Tensors, such as inputs and labels, on the device; the host does not wait for a copy."""
    if device.type == "cuda":
        batch = tuple(tensor if tensor.is_cuda else tensor.pin_memory() for tensor in batch)
    return tuple(tensor.to(device, non_blocking=True) for tensor in batch)


def prepare(inputs: Tensor) -> Tensor:
    """What a network computes on: float32, images channels last; uint8 RGB by ImageNet's mean and deviation."""
    if inputs.dtype == torch.uint8:
        mean, std = _imagenet(inputs.device)
        inputs = (inputs / 255 - mean) / std
    layout = {"memory_format": torch.channels_last} if inputs.ndim == 4 else {}
    return inputs.float().contiguous(**layout)


@functools.cache
def _imagenet(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and deviation, ``[3, 1, 1]`` each, put on the device once."""
    with torch.inference_mode(False):
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std
