"""What the explorer shows: runs with their merging weights, and the form in which a page holds them."""

import base64
import functools
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.colors import to_hex
from torch import nn

from medmerge import backbones
from medmerge.merge import KernelMerge
from medmerge.pages.figures.depth import half_range
from medmerge.sources import kernel_layers
from medmerge.study import records
from medmerge.study.records import Record, score_column

HISTORY_BYTES = 250_000
"""A page holds at most so much of all runs' histories; where they are longer, every second, third ... epoch."""

_MANY = (
    "the explorer shows two sources; {} has {}: give one source's weights, {{layer: w[i] for layer, w in {}.items()}}"
)
_BLOCKS = {"denseblock": "dense block", "transition": "transition", "layer": "layer", "encoder_layer_": "layer"}


@dataclass(frozen=True)
class Layer:
    """A merged layer.

    Attributes:
        name: as in the backbone.
        kernels: how many it has.
        shape: of its weight, such as ``"64 x 3 x 7 x 7"``; empty where the architecture is not known.
        kind: in words, such as ``"7x7 convolution"``; likewise.
        block: the part of the network that it belongs to, such as ``"dense block 1"``.
    """

    name: str
    kernels: int
    shape: str = ""
    kind: str = ""
    block: str = ""


@dataclass(frozen=True)
class Run:
    """A run as the explorer shows it.

    Attributes:
        name: unique, such as ``"skin/densenet121/medmerge-imagenet-ham10k/seed0"``.
        study, backbone, label, seed: what a reader chooses it by.
        sources: names of what w = 1 and w = 0 take.
        weights: w by layer, float32 ``[kernels]``, in forward order.
        epochs, history: see :attr:`medmerge.study.records.Record.kernel_history`.
        kept: the epoch whose weights were kept, where it is known.
        facts: a sentence on what it was computed from.
    """

    name: str
    weights: Mapping[str, np.ndarray]
    sources: tuple[str, str]
    study: str = ""
    backbone: str = ""
    label: str = ""
    seed: str = ""
    epochs: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    history: Mapping[str, np.ndarray] = field(default_factory=dict)
    kept: int | None = None
    facts: str = ""

    def at(self, epoch: int | None) -> Mapping[str, np.ndarray]:
        """w by layer as learnt (None), or after an epoch of the linear probe."""
        if epoch is None:
            return self.weights
        row = int(np.flatnonzero(self.epochs == epoch)[0])
        return {name: w[row] for name, w in self.history.items()}


def _found(folder: Path) -> list[Record]:
    """The finished runs in a folder but those of three sources or more, which cannot be shown.

    Raises:
        FileNotFoundError: there is no such folder, or no finished run in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; give one with finished runs, such as results or learn's --out")
    if not (found := records.gather(folder)):
        raise FileNotFoundError(f"no finished run in {folder} or below it; runs are kept below results/")
    return [record for record in found if not record.kernel_weights or record.num_merged == 2]


def collect(what: object, sources: Sequence[str] | None = None, backbone: str = "") -> list[Run]:
    """The runs in what :func:`medmerge.explore` is given.

    Raises:
        TypeError: it is nothing that can be shown.
        ValueError: no weights in it, weights that are not finite vectors, or a name that comes twice.
        FileNotFoundError: a folder that is not there, or without a finished run.
    """
    if isinstance(what, (Record, KernelMerge)):
        what = [what]
    if isinstance(what, Mapping):
        if not what:
            raise ValueError("nothing to explore: the mapping is empty; give {layer: w}")
        nested = all(isinstance(value, (Mapping, KernelMerge)) for value in what.values())
        runs = [_given(value, str(name), sources, backbone) for name, value in (what.items() if nested else ())]
        return runs or [_given(what, "weights", sources, backbone)]
    if isinstance(what, (str, Path)):
        what = _found(Path(what).expanduser())
    if not isinstance(what, Iterable):
        raise TypeError(
            f"explore() takes a folder of results, records, a KernelMerge or {{layer: w}}, not {type(what).__name__}"
        )
    items = list(what)
    wrong = [type(item).__name__ for item in items if not isinstance(item, (Record, KernelMerge))]
    if wrong:
        raise TypeError(f"explore() takes records or a KernelMerge in a list, not {wrong[0]}")
    runs = []
    for number, item in enumerate(items):
        if isinstance(item, KernelMerge):
            runs.append(_given(item, f"merge {number + 1}" if len(items) > 1 else "merge", sources, backbone))
        elif item.kernel_weights:
            runs.append(_recorded(item))
    if not runs:
        raise ValueError(f"none of the {len(items)} records holds merging weights: give those of merged runs")
    names = [run.name for run in runs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]} comes twice: give each run once")
    return runs


def _recorded(record: Record) -> Run:
    if record.num_merged != 2:
        raise ValueError(_MANY.format(record.folder, record.num_merged, "record.source_weights"))
    study, backbone, row, seed = record.folder.parts[-4:]
    content, history = record.run, record.history
    probe = history[history["phase"] == "linear_probe"]
    last = content.get("parameters", {}).get("select") == "last"
    best = len(probe) if last or probe.empty else int(probe[score_column(history)].to_numpy().argmax()) + 1
    epochs, weights = record.kernel_history
    parameters, commit = content.get("parameters", {}), content.get("provenance", {}).get("commit", "unknown")
    size = f" at {parameters['image_size']} px" if "image_size" in parameters else ""
    facts = (
        f"{record.label}, target {content['data'].get('name', study)}{size}, "
        f"{record.images['train']:,} training images, {len(probe)} epochs of linear probe (kept: epoch {best}), "
        f"on {content.get('device', 'an unknown device')}; record {'/'.join(record.folder.parts[-5:])}, "
        f"commit {commit[:9]}."
    )
    return Run(
        f"{study}/{backbone}/{row}/{seed}",
        _vectors(record.kernel_weights, str(record.folder)),
        record.ends,
        study,
        backbone,
        record.label,
        seed.removeprefix("seed"),
        epochs,
        _vectors(weights, str(record.folder), 2) if weights else {},
        best,
        f"{facts} {parameters.get('note', '')}".strip(),
    )


def _given(what: KernelMerge | Mapping, name: str, sources: Sequence[str] | None, backbone: str) -> Run:
    """A run without a record."""
    if isinstance(what, KernelMerge):
        if what.num_sources != 2:
            raise ValueError(_MANY.format("this merge", what.num_sources, "merge.kernel_weights()"))
        weights = {key: w.reshape(len(w), -1).float().mean(1).cpu() for key, w in what.kernel_weights().items()}
    else:
        weights = what
    return Run(
        name, _vectors(weights, name), _two(sources or ("first source", "second source")), label=name, backbone=backbone
    )


def _two(sources: Sequence[str]) -> tuple[str, str]:
    if isinstance(sources, str) or len(sources) != 2:
        raise ValueError(f"sources: give the names of two, for w = 1 and w = 0, not {sources!r}")
    return str(sources[0]), str(sources[1])


def _vectors(weights: Mapping, where: str, dims: int = 1) -> dict[str, np.ndarray]:
    if not weights:
        raise ValueError(f"{where}: there are no layers; give {{layer: w}}")
    vectors = {}
    for name, values in weights.items():
        try:
            w = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: w of {name} is no array of numbers: {error}") from None
        if w.ndim != dims or not w.size:
            raise ValueError(f"{where}: w of {name} has shape {list(w.shape)}; each layer needs a vector [kernels]")
        if not np.isfinite(w).all():
            raise ValueError(f"{where}: w of {name} is not finite")
        vectors[str(name)] = w
    return vectors


def layers(run: Run, merge: KernelMerge | None = None) -> list[Layer]:
    """The layers of a run in forward order, with shapes and kinds where its architecture is known."""
    modules = _modules(run.backbone) if merge is None else _shapes(merge.merged)
    return [
        Layer(name, len(w), *_described(modules[name]) if name in modules else ("", ""), _block(name))
        for name, w in run.weights.items()
    ]


@functools.cache
def _modules(backbone: str) -> dict[str, tuple[nn.Module, torch.Size]]:
    """A known architecture's modules with their weights' shapes, made without memory for the weights."""
    if backbone not in backbones.names():
        return {}
    with torch.device("meta"):
        return _shapes(backbones.backbone(backbone, "random"))


def _shapes(network: nn.Module) -> dict[str, tuple[nn.Module, torch.Size]]:
    return {layer.name: (layer.module, getattr(layer.module, layer.weight).shape) for layer in kernel_layers(network)}


def _described(entry: tuple[nn.Module, torch.Size]) -> tuple[str, str]:
    module, shape = entry
    text = " × ".join(map(str, shape))
    if isinstance(module, (nn.Linear, nn.MultiheadAttention)):
        return text, "linear"
    size = "×".join(map(str, module.kernel_size))
    grouped = "" if module.groups == 1 else "depthwise " if module.groups == module.in_channels else "grouped "
    return text, f"{size} {grouped}convolution"


def _block(name: str) -> str:
    if found := re.search(r"(?:^|\.)(denseblock|transition|layer|encoder_layer_)(\d+)(?:\.|$)", name):
        return f"{_BLOCKS[found[1]]} {found[2]}"
    if found := re.match(r"features\.(\d+)\.", name):
        return f"features {found[1]}"
    return "stem"


def payload(runs: Sequence[Run], merges: Mapping[str, KernelMerge] | None = None) -> dict:
    """The runs as JSON allows: what the explorer's script reads, on a page and live.

    Weights are base64 of little-endian float32, a run's layers one after another; histories of int16 that ``step``
    times gives w - 0.5, epoch by epoch.
    """
    networks: dict[tuple, int] = {}
    packed = []
    thin = -(-sum(2 * w.size for run in runs for w in run.history.values()) // HISTORY_BYTES) or 1
    for run in runs:
        described = tuple(layers(run, (merges or {}).get(run.name)))
        network = networks.setdefault(described, len(networks))
        entry = {"name": run.name, "study": run.study, "backbone": run.backbone, "label": run.label, "seed": run.seed}
        entry |= {"sources": run.sources, "facts": run.facts, "kept": run.kept, "network": network}
        entry["w"] = _base64(np.concatenate(list(run.weights.values())).astype("<f4"))
        if run.history:
            rows = np.arange(len(run.epochs) - 1, -1, -thin)[::-1]
            away = np.concatenate([w[rows] for w in run.history.values()], axis=1) - 0.5
            step = max(float(np.abs(away).max()), 1e-6) / 32767
            entry |= {"epochs": run.epochs[rows].tolist(), "step": step}
            entry["history"] = _base64(np.round(away / step).astype("<i2"))
        packed.append(entry)
    return {
        "palette": [to_hex(c) for c in matplotlib.colormaps["PuOr"](np.linspace(0, 1, 33))],
        "half": scale(runs),
        "networks": [[[s.name, s.kernels, s.shape, s.kind, s.block] for s in network] for network in networks],
        "runs": packed,
    }


def agreement(runs: Sequence[Run]) -> pd.DataFrame:
    """Each two runs with the same layers: how alike their learnt weights are, over kernels and over layers' means.

    Runs are called by what differs among them: study, backbone, row, seed. Weights that are all the same, such as those
    held at 0.5, correlate with nothing: NaN.
    """
    parts = [(run.study, run.backbone, run.label, run.seed and f"seed {run.seed}") for run in runs]
    varied = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    called = {run.name: ", ".join(itertools.compress(p, varied)) for run, p in zip(runs, parts, strict=True)}
    rows = []
    for one, other in itertools.combinations(runs, 2):
        if [(name, len(w)) for name, w in one.weights.items()] != [(name, len(w)) for name, w in other.weights.items()]:
            continue
        a, b = (np.concatenate(list(run.weights.values())) for run in (one, other))
        means = np.array([[w.mean() for w in run.weights.values()] for run in (one, other)])
        rows.append(
            {
                "run": called[one.name],
                "other": called[other.name],
                "kernels": len(a),
                "correlation": _correlation(a, b),
            }
            | {"of layers' means": _correlation(*means), "mean |difference|": np.abs(a - b).mean()}
            | {"same side of 0.5": ((a > 0.5) == (b > 0.5)).mean()}
        )
    return pd.DataFrame(rows)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else float("nan")


def scale(runs: Sequence[Run]) -> float:
    """Half the width of the one colour scale around 0.5 that all layers, runs and epochs share."""
    values = [w for run in runs for by_layer in (run.weights, run.history) for w in by_layer.values()]
    return half_range(np.concatenate([w.ravel() for w in values]))


def dumps(content: Mapping) -> str:
    """JSON that may stand in a page's script."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()
