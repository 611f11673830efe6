"""Agreement of the merging weights that different seeds learn, kernels told apart from layers."""

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Weights = Mapping[str, ArrayLike]


def icc(ratings: ArrayLike) -> float:
    """Intraclass correlation ICC(A,1): absolute agreement of single ratings, two-way (McGraw and Wong 1996).

    Args:
        ratings: ``[n, k]``, n things by k raters; here kernels by seeds.

    Returns:
        At most 1, which is reached by equal ratings only; NaN for fewer than two things or where nothing varies.
    """
    ratings = np.asarray(ratings, dtype=np.float64)
    n, k = ratings.shape
    if n < 2 or k < 2:
        return float("nan")
    grand, of_things, of_raters = ratings.mean(), ratings.mean(axis=1), ratings.mean(axis=0)
    things = k * ((of_things - grand) ** 2).sum() / (n - 1)
    raters = n * ((of_raters - grand) ** 2).sum() / (k - 1)
    rest = ((ratings - of_things[:, None] - of_raters + grand) ** 2).sum() / ((n - 1) * (k - 1))
    spread = things + (k - 1) * rest + k * (raters - rest) / n
    return float((things - rest) / spread) if spread > 1e-30 else float("nan")


def pearson(a: NDArray, b: NDArray) -> float:
    """Pearson's correlation of two vectors; NaN where one of them does not vary or has fewer than two values."""
    a, b = (np.asarray(v, dtype=np.float64) - np.mean(v, dtype=np.float64) for v in (a, b))
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if len(a) > 1 and scale > 1e-30 else float("nan")


def seed_agreement(runs: Mapping[object, Weights], resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """How alike two seeds' merging weights are, over all kernels: a row each pair of runs.

    Layers differ in mean w, and two seeds that agree on these alone correlate over kernels too. The null keeps each
    layer's values and shuffles which kernel has which, so what exceeds it is agreement on kernels.

    Args:
        runs: w by layer, ``[kernels]``, of each seed; all must have the same layers. Kernels correspond across seeds
            only if the sources are the same.

    Returns:
        Columns one, other, kernels; ``pearson`` and ``icc`` (:func:`icc`) over all kernels; ``layers``, the Pearson
        correlation of layers' means; ``within``, that of deviations from them; ``null``, ``null_low`` and
        ``null_high``, mean and 95 % range of ``pearson`` after shuffling; ``p_value`` that shuffling gives as much.

    Raises:
        ValueError: fewer than two runs, or runs whose layers differ.
    """
    generator, rows = np.random.default_rng(seed), []
    for (one, a), (other, b) in _pairs(runs):
        x, y = (np.concatenate(list(w.values())) for w in (a, b))
        means = [np.array([w.mean() for w in run.values()]) for run in (a, b)]
        deviations = [np.concatenate([w - w.mean() for w in run.values()]) for run in (a, b)]
        observed, within = pearson(x, y), pearson(*deviations)
        products = sum(generator.permuted(np.tile(b[k], (resamples, 1)), axis=1) @ a[k] for k in a)
        spread = x.std() * y.std()
        null = (products / len(x) - x.mean() * y.mean()) / spread if spread > 1e-15 else np.full(resamples, np.nan)
        as_large = (null >= observed - 1e-12).sum()
        rows.append(
            {"one": one, "other": other, "kernels": len(x), "pearson": observed, "icc": icc(np.stack([x, y], axis=1))}
            | {"layers": pearson(*means), "within": within, "null": null.mean()}
            | dict(zip(("null_low", "null_high"), np.quantile(null, [0.025, 0.975]), strict=True))
            | {"p_value": (1 + as_large) / (1 + resamples) if np.isfinite(observed) else float("nan")}
        )
    return pd.DataFrame(rows)


def layer_agreement(runs: Mapping[object, Weights]) -> pd.DataFrame:
    """How alike two seeds' merging weights are within each layer: a row each pair of runs and layer.

    Args:
        runs: as for :func:`seed_agreement`.

    Returns:
        Columns one, other, layer, kernels, ``pearson`` and ``icc`` over the layer's kernels (NaN where they do not
        vary), and ``difference`` of the layer's means, one's minus other's.

    Raises:
        ValueError: as for :func:`seed_agreement`.
    """
    rows = []
    for (one, a), (other, b) in _pairs(runs):
        for layer, x in a.items():
            y = b[layer]
            row = {"one": one, "other": other, "layer": layer, "kernels": len(x), "pearson": pearson(x, y)}
            rows.append(row | {"icc": icc(np.stack([x, y], axis=1)), "difference": x.mean() - y.mean()})
    return pd.DataFrame(rows)


def _pairs(runs: Mapping[object, Weights]) -> list:
    """Every two runs with their names, as checked float vectors."""
    vectors = {key: {name: np.asarray(w, dtype=np.float64) for name, w in run.items()} for key, run in runs.items()}
    shapes = {key: [(name, w.shape) for name, w in run.items()] for key, run in vectors.items()}
    if len(vectors) < 2:
        raise ValueError(f"agreement needs two or more runs, got {len(vectors)}: give {{seed: {{layer: w}}}}")
    first = next(iter(shapes))
    if other := [key for key in shapes if shapes[key] != shapes[first]]:
        raise ValueError(f"run {other[0]!r} has other layers than run {first!r}: compare one backbone's runs")
    return list(itertools.combinations(vectors.items(), 2))
