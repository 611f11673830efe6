"""The five approaches of a pair from JPEG files to test scores, against the same as a plain script (`plain.py`)."""

import contextlib
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
import yaml

from benchmarks import photographs
from benchmarks.settings import Settings
from medmerge import backbones, devices

ROWS = 5
"""Approaches of a pair: FT and LP-FT from either source, and MedMerge."""

SIZE = {"backbone": "densenet121", "image_size": 64, "epochs": 10, "images": 200, "test": 400, "side": (600, 450)}
"""HAM10000's photographs are as large."""

PR_SET_CHILD_SUBREAPER = 36
"""Of prctl(2)."""

PAPER = 50
"""The paper's epochs, with all cores and one seed: what is done once is then a smaller part."""

SMALL = {"backbone": "mobilenet_v2", "image_size": 32, "epochs": 1, "images": 40, "test": 40, "side": (100, 75)}
RATES = {"lp_lr": 1e-3, "ft_lr": 3e-4}
HERE = Path(__file__).resolve().parent


def measure(settings: Settings) -> Iterator[dict]:
    """A row a seed and way to run: seconds of both and the mean scores over the five approaches."""
    device = devices.choose_device(settings.device)
    size = SMALL if settings.small else SIZE
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    with tempfile.TemporaryDirectory(prefix="medmerge-bench-") as name:
        folder = Path(name)
        photographs.draw(folder, size["images"], *size["side"], test=size["test"])
        for number, source in enumerate(("first", "second")):
            torch.manual_seed(number)
            model = backbones.backbone(size["backbone"], "random")
            torch.save(model.state_dict(), folder / f"{source}.pth")
        one, epochs, plain = [cores[0]], size["epochs"], {}
        cases = [(seed, one, "auto", epochs) for seed in range(1 if settings.small else 3)]
        if not settings.small:
            cases += [(0, one, "fp32", epochs), (0, cores, "auto", epochs), (0, cores, "auto", PAPER)]
        for seed, on, precision, epochs in cases:
            chosen, key = {**size, "epochs": epochs}, (seed, len(on), epochs)
            if key not in plain:
                plain[key] = _plain(folder, chosen, seed, on, device.type)
            ours = _ours(folder, chosen, seed, on, precision, device)
            yield {"device": devices.describe(device), **_row(chosen, seed, on, precision, plain[key], ours)}


def _row(size: dict, seed: int, on: list[int], precision: str, plain: dict, ours: dict) -> dict:
    return {
        **{"backbone": size["backbone"], "image size": size["image_size"], "epochs": size["epochs"]},
        **{"images": size["images"], "seed": seed, "cores": len(on), "precision": precision},
        **{"plain, s": round(plain["seconds"], 1), "medmerge, s": round(ours["seconds"], 1)},
        "times faster": round(plain["seconds"] / ours["seconds"], 2),
        "of processor time": round(plain["processor"] / ours["processor"], 2),
        **{f"plain {name}": plain[name] for name in SCORES},
        **{f"medmerge {name}": ours[name] for name in SCORES},
    }


SCORES = ("macro_f1", "accuracy")


def _plain(folder: Path, size: dict, seed: int, cores: list[int], device: str) -> dict:
    words = [sys.executable, str(HERE / "plain.py"), *map(str, (folder, folder / "first.pth", folder / "second.pth"))]
    options = {"arch": size["backbone"], "size": size["image_size"], "epochs": size["epochs"], "seed": seed}
    options |= {"workers": len(cores) if len(cores) > 1 else 0, **RATES}
    words += [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    printed, spent = _spent(lambda: _call(words, cores, len(cores), folder, hidden))
    return spent | _mean([json.loads(line) for line in printed.splitlines()])


def _ours(folder: Path, size: dict, seed: int, cores: list[int], precision: str, device: torch.device) -> dict:
    """All rows in one process."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        project = Path(name)
        (project / "_config.yml").touch()
        parameters = {
            **{"pair": "row", "base_data": "first", "base_weights": str(folder / "first.pth")},
            **{"source_data": "second", "source_weights": str(folder / "second.pth"), "target_data": "csv"},
            **{"target_root": str(folder / "images"), "target_labels": str(folder / "labels.csv"), "split": "official"},
            **{"backbone": size["backbone"], "image_size": size["image_size"], "precision": precision},
            **{"lp_epochs": size["epochs"], "ft_epochs": size["epochs"], **RATES, "seeds": [seed]},
            **{"device": device.type, "score_controls": False},  # the plain script scores no controls either
        }
        (project / "p.yaml").write_text(yaml.safe_dump(parameters))
        words = [sys.executable, "-m", "medmerge.cli.main", "train", "p.yaml"]
        environment = {"MEDMERGE_CACHE": str(project / "cache")}
        _, spent = _spent(lambda: _call(words, cores, 1, project, environment))
        runs = [json.loads(path.read_text()) for path in project.glob("results/**/run.json")]
        return spent | _mean([run["metrics"] for run in runs])


def _call(words: list[str], cores: list[int], threads: int, folder: Path, environment: dict) -> str:
    def pin() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)

    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **environment}
    options = {"cwd": folder, "env": environment, "preexec_fn": pin, "start_new_session": True, "text": True}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    printed, complaints = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)}\n{printed[-2000:]}{complaints[-2000:]}")
    _outlived(process.pid)
    return printed


def _adopt() -> None:
    """Make this process the parent of those whose own ends before them, so that their seconds are counted (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _outlived(group: int) -> None:
    """Wait for what is left of a command's processes, such as the one that runs side by side were forked from."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)


def _spent(call) -> tuple[object, dict]:
    """What a call returns, and the seconds by the clock and of the processors that its processes took."""
    _adopt()
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    value = call()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return value, {"seconds": seconds, "processor": processor}


def _mean(runs: list[dict]) -> dict:
    frame = pd.DataFrame(runs)
    if len(frame) != ROWS:
        raise RuntimeError(f"{len(frame)} of {ROWS} approaches have finished")
    return {name: round(float(frame[name].mean()), 4) for name in SCORES}
