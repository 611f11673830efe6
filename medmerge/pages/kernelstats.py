"""Statistics of learnt merging weights along depth, and against what the optimiser could do.

Everything here reads records or ``{layer: w}``, in forward order; w is the first source's share of a kernel.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from medmerge.explorer import payload as explorer_data
from medmerge.pages.report import displacement
from medmerge.study.records import Record, RecordError

Weights = Mapping[str, ArrayLike]

_UNIT = re.compile(r"(?P<unit>.*(?:denselayer|(?:^|\.)layer\d+\.)\d+)\.(?P<part>conv\d+|downsample)")
_ROLES = {"1×1 conv1": "1×1 bottleneck", "3×3 conv2": "3×3 growth"}


def merged_rows(records: Sequence[Record]) -> dict[Path, list[Record]]:
    """The runs with merging weights, by the folder of their row, each row's seeds in order.

    Raises:
        RecordError: there is none, or two seeds of a row differ in sources or layers.
    """
    rows: dict[Path, list[Record]] = {}
    for record in records:
        if record.kernel_weights:
            rows.setdefault(record.folder.parent, []).append(record)
    if not rows:
        raise RecordError(f"none of the {len(records)} records holds merging weights: give those of merged runs")
    for runs in rows.values():
        runs.sort(key=lambda record: record.run["seed"])
        for record in runs[1:]:
            if record.run["row"]["sources"] != runs[0].run["row"]["sources"] or _sizes(record) != _sizes(runs[0]):
                raise RecordError(f"{record.folder} has other sources or layers than {runs[0].folder}: not one row")
    return rows


def mean_weights(runs: Sequence[Record]) -> dict[str, NDArray[np.float64]]:
    """w of every kernel averaged over a row's seeds, by layer, ``[kernels]``."""
    return {
        name: np.mean([run.kernel_weights[name] for run in runs], axis=0, dtype=np.float64)
        for name in runs[0].kernel_weights
    }


def layer_kinds(weights: Weights, backbone: str) -> pd.DataFrame:
    """Where each layer stands in a known architecture, and its mean w: a row a layer, in forward order.

    Args:
        weights: w by layer, ``[kernels]``.
        backbone: an architecture's name, as :func:`~medmerge.backbones.backbone` takes it.

    Returns:
        Columns layer, kernels, mean; ``size`` of its kernels, such as ``"3×3"``; ``kind``: ``"stem"``,
        ``"1×1 bottleneck"`` and ``"3×3 growth"`` of a DenseNet's dense layers, ``"1×1 transition"``, ``"1×1 conv1"``,
        ``"3×3 conv2"``, ``"1×1 conv3"`` and ``"1×1 downsample"`` of a ResNet's blocks, or the explorer's words;
        ``block``, such as ``"dense block 1"``; and ``unit``, the dense layer or residual block, else empty.

    Raises:
        ValueError: the backbone is not known, or has other layers.
    """
    vectors = {name: np.asarray(w, dtype=np.float64) for name, w in weights.items()}
    found = explorer_data.layers(explorer_data.Run("", vectors, ("", ""), backbone=backbone))
    strange = [layer.name for layer in found if not layer.shape or not layer.shape.startswith(f"{layer.kernels} ×")]
    if strange or not found:
        raise ValueError(f"{backbone!r} has no layers {strange[:3]} of this size: name the backbone of these weights")
    rows = []
    for layer in found:
        size, match = layer.kind.partition(" ")[0], _UNIT.match(layer.name)
        kind = f"{size} {match['part']}" if match else layer.kind
        if match and "denselayer" in layer.name:
            kind = _ROLES.get(kind, kind)
        elif layer.block.startswith("transition"):
            kind = f"{size} transition"
        elif layer.block == "stem":
            kind = "stem"
        rows.append((layer.name, layer.kernels, vectors[layer.name].mean(), size, kind, layer.block))
        rows[-1] += (match["unit"] if match else "",)
    return pd.DataFrame(rows, columns=["layer", "kernels", "mean", "size", "kind", "block", "unit"])


@dataclass(frozen=True)
class Alternation:
    """Whether mean w alternates with the kind of convolution, as the paper's Fig. 4 suggests (:func:`alternation`).

    Attributes:
        difference: mean w of a unit's 1×1 minus that of its 3×3 convolutions, averaged over units.
        low, high: 95 % percentile bootstrap interval over units.
        units: dense layers or residual blocks that have both.
        autocorrelation, p_value: of the layers' means along depth, at lag 1 (negative where neighbours alternate).
        within_blocks, p_within: the same of deviations from the block's mean, neighbours in a block only, so that
            neither a trend along depth hides an alternation nor makes one.
    """

    difference: float
    low: float
    high: float
    units: int
    autocorrelation: float
    p_value: float
    within_blocks: float
    p_within: float

    @property
    def sentence(self) -> str:
        """What was found, in Markdown, no stronger than its interval and tests."""
        told = f"{self.difference:+.4f} ({self.low:+.4f} to {self.high:+.4f}, {self.units} units)"
        apart = "differ" if self.low > 0 or self.high < 0 else "are not shown to differ"
        found = "no alternation along depth is shown"
        if self.p_within < 0.05:
            found = (
                "neighbours alternate"
                if self.within_blocks < 0
                else "neighbours are alike, the opposite of alternating"
            )
        return (
            f"1×1 and 3×3 convolutions {apart} in mean w: the difference is {told}; within blocks {found} (lag-1 "
            f"autocorrelation {self.within_blocks:+.2f}, p = {self.p_within:.2g}; over the whole depth "
            f"{self.autocorrelation:+.2f}, p = {self.p_value:.2g})."
        )


def alternation(weights: Weights, backbone: str, resamples: int = 10_000, seed: int = 0) -> Alternation:
    """Measure the alternation of mean w between a network's 1×1 and 3×3 convolutions.

    Args:
        weights, backbone: as for :func:`layer_kinds`.
        resamples: of the bootstrap and of the permutation tests.

    Raises:
        ValueError: fewer than two units with both kinds of convolution, as in a ResNet-18.
    """
    kinds = layer_kinds(weights, backbone)
    convolutions = kinds[(kinds["unit"] != "") & ~kinds["kind"].str.endswith("downsample")]
    by_unit = convolutions.pivot_table("mean", "unit", "size", sort=False)
    if not {"1×1", "3×3"} <= set(by_unit) or len(by_unit := by_unit[["1×1", "3×3"]].dropna()) < 2:
        raise ValueError(f"{backbone} has fewer than two blocks with 1×1 and 3×3 convolutions: nothing can alternate")
    differences = (by_unit["1×1"] - by_unit["3×3"]).to_numpy()
    generators = np.random.default_rng(seed).spawn(3)
    drawn = generators[0].choice(differences, (resamples, len(differences))).mean(axis=1)
    means = kinds["mean"].to_numpy()
    return Alternation(
        float(differences.mean()),
        *np.quantile(drawn, [0.025, 0.975]).tolist(),
        len(differences),
        *autocorrelation(means, None, resamples, generators[1]),
        *autocorrelation(means, kinds["block"].to_numpy(), resamples, generators[2]),
    )


def autocorrelation(
    values: ArrayLike,
    blocks: ArrayLike | None = None,
    permutations: int = 10_000,
    generator: np.random.Generator | int = 0,
) -> tuple[float, float]:
    """Lag-1 autocorrelation of a series, and its two-sided permutation p-value.

    The deviations are from the mean, or from the block's mean with neighbours in one block only. Orders are drawn
    anew, within blocks if given, and the distance from their mean is ranked, since under no order at all the
    expectation is not 0 but about -1 / length.

    Args:
        values: the series, ``[n]``.
        blocks: each value's block, ``[n]``, or None for one.

    Returns:
        Both NaN where nothing varies.
    """
    values = np.asarray(values, dtype=np.float64)
    labels = np.zeros(len(values), int) if blocks is None else np.unique(blocks, return_inverse=True)[1]
    groups = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    deviations = values.copy()
    for group in groups:
        deviations[group] -= values[group].mean()
    total = (deviations**2).sum()
    if total <= (np.finfo(float).eps * np.abs(values).max()) ** 2 * len(values):
        return float("nan"), float("nan")
    neighbours = labels[1:] == labels[:-1]

    def lag_one(series: NDArray) -> NDArray:
        return (series[..., 1:] * series[..., :-1] * neighbours).sum(axis=-1) / total

    generator, permuted = np.random.default_rng(generator), np.tile(deviations, (permutations, 1))
    for group in groups:
        permuted[:, group] = generator.permuted(permuted[:, group], axis=1)
    observed, null = lag_one(deviations), lag_one(permuted)
    as_far = np.abs(null - null.mean()) >= np.abs(observed - null.mean()) - 1e-12
    return float(observed), float((1 + as_far.sum()) / (1 + permutations))


def adam_reach(steps: int, betas: tuple[float, float] = (0.9, 0.999)) -> float:
    """The furthest that any gradients can carry a weight in so many steps of Adam, in learning rates.

    A steady gradient moves it by one learning rate a step. Step t moves it most, by Cauchy and Schwarz's inequality,
    where gradients grow by ``betas[1] / betas[0]`` a step, which is the same for every t: the sum of the steps'
    bounds is reached. Without weight decay, and with Adam's epsilon far below the gradients (Kingma and Ba, 2015,
    section 2.1, give the bounds of a single step for a single and for steady gradients).
    """
    first, second = betas
    t = np.arange(1, steps + 1, dtype=np.float64)
    ratio = first**2 / second
    squared = (1 - first) ** 2 / (1 - second) * (1 - second**t) / (1 - first**t) ** 2 * (1 - ratio**t) / (1 - ratio)
    return float(np.sqrt(squared).sum())


def displacements(records: Sequence[Record]) -> pd.DataFrame:
    """How far every merged run's w went from 0.5, beside how far AdamW could have carried it: a row a run.

    Returns:
        Columns study (``pair/backbone``), run, seed, ``w_lr`` (learning rate of w), steps up to the kept epoch;
        ``mean`` and ``largest`` of ``|w - 0.5|``; ``budget``, by steady gradients (w_lr x steps), and ``reach``, by any
        gradients (:func:`adam_reach`), both of w itself where softmax learns logits, and both without decay of w;
        ``share``, largest / budget, NaN where w did not learn.

    Raises:
        RecordError: no run holds merging weights.
    """
    rows = []
    for record in itertools.chain.from_iterable(merged_rows(records).values()):
        p, moved = record.run["parameters"], displacement(record)
        lr = moved["budget"] / moved["steps"]
        budget, reach = moved["budget"], lr * adam_reach(moved["steps"])
        if p.get("normalisation") == "softmax":
            budget, reach = np.tanh([budget, reach]) / 2
        rows.append(
            {"study": "/".join(record.folder.parts[-4:-2]), "run": record.label, "seed": record.run["seed"]}
            | {"w_lr": lr, "steps": moved["steps"], "mean": moved["mean"], "largest": moved["largest"]}
            | {"budget": float(budget), "reach": float(reach), "share": moved["largest"] / budget if budget else np.nan}
        )
    return pd.DataFrame(rows)


def _sizes(record: Record) -> list[tuple[str, int]]:
    return [(name, len(w)) for name, w in record.kernel_weights.items()]
