"""Table and sentences of the page on features, from a record of it alone."""

import numpy as np
import pandas as pd

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


def summary(found: Found) -> list[str]:
    """Sentences that hold the paper's words on its Fig. 3 against what was measured. Markdown."""
    table, about = agreement(found).set_index(["level", "one", "other"]), found.about
    pairs = [pair for pair in found.pairs if MERGED in pair]
    lines = []
    for level, word in (("low", "first"), ("high", "last")):
        each = [
            f"{table.loc[(level, *pair), 'correlation']:.2f} with {next(n for n in pair if n != MERGED)} "
            f"(quartiles over {about.images} test images {table.loc[(level, *pair), 'low']:.2f} to "
            f"{table.loc[(level, *pair), 'high']:.2f})"
            for pair in pairs
        ]
        layer = getattr(about, level)
        lines.append(
            f"**{level.title()}-level**, the {word} convolution (`{layer.layer}`, {layer.kernels} channels of "
            f"{layer.size[0]} × {layer.size[1]}): the merged network's maps correlate {' and '.join(each)}."
        )
    low, high = (table.loc[level].loc[pairs, "median"].mean() for level in ("low", "high"))
    if np.isnan(low + high):
        answer = "There is no telling which level changes more: maps of one of them do not vary over positions."
    else:
        answer = (
            f"The median correlation with a source is {low:.2f} at the low level and {high:.2f} at the high one: here "
            f"{'low' if low > high else 'high'}-level features are the ones that the merge changes less, "
            f"{'as' if low > high else 'unlike what'} the paper says."
        )
    one, merged, *others = about.networks
    apart = {level: table.loc[(level, one, others[0]), "median"] for level in ("low", "high")}
    return [
        *lines,
        answer,
        f"That need not come from w: the two sources' own maps correlate {apart['low']:.2f} (low) and "
        f"{apart['high']:.2f} (high), before anything is merged.",
    ]
