"""The page on costs, from a record of it alone: measured or, where it says so, derived."""

import textwrap

import numpy as np
import pandas as pd

from medmerge.pages.figures.style import BookFigure, book_style, canvas, on_phone
from medmerge.pages.typeset import fill, number
from medmerge.study.cost import VARIANTS, CostSheet, quartiles

ALIKE = 0.1
"""Two costs count as alike where the quartiles of their ratio lie within this of 1."""

KINDS = {
    "parameters": ("parameters that learn", "#0173B2"),
    "gradients": ("their gradients", "#56B4E9"),
    "optimizer": ("AdamW's state", "#DE8F05"),
    "frozen": ("frozen parameters and copies", "#7A7A7A"),
    "saved": ("kept for the backward pass", "#029E73"),
}
"""The kinds of bytes of :func:`medmerge.study.cost.memory`, as they are shown, in words and colours of the figure."""


def steps(sheet: CostSheet) -> pd.DataFrame:
    """A row a variant, all measured.

    Columns: variant, title, milliseconds (median), images (a second), low, median, high (quartiles of the ratio to FT
    within a round), trainable, gflops, flops (over FT's), mib (sum of what is held), peak (MiB, or None).
    """
    rows = []
    for name, variant in VARIANTS.items():
        measured, seconds = sheet.variants[name], float(np.median(sheet.seconds(name)))
        line = {"variant": name, "title": variant.title, "milliseconds": 1e3 * seconds}
        line |= dict(zip(("low", "median", "high"), sheet.ratio(name), strict=True))
        line |= {"images": sheet.batch_size / seconds, "trainable": measured.trainable, "gflops": measured.flops / 1e9}
        line |= {"flops": measured.flops / sheet.variants["ft"].flops, "mib": held(sheet, name) / 2**20}
        rows.append(line | {"peak": measured.peak_memory_mib})
    return pd.DataFrame(rows)


def held(sheet: CostSheet, name: str) -> int:
    """Bytes that a step of a variant holds, of all kinds."""
    return sum(sheet.variants[name].memory[kind] for kind in KINDS)


def memory(sheet: CostSheet) -> pd.DataFrame:
    """MiB that a step holds, a row a variant (by its title) and a column a kind of :data:`KINDS`."""
    rows = {v.title: pd.Series(sheet.variants[name].memory) / 2**20 for name, v in VARIANTS.items()}
    return pd.DataFrame(rows).T[[*KINDS]]


@book_style
def step_memory(memory: pd.DataFrame) -> BookFigure:
    """:func:`memory` that a step holds, a bar a variant, end to end by kind."""
    figure = canvas(1.1 + 0.3 * len(memory) + 0.9 * on_phone())
    axes, start = figure.subplots(), pd.Series(0.0, memory.index)
    for kind, (label, colour) in KINDS.items():
        axes.barh(range(len(memory)), memory[kind], left=start, color=colour, label=label, height=0.65)
        start = start + memory[kind]
    for y, total in enumerate(start):
        where = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(number(total, ",.0f" if total >= 10 else ".1f"), (total, y), **where)
    axes.set(
        xlabel="memory held by a step, MiB",
        xlim=(0, (1.25 if on_phone() else 1.12) * start.max()),
        ylim=(len(memory) - 0.5, -0.5),
    )
    axes.set_yticks(range(len(memory)), [textwrap.fill(title, 18) for title in memory.index])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    figure.legend(loc="outside upper left", ncols=1 if on_phone() else 3, columnspacing=1)
    figure.alt = "MiB held by a step: " + ", ".join(f"{title} {total:,.0f}" for title, total in start.items()) + "."
    return figure


def phases(sheet: CostSheet, lp_epochs: int, ft_epochs: int, images: int = 10_000) -> pd.DataFrame:
    """Whole phases and approaches, derived: epochs times steps. Validation, reading and decoding are left out.

    Args:
        images: training images; seconds are in proportion to them.

    Returns:
        A row a phase and then a row an approach. Columns: what, kind ("phase" or "approach"), seconds (median), images
        (training images seen a second, each epoch counted), low, median, high (quartiles of the ratio to FT's
        seconds within a round).
    """
    of = {name: sheet.seconds(name) / sheet.batch_size for name in VARIANTS}
    cached, tune = of["features"] + lp_epochs * of["lp_cached"], ft_epochs * of["ft"]
    through, probe = lp_epochs * of["lp"], lp_epochs * of["kernel"]
    both = lp_epochs + ft_epochs
    table = [
        ("LP, features computed once", "phase", cached, lp_epochs),
        ("LP, through the backbone each epoch", "phase", through, lp_epochs),
        ("MedMerge's probe", "phase", probe, lp_epochs),
        ("FT", "phase", tune, ft_epochs),
        ("LP-FT", "approach", cached + tune, both),
        ("MedMerge", "approach", probe + tune, both),
        (f"FT with {both} epochs", "approach", both * of["ft"], both),
    ]
    rows = []
    for what, kind, each, epochs in table:
        line, seconds = {"what": what, "kind": kind}, float(np.median(each))
        line |= dict(zip(("low", "median", "high"), quartiles(each / tune), strict=True))
        rows.append(line | {"seconds": images * seconds, "images": epochs / seconds})
    return pd.DataFrame(rows)


def summary(sheet: CostSheet, lp_epochs: int, ft_epochs: int) -> str:
    """What MedMerge's probe costs beside LP and FT, from one record, a point each, in Markdown."""
    whole = phases(sheet, lp_epochs, ft_epochs).set_index("what")["median"]
    facts = {name: sheet.variants[name] for name in ("ft", "lp", "kernel", "parameter")}
    facts |= {"to_lp": sheet.ratio("kernel", "lp"), "to_ft": sheet.ratio("kernel")}
    facts |= {"single": sheet.ratio("parameter", "kernel"), "held": {name: held(sheet, name) for name in VARIANTS}}
    facts |= {"lp_epochs": lp_epochs, "ft_epochs": ft_epochs, "alike": ALIKE, "whole": whole}
    time = "processor time" if sheet.clock == "cpu" else "time"
    return fill("cost", time=time, **facts)


def circumstances(sheet: CostSheet) -> str:
    """On what and under which load a record was measured, in a sentence."""
    return fill("cost_circumstances", sheet=sheet)


def profile(sheet: CostSheet) -> pd.DataFrame:
    """Where the time of a step goes, a row an operation and a column a variant, milliseconds; empty where not kept."""
    return 1e3 * pd.DataFrame(sheet.profile).rename(columns={name: v.title for name, v in VARIANTS.items()})
