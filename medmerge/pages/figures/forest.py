"""Forests: a dot with its interval for every line of a table."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from medmerge.pages.figures.style import BAND, LOOKS, MUTED, BookFigure, book_style, canvas, on_phone
from medmerge.pages.typeset import number


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
    limits: tuple[float, float] | None = None,
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
            same rows, and panels below them have their own. On a phone all stand below each other.
        colours: of the hue's levels; no legend is drawn where ``rows`` says the level already.
        lines: values that a line marks, the first one solid.
        bands: by panel half the width of a grey band around 0.
        form: format of the dots' values, as :func:`~medmerge.pages.typeset.number` takes it, written at the right; by
            default none is.
        limits: of the axis; a bar that goes beyond ends in an arrow.

    Raises:
        ValueError: no lines, or values that are not finite.
    """
    if table.empty or not np.isfinite(table[value].to_numpy(float)).all():
        raise ValueError(f"the table has {len(table)} lines: give at least one, and finite values of {value}")
    table, written = _labelled(table, rows, hue, panel)
    levels, panels = list(dict.fromkeys(table["_hue"])), list(table.groupby("_panel", sort=False))
    looks = {level: LOOKS[i % len(LOOKS)] for i, level in enumerate(levels)}
    looks |= {level: (colours[level], looks[level][1]) for level in levels if colours and level in colours}
    across = 1 if on_phone() else columns or len(panels)
    spread = 1 if _one_a_row(table) else len(levels)
    figure, grid = _grid(panels, across, 0.15 + 0.17 * spread + 0.18 * written, spread > 1)
    for axes, (title, part) in zip(grid.flat, panels, strict=False):
        own = list(dict.fromkeys((part if columns or on_phone() else table)["_row"]))
        for level, lot in part.groupby("_hue", sort=False):
            shift = 0 if spread == 1 else 0.7 * ((levels.index(level) + 0.5) / len(levels) - 0.5)
            shift += (0.1 + 0.1 * written) * bool(written)
            _dots(axes, lot, value, lot["_row"].map(own.index).to_numpy() + shift, looks[level], level, form, limits)
        _frame(axes, own, title, lines, (bands or {}).get(title), bool(written))
    for axes in grid[-1]:
        axes.set_xlabel(textwrap.fill(xlabel, 50) if on_phone() else xlabel)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    if spread > 1:
        handles, names = grid.flat[0].get_legend_handles_labels()
        each = 2 if on_phone() else 4
        figure.legend(handles, names, loc="outside upper left", ncols=min(each, len(names)), columnspacing=1)
    figure.alt = _told(table, value, xlabel)
    return figure


def _labelled(table: pd.DataFrame, rows: str, hue: str, panel: str) -> tuple[pd.DataFrame, int]:
    """The table with its labels as text, and how many lines these take above their dots: none beside short ones."""
    table = table.assign(_row=table[rows].astype(str), _hue=table[hue].astype(str) if hue else "")
    table["_panel"] = table[panel].astype(str) if panel else ""
    if not on_phone() or max(map(len, table["_row"])) <= 12:
        return table, 0
    table["_row"] = table["_row"].map(lambda label: textwrap.fill(label, 40))
    return table, 1 + max(label.count("\n") for label in table["_row"])


def _grid(panels: list, across: int, tall: float, legend: bool) -> tuple[BookFigure, np.ndarray]:
    """Axes for the panels, rows of ``tall`` inches."""
    down = -(-len(panels) // across)
    height = max(part["_row"].nunique() for _, part in panels) * tall
    figure = canvas(0.3 * legend + down * (0.55 + height) + 0.25)
    row = "row" if across > 1 else False
    return figure, figure.subplots(down, across, sharey=row, sharex=row or "col", squeeze=False)


def _one_a_row(table: pd.DataFrame) -> bool:
    """Whether colours repeat what rows say."""
    return bool((table.groupby(["_panel", "_row"])["_hue"].nunique() == 1).all())


def _dots(
    axes: Axes,
    lot: pd.DataFrame,
    value: str,
    at: np.ndarray,
    look: tuple[str, str],
    level: str,
    form: str,
    limits: tuple[float, float] | None,
) -> None:
    colour, marker = look
    least, most = limits or (-np.inf, np.inf)
    ends = (lot["high"] if "high" in lot else lot[value]).clip(least, most)
    if "low" in lot:
        axes.hlines(at, lot["low"].clip(least, most), ends, color=colour, linewidth=1.8)
        for beyond, edge, arrow in ((lot["low"] < least, least, "<"), (lot["high"] > most, most, ">")):
            for y in at[beyond]:
                axes.plot(edge, y, arrow, color=colour, markersize=5, clip_on=False)
    seen = lot[value].where(lot[value].between(least, most))
    axes.plot(seen, at, marker, color=colour, markersize=4.5, label=level, clip_on=False)
    for one, y in zip(lot[value] if form else (), at, strict=False):
        where = {"xycoords": axes.get_yaxis_transform(), "xytext": (4, 0), "textcoords": "offset points"}
        axes.annotate(number(one, form), (1, y), va="center", **where)
    if limits:
        axes.set_xlim(limits)


def _frame(axes: Axes, rows: list[str], title: str, lines: Sequence[float], band: float | None, above: bool) -> None:
    """A line of the axes for each row, told apart by lines between them; its label at the left or above its dots."""
    axes.set(title=title, ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [""] * len(rows) if above else rows)
    for y, label in enumerate(rows if above else ()):
        where = {"xycoords": axes.get_yaxis_transform(), "xytext": (4, -2), "textcoords": "offset points", "va": "top"}
        axes.annotate(label, (0, y - 0.5), **where)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.tick_params(axis="y", which="both", length=0)
    axes.grid(axis="x")
    axes.grid(axis="y", which="minor")
    axes.margins(x=0.08)
    if band:
        axes.axvspan(-band, band, color=BAND, linewidth=0)
    for order, at in enumerate(lines):
        axes.axvline(at, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)) if order else "-")


def _told(table: pd.DataFrame, value: str, xlabel: str) -> str:
    parts = []
    for title, part in table.groupby("_panel", sort=False):
        if len(part) > 12:
            part = part.loc[[part[value].idxmin(), part[value].idxmax()]]
        each = [
            f"{' '.join(dict.fromkeys(filter(None, (row['_row'], row['_hue']))))} {number(row[value])}"
            for _, row in part.iterrows()
        ]
        parts.append(f"{title}: {', '.join(each)}" if title else ", ".join(each))
    return f"Dots of {xlabel}. {'; '.join(parts)}."
