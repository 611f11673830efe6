"""The memory of a step, end to end by kind."""

import textwrap

import pandas as pd

from medmerge.pages.figures.style import BookFigure, book_style, canvas, on_phone
from medmerge.pages.typeset import number

KINDS = {
    "parameters": ("parameters that learn", "#0173B2"),
    "gradients": ("their gradients", "#56B4E9"),
    "optimizer": ("AdamW's state", "#DE8F05"),
    "frozen": ("frozen parameters and copies", "#7A7A7A"),
    "saved": ("kept for the backward pass", "#029E73"),
}
"""Kinds of bytes in the words and colours of the figure."""


@book_style
def step_memory(memory: pd.DataFrame) -> BookFigure:
    """Memory that a step holds, a bar a variant.

    Args:
        memory: MiB, a row a title and a column each of :data:`KINDS`, as :func:`medmerge.pages.cost.memory`
            gives it.
    """
    figure = canvas(1.1 + 0.3 * len(memory) + 0.9 * on_phone())
    axes, start = figure.subplots(), pd.Series(0.0, memory.index)
    for kind, (label, colour) in KINDS.items():
        axes.barh(range(len(memory)), memory[kind], left=start, color=colour, label=label, height=0.65)
        start = start + memory[kind]
    for y, total in enumerate(start):
        where = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(number(total, ",.0f" if total >= 10 else ".1f"), (total, y), **where)
    axes.set(
        xlabel="memory held by a step, MiB",
        xlim=(0, (1.25 if on_phone() else 1.12) * start.max()),
        ylim=(len(memory) - 0.5, -0.5),
    )
    axes.set_yticks(range(len(memory)), [textwrap.fill(title, 18) for title in memory.index])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    figure.legend(loc="outside upper left", ncols=1 if on_phone() else 3, columnspacing=1)
    figure.alt = "MiB held by a step: " + ", ".join(f"{title} {total:,.0f}" for title, total in start.items()) + "."
    return figure
