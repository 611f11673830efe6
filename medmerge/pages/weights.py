"""Statistics of learnt merging weights along depth, and against what the optimiser could do.

Everything here reads records or ``{layer: w}``, in forward order; w is the first source's share of a kernel.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from medmerge.pages.report import displacement
from medmerge.pages.typeset import fill
from medmerge.study.layers import layers
from medmerge.study.records import Record, RecordError

Weights = Mapping[str, ArrayLike]

_UNIT = re.compile(r"(.*(?:denselayer|(?:^|\.)layer\d+\.)\d+)\.conv\d+")


def merged_rows(records: Sequence[Record]) -> dict[Path, list[Record]]:
    """The runs with merging weights, by the folder of their row in the records' order, each row's seeds in order.

    Raises:
        RecordError: there is none.
    """
    rows: dict[Path, list[Record]] = {}
    for record in records:
        if record.kernel_weights:
            rows.setdefault(record.folder.parent, []).append(record)
    if not rows:
        raise RecordError(f"none of the {len(records)} records holds merging weights: give those of merged runs")
    return {folder: sorted(runs, key=lambda record: record.run["seed"]) for folder, runs in rows.items()}


def mean_weights(runs: Sequence[Record]) -> dict[str, NDArray[np.float64]]:
    """w of every kernel averaged over a row's seeds, by layer, ``[kernels]``."""
    return {
        name: np.mean([run.kernel_weights[name] for run in runs], axis=0, dtype=np.float64)
        for name in runs[0].kernel_weights
    }


def shift(run: Record) -> float:
    """Mean of w - 0.5 over all kernels of a run."""
    return np.concatenate([w.ravel() for w in run.kernel_weights.values()]).mean(dtype=np.float64) - 0.5


def layer_kinds(weights: Weights, backbone: str) -> pd.DataFrame:
    """Where each layer stands in a known architecture, and its mean w: a row a layer, in forward order.

    Args:
        weights: w by layer, ``[kernels]``.
        backbone: an architecture's name, as :func:`~medmerge.backbones.backbone` takes it.

    Returns:
        Columns layer, mean; ``size`` of its kernels, such as ``"3×3"``; ``block``, such as ``"dense block 1"``; and
        ``unit``, the dense layer or residual block of whose way it is, else empty, as for a downsampling.

    Raises:
        ValueError: the backbone is not known, or has other layers.
    """
    found = layers(weights, backbone)
    if strange := [layer.name for layer in found if not layer.shape.startswith(f"{layer.kernels} ×")]:
        raise ValueError(f"{backbone!r} has no layers {strange[:3]} of this size: name the backbone of these weights")
    rows = []
    for layer in found:
        unit, mean = _UNIT.match(layer.name), np.mean(weights[layer.name], dtype=np.float64)
        rows.append((layer.name, mean, layer.kind.partition(" ")[0], layer.block, unit[1] if unit else ""))
    return pd.DataFrame(rows, columns=["layer", "mean", "size", "block", "unit"])


def alternation(weights: Weights, backbone: str, resamples: int = 10_000, seed: int = 0) -> dict[str, float]:
    """Whether mean w alternates with the kind of convolution, as the paper's Fig. 4 suggests.

    Args:
        weights, backbone: as for :func:`layer_kinds`.
        resamples: of the bootstrap and of the permutation tests.

    Returns:
        ``difference``: mean w of a unit's 1×1 minus that of its 3×3 convolutions, averaged over ``units`` (dense
        layers or residual blocks that have both), with its 95 % percentile bootstrap interval over these, ``low`` to
        ``high``; ``whole`` and ``p_whole``, lag-1 autocorrelation of the layers' means along depth (negative where
        neighbours alternate); ``within`` and ``p_within``, the same of deviations from the block's mean, neighbours
        in a block only, so that neither a trend along depth hides an alternation nor makes one.

    Raises:
        ValueError: fewer than two units with both kinds of convolution, as in a ResNet-18.
    """
    kinds = layer_kinds(weights, backbone)
    by_unit = kinds[kinds["unit"] != ""].pivot_table("mean", "unit", "size", sort=False)
    if not {"1×1", "3×3"} <= set(by_unit) or len(by_unit := by_unit[["1×1", "3×3"]].dropna()) < 2:
        raise ValueError(f"{backbone} has fewer than two blocks with 1×1 and 3×3 convolutions: nothing can alternate")
    differences = (by_unit["1×1"] - by_unit["3×3"]).to_numpy()
    generators = np.random.default_rng(seed).spawn(3)
    drawn = generators[0].choice(differences, (resamples, len(differences))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    means = kinds["mean"].to_numpy()
    whole, p_whole = autocorrelation(means, None, resamples, generators[1])
    within, p_within = autocorrelation(means, kinds["block"].to_numpy(), resamples, generators[2])
    found = {"difference": float(differences.mean()), "low": low, "high": high, "units": len(differences)}
    return found | {"whole": whole, "p_whole": p_whole, "within": within, "p_within": p_within}


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
    for record in sum(merged_rows(records).values(), []):
        moved = displacement(record)
        lr, budget = moved["budget"] / moved["steps"], moved["budget"]
        reach = lr * adam_reach(moved["steps"])
        if record.run["parameters"].get("normalisation") == "softmax":
            budget, reach = np.tanh([budget, reach]) / 2
        rows.append(
            {"study": "/".join(record.folder.parts[-4:-2]), "run": record.label, "seed": record.run["seed"]}
            | {"w_lr": lr, "steps": moved["steps"], "mean": moved["mean"], "largest": moved["largest"]}
            | {"budget": float(budget), "reach": float(reach), "share": moved["largest"] / budget if budget else np.nan}
        )
    return pd.DataFrame(rows)


def gather_controls(records: Sequence[Record]) -> pd.DataFrame:
    """The controls of several records in one table, with a column seed."""
    return pd.concat([record.controls.assign(seed=record.run["seed"]) for record in records], ignore_index=True)


def control_summary(table: pd.DataFrame) -> pd.DataFrame:
    """By control mean, least and greatest score over draws and runs, with batch norm as learnt and re-estimated.

    Args:
        table: as :func:`medmerge.approaches.paper.replaced_weights` or :func:`gather_controls` gives it.
    """
    grouped = table.groupby("control", sort=False)[["score", "reestimated"]]
    frame = grouped.agg(["mean", "min", "max"])
    frame.columns = [" ".join(pair) for pair in frame.columns]
    return frame.assign(draws=grouped.size()).reset_index()


def control_sentence(summed: pd.DataFrame) -> str:
    """Learnt weights against their shuffles, in Markdown; the range is over draws and seeds, not a test.

    Args:
        summed: as :func:`control_summary` gives it.
    """
    return fill("controls", **summed.set_index("control").to_dict("index"))
