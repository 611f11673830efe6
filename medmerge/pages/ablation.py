"""Tables and sentences of an ablation's page: rows of one study that differ in settings, at two stages.

Every row is compared with the reference of its approach and sources: the row with the study's own settings or, where no
row has them all, the first one.
"""

from collections.abc import Sequence

import pandas as pd

from medmerge.pages import report
from medmerge.stats import evaluation
from medmerge.study.params import Parameters
from medmerge.study.records import Record, RecordError

PROBE, END = "after the probe", "after fine-tuning"
STAGES = (PROBE, END)
_FACTORS = ("factor_a", "factor_b")


def factors(records: Sequence[Record]) -> dict[str, list]:
    """The settings in which rows differ, in the parameters' order, with the values they have, as they appear."""
    names = [name for name in Parameters.model_fields if any(name in record.settings for record in records)]
    found = {name: [record.run["parameters"][name] for record in records] for name in names}
    return {name: [v for i, v in enumerate(values) if v not in values[:i]] for name, values in found.items()}


def at(records: Sequence[Record], stage: str) -> list[Record]:
    """The records as they were at a stage; empty where it was not kept, or where nothing came after the probe.

    Args:
        stage: one of :data:`STAGES`.
    """
    tuned = all("fine_tune" in record.run["cost"] for record in records)
    if stage == END:
        return list(records) if tuned else []
    probed = [record.after_probe() for record in records]
    return [] if None in probed else probed


def scores(records: Sequence[Record]) -> pd.DataFrame:
    """A line for every row and stage.

    Columns: label, approach, sources, one for each of :func:`factors`, stage, seeds, ``mean`` test macro F1 with the
    bootstrap interval ``low`` to ``high`` over test images, and ``validation``, the probe's best score.
    """
    rows, varied, lines = report.by_row(records), factors(records), []
    for stage in STAGES:
        there = at(records, stage)
        for one in report.scores(there).to_dict("records") if there else []:
            runs = rows[one["label"]]
            values = {name: runs[0].run["parameters"][name] for name in varied}
            where = {"sources": " + ".join(runs[0].run["row"]["sources"]), **values, "stage": stage}
            chosen = ("label", "approach", "seeds", "mean", "low", "high")
            lines.append({name: one[name] for name in chosen} | where | {"validation": _validation(runs)})
    first = ["label", "approach", "sources", *varied, "stage", "seeds", "mean", "low", "high", "validation"]
    return pd.DataFrame(lines, columns=first)


def _validation(runs: Sequence[Record]) -> float:
    """The probe's best validation score, mean over seeds."""
    kept = []
    for run in runs:
        probe = run.history[run.history["phase"] == "linear_probe"]
        kept.append(probe[report.score_column(probe)].max())
    return float(pd.Series(kept).mean())


def references(records: Sequence[Record]) -> dict[str, str]:
    """By row's label the label of the row that it is compared with; references themselves are left out."""
    groups: dict[tuple, list[str]] = {}
    plain = {record.label for record in records if not record.settings}
    for label, runs in report.by_row(records).items():
        row = runs[0].run["row"]
        groups.setdefault((row["approach"], *row["sources"]), []).append(label)
    found = {}
    for labels in groups.values():
        reference = next((label for label in labels if label in plain), labels[0])
        found |= {label: reference for label in labels if label != reference}
    return found


def differences(records: Sequence[Record]) -> pd.DataFrame:
    """Every row minus its reference, on the same test images, at each stage.

    Columns: label, reference, stage, difference in macro F1 with interval ``low`` to ``high`` and ``p``
    (:func:`~medmerge.stats.evaluation.compare`), and ``p_holm``, adjusted over all of this table.
    """
    lines = []
    for stage in STAGES:
        rows = report.by_row(at(records, stage))
        for label, reference in references(records).items() if rows else ():
            found = report.compare(rows[label], rows[reference])
            values = {"difference": found.difference, "low": found.low, "high": found.high, "p": found.p_value}
            lines.append({"label": label, "reference": reference, "stage": stage, **values})
    table = pd.DataFrame(lines, columns=["label", "reference", "stage", "difference", "low", "high", "p"])
    return table.assign(p_holm=evaluation.holm(table["p"]) if len(table) else [])


def cells(records: Sequence[Record]) -> pd.DataFrame:
    """:func:`scores` as the figures of `medmerge.pages.figures.ablation` take it: one factor, or two.

    Columns: ``factor_a``, with two factors ``factor_b``, ``measure``, mean, low and high; levels are text. Where rows
    differ in their sources or approach too, these are part of ``factor_a``.

    Raises:
        RecordError: none, or more than two settings differ.
    """
    varied, table = _drawable(records), scores(records)
    named = table[varied[0]].map(_text)
    for name in ("sources", "approach"):
        if table[name].nunique() > 1:
            named = table[name] + ": " + named
    found = {"factor_a": named} | ({"factor_b": table[varied[1]].map(_text)} if len(varied) == 2 else {})
    found["measure"] = "test, " + table["stage"]
    return pd.DataFrame(found).join(table[["mean", "low", "high"]])


def probe_histories(records: Sequence[Record]) -> pd.DataFrame:
    """Validation scores over the epochs of the linear probe, means over seeds, for figures with one or two factors.

    Columns: factor_a, with two factors ``factor_b``, epoch (from 1) and score; levels are text.

    Raises:
        RecordError: none, or more than two settings differ.
    """
    varied = _drawable(records)
    frames = []
    for record in records:
        probe = record.history[record.history["phase"] == "linear_probe"]
        levels = {key: _text(record.run["parameters"][name]) for key, name in zip(_FACTORS, varied, strict=False)}
        frames.append(probe[["epoch"]].assign(score=probe[report.score_column(probe)], **levels))
    by = [*_FACTORS[: len(varied)], "epoch"]
    return pd.concat(frames).groupby(by, sort=False)["score"].mean().reset_index()


def _drawable(records: Sequence[Record]) -> list[str]:
    varied = list(factors(records))
    if not 1 <= len(varied) <= 2:
        raise RecordError(f"a figure shows one setting or two, not {varied}")
    return varied


def _text(value: object) -> str:
    return "default" if value is None else str(value)


def score_table(records: Sequence[Record]) -> pd.DataFrame:
    """:func:`scores` with the columns and names that a reader wants, a line a row."""
    table = scores(records)
    told = [f"{row.mean:.3f} ({row.low:.3f} to {row.high:.3f})" for row in table.itertuples()]
    keep = ["approach", "sources"] if table["sources"].nunique() > 1 or table["approach"].nunique() > 1 else []
    keep += [*factors(records), "seeds", "validation"]
    lines = table.drop_duplicates("label").set_index("label")[keep]
    for stage, part in table.assign(told=told).groupby("stage", sort=False):
        lines[f"test, {stage}"] = part.set_index("label")["told"]
    return lines.rename(columns={"validation": "validation, best of the probe"}).reset_index(drop=True)


def difference_table(records: Sequence[Record]) -> pd.DataFrame:
    """:func:`differences` with the columns and names that a reader wants."""
    table = differences(records)
    interval = [f"{low:+.3f} to {high:+.3f}" for low, high in table[["low", "high"]].itertuples(index=False)]
    names = {"label": "row", "reference": "minus", "stage": "stage", "difference": "difference"}
    return table.rename(columns=names | {"p_holm": "p (Holm)"}).assign(**{"95 % interval": interval})[
        ["row", "minus", "stage", "difference", "95 % interval", "p", "p (Holm)"]
    ]


def verdict(records: Sequence[Record]) -> str:
    """What an ablation's records say, in Markdown: how many rows differ from their reference, and by how much."""
    table = differences(records)
    if table.empty:
        return "There is one row alone: nothing to compare."
    sentences = []
    for stage, part in table.groupby("stage", sort=False):
        sure = part["p_holm"] < report.ALPHA
        worse, better = (int((sure & (sign * part["difference"] > 0)).sum()) for sign in (-1, 1))
        far = part.loc[part["difference"].abs().idxmax()]
        sentences.append(
            f"**{stage.capitalize()}** {worse or 'none'} of {len(part)} rows "
            f"{'are' if worse > 1 else 'is'} significantly (5 %, Holm) worse than the reference and "
            f"{better or 'none'} better; the largest difference is {far['difference']:+.3f} macro F1 "
            f"({far['low']:+.3f} to {far['high']:+.3f}, Holm-adjusted p = {far['p_holm']:.2g}), {far['label']} against "
            f"{far['reference']}."
        )
    return " ".join(sentences)


def numbers(records: Sequence[Record]) -> dict[str, str]:
    """Every row minus its reference by name, formatted, for prose elsewhere in the book.

    A name is the row's settings and the stage: ``"none-probe"`` (with ``-interval`` and ``-p``, adjusted) is the row
    ``batchnorm_free`` none after the probe, ``"none-end"`` the same after fine-tuning.
    """
    settings = {record.label: "-".join(map(str, record.settings.values())) for record in records}
    found = {}
    for row in differences(records).itertuples():
        name = f"{settings[row.label]}-{'probe' if row.stage == PROBE else 'end'}"
        found[name] = f"{row.difference:+.3f}"
        found[f"{name}-interval"] = f"{row.low:+.3f} to {row.high:+.3f}"
        found[f"{name}-p"] = f"{row.p_holm:.2g}"
    return found
