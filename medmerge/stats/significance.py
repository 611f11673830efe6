"""Paired tests and intervals beyond `evaluation`'s: McNemar, DeLong, seeds and images together, equivalence; and what
several differences say together, and could have shown: estimates pooled over studies, and power.

The module knows arrays only, single-label: labels are class indices ``0 .. K-1``. As in `evaluation`, images are taken
as independent. Only `over_seeds` answers for other seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats
from sklearn.metrics import cohen_kappa_score

from medmerge.stats import resampling
from medmerge.stats.evaluation import Comparison, counted

ALPHA = 0.05


@dataclass(frozen=True)
class SeedInterval:
    """Outcome of `over_seeds`.

    Attributes:
        difference: score of a minus score of b, mean over seeds.
        low, high: ends of the 95 % interval.
        error: standard error of the difference.
        freedom: degrees of freedom of the t distribution; infinite with one seed, of test images alone.
    """

    difference: float
    low: float
    high: float
    error: float
    freedom: float


def mcnemar(labels: ArrayLike, predicted_a: ArrayLike, predicted_b: ArrayLike) -> tuple[float, float]:
    """Compare two models' accuracy on the same images, by the exact binomial test (McNemar, 1947).

    Args:
        labels, predicted_a, predicted_b: class indices, integers of shape [N], of one seed.

    Returns:
        Accuracy of a minus accuracy of b, and the two-sided p value, in [0, 1].
    """
    right_a, right_b = (np.asarray(predicted) == np.asarray(labels) for predicted in (predicted_a, predicted_b))
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return (only_a - only_b) / len(right_a), p


def delong(labels: ArrayLike, probabilities_a: ArrayLike, probabilities_b: ArrayLike) -> Comparison:
    """Compare two models' AUROC on the same images: macro one-vs-rest, with two classes the AUROC itself.

    The covariance is that of DeLong, DeLong and Clarke-Pearson (1988) by midranks (Sun and Xu, 2014). An image's
    components of all classes are averaged, so the macro mean has its covariance between classes too. Interval and p
    value are normal: they need some ten images a class, and no class ranked perfectly by both.

    Args:
        labels: class indices, integers of shape [N].
        probabilities_a, probabilities_b: scores of shape [N, K], or [S, N, K] of S seeds, whose AUROC is averaged.

    Returns:
        The `Comparison` of a with b. Classes without images are left out, as in `evaluation.metrics`.

    Raises:
        ValueError: a class of one image, fewer than two classes, or a difference whose estimated variance is zero.
    """
    labels = np.asarray(labels)
    a, b = (np.asarray(values, dtype=np.float64) for values in (probabilities_a, probabilities_b))
    classes, count = np.unique(labels, return_counts=True)
    if len(classes) < 2 or count.min() < 2:
        raise ValueError(f"classes {classes.tolist()} have {count.tolist()} images: DeLong needs two classes, two each")
    area_a, parts_a = _macro_area(labels, a, classes)
    area_b, parts_b = _macro_area(labels, b, classes)
    difference, error = area_a - area_b, math.sqrt(float(((parts_a - parts_b) ** 2).sum()))
    if error < 1e-12:
        if abs(difference) > 1e-12:
            raise ValueError(f"the AUROCs differ by {difference:g} with an estimated variance of zero: too few images")
        return Comparison(0.0, 0.0, 0.0, 1.0)
    reach = float(stats.norm.ppf(1 - ALPHA / 2)) * error
    p = float(2 * stats.norm.sf(abs(difference) / error))
    return Comparison(difference, difference - reach, difference + reach, p)


def _macro_area(labels: NDArray, scores: NDArray, classes: NDArray) -> tuple[float, NDArray]:
    """Macro AUROC, and each image's part [N] in its error: the sum of squares is the variance."""
    found = [_area(labels == k, one[:, k]) for one in scores.reshape(-1, *scores.shape[-2:]) for k in classes]
    return float(np.mean([area for area, _ in found])), np.mean([parts for _, parts in found], axis=0)


def _area(truth: NDArray, scores: NDArray) -> tuple[float, NDArray]:
    m, n = int(truth.sum()), int((~truth).sum())
    ranks = stats.rankdata(scores)
    above = (ranks[truth] - stats.rankdata(scores[truth])) / n
    below = 1 - (ranks[~truth] - stats.rankdata(scores[~truth])) / m
    area = float(above.mean())
    parts = np.empty(len(scores))
    parts[truth] = (above - area) / math.sqrt(m * (m - 1))
    parts[~truth] = (below - area) / math.sqrt(n * (n - 1))
    return area, parts


def over_seeds(
    labels: ArrayLike,
    predicted_a: ArrayLike,
    predicted_b: ArrayLike,
    num_classes: int,
    resamples: int = 10_000,
    seed: int = 0,
    spread: tuple[float, int] | None = None,
) -> SeedInterval:
    """95 % interval of a difference in macro F1 for other seeds and other test images, paired by both.

    A percentile bootstrap over few seeds is too narrow where the spread between seeds outweighs that between
    images: S seeds drawn again spread by a factor sqrt((S - 1) / S) less than seeds do, and its quantiles know
    nothing of a standard deviation of few values. So the variance over images (bootstrap
    of the mean over these seeds, stratified by class) is added to that over seeds, s^2 / S, with t quantiles at
    Satterthwaite's (1946) degrees of freedom, at least S - 1. The spread between seeds that comes from the finite
    test set is in both terms, so the interval errs on the wide side.

    Args:
        labels, predicted_a, predicted_b, num_classes, resamples, seed: as for `evaluation.compare`; predictions [S, N].
            With S = 1 only the images' spread is known.
        spread: standard deviation of one model's score between seeds and its degrees of freedom, pooled over the models
            of a study (`seed_spread`). A difference then has twice that variance, in place of the one that these few
            differences show: wide where models share their seeds' luck, and steady.

    Raises:
        ValueError: as `evaluation.compare`.
    """
    cells = counted(labels, {"predicted_a": predicted_a, "predicted_b": predicted_b}, num_classes)
    a, b = np.split(resampling.scores(cells, cells.count), 2)
    each, generator = a - b, np.random.default_rng(seed)
    seeds, difference = len(each), float(each.mean())
    images = float(resampling.paired(resampling.bootstrap(cells, resamples, generator)).var(ddof=1))
    variance, count = (2 * spread[0] ** 2, spread[1]) if spread else (each.var(ddof=1) if seeds > 1 else 0.0, seeds - 1)
    between = float(variance) / seeds
    error = math.sqrt(images + between)
    freedom = count * (images + between) ** 2 / between**2 if between > 0 else math.inf
    reach = float(stats.t.ppf(1 - ALPHA / 2, freedom)) * error
    return SeedInterval(difference, difference - reach, difference + reach, error, freedom)


def equivalence(difference: float, error: float, margin: float, freedom: float = math.inf) -> str:
    """Say whether a difference is there, and whether it is small: two one-sided tests (Schuirmann, 1987), at 5 %.

    Args:
        difference, error, freedom: as of `over_seeds`; the error at least 0.
        margin: the largest difference that does not matter, above 0 (see `seed_spread`).

    Returns:
        "equivalent", "different", "different but within the margin" or "undecided".
    """
    step = max(error, 1e-300)
    apart = 2 * stats.t.sf(abs(difference) / step, freedom) < ALPHA
    if stats.t.sf((margin - abs(difference)) / step, freedom) < ALPHA:
        return "different but within the margin" if apart else "equivalent"
    return "different" if apart else "undecided"


def seed_spread(scores: Sequence[Sequence[float]]) -> float:
    """Standard deviation of a score between seeds, pooled over rows: the margin that the analysis plan takes.

    Args:
        scores: for each row the scores of its seeds; rows of one seed count nothing, one row needs two.
    """
    rows = [np.asarray(row, dtype=np.float64) for row in scores if len(row) > 1]
    squares = sum(float(((row - row.mean()) ** 2).sum()) for row in rows)
    return math.sqrt(squares / sum(len(row) - 1 for row in rows))


def quadratic_kappa(labels: ArrayLike, predicted: ArrayLike, num_classes: int) -> float | None:
    """Agreement of grades beyond chance, quadratically weighted (Cohen, 1968), at most 1.

    Args:
        labels, predicted: grades, integers of shape [N] in 0 .. K-1.
        num_classes: K.

    Returns:
        None where it is undefined: both are the same grade everywhere.
    """
    if len(np.union1d(labels, predicted)) == 1:
        return None
    return float(cohen_kappa_score(labels, predicted, labels=range(num_classes), weights="quadratic"))


@dataclass(frozen=True)
class Pooled:
    """Outcome of `pool`, each with the ends of its 95 % interval.

    Attributes:
        difference, low, high: fixed effect: one true difference, studies weighted by inverse variance.
        random: random effects: true differences of their own, spread around a mean by `tau`. NaN with one study.
        random_low, random_high: its interval.
        tau: estimated standard deviation between studies.
    """

    difference: float
    low: float
    high: float
    random: float
    random_low: float
    random_high: float
    tau: float


def pool(differences: Sequence[float], errors: Sequence[float]) -> Pooled:
    """Pool differences of independent studies.

    Random effects have DerSimonian and Laird's (1986) variance between studies and Hartung and Knapp's (2001) interval,
    whose t distribution has a degree of freedom less than there are studies: with three it is wide, and rightly. (A
    negative variance counts as none; statsmodels' `combine_effects` lets it stand.)

    Args:
        differences, errors: of each study, at least one, and its standard error, above 0.
    """
    y, se = (np.asarray(values, dtype=np.float64) for values in (differences, errors))
    weight = se**-2.0
    fixed = float(np.average(y, weights=weight))
    reach = float(stats.norm.ppf(1 - ALPHA / 2)) / math.sqrt(weight.sum())
    if len(y) == 1:
        return Pooled(fixed, fixed - reach, fixed + reach, math.nan, math.nan, math.nan, math.nan)
    excess = (weight * (y - fixed) ** 2).sum() - (len(y) - 1)
    tau2 = max(0.0, excess / (weight.sum() - (weight**2).sum() / weight.sum()))
    weight = 1 / (se**2 + tau2)
    mean = float(np.average(y, weights=weight))
    spread = math.sqrt((weight * (y - mean) ** 2).sum() / (len(y) - 1) / weight.sum())
    wide = float(stats.t.ppf(1 - ALPHA / 2, len(y) - 1)) * spread
    return Pooled(fixed, fixed - reach, fixed + reach, mean, mean - wide, mean + wide, math.sqrt(tau2))


def power(gain: float, error: float, freedom: float = math.inf) -> float:
    """How often a two-sided t test at 5 % finds a true difference of ``gain``, on its own side.

    Args:
        gain: at least 0.
        error, freedom: standard error and degrees of freedom of the estimate, as of
            `over_seeds`.
    """
    if error == 0:
        return 1.0
    limit = stats.t.ppf(1 - ALPHA / 2, freedom)
    return float(stats.nct.sf(limit, min(freedom, 1e5), gain / error))


def visible(error: float, freedom: float = math.inf, share: float = 0.8) -> float:
    """The smallest true difference that such a test finds in a ``share`` of cases."""
    return error * optimize.brentq(lambda gain: power(gain, 1.0, freedom) - share, 0, 100)
