"""An epoch of training from decoded images in their cache, against its steps on batches that are ready."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch

from benchmarks import photographs, turns
from medmerge import backbones, devices, training
from medmerge.approaches.paper import classifier
from medmerge.samples import to_device
from medmerge.training import Protocol, Task


def make(backbone: str, image_size: int, folder: Path, cached: bool, device: str) -> turns.Call:
    """An epoch; each call is one, over the training images of a folder that `photographs.draw` filled.

    Args:
        cached: whether the images come from the cache, in a new order each time; otherwise every batch is kept ready.
    """
    samples = photographs.dataset(folder / "images", image_size, folder / "cache").train
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


def measure(device: torch.device, small: bool) -> Iterator[dict]:
    """A row a backbone: images a second of both."""
    names = ("densenet_small",) if small else ("mobilenet_v2", "densenet121")
    count, size, rounds = (64, 32, 1) if small else (512, 64, 5)
    with tempfile.TemporaryDirectory(prefix="medmerge-bench-") as name:
        folder = Path(name)
        photographs.draw(folder / "images", count * 5 // 4, 128, 128, test=len(photographs.CLASSES))
        photographs.dataset(folder / "images", size, folder / "cache")  # decodes: what follows is after the first epoch
        for backbone in names:
            case = {"backbone": backbone, "image_size": size, "folder": folder, "device": device.type}
            cases = {str(cached): (make, case | {"cached": cached}) for cached in (True, False)}
            found = turns.measure(cases, rounds, device.type, 1)
            epoch, ready = found["True"], found["False"]
            yield {
                **{"backbone": backbone, "image size": size, "images": count},
                "epoch, images/s": round(count / median(epoch.seconds), 1),
                "ready batches, images/s": round(count / median(ready.seconds), 1),
                "of ready": ready.ratios(epoch),
            }
