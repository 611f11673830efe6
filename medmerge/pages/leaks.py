"""What datasets and splits hide, computed from their datasheet alone."""

from collections.abc import Mapping, Sequence

import pandas as pd

from medmerge.pages.typeset import fill
from medmerge.study.names import title


def leak_table(sheets: Mapping[str, Mapping]) -> pd.DataFrame:
    """A row for each dataset and way to split: the share of test images met in training, over seeds.

    Columns: dataset, split, kind ("group" or "file"), draws, test (mean images), mean, low, high (shares; least and
    most of the draws).
    """
    lines = []
    for name, sheet in sheets.items():
        for split, draws in pd.DataFrame(sheet["leaks"]).groupby("split", sort=False):
            line = {"dataset": name, "split": split, "draws": len(draws), "test": int(draws["test"].mean().round())}
            for kind in ("group", "file") if sheet["images in groups of several"] else ("file",):
                shares = (draws[f"{kind}s"] / draws["test"]).dropna()
                spread = {"mean": shares.mean(), "low": shares.min(), "high": shares.max()}
                lines += [{**line, "kind": kind, **spread}] if len(shares) else []
    return pd.DataFrame(lines, columns=["dataset", "split", "kind", "draws", "mean", "low", "high", "test"])


def probe_table(sheets: Mapping[str, Mapping]) -> pd.DataFrame:
    """A row for each dataset and probe: macro F1 on random and grouped splits, and their difference, over seeds.

    Columns: dataset, probe, random, grouped, difference (means), low, high (least and most difference of draws with
    the same seed), draws.
    """
    lines = []
    for name, sheet in sheets.items():
        probes = pd.DataFrame(sheet["probes"], columns=["probe", "seed", "split", "macro_f1"])
        for probe, own in probes.groupby("probe"):
            scores = own.pivot(index="seed", columns="split", values="macro_f1")
            gap, means = scores["random"] - scores["grouped"], {split: scores[split].mean() for split in scores}
            spread = {"difference": gap.mean(), "low": gap.min(), "high": gap.max(), "draws": len(gap)}
            lines.append({"dataset": name, "probe": probe, **means, **spread})
    columns = ["dataset", "probe", "random", "grouped", "difference", "low", "high", "draws"]
    return pd.DataFrame(lines, columns=columns)


def summary(sheets: Mapping[str, Mapping], overlaps: Sequence[Mapping]) -> str:
    """Findings, a point each, in Markdown: what random splits leak, what sources have met, what that is worth."""
    leaks, probes = leak_table(sheets), probe_table(sheets)
    random = leaks[(leaks["split"] == "random") & (leaks["mean"] >= 0.02)].sort_values("mean", ascending=False)
    random, probes = (table.assign(dataset=table["dataset"].map(title)) for table in (random, probes))
    sure = probes[(probes["low"] > 0) | (probes["high"] < 0)]
    met = [row for row in overlaps if 0.1 < row["share of random test"] < 1]
    kinds = {kind: rows.to_dict("records") for kind, rows in random.groupby("kind")}
    met = [{**row, "in": title(row["in"]), "of": title(row["of"])} for row in met]
    others = sorted(set(probes["dataset"]) - set(sure["dataset"]))
    return fill("leaks", leaks=kinds, met=met, probed=len(probes), sure=sure.to_dict("records"), others=others)
