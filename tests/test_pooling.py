"""Power and pooled estimates against closed forms, simulation and published numbers."""

import warnings

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.tools.sm_exceptions import InvalidTestWarning

from medmerge.stats import pooling


def test_equal_studies_pool_to_their_mean():
    found = pooling.pool([0.01, 0.03], [0.02, 0.02])
    assert found.difference == found.random == pytest.approx(0.02) and found.tau == 0
    assert found.high - found.difference == pytest.approx(1.959964 * 0.02 / np.sqrt(2))
    assert found.random_high - found.random == pytest.approx(
        stats.t.ppf(0.975, 1) * np.std([0.01, 0.03], ddof=1) / 2**0.5
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InvalidTestWarning)  # about intervals of the studies, which are not used
        theirs = combine_effects(np.array([0.0, 0.1, 0.02]), np.full(3, 0.02**2), method_re="dl", use_t=True)
        expected = theirs.summary_frame().loc["random effect wls", ["eff", "ci_low", "ci_upp"]]
    apart = pooling.pool([0.0, 0.1, 0.02], [0.02] * 3)
    assert apart.tau == pytest.approx(theirs.tau2**0.5) and apart.difference == pytest.approx(theirs.mean_effect_fe)
    assert (apart.random, apart.random_low, apart.random_high) == pytest.approx(tuple(expected))
    one = pooling.pool([0.01], [0.02])
    assert one.difference == 0.01 and np.isnan(one.random)


def test_the_interval_holds_the_mean_as_often_as_it_says():
    generator, held = np.random.default_rng(0), []
    for _ in range(2000):
        true, errors = generator.normal(0.02, 0.03, 5), generator.uniform(0.01, 0.03, 5)
        found = pooling.pool(generator.normal(true, errors), errors)
        held.append([found.low <= 0.02 <= found.high, found.random_low <= 0.02 <= found.random_high])
    fixed, random = np.mean(held, axis=0)
    assert fixed < 0.7 and 0.925 < random < 0.965, "a fixed effect knows nothing of the spread between studies"


@pytest.mark.parametrize("freedom", [2, 8, np.inf])
def test_power_is_how_often_the_test_finds_it(freedom):
    generator = np.random.default_rng(1)
    scale = np.sqrt(generator.chisquare(freedom, 100_000) / freedom) if np.isfinite(freedom) else 1.0
    t = (generator.normal(size=100_000) + 1.5) / scale
    assert pooling.power(0.03, 0.02, freedom) == pytest.approx((t > stats.t.ppf(0.975, freedom)).mean(), abs=0.006)
    assert pooling.power(pooling.visible(0.02, freedom), 0.02, freedom) == pytest.approx(0.8)


@pytest.mark.parametrize(("differences", "errors"), [([], []), ([0.1], [0.0]), ([0.1, 0.2], [0.1])])
def test_studies_that_cannot_be_pooled(differences, errors):
    with pytest.raises(ValueError, match="errors above 0"):
        pooling.pool(differences, errors)
