"""Tables and sentences on what datasets and splits hide, computed from their datasheet and from nothing else."""

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
            rows.append({"dataset": name, "probe": probe, "random": draws["random"].mean()})
            rows[-1] |= {"grouped": draws["grouped"].mean(), "difference": gap.mean()}
            rows[-1] |= {"low": gap.min(), "high": gap.max(), "draws": len(draws)}
    columns = ["dataset", "probe", "random", "grouped", "difference", "low", "high", "draws"]
    return pd.DataFrame(rows, columns=columns)


def summary(sheets: Mapping[str, Mapping], overlaps: Sequence[Mapping]) -> list[str]:
    """Findings in a few Markdown sentences: what random splits leak, what sources have met, what that is worth."""
    leaks, probes, found = leak_table(sheets), probe_table(sheets), []
    for kind, heading, what in (
        ("group", "Patients and lesions on both sides", "another image of the patient or lesion"),
        ("file", "Copies on both sides", "a byte-identical copy"),
    ):
        random = leaks[(leaks["split"] == "random") & (leaks["kind"] == kind) & (leaks["mean"] >= 0.02)]
        rows = random.sort_values("mean", ascending=False)[["dataset", "mean"]].itertuples(index=False, name=None)
        shares = ", ".join(f"{name} {share:.1%}" for name, share in rows)
        if shares:
            found.append(
                f"**{heading}.** A random split by image leaves {what} of a test image in training for: {shares}."
            )
    met = [
        f"{row['in']} has met {row['share of random test']:.1%} of a random test split of {row['of']}"
        for row in overlaps
        if 0.1 < row["share of random test"] < 1
    ]
    if met:
        found.append(f"**Sources inside targets.** Whoever has trained on all of {', and on all of '.join(met)}.")
    if len(probes):
        sure = probes[(probes["low"] > 0) | (probes["high"] < 0)]
        gains = ", ".join(f"{row.difference:+.3f} for a {row.probe} on {row.dataset}" for row in sure.itertuples())
        others = sorted(set(probes["dataset"]) - set(sure["dataset"]))
        text = f"A random split changes macro F1, in the same direction in every draw, by {gains}" if gains else ""
        rest = f"no change that the draws agree on, on {' and '.join(others)}" if others else ""
        joined = "; ".join(filter(None, (text, rest)))
        found.append(f"**What that is worth.** {joined[0].upper()}{joined[1:]}.")
    return found
