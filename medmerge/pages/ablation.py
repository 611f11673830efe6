"""Tables and sentences of an ablation's page: rows of one study that differ in settings, at two stages.

Every row is compared with the reference of its approach and sources: the row with the study's own settings or, where no
row has them all, the first one.
"""

from collections.abc import Sequence

import pandas as pd

from medmerge.pages import report
from medmerge.pages.contrast import ALPHA, by_row, contrast
from medmerge.pages.typeset import fill, number, span
from medmerge.study.names import setting, title
from medmerge.study.params import Parameters
from medmerge.study.records import Record, score_column

PROBE, END = "after the probe", "after fine-tuning"
STAGES = (PROBE, END)


def factors(records: Sequence[Record]) -> dict[str, list]:
    """The settings in which rows differ, in the parameters' order, with the values they have, as they appear."""
    names = [name for name in Parameters.model_fields if any(name in record.settings for record in records)]
    found = {name: [record.run["parameters"][name] for record in records] for name in names}
    return {name: [v for i, v in enumerate(values) if v not in values[:i]] for name, values in found.items()}


def at(records: Sequence[Record], stage: str) -> list[Record]:
    """The records as they were at one of :data:`STAGES`; empty where it was not kept, or the probe was all."""
    if stage == END:
        return list(records) if all("fine_tune" in record.run["cost"] for record in records) else []
    probed = [record.after_probe() for record in records]
    return [] if None in probed else probed


def scores(records: Sequence[Record]) -> pd.DataFrame:
    """A line for every row and stage.

    Columns: label, approach, sources, one for each of :func:`factors`, stage, seeds, ``mean`` test macro F1 with the
    bootstrap interval ``low`` to ``high`` over test images, and ``validation``, the probe's best score.
    """
    rows, varied, lines = by_row(records), factors(records), []
    for stage in STAGES:
        for one in report.scores(at(records, stage)).to_dict("records"):
            run = rows[one["label"]][0].run
            line = {
                "label": one["label"],
                "approach": run["row"]["title"],
                "sources": " + ".join(map(title, run["row"]["sources"])),
            }
            line |= {name: run["parameters"][name] for name in varied} | {"stage": stage}
            line |= {name: one[name] for name in ("seeds", "mean", "low", "high")}
            lines.append(line | {"validation": _validation(rows[one["label"]])})
    return pd.DataFrame(lines)


def _validation(runs: Sequence[Record]) -> float:
    """The probe's best validation score, mean over seeds."""
    probes = [run.history[run.history["phase"] == "linear_probe"] for run in runs]
    return float(pd.Series([probe[score_column(probe)].max() for probe in probes]).mean())


def references(records: Sequence[Record]) -> dict[str, str]:
    """By row's label the label of the row that it is compared with; references themselves are left out."""
    groups: dict[tuple, list[str]] = {}
    plain = {record.label for record in records if not record.settings}
    for label, runs in by_row(records).items():
        row = runs[0].run["row"]
        groups.setdefault((row["approach"], *row["sources"]), []).append(label)
    found = {}
    for labels in groups.values():
        reference = next((label for label in labels if label in plain), labels[0])
        found |= {label: reference for label in labels if label != reference}
    return found


def differences(records: Sequence[Record]) -> pd.DataFrame:
    """Every row minus its reference at each stage: columns label, reference, stage, and those of
    :func:`~medmerge.pages.contrast.contrast`, all of them one family.
    """
    pairs = []
    for stage in STAGES:
        if rows := by_row(at(records, stage)):
            for label, reference in references(records).items():
                named = {"label": label, "reference": reference, "stage": stage}
                pairs.append((named, rows[label], rows[reference]))
    return contrast(pairs)


def cells(records: Sequence[Record]) -> pd.DataFrame:
    """:func:`scores` with the settings as text, for :func:`~medmerge.pages.figures.forest.forest`: a row a level of
    the first setting, ``second`` the level of the second (empty with one), a panel a stage.
    """
    table = scores(records)
    first, *second = factors(records)
    named = table[first].map(_text)
    for name in ("sources", "approach"):
        if table[name].nunique() > 1:
            named = table[name] + ": " + named
    levels = table[second[0]].map(_text) if second else ""
    return table.assign(first=named, second=levels, stage="test, " + table["stage"])


def probe_histories(records: Sequence[Record]) -> pd.DataFrame:
    """Validation scores over the epochs of the linear probe, means over seeds: columns first and second (the levels of
    the settings, as text), epoch (from 1) and score.
    """
    first, *second = factors(records)
    frames = []
    for record in records:
        probe = record.history[record.history["phase"] == "linear_probe"]
        levels = {"first": _text(record.run["parameters"][first])}
        levels["second"] = _text(record.run["parameters"][second[0]]) if second else ""
        frames.append(probe[["epoch"]].assign(score=probe[score_column(probe)], **levels))
    return pd.concat(frames).groupby(["first", "second", "epoch"], sort=False)["score"].mean().reset_index()


def _text(value: object) -> str:
    return "default" if value is None else str(value)


def score_table(records: Sequence[Record]) -> pd.DataFrame:
    """:func:`scores` with the columns and names that a reader wants, a line a row."""
    table = scores(records)
    told = [f"{number(row.mean)} ({span(row.low, row.high, '.3f')})" for row in table.itertuples()]
    keep = ["approach", "sources"] if table["sources"].nunique() > 1 or table["approach"].nunique() > 1 else []
    keep += [*factors(records), "seeds", "validation"]
    lines = table.drop_duplicates("label").set_index("label")[keep]
    for stage, part in table.assign(told=told).groupby("stage", sort=False):
        lines[f"test, {stage}"] = part.set_index("label")["told"]
    named = {name: setting(name).rstrip(":") for name in factors(records)}
    return lines.rename(columns={"validation": "validation, best of the probe"} | named).reset_index(drop=True)


def verdict(records: Sequence[Record]) -> str:
    """What an ablation's records say, in Markdown: how many rows differ from their reference, and by how much."""
    table = differences(records)
    if table.empty:
        return "There is one row alone: nothing to compare."
    stages = []
    for stage, part in table.groupby("stage", sort=False):
        sure = part["p_holm"] < ALPHA
        worse, better = (int((sure & (sign * part["difference"] > 0)).sum()) for sign in (-1, 1))
        far = part.loc[part["difference"].abs().idxmax()]
        stages.append({"stage": stage, "count": len(part), "worse": worse, "better": better, "far": far})
    return fill("ablation", stages=stages)
