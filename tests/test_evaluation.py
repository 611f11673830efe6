"""Scores against scikit-learn; resampling against plain image-by-image versions of the same procedures."""

import itertools
import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, roc_auc_score

from medmerge.stats.evaluation import Comparison, bootstrap_interval, compare, holm, metrics


def macro_f1(labels, predicted, num_classes):
    """Class by class from the definition; scikit-learn agrees but takes a millisecond."""
    scores = []
    for k in range(num_classes):
        hits = ((labels == k) & (predicted == k)).sum()
        both = (labels == k).sum() + (predicted == k).sum()
        scores.append(2 * hits / both if both else 0.0)
    return np.mean(scores)


def plain_difference(labels, a, b, num_classes):
    """Mean over seeds of macro F1 of a - macro F1 of b, [S, N] each."""
    return np.mean(
        [macro_f1(labels, x, num_classes) - macro_f1(labels, y, num_classes) for x, y in zip(a, b, strict=True)]
    )


def predictions(generator, labels, num_classes, accuracy, seeds=None):
    shape = len(labels) if seeds is None else (seeds, len(labels))
    guesses = generator.integers(0, num_classes, shape)
    return np.where(generator.random(shape) < accuracy, labels, guesses)


def within_class_draw(generator, labels):
    """Indices of one stratified resample, drawn image by image."""
    chosen = np.arange(len(labels))
    for k in np.unique(labels):
        members = np.flatnonzero(labels == k)
        chosen[members] = generator.choice(members, len(members))
    return chosen


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 6))
def test_metrics_agree_with_scikit_learn(seed, images, num_classes):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, images)
    probabilities = generator.dirichlet(np.ones(num_classes), images)
    classes = [f"c{k}" for k in range(num_classes)]
    found = metrics(labels, probabilities, classes)
    predicted = probabilities.argmax(axis=1)
    assert found["accuracy"] == accuracy_score(labels, predicted)
    assert found["macro_f1"] == pytest.approx(macro_f1(labels, predicted, num_classes))
    assert found["macro_f1"] == pytest.approx(
        f1_score(labels, predicted, labels=range(num_classes), average="macro", zero_division=0)
    )
    with warnings.catch_warnings(action="ignore"):
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    table = confusion_matrix(labels, predicted, labels=range(num_classes))
    for k, name in enumerate(classes):
        expected = table[k, k] / table[k].sum() if table[k].any() else None
        assert found[f"recall/{name}"] == (expected if expected is None else pytest.approx(expected))
    if len(np.unique(labels)) == num_classes > 2:
        expected = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
        assert found["macro_auroc"] == pytest.approx(expected)
    json.loads(json.dumps(found, allow_nan=False))
    assert all(value is None or type(value) is float and 0 <= value <= 1 for value in found.values())


def test_absent_classes_count_in_macro_f1_but_not_elsewhere():
    found = metrics([0, 0, 1, 1], np.eye(3)[[0, 0, 1, 1]], ["a", "b", "c"])
    assert found["macro_f1"] == pytest.approx(2 / 3)
    assert found["balanced_accuracy"] == found["macro_auroc"] == found["accuracy"] == 1.0
    assert found["recall/a"] == 1.0 and found["recall/c"] is None
    assert metrics([1, 1], [[0.2, 0.8], [0.6, 0.4]], ["a", "b"])["macro_auroc"] is None, "one class alone is there"


def test_auroc_averages_one_against_the_rest():
    """Class a's one positive is above both others, b's above one, c's above none."""
    probabilities = [[0.7, 0.1, 0.2], [0.4, 0.3, 0.3], [0.3, 0.6, 0.1]]
    found = metrics([0, 1, 2], probabilities, ["a", "b", "c"])
    assert found["macro_auroc"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["recall/a"] == 1 and found["recall/b"] == found["recall/c"] == 0


def test_calibration_error_by_hand():
    """Bins of width 1/15: 0.61 and 0.66 share (0.6, 0.667], with 0.6 below them and 0.68 above."""
    top = np.array([0.6, 0.61, 0.66, 0.68, 0.95, 0.95])
    labels = [0, 1, 0, 0, 0, 0]
    expected = (abs(0.6 - 1) + abs(0.61 + 0.66 - 1) + abs(0.68 - 1) + abs(2 * 0.95 - 2)) / 6
    assert metrics(labels, np.stack([top, 1 - top], axis=1), ["a", "b"])["ece"] == pytest.approx(expected)
    assert metrics([0, 1], np.eye(2), ["a", "b"])["ece"] == 0 and metrics([1, 0], np.eye(2), ["a", "b"])["ece"] == 1


@pytest.mark.parametrize("seeds", [None, 3])
def test_bootstrap_interval_matches_drawing_images(seeds):
    generator = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2, 4], [30, 15, 8, 1])
    predicted = predictions(generator, labels, 5, 0.6, seeds)
    rows = np.atleast_2d(predicted)
    scores = []
    for _ in range(1500):
        drawn = within_class_draw(generator, labels)
        scores.append(np.mean([macro_f1(labels[drawn], row[drawn], 5) for row in rows]))
    found = bootstrap_interval(labels, predicted, 5, resamples=20_000)
    assert found == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=0.012)


def test_bootstrap_interval_covers():
    """The score over the population that the test images come from is inside about 95 times in 100."""
    sizes, recall = np.array([120, 60, 40]), np.array([[0.8, 0.15, 0.05], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6]])
    population = sizes[:, None] * recall
    hits = np.diag(population)
    truth = np.mean(2 * hits / (sizes + population.sum(axis=0)))
    generator = np.random.default_rng(3)
    labels = np.repeat(range(3), sizes)
    inside = 0
    for repetition in range(400):
        predicted = np.concatenate([generator.choice(3, n, p=p) for n, p in zip(sizes, recall, strict=True)])
        low, high = bootstrap_interval(labels, predicted, 3, resamples=600, seed=repetition)
        inside += low <= truth <= high
    assert 0.90 <= inside / 400 <= 0.98


def test_more_than_one_batch_gives_the_same_interval(monkeypatch):
    generator = np.random.default_rng(4)
    labels = generator.integers(0, 3, 90)
    a, b = predictions(generator, labels, 3, 0.7), predictions(generator, labels, 3, 0.5)
    whole, whole_test = bootstrap_interval(labels, a, 3), compare(labels, a, b, 3)
    monkeypatch.setattr("medmerge.stats.resampling._DRAWS_AT_ONCE", 1700)
    assert bootstrap_interval(labels, a, 3) == pytest.approx(whole, abs=0.01)
    assert compare(labels, a, b, 3).p_value == pytest.approx(whole_test.p_value, abs=0.01)


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("trial", range(4))
def test_permutation_test_matches_exact_enumeration(trial, seeds):
    generator = np.random.default_rng(trial)
    labels = generator.integers(0, 3, 9)
    a, b = (predictions(generator, labels, 3, accuracy, seeds) for accuracy in (0.9, 0.2))
    observed = plain_difference(labels, a, b, 3)
    as_large = [
        abs(plain_difference(labels, np.where(swap, b, a), np.where(swap, a, b), 3)) >= abs(observed) - 1e-12
        for swap in itertools.product([False, True], repeat=9)
    ]
    found = compare(labels, a, b, 3, resamples=20_000)
    assert found.difference == pytest.approx(observed)
    assert found.p_value == pytest.approx(np.mean(as_large), abs=0.015)


def test_interval_of_the_difference_matches_drawing_images():
    generator = np.random.default_rng(7)
    labels = np.repeat(range(3), [25, 12, 6])
    a, b = (predictions(generator, labels, 3, accuracy, 2) for accuracy in (0.8, 0.6))
    drawn = [within_class_draw(generator, labels) for _ in range(800)]
    differences = [plain_difference(labels[d], a[:, d], b[:, d], 3) for d in drawn]
    found = compare(labels, a, b, 3, resamples=20_000)
    assert (found.low, found.high) == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.02)


def test_seeds_that_repeat_each_other_add_no_evidence():
    """Images are the clusters: ten copies of a seed must not look like ten times the images."""
    generator = np.random.default_rng(9)
    labels = generator.integers(0, 3, 80)
    a, b = predictions(generator, labels, 3, 0.7), predictions(generator, labels, 3, 0.55)
    one, ten = compare(labels, a, b, 3), compare(labels, np.tile(a, (10, 1)), np.tile(b, (10, 1)), 3)
    assert ten.difference == pytest.approx(one.difference)
    assert (ten.low, ten.high, ten.p_value) == pytest.approx((one.low, one.high, one.p_value), abs=1e-9)


def test_models_that_are_perfect_alike_or_opposite():
    labels, half = np.array([0, 1, 2, 2, 1]), np.repeat([0, 1], 50)
    assert bootstrap_interval(labels, labels, 3) == (1.0, 1.0)
    assert compare(labels, [0, 1, 1, 2, 0], [0, 1, 1, 2, 0], 3) == Comparison(0.0, 0.0, 0.0, 1.0)
    assert compare(half, half, 1 - half, 2, resamples=999) == Comparison(1.0, 1.0, 1.0, 1 / 1000)


def test_draws_depend_on_the_seed_and_on_no_order():
    generator = np.random.default_rng(12)
    labels = generator.integers(0, 4, 60)
    a, b = (predictions(generator, labels, 4, accuracy, 2) for accuracy in (0.8, 0.6))
    order = generator.permutation(60)
    assert compare(labels, a, b, 4, 500) == compare(labels[order], a[:, order], b[:, order], 4, 500)
    draws = [bootstrap_interval(labels[one], a[:, one], 4, 50, seed) for one, seed in ((order, 0), (slice(None), 0))]
    assert draws[0] == draws[1] != bootstrap_interval(labels, a, 4, 50, 1)


def test_values_that_published_pages_rest_on():
    """Exactly those of the first release: a page is drawn again from its records, number by number."""
    generator = np.random.default_rng(5)
    labels = generator.integers(0, 4, 150)
    probabilities = generator.dirichlet(np.ones(4), 150)
    a, b = (
        np.where(generator.random((2, 150)) < accuracy, labels, generator.integers(0, 4, (2, 150)))
        for accuracy in (0.7, 0.6)
    )
    assert metrics(labels, probabilities, list("abcd")) == {
        **{"accuracy": 0.21333333333333335, "macro_f1": 0.21114726637335976},
        **{"balanced_accuracy": 0.2173729048729049, "macro_auroc": 0.43325831264427755, "ece": 0.2983913488479335},
        **{"recall/a": 0.21428571428571427, "recall/b": 0.3055555555555556},
        **{"recall/c": 0.2727272727272727, "recall/d": 0.07692307692307693},
    }
    assert bootstrap_interval(labels, a, 4) == (0.7334328225800694, 0.8283786196965335)
    assert compare(labels, a, b, 4, resamples=2000) == Comparison(
        0.07309460211752433, 0.001965181263656003, 0.14671744480958476, 0.04447776111944028
    )


def test_holm_by_hand():
    """4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04 raised to the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.9]) == pytest.approx([1.0, 1.0]) and holm([0.2]) == pytest.approx([0.2])


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 2], np.ones((2, 2)) / 2, r"up to 2: give a class index 0 \.\. 1"),
        ([0, 1], [[0.5, 0.5], [np.nan, 0.5]], "1 not finite"),
        ([0, 1], [[0.5, 0.9], [0.5, 0.5]], "softmax"),
    ],
)
def test_scores_that_are_none_are_refused(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        metrics(labels, probabilities, ["a", "b"])


def test_unequal_seeds_are_refused():
    with pytest.raises(ValueError, match=r"have \[1, 2\] seeds"):
        compare([0, 1, 1], [0, 1, 1], [[0, 1, 1], [0, 1, 1]], 2)
