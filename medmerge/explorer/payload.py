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
from medmerge.pages.report import displacement
from medmerge.pages.weights import displacements
from medmerge.study import names, records
from medmerge.study.layers import Modules, layers, modules_of
from medmerge.study.records import Record

WEIGHT_BYTES, HISTORY_BYTES, BYTES = 250_000, 230_000, 510_000
"""Up to the first all weights have 16 bits, beyond it 8. Up to the second runs have their histories, fewer where the
weights leave less of the third: a page of many runs has to stay below a megabyte."""

SHOWN = 0.99
"""Share of all runs' kernels that the one colour scale around 0.5 tells apart; others have the colour of its end."""

EPOCHS = 8
"""Epochs of a history that are kept, the last one and every k-th before it."""

_MANY = (
    "the explorer shows two sources; {} has {}: give one source's weights, {{layer: w[i] for layer, w in {}.items()}}"
)


@dataclass(frozen=True)
class Run:
    """A run as the explorer shows it.

    Attributes:
        name: unique, such as ``"skin/densenet121/medmerge-imagenet-ham10k/seed0"``.
        study, backbone, label, seed: what a reader chooses it by; the network by its name in the package.
        sources: names of what w = 1 and w = 0 take.
        weights: w by layer, float32 ``[kernels]``, in forward order.
        epochs, history: see :attr:`medmerge.study.records.Record.kernel_history`.
        kept: the epoch whose weights were kept, where it is known.
        budget: how far steady gradients could have carried w from 0.5, where it is known.
        controls: validation scores with w replaced, of one or several draws, by control, and then re-estimated.
        metric: what these scores are.
        facts: a sentence on what it was computed from.
        origin: fingerprints of the networks that were merged.
        modules: of a merge that is at hand, for its layers' shapes and kinds.
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
    budget: float = 0.0
    controls: Sequence[tuple[str, Sequence[float], float]] = ()
    metric: str = ""
    facts: str = ""
    origin: str = ""
    modules: Modules | None = None

    def at(self, epoch: int | None) -> Mapping[str, np.ndarray]:
        """w by layer as learnt (None), or after an epoch of the linear probe."""
        if epoch is None:
            return self.weights
        row = int(np.flatnonzero(self.epochs == epoch)[0])
        return {name: w[row] for name, w in self.history.items()}


def _found(folder: Path) -> list[Record]:
    """The finished runs in a folder but those of three sources or more, which cannot be shown.

    Raises:
        FileNotFoundError: there is no finished run in it.
    """
    if not (found := records.gather(folder)):
        raise FileNotFoundError(
            f"no finished run in {folder} or below it; give a folder such as results or learn's --out"
        )
    return [record for record in found if not record.kernel_weights or record.num_merged == 2]


def collect(what: object, sources: Sequence[str] | None = None, backbone: str = "") -> list[Run]:
    """The runs in what `medmerge.explore` is given.

    Raises:
        TypeError: it is nothing that can be shown.
        ValueError: no weights in it, weights that are not finite vectors, or a name that comes twice.
        FileNotFoundError: a folder that is not there, or without a finished run.
    """
    if isinstance(what, Mapping):
        nested = what and all(isinstance(value, (Mapping, KernelMerge)) for value in what.values())
        named = what if nested else {"weights": what}
        return [_given(value, str(name), sources, backbone) for name, value in named.items()]
    if isinstance(what, (str, Path)):
        what = _found(Path(what).expanduser())
    items = list(what) if isinstance(what, Iterable) else [what]
    if wrong := [type(item).__name__ for item in items if not isinstance(item, (Record, KernelMerge))]:
        raise TypeError(f"explore() takes a folder of results, records, a KernelMerge or {{layer: w}}, not {wrong[0]}")
    runs = []
    for number, item in enumerate(items, 1):
        if isinstance(item, KernelMerge):
            runs.append(_given(item, f"merge {number}" if len(items) > 1 else "merge", sources, backbone))
        elif item.kernel_weights:
            runs.append(_recorded(item))
    if not runs:
        raise ValueError("no run here has merging weights of two sources: give those of merged runs")
    called = [run.name for run in runs]
    if twice := [name for name in called if called.count(name) > 1]:
        raise ValueError(f"{twice[0]} comes twice: give each run once")
    return runs


def _recorded(record: Record) -> Run:
    if record.num_merged != 2:
        raise ValueError(_MANY.format(record.folder, record.num_merged, "record.source_weights"))
    study, backbone, row, seed = record.folder.parts[-4:]
    content, p = record.run, record.run["parameters"]
    epochs, history = record.kernel_history
    probed = int((record.history["phase"] == "linear_probe").sum())
    kept = displacement(record)["kept_epoch"] if probed else None
    target = content["data"]["name"]
    facts = (
        f"{record.label}, target {names.title(target)} at {p['image_size']} px, "
        f"{record.images['train']:,} training images, {probed} epochs of linear probe"
        f"{f' (kept: epoch {kept})' if kept else ''}, on {content['device']}; record "
        f"{'/'.join(record.folder.parts[-5:])}, commit {content['provenance']['commit'][:9]}. {p.get('note', '')}"
    )
    controls = record.controls.groupby("control", sort=False) if len(record.controls) else ()
    return Run(
        name=f"{study}/{backbone}/{row}/{seed}",
        weights=record.kernel_weights,
        sources=tuple(names.title(name) for name in record.ends),
        origin=" ".join(print[:12] for print in content["sources"].values()),
        study=names.pair(study),
        backbone=backbone,
        label=record.label,
        seed=seed.removeprefix("seed"),
        epochs=epochs,
        history=history,
        kept=kept,
        budget=float(displacements([record])["budget"].item()) if probed else 0.0,
        controls=[(name, part["score"].tolist(), float(part["reestimated"].mean())) for name, part in controls],
        metric="macro AUROC" if record.multilabel else "macro F1",
        facts=facts.strip(),
    )


def _given(what: KernelMerge | Mapping, name: str, sources: Sequence[str] | None, backbone: str) -> Run:
    """A run without a record."""
    modules, sources = None, tuple(sources or ("source 1", "source 0"))
    if len(sources) != 2:
        raise ValueError(f"sources: give the names of two, for w = 1 and w = 0, not {sources!r}")
    if isinstance(what, KernelMerge):
        if what.num_sources != 2:
            raise ValueError(_MANY.format("this merge", what.num_sources, "merge.kernel_weights()"))
        modules = modules_of(what.merged)
        what = {key: w.reshape(len(w), -1).float().mean(1) for key, w in what.kernel_weights().items()}
    return Run(name, _vectors(what, name), sources, label=name, backbone=backbone, modules=modules)


def _vectors(weights: Mapping, where: str) -> dict[str, np.ndarray]:
    vectors = {}
    for name, values in weights.items():
        w = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float32)
        if w.ndim != 1 or not w.size or not np.isfinite(w).all():
            needed = "each layer needs a vector [kernels] of finite numbers"
            raise ValueError(f"{where}: w of {name} is {w} of shape {list(w.shape)}; {needed}")
        vectors[str(name)] = w
    if not vectors:
        raise ValueError(f"{where}: there are no layers; give {{layer: w}}")
    return vectors


def shuffled(w: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """w with each layer's kernels in the order of a hash of their numbers (MurmurHash3's last steps); so the script."""
    found, start = {}, 1
    for name, values in w.items():
        k = np.arange(start, start := start + len(values), dtype=np.uint32)
        k = (k ^ (k >> 16)) * np.uint32(0x85EBCA6B)
        k = (k ^ (k >> 13)) * np.uint32(0xC2B2AE35)
        found[name] = values[np.argsort(k ^ (k >> 16))]
    return found


def payload(runs: Sequence[Run]) -> dict:
    """The runs as JSON allows: what the explorer's script reads, on a page and live.

    Weights and histories are base64 of little-endian integers that ``step`` times gives w - 0.5, a run's layers one
    after another, a history epoch by epoch.
    """
    networks: dict[tuple, int] = {}
    packed, count = {}, sum(w.size for run in runs for w in run.weights.values())
    bits = 16 if 2 * count <= WEIGHT_BYTES else 8
    left = min(HISTORY_BYTES, BYTES - bits // 8 * count)
    first = {(run.study, run.backbone): run for run in reversed(runs)}
    for run in sorted(runs, key=lambda run: first[run.study, run.backbone] is not run):  # these have their histories
        described = tuple(layers(run.weights, run.backbone, run.modules))
        network = networks.setdefault(described, len(networks))
        entry = {"name": run.name, "study": run.study, "backbone": names.title(run.backbone)}
        entry |= {"label": run.label, "seed": run.seed, "sources": run.sources, "origin": run.origin}
        entry |= {"facts": run.facts, "kept": run.kept, "network": network, "budget": run.budget}
        entry |= {"controls": run.controls, "metric": run.metric}
        entry["w"] = _packed(np.concatenate(list(run.weights.values())), bits)
        rows = np.arange(len(run.epochs) - 1, -1, -(-(-len(run.epochs) // EPOCHS) or 1))[::-1]
        history = np.concatenate([w[rows] for w in run.history.values()], axis=1) if run.history else np.empty(0)
        if 0 < bits // 8 * history.size <= left:
            entry |= {"epochs": run.epochs[rows].tolist(), "history": _packed(history, bits)}
            left -= bits // 8 * history.size
        packed[run.name] = entry
    away = np.concatenate([np.abs(w - 0.5) for run in runs for w in run.weights.values()])
    return {
        "palette": [to_hex(c) for c in matplotlib.colormaps["PuOr"](np.linspace(0, 1, 33))],
        "half": half_range(0.5 + np.quantile(away, SHOWN)),
        "networks": [[[s.name, s.kernels, s.shape, s.kind, s.block] for s in network] for network in networks],
        "runs": [packed[run.name] for run in runs],
    }


def _packed(w: np.ndarray, bits: int) -> dict:
    most = 2 ** (bits - 1) - 1
    step = max(float(np.abs(w - 0.5).max()), 1e-6) / most
    whole = np.round((w - 0.5) / step).astype(f"<i{bits // 8}")
    return {"bits": bits, "step": step, "base64": base64.b64encode(whole.tobytes()).decode()}


def dumps(content: Mapping) -> str:
    """JSON that may stand in a page's script."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
