"""Does the shift of w follow fine-tuning? The paper's claim about its Fig. 2 and Table 1, as numbers (section 4).

The shift is the mean of w - 0.5 over all kernels: positive where the merge leans to the first source. By the claim it
has the sign of FT's macro F1 from the first source minus that from the second.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from medmerge.pages.agreement import pearson
from medmerge.pages.kernelstats import mean_weights, merged_rows
from medmerge.pages.report import predicted
from medmerge.stats import evaluation, resampling
from medmerge.study.records import Record, RecordError

LEAST = 3
"""Fewer studies than this have no correlation to speak of."""


@dataclass(frozen=True)
class Association:
    """Outcome of :func:`association`, over studies.

    The intervals are 95 % percentile bootstrap intervals over test images and seeds. They hold the studies fixed:
    they say how well these studies' numbers are known, not what other studies would show.

    Attributes:
        studies: how many.
        same_sign: in how many of them shift and FT difference have one sign, with ``same_low`` and ``same_high``.
        decided: in how many the FT difference's own interval leaves out 0.
        pearson, spearman: correlations of shift and FT difference, with intervals; NaN for fewer than
            :data:`LEAST` studies or where one of the two does not vary.
    """

    studies: int
    same_sign: int
    same_low: float
    same_high: float
    decided: int
    pearson: float
    pearson_low: float
    pearson_high: float
    spearman: float
    spearman_low: float
    spearman_high: float


@dataclass(frozen=True)
class _Study:
    """A row of merged runs, and FT from each of its sources with the same seeds."""

    merged: list[Record]
    first: list[Record]
    second: list[Record]

    @property
    def classes(self) -> int:
        return len(self.merged[0].run["data"]["classes"])

    @property
    def shifts(self) -> NDArray[np.float64]:
        """Mean w - 0.5 over kernels, by seed."""
        kernels = [np.concatenate([w.ravel() for w in run.kernel_weights.values()]) for run in self.merged]
        return np.array([w.mean(dtype=np.float64) - 0.5 for w in kernels])


def shift_table(records: Sequence[Record]) -> pd.DataFrame:
    """Shift of w beside the FT difference of its sources: a line each row of merged runs.

    Args:
        records: of any number of studies; each row of runs that merged two sources needs FT from each of them,
            with the same seeds and test images.

    Returns:
        Columns study (``pair/backbone``), target, run, first and second (the sources), seeds; ``shift``, averaged
        over kernels and seeds, ``shift_layers``, over layers, and ``shift_low`` and ``shift_high``, the lowest and
        highest of the seeds; ``difference`` in macro F1 of FT from first minus FT from second with ``low``, ``high``
        and ``p`` of :func:`~medmerge.stats.evaluation.compare` (paired by test image); ``same_sign``; and ``decided``,
        whether the interval leaves out 0.

    Raises:
        RecordError: no merged run, or no such FT.
    """
    return _table(_studies(records))


def _table(studies: Sequence[_Study]) -> pd.DataFrame:
    rows = []
    for study in studies:
        run = study.merged[0]
        weights, shifts = mean_weights(study.merged), study.shifts
        ft = evaluation.compare(run.labels, predicted(study.first), predicted(study.second), study.classes)
        first, second = run.run["row"]["sources"]
        rows.append(
            {"study": "/".join(run.folder.parts[-4:-2]), "target": run.run["data"]["name"], "run": run.label}
            | {"first": first, "second": second, "seeds": len(study.merged), "shift": shifts.mean()}
            | {"shift_layers": np.mean([w.mean() for w in weights.values()]) - 0.5}
            | {"shift_low": shifts.min(), "shift_high": shifts.max()}
            | {"difference": ft.difference, "low": ft.low, "high": ft.high, "p": ft.p_value}
            | {"same_sign": bool(shifts.mean() * ft.difference > 0), "decided": bool(ft.low > 0 or ft.high < 0)}
        )
    return pd.DataFrame(rows)


def association(records: Sequence[Record], resamples: int = 10_000, seed: int = 0) -> Association:
    """Sign agreement and correlation of shift and FT difference across studies.

    Every resample draws each study's test images (stratified by class if single-label) and its seeds, the same seeds
    for FT and for w.

    Raises:
        RecordError: as for :func:`shift_table`; or two rows of merged runs of one study, which are not independent.
    """
    studies = _studies(records)
    return _associated(studies, _table(studies), resamples, seed)


def _associated(studies: Sequence[_Study], table: pd.DataFrame, resamples: int, seed: int) -> Association:
    if twice := table["study"][table["study"].duplicated()].tolist():
        raise RecordError(f"{twice[0]} has several rows of merged runs: give the one that the claim is about")
    generators = np.random.default_rng(seed).spawn(len(studies))
    pairs = [_resampled(study, resamples, own) for study, own in zip(studies, generators, strict=True)]
    shifts, differences = (np.stack(values, axis=1) for values in zip(*pairs, strict=True))  # [resamples, studies]
    same = np.quantile((shifts * differences > 0).sum(axis=1), [0.025, 0.975])
    x, y, none = table["shift"].to_numpy(), table["difference"].to_numpy(), [float("nan")] * 3
    linear = ranked = none
    if len(studies) >= LEAST:
        linear = [pearson(x, y), *_interval(shifts, differences)]
        ranks = [rankdata(values, axis=1) for values in (shifts, differences)]
        ranked = [pearson(rankdata(x), rankdata(y)), *_interval(*ranks)]
    signs = int(table["same_sign"].sum()), *same.tolist(), int(table["decided"].sum())
    return Association(len(studies), *signs, *linear, *ranked)


def statement(records: Sequence[Record]) -> str:
    """What the records say about the claim, in Markdown: the correlation, or that it cannot be estimated."""
    studies = _studies(records)
    table = _table(studies)
    found = _associated(studies, table, 10_000, 0)
    each = "; ".join(
        f"{row.study}: mean w - 0.5 is {row.shift:+.4f} (towards {row.first if row.shift > 0 else row.second}), FT "
        f"from {row.first} minus FT from {row.second} {row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f}), "
        f"{'the same sign' if row.same_sign else 'opposite signs'}{'' if row.decided else ', FT undecided'}"
        for row in table.itertuples()
    )
    agreed = f"Shift and FT difference have one sign in {found.same_sign} of {found.studies}"
    if found.studies < LEAST:
        count = "one study" if found.studies == 1 else f"{found.studies} studies"
        return (
            f"Whether the shift of w follows fine-tuning **cannot be estimated from {count}**: a correlation needs "
            f"{LEAST} or more. {each}."
        )
    return (
        f"{agreed} studies ({found.same_low:.0f} to {found.same_high:.0f} over test images and seeds); "
        f"Pearson's correlation {found.pearson:+.2f} ({found.pearson_low:+.2f} to {found.pearson_high:+.2f}), "
        f"Spearman's {found.spearman:+.2f} ({found.spearman_low:+.2f} to {found.spearman_high:+.2f}). {each}."
    )


def _studies(records: Sequence[Record]) -> list[_Study]:
    """Every row of runs that merged two sources, with FT from each, checked to belong together."""
    found = []
    for folder, runs in merged_rows(records).items():
        if len(runs[0].run["row"]["sources"]) != 2:
            continue
        seeds = [run.run["seed"] for run in runs]
        fine_tuned = []
        for source in runs[0].run["row"]["sources"]:
            rows = _fine_tuned(records, folder.parent, source)
            if len(rows) != 1 or not set(seeds) <= set(one := next(iter(rows.values()))):
                raise RecordError(
                    f"{folder.parent} has {len(rows)} rows of FT from {source} for the seeds {seeds} of {folder.name}: "
                    "the claim needs one from each source, with these seeds"
                )
            fine_tuned.append([one[seed] for seed in seeds])
        prints = {run.run["data"]["fingerprint"] for run in (*runs, *fine_tuned[0], *fine_tuned[1])}
        if len(prints) > 1:
            raise RecordError(f"{folder} and its FT were tested on different images")
        found.append(_Study(runs, *fine_tuned))
    if not found:
        raise RecordError("no run merged two sources: the claim is about the sources that w chooses between")
    return found


def _fine_tuned(records: Sequence[Record], study: Path, source: str) -> dict[Path, dict[int, Record]]:
    """The study's rows of FT from a source, by folder and seed; the study's own alone if it has also varied it."""
    rows: dict[Path, dict[int, Record]] = {}
    for record in records:
        row = record.run["row"]
        if record.folder.parent.parent == study and row["approach"] == "ft" and row["sources"] == [source]:
            rows.setdefault(record.folder.parent, {})[record.run["seed"]] = record
    own = {
        folder: runs for folder, runs in rows.items() if not any(r.run["row"].get("settings") for r in runs.values())
    }
    return own or rows


def _resampled(study: _Study, resamples: int, generator: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Shift and FT difference ``[resamples]`` with the test images and the seeds drawn anew."""
    labels, columns = study.merged[0].labels, np.concatenate([predicted(study.first), predicted(study.second)])
    if study.merged[0].multilabel:
        cells = resampling.cells_of_findings(labels, columns)
    else:
        cells = resampling.cells_of_classes(labels, columns, study.classes)
    scores = resampling.bootstrap(cells, "macro_f1", resamples, generator)
    seeds = len(study.merged)
    drawn = generator.integers(seeds, size=(resamples, seeds))
    differences = np.take_along_axis(scores[:, :seeds] - scores[:, seeds:], drawn, axis=1)
    return study.shifts[drawn].mean(axis=1), differences.mean(axis=1)


def _interval(x: NDArray, y: NDArray) -> list[float]:
    """95 % percentile interval of the correlations of ``[resamples, studies]``, where they are defined."""
    values = np.array([pearson(a, b) for a, b in zip(x, y, strict=True)])
    values = values[np.isfinite(values)]
    return np.quantile(values, [0.025, 0.975]).tolist() if len(values) else [float("nan")] * 2
