"""The figures of the chapter on costs, drawn from its tables."""

import pandas as pd

from medmerge.pages.figures.style import BookFigure, approach_colour, book_style

KINDS = {
    "parameters": ("parameters that learn", "#0173B2"),
    "gradients": ("their gradients", "#56B4E9"),
    "optimizer": ("AdamW's state", "#DE8F05"),
    "frozen": ("frozen parameters and copies", "#7A7A7A"),
    "saved": ("kept for the backward pass", "#029E73"),
}
"""Kinds of bytes in the words and colours of the figure."""


@book_style
def step_costs(steps: pd.DataFrame, memory: pd.DataFrame) -> BookFigure:
    """Seconds of a step over FT's, with quartiles, and beside them the memory that it holds: a row a variant.

    Args:
        steps: columns variant, title, low, median, high, as :func:`medmerge.pages.cost.steps` gives it.
        memory: MiB, a row a title and a column each of :data:`KINDS`, as :func:`medmerge.pages.cost.memory`
            gives it.

    Raises:
        ValueError: no rows, or titles that differ.
    """
    if steps.empty or list(steps["title"]) != list(memory.index):
        raise ValueError(f"steps has {len(steps)} rows and memory {len(memory)}: give the same titles, one at least")
    figure = BookFigure(figsize=(8, 1.6 + 0.3 * len(steps)), layout="constrained")
    times, held = figure.subplots(1, 2, sharey=True)
    for y, row in enumerate(steps.itertuples()):
        approach = {"ft": "ft", "features": "lp_ft", "lp_cached": "lp_ft", "lp": "lp_ft"}.get(row.variant, "medmerge")
        colour = approach_colour(approach)
        times.hlines(y, row.low, row.high, color=colour, linewidth=2, gid=f"range/{row.variant}")
        times.plot(row.median, y, "o", color=colour, markersize=5, gid=f"median/{row.variant}", clip_on=False)
        digits = 3 if row.median < 0.095 else 2
        where = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 7}
        times.annotate(f"{row.median:.{digits}f}", (row.high, y), color=colour, **where)
    times.axvline(1, color="0.35", linewidth=0.8, linestyle=":")
    times.set(xlabel="time of a step, over FT's", xlim=(0, 1.15 * max(1, steps["high"].max())))
    times.set_ylim(len(steps) - 0.5, -0.5)
    times.set_yticks(range(len(steps)), list(steps["title"]))
    times.tick_params(axis="y", length=0)
    start = pd.Series(0.0, memory.index)
    for kind, (label, colour) in KINDS.items():
        held.barh(range(len(memory)), memory[kind], left=start, color=colour, label=label, height=0.65)
        start = start + memory[kind]
    for y, total in enumerate(start):
        where = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 7}
        held.annotate(f"{total:,.0f}" if total >= 10 else f"{total:.1f}", (total, y), **where)
    held.set(xlabel="memory held by a step, MiB", xlim=(0, 1.12 * start.max()))
    held.tick_params(axis="y", length=0)
    for axes in (times, held):
        axes.grid(axis="x")
    figure.legend(loc="outside upper center", ncols=3)
    return figure
