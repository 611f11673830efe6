"""Test images drawn again, and predictions exchanged: what the intervals and tests of `evaluation` rest on.

Scores see only how many images share the same true labels and the same predictions of all models, here called
a cell. Whole cells are drawn, which has the same distribution as drawing image by image at a fraction of the cost.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_DRAWS_AT_ONCE = 2_000_000  # bounds memory to some 50 MB


class Cells(NamedTuple):
    """Images counted by true labels and predictions: C cells, M columns of predictions, K classes.

    Predictions of a class that is not known to be there or not count nowhere.
    """

    count: NDArray[np.int64]  # [C], all positive
    stratum: NDArray[np.int64]  # [C]; images are drawn again within each
    true: NDArray[np.float64]  # [C, K], 1 where the image has the class
    picked: NDArray[np.float64]  # [C, M, K], 1 where the column predicts the class
    hit: NDArray[np.float64]  # [C, M, K], 1 where it does so rightly


def cells_of_classes(labels: NDArray, columns: NDArray, num_classes: int) -> Cells:
    """Count the combinations of labels [N] and predictions [M, N], all class indices, whatever the images' order.

    Every class is a stratum.
    """
    rows, count = np.unique(np.column_stack([labels, columns.T]), axis=0, return_counts=True)
    marks = (rows[..., None] == np.arange(num_classes)).astype(np.float64)
    true, picked = marks[:, 0], marks[:, 1:]
    return Cells(count, rows[:, 0], true, picked, picked * true[:, None])


def cells_of_findings(labels: NDArray, columns: NDArray) -> Cells:
    """Count the combinations of labels [N, K] (1, 0 or NaN) and predictions [M, N, K] (1 or 0) of several classes.

    All images are one stratum. Classes without any known label are left out.
    """
    some = ~np.isnan(labels).all(axis=0)
    labels, columns = labels[:, some], columns[..., some]
    known = ~np.isnan(labels)
    marks = np.stack([known, labels == 1, *(columns.astype(bool) & known)], axis=1)
    packed = np.packbits(marks.reshape(len(labels), -1), axis=1)
    rows, count = np.unique(packed, axis=0, return_counts=True)
    marks = np.unpackbits(rows, axis=1, count=marks[0].size).reshape(-1, *marks.shape[1:]).astype(np.float64)
    true, picked = marks[:, 1], marks[:, 2:]
    return Cells(count, np.zeros(len(rows), dtype=np.int64), true, picked, picked * true[:, None])


def scores(cells: Cells, counts: NDArray) -> NDArray[np.float64]:
    """Macro F1 [..., M] if the cells held counts [..., C]; F1 = 2 hits / (images of a class + predicted)."""
    counts = counts.astype(np.float64)
    true, picked, hits = (np.tensordot(counts, marks, 1) for marks in (cells.true, cells.picked, cells.hit))
    return (2 * hits / np.maximum(true[..., None, :] + picked, 1)).mean(axis=-1)


def paired(scores: NDArray) -> NDArray[np.float64]:
    """Mean over seeds of a - b, from [..., 2 S] (all seeds of a, then all of b) to [...]."""
    seeds = scores.shape[-1] // 2
    return (scores[..., :seeds] - scores[..., seeds:]).mean(axis=-1)


def bootstrap(cells: Cells, resamples: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Scores [resamples, M] of resamples, multinomial over the cells of each stratum."""
    drawn_scores = []
    for size in _batches(resamples, len(cells.count)):
        drawn = np.empty((size, len(cells.count)), dtype=np.int64)
        for stratum in np.unique(cells.stratum):
            block = cells.stratum == stratum
            images = cells.count[block].sum()
            drawn[:, block] = generator.multinomial(images, cells.count[block] / images, size=size)
        drawn_scores.append(scores(cells, drawn))
    return np.concatenate(drawn_scores)


def permutation(cells: Cells, resamples: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Differences [resamples] after exchanging a and b for Binomial(count, 1/2) images of each cell."""
    both = _kept_or_exchanged(cells)
    differences = []
    for size in _batches(resamples, len(both.count)):
        swaps = generator.binomial(cells.count, 0.5, size=(size, len(cells.count)))
        counts = np.concatenate([cells.count - swaps, swaps], axis=1)
        differences.append(paired(scores(both, counts)))
    return np.concatenate(differences)


def _kept_or_exchanged(cells: Cells) -> Cells:
    """The cells [C] and after them [C] those with the predictions of a and b exchanged."""
    seeds = cells.picked.shape[1] // 2
    exchanged = {name: np.roll(getattr(cells, name), seeds, axis=1) for name in ("picked", "hit")}
    return Cells(*(np.concatenate(pair) for pair in zip(cells, cells._replace(**exchanged), strict=True)))


def _batches(resamples: int, width: int) -> list[int]:
    """Sizes that add up to `resamples` and keep size x width within what is held in memory at once."""
    most = max(1, _DRAWS_AT_ONCE // width)
    return [min(most, resamples - start) for start in range(0, resamples, most)]
