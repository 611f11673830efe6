"""The linear probe of a frozen backbone: features computed once, against through the backbone in every epoch."""

from collections.abc import Iterator
from statistics import median

import torch

from benchmarks import turns
from benchmarks.settings import Settings
from medmerge import backbones, devices, training
from medmerge.approaches.paper import classifier
from medmerge.data import Samples
from medmerge.study import cost
from medmerge.training import Protocol, Task

EPOCHS, IMAGES = 50, (128, 32)
"""Epochs of a probe; training and validation images."""


def noise(count: int, image_size: int, seed: int) -> Samples:
    """Images of noise with labels."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, image_size, image_size), dtype=torch.uint8, generator=draw)
    return Samples(images, torch.arange(count), torch.arange(count) % cost.CLASSES, tuple(map(str, range(count))))


def make(backbone: str, image_size: int, small: bool, precision: str, once: bool, device: str) -> turns.Call:
    """A whole linear probe; each call trains a new head and returns the sum of its absolute values."""
    epochs, (train, val) = (5, (24, 8)) if small else (EPOCHS, IMAGES)
    protocol = Protocol(lp_epochs=epochs, lp_lr=1e-3, device=device, precision=precision, select="last")
    task = Task(noise(train, image_size, 0), noise(val, image_size, 1), cost.CLASSES, protocol=protocol)
    with devices.seeded(torch.device("cpu"), 0):
        network = backbones.backbone(backbone, "random")

    def probe() -> list[float]:
        model = classifier(network, task)
        if once:
            training.linear_probe(model, task)
        else:
            network.requires_grad_(False)
            training.fit(model, task.train, task.val, "linear_probe", task, still=[network])
        return model.head.weight.detach().flatten().tolist()

    return probe


def measure(settings: Settings) -> Iterator[dict]:
    """A row a precision: seconds of both, and how far apart their heads end."""
    device = devices.choose_device(settings.device)
    backbone, size, rounds = ("densenet_small", 32, 1) if settings.small else ("densenet121", 64, 2)
    for precision in dict.fromkeys(("fp32", devices.choose_precision("auto", device))):
        case = {"backbone": backbone, "image_size": size, "small": settings.small, "precision": precision}
        case["device"] = device.type
        cases = {str(once): (make, case | {"once": once}) for once in (True, False)}
        found = turns.measure(cases, rounds, device.type, 0)
        once, again = found["True"], found["False"]
        heads = torch.tensor([once.values[-1], again.values[-1]])
        yield {
            **{"backbone": backbone, "image size": size, "precision": precision},
            **{"epochs": 5 if settings.small else EPOCHS, "images": sum((24, 8) if settings.small else IMAGES)},
            "once, s": round(median(once.seconds), 2),
            "every epoch, s": round(median(again.seconds), 2),
            "times faster": round(again.ratio(once), 1),
            "largest weight": float(heads[1].abs().max()),
            "largest difference": float((heads[0] - heads[1]).abs().max()),
        }
