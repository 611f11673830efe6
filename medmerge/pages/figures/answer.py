"""The picture of the answer: MedMerge minus each baseline, pair by pair and pooled, beside the paper's gain."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import blended_transform_factory

from medmerge.pages.figures.style import APPROACH_COLOURS, BAND, MUTED, BookFigure, book_style, canvas, on_phone
from medmerge.pages.typeset import estimate

REACH = 0.1
"""Half the axis; an arrow stands for an interval that reaches beyond."""

_POOLED, _PAIR = APPROACH_COLOURS["medmerge"], APPROACH_COLOURS["ft"]


@book_style
def answer(table: pd.DataFrame, gain: float, margin: float) -> BookFigure:
    """Differences in blocks of a baseline: a line a pair, its networks by marker, and a diamond for pairs pooled.

    Args:
        table: :func:`medmerge.pages.evidence.compared`.
        gain: of the paper, a dashed line.
        margin: half the width of a grey band around 0.
    """
    blocks = {name: list(part["pair"].unique()) for name, part in table.groupby("baseline", sort=False)}
    lines = [(name, row) for name, pairs in blocks.items() for row in ("", *pairs)]
    at = {line: y for y, line in enumerate(lines)}
    networks = list(table[~table["whole"]]["network"].unique())
    figure = canvas(0.175 * len(lines) + 0.75)
    axes = figure.subplots()
    axes.axvspan(-margin, margin, color=BAND, linewidth=0)
    axes.axvline(0, color=MUTED, linewidth=0.9)
    axes.axvline(gain, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.text(gain, -0.9, " the paper's gain", va="center")
    for row in table.itertuples():
        y, order = at[row.baseline, row.pair], 0 if row.whole else networks.index(row.network)
        shift = 0 if row.whole or len(networks) == 1 else 0.5 * (order / (len(networks) - 1) - 0.5)
        _line(axes, row, y + shift, order)
        if row.whole and not on_phone():
            text = estimate(row.difference, row.low, row.high)
            axes.text(1.01, y, text, transform=axes.get_yaxis_transform(), va="center", color=_POOLED)
    axes.set_yticks(range(len(lines)), [row for _, row in lines])
    left = blended_transform_factory(figure.transFigure, axes.transData)
    for name in blocks:
        side = {"x": 0.02, "transform": left} if on_phone() else {"x": -1.03 * REACH, "ha": "right"}
        axes.text(y=at[name, ""], s=f"Minus {name}", va="center", weight="bold", in_layout=not on_phone(), **side)
    axes.set(ylim=(len(lines) - 0.4, -1.5), xlim=(-REACH, REACH), xlabel="difference in macro F1, 95 % interval")
    axes.set_xticks(np.linspace(-REACH, REACH, 3 if on_phone() else 5))
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.alt = "; ".join(
        f"{row.row} minus {row.baseline}, pooled: {estimate(row.difference, row.low, row.high)}"
        for row in table[table["whole"]].itertuples()
    )
    if len(networks) > 1:
        handles = [axes.plot([], [], markersize=4, **_look(order))[0] for order in range(len(networks))]
        figure.legend(handles, networks, loc="outside upper right", ncols=1 if on_phone() else len(networks))
    return figure


def _look(order: int) -> dict[str, object]:
    """How the lines of a network look: those after the first are paler."""
    return {"color": _PAIR, "alpha": 1 if order == 0 else 0.5, "marker": "os^v"[order], "linestyle": "none"}


def _line(axes: Axes, row: object, y: float, order: int) -> None:
    """An interval with its dot: the pooled one a diamond."""
    look = _look(order) | ({"color": _POOLED, "marker": "D"} if row.whole else {})
    line = {"color": look["color"], "alpha": look["alpha"], "linewidth": 2.4 if row.whole else 1.4}
    axes.hlines(y, max(row.low, -REACH), min(row.high, REACH), **line)
    axes.plot(row.difference, y, markersize=6 if row.whole else 4, **look)
    for beyond, end, arrow in ((row.low < -REACH, -REACH, "<"), (row.high > REACH, REACH, ">")):
        if beyond:
            axes.plot(end, y, markersize=4, clip_on=False, **{**look, "marker": arrow})
