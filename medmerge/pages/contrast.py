"""Rows of runs held against each other: every difference of the book, with its interval and its test, is made here."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from medmerge.stats import evaluation, significance
from medmerge.study.records import Record, RecordError

Rows = dict[str, list[Record]]
Pair = tuple[Mapping[str, object], Sequence[Record], Sequence[Record]]

ALPHA = 0.05
"""Family-wise error rate of a family of comparisons, after Holm."""

GAIN = 0.03
"""What the paper's abstract speaks of."""

_RESAMPLED: dict[bytes, object] = {}


def by_row(records: Sequence[Record]) -> Rows:
    """Records by their row's label, in order of appearance, each row's seeds in order.

    Raises:
        RecordError: rows with other seeds or other test images than the first: their scores are not comparable.
    """
    rows: Rows = {}
    for record in records:
        rows.setdefault(record.label, []).append(record)
    first = next(iter(rows.values()), [])
    for label, runs in rows.items():
        runs.sort(key=lambda record: record.run["seed"])
        if [r.run["seed"] for r in runs] != [r.run["seed"] for r in first]:
            raise RecordError(f"{label} has other seeds than {first[0].label}; run all rows with the same seeds")
        for record in runs:
            if record.run["data"]["fingerprint"] != first[0].run["data"]["fingerprint"]:
                raise RecordError(f"{record.folder} was tested on other images than {first[0].folder}")
    return rows


def predicted(runs: Sequence[Record]) -> np.ndarray:
    """Predicted class of every test image, int64 ``[seeds, N]``; multi-label 1 or 0, ``[seeds, N, K]``."""
    return np.stack([evaluation.decide(run.probabilities, run.multilabel) for run in runs])


def interval(runs: Sequence[Record]) -> tuple[float, float]:
    """95 % interval of a row's macro F1 over test images (:func:`~medmerge.stats.evaluation.bootstrap_interval`)."""
    return _once(evaluation.bootstrap_interval, runs[0].labels, predicted(runs), classes=_classes(runs))


def over_seeds(
    runs: Sequence[Record], others: Sequence[Record], images: object = ..., spread: tuple[float, int] | None = None
) -> significance.SeedInterval:
    """:func:`~medmerge.stats.significance.over_seeds` of two rows' macro F1.

    Args:
        images: test images that count, bool ``[N]``; by default all.
        spread: between seeds, as there.
    """
    labels, a, b = runs[0].labels[images], predicted(runs)[:, images], predicted(others)[:, images]
    return _once(
        significance.over_seeds, labels, a, b, classes=_classes(runs), **({"spread": spread} if spread else {})
    )


def margin(records: Sequence[Record]) -> float | None:
    """What another seed changes: standard deviation of macro F1 between seeds, pooled over rows; None with one seed."""
    rows = [[run.run["metrics"]["macro_f1"] for run in runs] for runs in by_row(records).values()]
    return significance.seed_spread(rows) if max(map(len, rows)) > 1 else None


def contrast(
    pairs: Iterable[Pair],
    over: str = "images",
    spread: float | None = None,
    between: tuple[float, int] | None = None,
) -> pd.DataFrame:
    """One row minus another in macro F1, a line a pair; the pairs are one family of Holm's correction.

    Args:
        pairs: columns that name the line, a row's runs, and those that it is held against: seed by seed, tested on
            the same images.
        over: ``"images"``: the interval is for other test images (:func:`~medmerge.stats.evaluation.compare`).
            ``"seeds"``: for other seeds and images together (:func:`~medmerge.stats.significance.over_seeds`).
        spread: with ``"seeds"`` the margin of equivalence, see :func:`margin`.
        between: with ``"seeds"`` the spread between them, where it is pooled over more rows than the two.

    Returns:
        The naming columns; ``difference``, ``low`` and ``high`` (95 %); ``p``, for other images, and ``p_holm``,
        adjusted. With ``"seeds"`` also ``superior``: ``"superior"`` or ``"inferior"`` where both the adjusted p is
        below 5 % and the interval leaves out 0, else ``"not shown"``; and ``equivalence``, the outcome of
        :func:`~medmerge.stats.significance.equivalence`, ``"unknown"`` without a margin; ``error``; and what that error
        can show, before Holm's correction (:mod:`medmerge.stats.significance`): ``power`` at a true :data:`GAIN`, and
        ``visible``, the gain that is found in four of five cases.
    """
    pairs = list(pairs)
    tests = [
        _once(evaluation.compare, runs[0].labels, predicted(runs), predicted(others), classes=_classes(runs))
        for _, runs, others in pairs
    ]
    adjusted = evaluation.holm([test.p_value for test in tests]) if tests else ()
    lines = []
    for (named, runs, others), test, p_holm in zip(pairs, tests, adjusted, strict=True):
        found = over_seeds(runs, others, spread=between) if over == "seeds" else test
        line = {"difference": found.difference, "low": found.low, "high": found.high, "p": test.p_value}
        line["p_holm"] = p_holm
        if over == "seeds":
            seen = found.error, found.freedom
            same = (
                significance.equivalence(found.difference, found.error, spread, found.freedom) if spread else "unknown"
            )
            line |= {"superior": _superior(found.low, found.high, p_holm), "equivalence": same, "error": found.error}
            line |= {"power": significance.power(GAIN, *seen), "visible": significance.visible(*seen)}
        lines.append({**named, **line})
    return pd.DataFrame(lines) if lines else pd.DataFrame(columns=["difference", "low", "high", "p", "p_holm"])


def against(records: Sequence[Record], reference: str = "medmerge", over: str = "images") -> pd.DataFrame:
    """:func:`contrast` of one row with every other, which the column ``against`` names.

    Args:
        reference: the row, by its label, or by its approach if only one row of it has no settings of its own.
        over: as for :func:`contrast`; the margin is that of these records.

    Raises:
        RecordError: no such row, or several.
    """
    rows = by_row(records)
    chosen = [label for label in rows if label == reference] or [
        label for label, (run, *_) in rows.items() if run.approach == reference and not run.settings
    ]
    if len(chosen) != 1:
        raise RecordError(f"{len(chosen)} rows of {reference!r} among {list(rows)}; the comparison needs one")
    runs = rows.pop(chosen[0])
    pairs = [({"against": label}, runs, others) for label, others in rows.items()]
    return contrast(pairs, over, margin(records) if over == "seeds" else None)


def pooled(tables: Iterable[pd.DataFrame], by: Sequence[str] = ("row", "against")) -> pd.DataFrame:
    """Differences of several pairs pooled by inverse variance, one family of Holm's correction again.

    Args:
        tables: :func:`contrast` over seeds, of each pair.
        by: columns that name what is pooled.

    Returns:
        These columns, ``pairs``, the fields of :class:`~medmerge.stats.significance.Pooled`, ``error``, ``p``,
        ``p_holm``, ``superior`` as there, and ``power`` at the paper's gain.
    """
    lines = []
    for named, each in pd.concat(tables).groupby(list(by), sort=False):
        found = significance.pool(each["difference"], each["error"])
        error = (found.high - found.low) / 2 / stats.norm.ppf(1 - ALPHA / 2)
        line = {**dict(zip(by, named, strict=True)), "pairs": len(each), **vars(found)}
        p = 2 * stats.norm.sf(abs(found.difference) / error)
        lines.append(line | {"error": error, "p": p, "power": significance.power(GAIN, error)})
    table = pd.DataFrame(lines).assign(p_holm=lambda t: evaluation.holm(t["p"]))
    return table.assign(superior=[_superior(r.low, r.high, r.p_holm) for r in table.itertuples()])


def _superior(low: float, high: float, p_holm: float) -> str:
    sign = np.sign(low) if p_holm < ALPHA and low * high > 0 else 0
    return {1: "superior", -1: "inferior"}.get(sign, "not shown")


def _classes(runs: Sequence[Record]) -> int:
    return len(runs[0].run["data"]["classes"])


def _once(function: Callable, *arrays: np.ndarray, classes: int, **more: object) -> object:
    """``function(*arrays, classes, **more)``, computed once a process: a page shows the same resampling many times."""
    key = hashlib.sha256(repr([function.__name__, classes, more, *((a.dtype.str, a.shape) for a in arrays)]).encode())
    for array in arrays:
        key.update(np.ascontiguousarray(array))
    if key.digest() not in _RESAMPLED:
        _RESAMPLED[key.digest()] = function(*arrays, classes, **more)
    return _RESAMPLED[key.digest()]
