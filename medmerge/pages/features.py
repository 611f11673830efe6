"""Table and sentences of the page on features, from a record of it alone."""

import numpy as np
import pandas as pd

from medmerge.pages.template import fill
from medmerge.study.features import MERGED, Found


def agreement(found: Found) -> pd.DataFrame:
    """How alike the feature maps of two networks are, a row a level and pair.

    Columns: level, layer, channels, positions (such as "16 × 16"), one, other, correlation (of the sample, over all
    channels), low, median, high (quartiles over the images). NaN where maps do not vary over positions.
    """
    rows = []
    for level in ("low", "high"):
        layer, values = getattr(found.about, level), found.arrays[f"correlation/{level}"].astype(np.float64)
        size = f"{layer.size[0]} × {layer.size[1]}"
        for (one, other), column in zip(found.pairs, values.T, strict=True):
            known = column[~np.isnan(column)]
            low, median, high = np.quantile(known, [0.25, 0.5, 0.75]) if len(known) else [np.nan] * 3
            rows.append(
                {"level": level, "layer": layer.layer, "channels": layer.kernels, "positions": size, "one": one}
                | {"other": other, "correlation": column[0], "low": low, "median": median, "high": high}
            )
    return pd.DataFrame(rows)


def summary(found: Found) -> str:
    """The paper's words on its Fig. 3 held against what was measured, a point each, in Markdown."""
    table, medians, levels = agreement(found), {}, []
    for level, word in (("low", "first"), ("high", "last")):
        part = table[table["level"] == level]
        of_merged = part[(part["one"] == MERGED) | (part["other"] == MERGED)]
        medians[level] = of_merged["median"].mean()
        sources = of_merged["one"].where(of_merged["other"] == MERGED, of_merged["other"])
        lines = of_merged.assign(source=sources).to_dict("records")
        levels.append({**part.iloc[0].to_dict(), "word": word, "rows": lines})
    one, _, other = found.about.networks[:3]
    own = table[(table["one"] == one) & (table["other"] == other)].set_index("level")["median"]
    apart = [own[level] for level in ("low", "high")]
    return fill("features", levels=levels, images=found.about.images, apart=apart, **medians)
