"""Figures of learnt merging weights: the paper's Fig. 2 and Fig. 4, agreement of seeds, displacement, the shift.

Each figure's ``alt`` says what it shows, with its main numbers.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from medmerge.pages.agreement import layer_agreement, seed_agreement
from medmerge.pages.figures.depth import depth_heatmap, half_range, mark_depth
from medmerge.pages.figures.style import APPROACH_COLOURS, BookFigure, book_style
from medmerge.pages.kernelstats import alternation, layer_kinds, mean_weights, merged_rows
from medmerge.study.records import Record

_GREY = "0.35"
_KINDS = {
    **{"1×1 bottleneck": ("#0173B2", "o"), "1×1 conv1": ("#0173B2", "o"), "1×1 conv3": ("#56B4E9", "o")},
    **{"3×3 growth": ("#D55E00", "s"), "3×3 conv2": ("#D55E00", "s"), "3×3 conv1": ("#CA9161", "s")},
}
_OTHERS = [("#029E73", "D"), ("#7A7A7A", "^"), ("#CC78BC", "v"), ("#999933", "P")]


@book_style
def target_heatmap(records: Sequence[Record]) -> BookFigure:
    """Mean w of each convolution over depth, a row a target, averaged over seeds (the paper's Fig. 2).

    Args:
        records: of one backbone, any number of studies; those that merged nothing are left out. Rows with one target
            are told apart by study and row.

    Raises:
        RecordError: no merged run.
        ValueError: several backbones.
    """
    rows = list(merged_rows(records).items())
    names = [runs[0].run["data"]["name"] for _, runs in rows]
    if len(set(names)) < len(names):
        names = ["/".join((folder.parts[-3], folder.parts[-1])) for folder, _ in rows]
    labels = [_seeded(name, len(runs)) for name, (_, runs) in zip(names, rows, strict=True)]
    weights = {label: mean_weights(runs) for label, (_, runs) in zip(labels, rows, strict=True)}
    sources = [runs[0].ends for _, runs in rows]
    one_pair = len(set(sources)) == 1
    figure = depth_heatmap.__wrapped__(
        weights, *(sources[0] if one_pair else ("the row's source 1", "the row's source 0"))
    )
    axes = figure.axes[0]
    for y, (first, second) in enumerate(() if one_pair else sources):
        axes.annotate(f"0: {second}\n1: {first}", (1.01, y), xycoords=axes.get_yaxis_transform(), va="center")
    means = {label: [w.mean() for w in row.values()] for label, row in weights.items()}
    each = "; ".join(
        f"{label}: {_leaning(values, *pair)}" for (label, values), pair in zip(means.items(), sources, strict=True)
    )
    half = half_range(np.array(list(means.values())))
    figure.alt = f"Heatmap of mean w by convolution, colours from {0.5 - half:g} to {0.5 + half:g} around 0.5. {each}."
    return figure


@book_style
def kinds_along_depth(weights: Mapping[str, ArrayLike], backbone: str, first: str, second: str) -> BookFigure:
    """Mean w of each convolution over depth as a heatmap and as dots by kind of layer (the paper's Fig. 4).

    The title gives the difference of 1×1 and 3×3 convolutions and the autocorrelation of
    :func:`~medmerge.pages.kernelstats.alternation`, where the architecture has both.

    Args:
        weights: w by layer, ``[kernels]``, in forward order; w is the share of first.
        backbone: the architecture's name.
        first, second: names of what w = 1 and w = 0 take, such as "APTOS" and "zeros".

    Raises:
        ValueError: as for :func:`~medmerge.pages.kernelstats.layer_kinds`.
    """
    table = layer_kinds(weights, backbone)
    means, found = table["mean"].to_numpy(), "no pairs of 1×1 and 3×3 convolutions to compare"
    if _alternates(table):
        a = alternation(weights, backbone)
        found = (
            f"1×1 minus 3×3: {a.difference:+.4f} [{a.low:+.4f}, {a.high:+.4f}], {a.units} units; autocorrelation "
            f"{a.autocorrelation:+.2f} (p = {a.p_value:.2g}), in blocks {a.within_blocks:+.2f} (p = {a.p_within:.2g})"
        )
    half = half_range(means)
    figure = BookFigure(figsize=(8, 4.2), layout="constrained")
    strip, dots, bar_axes = figure.subplots(3, 1, height_ratios=[0.5, 2.6, 0.13])
    image = strip.imshow(means[None], "PuOr", aspect="auto", interpolation="nearest", vmin=0.5 - half, vmax=0.5 + half)
    mark_depth(strip, list(table["layer"]))
    strip.set(yticks=[], xticks=[], xlabel="")
    dots.axhline(0.5, color=_GREY, linewidth=0.8, linestyle="--")
    dots.plot(means, color="0.8", linewidth=0.8, zorder=1, gid="depth")
    others = iter(_OTHERS)
    for kind in dict.fromkeys(table["kind"]):
        colour, marker = _KINDS.get(kind) or next(others, ("#332288", "*"))
        at = np.flatnonzero(table["kind"] == kind)
        dots.plot(at, means[at], marker, color=colour, markersize=3.5, label=f"{kind} ({len(at)})", gid=f"kind/{kind}")
    dots.set(ylim=(0.5 - half, 0.5 + half), ylabel=f"mean w\n← {second}          {first} →")
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, len(means)) if len(means) <= 12 * step)
    dots.set_xticks(range(step - 1, len(means), step), range(step, len(means) + 1, step))
    dots.set(xlabel=f"convolution in forward order ({len(means)} in all)", xlim=(-0.5, len(means) - 0.5))
    dots.set_title(found, fontsize=8)
    bar = figure.colorbar(image, cax=bar_axes, orientation="horizontal", format="{x:g}")
    bar.set_ticks(np.linspace(0.5 - half, 0.5 + half, 5).round(6))
    bar.set_label(f"mean w of the layer's kernels (scale: 0.5 ± {half:g}); ← more {second}    more {first} →")
    figure.legend(loc="outside upper right", ncols=3)
    figure.alt = f"Mean w by convolution of {backbone}, by kind of layer; {_leaning(means, first, second)}. {found}."
    return figure


@book_style
def agreement_of_seeds(runs: Mapping[object, Mapping[str, ArrayLike]]) -> BookFigure:
    """Correlation of two seeds' merging weights: within each layer over depth, and over all kernels beside the null.

    Left, the mean over pairs of seeds of :func:`~medmerge.pages.agreement.layer_agreement`; the band is the 95 % range
    of a
    correlation between unrelated kernels, ± 1.96 / √(kernels - 1). Right,
    :func:`~medmerge.pages.agreement.seed_agreement`
    of every pair: all kernels (dot), layers' means alone (range after shuffling kernels within layers).

    Args:
        runs: w by layer of each seed.

    Raises:
        ValueError: as for :func:`~medmerge.pages.agreement.seed_agreement`.
    """
    pairs, layers = seed_agreement(runs), layer_agreement(runs)
    by_layer = layers.groupby("layer", sort=False)
    values, kernels = by_layer["pearson"].mean(), by_layer["kernels"].first().to_numpy()
    names = [f"{row.one} and {row.other}" for row in pairs.itertuples()]
    figure = BookFigure(figsize=(8, 3.2), layout="constrained")
    depth, overall = figure.subplots(1, 2, width_ratios=[3, 2])
    band = 1.96 / np.sqrt(np.maximum(kernels - 1, 1))
    at = np.arange(len(values))
    depth.fill_between(at, -np.minimum(band, 1), np.minimum(band, 1), color="0.9", step="mid", gid="unrelated")
    depth.axhline(0, color=_GREY, linewidth=0.8)
    depth.plot(at, values, "o-", color=APPROACH_COLOURS["medmerge"], markersize=2.5, linewidth=0.5, gid="layers")
    mark_depth(depth, list(values.index))
    depth.set(ylabel="correlation of kernels", ylim=(-1.05, 1.05))
    depth.set_title("within a layer (grey: unrelated, 95 %)", pad=26)
    for y, row in enumerate(pairs.itertuples()):
        overall.plot([row.null_low, row.null_high], [y, y], color="0.7", linewidth=5, gid=f"null/{y}")
        overall.plot(row.pearson, y, "o", color=APPROACH_COLOURS["medmerge"], gid=f"pearson/{y}")
        overall.plot(row.icc, y, "|", color="black", markersize=10, gid=f"icc/{y}")
    overall.set_yticks(range(len(pairs)), names)
    overall.set(xlabel="correlation of all kernels", ylim=(len(pairs) - 0.5, -0.5))
    overall.set_title("dot: Pearson, line: ICC\ngrey: kernels shuffled within layers")
    overall.grid(axis="x")
    overall.margins(x=0.1)
    each = "; ".join(
        f"seeds {name}: Pearson {row.pearson:.2f}, ICC {row.icc:.2f}, shuffled within layers {row.null_low:.2f} to "
        f"{row.null_high:.2f}"
        for name, row in zip(names, pairs.itertuples(), strict=True)
    )
    figure.alt = f"Correlation of merging weights between seeds, by layer and over all kernels. {each}."
    return figure


@book_style
def displacement_by_rate(table: pd.DataFrame) -> BookFigure:
    """``|w - 0.5|`` against w's learning rate, on log axes, beside what AdamW could do.

    Args:
        table: as :func:`~medmerge.pages.kernelstats.displacements` gives it: columns w_lr, mean, largest, budget,
            reach. Runs whose w did not learn (w_lr 0) have no place on a log axis and are left out.

    Raises:
        ValueError: no run whose w learnt.
    """
    table = table[table["w_lr"] > 0].sort_values("w_lr", kind="stable") if len(table) else table
    if table.empty:
        raise ValueError("the table has no run with w_lr above 0: give at least one whose w learnt")
    figure = BookFigure(figsize=(8, 3.6), layout="constrained")
    axes, colour = figure.subplots(), APPROACH_COLOURS["medmerge"]
    for name, look in {
        "reach": ("_", "0.6", "largest that any gradients allow"),
        "budget": ("_", "black", "budget: learning rate × steps"),
        "largest": ("^", colour, "largest |w - 0.5|"),
        "mean": ("o", colour, "mean |w - 0.5|"),
    }.items():
        marker, shade, label = look
        moved = table[table[name] > 0]
        size = 14 if marker == "_" else 5
        axes.plot(moved["w_lr"], moved[name], marker, color=shade, markersize=size, label=label, gid=name)
    axes.set(xscale="log", yscale="log", xlabel="learning rate of w", ylabel="displacement of w from 0.5")
    axes.margins(x=0.15)
    axes.grid()
    figure.legend(loc="outside right upper")
    ends = table.iloc[[0, -1]] if len(table) > 1 else table
    each = "; ".join(
        f"at {row.w_lr:g} mean {row.mean:.3g} and largest {row.largest:.3g} of a budget of {row.budget:.3g}"
        for row in ends.itertuples()
    )
    figure.alt = f"Displacement of w from 0.5 against its learning rate, {len(table)} runs: {each}."
    return figure


@book_style
def shift_against_ft(table: pd.DataFrame) -> BookFigure:
    """Shift of w against the FT difference of its sources, a dot a study; the claim puts all into the shaded corners.

    Args:
        table: as :func:`~medmerge.pages.shift.shift_table` gives it.

    Raises:
        ValueError: no rows.
    """
    if table.empty:
        raise ValueError("the table has no rows: give at least one study")
    figure = BookFigure(figsize=(8, 3.8), layout="constrained")
    axes, colour = figure.subplots(), APPROACH_COLOURS["medmerge"]
    for y, row in enumerate(table.itertuples()):
        axes.plot([row.low, row.high], [row.shift] * 2, color=colour, linewidth=1.5, gid=f"interval/{y}")
        axes.plot([row.difference] * 2, [row.shift_low, row.shift_high], color=colour, linewidth=1.5, gid=f"seeds/{y}")
        axes.plot(row.difference, row.shift, "o", color=colour, gid=f"study/{y}")
        text, offset = f"{row.study}\n{row.first} − {row.second}", {"xytext": (5, 5), "textcoords": "offset points"}
        axes.annotate(text, (row.difference, row.shift), fontsize=7, **offset)
    x, y = 1.15 * table[["low", "high"]].abs().to_numpy().max(), 1.6 * _furthest(table)
    axes.set(xlim=(-x, x), ylim=(-y, y))
    for sign in (1, -1):
        axes.fill_between([0, sign * x], 0, sign * y, color="0.95", zorder=0)
    axes.axhline(0, color=_GREY, linewidth=0.8)
    axes.axvline(0, color=_GREY, linewidth=0.8)
    axes.set_xlabel("macro F1 of FT from the first source − from the second (bar: 95 % interval over test images)")
    axes.set_ylabel("mean w − 0.5 (bar: range of seeds)")
    same, decided = int(table["same_sign"].sum()), int(table["decided"].sum())
    figure.alt = (
        f"Shift of w against the difference of fine-tuning from the two sources: one sign in {same} of {len(table)} "
        f"studies; the difference's interval leaves out 0 in {decided}."
    )
    return figure


def _furthest(table: pd.DataFrame) -> float:
    return max(float(table[["shift_low", "shift_high"]].abs().to_numpy().max()), 1e-4)


def _alternates(table: pd.DataFrame) -> bool:
    """Whether two units or more have both 1×1 and 3×3 convolutions."""
    inside = table[(table["unit"] != "") & ~table["kind"].str.endswith("downsample")]
    both = inside.groupby("unit")["size"].agg(lambda sizes: {"1×1", "3×3"} <= set(sizes))
    return int(both.sum()) > 1


def _seeded(name: str, seeds: int) -> str:
    return f"{name} ({seeds} seed{'s' * (seeds > 1)})"


def _leaning(means: Sequence[float] | NDArray, first: str, second: str) -> str:
    """Which source the layers lean to, in words."""
    values = np.asarray(means)
    towards = first if values.mean() > 0.5 else second
    return f"mean {values.mean():.4f}, from {values.min():.4f} to {values.max():.4f}, leaning to {towards}"
