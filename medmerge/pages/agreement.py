"""Whether merging weights are the same again: between seeds, between runs, and with what fine-tuning says.

The paper's claim about its Fig. 2 and Table 1 (section 4), as numbers: the shift, the mean of w - 0.5 over all kernels,
has the sign of FT's macro F1 from the first source minus that from the second.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from medmerge.pages.contrast import contrast, predicted
from medmerge.pages.template import fill
from medmerge.pages.weights import Weights, merged_rows
from medmerge.stats import evaluation, resampling
from medmerge.study import names
from medmerge.study.records import Record, RecordError

LEAST = 3
"""Fewer studies than this have no correlation to speak of."""


def icc(ratings: ArrayLike) -> float:
    """Intraclass correlation ICC(A,1): absolute agreement of single ratings, two-way (McGraw and Wong 1996).

    Args:
        ratings: ``[n, k]``, n things by k raters; here kernels by seeds.

    Returns:
        At most 1, which is reached by equal ratings only; NaN for fewer than two things or where nothing varies.
    """
    ratings = np.asarray(ratings, dtype=np.float64)
    n, k = ratings.shape
    if n < 2 or k < 2:
        return float("nan")
    grand, of_things, of_raters = ratings.mean(), ratings.mean(axis=1), ratings.mean(axis=0)
    things = k * ((of_things - grand) ** 2).sum() / (n - 1)
    raters = n * ((of_raters - grand) ** 2).sum() / (k - 1)
    rest = ((ratings - of_things[:, None] - of_raters + grand) ** 2).sum() / ((n - 1) * (k - 1))
    spread = things + (k - 1) * rest + k * (raters - rest) / n
    return float((things - rest) / spread) if spread > 1e-30 else float("nan")


def pearson(a: NDArray, b: NDArray) -> float:
    """Pearson's correlation of two vectors; NaN where one of them does not vary or has fewer than two values."""
    a, b = (np.asarray(v, dtype=np.float64) - np.mean(v, dtype=np.float64) for v in (a, b))
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if len(a) > 1 and scale > 1e-30 else float("nan")


def seed_agreement(runs: Mapping[object, Weights], resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """How alike two seeds' merging weights are, over all kernels: a row each pair of runs.

    Layers differ in mean w, and two seeds that agree on these alone correlate over kernels too. The null keeps each
    layer's values and shuffles which kernel has which, so what exceeds it is agreement on kernels.

    Args:
        runs: w by layer, ``[kernels]``, of each seed; all must have the same layers. Kernels correspond across seeds
            only if the sources are the same.

    Returns:
        Columns one, other, kernels; ``pearson`` and ``icc`` (:func:`icc`) over all kernels; ``layers``, the Pearson
        correlation of layers' means; ``within``, that of deviations from them; ``null``, ``null_low`` and
        ``null_high``, mean and 95 % range of ``pearson`` after shuffling; ``p_value`` that shuffling gives as much.
    """
    generator, rows = np.random.default_rng(seed), []
    vectors = {key: {name: np.asarray(w, dtype=np.float64) for name, w in run.items()} for key, run in runs.items()}
    for (one, a), (other, b) in itertools.combinations(vectors.items(), 2):
        x, y = (np.concatenate(list(w.values())) for w in (a, b))
        means = [np.array([w.mean() for w in run.values()]) for run in (a, b)]
        deviations = [np.concatenate([w - w.mean() for w in run.values()]) for run in (a, b)]
        observed, within = pearson(x, y), pearson(*deviations)
        products = sum(generator.permuted(np.tile(b[k], (resamples, 1)), axis=1) @ a[k] for k in a)
        spread = x.std() * y.std()
        null = (products / len(x) - x.mean() * y.mean()) / spread if spread > 1e-15 else np.full(resamples, np.nan)
        as_large = (null >= observed - 1e-12).sum()
        rows.append(
            {"one": one, "other": other, "kernels": len(x), "pearson": observed, "icc": icc(np.stack([x, y], axis=1))}
            | {"layers": pearson(*means), "within": within, "null": null.mean()}
            | dict(zip(("null_low", "null_high"), np.quantile(null, [0.025, 0.975]), strict=True))
            | {"p_value": (1 + as_large) / (1 + resamples) if np.isfinite(observed) else float("nan")}
        )
    return pd.DataFrame(rows)


def run_agreement(records: Sequence[Record]) -> pd.DataFrame:
    """How alike the weights of each two runs with the same layers are, by network and by what sets the two apart.

    Returns:
        Columns network, apart, pairs; over pairs mean, ``least`` and ``most`` of Pearson's correlation over all
        kernels, and means of that over layers' means, of the absolute difference and of the share of kernels on one
        side of 0.5. Weights that are all the same, such as those held at 0.5, correlate with nothing: NaN. Empty
        where no two runs have the same layers.
    """
    rows = []
    for (one, a), (other, b) in itertools.combinations([(record, record.kernel_weights) for record in records], 2):
        if [(name, len(w)) for name, w in a.items()] != [(name, len(w)) for name, w in b.items()]:
            continue
        x, y = (np.concatenate(list(w.values())) for w in (a, b))
        means = [np.array([w.mean() for w in run.values()]) for run in (a, b)]
        row = "seed" if one.folder.parent == other.folder.parent else "study or settings"
        apart = row if one.run["sources"] == other.run["sources"] else f"{row}, and networks merged"
        line = {"network": names.title(one.folder.parts[-3]), "apart": apart}
        line |= {"correlation": pearson(x, y), "of layers' means": pearson(*means)}
        rows.append(line | {"mean |difference|": np.abs(x - y).mean(), "same side": ((x > 0.5) == (y > 0.5)).mean()})
    if not rows:
        return pd.DataFrame()
    grouped = pd.DataFrame(rows).groupby(["network", "apart"])
    counted = grouped["correlation"].agg(pairs="size", correlation="mean", least="min", most="max")
    return counted.join(grouped[["of layers' means", "mean |difference|", "same side"]].mean()).reset_index()


def comparable(records: Sequence[Record]) -> list[Record]:
    """What :func:`shifts` takes: FT and MedMerge with their study's own settings, of studies that have both and FT from
    two sources, neither of which had seen test images.
    """
    studies: dict[Path, list[Record]] = {}
    for record in records:
        if record.approach in ("ft", "medmerge") and not record.settings:
            studies.setdefault(record.folder.parents[1], []).append(record)
    clean = []
    for runs in studies.values():
        tuned = {run.run["row"]["sources"][0] for run in runs if run.approach == "ft"}
        overlaps = [found for run in runs for found in run.run["data"].get("overlap", {}).values()]
        if len(tuned) > 1 and any(run.approach == "medmerge" for run in runs):
            clean += [] if any(found.get("images", {}).get("test") for found in overlaps) else runs
    return clean


def shifts(records: Sequence[Record]) -> pd.DataFrame:
    """Shift of w beside the FT difference of its sources: a line each row of runs that merged two sources.

    Args:
        records: of any number of studies; each such row needs FT from both sources with the same seeds and images.

    Returns:
        Columns study (``pair/backbone``), first and second (the sources), ``shift``, averaged over kernels and seeds,
        the columns of :func:`~medmerge.pages.contrast.contrast` for FT from first minus FT from second, and the
        records: ``merged``, ``of_first`` and ``of_second``.

    Raises:
        RecordError: no merged run, two such rows of one study, which are not independent, or FT is missing.
    """
    lines, pairs = [], []
    for folder, runs in merged_rows(records).items():
        if len(runs[0].run["row"]["sources"]) != 2:
            continue
        first, second = runs[0].run["row"]["sources"]
        tuned = [_fine_tuned(records, folder, source, runs) for source in (first, second)]
        named = {"study": "/".join(folder.parts[-3:-1]), "first": first, "second": second}
        shown = dict(zip(("merged", "of_first", "of_second"), (runs, *tuned), strict=True))
        lines.append(named | {"shift": _shifts(runs).mean(), **shown})
        pairs.append((named, *tuned))
    if not lines:
        raise RecordError("no run merged two sources: the claim is about the sources that w chooses between")
    table = pd.DataFrame(lines)
    if twice := table["study"][table["study"].duplicated()].tolist():
        raise RecordError(f"{twice[0]} has several rows of merged runs: give the one that the claim is about")
    return table.join(contrast(pairs)[["difference", "low", "high", "p"]])


def association(table: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> dict[str, object]:
    """Sign agreement and correlation of shift and FT difference across studies.

    Every resample draws each study's test images (stratified by class if single-label) and its seeds, the same seeds
    for FT and for w. The 95 % percentile intervals hold the studies fixed: they say how well these studies' numbers
    are known, not what other studies would show.

    Args:
        table: :func:`shifts`.

    Returns:
        ``same``, studies in which both have one sign, with ``same_low`` and ``same_high``; ``pearson`` and
        ``spearman``, each ``{"value", "low", "high"}``, NaN for fewer than :data:`LEAST` studies.
    """
    generators = np.random.default_rng(seed).spawn(len(table))
    pairs = [_resampled(row, resamples, own) for row, own in zip(table.itertuples(), generators, strict=True)]
    drawn = [np.stack(values, axis=1) for values in zip(*pairs, strict=True)]  # [resamples, studies], shift and FT
    known = [table["shift"].to_numpy(), table["difference"].to_numpy()]
    low, high = np.quantile((drawn[0] * drawn[1] > 0).sum(axis=1), [0.025, 0.975])
    found = {"same": int((known[0] * known[1] > 0).sum()), "same_low": low, "same_high": high}
    return found | {
        "pearson": _correlated(known, drawn),
        "spearman": _correlated([rankdata(v) for v in known], [rankdata(v, axis=1) for v in drawn]),
    }


def statement(table: pd.DataFrame) -> str:
    """What :func:`shifts` says about the claim, in Markdown: the correlation, or that it cannot be estimated."""
    return fill("shift", studies=len(table), least=LEAST, **association(table))


def _fine_tuned(records: Sequence[Record], merged: Path, source: str, runs: Sequence[Record]) -> list[Record]:
    """FT from a source in a merged row's study, its own alone if it has also varied it, with the row's seeds."""
    rows: dict[Path, dict[int, Record]] = {}
    for record in records:
        row = record.run["row"]
        if record.folder.parent.parent == merged.parent and (row["approach"], row["sources"]) == ("ft", [source]):
            rows.setdefault(record.folder.parent, {})[record.run["seed"]] = record
    plain = [found for found in rows.values() if not any(r.settings for r in found.values())]
    seeds = [run.run["seed"] for run in runs]
    found = plain or list(rows.values())
    if len(found) != 1 or not set(seeds) <= set(found[0]):
        raise RecordError(
            f"{merged.parent} has {len(found)} rows of FT from {source} for the seeds {seeds} of {merged.name}: the "
            "claim needs one from each source, with these seeds"
        )
    chosen = [found[0][seed] for seed in seeds]
    if len({run.run["data"]["fingerprint"] for run in (*runs, *chosen)}) > 1:
        raise RecordError(f"{merged} and its FT were tested on different images")
    return chosen


def _shifts(runs: Sequence[Record]) -> NDArray[np.float64]:
    """Mean w - 0.5 over kernels, by seed."""
    kernels = [np.concatenate([w.ravel() for w in run.kernel_weights.values()]) for run in runs]
    return np.array([w.mean(dtype=np.float64) - 0.5 for w in kernels])


def _resampled(row: object, resamples: int, generator: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Shift and FT difference ``[resamples]`` with the test images and the seeds drawn anew."""
    run, seeds = row.merged[0], len(row.merged)
    columns = {"first": predicted(row.of_first), "second": predicted(row.of_second)}
    cells = evaluation.counted(run.labels, columns, len(run.run["data"]["classes"]))
    scores = resampling.bootstrap(cells, resamples, generator)
    drawn = generator.integers(seeds, size=(resamples, seeds))
    differences = np.take_along_axis(scores[:, :seeds] - scores[:, seeds:], drawn, axis=1)
    return _shifts(row.merged)[drawn].mean(axis=1), differences.mean(axis=1)


def _correlated(known: Sequence[NDArray], drawn: Sequence[NDArray]) -> dict[str, float]:
    """Pearson's correlation of two ``[studies]``, and its interval from ``[resamples, studies]`` where defined."""
    if len(known[0]) < LEAST:
        return dict.fromkeys(("value", "low", "high"), float("nan"))
    values = np.array([pearson(a, b) for a, b in zip(*drawn, strict=True)])
    low, high = np.nanquantile(values, [0.025, 0.975]) if np.isfinite(values).any() else [float("nan")] * 2
    return {"value": pearson(*known), "low": low, "high": high}
