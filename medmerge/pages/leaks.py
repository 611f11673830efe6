"""Tables and sentences on what datasets and splits hide, computed from their datasheet and from nothing else."""

from collections.abc import Mapping, Sequence

import pandas as pd

from medmerge.pages.template import fill
from medmerge.study.names import title


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
                    spread["test"] = int(draws["test"].mean().round())
                    rows.append({"dataset": name, "split": split, "kind": kind, "draws": len(draws), **spread})
    columns = ["dataset", "split", "kind", "draws", "mean", "low", "high", "test"]
    return pd.DataFrame(rows, columns=columns)


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
            means = {"random": draws["random"].mean(), "grouped": draws["grouped"].mean(), "difference": gap.mean()}
            spread = {"low": gap.min(), "high": gap.max(), "draws": len(draws)}
            rows.append({"dataset": name, "probe": probe, **means, **spread})
    columns = ["dataset", "probe", "random", "grouped", "difference", "low", "high", "draws"]
    return pd.DataFrame(rows, columns=columns)


def summary(sheets: Mapping[str, Mapping], overlaps: Sequence[Mapping]) -> str:
    """Findings, a point each, in Markdown: what random splits leak, what sources have met, what that is worth."""
    leaks, probes = leak_table(sheets), probe_table(sheets)
    random = leaks[(leaks["split"] == "random") & (leaks["mean"] >= 0.02)].sort_values("mean", ascending=False)
    random, probes = (table.assign(dataset=table["dataset"].map(title)) for table in (random, probes))
    sure = probes[(probes["low"] > 0) | (probes["high"] < 0)]
    met = [row for row in overlaps if 0.1 < row["share of random test"] < 1]
    return fill(
        "leaks",
        leaks={kind: rows.to_dict("records") for kind, rows in random.groupby("kind")},
        met=[{**row, "in": title(row["in"]), "of": title(row["of"])} for row in met],
        probed=len(probes) > 0,
        sure=sure.to_dict("records"),
        others=sorted(set(probes["dataset"]) - set(sure["dataset"])),
    )
