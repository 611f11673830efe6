"""Tables and sentences of the page on costs, from a record of it alone: measured or, where it says so, derived."""

import numpy as np
import pandas as pd

from medmerge.pages.template import fill
from medmerge.pages.typeset import number, span
from medmerge.study.cost import VARIANTS, CostSheet, quartiles

ALIKE = 0.1
"""Two costs count as alike where the quartiles of their ratio lie within this of 1."""

MEMORY = ("parameters", "gradients", "optimizer", "frozen", "saved")
"""The kinds of bytes of :func:`medmerge.study.cost.memory`, in the order in which they are shown."""


def steps(sheet: CostSheet) -> pd.DataFrame:
    """A row a variant, all measured.

    Columns: variant, title, milliseconds (median), images (a second), low, median, high (quartiles of the ratio to FT
    within a round), trainable, gflops, flops (over FT's), mib (sum of what is held), peak (MiB, or None).
    """
    rows = []
    for name, variant in VARIANTS.items():
        measured, seconds = sheet.variants[name], float(np.median(sheet.seconds(name)))
        low, median, high = sheet.ratio(name)
        rows.append(
            {"variant": name, "title": variant.title, "milliseconds": 1e3 * seconds}
            | {"images": sheet.batch_size / seconds, "low": low, "median": median, "high": high}
            | {"trainable": measured.trainable, "gflops": measured.flops / 1e9}
            | {"flops": measured.flops / sheet.variants["ft"].flops}
            | {"mib": held(sheet, name) / 2**20, "peak": measured.peak_memory_mib}
        )
    return pd.DataFrame(rows)


def held(sheet: CostSheet, name: str) -> int:
    """Bytes that a step of a variant holds, of all kinds."""
    return sum(sheet.variants[name].memory[kind] for kind in MEMORY)


def memory(sheet: CostSheet) -> pd.DataFrame:
    """MiB that a step holds, a row a variant (by its title) and a column a kind of :data:`MEMORY`."""
    rows = {v.title: {kind: sheet.variants[name].memory[kind] / 2**20 for kind in MEMORY}
            for name, v in VARIANTS.items()}  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


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
        low, median, high = quartiles(each / tune)
        seconds = float(np.median(each))
        rows.append(
            {"what": what, "kind": kind, "seconds": images * seconds, "images": epochs / seconds}
            | {"low": low, "median": median, "high": high}
        )
    return pd.DataFrame(rows)


def summary(sheet: CostSheet, lp_epochs: int, ft_epochs: int) -> str:
    """What MedMerge's probe costs beside LP and FT, from one record, a point each, in Markdown."""
    whole = phases(sheet, lp_epochs, ft_epochs).set_index("what")["median"]
    bytes_of = {name: held(sheet, name) for name in ("ft", "kernel", "parameter")}
    return fill(
        "cost",
        **{name: sheet.variants[name] for name in ("ft", "lp", "kernel", "parameter")},
        **{"lp_epochs": lp_epochs, "ft_epochs": ft_epochs, "alike": ALIKE},
        **{"to_lp": sheet.ratio("kernel", "lp"), "to_ft": sheet.ratio("kernel")},
        single=sheet.ratio("parameter", "kernel"),
        times=lambda r: f"{number(r[1], '.2f')} times (quartiles {span(r[0], r[2], '.2f')})",
        time="processor time" if sheet.clock == "cpu" else "time",
        cached=whole["LP, features computed once"],
        probe=whole["MedMerge's probe"],
        memory_of_ft=bytes_of["kernel"] / bytes_of["ft"],
        memory_of_single=bytes_of["parameter"] / bytes_of["kernel"],
    )


def circumstances(sheet: CostSheet) -> str:
    """On what and under which load a record was measured, in a sentence."""
    return fill("cost_circumstances", sheet=sheet)


def profile(sheet: CostSheet) -> pd.DataFrame:
    """Where the time of a step goes, a row an operation and a column a variant, milliseconds; empty where not kept."""
    return 1e3 * pd.DataFrame(sheet.profile).rename(columns={name: v.title for name, v in VARIANTS.items()})
