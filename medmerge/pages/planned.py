"""What the analysis plan (`book/plan.md`) asks of a pair's records: seeds and test images together."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from medmerge.pages import report
from medmerge.stats import significance
from medmerge.study.records import Record

BASELINES = ("ft", "lp_ft")
"""Approaches that the plan's first claim is about; a page with others among its rows is no family of the plan."""

GRADED = ("aptos2019", "eyepacs", "medmnist:retinamnist")
"""Targets whose classes are grades, in order."""

SINGLE = "With several labels an image these tests are not defined here."
"""Said in place of the tables where images have several labels."""


def margin(records: Sequence[Record]) -> float | None:
    """What another seed changes: standard deviation of macro F1 between seeds, pooled over rows; None with one seed."""
    rows = [[run.run["metrics"]["macro_f1"] for run in runs] for runs in report.by_row(records).values()]
    return significance.seed_spread(rows) if max(map(len, rows)) > 1 else None


def comparisons(records: Sequence[Record], reference: str = "medmerge") -> pd.DataFrame:
    """One row against every other, for other seeds and other images.

    Args:
        reference: as for :func:`medmerge.pages.report.comparisons`.

    Returns:
        A line a baseline: ``against``; ``difference`` in macro F1, ``low`` and ``high`` (95 %,
        :func:`~medmerge.stats.significance.over_seeds`); ``p_holm`` as :func:`medmerge.pages.report.comparisons` has
        it, for other
        images; ``superior``: what the plan calls so, ``"superior"`` or ``"inferior"`` where both the adjusted p is
        below 5 % and the interval leaves out 0, else ``"not shown"``; ``equivalence``:
        :func:`~medmerge.stats.significance.equivalence` within :func:`margin`, ``"unknown"`` with one seed.

    Raises:
        RecordError: as :func:`medmerge.pages.report.comparisons`.
        ValueError: images with several labels.
    """
    rows, table = report.by_row(records), report.comparisons(records, reference)
    merged, spread = _reference(rows, table), margin(records)
    lines = [
        {"against": line.against, **difference(merged, rows[line.against], line.p_holm, spread)}
        for line in table.itertuples()
    ]
    columns = ["against", "difference", "low", "high", "p_holm", "superior", "equivalence"]
    return pd.DataFrame(lines, columns=columns)


def difference(runs: Sequence[Record], others: Sequence[Record], p: float, spread: float | None) -> dict[str, object]:
    """One row minus another for other seeds and other images: the columns of :func:`comparisons` but the first.

    Args:
        p: adjusted, for other images.
        spread: the margin of equivalence; None where one seed says nothing of it.
    """
    found = _over_seeds(runs, others)
    sign = np.sign(found.low) if p < report.ALPHA and found.low * found.high > 0 else 0
    same = significance.equivalence(found.difference, found.error, spread, found.freedom).outcome if spread else ""
    return {
        **{"difference": found.difference, "low": found.low, "high": found.high, "p_holm": p},
        "superior": {1: "superior", -1: "inferior"}.get(sign, "not shown"),
        "equivalence": same or "unknown",
    }


def _reference(rows: report.Rows, table: pd.DataFrame) -> list[Record]:
    """The row that all others of a table of comparisons are held against."""
    (runs,) = [runs for label, runs in rows.items() if label not in set(table["against"])]
    return runs


def _over_seeds(runs: Sequence[Record], others: Sequence[Record]) -> significance.SeedInterval:
    classes = len(runs[0].run["data"]["classes"])
    return significance.over_seeds(runs[0].labels, report.predicted(runs), report.predicted(others), classes)


def table(records: Sequence[Record]) -> pd.DataFrame:
    """:func:`comparisons` with the columns and names that a reader wants."""
    found = comparisons(records)
    found["interval"] = [f"{low:+.3f} to {high:+.3f}" for low, high in found[["low", "high"]].itertuples(index=False)]
    names = {"against": "MedMerge minus", "difference": "difference", "interval": "95 % interval, seeds and images"}
    names |= {"superior": "superiority", "equivalence": "within the margin"}
    return found[list(names)].rename(columns=names)


def outcome(records: Sequence[Record]) -> str:
    """What a pair says of the plan's first claim: ``"support"``, ``"failure"`` or ``"undecided"``.

    Support: superior to every baseline. Failure: inferior, or equivalent, to one. With one seed nothing is decided.
    """
    return decide(comparisons(records))


def cells(line: object, seeds: int) -> str:
    """A line of :func:`comparisons` from its difference on, as cells of a Markdown table; one seed decides nothing."""
    numbers = f"{line.difference:+.3f} | {line.low:+.3f}\N{NO-BREAK SPACE}to {line.high:+.3f} | {line.p_holm:.2g}"
    return f"{numbers} | {line.superior} | {line.equivalence}" if seeds > 1 else f"{numbers} | one seed | –"


def decide(found: pd.DataFrame) -> str:
    """:func:`outcome` of a table of :func:`comparisons`."""
    if (found["equivalence"] == "unknown").any():
        return "undecided"
    if (found["superior"] == "superior").all():
        return "support"
    failed = (found["superior"] == "inferior") | (found["equivalence"] == "equivalent")
    return "failure" if failed.any() else "undecided"


def verdict(records: Sequence[Record]) -> str:
    """The same in a sentence of Markdown, with the margin."""
    if records[0].multilabel:
        return SINGLE
    spread, seeds = margin(records), sorted({record.run["seed"] for record in records})
    if spread is None:
        return "One seed: what another would change is not known, and the analysis plan decides nothing on it."
    found = comparisons(records)
    counts = {name: int((found["superior"] == name).sum()) for name in ("superior", "inferior")}
    equivalent = int((found["equivalence"] == "equivalent").sum())
    return (
        f"Over {len(seeds)} seeds and the test images together MedMerge is superior to {counts['superior'] or 'none'}, "
        f"inferior to {counts['inferior'] or 'none'} and equivalent to {equivalent or 'none'} of {len(found)} "
        f"baselines. The margin, which is what another seed changes, is {spread:.3f}. {_counts_as(records, found)}"
    )


def _counts_as(records: Sequence[Record], found: pd.DataFrame) -> str:
    others = {run.run["row"]["title"]: None for run in records if run.approach not in (*BASELINES, "medmerge")}
    if others:
        names = ", ".join(others)
        return f"With {names} among them this decides nothing: the plan's claim is about FT and LP-FT alone."
    return f"For the plan's claim that MedMerge beats them, this pair counts as **{decide(found)}**."


def secondary(records: Sequence[Record]) -> pd.DataFrame:
    """Secondary outcomes, described and in no family: a line a baseline, of MedMerge minus it.

    Accuracy over seeds and images (:func:`~medmerge.stats.significance.over_seeds`) with McNemar's p of each seed, and
    macro
    AUROC, mean over seeds, with DeLong's interval.
    """
    rows, table = report.by_row(records), report.comparisons(records)
    merged = _reference(rows, table)
    labels, lines = merged[0].labels, []
    for label in table["against"]:
        a, b = report.predicted(merged), report.predicted(rows[label])
        exact = [significance.mcnemar(labels, *pair) for pair in zip(a, b, strict=True)]
        line = {"MedMerge minus": label, "accuracy": float(np.mean([one.difference for one in exact]))}
        line["McNemar's p, by seed"] = ", ".join(f"{one.p_value:.2g}" for one in exact)
        lines.append(line | _area(merged, rows[label]))
    return pd.DataFrame(lines)


def _area(runs: Sequence[Record], others: Sequence[Record]) -> dict[str, object]:
    a, b = (np.stack([run.probabilities for run in each]) for each in (runs, others))
    try:
        found = significance.delong(runs[0].labels, a, b)
    except ValueError:  # a class with one image, or ranked perfectly by both
        return {"AUROC": float("nan"), "95 % interval": "–"}
    return {"AUROC": found.difference, "95 % interval": f"{found.low:+.3f} to {found.high:+.3f}"}


def kappas(records: Sequence[Record]) -> pd.DataFrame:
    """:func:`~medmerge.stats.significance.quadratic_kappa` of grades, a line a row: mean over seeds, and each
    seed's.
    """
    lines = []
    for label, runs in report.by_row(records).items():
        count = len(runs[0].run["data"]["classes"])
        found = zip(report.predicted(runs), runs, strict=True)
        each = [significance.quadratic_kappa(run.labels, one, count) for one, run in found]
        each = np.array(each, dtype=np.float64)
        lines.append({"run": label, "quadratic kappa": each.mean(), "by seed": ", ".join(f"{k:.3f}" for k in each)})
    return pd.DataFrame(lines)
