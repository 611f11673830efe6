"""A figure of the paper's tables: every entry with the interval that its test set gives it."""

import pandas as pd
from matplotlib.figure import Figure

from medmerge.pages.figures.style import BookFigure, approach_colour, book_style

_NAMES = {"FT": "ft", "LP-FT": "lp_ft", "MedMerge": "medmerge"}
_BACKBONES = {"densenet121": "DenseNet-121", "resnet50": "ResNet-50"}


@book_style
def paper_intervals(table: pd.DataFrame) -> Figure:
    """Forest plot of the paper's macro F1, a panel a target and backbone; panels of a target share their axis.

    Args:
        table: as :func:`medmerge.pages.papertables.intervals` gives it.
    """
    targets, backbones = table["target"].unique(), table["backbone"].unique()
    figure = BookFigure(figsize=(8, 1.75 * len(targets)), layout="constrained")
    panels = figure.subplots(len(targets), len(backbones), sharex="row", sharey="row", squeeze=False)
    for row, target in zip(panels, targets, strict=True):
        for axes, backbone in zip(row, backbones, strict=True):
            group = table[(table["target"] == target) & (table["backbone"] == backbone)]
            images = group["images"].iloc[0]
            for y, one in enumerate(group.itertuples()):
                colour = approach_colour(_NAMES[one.approach])
                axes.plot([one.low, one.high], [y, y], color=colour, linewidth=2, gid=f"{target}/{backbone}/{y}")
                axes.plot(one.macro_f1, y, "o", color=colour, markersize=4.5)
            axes.set_yticks(range(len(group)), [f"{one.approach} {one.source}" for one in group.itertuples()])
            axes.set(title=f"{target}, {_BACKBONES[backbone]}, n = {images:,}", ylim=(len(group) - 0.4, -0.6))
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x")
    for axes in panels[-1]:
        axes.set_xlabel("macro F1")
    figure.alt = (
        f"Macro F1 of the paper's {len(table)} rows with 95 % intervals, which are up to "
        f"{(table['high'] - table['low']).max():.2f} wide. MedMerge's interval and that of the best baseline overlap "
        f"in {_overlapping(table)} of the {panels.size} panels."
    )
    return figure


def _overlapping(table: pd.DataFrame) -> int:
    """Panels in which MedMerge's interval and the best baseline's have scores in common."""
    count = 0
    for _, group in table.groupby(["target", "backbone"]):
        ours = group[group["approach"] == "MedMerge"].iloc[0]
        best = group[group["approach"] != "MedMerge"].sort_values("macro_f1").iloc[-1]
        count += ours["low"] <= best["high"] and best["low"] <= ours["high"]
    return count
