"""A figure of what was found: MedMerge minus each baseline, with what another seed and other images would change."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from medmerge.pages.figures.style import BookFigure, approach_colour, book_style

_NAMES = {"FT": "ft", "LP-FT": "lp_ft"}


@book_style
def differences(tables: Mapping[str, pd.DataFrame], margins: Mapping[str, float], gain: float) -> Figure:
    """Forest plot of differences in macro F1, a panel a pair, all on one axis.

    Args:
        tables: by pair, as :func:`medmerge.pages.planned.comparisons` gives them.
        margins: by pair, of equivalence: the band around 0.
        gain: what the paper's abstract speaks of: the dashed line.
    """
    figure = BookFigure(figsize=(8, 0.75 + 1.25 * len(tables)), layout="constrained")
    panels = figure.subplots(len(tables), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (pair, table) in zip(panels, tables.items(), strict=True):
        axes.axvspan(-margins[pair], margins[pair], color="0.93", linewidth=0)
        axes.axvline(0, color="0.35", linewidth=0.9)
        axes.axvline(gain, color="0.35", linewidth=0.9, linestyle=(0, (4, 3)))
        for y, row in enumerate(table.itertuples()):
            colour = approach_colour(_NAMES[row.against.split()[0]])
            axes.plot([row.low, row.high], [y, y], color=colour, linewidth=2, gid=f"{pair}/{y}")
            axes.plot(row.difference, y, "o", color=colour, markersize=4.5)
        axes.set_yticks(range(len(table)), list(table["against"]))
        axes.set(title=pair, ylim=(len(table) - 0.4, -0.6))
        axes.tick_params(axis="y", length=0)
    panels[-1].set_xlabel("MedMerge minus the baseline, macro F1")
    left_out = sum(int((table["low"] * table["high"] > 0).sum()) for table in tables.values())
    figure.alt = (
        f"MedMerge minus each baseline with its 95 % interval over seeds and images, for {', '.join(tables)}: "
        f"{left_out} of {sum(map(len, tables.values()))} intervals leave out 0."
    )
    return figure
