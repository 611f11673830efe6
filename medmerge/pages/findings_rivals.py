"""MedMerge held against its rivals and controls on one pair: what else the same networks give, and is it the merge."""

from collections.abc import Container, Iterable, Mapping

import numpy as np
import pandas as pd

from medmerge.approaches import RIVALS
from medmerge.pages import controls, findings, planned, report
from medmerge.pages.findings import Pair
from medmerge.stats import evaluation
from medmerge.study import definitions
from medmerge.study import notebooks as pages
from medmerge.study import run as study
from medmerge.study.places import home
from medmerge.study.records import Record

FILES = tuple(f"skin-{kind}-mobilenet" for kind in ("rivals", "reestimated", "controls", "granularity"))
"""Parameter files whose rows are held against MedMerge. They are of one pair, and share its split and its MedMerge."""

PAIR = ("skin-seeds", "mobilenet_v2")
"""The pair, as :func:`medmerge.pages.findings.pair` takes it."""

OWN = ("medmerge", "fixed_w", "lp_norms_ft")
"""Approaches of the controls; of MedMerge, with another start of batch norm or a weight a parameter."""


def rows() -> report.Rows:
    """Finished runs of the files by their row's label, in the files' order; none for a row that was not run.

    Raises:
        RecordError: a record is damaged, or of another definition than the parameter file's.
    """
    found: report.Rows = {}
    for name in FILES:
        path = home() / findings.FILES / f"{name}.yaml"
        p = pages.parameters(path)
        for row in definitions.rows(p):
            found[row.label] = [run for seed in p.seeds if (run := study.finished(p, row, seed))]
    return found


def compared(found: Mapping[str, list[Record]], labels: Iterable[str], spread: float | None) -> pd.DataFrame:
    """MedMerge minus each of some rows; rows that were not run are left out.

    Args:
        found: :func:`rows`.
        labels: of the rows; they are the family of Holm's correction.
        spread: the margin of equivalence, :func:`medmerge.pages.planned.margin` of the pair's five rows.

    Returns:
        A line a row: ``against``, ``seeds`` that it shares with MedMerge, ``mean`` macro F1 of the row over these, and
        the columns of :func:`medmerge.pages.planned.difference`.

    Raises:
        RecordError: rows with other test images than MedMerge's.
    """
    pairs = {label: pair for label in labels if (pair := _of_the_same_seeds(found, label))}
    adjusted = evaluation.holm([report.compare(*pair).p_value for pair in pairs.values()]) if pairs else ()
    return pd.DataFrame(
        {"against": label, "seeds": len(runs), "mean": np.mean([run.run["metrics"]["macro_f1"] for run in runs])}
        | planned.difference(merged, runs, p, spread)
        for (label, (merged, runs)), p in zip(pairs.items(), adjusted, strict=True)
    )


def _merged(found: Mapping[str, list[Record]]) -> list[Record]:
    """MedMerge as the pair's own parameters have it."""
    return [run for runs in found.values() for run in runs if run.approach == "medmerge" and not run.settings]


def _of_the_same_seeds(found: Mapping[str, list[Record]], label: str) -> tuple[list[Record], list[Record]] | None:
    """MedMerge and a row, of the seeds that both have; None without any."""
    merged = {run.run["seed"]: run for run in _merged(found)}
    runs = [run for run in found[label] if run.run["seed"] in merged]
    if not runs:
        return None
    pair = [merged[run.run["seed"]] for run in runs], runs
    report.by_row([*pair[0], *runs])  # refuses other test images
    return pair


def text(one: Pair, found: report.Rows) -> str:
    """Rivals, and then controls, in Markdown.

    Args:
        one: the pair whose five rows say what another seed changes.
        found: :func:`rows`.
    """
    if not _merged(found) or not one.records:
        return "**Not answered.** It needs a seed of all five rows of the pair with MobileNetV2."
    spread = planned.margin(one.records)
    rivals = [label for label, runs in found.items() if _any(runs, RIVALS)]
    others = [label for label, runs in found.items() if _any(runs, OWN) and runs[0].label != _merged(found)[0].label]
    missing = [label for label, runs in found.items() if not runs]
    return "\n".join(
        [
            *_table("rival", compared(found, rivals, spread)),
            "",
            *_table("control", compared(found, others, spread)),
            *_unchanged(found, others),
            *_replaced([run for run in _merged(found) if not run.controls.empty]),
            *(["", f"Not run: {', '.join(missing)}."] if missing else []),
        ]
    )


def _unchanged(found: Mapping[str, list[Record]], labels: Iterable[str]) -> list[str]:
    """Rows of another start of batch norm whose predictions are MedMerge's own."""
    pairs = {
        label: _of_the_same_seeds(found, label) for label in labels if set(found[label][0].settings) == {"batchnorm"}
    }
    same = [
        label
        for label, pair in pairs.items()
        if pair and all(one.predictions.equals(run.predictions) for one, run in zip(*pair, strict=True))
    ]
    why = "with free batch norms a step of the probe normalises by its batch, and running statistics forget their start"
    return ["", f"{', '.join(same)} predicts what MedMerge does, to the last digit: {why}."] if same else []


def _replaced(runs: list[Record]) -> list[str]:
    return ["", controls.sentence(controls.summary(controls.gather(runs)))] if runs else []


def _any(runs: list[Record], approaches: Container[str]) -> bool:
    return bool(runs) and runs[0].approach in approaches


def _table(kind: str, table: pd.DataFrame) -> list[str]:
    heads = ("difference", "95 % interval", "p (Holm)", "superiority", "within the margin")
    lines = [f"| MedMerge minus {kind} | its macro F1 | seeds | {' | '.join(heads)} |"]
    lines.append("| --- | ---: | ---: | ---: | :---: | ---: | --- | --- |")
    for row in table.itertuples():
        lines.append(f"| {row.against} | {row.mean:.3f} | {row.seeds} | {planned.cells(row, row.seeds)} |")
    return lines if len(table) else [f"No {kind} has been run."]
