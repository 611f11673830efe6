"""Scores of a classifier, their uncertainty, and paired comparisons of two classifiers.

The module knows arrays only. Labels and predictions are class indices ``0 .. K-1``. Macro F1, the paper's
main score (section 4), is the unweighted mean of the K per-class F1 scores, 0 for a class that is neither
present nor predicted.

Intervals and tests resample the test images and hold the trained models fixed: they answer "what if other
images had been drawn from these classes", not "what if the training had been repeated". They treat images as
independent, so they are too narrow where a test set holds many images of few patients.

Both see only how many images share the same true and predicted classes, here called a cell. Whole cells are
drawn, which has the same distribution as drawing image by image at a small fraction of the cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score
from statsmodels.stats.multitest import multipletests

__all__ = ["Comparison", "bootstrap_interval", "compare", "holm", "metrics"]

_CALIBRATION_BINS = 15
_DRAWS_AT_ONCE = 2_000_000  # bounds memory to some 50 MB
_ROUNDING = 1e-12  # below it, two differences of scores are equal


@dataclass(frozen=True)
class Comparison:
    """Outcome of `compare`.

    Attributes:
        difference: score of a minus score of b, averaged over seeds.
        low, high: ends of the 95 % interval of the difference.
        p_value: two-sided, in (0, 1], not adjusted for further comparisons (see `holm`).
    """

    difference: float
    low: float
    high: float
    p_value: float


def metrics(labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str]) -> dict[str, float | None]:
    """Score predicted probabilities.

    Args:
        labels: true class indices, integers of shape [N] in 0 .. K-1.
        probabilities: shape [N, K], each row non-negative with sum 1 (to 0.01, as records are rounded).
        classes: the K class names, at least two, all different.

    Returns:
        Floats of Python, None where undefined, all in [0, 1]:

        - ``accuracy``, of the most probable class (the first of equals).
        - ``macro_f1``, over all K classes.
        - ``balanced_accuracy``, the mean recall of the classes present.
        - ``macro_auroc``, one class against the rest, mean over the classes with positives and negatives.
        - ``ece``, expected calibration error of the top probability in 15 bins of equal width (Guo et al.,
          "On calibration of modern neural networks", ICML 2017).
        - ``recall/<class>`` for each class, None where no image has it.

    Raises:
        ValueError: empty, non-finite or badly shaped input, labels out of range, rows that do not sum to 1.
    """
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ValueError(f"classes is {list(classes)}: give at least two names, all different")
    every = range(len(classes))
    labels = _indices(labels, "labels", len(classes))
    probabilities = _distributions(probabilities, len(labels), len(classes))
    predicted = probabilities.argmax(axis=1)
    present = np.bincount(labels, minlength=len(classes)) > 0
    recall = recall_score(labels, predicted, labels=every, average=None, zero_division=0)
    ranked = np.flatnonzero(present) if present.sum() > 1 else ()
    areas = [roc_auc_score(labels == k, probabilities[:, k]) for k in ranked]
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, labels=every, average="macro", zero_division=0)),
        "balanced_accuracy": float(recall[present].mean()),
        "macro_auroc": float(np.mean(areas)) if areas else None,
        "ece": _calibration_error(probabilities.max(axis=1), predicted == labels),
        **{f"recall/{name}": float(recall[k]) if present[k] else None for k, name in enumerate(classes)},
    }


def bootstrap_interval(
    labels: ArrayLike,
    predicted: ArrayLike,
    num_classes: int,
    metric: str = "macro_f1",
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a score, stratified by true class.

    Images are drawn with replacement within each true class, so every resample keeps the class sizes of the
    test set (Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13).

    Args:
        labels, predicted: class indices, integers of shape [N]. Predictions of shape [S, N] are of S seeds:
            the score is their mean, and every resample draws the same images for all of them.
        num_classes, metric: K, at least two, and "macro_f1" or "accuracy".
        confidence: coverage aimed at, in (0, 1).
        resamples: number of resamples, at least 1.
        seed: seed of the resampling, not of a model.

    Returns:
        The interval's lower and upper end, in [0, 1].

    Raises:
        ValueError: badly shaped, empty or out-of-range input, or an unknown metric.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: give a share between 0 and 1, such as 0.95")
    _check_options(num_classes, metric, resamples)
    labels = _indices(labels, "labels", num_classes)
    cells = _cells(labels, _columns(predicted, "predicted", len(labels), num_classes), num_classes)
    scores = _bootstrap(cells, metric, resamples, np.random.default_rng(seed)).mean(axis=1)
    return _percentiles(scores, confidence)


def compare(
    labels: ArrayLike,
    predicted_a: ArrayLike,
    predicted_b: ArrayLike,
    num_classes: int,
    metric: str = "macro_f1",
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two models on the same test images.

    The interval is a percentile bootstrap of the difference, stratified by true class and paired by image.
    The p value is that of the paired permutation test: were the models alike, exchanging what they say of
    an image would change nothing, so the observed difference is ranked among those after each image's are
    exchanged or not with equal odds: p = (1 + number at least as large in absolute value) / (1 + resamples)
    (Phipson and Smyth, "Permutation p-values should never be zero", 2010).

    Args:
        labels, predicted_a, predicted_b: class indices, integers of shape [N]. Predictions of shape [S, N]
            are of S seeds, seed s of a belonging with seed s of b. The score is their mean. An image is
            drawn, or its predictions exchanged, for all seeds at once, as they are alike across seeds.
        num_classes: K, at least two.
        metric: "macro_f1" or "accuracy".
        resamples: number of resamples and of permutations, at least 1; the smallest p is 1 / (1 + resamples).
        seed: seed of the resampling, not of a model.

    Returns:
        The `Comparison` of a with b; its difference is positive where a is better.

    Raises:
        ValueError: badly shaped, empty or out-of-range input, an unknown metric, or unequal numbers of seeds.
    """
    _check_options(num_classes, metric, resamples)
    labels = _indices(labels, "labels", num_classes)
    a = _columns(predicted_a, "predicted_a", len(labels), num_classes)
    b = _columns(predicted_b, "predicted_b", len(labels), num_classes)
    if a.shape != b.shape:
        raise ValueError(f"predicted_a has {len(a)} seeds, predicted_b has {len(b)}: give as many, in pairs")
    cells = _cells(labels, np.concatenate([a, b]), num_classes)
    bootstrap_generator, permutation_generator = np.random.default_rng(seed).spawn(2)
    difference = float(_paired(_scores(cells, cells.count, metric)))
    low, high = _percentiles(_paired(_bootstrap(cells, metric, resamples, bootstrap_generator)), 0.95)
    permuted = _permutation(cells, metric, resamples, permutation_generator)
    as_large = int((np.abs(permuted) >= abs(difference) - _ROUNDING).sum())
    return Comparison(difference, low, high, (1 + as_large) / (1 + resamples))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjust the p values [M] of one family of comparisons by Holm's step-down method (Holm, 1979).

    The adjusted values are float64 of shape [M], in the order given. Empty input, or a value outside [0, 1],
    raises a ValueError.
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"p_values has shape {values.shape}: give a list with at least one value")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p_values is {values.tolist()}: all must lie in [0, 1]; leave undefined ones out")
    return multipletests(values, method="holm")[1]


class _Cells(NamedTuple):
    """Images counted by true and predicted classes: C cells, M columns of predictions, K classes."""

    count: NDArray[np.int64]  # [C], all positive
    true: NDArray[np.int64]  # [C]
    picked: NDArray[np.float64]  # [C, M, K], 1 where the column predicts the class
    hit: NDArray[np.float64]  # [C, M, K], 1 where it does so rightly
    support: NDArray[np.int64]  # [K], images by true class


def _cells(labels: NDArray, columns: NDArray, num_classes: int) -> _Cells:
    """Count the combinations of labels [N] and predictions [M, N], whatever the images' order."""
    rows, count = np.unique(np.column_stack([labels, columns.T]), axis=0, return_counts=True)
    marks = (rows[..., None] == np.arange(num_classes)).astype(np.float64)
    picked, hit = marks[:, 1:], marks[:, 1:] * marks[:, :1]
    return _Cells(count, rows[:, 0], picked, hit, np.bincount(labels, minlength=num_classes))


def _scores(cells: _Cells, counts: NDArray, metric: str) -> NDArray[np.float64]:
    """Scores [..., M] if the cells held counts [..., C]; F1 = 2 hits / (images of a class + predicted)."""
    hits, picked = (np.tensordot(counts.astype(np.float64), marks, 1) for marks in (cells.hit, cells.picked))
    if metric == "accuracy":
        return hits.sum(axis=-1) / cells.support.sum()
    return (2 * hits / np.maximum(cells.support + picked, 1)).mean(axis=-1)


def _paired(scores: NDArray) -> NDArray[np.float64]:
    """Mean over seeds of a - b, from [..., 2 S] (all seeds of a, then all of b) to [...]."""
    seeds = scores.shape[-1] // 2
    return (scores[..., :seeds] - scores[..., seeds:]).mean(axis=-1)


def _bootstrap(cells: _Cells, metric: str, resamples: int, generator: np.random.Generator) -> NDArray:
    """Scores [resamples, M] of resamples, multinomial over the cells of each true class."""
    scores = []
    for size in _batches(resamples, len(cells.count)):
        drawn = np.empty((size, len(cells.count)), dtype=np.int64)
        for k in np.flatnonzero(cells.support):
            block = cells.true == k
            shares = cells.count[block] / cells.support[k]
            drawn[:, block] = generator.multinomial(cells.support[k], shares, size=size)
        scores.append(_scores(cells, drawn, metric))
    return np.concatenate(scores)


def _permutation(cells: _Cells, metric: str, resamples: int, generator: np.random.Generator) -> NDArray:
    """Differences [resamples] after exchanging a and b for Binomial(count, 1/2) images of each cell."""
    seeds = cells.picked.shape[1] // 2
    hit, picked = (np.concatenate([m, np.roll(m, seeds, axis=1)]) for m in (cells.hit, cells.picked))
    kept_or_exchanged = cells._replace(hit=hit, picked=picked)
    differences = []
    for size in _batches(resamples, 2 * len(cells.count)):
        swaps = generator.binomial(cells.count, 0.5, size=(size, len(cells.count)))
        counts = np.concatenate([cells.count - swaps, swaps], axis=1)
        differences.append(_paired(_scores(kept_or_exchanged, counts, metric)))
    return np.concatenate(differences)


def _batches(resamples: int, width: int) -> list[int]:
    """Sizes that add up to `resamples` and keep size x width within what is held in memory at once."""
    most = max(1, _DRAWS_AT_ONCE // width)
    return [min(most, resamples - start) for start in range(0, resamples, most)]


def _percentiles(scores: NDArray, confidence: float) -> tuple[float, float]:
    return tuple(np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist())


def _calibration_error(confidence: NDArray, correct: NDArray) -> float:
    """Gap between confidence [N] and accuracy, mean over bins open to the left, weighted by images."""
    bins = np.clip(np.ceil(confidence * _CALIBRATION_BINS).astype(int) - 1, 0, _CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=_CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _check_options(num_classes: int, metric: str, resamples: int) -> None:
    if metric not in ("macro_f1", "accuracy"):
        raise ValueError(f"metric is {metric!r}: choose macro_f1 or accuracy")
    if num_classes < 2 or resamples < 1:
        raise ValueError(f"num_classes is {num_classes}, resamples is {resamples}: give at least 2 and 1")


def _columns(values: ArrayLike, name: str, images: int, num_classes: int) -> NDArray[np.int64]:
    rows = np.asarray(values)
    if rows.ndim not in (1, 2) or not rows.size or rows.shape[-1] != images:
        raise ValueError(f"{name} has shape {rows.shape}: labels ask for ({images},) or (seeds, {images})")
    return _indices(rows.ravel(), name, num_classes).reshape(-1, images)


def _indices(values: ArrayLike, name: str, num_classes: int) -> NDArray[np.int64]:
    values = np.asarray(values)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"{name} has shape {values.shape}: give a class index for each of N > 0 images")
    if values.dtype.kind not in "iu":
        raise ValueError(f"{name} has dtype {values.dtype}: give integers, 0 .. {num_classes - 1}")
    if values.min() < 0 or values.max() >= num_classes:
        found = f"{name} runs from {values.min()} to {values.max()}"
        raise ValueError(f"{found}: only 0 .. {num_classes - 1} are allowed; leave unlabelled images out")
    return values.astype(np.int64)


def _distributions(values: ArrayLike, images: int, num_classes: int) -> NDArray[np.float64]:
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (images, num_classes):
        raise ValueError(f"probabilities has shape {values.shape}, not images x classes {images, num_classes}")
    if not np.isfinite(values).all():
        row = np.isfinite(values).all(axis=1).argmin()
        raise ValueError(f"probabilities has a non-finite value in row {row}: see whether training diverged")
    if values.min() < 0 or np.abs(values.sum(axis=1) - 1).max() > 0.01:
        raise ValueError("probabilities has rows that are not distributions: apply a softmax to logits first")
    return values
