"""Tables and sentences of the page on the paper's premise, from a record of it alone."""

import numpy as np
import pandas as pd

from medmerge.pages.typeset import fill
from medmerge.study import premise
from medmerge.study.names import title
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
        line = {"order": order, "layers": len(table), "cosine": median, "low": low, "high": high}
        rows.append(line | {name: table[name].median() for name in ("kernel_cosine", "distance")})
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
            rise, at = max(excess.max(), 0.0), a[excess.argmax()]
            row = {"order": order, "statistics": statistics, "c": losses[0], "b": losses[-1], "rise": rise, "at": at}
            rows.append(row | {"share": rise / gain if gain > 0 else np.nan, "barrier": height[statistics]})
    return pd.DataFrame(rows)


def summary(sheet: PremiseSheet) -> str:
    """What one record answers, whether two sources start from different places, a point each, in Markdown."""
    found = barriers(sheet).set_index(["order", "statistics"])
    cosines, share = closeness(sheet), found.loc["as trained"]["share"]
    verdict = "none" if share.isna().any() else "one" if share["interpolated"] < NEGLIGIBLE else "two"
    if verdict == "two" and share["re-estimated"] < NEGLIGIBLE:
        verdict = "but for batch norm"
    near = cosines.iloc[0].to_dict()
    kinship = "kin" if near["cosine"] > RELATED else "strangers" if near["cosine"] < UNRELATED else "partly"
    facts = {"b": title(sheet.names[0]), "c": title(sheet.names[1]), "statistics": STATISTICS, "content": sheet.content}
    facts |= {"found": found.to_dict("index"), "cosines": cosines["cosine"].tolist(), "orders": ORDERS}
    return fill("premise", verdict=verdict, near=near, kinship=kinship, moved=sheet.moved, **facts)


def circumstances(sheet: PremiseSheet) -> str:
    """On which images and machine a record was measured, in a sentence."""
    return fill("premise_circumstances", content=sheet.content, d=sheet.content.definition)
