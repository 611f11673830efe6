"""What the second plan's tests can show, by simulation from the spreads of the first round: benchmarks/power.csv.

    python benchmarks/power.py

A difference of two rows is simulated as its gain, noise of the test images that all seeds share, noise of images in one
seed, and noise of the seed itself (other source, other head, other order). The first two are a bootstrap's, measured on
the skin pair of the first round with DenseNet-121 and scaled to the classes of another test set; the third is what the
spread between its seeds leaves. A cautious case takes the whole of that spread for the seed's own.
"""

from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

OUT = Path(__file__).with_suffix(".csv")
ALPHA = 0.05
SHARED, OWN = 0.26, 0.29
"""Standard deviation of a difference in macro F1, over test images: what seeds share, and each seed's own. In units of
the size in :func:`spread`, by which the skin pair's were divided: 0.0138 and 0.0155 of 0.053."""
SEED = {"expected": 0.0075, "cautious": 0.0172}
"""Standard deviation of a difference from seed to seed: without, and with, what one test set adds to it."""
TESTS = {
    "skin-2": [245, 385, 824, 86, 837, 5030, 106],
    "chest-2": [1102, 2986],
    "retina-2": [174, 46, 92, 68, 20],
    "first round: skin": [104, 368, 77],
}
"""Test images by class."""
PAIRS = list(TESTS)[:3]
BASELINES, MERGES = 5, 2


class Spread(NamedTuple):
    """Standard deviations of a difference between two rows: of images that seeds share, of a seed's own, of seeds."""

    shared: float
    own: float
    seed: float


def spread(pair: str, case: str) -> Spread:
    """What is expected of a pair's differences.

    The noise of macro F1 scales with the test images n of its K classes as the root of the sum of 1 / n, over K.
    """
    size = np.sqrt((1 / np.array(TESTS[pair])).sum()) / len(TESTS[pair])
    return Spread(SHARED * size, OWN * size, SEED[case])


def draw(gain: float, spreads: list[Spread], seeds: int, draws: int, rng: np.random.Generator) -> tuple[NDArray, ...]:
    """Differences ``[draws, MERGES, BASELINES]`` of MedMerge's rows, pooled over pairs by inverse variance.

    Returns:
        The differences, their standard errors for other images, those for other images and seeds, and the degrees of
        freedom of the latter. The seeds' variance is estimated from all rows of a pair, as the plan has it.
    """
    rows = MERGES + BASELINES
    freedom = rows * (seeds - 1)
    difference = image = between = parts = 0.0
    weights = np.array([1 / (s.shared**2 + (s.own**2 + s.seed**2) / seeds) for s in spreads])
    for weight, s in zip(weights / weights.sum(), spreads, strict=True):
        within = s.own**2 + s.seed**2
        each = rng.normal(0, np.sqrt((s.shared**2 + within / seeds) / 2), (draws, rows))
        difference += weight * (gain + each[:, :MERGES, None] - each[:, None, MERGES:])
        image += weight**2 * (s.shared**2 + s.own**2 / seeds)
        part = weight**2 * within / seeds * rng.chisquare(freedom, draws) / freedom
        between, parts = between + part, parts + part**2 / freedom
    return difference, np.sqrt(image), np.sqrt(image + between), (image + between) ** 2 / parts


def holm(p: NDArray) -> NDArray:
    """Adjusted p values of families in the last axis."""
    order, count = p.argsort(axis=-1), p.shape[-1]
    steps = np.take_along_axis(p, order, -1) * np.arange(count, 0, -1)
    adjusted = np.maximum.accumulate(steps, axis=-1)
    return np.minimum(np.take_along_axis(adjusted, order.argsort(axis=-1), -1), 1)


def power(
    gain: float, spreads: list[Spread], seeds: int, draws: int = 20_000, seed: int = 0
) -> tuple[float, float, float]:
    """How often the plan calls MedMerge superior if all its rows gain ``gain`` over all baselines.

    Superior: Holm-adjusted p for other images below 5 %, and the 95 % interval for other seeds and images above 0.

    Args:
        spreads: of one pair, or of those that are pooled.

    Returns:
        The share for one comparison; the share for all baselines of one row of MedMerge; and half the mean width of the
        95 % interval.
    """
    d, image, error, freedom = draw(gain, spreads, seeds, draws, np.random.default_rng(seed))
    p = holm(2 * stats.norm.sf(np.abs(d) / image).reshape(draws, -1)).reshape(d.shape)
    reach = stats.t.ppf(1 - ALPHA / 2, freedom) * error
    found = (p < ALPHA) & (d > reach[:, None, None])
    return float(found.mean()), float(found[:, 0].all(axis=-1).mean()), float(reach.mean())


def table() -> pd.DataFrame:
    """A line a case: pair or pool, spread, seeds and gain."""
    pools = {pair: [pair] for pair in TESTS} | {"pooled": PAIRS}
    cases = product(pools, SEED, (2, 3, 4, 5, 6, 8), (0.0, 0.01, 0.02, 0.03, 0.04, 0.05))
    lines = [
        (pool, case, seeds, gain, *power(gain, [spread(pair, case) for pair in pools[pool]], seeds))
        for pool, case, seeds, gain in cases
    ]
    return pd.DataFrame(lines, columns=["pair", "spread", "seeds", "gain", "one", "all", "half"])


if __name__ == "__main__":
    table().to_csv(OUT, index=False, float_format="%.3f")
