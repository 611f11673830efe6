"""How time and memory grow with image size, number of kernels, number of sources and number of images."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks import photographs, step, turns
from benchmarks.settings import Settings
from medmerge import backbones, devices, training
from medmerge.sources import kernel_layers
from medmerge.training import Protocol, Task

OURS = "KernelMerge"


def measure(settings: Settings) -> Iterator[dict]:
    """A row a size of each thing that grows."""
    device = devices.choose_device(settings.device)
    small, rounds = settings.small, 2 if settings.small else 7
    usual = {"backbone": "densenet_small" if small else "densenet121", "image_size": 32 if small else 64}
    usual |= {"batch_size": 8 if small else 16, "way": OURS, "device": device.type}
    cases = [("image size", n, usual | {"image_size": n}) for n in ((32, 48) if small else (32, 64, 96, 128, 160, 224))]
    cases += [("sources", n, usual | {"sources": n}) for n in ((2, 3) if small else range(2, 9))]
    names = ("densenet_small",) if small else ("densenet_small", "mobilenet_v2", "densenet121", "resnet18", "resnet50")
    cases += [("kernels", _kernels(name), usual | {"backbone": name}) for name in names]
    for what, value, case in cases:
        found = turns.measure({way: (step.make, case | {"way": way}) for way in (OURS, "FT")}, rounds, device.type)
        yield _row(what, value, case, found)
    for count in (32, 64) if small else (500, 1000, 2000, 4000):
        with tempfile.TemporaryDirectory(prefix="medmerge-bench-") as folder:
            photographs.draw(Path(folder), count, 128, test=len(photographs.CLASSES))
            case = {"folder": folder, "device": device.type, "backbone": "densenet_small"}
            (found,) = turns.measure({"images": (images, case)}, 1, device.type, 0).values()
            yield {
                **{"what": "images", "value": count, "backbone": case["backbone"]},
                "ms an image": round(1000 * found.seconds[0] / count, 3),
                "memory, MiB": found.values[0],
            }


def _row(what: str, value: int, case: dict, found: dict[str, turns.Measured]) -> dict:
    probe, ft = found[OURS], found["FT"]
    return {
        **{"what": what, "value": value, "backbone": case["backbone"]},
        "ms an image": round(1000 * median(probe.seconds) / case["batch_size"], 3),
        "memory, MiB": round(probe.peak_mib),
        "of FT": probe.ratio(ft),
    }


def _kernels(backbone: str) -> int:
    """Output filters of all kernel layers."""
    return sum(map(len, kernel_layers(backbones.backbone(backbone, "random"))))


def images(folder: str, device: str, backbone: str) -> turns.Call:
    """Decode a folder's photographs and compute the features of all; returns MiB of memory that no file backs."""
    network = backbones.backbone(backbone, "random").eval().to(device)
    before = _anonymous()

    def call() -> float | None:
        samples = photographs.dataset(Path(folder), 64).train
        protocol = Protocol(device=device, precision="fp32")
        training.features(network, samples, Task(samples, samples, len(photographs.CLASSES), protocol=protocol))
        return None if before is None else round(_anonymous() - before, 1)

    return call


def _anonymous() -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 2**10
