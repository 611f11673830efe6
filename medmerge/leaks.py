"""Tables and sentences on what datasets and splits hide, computed from their datasheets and from nothing else."""

from collections.abc import Mapping, Sequence

import pandas as pd


def leak_table(sheets: Mapping[str, Mapping]) -> pd.DataFrame:
    """A row for each dataset and way to split: the share of test images met in training, over seeds.

    Columns: dataset, split, kind ("group" or "file"), draws, test (mean images), mean, low, high (shares; least and
    most of the draws).
    """
    rows = []
    for name, sheet in sheets.items():
        for split, draws in pd.DataFrame(sheet["leaks"]).groupby("split", sort=False):
            for kind in ("group", "file"):
                shares = (draws[f"{kind}s"] / draws["test"]).dropna()
                known = kind == "file" or sheet["images in groups of several"]
                if len(shares) and known:
                    spread = {"mean": shares.mean(), "low": shares.min(), "high": shares.max()}
                    rows.append({"dataset": name, "split": split, "kind": kind, "draws": len(draws), **spread})
                    rows[-1]["test"] = int(draws["test"].mean().round())
    return pd.DataFrame(rows)


def probe_table(sheets: Mapping[str, Mapping]) -> pd.DataFrame:
    """A row for each dataset and probe: macro F1 on random and grouped splits, and their difference, over seeds.

    Columns: dataset, probe, random, grouped, difference (means), low, high (least and most difference of draws with
    the same seed), draws.
    """
    rows = []
    for name, sheet in sheets.items():
        if not sheet["probes"]:
            continue
        scores = pd.DataFrame(sheet["probes"]).pivot(index=["probe", "seed"], columns="split", values="macro_f1")
        for probe, draws in scores.groupby(level="probe", sort=False):
            gap = draws["random"] - draws["grouped"]
            rows.append({"dataset": name, "probe": probe, "random": draws["random"].mean()})
            rows[-1] |= {"grouped": draws["grouped"].mean(), "difference": gap.mean()}
            rows[-1] |= {"low": gap.min(), "high": gap.max(), "draws": len(draws)}
    return pd.DataFrame(rows)


def summary(sheets: Mapping[str, Mapping], overlaps: Sequence[Mapping]) -> list[str]:
    """The findings in sentences, in Markdown: what random splits leak, what sources have met, what that is worth."""
    sentences = []
    leaks = leak_table(sheets)
    for row in leaks[leaks["split"] == "random"].itertuples():
        share, what = leaks["mean"][row.Index], "patient or lesion" if row.kind == "group" else "file"
        if share >= 0.02:
            sentences.append(
                f"A random split of {row.dataset} by image leaves **{share:.1%}** of the test images with their {what} "
                f"in training ({row.low:.1%} to {row.high:.1%} in {row.draws} draws)."
            )
    for row in overlaps:
        if 0.1 < row["share of random test"] < 1:
            sentences.append(
                f"Whoever has trained on all of {row['in']} has met **{row['share of random test']:.1%}** of the test "
                f"images of a random split of {row['of']}: {row['image'] + row['file']:,} of its {row['listed']:,} images "
                f"are in both, and {row['group']:,} more are of the same patients or lesions."
            )
    probes = probe_table(sheets)
    for row in probes.itertuples():
        surely = row.low > 0 or row.high < 0
        sentences.append(
            f"On {row.dataset} a random split changes the macro F1 of a {row.probe} by **{row.difference:+.3f}** "
            f"({row.low:+.3f} to {row.high:+.3f} in {row.draws} draws): "
            + ("in the same direction in every draw." if surely else "no change that the draws agree on.")
        )
    return sentences
