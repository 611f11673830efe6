"""Tables and sentences of the page on the paper's premise, from a record of it alone."""

import numpy as np
import pandas as pd

from medmerge.study import premise
from medmerge.study.premise import ORDERS, STATISTICS, PremiseSheet

RELATED, UNRELATED = 0.5, 0.1
"""Sources share a start where the median layer's cosine is above the first, and have none in common below the second.

Weights from independent initial values have a cosine near 0.
"""

NEGLIGIBLE = 0.05
"""A barrier is none where it is below this share of what the ends gained over answering with the class shares."""


def closeness(sheet: PremiseSheet) -> pd.DataFrame:
    """Distances over all layers, a row an order of c's channels.

    Columns: order, layers, ``cosine`` (median over layers) with quartiles ``low`` and ``high``, ``kernel_cosine`` and
    ``distance`` (medians over layers of the mean of the kernels' cosines, and of the relative distance).
    """
    rows = []
    for order in ORDERS:
        table = sheet.distances[sheet.distances["order"] == order]
        low, median, high = table["cosine"].quantile([0.25, 0.5, 0.75])
        rows.append(
            {"order": order, "layers": len(table), "cosine": median, "low": low, "high": high}
            | {name: table[name].median() for name in ("kernel_cosine", "distance")}
        )
    return pd.DataFrame(rows)


def barriers(sheet: PremiseSheet) -> pd.DataFrame:
    """How high the loss rises between the ends, a row an order of c's channels and kind of statistics.

    Two definitions differ where the ends do. ``barrier`` is the largest loss less the mean of the ends' (Frankle et al.
    2020), above zero even where the loss only falls from one end to the other. ``rise`` is the largest excess over the
    straight line between the ends' losses (Entezari et al., "The Role of Permutation Invariance in Linear Mode
    Connectivity of Neural Networks", ICLR 2022; Ainsworth et al. 2023), zero there.

    Columns: order, statistics, ``c`` and ``b`` (losses of the ends), barrier, rise, ``at`` (a of the rise), ``share``:
    the rise by what the ends gained, in the mean, over answering with the class shares; NaN where they gained nothing.
    """
    rows = []
    for order in ORDERS:
        line = sheet.line[sheet.line["order"] == order]
        height = premise.barrier(line)
        for statistics in STATISTICS:
            inside = line[(line["statistics"] == statistics) & line["a"].between(0, 1)].sort_values("a")
            a, losses = inside["a"].to_numpy(), inside["val_loss"].to_numpy()
            excess = losses - np.interp(a, [0, 1], losses[[0, -1]])
            gain = sheet.content.prior_loss - losses[[0, -1]].mean()
            rows.append(
                {"order": order, "statistics": statistics, "c": losses[0], "b": losses[-1]}
                | {"barrier": height[statistics], "rise": max(excess.max(), 0.0), "at": a[excess.argmax()]}
                | {"share": max(excess.max(), 0.0) / gain if gain > 0 else np.nan}
            )
    return pd.DataFrame(rows)


def verdict(sheet: PremiseSheet) -> str:
    """Whether the two sources, as they were trained, lie in one basin, in Markdown."""
    b, c = sheet.names
    found = barriers(sheet).set_index(["order", "statistics"]).loc["as trained"]
    share = found["share"]
    if share.isna().any():
        return (
            f"**This cannot be told**: with a linear probe {b} and {c} predict no better than the class shares, so a "
            "line between them has nothing to lose."
        )
    if share["interpolated"] < NEGLIGIBLE:
        return f"**One basin**: the straight line from {c} to {b} has no barrier in loss."
    if share["re-estimated"] < NEGLIGIBLE:
        return (
            f"**One basin, but for batch norm**: the straight line from {c} to {b} has a barrier in loss with "
            "interpolated running statistics, and none with re-estimated ones."
        )
    return f"**Two basins**: a barrier in loss lies between {c} and {b}, with re-estimated running statistics too."


def summary(sheet: PremiseSheet) -> list[str]:
    """Sentences that answer, from one record, whether two sources start from different places. Markdown."""
    return [verdict(sheet), _apart(sheet), _between(sheet), _alignment(sheet)]


def _apart(sheet: PremiseSheet) -> str:
    (b, c), near = sheet.names, closeness(sheet).iloc[0]
    measured = (
        f"over {near['layers']} layers the cosine between their weights is {near['cosine']:.3f} in the median "
        f"(quartiles {near['low']:.3f} to {near['high']:.3f}), that of single kernels {near['kernel_cosine']:.3f}, and "
        f"they are {near['distance']:.2f} of their norm apart, where unrelated networks are {2**0.5:.2f}"
    )
    if near["cosine"] > RELATED:
        return (
            f"{b} and {c} share a start: {measured}. A merged kernel c + w (b - c) is then one of them plus a scaled "
            "task vector."
        )
    if near["cosine"] < UNRELATED:
        return f"{b} and {c} have nothing in common: {measured}. A merged kernel is then a mean of unrelated ones."
    return f"{b} and {c} are partly alike: {measured}."


def _between(sheet: PremiseSheet) -> str:
    found = barriers(sheet).set_index(["order", "statistics"]).loc["as trained"]
    told = [f"{_rise(found.loc[statistics])} with {statistics} running statistics" for statistics in STATISTICS]
    ends = found.loc["interpolated"]
    return (
        f"On {sheet.content.images['val']:,} validation images the loss is {ends['c']:.3f} at {sheet.names[1]} and "
        f"{ends['b']:.3f} at {sheet.names[0]} ({sheet.content.prior_loss:.3f} for the class shares); between them it "
        f"rises above the straight line between these {' and '.join(told)}."
    )


def _rise(row: pd.Series) -> str:
    if row["rise"] == 0:
        return "nowhere"
    share = "" if np.isnan(row["share"]) else f", {row['share']:.0%} of what the ends gained over the class shares"
    return f"by up to {row['rise']:.3f} (at a = {row['at']:.1f}{share})"


def _alignment(sheet: PremiseSheet) -> str:
    b, c = sheet.names
    if not sheet.moved:
        return f"Alignment leaves every channel of {c} in its place: {b} and {c} are in one order already."
    before, after = closeness(sheet)["cosine"]
    rises = barriers(sheet).set_index(["statistics", "order"])["rise"]
    changed = [
        f"from {rises[statistics, 'as trained']:.3f} to {rises[statistics, 'aligned']:.3f} with {statistics}"
        for statistics in STATISTICS
    ]
    return (
        f"Alignment of {c} to {b} changes the median layer's cosine from {before:.3f} to {after:.3f}, and the rise of "
        f"the loss between them {' and '.join(changed)} running statistics."
    )


def closeness_table(sheet: PremiseSheet) -> pd.DataFrame:
    """:func:`closeness` with the columns and names that a reader wants."""
    table = closeness(sheet)
    table["quartiles"] = [f"{row.low:.3f} to {row.high:.3f}" for row in table.itertuples()]
    names = {"order": "channels of c", "layers": "layers", "cosine": "cosine, median layer", "quartiles": "quartiles"}
    names |= {"kernel_cosine": "cosine of kernels", "distance": "relative distance"}
    return table[list(names)].rename(columns=names)


def barrier_table(sheet: PremiseSheet) -> pd.DataFrame:
    """:func:`barriers` with the columns and names that a reader wants."""
    b, c = sheet.names
    names = {"order": "channels of c", "statistics": "running statistics", "c": f"loss at {c}", "b": f"loss at {b}"}
    names |= {"rise": "rise between them", "at": "at a", "share": "share of the gain", "barrier": "over the ends' mean"}
    return barriers(sheet)[list(names)].rename(columns=names)


def circumstances(sheet: PremiseSheet) -> str:
    """On which images and machine a record was measured, in a sentence."""
    content = sheet.content
    counts = content.images
    return (
        f"{content.definition['backbone']} at {content.definition['image_size']} px on "
        f"{content.definition['target_data']}: {counts['train']:,} training images for heads and statistics, "
        f"{counts['val']:,} validation images for the losses, no test images; {content.precision}, {content.device}."
    )
