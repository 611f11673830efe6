"""Figures along the depth of a network: the paper's Fig. 2 and Fig. 4, and whatever else has a value a layer."""

import itertools
import re
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from medmerge.pages.figures.style import (
    APPROACH_COLOURS,
    GROUND,
    LAYERS,
    LOOKS,
    MUTED,
    BookFigure,
    book_style,
    canvas,
    legend,
    on_phone,
    required,
    w_scale,
)
from medmerge.pages.typeset import number, span
from medmerge.pages.weights import layer_kinds, mean_weights, merged_rows
from medmerge.study import names
from medmerge.study.records import Record

_BLOCKS = {"denseblock": "block ", "transition": "T", "layer": "layer ", "encoder_layer_": "layer "}


@book_style
def depth_heatmap(
    weights: Mapping[str, Mapping[str, ArrayLike]], first: str, second: str, neutral: float = 0.5
) -> BookFigure:
    """Mean merge weight of each layer's kernels over depth, one row per run (the paper's Fig. 2 and Fig. 4).

    The colour scale is the same on every page (:data:`~medmerge.pages.figures.style.LAYERS`).

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
    labels = [textwrap.fill(label, 16 if on_phone() else 32) for label in weights]
    lines = max(label.count("\n") for label in labels) + 1
    figure = canvas(1.35 + (0.15 + 0.17 * lines) * len(weights))
    axes = figure.subplots()
    scale = {"vmin": neutral - LAYERS, "vmax": neutral + LAYERS}
    image = axes.imshow(means, "PuOr", aspect="auto", interpolation="none", **scale)
    axes.set_yticks(range(len(weights)), labels)
    axes.hlines(np.arange(1, len(weights)) - 0.5, -0.5, len(layers) - 0.5, color=GROUND, linewidth=3)
    axes.tick_params(axis="y", length=0)
    mark_depth(axes, layers)
    w_scale(figure, image, LAYERS, neutral, first, second, ax=axes, aspect=40, shrink=0.8)
    leaning = [f"{label} {row.mean():.4f}" for label, row in zip(weights, means, strict=True)]
    figure.alt = f"Heatmap of mean w by layer, from {second} (low) to {first} (high). Means: {', '.join(leaning)}."
    return figure


@book_style
def weight_spread(weights: Mapping[str, ArrayLike], first: str, second: str, neutral: float = 0.5) -> BookFigure:
    """Median and 5-95 % band of each layer's merge weights over depth, and the histogram of all kernels.

    Args:
        weights: {layer name: w of its kernels, shape [kernels]}, in forward order; w is the share of first.
        first, second: names of the sources that w = 1 and w = 0 take.
        neutral: the weight at which all sources count alike, 1/n for n of them.
    """
    low, median, high = np.array([np.quantile(w, [0.05, 0.5, 0.95]) for w in weights.values()]).T
    kernels = np.concatenate([np.ravel(w) for w in weights.values()])
    figure = canvas(3)
    depth, histogram = figure.subplots(1, 2, sharey=True, width_ratios=[3 if on_phone() else 5, 1])
    colour, wide = APPROACH_COLOURS["medmerge"], (80 if on_phone() else 250) / len(weights)
    depth.vlines(range(len(weights)), low, high, color=colour, alpha=0.3, linewidth=wide)
    depth.plot(median, "o-", color=colour, markersize=2.5, linewidth=0.5)
    _over(depth, "dot: median of the layer's kernels, band: 5 to 95 %")
    depth.set_ylabel(f"w: ← {second} \u2003 {first} →")
    histogram.hist(kernels, min(40, 4 + len(kernels) // 8), orientation="horizontal", color=colour)
    histogram.set(xlabel=f"of {len(kernels):,}\nkernels")
    histogram.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    for axes in (depth, histogram):
        axes.axhline(neutral, color=MUTED, linewidth=0.8, linestyle="--")
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
        title: over the first panel.
        what: what a line of the table is, in a word or two.

    Raises:
        ValueError: no lines, or values that are not finite.
    """
    table = required(table, list(panels))
    layers = list(dict.fromkeys(table["layer"]))
    levels = list(table.groupby(hue, sort=False)) if hue else [("", table)]
    figure = canvas(1.4 + 1.6 * len(panels) + 0.2 * on_phone())
    found = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    said = []
    for axes, (column, label) in zip(found, panels.items(), strict=True):
        foot = table[column][table[column] > 0].min() / 2 if column in log else -np.inf
        for (level, part), (colour, marker) in zip(levels, itertools.cycle(LOOKS), strict=False):
            at = part["layer"].map(layers.index)
            if band and axes is found[0]:
                low, high = (part[name].clip(lower=foot) for name in band)
                axes.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
            look = {"color": colour, "linewidth": 0.7, "markersize": 3}
            axes.plot(at, part[column].clip(lower=foot), marker=marker, label=str(level), **look)
            values = f"{number(part[column].median(), '.3g')} ({span(part[column].min(), part[column].max(), '.3g')})"
            said.append(f"{label} {level} {values}".replace("\n", " "))
        if column in log:
            axes.set_yscale("log")
            axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if column in (lines or {}):
            axes.axhline(lines[column], color=MUTED, linewidth=0.8, linestyle="--")
        axes.set_ylabel(label)
    _over(found[0], title)
    mark_depth(found[0], layers)
    found[0].set_xlabel("")
    found[-1].set_xlabel(f"{what} in forward order ({len(layers)} in all)")
    if hue:
        legend(figure, found[0], 5)
    figure.alt = f"Along depth, median and range over layers: {'; '.join(said)}. {title}".strip()
    return figure


def _over(axes: Axes, title: str) -> None:
    """A title above the names of blocks."""
    axes.set_title(textwrap.fill(title, 40) if on_phone() else title, pad=18 if on_phone() else 28)


def mark_depth(axes: Axes, layers: Sequence[str]) -> None:
    """Number the layers along the axes, and mark the blocks of a DenseNet, ResNet or ViT above them.

    Args:
        axes: has the layers at x = 0, 1, 2, ...
        layers: their names, in forward order.
    """
    ticks = 6 if on_phone() else 12
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, len(layers)) if len(layers) <= ticks * step)
    axes.set_xticks(range(step - 1, len(layers), step), range(step, len(layers) + 1, step))
    axes.set(xlabel=f"merged layer in forward order ({len(layers)} in all)", xlim=(-0.5, len(layers) - 0.5))
    found = [re.search(r"(?:^|\.)(denseblock|transition|layer|encoder_layer_)(\d+)\.", name) for name in layers]
    kinds = {name: word[0].upper() for name, word in _BLOCKS.items()} if on_phone() else _BLOCKS
    named = (
        f"{kinds[match[1]]}{match[2]}" if match else "end" if any(found[:i]) else "stem"
        for i, match in enumerate(found)
    )
    letter = 0.03 if on_phone() else 0.012  # its share of the axes
    across, start = axes.get_xaxis_transform(), 0
    for block, group in itertools.groupby(named if any(found) else ()):
        end = start + len(list(group))
        if (fits := (end - start) / len(layers) >= letter * len(block)) or not on_phone():
            where = {"xytext": (0, 3 if fits else 14), "textcoords": "offset points", "ha": "center"}
            axes.annotate(block, ((start + end - 1) / 2, 1), xycoords=across, color=MUTED, **where)
        axes.vlines(start - 0.5, 0, 1, transform=across, color=MUTED, linewidth=0.6)
        start = end


def target_heatmap(records: Sequence[Record]) -> BookFigure:
    """Mean w of each convolution over depth, a row a study, averaged over seeds (the paper's Fig. 2).

    Args:
        records: of one backbone, any number of studies; those that merged nothing are left out. A study's rows are
            told apart by their names.

    Raises:
        RecordError: no merged run.
        ValueError: several backbones.
    """
    rows = list(merged_rows(records).items())
    titles = [names.pair(folder.parts[-3]) for folder, _ in rows]
    if len(set(titles)) < len(titles):
        titles = [f"{name}: {runs[0].label}" for name, (_, runs) in zip(titles, rows, strict=True)]
    ends = {tuple(map(names.title, runs[0].ends)): None for _, runs in rows}
    weights = {}
    for name, (_, runs) in zip(titles, rows, strict=True):
        of = f": {' and '.join(map(names.title, runs[0].ends))}" if len(ends) > 1 else ""
        weights[f"{name} ({len(runs)} seed{'s' * (len(runs) > 1)}){of}"] = mean_weights(runs)
    return depth_heatmap(weights, *(next(iter(ends)) if len(ends) == 1 else ("of the first", "of the second")))


def map_by_kind(weights: Mapping[str, ArrayLike], backbone: str, first: str, second: str) -> BookFigure:
    """Mean w of each convolution over depth (the paper's Fig. 4), and below, for each size of kernels, of the nearest
    convolution before that has it: so that those of a block stand below each other.

    Args:
        weights: w by layer, ``[kernels]``, in forward order; w is the share of first.
        backbone: the architecture's name.
        first, second: names of what w = 1 and w = 0 take, such as "APTOS" and "zeros".

    Raises:
        ValueError: as for :func:`~medmerge.pages.weights.layer_kinds`.
    """
    table = layer_kinds(weights, backbone).set_index("layer")
    rows = {"all layers": dict(weights)}
    for size, count in table["size"].value_counts().items():
        if 1 < count < len(table):
            nearest = table["mean"].where(table["size"] == size).ffill().bfill()
            rows[f"{size} alone"] = {name: [w] for name, w in nearest.items()}
    return depth_heatmap(rows, first, second)
