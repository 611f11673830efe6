"""Forests: a dot with its interval for every line of a table."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from medmerge.pages.figures.style import LOOKS, BookFigure, book_style

GREY = "0.35"


@book_style
def forest(
    table: pd.DataFrame,
    rows: str,
    value: str = "mean",
    *,
    xlabel: str,
    hue: str = "",
    panel: str = "",
    columns: int = 0,
    colours: Mapping[str, str] | None = None,
    lines: Sequence[float] = (),
    bands: Mapping[str, float] | None = None,
    form: str = "",
) -> BookFigure:
    """Draw every line of a table as a dot, with the bar from ``low`` to ``high`` where it has these columns.

    The figure's ``alt`` says the numbers, or of many the least and the greatest.

    Args:
        table: at least one line; rows, colours and panels come in its order.
        rows: column of the labels at the left; lines of one label share a row, side by side if their hue differs.
        value: column of the dots.
        xlabel: what the value is.
        hue: column that colour and marker stand for, told in a legend.
        panel: column of the panels' titles. ``columns`` of them stand side by side, by default all; these have the
            same rows, and panels below them have their own.
        colours: of the hue's levels; no legend is drawn where ``rows`` says the level already.
        lines: values that a line marks, the first one solid.
        bands: by panel half the width of a grey band around 0.
        form: format of the dots' values, written beside them; by default none is.

    Raises:
        ValueError: no lines, or values that are not finite.
    """
    if table.empty or not np.isfinite(table[value].to_numpy(float)).all():
        raise ValueError(f"the table has {len(table)} lines: give at least one, and finite values of {value}")
    table = table.assign(_row=table[rows].astype(str), _hue=table[hue].astype(str) if hue else "")
    table["_panel"] = table[panel].astype(str) if panel else ""
    levels, panels = list(dict.fromkeys(table["_hue"])), list(table.groupby("_panel", sort=False))
    looks = {level: LOOKS[i % len(LOOKS)] for i, level in enumerate(levels)}
    looks |= {level: (colours[level], looks[level][1]) for level in levels if colours and level in colours}
    across, shared = columns or len(panels), not columns
    down = -(-len(panels) // across)
    labels = list(dict.fromkeys(table["_row"]))
    spread = 1 if _one_a_row(table) else len(levels)
    tall = max(part["_row"].nunique() for _, part in panels) * (0.15 + 0.17 * spread)
    figure = BookFigure(figsize=(8, 0.45 * (spread > 1) + down * (0.55 + tall) + 0.25), layout="constrained")
    sharex = "row" if across > 1 else "col"
    sharey = "row" if across > 1 else False
    grid = figure.subplots(down, across, sharey=sharey, sharex=sharex, squeeze=False)
    for axes, (title, part) in zip(grid.flat, panels, strict=False):
        own = labels if shared else list(dict.fromkeys(part["_row"]))
        for level, lot in part.groupby("_hue", sort=False):
            shift = 0 if spread == 1 else 0.7 * ((levels.index(level) + 0.5) / len(levels) - 0.5)
            _dots(axes, lot, value, lot["_row"].map(own.index).to_numpy() + shift, looks[level], level, form)
        _frame(axes, own, title, lines, (bands or {}).get(title))
    for axes in grid[-1]:
        axes.set_xlabel(xlabel)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    if spread > 1:
        handles, names = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper right", ncols=min(3, len(names)))
    figure.alt = _told(table, value, xlabel)
    return figure


def _one_a_row(table: pd.DataFrame) -> bool:
    """Whether colours repeat what rows say."""
    return bool((table.groupby(["_panel", "_row"])["_hue"].nunique() == 1).all())


def _dots(
    axes: Axes, lot: pd.DataFrame, value: str, at: np.ndarray, look: tuple[str, str], level: str, form: str
) -> None:
    colour, marker = look
    if "low" in lot:
        axes.hlines(at, lot["low"], lot["high"], color=colour, linewidth=1.8)
    axes.plot(lot[value], at, marker, color=colour, markersize=4.5, label=level, clip_on=False)
    ends = lot["high"] if "high" in lot else lot[value]
    for number, end, y in zip(lot[value] if form else (), ends, at, strict=False):
        where = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 7}
        axes.annotate(format(number, form), (end, y), color=colour, **where)


def _frame(axes: Axes, rows: list[str], title: str, lines: Sequence[float], band: float | None) -> None:
    """A line of the axes for each row, told apart by lines between them."""
    axes.set(title=title, ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), rows)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.tick_params(axis="y", which="both", length=0)
    axes.grid(axis="x")
    axes.grid(axis="y", which="minor")
    axes.margins(x=0.08)
    if band:
        axes.axvspan(-band, band, color="0.93", linewidth=0)
    for number, at in enumerate(lines):
        axes.axvline(at, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)) if number else "-")


def _told(table: pd.DataFrame, value: str, xlabel: str) -> str:
    parts = []
    for title, part in table.groupby("_panel", sort=False):
        if len(part) > 12:
            part = part.loc[[part[value].idxmin(), part[value].idxmax()]]
        each = [
            f"{' '.join(dict.fromkeys(filter(None, (row['_row'], row['_hue']))))} {row[value]:.3f}"
            for _, row in part.iterrows()
        ]
        parts.append(f"{title}: {', '.join(each)}" if title else ", ".join(each))
    return f"Dots of {xlabel}. {'; '.join(parts)}."
