"""What the explorer shows: runs with their merging weights, and the form in which a page holds them."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.colors import to_hex

from medmerge.merge import KernelMerge
from medmerge.pages.figures.style import half_range
from medmerge.study import records
from medmerge.study.layers import layers, modules_of
from medmerge.study.records import Record, score_column

HISTORY_BYTES = 250_000
"""A page holds at most so much of all runs' histories; where they are longer, every second, third ... epoch."""

_MANY = (
    "the explorer shows two sources; {} has {}: give one source's weights, {{layer: w[i] for layer, w in {}.items()}}"
)


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
    """The runs in what `medmerge.explore` is given.

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
    content, history, p = record.run, record.history, record.run.get("parameters", {})
    probe = history[history["phase"] == "linear_probe"]
    last = p.get("select") == "last" or probe.empty
    best = len(probe) if last else int(probe[score_column(history)].to_numpy().argmax()) + 1
    epochs, weights = record.kernel_history
    size = f" at {p['image_size']} px" if "image_size" in p else ""
    facts = (
        f"{record.label}, target {content['data'].get('name', study)}{size}, "
        f"{record.images['train']:,} training images, {len(probe)} epochs of linear probe (kept: epoch {best}), "
        f"on {content.get('device', 'an unknown device')}; record {'/'.join(record.folder.parts[-5:])}, "
        f"commit {content.get('provenance', {}).get('commit', 'unknown')[:9]}."
    )
    return Run(
        f"{study}/{backbone}/{row}/{seed}",
        record.kernel_weights,
        record.ends,
        study,
        backbone,
        record.label,
        seed.removeprefix("seed"),
        epochs,
        weights,
        best,
        f"{facts} {p.get('note', '')}".strip(),
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


def _vectors(weights: Mapping, where: str) -> dict[str, np.ndarray]:
    if not weights:
        raise ValueError(f"{where}: there are no layers; give {{layer: w}}")
    vectors = {}
    for name, values in weights.items():
        try:
            w = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: w of {name} is no array of numbers: {error}") from None
        if w.ndim != 1 or not w.size:
            raise ValueError(f"{where}: w of {name} has shape {list(w.shape)}; each layer needs a vector [kernels]")
        if not np.isfinite(w).all():
            raise ValueError(f"{where}: w of {name} is not finite")
        vectors[str(name)] = w
    return vectors


def payload(runs: Sequence[Run], merges: Mapping[str, KernelMerge] | None = None) -> dict:
    """The runs as JSON allows: what the explorer's script reads, on a page and live.

    Weights are base64 of little-endian float32, a run's layers one after another; histories of int16 that ``step``
    times gives w - 0.5, epoch by epoch.
    """
    networks: dict[tuple, int] = {}
    packed = []
    thin = -(-sum(2 * w.size for run in runs for w in run.history.values()) // HISTORY_BYTES) or 1
    for run in runs:
        merge = (merges or {}).get(run.name)
        described = tuple(layers(run.weights, run.backbone, merge and modules_of(merge.merged)))
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
        "half": half_range(np.concatenate([w.ravel() for run in runs for w in _everything(run)])),
        "networks": [[[s.name, s.kernels, s.shape, s.kind, s.block] for s in network] for network in networks],
        "runs": packed,
    }


def _everything(run: Run) -> list[np.ndarray]:
    """What the one colour scale around 0.5 is for, that all layers, runs and epochs share."""
    return [*run.weights.values(), *run.history.values()]


def dumps(content: Mapping) -> str:
    """JSON that may stand in a page's script."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()
