"""Forests: a dot with its interval for every line of a table."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import blended_transform_factory

from medmerge.pages.figures.style import (
    APPROACH_COLOURS,
    BAND,
    LOOKS,
    MUTED,
    BookFigure,
    book_style,
    canvas,
    legend,
    on_phone,
    required,
)
from medmerge.pages.typeset import estimate, number

REACH = 0.1
"""Half the axis of :func:`answer`; an arrow stands for an interval that reaches beyond."""


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
    table, written = _labelled(required(table, [value]), rows, hue, panel)
    levels, panels = list(dict.fromkeys(table["_hue"])), list(table.groupby("_panel", sort=False))
    across = 1 if on_phone() else columns or len(panels)
    one_a_row = (table.groupby(["_panel", "_row"])["_hue"].nunique() == 1).all()  # colours repeat what rows say
    spread = 1 if one_a_row else len(levels)
    figure, grid = _grid(panels, across, 0.15 + 0.17 * spread + 0.18 * written, spread > 1, xlabel)
    for axes, (title, part) in zip(grid.flat, panels, strict=False):
        own = list(dict.fromkeys((part if columns or on_phone() else table)["_row"]))
        for level, lot in part.groupby("_hue", sort=False):
            order = levels.index(level)
            shift = 0 if spread == 1 else 0.7 * ((order + 0.5) / len(levels) - 0.5)
            at = lot["_row"].map(own.index).to_numpy() + shift + (0.1 + 0.1 * written) * bool(written)
            colour, marker = LOOKS[order % len(LOOKS)]
            look = {"color": (colours or {}).get(level, colour), "marker": marker, "linestyle": "none", "label": level}
            _dots(axes, lot, value, at, limits or (-np.inf, np.inf), look)
            _values(axes, lot[value], at, form)
        if limits:
            axes.set_xlim(limits)
        _frame(axes, own, title, bool(written))
        _guides(axes, lines, (bands or {}).get(title))
    if spread > 1:
        legend(figure, grid.flat[0], 4)
    figure.alt = _told(table, value, xlabel)
    return figure


def _labelled(table: pd.DataFrame, rows: str, hue: str, panel: str) -> tuple[pd.DataFrame, int]:
    """The table with its labels as text, and how many lines these take above their dots: none beside short ones."""
    named = {"_row": rows, "_hue": hue, "_panel": panel}
    table = table.assign(**{name: table[column].astype(str) if column else "" for name, column in named.items()})
    if not on_phone() or max(map(len, table["_row"])) <= 12:
        return table, 0
    table["_row"] = table["_row"].map(lambda label: textwrap.fill(label, 40))
    return table, 1 + max(label.count("\n") for label in table["_row"])


def _grid(panels: list, across: int, tall: float, named: bool, xlabel: str) -> tuple[BookFigure, np.ndarray]:
    """Axes for the panels, rows of ``tall`` inches."""
    down = -(-len(panels) // across)
    height = max(part["_row"].nunique() for _, part in panels) * tall
    figure = canvas(0.3 * named + down * (0.55 + height) + 0.25)
    row = "row" if across > 1 else False
    grid = figure.subplots(down, across, sharey=row, sharex=row or "col", squeeze=False)
    for axes in grid[-1]:
        axes.set_xlabel(textwrap.fill(xlabel, 50) if on_phone() else xlabel)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    return figure, grid


def _dots(
    axes: Axes,
    lot: pd.DataFrame,
    value: str,
    at: np.ndarray,
    limits: tuple[float, float],
    look: Mapping[str, object],
    width: float = 1.8,
    size: float = 4.5,
) -> None:
    """Dots with their bars at heights; arrows, and no dots, beyond the limits."""
    least, most = limits
    line = {name: look[name] for name in ("color", "alpha") if name in look}
    if "low" in lot:
        axes.hlines(at, lot["low"].clip(least, most), lot["high"].clip(least, most), linewidth=width, **line)
        for beyond, edge, arrow in ((lot["low"] < least, least, "<"), (lot["high"] > most, most, ">")):
            for y in at[beyond]:
                axes.plot(edge, y, arrow, markersize=5, clip_on=False, **line)
    seen = lot[value].where(lot[value].between(least, most))
    axes.plot(seen, at, markersize=size, clip_on=False, **look)


def _values(axes: Axes, values: pd.Series, at: np.ndarray, form: str) -> None:
    """Values in a format at the right of their dots, or none."""
    where = {"xycoords": axes.get_yaxis_transform(), "xytext": (4, 0), "textcoords": "offset points"}
    for one, y in zip(values if form else (), at, strict=False):
        axes.annotate(number(one, form), (1, y), va="center", **where)


def _frame(axes: Axes, rows: list[str], title: str, above: bool) -> None:
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


def _guides(axes: Axes, lines: Sequence[float], band: float | None) -> None:
    """A grey band around 0, and upright lines, dashed after the first."""
    if band:
        axes.axvspan(-band, band, color=BAND, linewidth=0)
    for order, at in enumerate(lines):
        axes.axvline(at, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)) if order else "-")


def _told(table: pd.DataFrame, value: str, xlabel: str) -> str:
    parts = []
    for title, part in table.groupby("_panel", sort=False):
        if len(part) > 12:
            part = part.loc[[part[value].idxmin(), part[value].idxmax()]]
        named = zip(part["_row"], part["_hue"], part[value], strict=True)
        each = [f"{' '.join(dict.fromkeys(filter(None, label)))} {number(one)}" for *label, one in named]
        parts.append(f"{title}: {', '.join(each)}" if title else ", ".join(each))
    return f"Dots of {xlabel}. {'; '.join(parts)}."


@book_style
def answer(table: pd.DataFrame, gain: float, margin: float) -> BookFigure:
    """Differences in blocks of a baseline: a line a pair, its networks by marker, and a diamond for pairs pooled.

    Args:
        table: :func:`medmerge.pages.second.compared`.
        gain: of the paper, a dashed line.
        margin: half the width of a grey band around 0.
    """
    blocks = {name: list(part["pair"].unique()) for name, part in table.groupby("baseline", sort=False)}
    lines = [(name, row) for name, pairs in blocks.items() for row in ("", *pairs)]
    place = {line: y for y, line in enumerate(lines)}
    networks, pooled = list(table[~table["whole"]]["network"].unique()), APPROACH_COLOURS["medmerge"]
    figure = canvas(0.175 * len(lines) + 0.75)
    axes = figure.subplots()
    _guides(axes, (0, gain), margin)
    axes.text(gain, -0.9, " the paper's gain", va="center")
    for (whole, network), lot in table.groupby(["whole", "network"], sort=False):
        at = np.array([place[line] for line in zip(lot["baseline"], lot["pair"], strict=True)], dtype=float)
        if whole:
            look = {"color": pooled, "marker": "D", "linestyle": "none"}
            _dots(axes, lot, "difference", at, (-REACH, REACH), look, 2.4, 6)
            continue
        order = networks.index(network)
        shift = 0.5 * (order / (len(networks) - 1) - 0.5) if len(networks) > 1 else 0
        look = {"color": APPROACH_COLOURS["ft"], "alpha": 0.5 if order else 1, "marker": "os^v"[order]}
        look |= {"linestyle": "none", "label": network}
        _dots(axes, lot, "difference", at + shift, (-REACH, REACH), look, 1.4, 4)
    said = [estimate(row.difference, row.low, row.high) for row in table.query("whole").itertuples()]
    for row, text in zip(table.query("whole").itertuples(), said if not on_phone() else (), strict=False):
        beside = {"transform": axes.get_yaxis_transform(), "va": "center", "color": pooled}
        axes.text(1.01, place[row.baseline, row.pair], text, **beside)
    axes.set_yticks(range(len(lines)), [row for _, row in lines])
    left = blended_transform_factory(figure.transFigure, axes.transData)
    for name in blocks:
        side = {"x": 0.02, "transform": left} if on_phone() else {"x": -1.03 * REACH, "ha": "right"}
        axes.text(y=place[name, ""], s=f"Minus {name}", va="center", weight="bold", in_layout=not on_phone(), **side)
    axes.set(ylim=(len(lines) - 0.4, -1.5), xlim=(-REACH, REACH), xlabel="difference in macro F1, 95 % interval")
    axes.set_xticks(np.linspace(-REACH, REACH, 3 if on_phone() else 5))
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    named = zip(table.query("whole").itertuples(), said, strict=True)
    figure.alt = "; ".join(f"{row.row} minus {row.baseline}, pooled: {text}" for row, text in named)
    if len(networks) > 1:
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper right", ncols=1 if on_phone() else len(networks))
    return figure
