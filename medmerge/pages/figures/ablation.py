"""Figures of ablations: what batch norm meets, and scores by one setting or two.

Each figure's ``alt`` says what it shows, with its main numbers.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from medmerge.pages.figures.depth import mark_depth
from medmerge.pages.figures.style import BookFigure, book_style

MOMENTS = {"before probe": ("#D55E00", "o"), "after probe": ("#0173B2", "s")}
"""When :func:`bn_figure`'s report was taken, with colour and marker."""

_LOOKS = [("#0173B2", "o"), ("#DE8F05", "s"), ("#029E73", "D"), ("#CC78BC", "^"), ("#7A7A7A", "v"), ("#882255", "P")]
_GREY = "0.35"


@book_style
def bn_figure(report: pd.DataFrame) -> BookFigure:
    """Variance that batch norms meet over the one they assume, and the shift of the mean, along depth.

    Args:
        report: a row a batch norm (in forward order) and moment, as :attr:`medmerge.study.records.Record.batchnorm`
            has it: columns layer; ``variance_ratio``, median over channels of actual / running variance, with quartiles
            ``low`` and ``high`` (at least 0; 0, of channels that are dead, is drawn at the foot of the log axis);
            ``mean_shift``, mean over channels of ``|actual mean - running mean|`` in running deviations (at least 0);
            and ``when``, a key of :data:`MOMENTS`.

    Raises:
        ValueError: no rows, a column missing, an unknown moment, other layers at another moment, or numbers out of
            range.
    """
    columns = ["layer", "when", "variance_ratio", "low", "high", "mean_shift"]
    _check(report, columns)
    if strange := sorted(set(report["when"]) - set(MOMENTS)):
        raise ValueError(f"when holds {strange}: only {list(MOMENTS)} are allowed")
    ratios = report[["variance_ratio", "low", "high"]].to_numpy(float)
    if not (np.isfinite(ratios) & (ratios >= 0)).all() or not (report["mean_shift"] >= 0).all() or not ratios.any():
        raise ValueError("variance_ratio, low, high and mean_shift must be finite, at least 0, and not all ratios 0")
    foot = ratios[ratios > 0].min() / 2
    layers = list(dict.fromkeys(report["layer"]))
    figure = BookFigure(figsize=(8, 4.6), layout="constrained")
    variance, mean = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    said = []
    for when, (colour, marker) in MOMENTS.items():
        rows = report[report["when"] == when]
        if rows.empty:
            continue
        if list(rows["layer"]) != layers:
            raise ValueError(f"the layers {when!r} are not the others': give every layer once for each moment")
        at, look = np.arange(len(rows)), {"color": colour, "markersize": 2.5, "linewidth": 0.7}
        low, middle, high = (rows[name].clip(lower=foot) for name in ("low", "variance_ratio", "high"))
        variance.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0, gid=f"range/{when}")
        variance.plot(at, middle, f"{marker}-", label=when, gid=f"ratio/{when}", **look)
        mean.plot(at, rows["mean_shift"], f"{marker}-", gid=f"shift/{when}", **look)
        furthest = rows["layer"].iloc[int(np.abs(np.log(middle.to_numpy())).argmax())]
        said.append(
            f"{when} the ratio's median over layers is {rows['variance_ratio'].median():.3g}, from "
            f"{rows['variance_ratio'].min():.3g} to {rows['variance_ratio'].max():.3g} (furthest from 1: {furthest})"
        )
    variance.axhline(1, color=_GREY, linewidth=0.8, linestyle="--", gid="one")
    variance.set(yscale="log", ylabel="actual / running\nvariance")
    variance.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}")
    variance.yaxis.set_minor_formatter(NullFormatter())
    variance.set_title("line: median over channels, band: quartiles", pad=26)
    mean.set(ylabel="|actual − running mean|\nin running deviations", ylim=(0, None))
    mark_depth(variance, layers)
    variance.set_xlabel("")
    mean.set_xlabel(f"batch norm in forward order ({len(layers)} in all)")
    figure.legend(loc="outside upper right", ncols=2)
    figure.alt = (
        f"Actual over running variance of each batch norm along depth, log axis, reference at 1: {'; '.join(said)}."
    )
    return figure


@book_style
def factorial(table: pd.DataFrame, factor_a: str, factor_b: str, score: str = "macro F1") -> BookFigure:
    """Scores by two settings: a row each level of the first, a dot with its interval each level of the second.

    Args:
        table: columns factor_a and factor_b (levels, drawn in order of appearance), mean, low and high (in [0, 1]),
            and optionally ``measure``, such as "validation, after the probe" and "test, after fine-tuning", a panel
            each. A cell that was not run may be missing.
        factor_a, factor_b: the settings in words.
        score: what mean is of.

    Raises:
        ValueError: no rows, a column missing, a cell given twice, or scores outside [0, 1] or their interval.
    """
    _check(table, ["factor_a", "factor_b", "mean", "low", "high"])
    table = _measured(table, ["factor_a", "factor_b"])
    rows, levels = list(dict.fromkeys(table["factor_a"])), list(dict.fromkeys(table["factor_b"]))
    panels = list(table.groupby("measure", sort=False))
    figure = BookFigure(figsize=(8, 1.3 + len(rows) * (0.16 + 0.17 * len(levels))), layout="constrained")
    found = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    said = []
    for axes, (measure, part) in zip(found, panels, strict=True):
        for i, (level, own) in enumerate(part.groupby("factor_b", sort=False)):
            i = levels.index(level)
            at = own["factor_a"].map(rows.index).to_numpy() + 0.7 * ((i + 0.5) / len(levels) - 0.5)
            label = f"{factor_b}: {level}"
            _dots(axes, own, at, _LOOKS[i % len(_LOOKS)], f"{measure}/{level}", label)
        _rows(axes, rows, f"{score} ({measure})" if measure else score)
        best, worst = part.loc[part["mean"].idxmax()], part.loc[part["mean"].idxmin()]
        said.append(
            f"{measure or score} is highest, {best['mean']:.3f}, with {best['factor_a']} and {best['factor_b']}, and "
            f"lowest, {worst['mean']:.3f}, with {worst['factor_a']} and {worst['factor_b']}"
        )
    found[0].set_ylabel(factor_a)
    handles = {}
    for axes in found:
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=min(3, len(levels)))
    figure.alt = f"Dots and intervals of {score} by {factor_a} and {factor_b}: {'; '.join(said)}."
    return figure


@book_style
def one_factor(table: pd.DataFrame, factor: str, score: str = "macro F1") -> BookFigure:
    """Scores by one setting: a dot with its interval each level, in the table's order from the top.

    Args:
        table: columns factor_a (levels), mean, low and high (in [0, 1]), and optionally ``measure``, as for
            :func:`factorial`.
        factor: the setting in words.
        score: what mean is of.

    Raises:
        ValueError: as for :func:`factorial`.
    """
    _check(table, ["factor_a", "mean", "low", "high"])
    table = _measured(table, ["factor_a"])
    rows, panels = list(dict.fromkeys(table["factor_a"])), list(table.groupby("measure", sort=False))
    figure = BookFigure(figsize=(8, 1.1 + 0.32 * len(rows)), layout="constrained")
    found, said = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], []
    for axes, (measure, part) in zip(found, panels, strict=True):
        at = part["factor_a"].map(rows.index).to_numpy(float)
        _dots(axes, part, at, _LOOKS[0], measure, None)
        for y, row in zip(at, part.itertuples(), strict=True):
            text, where = f"{row.mean:.3f}", {"xytext": (0, 4), "textcoords": "offset points", "ha": "center"}
            axes.annotate(text, (row.mean, y), fontsize=7, **where)
        _rows(axes, rows, f"{score} ({measure})" if measure else score)
        each = ", ".join(f"{row.factor_a} {row.mean:.3f}" for row in part.itertuples())
        said.append(f"{measure}: {each}" if measure else each)
    found[0].set_ylabel(factor)
    figure.alt = f"Dots and intervals of {score} by {factor}. {'; '.join(said)}."
    return figure


def _dots(axes: Axes, rows: pd.DataFrame, at: np.ndarray, look: tuple[str, str], gid: str, label: str | None) -> None:
    colour, marker = look
    axes.hlines(at, rows["low"], rows["high"], color=colour, linewidth=1.8, gid=f"interval/{gid}")
    axes.plot(rows["mean"], at, marker, color=colour, markersize=5, label=label, gid=f"mean/{gid}")


def _rows(axes: Axes, rows: list, xlabel: str) -> None:
    """A line of the axes for each level, told apart by lines between them."""
    axes.set(xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [str(row) for row in rows])
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.tick_params(axis="y", which="both", length=0)
    axes.grid(axis="x")
    axes.grid(axis="y", which="minor")
    axes.margins(x=0.08)


def _check(table: pd.DataFrame, columns: list[str]) -> None:
    missing = [column for column in columns if column not in table]
    if missing or table.empty:
        raise ValueError(f"the table has {len(table)} rows and lacks columns {missing}: give rows with {columns}")


def _measured(table: pd.DataFrame, factors: list[str]) -> pd.DataFrame:
    """The table with a measure, its scores and cells checked."""
    table = (table if "measure" in table else table.assign(measure="")).reset_index(drop=True)
    low, mean, high = table[["low", "mean", "high"]].to_numpy(float).T
    if not ((low >= 0) & (low <= mean) & (mean <= high) & (high <= 1)).all():
        raise ValueError("the table's scores must be in [0, 1] with low <= mean <= high: leave unfinished runs out")
    if (again := table.duplicated([*factors, "measure"])).any():
        raise ValueError(f"the cell {table.loc[again, factors].iloc[0].tolist()} comes twice: average seeds first")
    return table


@book_style
def probe_curves(table: pd.DataFrame, factor_a: str, factor_b: str = "", score: str = "macro F1") -> BookFigure:
    """Validation score over the epochs of the linear probe: colours by the first setting, panels by the second.

    Args:
        table: columns factor_a, epoch and score, and with two settings factor_b, as
            :func:`medmerge.pages.ablation.probe_histories` gives it; scores in [0, 1].
        factor_a, factor_b: the settings in words; no ``factor_b`` for one setting.
        score: what the scores are of.

    Raises:
        ValueError: no rows, or a column missing.
    """
    if missing := [name for name in ("factor_a", "epoch", "score") if name not in table] or (
        [] if len(table) else [""]
    ):
        raise ValueError(
            f"the table needs rows and the columns factor_a, epoch and score; {missing[0] or 'it is empty'}"
        )
    table = table if "factor_b" in table else table.assign(factor_b="")
    levels, panels = list(dict.fromkeys(table["factor_a"])), list(table.groupby("factor_b", sort=False))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = BookFigure(figsize=(8, 0.8 + 2.4 * rows), layout="constrained")
    found, said = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten(), []
    for axes, (panel, part) in zip(found, panels, strict=False):
        for level, own in part.groupby("factor_a", sort=False):
            colour, marker = _LOOKS[levels.index(level) % len(_LOOKS)]
            look = {"color": colour, "marker": marker, "markersize": 3, "linewidth": 1, "label": f"{factor_a}: {level}"}
            axes.plot(own["epoch"], own["score"], gid=f"{panel}/{level}", **look)
            best = f"{own['score'].max():.3f}"
            said.append(f"{level}{f' and {panel}' if panel else ''} from {own['score'].iloc[0]:.3f} to {best} at best")
        if panel:
            axes.set_title(f"{factor_b}: {panel}", loc="left", fontsize=9)
    for axes in found[len(panels) :]:
        axes.remove()
    figure.supxlabel("epoch of the linear probe", fontsize=9)
    figure.supylabel(f"validation {score}", fontsize=9)
    figure.legend(*found[0].get_legend_handles_labels(), loc="outside upper right", ncols=min(3, len(levels)))
    figure.alt = f"Validation {score} over the epochs of the linear probe: {'; '.join(said)}."
    return figure
