"""Scores of several labels an image, some not known: against scikit-learn, plain resampling and enumeration."""

import itertools
import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, recall_score, roc_auc_score

from medmerge.stats.evaluation import Comparison, bootstrap_interval, class_scores, compare, decide, metrics

KEYS = ["accuracy", "macro_f1", "balanced_accuracy", "macro_auroc", "macro_ap", "ece"]


def truth(generator, images, prevalence, unknown=0.0):
    """Labels [N, K], 1 with the class's prevalence, NaN with the chance `unknown`."""
    labels = (generator.random((images, len(prevalence))) < prevalence).astype(float)
    labels[generator.random(labels.shape) < unknown] = np.nan
    return labels


def answers(generator, labels, accuracy, seeds=None):
    """The right labels with the chance `accuracy`, else a guess, also where the label is not known."""
    shape = labels.shape if seeds is None else (seeds, *labels.shape)
    guesses = generator.integers(0, 2, shape)
    return np.where((generator.random(shape) < accuracy) & ~np.isnan(labels), labels == 1, guesses).astype(int)


def macro_f1(labels, predicted):
    """From the definition; scikit-learn agrees, a hundred times slower."""
    known, there = ~np.isnan(labels), labels == 1
    hits = (there & (predicted == 1)).sum(axis=0)
    both = there.sum(axis=0) + (known & (predicted == 1)).sum(axis=0)
    return np.mean(2 * hits / np.maximum(both, 1))


def difference(labels, a, b):
    return np.mean([macro_f1(labels, x) - macro_f1(labels, y) for x, y in zip(a, b, strict=True)])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 5), st.sampled_from([0.0, 0.3, 0.9]))
def test_metrics_agree_with_scikit_learn(seed, images, num_classes, unknown):
    generator = np.random.default_rng(seed)
    labels = truth(generator, images, generator.random(num_classes), unknown)
    labels[0, 0] = 1
    probabilities = generator.random(labels.shape).round(1)
    classes = [f"c{k}" for k in range(num_classes)]
    found = metrics(labels, probabilities, classes)
    f1, areas, precisions, balanced = [], [], [], []
    for k, name in enumerate(classes):
        known = ~np.isnan(labels[:, k])
        there, scores = labels[known, k], probabilities[known, k]
        if known.any():
            f1.append(f1_score(there, scores >= 0.5, zero_division=0))
        if there.any():
            assert found[f"recall/{name}"] == pytest.approx(recall_score(there, scores >= 0.5))
        else:
            assert found[f"recall/{name}"] is None
        if 0 < there.sum() < len(there):
            areas.append(roc_auc_score(there, scores))
            precisions.append(average_precision_score(there, scores))
            balanced.append(balanced_accuracy_score(there, scores >= 0.5))
    assert list(found) == [*KEYS, *(f"recall/{name}" for name in classes)]
    assert found["macro_f1"] == pytest.approx(np.mean(f1))
    known = ~np.isnan(labels)
    assert found["accuracy"] == pytest.approx(((probabilities >= 0.5) == labels)[known].mean())
    for name, values in (("macro_auroc", areas), ("macro_ap", precisions), ("balanced_accuracy", balanced)):
        assert found[name] == (pytest.approx(np.mean(values)) if values else None)
    json.loads(json.dumps(found, allow_nan=False))
    assert all(value is None or type(value) is float and 0 <= value <= 1 for value in found.values())


def test_metrics_by_hand():
    """Class b is known of three images: one right, one missed, one false alarm at exactly 0.5."""
    labels = [[1, 1], [1, 1], [0, 0], [0, np.nan]]
    probabilities = [[0.9, 0.8], [0.6, 0.2], [0.4, 0.5], [0.1, 1.0]]
    found = metrics(labels, probabilities, ["a", "b"])
    assert found["accuracy"] == pytest.approx(5 / 7)
    assert found["macro_f1"] == pytest.approx((1 + 0.5) / 2)
    assert found["balanced_accuracy"] == pytest.approx((1 + (0.5 + 0) / 2) / 2)
    assert found["macro_auroc"] == pytest.approx((1 + 0.5) / 2)
    assert found["macro_ap"] == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)
    assert (found["recall/a"], found["recall/b"]) == (1.0, 0.5)
    # Bins of width 1/15: 0.61 and 0.66 share (0.6, 0.667]; 0 falls in the first; the unknown label counts nowhere.
    found = metrics([[1, 0], [0, 1], [np.nan, 0]], [[0.61, 0.66], [0.0, 0.95], [0.3, 0.2]], ["a", "b"])
    assert found["ece"] == pytest.approx((abs(0.61 + 0.66 - 1) + 0 + abs(0.95 - 1) + 0.2) / 5)


@pytest.mark.parametrize("value", [0, 1])
def test_what_a_class_with_one_value_only_leaves_undefined(value):
    found = metrics(np.full((4, 1), value), [[0.9], [0.8], [0.2], [0.1]], ["a"])
    assert found["balanced_accuracy"] is found["macro_auroc"] is found["macro_ap"] is None
    assert found["recall/a"] == (0.5 if value else None)
    assert found["macro_f1"] == pytest.approx(2 * 2 / (4 + 2) if value else 0) and found["accuracy"] == 0.5


def test_predictions_of_unknown_labels_count_nowhere():
    generator = np.random.default_rng(1)
    labels = truth(generator, 60, [0.5, 0.3, 0.1], unknown=0.4)
    probabilities = generator.random(labels.shape)
    other = np.where(np.isnan(labels), 1 - probabilities, probabilities)
    classes = list("abc")
    assert metrics(labels, probabilities, classes) == metrics(labels, other, classes)
    a, b = decide(probabilities, True), decide(other, True)
    assert (a != b).any()
    assert compare(labels, a, b, 3, resamples=200) == Comparison(0.0, 0.0, 0.0, 1.0)
    assert bootstrap_interval(labels, a, 3, resamples=200) == bootstrap_interval(labels, b, 3, resamples=200)


def test_a_class_without_any_known_label_is_left_out():
    generator = np.random.default_rng(2)
    labels = truth(generator, 40, [0.5, 0.5, 0.5])
    labels[:, 1] = np.nan
    probabilities = generator.random(labels.shape)
    found, without = (
        metrics(labels, probabilities, list("abc")),
        metrics(labels[:, ::2], probabilities[:, ::2], ["a", "c"]),
    )
    assert found.pop("recall/b") is None and found == without
    predicted = decide(probabilities, True)
    all_three = bootstrap_interval(labels, predicted, 3, resamples=300)
    assert all_three == bootstrap_interval(labels[:, ::2], predicted[:, ::2], 2, resamples=300)


def test_class_scores_of_one_class_an_image_are_one_against_the_rest():
    generator = np.random.default_rng(3)
    labels, probabilities = generator.integers(0, 3, 80), generator.dirichlet(np.ones(3), 80)
    classes, whole = ["a", "b", "c"], metrics(labels, probabilities, ["a", "b", "c"])
    found = class_scores(labels, probabilities, classes)
    assert [found[name]["positives"] for name in classes] == np.bincount(labels).tolist()
    assert all(one["positives"] + one["negatives"] == 80 for one in found.values())
    assert np.mean([one["auroc"] for one in found.values()]) == pytest.approx(whole["macro_auroc"])
    assert np.mean([one["f1"] for one in found.values()]) == pytest.approx(whole["macro_f1"])
    assert [found[name]["sensitivity"] for name in classes] == [whole[f"recall/{name}"] for name in classes]
    for k, name in enumerate(classes):
        rejected = probabilities.argmax(axis=1)[labels != k] != k
        assert found[name]["specificity"] == pytest.approx(rejected.mean())


@pytest.mark.parametrize("seeds", [None, 3])
def test_intervals_match_drawing_images(seeds):
    generator = np.random.default_rng(5)
    labels = truth(generator, 60, [0.5, 0.2, 0.08], unknown=0.2)
    a, b = answers(generator, labels, 0.7, seeds), answers(generator, labels, 0.4, seeds)
    rows_a, rows_b = a.reshape(-1, 60, 3), b.reshape(-1, 60, 3)
    scores, differences = [], []
    for _ in range(2000):
        drawn = generator.integers(0, 60, 60)
        scores.append(np.mean([macro_f1(labels[drawn], row[drawn]) for row in rows_a]))
        differences.append(difference(labels[drawn], rows_a[:, drawn], rows_b[:, drawn]))
    found = bootstrap_interval(labels, a, 3, resamples=20_000)
    assert found == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=0.015)
    compared = compare(labels, a, b, 3, resamples=20_000)
    assert (compared.low, compared.high) == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.02)


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("trial", range(3))
def test_permutation_test_matches_exact_enumeration(trial, seeds):
    """All of an image's labels are exchanged together, in all seeds."""
    generator = np.random.default_rng(trial)
    labels = truth(generator, 9, [0.6, 0.4], unknown=0.15)
    a, b = (answers(generator, labels, chance, seeds) for chance in (0.9, 0.1))
    observed = difference(labels, a, b)
    as_large = []
    for swap in itertools.product([False, True], repeat=9):
        chosen = np.array(swap)[:, None]
        permuted = difference(labels, np.where(chosen, b, a), np.where(chosen, a, b))
        as_large.append(abs(permuted) >= abs(observed) - 1e-12)
    found = compare(labels, a, b, 2, resamples=20_000)
    assert found.difference == pytest.approx(observed)
    assert found.p_value == pytest.approx(np.mean(as_large), abs=0.015)


def test_labels_of_an_image_are_no_independent_evidence():
    """Ten copies of a class must not look like ten times the images."""
    generator = np.random.default_rng(9)
    labels = truth(generator, 80, [0.4])
    a, b = answers(generator, labels, 0.7), answers(generator, labels, 0.5)
    one = compare(labels, a, b, 1)
    ten = compare(*(np.tile(values, 10) for values in (labels, a, b)), 10)
    assert (ten.low, ten.high, ten.p_value) == pytest.approx((one.low, one.high, one.p_value), abs=1e-9)


def test_a_class_that_no_resample_need_hold():
    """One positive among few: resamples without it score 0 for its class, without a warning."""
    labels = np.array([[1.0], [0], [0], [np.nan]])
    with warnings.catch_warnings(action="error"):
        assert bootstrap_interval(labels, [[1], [0], [0], [1]], 1) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([[0, 1, 1]], [[0.1, 0.2]], r"labels has shape \(1, 3\).*give \(N, 2\)"),
        ([[np.nan, np.nan]], [[0.1, 0.2]], "some of them known"),
        ([[0, 1]], [[0.1, 1.2]], "runs from 0.1 to 1.2.*sigmoid"),
    ],
)
def test_scores_that_are_none_are_refused(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        class_scores(labels, probabilities, ["a", "b"])


def test_probabilities_are_no_predictions():
    with pytest.raises(ValueError, match="more than 0 and 1: see decide"):
        compare([[1, 0], [np.nan, 1]], [[0.3, 1], [1, 0]], [[1, 1], [0, 0]], 2)
