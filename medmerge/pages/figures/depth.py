"""Figures along the depth of a network: the paper's Fig. 2 and Fig. 4, and whatever else has a value a layer."""

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from medmerge.pages.figures.style import APPROACH_COLOURS, LOOKS, BookFigure, book_style, half_range

_BLOCKS = {"denseblock": "block ", "transition": "T", "layer": "layer ", "encoder_layer_": "layer "}
_GREY = "0.35"


@book_style
def depth_heatmap(
    weights: Mapping[str, Mapping[str, ArrayLike]], first: str, second: str, neutral: float = 0.5
) -> Figure:
    """Mean merge weight of each layer's kernels over depth, one row per run (the paper's Fig. 2 and Fig. 4).

    The colour scale is ``neutral`` ± h, where h is the largest deviation of any mean from it, rounded up and at least
    0.01; the colour bar states it.

    Args:
        weights: {row label: {layer name: w of its kernels, shape [kernels]}}, layers in forward order and the
            same in every row. w is the first source's share; it is not bounded to [0, 1].
        first, second: names of the sources that w = 1 and w = 0 take.
        neutral: the weight at which all sources count alike, 1/n for n of them.

    Raises:
        ValueError: rows whose layers differ.
    """
    layers = list(next(iter(weights.values())))
    if strange := [label for label, row in weights.items() if list(row) != layers]:
        raise ValueError(f"{strange[0]!r} has other layers than the first row: draw backbones apart")
    means = np.array([[np.mean(w, dtype=np.float64) for w in row.values()] for row in weights.values()])
    half = half_range(means, neutral)
    low, high = neutral - half, neutral + half
    figure = BookFigure(figsize=(8, 1.7 + 0.3 * len(weights)), layout="constrained")
    axes, bar_axes = figure.subplots(2, 1, height_ratios=[0.3 * len(weights), 0.13])
    image = axes.imshow(means, "PuOr", aspect="auto", interpolation="nearest", vmin=low, vmax=high)
    axes.set_yticks(range(len(weights)), list(weights))
    axes.hlines(np.arange(1, len(weights)) - 0.5, -0.5, len(layers) - 0.5, color="white", linewidth=2)
    axes.tick_params(axis="y", length=0)
    mark_depth(axes, layers)
    bar = figure.colorbar(image, cax=bar_axes, orientation="horizontal", format="{x:g}")
    bar.set_ticks(np.linspace(low, high, 5).round(6))
    ends = f"← more {second}          more {first} →"
    bar.set_label(f"mean w of the layer's kernels (scale: {neutral:.4g} ± {half:g})\n{ends}")
    leaning = [f"{label} {row.mean():.4f}" for label, row in zip(weights, means, strict=True)]
    figure.alt = f"Heatmap of mean w by layer, from {second} (low) to {first} (high). Means: {', '.join(leaning)}."
    return figure


@book_style
def weight_spread(weights: Mapping[str, ArrayLike], first: str, second: str, neutral: float = 0.5) -> Figure:
    """Median and 5-95 % band of each layer's merge weights over depth, and the histogram of all kernels.

    Args:
        weights: {layer name: w of its kernels, shape [kernels]}, in forward order; w is the share of first.
        first, second: names of the sources that w = 1 and w = 0 take.
        neutral: the weight at which all sources count alike, 1/n for n of them.
    """
    low, median, high = np.array([np.quantile(w, [0.05, 0.5, 0.95]) for w in weights.values()]).T
    kernels = np.concatenate([np.ravel(w) for w in weights.values()])
    figure = BookFigure(figsize=(8, 3.2), layout="constrained")
    depth, histogram = figure.subplots(1, 2, sharey=True, width_ratios=[5, 1])
    colour = APPROACH_COLOURS["medmerge"]
    depth.vlines(range(len(weights)), low, high, color=colour, alpha=0.3, linewidth=250 / len(weights))
    depth.plot(median, "o-", color=colour, markersize=2.5, linewidth=0.5)
    depth.set_title("dot: median of the layer's kernels, band: 5-95 %", pad=26)
    depth.set_ylabel(f"merge weight w\n← {second}          {first} →")
    histogram.hist(kernels, min(40, 4 + len(kernels) // 8), orientation="horizontal", color=colour)
    histogram.set(xlabel=f"of {len(kernels):,} kernels")
    histogram.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    for axes in (depth, histogram):
        axes.axhline(neutral, color=_GREY, linewidth=0.8, linestyle="--")
    mark_depth(depth, list(weights))
    return figure


@book_style
def along_depth(
    table: pd.DataFrame,
    panels: Mapping[str, str],
    *,
    hue: str = "",
    band: tuple[str, str] | None = None,
    lines: Mapping[str, float] | None = None,
    log: Sequence[str] = (),
    joined: bool = True,
    title: str = "",
    what: str = "layer",
) -> BookFigure:
    """Values along the depth of a network, a panel each, one above the other; a colour a level of ``hue``.

    Args:
        table: a line a layer and level: ``layer`` (levels in forward order) and the columns that are named.
        panels: the column of each panel, and its label.
        hue: column of the levels.
        band: columns between which the first panel is shaded.
        lines: by column the value that a dashed line marks.
        log: columns whose axis is logarithmic; zeros stand at its foot.
        joined: whether neighbours are joined by a line.
        title: over the first panel.
        what: what a line of the table is, in a word or two.

    Raises:
        ValueError: no lines, or values that are not finite.
    """
    if table.empty or not np.isfinite(table[list(panels)].to_numpy(float)).all():
        raise ValueError(f"the table has {len(table)} lines: give at least one, and finite values")
    layers = list(dict.fromkeys(table["layer"]))
    levels = list(table.groupby(hue, sort=False)) if hue else [("", table)]
    figure = BookFigure(figsize=(8, 1.4 + 1.6 * len(panels)), layout="constrained")
    found = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    said = []
    for axes, (column, label) in zip(found, panels.items(), strict=True):
        foot = table[column][table[column] > 0].min() / 2 if column in log else -np.inf
        for (level, part), (colour, marker) in zip(levels, itertools.cycle(LOOKS), strict=False):
            at = part["layer"].map(layers.index)
            if band and axes is found[0]:
                low, high = (part[name].clip(lower=foot) for name in band)
                axes.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
            look = {"color": colour, "linestyle": "-" if joined else "", "linewidth": 0.7, "markersize": 3}
            axes.plot(at, part[column].clip(lower=foot), marker=marker, label=str(level), **look)
            values = f"{part[column].median():.3g} ({part[column].min():.3g} to {part[column].max():.3g})"
            said.append(f"{label} {level} {values}".replace("\n", " "))
        if column in log:
            axes.set_yscale("log")
            axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if column in (lines or {}):
            axes.axhline(lines[column], color=_GREY, linewidth=0.8, linestyle="--")
        axes.set_ylabel(label)
    found[0].set_title(title, pad=26, fontsize=8)
    mark_depth(found[0], layers)
    found[0].set_xlabel("")
    found[-1].set_xlabel(f"{what} in forward order ({len(layers)} in all)")
    if hue:
        figure.legend(*found[0].get_legend_handles_labels(), loc="outside upper right", ncols=min(4, len(levels)))
    figure.alt = f"Along depth, median and range over layers: {'; '.join(said)}. {title}".strip()
    return figure


def mark_depth(axes: Axes, layers: Sequence[str]) -> None:
    """Number the layers along the axes, a dozen at most, and mark the blocks of a DenseNet, ResNet or ViT above them.

    Args:
        axes: has the layers at x = 0, 1, 2, ...
        layers: their names, in forward order.
    """
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, len(layers)) if len(layers) <= 12 * step)
    axes.set_xticks(range(step - 1, len(layers), step), range(step, len(layers) + 1, step))
    axes.set(xlabel=f"merged layer in forward order ({len(layers)} in all)", xlim=(-0.5, len(layers) - 0.5))
    found = [re.search(r"(?:^|\.)(denseblock|transition|layer|encoder_layer_)(\d+)\.", name) for name in layers]
    named = (
        f"{_BLOCKS[match[1]]}{match[2]}" if match else "end" if any(found[:i]) else "stem"
        for i, match in enumerate(found)
    )
    blocks = list(named)
    across, start = axes.get_xaxis_transform(), 0
    for block, group in itertools.groupby(blocks if any(found) else ()):
        end = start + len(list(group))
        up = 14 if (end - start) / len(layers) < 0.012 * len(block) else 3
        where = {"xytext": (0, up), "textcoords": "offset points", "ha": "center"}
        axes.annotate(block, ((start + end - 1) / 2, 1), xycoords=across, color=_GREY, **where)
        axes.vlines(start - 0.5, 0, 1, transform=across, color=_GREY, linewidth=0.6)
        start = end
