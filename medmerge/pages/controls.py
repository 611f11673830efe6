"""What a probe's score owes to the learnt weights: tables and sentences of the controls of finished runs."""

from collections.abc import Sequence

import pandas as pd

from medmerge.study.records import Record


def gather(records: Sequence[Record]) -> pd.DataFrame:
    """The controls of several records in one table, with a column seed."""
    return pd.concat([record.controls.assign(seed=record.run["seed"]) for record in records], ignore_index=True)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """By control mean, least and greatest score over draws and runs, with batch norm as learnt and re-estimated.

    Args:
        table: as :func:`medmerge.approaches.controls.evaluate` or :func:`gather` gives it.
    """
    grouped = table.groupby("control", sort=False)[["score", "reestimated"]]
    frame = grouped.agg(["mean", "min", "max"])
    frame.columns = [" ".join(pair) for pair in frame.columns]
    return frame.assign(draws=grouped.size()).reset_index()


def sentence(summed: pd.DataFrame) -> str:
    """Learnt weights against their shuffles, in Markdown; the range is over draws and seeds, not a test.

    Args:
        summed: as :func:`summary` gives it.
    """
    by = summed.set_index("control")
    learnt, shuffled = by.loc["learnt"], by.loc["shuffled"]
    inside = shuffled["score min"] <= learnt["score mean"] <= shuffled["score max"]
    said = "within the range of" if inside else "above" if learnt["score mean"] > shuffled["score max"] else "below"
    return (
        f"With the learnt weights the probe's validation score is **{learnt['score mean']:.3f}**: {said} what the same "
        f"weights reach when shuffled within layers ({shuffled['score min']:.3f} to {shuffled['score max']:.3f} over "
        f"{int(shuffled['draws'])} shuffles). With all weights at their start: {by.loc['start', 'score mean']:.3f}."
    )
