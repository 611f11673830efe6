"""An epoch of training from decoded images in their cache, against its steps on batches that are ready."""

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch

from benchmarks import photographs, turns
from benchmarks.settings import Settings
from medmerge import backbones, devices, training
from medmerge.approaches.paper import classifier
from medmerge.samples import to_device
from medmerge.training import Protocol, Task


def make(backbone: str, image_size: int, folder: str, cached: bool, device: str) -> turns.Call:
    """An epoch; each call is one, over the training images of a folder that `photographs.draw` filled.

    Args:
        cached: whether the images come from the cache, in a new order each time; otherwise every batch is kept ready.
    """
    samples = photographs.dataset(Path(folder), image_size).train
    task = Task(samples, samples, len(photographs.CLASSES), protocol=Protocol(device=device))
    with devices.seeded(torch.device("cpu"), 0):
        model = classifier(backbones.backbone(backbone, "random"), task).to(task.device)
    devices.channels_last(model)
    model.train()
    optimizer = torch.optim.AdamW(training.parameter_groups(model, task.protocol), lr=1e-5, fused=True)
    ready = [to_device(batch, task.device) for batch in samples.shuffled(task.protocol.batch_size)]

    def epoch() -> float:
        batches = samples.shuffled(task.protocol.batch_size) if cached else ready
        return float(torch.stack([training.step(model, optimizer, batch, task) for batch in batches]).mean())

    return epoch


def measure(settings: Settings) -> Iterator[dict]:
    """A row a backbone: images a second of both."""
    device = devices.choose_device(settings.device)
    names = ("densenet_small",) if settings.small else ("mobilenet_v2", "densenet121")
    count, size, rounds = (64, 32, 1) if settings.small else (512, 64, 5)
    with tempfile.TemporaryDirectory(prefix="medmerge-bench-") as folder:
        photographs.draw(Path(folder), count * 5 // 4, 128, test=len(photographs.CLASSES))
        photographs.dataset(Path(folder), size)  # decodes: what follows is after the first epoch
        for backbone in names:
            case = {"backbone": backbone, "image_size": size, "folder": folder}
            one = functools.partial(dict, case, device=device.type)
            found = turns.measure({str(c): (make, one(cached=c)) for c in (True, False)}, rounds, device.type, 1)
            epoch, ready = found["True"], found["False"]
            rate = [count / median(each.seconds) for each in (epoch, ready)]
            yield {
                **{"backbone": backbone, "image size": size, "images": count},
                "epoch, images/s": round(rate[0], 1),
                "ready batches, images/s": round(rate[1], 1),
                "of ready": ready.ratios(epoch),
            }
