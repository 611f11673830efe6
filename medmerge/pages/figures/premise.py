"""Figures of the chapter on the paper's premise: how far apart the sources are, and what lies between them."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from medmerge.pages.figures.depth import mark_depth
from medmerge.pages.figures.style import BookFigure, book_style

_COLOURS = ("#0173B2", "#D55E00", "#029E73", "#CC78BC")
_GREY = "0.35"
_MARKERS = "osD^"
_STATISTICS = {"interpolated": "-", "re-estimated": "--"}
_NAMES = {"val_loss": "loss", "val_accuracy": "accuracy", "val_macro_f1": "macro F1", "val_macro_auroc": "macro AUROC"}


@book_style
def distance_by_depth(tables: Mapping[str, pd.DataFrame]) -> BookFigure:
    """Relative distance (top) and mean cosine of the kernels (bottom, band: 5-95 % of them) of pairs of networks.

    Dashed lines: where two networks with nothing in common would be, at the square root of 2 and at 0.

    Args:
        tables: for up to four pairs, by a label that names them, what :func:`medmerge.study.premise.distances` gives.
            All have the same layers.

    Raises:
        ValueError: no pair or more than four, or tables with different layers.
    """
    if not 0 < len(tables) <= len(_COLOURS):
        raise ValueError(f"there are {len(tables)} tables: give one to {len(_COLOURS)}")
    names = [list(table["layer"]) for table in tables.values()]
    if any(other != names[0] for other in names) or not names[0]:
        raise ValueError(f"the tables have {[len(layers) for layers in names]} layers: give the same ones in each")
    figure = BookFigure(figsize=(8, 4.6), layout="constrained")
    distance, cosine = figure.subplots(2, 1, sharex=True)
    at = np.arange(len(names[0]))
    for (label, table), colour, marker in zip(tables.items(), _COLOURS, _MARKERS, strict=False):
        look = {"color": colour, "marker": marker, "markersize": 2.5, "linewidth": 0.8}
        distance.plot(at, table["distance"], label=label, gid=f"distance/{label}", **look)
        cosine.plot(at, table["kernel_cosine"], gid=f"cosine/{label}", **look)
        cosine.fill_between(at, table["low"], table["high"], color=colour, alpha=0.2, linewidth=0)
    for axes, unrelated in ((distance, 2**0.5), (cosine, 0)):
        axes.axhline(unrelated, color=_GREY, linewidth=0.8, linestyle="--")
    distance.set(ylabel="‖b − c‖ / mean norm")
    distance.set_ylim(bottom=0)
    cosine.set(ylabel="cosine of the kernels")
    mark_depth(cosine, names[0])
    figure.legend(loc="outside upper right", ncols=len(tables))
    return figure


@book_style
def along_line(tables: Mapping[str, pd.DataFrame], score: str = "val_macro_f1") -> BookFigure:
    """Validation loss (left) and score (right) along the lines between pairs of classifiers.

    Solid: running statistics of batch norm on the line; dashed: re-estimated at every point. Grey: the two ends.

    Args:
        tables: for up to four pairs, by a label that names them, what :func:`medmerge.study.premise.line` gives.
        score: the column to draw at the right.

    Raises:
        ValueError: no pair or more than four, a column missing, or losses that are not finite.
    """
    if not 0 < len(tables) <= len(_COLOURS):
        raise ValueError(f"there are {len(tables)} tables: give one to {len(_COLOURS)}")
    columns = ["a", "statistics", "val_loss", score]
    for label, table in tables.items():
        missing = [column for column in columns if column not in table]
        if missing or table.empty or not np.isfinite(table["val_loss"]).all():
            raise ValueError(f"{label}: {len(table)} rows, missing {missing}: give rows of finite losses")
    figure = BookFigure(figsize=(8, 3.2), layout="constrained")
    for axes, column in zip(figure.subplots(1, 2), ("val_loss", score), strict=True):
        for (label, table), colour, marker in zip(tables.items(), _COLOURS, _MARKERS, strict=False):
            for statistics, part in table.groupby("statistics", sort=False):
                look = {"color": colour, "marker": marker, "markersize": 3, "linestyle": _STATISTICS[statistics]}
                name = f"{label}, {statistics}"
                axes.plot(part["a"], part[column], label=name, gid=f"{column}/{label}/{statistics}", **look)
        for end in (0, 1):
            axes.axvline(end, color=_GREY, linewidth=0.8, linestyle=":")
        axes.set(xlabel="a, from c (0) to b (1)", ylabel=f"validation {_NAMES.get(column, column)}")
        axes.grid(axis="y")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure
