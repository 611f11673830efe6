"""Paired tests against SciPy, statsmodels, scikit-learn, worked examples and plain versions; coverage by simulation."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar as published
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.weightstats import ttost_paired
from statsmodels.tools.sm_exceptions import InvalidTestWarning

from medmerge.stats.evaluation import compare
from medmerge.stats.significance import (
    delong,
    equivalence,
    mcnemar,
    over_seeds,
    pool,
    power,
    quadratic_kappa,
    seed_spread,
    visible,
)


def discordant(only_a, only_b, both=5, none=3):
    """Labels and two binary predictions with so many images of each kind."""
    a = np.repeat([1, 0, 1, 0], [only_a, only_b, both, none])
    b = np.repeat([0, 1, 1, 0], [only_a, only_b, both, none])
    return np.ones_like(a), a, b


def drawn(seed, images, num_classes, seeds=None, signal=1.0):
    """Labels and scores of two models, correlated, which rank labels somewhat."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes).repeat(2), generator.integers(0, num_classes, images)])
    shape = (len(labels), num_classes) if seeds is None else (seeds, len(labels), num_classes)
    shared = signal * (labels[:, None] == np.arange(num_classes)) + generator.normal(size=(len(labels), num_classes))
    return labels, *(np.round(shared + generator.normal(size=shape), 1) for _ in range(2))


def plain_delong(truth, a, b):
    """Difference and variance from all pairs of a positive and a negative image (DeLong et al., 1988)."""
    wins = [np.sign(s[truth][:, None] - s[~truth][None]) / 2 + 0.5 for s in (a, b)]
    v10, v01 = (np.cov([w.mean(axis=axis) for w in wins]) for axis in (1, 0))
    covariance = v10 / truth.sum() + v01 / (~truth).sum()
    return wins[0].mean() - wins[1].mean(), covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 6), (8, 3), (5, 5), (1, 0), (40, 22), (0, 0)])
def test_mcnemar_agrees_with_statsmodels(only_a, only_b):
    difference, p = mcnemar(*discordant(only_a, only_b))
    assert difference == pytest.approx((only_a - only_b) / (only_a + only_b + 8))
    assert p == pytest.approx(published([[5, only_a], [only_b, 3]], exact=True).pvalue if only_a + only_b else 1)
    assert mcnemar(*(discordant(only_a, only_b)[i] for i in (0, 2, 1))) == (-difference, p)


@pytest.mark.parametrize("seed", range(5))
def test_delong_of_two_classes_is_the_plain_one(seed):
    labels, a, b = drawn(seed, 40, 2)
    a, b = (np.column_stack([-s[:, 1], s[:, 1]]) for s in (a, b))
    found = delong(labels, a, b)
    difference, variance = plain_delong(labels == 1, a[:, 1], b[:, 1])
    assert found.difference == pytest.approx(difference)
    assert found.difference == pytest.approx(roc_auc_score(labels, a[:, 1]) - roc_auc_score(labels, b[:, 1]))
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(difference) / math.sqrt(variance)))
    assert found.high - found.low == pytest.approx(2 * 1.959964 * math.sqrt(variance), rel=1e-6)


def test_delong_of_several_classes_and_seeds():
    labels, a, b = drawn(1, 300, 4, seeds=2)
    found = delong(labels, a, b)
    areas = [np.mean([roc_auc_score(labels == k, s[:, k]) for s in x for k in range(4)]) for x in (a, b)]
    assert found.difference == pytest.approx(areas[0] - areas[1])
    generator = np.random.default_rng(0)
    again = []
    for _ in range(120):
        i = generator.integers(0, len(labels), len(labels))
        again.append(
            np.mean([roc_auc_score(labels[i] == k, x[i, k]) - roc_auc_score(labels[i] == k, y[i, k])
                     for x, y in zip(a, b, strict=True) for k in range(4)])
        )  # fmt: skip
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(np.std(again), rel=0.3)
    order, names = generator.permutation(len(labels)), np.array([2, 0, 3, 1])
    same = delong(labels[order], a[:, order], b[:, order])
    assert same.p_value == pytest.approx(found.p_value)
    assert delong(np.argsort(names)[labels], a[..., names], b[..., names]).p_value == pytest.approx(found.p_value)


def test_delong_of_degenerate_input():
    labels, a, b = drawn(2, 30, 3)
    assert delong(labels, a, a) == delong(labels, np.zeros_like(a), np.ones_like(a))
    assert delong(labels, a, a).p_value == 1
    wider = [np.column_stack([s, np.zeros(len(s))]) for s in (a, b)]
    assert delong(labels, *wider) == delong(labels, a, b)
    perfect = np.eye(2)[[0, 0, 1, 1]]
    for truth, message in (([0, 0, 1, 1], "variance of zero"), ([0, 1, 1, 1], "two classes, two each")):
        with pytest.raises(ValueError, match=message):
            delong(truth, perfect, 1 - perfect)


def simulated(generator, seeds, spread, images=300, accuracy=0.75):
    """Labels, and predictions [S, N] of two models whose accuracy differs from seed to seed; truly alike."""
    labels = generator.choice(3, images, p=[0.6, 0.3, 0.1])
    latent = generator.random(images)
    guess = generator.integers(0, 3, (2, seeds, images))
    level = accuracy + spread * generator.normal(size=(2, seeds, 1))
    return labels, *np.where((latent + 0.1 * generator.normal(size=(2, seeds, images))) < level, labels, guess)


def test_the_interval_over_three_seeds_covers():
    generator = np.random.default_rng(3)
    found = [over_seeds(*simulated(generator, 3, 0.08, images=3000), 3, resamples=200) for _ in range(150)]
    assert np.mean([one.low <= 0 <= one.high for one in found]) >= 0.9


def test_over_seeds_pairs_and_says_when_it_does_not_know():
    labels, a, b = simulated(np.random.default_rng(3), 4, 0.03)
    found = over_seeds(labels, a, b, 3)
    assert found.freedom >= 3
    images = compare(labels, a, b, 3)
    assert found.difference == pytest.approx(images.difference)
    assert found.high - found.low > images.high - images.low
    one = over_seeds(labels, a[0], b[0], 3)
    assert one.freedom == math.inf
    order = np.random.default_rng(0).permutation(len(labels))
    assert over_seeds(labels[order], a[:, order], b[:, order], 3) == found
    assert over_seeds(labels, a, a, 3).high == 0
    with pytest.raises(ValueError, match="give as many"):
        over_seeds(labels, a, b[:2], 3)


def test_seed_spread_pools_rows():
    assert seed_spread([[1, 3], [5, 5, 5], [9]]) == pytest.approx(math.sqrt(2 / 3))


def test_quadratic_kappa():
    labels, predicted = np.array([0, 1, 2, 3, 4, 2, 1]), np.array([0, 2, 2, 3, 3, 2, 0])
    found = quadratic_kappa(labels, predicted, 5)
    assert found == pytest.approx(cohen_kappa_score(labels, predicted, weights="quadratic"))
    matrix, apart = np.zeros((5, 5)), (np.arange(5)[:, None] - np.arange(5)) ** 2
    np.add.at(matrix, (labels, predicted), 1)
    chance = np.outer(matrix.sum(axis=1), matrix.sum(axis=0)) / len(labels)
    assert found == pytest.approx(1 - (apart * matrix).sum() / (apart * chance).sum())
    assert quadratic_kappa([1, 1], [1, 1], 5) is None


@pytest.mark.parametrize("margin", [0.02, 0.04, 0.08])
def test_equivalence_agrees_with_statsmodels(margin):
    for seed in range(20):
        x = np.random.default_rng(seed).normal(0.03, 0.05, 12)
        apart, close = stats.ttest_1samp(x, 0).pvalue < 0.05, ttost_paired(x, np.zeros(12), -margin, margin)[0] < 0.05
        words = {(1, 1): "different but within the margin", (1, 0): "different", (0, 1): "equivalent"}
        found = equivalence(x.mean(), x.std(ddof=1) / math.sqrt(12), margin, 11)
        assert found == words.get((apart, close), "undecided")
    assert equivalence(0, 0, margin) == "equivalent" and equivalence(-0.1, 0, margin) == "different"


# ---------------------------------------------------------------- several studies


def test_equal_studies_pool_to_their_mean():
    found = pool([0.01, 0.03], [0.02, 0.02])
    assert found.difference == found.random == pytest.approx(0.02) and found.tau == 0
    assert found.high - found.difference == pytest.approx(1.959964 * 0.02 / np.sqrt(2))
    assert found.random_high - found.random == pytest.approx(
        stats.t.ppf(0.975, 1) * np.std([0.01, 0.03], ddof=1) / 2**0.5
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InvalidTestWarning)  # about intervals of the studies, which are not used
        theirs = combine_effects(np.array([0.0, 0.1, 0.02]), np.full(3, 0.02**2), method_re="dl", use_t=True)
        expected = theirs.summary_frame().loc["random effect wls", ["eff", "ci_low", "ci_upp"]]
    apart = pool([0.0, 0.1, 0.02], [0.02] * 3)
    assert apart.tau == pytest.approx(theirs.tau2**0.5) and apart.difference == pytest.approx(theirs.mean_effect_fe)
    assert (apart.random, apart.random_low, apart.random_high) == pytest.approx(tuple(expected))
    one = pool([0.01], [0.02])
    assert one.difference == 0.01 and np.isnan(one.random)


@pytest.mark.parametrize("freedom", [2, 8, np.inf])
def test_power_is_how_often_the_test_finds_it(freedom):
    generator = np.random.default_rng(1)
    scale = np.sqrt(generator.chisquare(freedom, 100_000) / freedom) if np.isfinite(freedom) else 1.0
    t = (generator.normal(size=100_000) + 1.5) / scale
    assert power(0.03, 0.02, freedom) == pytest.approx((t > stats.t.ppf(0.975, freedom)).mean(), abs=0.006)
    assert power(visible(0.02, freedom), 0.02, freedom) == pytest.approx(0.8)
