"""Tables and sentences of the page on costs, from a record of it alone: measured or, where it says so, derived."""

import numpy as np
import pandas as pd

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
    return sum(getattr(sheet.variants[name].memory, kind) for kind in MEMORY)


def memory(sheet: CostSheet) -> pd.DataFrame:
    """MiB that a step holds, a row a variant (by its title) and a column a kind of :data:`MEMORY`."""
    rows = {v.title: {kind: getattr(sheet.variants[name].memory, kind) / 2**20 for kind in MEMORY}
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


def summary(sheet: CostSheet, lp_epochs: int, ft_epochs: int) -> list[str]:
    """Sentences that answer, from one record, what MedMerge's probe costs beside LP and FT. Markdown."""
    variants, whole = sheet.variants, phases(sheet, lp_epochs, ft_epochs).set_index("what")
    time = "processor time" if sheet.clock == "cpu" else "time"
    to_lp = sheet.ratio("kernel", "lp")
    answer = "No" if to_lp[0] > 1 + ALIKE else "Yes" if to_lp[2] <= 1 + ALIKE else "These rounds cannot tell"
    cached, probe = (whole.loc[what, "median"] for what in ("LP, features computed once", "MedMerge's probe"))
    kernel, tuned, single = variants["kernel"], variants["ft"], variants["parameter"]
    matched = ft_epochs + lp_epochs * sheet.ratio("kernel")[1]
    return [
        f"**{answer}**: a step of MedMerge's probe takes {_times(to_lp)} the {time} of a step of LP through the same "
        f"frozen backbone, and {kernel.flops / variants['lp'].flops:.2f} times its FLOPs. Merging weights need the "
        "gradient of every merged kernel, and so the whole backward pass.",
        f"LP through a frozen backbone can compute its features once: {lp_epochs} epochs then take {cached:.3f} times "
        f"what {ft_epochs} epochs of FT take (derived). MedMerge's features change with w at every step, so its probe "
        f"cannot: {probe:.2f} times (derived).",
        f"Beside FT, a step of the probe takes {_times(sheet.ratio('kernel'))} the {time}, "
        f"{kernel.flops / tuned.flops:.2f} times the FLOPs and {held(sheet, 'kernel') / held(sheet, 'ft'):.2f} times "
        f"the memory held, while {kernel.trainable:,} numbers learn in place of {tuned.trainable:,}.",
        f"One w a parameter in place of one a kernel takes {_times(sheet.ratio('parameter', 'kernel'))} the {time}, "
        f"{single.trainable / kernel.trainable:.1f} times the numbers that learn and "
        f"{held(sheet, 'parameter') / held(sheet, 'kernel'):.2f} times the memory held.",
        f"MedMerge with {lp_epochs} epochs of its probe and {ft_epochs} of fine-tuning is matched in {time} by FT with "
        f"{matched:.0f} epochs (derived).",
    ]


def circumstances(sheet: CostSheet) -> str:
    """On what and under which load a record was measured, in a sentence."""
    clock = "processor time of this process" if sheet.clock == "cpu" else "time by the clock"
    busy = " to ".join(f"{load:.1f}" for load in sheet.load)
    warning = ""
    if sheet.load[0] > 1:
        hit = "caches and memory were shared" if sheet.clock == "cpu" else "seconds hold waiting"
        warning = f" Others were computing at the time: {hit}, so ratios say more than seconds."
    return (
        f"{sheet.backbone} at {sheet.image_size} px, batches of {sheet.batch_size}, {sheet.classes} classes, "
        f"{sheet.precision}, on {sheet.device}; {sheet.repeats} rounds of all variants in turn, {clock}. Load average "
        f"of the machine {busy} on {sheet.cores} cores, this measurement included at the end.{warning}"
    )


def _times(ratio: tuple[float, float, float]) -> str:
    low, median, high = ratio
    return f"{median:.2f} times (quartiles {low:.2f} to {high:.2f})"


def profile(sheet: CostSheet) -> pd.DataFrame:
    """Where the time of a step goes, a row an operation and a column a variant, milliseconds; empty where not kept."""
    return 1e3 * pd.DataFrame(sheet.profile).rename(columns={name: v.title for name, v in VARIANTS.items()})
