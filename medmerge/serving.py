"""Images on their way to a network: in batches, on the device, normalised."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from medmerge.data import Samples
from medmerge.devices import Courier, seeded

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def prepare(inputs: Tensor) -> Tensor:
    """uint8 RGB ``[B, 3, H, W]`` to float32, ImageNet's mean and deviation, channels last; features pass unchanged."""
    if inputs.dtype != torch.uint8:
        return inputs
    mean, std = _imagenet(inputs.device)
    return ((inputs / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


@functools.cache
def _imagenet(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and deviation, ``[3, 1, 1]`` each, put on the device once."""
    with torch.inference_mode(False):
        return tuple(torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))


def images(
    samples: Samples, batch_size: int, device: torch.device, seed: int, limit: int | None = None
) -> Iterator[Tensor]:
    """Batches of prepared images on the device, the first ``limit`` in an order that ``seed`` draws.

    For measuring, not for learning. No batch holds a single image, unless there is but one.
    """
    with seeded(torch.device("cpu"), seed):
        order = torch.randperm(len(samples))[:limit]
    for positions in batches(order, batch_size):
        yield prepare(to_device(samples.batch(positions), device)[0])


def batches(order: Tensor, size: int) -> list[Tensor]:
    """``order`` in batches; a last batch of one joins the one before it, since batch norm has no variance of one."""
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def resident(samples: Samples, device: torch.device) -> Samples:
    """``samples`` on the device where they take up at most half of its free memory, else as they are."""
    if device.type != "cuda":
        return samples
    each = samples.inputs[:1].nbytes
    if each * len(samples) > torch.cuda.mem_get_info(device)[0] / 2:
        return samples
    return replace(
        samples,
        inputs=samples.inputs[samples.rows].to(device),
        rows=torch.arange(len(samples), device=device),
        labels=samples.labels.to(device),
    )


def stream(samples: Samples, positions: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels on the device, a pair for each of ``positions``, in their order.

    The next batch is gathered and on its way while the present one is computed on: its copy runs beside the
    computation (:class:`medmerge.devices.Courier`). Samples that are resident, or of a CPU, are not copied.

    Args:
        positions: int64 ``[B]`` each, on the device of ``samples.rows``.
    """
    courier, ahead = Courier(device), None
    for chosen in positions:
        upcoming = courier.send(samples.batch(chosen))
        if ahead is not None:
            yield courier.receive(ahead)
        ahead = upcoming
    if ahead is not None:
        yield courier.receive(ahead)


def to_device(batch: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs and labels on the device."""
    inputs, labels = batch
    return inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
