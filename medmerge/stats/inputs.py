"""What :mod:`medmerge.stats.evaluation` is given, checked: each function returns arrays of one kind, or says what is
wrong.

All raise a ValueError that names the argument, what it is and what is allowed.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def check_options(metric: str, resamples: int) -> None:
    """Refuse a metric that is unknown, and resamples that are none."""
    if metric not in ("macro_f1", "accuracy"):
        raise ValueError(f"metric is {metric!r}: choose macro_f1 or accuracy")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}: give at least 1")


def scored(labels: NDArray, probabilities: ArrayLike, classes: Sequence[str]) -> tuple[NDArray, NDArray]:
    """Checked labels, int64 [N] or float64 [N, K], and probabilities, float64 [N, K]."""
    multilabel = labels.ndim == 2
    if len(classes) < (1 if multilabel else 2) or len(set(classes)) != len(classes):
        raise ValueError(f"classes is {list(classes)}: give at least two names (multi-label: one), all different")
    labels = findings(labels, len(classes)) if multilabel else indices(labels, "labels", len(classes))
    values = np.asarray(probabilities, dtype=np.float64)
    if values.shape != (len(labels), len(classes)):
        raise ValueError(f"probabilities has shape {values.shape}, not images x classes {len(labels), len(classes)}")
    if not np.isfinite(values).all():
        row = np.isfinite(values).all(axis=1).argmin()
        raise ValueError(f"probabilities has a non-finite value in row {row}: see whether training diverged")
    if multilabel and (values.min() < 0 or values.max() > 1):
        found = f"probabilities runs from {values.min():g} to {values.max():g}"
        raise ValueError(f"{found}, not within 0 .. 1: apply a sigmoid to logits first")
    if not multilabel and (values.min() < 0 or np.abs(values.sum(axis=1) - 1).max() > 0.01):
        raise ValueError("probabilities has rows that are not distributions: apply a softmax to logits first")
    return labels, values


def findings(labels: NDArray, num_classes: int) -> NDArray[np.float64]:
    """Checked multi-label labels [N, K]."""
    if not labels.size or labels.shape[1] != num_classes:
        needed = f"a class index for each of N > 0 images, or multi-label (N, {num_classes})"
        raise ValueError(f"labels has shape {labels.shape}: give {needed}")
    labels = labels.astype(np.float64)
    known = labels[~np.isnan(labels)]
    if not np.isin(known, (0, 1)).all():
        wrong = np.setdiff1d(known, (0, 1))[:5].tolist()
        raise ValueError(
            f"labels holds {wrong}: only 1, 0 and NaN (not known) are allowed; decide uncertain ones first"
        )
    if not known.size:
        raise ValueError("labels holds no known label: give at least one 0 or 1")
    return labels


def decisions(values: ArrayLike, name: str, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Multi-label predictions [S, N, K]."""
    values = np.asarray(values)
    if values.ndim not in (2, 3) or not values.size or values.shape[-2:] != shape:
        raise ValueError(f"{name} has shape {values.shape}: labels ask for {shape} or (seeds, {shape[0]}, {shape[1]})")
    if not np.isin(values, (0, 1)).all():
        wrong = values[~np.isin(values, (0, 1))][0]
        raise ValueError(f"{name} holds {wrong}: only 0 and 1 are allowed; see decide for probabilities")
    return values.reshape(-1, *shape).astype(bool)


def columns(values: ArrayLike, name: str, images: int, num_classes: int) -> NDArray[np.int64]:
    """Single-label predictions [S, N]."""
    rows = np.asarray(values)
    if rows.ndim not in (1, 2) or not rows.size or rows.shape[-1] != images:
        raise ValueError(f"{name} has shape {rows.shape}: labels ask for ({images},) or (seeds, {images})")
    return indices(rows.ravel(), name, num_classes).reshape(-1, images)


def indices(values: ArrayLike, name: str, num_classes: int) -> NDArray[np.int64]:
    """Class indices [N]."""
    values = np.asarray(values)
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}: give at least 2")
    if values.ndim != 1 or not values.size:
        raise ValueError(f"{name} has shape {values.shape}: give a class index for each of N > 0 images")
    if values.dtype.kind not in "iu":
        raise ValueError(f"{name} has dtype {values.dtype}: give integers, 0 .. {num_classes - 1}")
    if values.min() < 0 or values.max() >= num_classes:
        found = f"{name} runs from {values.min()} to {values.max()}"
        raise ValueError(f"{found}: only 0 .. {num_classes - 1} are allowed; leave unlabelled images out")
    return values.astype(np.int64)
