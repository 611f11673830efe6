"""The five approaches of a pair from JPEG files to test scores, against the same as a plain script (`plain.py`)."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import torch
import yaml

from benchmarks import photographs
from medmerge import backbones, devices

SIZE = {"backbone": "densenet121", "image_size": 64, "epochs": 10, "images": 200, "test": 400, "side": (600, 450)}
"""HAM10000's photographs are as large."""
SMALL = {"backbone": "mobilenet_v2", "image_size": 32, "epochs": 1, "images": 40, "test": 40, "side": (100, 75)}
PAPER = 50
"""The paper's epochs, with all cores and one seed: what is done once is then a smaller part."""

RATES = {"lp_lr": 1e-3, "ft_lr": 3e-4}
HERE = Path(__file__).resolve().parent


def measure(device: torch.device, small: bool) -> Iterator[dict]:
    """A row a seed and way to run: seconds of both and the mean scores over the five approaches."""
    size = SMALL if small else SIZE
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    one, epochs, plain = cores[:1], size["epochs"], {}
    cases = [(seed, one, "auto", epochs) for seed in range(1 if small else 3)]
    cases += [] if small else [(0, one, "fp32", epochs), (0, cores, "auto", epochs), (0, cores, "auto", PAPER)]
    with tempfile.TemporaryDirectory(prefix="medmerge-bench-") as name:
        folder = prepare(Path(name), size)
        for seed, on, precision, count in cases:
            chosen, key = {**size, "epochs": count}, (seed, len(on), count)
            if key not in plain:
                plain[key] = scripted(folder, chosen, seed, on, device.type)
            (theirs, slow), (ours, fast) = plain[key], trained(folder, chosen, seed, on, precision, device.type)
            yield {
                **{"device": devices.describe(device), "backbone": size["backbone"], "image size": size["image_size"]},
                **{"epochs": count, "images": size["images"], "seed": seed, "cores": len(on), "precision": precision},
                **{"plain, s": round(slow, 1), "medmerge, s": round(fast, 1), "times faster": round(slow / fast, 2)},
                **{"plain macro_f1": round(theirs, 4), "medmerge macro_f1": round(ours, 4)},
            }


def prepare(folder: Path, size: dict) -> Path:
    """Draw the photographs and the sources that both work on."""
    photographs.draw(folder / "images", size["images"], *size["side"], test=size["test"])
    for number, source in enumerate(("first", "second")):
        torch.manual_seed(number)
        torch.save(backbones.backbone(size["backbone"], "random").state_dict(), folder / f"{source}.pth")
    return folder


def scripted(folder: Path, size: dict, seed: int, cores: list[int], device: str) -> tuple[float, float]:
    """Macro F1, the mean over approaches, and seconds of `plain.py`."""
    settings = {
        **{"folder": str(folder / "images"), "first": str(folder / "first.pth"), "second": str(folder / "second.pth")},
        **{"arch": size["backbone"], "size": size["image_size"], "epochs": size["epochs"], "batch": 32, "seed": seed},
        **{**RATES, "workers": len(cores) if len(cores) > 1 else 0},
    }
    words = [sys.executable, str(HERE / "plain.py"), json.dumps(settings)]
    printed, seconds = _call(words, cores, folder, {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
    return _mean([float(line.split()[1]) for line in printed.splitlines()]), seconds


def trained(folder: Path, size: dict, seed: int, cores: list[int], precision: str, device: str) -> tuple[float, float]:
    """Macro F1, the mean over approaches, and seconds of `medmerge train`."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        project = Path(name)
        (project / "_config.yml").touch()
        parameters = {
            **{"pair": "row", "base_data": "first", "base_weights": str(folder / "first.pth")},
            **{"source_data": "second", "source_weights": str(folder / "second.pth")},
            **{"target_data": "folder", "target_root": str(folder / "images"), "split": "official"},
            **{"backbone": size["backbone"], "image_size": size["image_size"], "precision": precision},
            **{"lp_epochs": size["epochs"], "ft_epochs": size["epochs"], **RATES, "seeds": [seed]},
            **{"device": device, "score_controls": False},  # the plain script scores no controls either
        }
        (project / "p.yaml").write_text(yaml.safe_dump(parameters))
        words = [sys.executable, "-m", "medmerge.cli.main", "train", "p.yaml"]
        _, seconds = _call(words, cores, project, {"MEDMERGE_CACHE": str(project / "cache")})
        runs = [json.loads(path.read_text()) for path in project.glob("results/**/run.json")]
        return _mean([run["metrics"]["macro_f1"] for run in runs]), seconds


def _call(words: list[str], cores: list[int], folder: Path, environment: dict) -> tuple[str, float]:
    """What a command prints, and its seconds, on some cores and with a thread for each."""
    environment, started = {**os.environ, "OMP_NUM_THREADS": str(len(cores)), **environment}, time.perf_counter()
    pin = (lambda: os.sched_setaffinity(0, cores)) if hasattr(os, "sched_setaffinity") else None
    done = subprocess.run(words, cwd=folder, env=environment, preexec_fn=pin, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout, time.perf_counter() - started


def _mean(scores: list[float]) -> float:
    if len(scores) != 5:
        raise RuntimeError(f"{len(scores)} of the five approaches have finished")
    return mean(scores)
