"""Merge weights over the depth of a network: the paper's Fig. 2 and Fig. 4, and the axis that other figures share."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from medmerge.pages.figures.style import APPROACH_COLOURS, BookFigure, book_style

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
        ValueError: no rows, no layers, rows whose layers differ, or weights that are not finite vectors.
    """
    if not weights:
        raise ValueError("weights is empty: give at least one run, {label: {layer: w}}")
    rows = {label: _vectors(row) for label, row in weights.items()}
    layers = list(next(iter(rows.values())))
    for label, row in rows.items():
        differing = [pair for pair in itertools.zip_longest(row, layers) if pair[0] != pair[1]]
        if differing:
            found, expected = differing[0]
            raise ValueError(f"{label!r} has layer {found}, the first row {expected}: draw backbones apart")
    means = np.array([[w.mean() for w in row.values()] for row in rows.values()])
    half = half_range(means, neutral)
    low, high = neutral - half, neutral + half
    figure = BookFigure(figsize=(8, 1.7 + 0.3 * len(rows)), layout="constrained")
    axes, bar_axes = figure.subplots(2, 1, height_ratios=[0.3 * len(rows), 0.13])
    image = axes.imshow(means, "PuOr", aspect="auto", interpolation="nearest", vmin=low, vmax=high)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.hlines(np.arange(1, len(rows)) - 0.5, -0.5, len(layers) - 0.5, color="white", linewidth=2)
    axes.tick_params(axis="y", length=0)
    mark_depth(axes, layers)
    bar = figure.colorbar(image, cax=bar_axes, orientation="horizontal", format="{x:g}")
    bar.set_ticks(np.linspace(low, high, 5).round(6))
    ends = f"← more {second}          more {first} →"
    bar.set_label(f"mean w of the layer's kernels (scale: {neutral:.4g} ± {half:g})\n{ends}")
    return figure


@book_style
def weight_spread(weights: Mapping[str, ArrayLike], first: str, second: str, neutral: float = 0.5) -> Figure:
    """Median and 5-95 % band of each layer's merge weights over depth, and the histogram of all kernels.

    Args:
        weights: {layer name: w of its kernels, shape [kernels]}, in forward order; w is the share of first.
        first, second: names of the sources that w = 1 and w = 0 take.
        neutral: the weight at which all sources count alike, 1/n for n of them.

    Raises:
        ValueError: no layers, or weights that are not finite vectors.
    """
    vectors = _vectors(weights)
    low, median, high = np.array([np.quantile(w, [0.05, 0.5, 0.95]) for w in vectors.values()]).T
    kernels = np.concatenate(list(vectors.values()))
    figure = BookFigure(figsize=(8, 3.2), layout="constrained")
    depth, histogram = figure.subplots(1, 2, sharey=True, width_ratios=[5, 1])
    colour = APPROACH_COLOURS["medmerge"]
    depth.vlines(range(len(vectors)), low, high, color=colour, alpha=0.3, linewidth=250 / len(vectors))
    depth.plot(median, "o-", color=colour, markersize=2.5, linewidth=0.5)
    depth.set_title("dot: median of the layer's kernels, band: 5-95 %", pad=26)
    depth.set_ylabel(f"merge weight w\n← {second}          {first} →")
    histogram.hist(kernels, min(40, 4 + len(kernels) // 8), orientation="horizontal", color=colour)
    histogram.set(xlabel=f"of {len(kernels):,} kernels")
    histogram.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    for axes in (depth, histogram):
        axes.axhline(neutral, color=_GREY, linewidth=0.8, linestyle="--")
    mark_depth(depth, list(vectors))
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


def half_range(means: NDArray, neutral: float = 0.5) -> float:
    """Largest deviation from ``neutral``, rounded up to half a unit of its first digit, at least 0.01."""
    deviation = max(float(np.abs(means - neutral).max()), 0.01)
    step = 10 ** math.floor(math.log10(deviation)) / 2
    return math.ceil(round(deviation / step, 6)) * step


def _vectors(weights: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float64]]:
    """Kernel weights as checked float vectors."""
    vectors = {layer: np.asarray(w, dtype=np.float64) for layer, w in weights.items()}
    wrong = [layer for layer, w in vectors.items() if w.ndim != 1 or not w.size or not np.isfinite(w).all()]
    if wrong or not vectors:
        raise ValueError(f"weights has {len(vectors)} layers, wrong: {wrong}: each needs a finite vector [kernels]")
    return vectors
