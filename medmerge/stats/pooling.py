"""What tests can show, and what several differences say together: power, and estimates pooled over studies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

ALPHA = 0.05


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
        differences, errors: of each study, and its standard error, above 0.

    Raises:
        ValueError: no study, unequal numbers, or an error that is not above 0.
    """
    y, se = (np.asarray(values, dtype=np.float64) for values in (differences, errors))
    if not y.size or y.shape != se.shape or not (se > 0).all():
        raise ValueError(f"{y.size} differences and {se.size} errors: give as many, at least one, errors above 0")
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
            `medmerge.stats.significance.over_seeds`.
    """
    if error == 0:
        return 1.0
    limit = stats.t.ppf(1 - ALPHA / 2, freedom)
    return float(stats.nct.sf(limit, min(freedom, 1e5), gain / error))


def visible(error: float, freedom: float = math.inf, share: float = 0.8) -> float:
    """The smallest true difference that such a test finds in a ``share`` of cases."""
    return error * optimize.brentq(lambda gain: power(gain, 1.0, freedom) - share, 0, 100)
