"""Curves over epochs and along lines, confusion matrices and counts of classes."""

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from medmerge.pages.figures.style import (
    DARK,
    GROUND,
    LOOKS,
    PALE,
    BookFigure,
    approach_colour,
    book_style,
    canvas,
    on_phone,
    required,
)
from medmerge.pages.typeset import number
from medmerge.study.records import score_column

_LINE_STYLES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
_PHASES = {"linear_probe": "linear probe", "fine_tune": "fine-tuning"}
_SCORES = {"val_macro_f1": "macro F1", "val_macro_auroc": "macro AUROC"}


@book_style
def learning_curves(history: pd.DataFrame) -> BookFigure:
    """Validation score and losses over the epochs: a row of small panels a run, each phase on axes of its own.

    The score is macro F1, or macro AUROC if the history has it (multi-label). All panels below each other share their
    axes. A line a seed; the last phase's epoch with the best score (the first of equals) has a dot.

    Args:
        history: a row per run, seed, phase and epoch, with columns run (label such as "MedMerge ImageNet +
            HAM10K"), approach, seed, phase ("linear_probe" or "fine_tune"), epoch (from 1 in each phase),
            train_loss, val_loss (nats) and val_macro_f1 or val_macro_auroc (in [0, 1]).

    Raises:
        ValueError: no rows, or scores that are not numbers.
    """
    score = score_column(history)
    runs = list(required(history, ["train_loss", "val_loss", score]).groupby("run", sort=False))
    phases = [phase for phase in _PHASES if phase in set(history.phase)]
    kinds = [(phase, column) for phase in phases for column in (score, "val_loss")]
    figure, grid = _small_panels(len(runs), len(kinds))
    for line, (run, rows) in zip(grid, runs, strict=True):
        _name(line[0], run)
        for axes, (phase, column) in zip(line, kinds, strict=True):
            part = rows[rows.phase == phase].sort_values("epoch", kind="stable")
            if part.empty:
                axes.set_axis_off()
            dotted = column == score and phase == max(rows.phase, key=list(_PHASES).index)
            for seed, curve in part.groupby("seed"):
                _curve(axes, curve, column, f"{phase}/{run}/{seed}", dotted)
    for k, (phase, column) in enumerate(kinds):
        what = _SCORES.get(column, "loss")
        if on_phone():
            for line in grid:
                next(axes for axes in line[k % 2 :: 2] if axes.axison).set_ylabel(what)
        else:
            grid[0, k].set_title(f"{_PHASES[phase]}:\n{what}")
        grid[-1, k].set_xlabel("epoch" if not on_phone() else f"epoch of\n{_PHASES[phase]}" * (k % 2))
    best = history.groupby("run", sort=False)[score].max()
    figure.alt = "Best validation score: " + ", ".join(f"{run} {number(one)}" for run, one in best.items()) + "."
    return figure


def _small_panels(runs: int, kinds: int) -> tuple[BookFigure, np.ndarray]:
    """Axes ``[runs, kinds]``, scores and losses in turn, which share theirs; two rows a run on a phone."""
    halves = kinds // 2 if on_phone() else 1
    figure = canvas(0.9 + (1.05 if on_phone() else 0.85) * runs * halves)
    grid = figure.subplots(runs * halves, kinds // halves, squeeze=False)
    if halves == 2:
        grid = grid.reshape(runs, 2, 2).swapaxes(1, 2).reshape(runs, 4)
    for (i, k), axes in np.ndenumerate(grid):
        if (i, k) != (0, k % 2):
            axes.sharey(grid[0, k % 2])
        if i:
            axes.sharex(grid[0, k])
        axes.tick_params(labelbottom=i == runs - 1 and (k % 2 == 1 or halves == 1), length=2)
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.grid(axis="y")
    return figure, grid


def _name(axes: Axes, run: str) -> None:
    """A run's name left of its row, or above it on a phone."""
    if on_phone():
        axes.set_title(run)
    else:
        where = {"xycoords": "axes fraction", "xytext": (-32, 0), "textcoords": "offset points", "ha": "right"}
        axes.annotate(textwrap.fill(run, 14), (0, 0.5), va="center", **where)


def _curve(axes: Axes, curve: pd.DataFrame, column: str, name: str, dotted: bool) -> None:
    """A seed's curve; of a loss that of training too, pale; a dot at the best epoch if wanted."""
    look = {"color": approach_colour(curve.approach.iloc[0]), "linewidth": 1.1}
    look["marker"] = "." if len(curve) == 1 else None
    axes.plot(curve.epoch, curve[column], gid=f"{column}/{name}", **look)
    if column == "val_loss":
        axes.plot(curve.epoch, curve.train_loss, gid=f"train_loss/{name}", alpha=0.4, **look)
    if dotted:
        best = curve.loc[curve[column].idxmax()]
        dot = {"markeredgecolor": GROUND, "markersize": 6, "zorder": 4, "gid": f"best/{name}"}
        axes.plot(best.epoch, best[column], "o", color=look["color"], **dot)


@book_style
def curves(
    table: pd.DataFrame,
    x: str,
    y: str,
    *,
    xlabel: str,
    ylabel: str,
    hue: str = "",
    style: str = "",
    panel: str = "",
    scatter: bool = False,
) -> BookFigure:
    """A line for every level of ``hue`` (colour and marker) and ``style``, a panel a level of ``panel``.

    The figure's ``alt`` says where each line begins, and its greatest value.

    Args:
        table: a line a point, in the order in which they are joined.
        x, y, xlabel, ylabel: columns of the axes, and what they are.
        scatter: points alone, on logarithmic axes; those that are not above 0 have no place there.

    Raises:
        ValueError: no lines, or values that are not finite.
    """
    table = required(table, [y])
    table = table.assign(**{f"_{name}": table[c].astype(str) if c else "" for name, c in
                            (("hue", hue), ("style", style), ("panel", panel))})  # fmt: skip
    levels, styles = (list(dict.fromkeys(table[name])) for name in ("_hue", "_style"))
    panels = list(table.groupby("_panel", sort=False))
    columns = 1 if on_phone() else min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = canvas(0.8 + 2.4 * rows)
    found, said = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten(), []
    for axes, (title, part) in zip(found, panels, strict=False):
        for (level, kind), own in part.groupby(["_hue", "_style"], sort=False):
            colour, marker = LOOKS[levels.index(level) % len(LOOKS)]
            name = ", ".join(filter(None, (level, kind)))
            own = own[(own[[x, y]] > 0).all(axis=1)] if scatter else own
            line = "" if scatter else _LINE_STYLES[styles.index(kind)]
            look = {"color": colour, "marker": marker, "linestyle": line}
            axes.plot(own[x], own[y], markersize=3, linewidth=1, label=name, **look)
            where = " ".join(filter(None, (title, name)))
            first, most = (number(one, ".3g") for one in (own[y].iloc[0], own[y].max())) if len(own) else "  "
            said.append(f"{where} from {first}, at most {most}" if len(own) else where)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if scatter:
            axes.set(xscale="log", yscale="log")
        axes.set_title(title)
        axes.grid(axis="y")
    for axes in found[len(panels) :]:
        axes.remove()
    if hue or style:
        figure.legend(*found[0].get_legend_handles_labels(), loc="outside upper left", ncols=1 if on_phone() else 3)
    figure.alt = f"{ylabel} over {xlabel}: {'; '.join(said)}."
    return figure


@book_style
def confusion(labels: ArrayLike, predicted: ArrayLike, classes: Sequence[str]) -> BookFigure:
    """Confusion matrix: per cent of the true class (colour) and, but on a phone, images; cells without any are blank.

    Args:
        labels, predicted: class indices, integers of shape [N] in 0 .. K-1.
        classes: the K class names.
    """
    labels, predicted, k = np.asarray(labels), np.asarray(predicted), len(classes)
    counts = np.bincount(labels * k + predicted, minlength=k * k).reshape(k, k)
    images = counts.sum(axis=1)
    shares = counts / np.maximum(images, 1)[:, None]
    figure = canvas(1.3 + (0.34 if on_phone() else 0.42) * k)
    axes = figure.subplots()
    axes.imshow(shares, "Blues", vmin=0, vmax=1, aspect="auto", interpolation="none")
    for (i, j), n in np.ndenumerate(counts):
        share = number(100 * shares[i, j], ".0f")
        text = "" if not n else share if on_phone() else f"{share}\u00a0%\n{n:,}"
        axes.text(j, i, text, ha="center", va="center", color=PALE if shares[i, j] > 0.5 else DARK)
    axes.set(xlabel="predicted", ylabel="true", title="per cent of the true class" + ", images" * (not on_phone()))
    names = [f"{textwrap.fill(name, 16)} ({n:,})" for name, n in zip(classes, images, strict=True)]
    axes.set_yticks(range(k), names)
    axes.set_xticks(range(k), classes, rotation=60 if on_phone() else 40, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    told = ", ".join(f"{name} {number(shares[i, i], '.0%')}" for i, name in enumerate(classes))
    figure.alt = f"Confusion matrix. Recognised: {told}."
    return figure


@book_style
def class_counts(counts: pd.DataFrame) -> BookFigure:
    """Images of each class in each split, on a log scale if a split's largest is 20 times its smallest.

    Args:
        counts: a row per class (index: names), a column per split, numbers of images >= 0.
    """
    values = counts.to_numpy(float)
    smallest = np.where(values > 0, values, np.inf).min(axis=0)
    long_tailed = bool((values.max(axis=0) >= 20 * smallest).any())
    start = 0.7 if long_tailed else 0.0  # no bar on a log scale begins at 0
    classes, splits = values.shape
    figure = canvas(1.0 + classes * (0.12 + 0.17 * splits))
    axes = figure.subplots()
    for j, split in enumerate(counts):
        at = np.arange(classes) + 0.85 * (j - (splits - 1) / 2) / splits
        look = {"color": LOOKS[j % len(LOOKS)][0], "label": str(split), "log": long_tailed}
        axes.barh(at, np.maximum(values[:, j] - start, 0), 0.85 / splits, left=start, **look)
        for y, n in zip(at, values[:, j], strict=True):
            offset = {"xytext": (2, 0), "textcoords": "offset points"}
            axes.annotate(f"{n:,.0f}", (max(n, start), y), va="center", **offset)
    axes.set(xlabel="images (log scale)" if long_tailed else "images", ylim=(classes - 0.4, -0.6))
    room = 1.25 if on_phone() else 1.08
    axes.set_xlim((start, 3 * values.max()) if long_tailed else (0, room * max(values.max(), 1)))
    axes.set_yticks(range(classes), [textwrap.fill(str(name), 16) for name in counts.index])
    axes.grid(axis="x")
    figure.legend(loc="outside upper left", ncols=splits)
    return figure
