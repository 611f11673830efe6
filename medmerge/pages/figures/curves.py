"""Curves over epochs and along lines, confusion matrices and counts of classes."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from medmerge.pages.figures.style import APPROACH_NAMES, LOOKS, BookFigure, approach_colour, book_style
from medmerge.study.records import score_column

_LINE_STYLES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
_PHASES = {"linear_probe": 0, "fine_tune": 1}
_SCORES = {"val_macro_f1": "macro F1", "val_macro_auroc": "macro AUROC"}
_LOSSES = {"val_macro_f1": "cross-entropy", "val_macro_auroc": "binary cross-entropy"}
_GREY = "0.35"


@book_style
def learning_curves(history: pd.DataFrame) -> Figure:
    """Validation score (top) and losses (bottom) of each run and seed over the epochs of both phases.

    The score is macro F1, or macro AUROC if the history has it (multi-label). Epochs are counted on from the
    linear probe to fine-tuning, with a line at the change. The last phase's epoch with the best score (the
    first of equals) has a dot. The line style follows the source: what `run` says after the approach's name.

    Args:
        history: a row per run, seed, phase and epoch, with columns run (label such as "MedMerge ImageNet +
            HAM10K"), approach, seed, phase ("linear_probe" or "fine_tune"), epoch (from 1 in each phase),
            train_loss, val_loss (cross-entropy, nats) and val_macro_f1 or val_macro_auroc (in [0, 1]).

    Raises:
        ValueError: no rows, a column missing, or scores that are not numbers.
    """
    score = score_column(history)
    numbers = ["train_loss", "val_loss", score]
    history = _continued(_required(history, ["run", "approach", "seed", "phase", "epoch", *numbers], numbers))
    styles = _line_styles(history)
    figure = BookFigure(figsize=(8, 5.6), layout="constrained")
    scores, losses = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    for (run, approach), rows in history.groupby(["run", "approach"], sort=False):
        look = {"color": approach_colour(approach), "linestyle": styles[run, approach]}
        for seed, curve in rows.groupby("seed"):
            line = {**look, "linewidth": 1.1, "marker": "." if len(curve) == 1 else None}
            scores.plot(curve.moment, curve[score], gid=f"score/{run}/{seed}", **line)
            losses.plot(curve.moment, curve.val_loss, gid=f"val/{run}/{seed}", **line)
            losses.plot(curve.moment, curve.train_loss, gid=f"train/{run}/{seed}", alpha=0.4, **line)
            best = curve.loc[curve[score].where(curve.turn == curve.turn.max()).idxmax()]
            dot = {"markeredgecolor": "white", "markersize": 6, "zorder": 4, "gid": f"best/{run}/{seed}"}
            scores.plot(best.moment, best[score], "o", color=look["color"], **dot)
        scores.plot([], label=run, **look)
    scores.set(title="Validation (dot: best epoch of the last phase)", ylabel=_SCORES[score])
    losses.set(title="Loss (strong: validation, pale: training)", ylabel=_LOSSES[score], xlabel="epoch")
    losses.set_xlim(0, history.moment.max() * 1.02 + 0.5)
    losses.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _mark_phases(scores, losses, history)
    figure.legend(loc="outside right upper")
    return figure


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
    table = _required(table, [x, y], [y])
    table = table.assign(**{f"_{name}": table[c].astype(str) if c else "" for name, c in
                            (("hue", hue), ("style", style), ("panel", panel))})  # fmt: skip
    levels, styles = (list(dict.fromkeys(table[name])) for name in ("_hue", "_style"))
    panels = list(table.groupby("_panel", sort=False))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = BookFigure(figsize=(8, 0.8 + 2.4 * rows), layout="constrained")
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
            said.append(f"{where} from {own[y].iloc[0]:.3g}, at most {own[y].max():.3g}" if len(own) else where)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if scatter:
            axes.set(xscale="log", yscale="log")
        axes.set_title(title, fontsize=9)
        axes.grid(axis="y")
    for axes in found[len(panels) :]:
        axes.remove()
    if hue or style:
        figure.legend(*found[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    figure.alt = f"{ylabel} over {xlabel}: {'; '.join(said)}."
    return figure


@book_style
def confusion(labels: ArrayLike, predicted: ArrayLike, classes: Sequence[str]) -> Figure:
    """Confusion matrix: share of the true class (colour, first line) and images; cells without any are blank.

    Args:
        labels, predicted: class indices, integers of shape [N] in 0 .. K-1.
        classes: the K class names.
    """
    labels, predicted, k = np.asarray(labels), np.asarray(predicted), len(classes)
    counts = np.bincount(labels * k + predicted, minlength=k * k).reshape(k, k)
    images = counts.sum(axis=1)
    shares = counts / np.maximum(images, 1)[:, None]
    texts = [f"{share:.2f}\n{n:,}" if n else "" for share, n in zip(shares.flat, counts.flat, strict=True)]
    figure = BookFigure(figsize=(2 + 0.62 * k, 1.6 + 0.5 * k), layout="constrained")
    axes = figure.subplots()
    look = {"cmap": "Blues", "vmin": 0, "vmax": 1, "linewidths": 1, "cbar": False}
    sns.heatmap(shares, annot=np.reshape(texts, (k, k)), fmt="", ax=axes, **look)
    axes.set(xlabel="predicted", ylabel="true", title="share of true class, images")
    names = [f"{name} ({n:,})" for name, n in zip(classes, images, strict=True)]
    axes.set_yticks(np.arange(k) + 0.5, names, rotation=0)
    axes.set_xticks(np.arange(k) + 0.5, classes, rotation=40, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    return figure


@book_style
def class_counts(counts: pd.DataFrame) -> Figure:
    """Images of each class in each split, on a log scale if a split's largest is 20 times its smallest.

    Args:
        counts: a row per class (index: names), a column per split, numbers of images >= 0.
    """
    values = counts.to_numpy(float)
    smallest = np.where(values > 0, values, np.inf).min(axis=0)
    long_tailed = bool((values.max(axis=0) >= 20 * smallest).any())
    classes, splits = values.shape
    figure = BookFigure(figsize=(8, 1.0 + classes * (0.12 + 0.2 * splits)), layout="constrained")
    axes = figure.subplots()
    colours = sns.color_palette("crest", splits)
    for j, split in enumerate(counts):
        at = np.arange(classes) + 0.85 * (j - (splits - 1) / 2) / splits
        axes.barh(at, values[:, j], 0.85 / splits, color=colours[j], label=str(split), log=long_tailed)
        for y, n in zip(at, values[:, j], strict=True):
            offset = {"xytext": (2, 0), "textcoords": "offset points"}
            axes.annotate(f"{n:,.0f}", (max(n, 0.7 if long_tailed else 0), y), va="center", fontsize=7, **offset)
    axes.set(xlabel="images (log scale)" if long_tailed else "images", ylim=(classes - 0.4, -0.6))
    axes.set_xlim((0.7, 2 * values.max()) if long_tailed else (0, 1.08 * max(values.max(), 1)))
    axes.set_yticks(range(classes), counts.index)
    axes.grid(axis="x")
    figure.legend(loc="outside upper right", ncols=splits)
    return figure


def _required(frame: pd.DataFrame, columns: list[str], numbers: list[str]) -> pd.DataFrame:
    """The frame itself, if it has rows, these columns, and finite values in those that hold numbers."""
    missing = [column for column in columns if column not in frame]
    if missing or frame.empty:
        raise ValueError(f"the frame has {len(frame)} rows and lacks columns {missing}: give rows with {columns}")
    if not np.isfinite(frame[numbers].to_numpy(float)).all():
        raise ValueError(f"the frame has values in {numbers} that are not finite: leave unfinished runs out")
    return frame


def _continued(history: pd.DataFrame) -> pd.DataFrame:
    """The history in order of time, with the phase's `turn` and epoch `moment` of the whole run."""
    history = history.assign(turn=history.phase.map(_PHASES)).sort_values(["turn", "epoch"], kind="stable")
    probe = history.epoch.where(history.turn == 0, 0).groupby([history.run, history.seed]).transform("max")
    return history.assign(moment=history.epoch + probe * history.turn).reset_index(drop=True)


def _line_styles(history: pd.DataFrame) -> dict[tuple[str, str], object]:
    """Line style of each (run, approach): by source in order of appearance, solid for joint ones (A + B)."""
    runs = list(history[["run", "approach"]].drop_duplicates().itertuples(index=False, name=None))
    source = {key: key[0].removeprefix(APPROACH_NAMES.get(key[1], key[1])).strip() for key in runs}
    single = [name for name in dict.fromkeys(source.values()) if "+" not in name]
    order = {name: single.index(name) if name in single else 0 for name in source.values()}
    return {key: _LINE_STYLES[order[name] % len(_LINE_STYLES)] for key, name in source.items()}


def _mark_phases(scores: Axes, losses: Axes, history: pd.DataFrame) -> None:
    """A line wherever some run goes from the linear probe to fine-tuning."""
    probes = history.moment - history.epoch
    for end in probes[probes > 0].unique():
        for axes in (scores, losses):
            axes.axvline(end + 0.5, color=_GREY, linewidth=0.8, linestyle=":", gid="phase")
        where = {"xycoords": scores.get_xaxis_transform(), "ha": "center", "va": "bottom"}
        scores.annotate("linear probe | fine-tuning, of runs with both", (end + 0.5, 0.01), color=_GREY, **where)
