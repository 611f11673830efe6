"""Figures of the chapter on datasets: what splits leak, and what that is worth to a classifier."""

import numpy as np
import pandas as pd

from medmerge.pages.figures.style import BookFigure, book_style

SPLIT_COLOURS = {"random": "#D55E00", "grouped": "#0173B2", "official": "#7A7A7A"}
KINDS = {"group": "same patient or lesion", "file": "same file"}


@book_style
def leaks(table: pd.DataFrame) -> BookFigure:
    """Share of test images that meet their group, or a copy of their file, in training: a row a dataset and kind.

    Args:
        table: columns dataset, split, kind ("group" or "file"), mean, low, high (in [0, 1]), as
            :func:`~medmerge.study.datasheet.leak_table` gives it.

    Raises:
        ValueError: no rows, or shares that are not in [0, 1].
    """
    shares = table[["mean", "low", "high"]].to_numpy(float)
    if table.empty or not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(f"the table has {len(table)} rows: give at least one, with shares in [0, 1]")
    rows = list(table[["dataset", "kind"]].drop_duplicates().itertuples(index=False, name=None))
    figure = BookFigure(figsize=(8, 1.2 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for split, part in table.groupby("split", sort=False):
        at = np.array([rows.index(key) for key in part[["dataset", "kind"]].itertuples(index=False, name=None)])
        y = at + {"random": -0.18, "grouped": 0.0, "official": 0.18}[split]
        colour = SPLIT_COLOURS[split]
        axes.hlines(y, part["low"], part["high"], color=colour, linewidth=2, gid=f"range/{split}")
        axes.plot(part["mean"], y, "o", color=colour, markersize=5, label=split, gid=f"mean/{split}", clip_on=False)
        for mean, high, height in zip(part["mean"], part["high"], y, strict=True):
            if mean > 0:
                where = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
                axes.annotate(f"{mean:.1%}", (high, height), fontsize=7, color=colour, **where)
    axes.set(xlabel="share of the test images that training has met", ylim=(len(rows) - 0.4, -0.6), xlim=(0, 1))
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_yticks(range(len(rows)), [f"{dataset}: {KINDS[kind]}" for dataset, kind in rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    figure.legend(loc="outside upper right", ncols=3)
    return figure


@book_style
def probe_gaps(table: pd.DataFrame) -> BookFigure:
    """Macro F1 of probes on grouped and on random splits of the same images, joined by a line: a row each.

    Args:
        table: columns dataset, probe, random, grouped (in [0, 1]), difference, as
            :func:`~medmerge.study.datasheet.probe_table` gives it.

    Raises:
        ValueError: no rows, or scores that are not in [0, 1].
    """
    scores = table[["random", "grouped"]].to_numpy(float)
    if table.empty or not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError(f"the table has {len(table)} rows: give at least one, with scores in [0, 1]")
    figure = BookFigure(figsize=(8, 1.2 + 0.34 * len(table)), layout="constrained")
    axes, at = figure.subplots(), np.arange(len(table))
    axes.hlines(at, table["grouped"], table["random"], color="0.7", linewidth=2, gid="gap")
    for split in ("grouped", "random"):
        axes.plot(table[split], at, "o", color=SPLIT_COLOURS[split], label=f"{split} split", gid=f"score/{split}")
    for y, row in enumerate(table.itertuples()):
        where = {"xytext": (9, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{row.difference:+.3f}", (max(row.random, row.grouped), y), fontsize=8, **where)
    axes.set(xlabel="macro F1 on the test images (mean of the draws)", ylim=(len(table) - 0.4, -0.6))
    axes.set_yticks(at, [f"{row.dataset}, {row.probe}" for row in table.itertuples()])
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.12)
    axes.grid(axis="x")
    figure.legend(loc="outside upper right", ncols=2)
    return figure
