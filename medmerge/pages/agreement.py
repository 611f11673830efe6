"""Whether merging weights are the same again: between seeds, between runs, and with what fine-tuning says; and whether
they are worth anything, and came to rest.

The paper's claim about its Fig. 2 and Table 1 (section 4), as numbers: the shift, the mean of w - 0.5 over all kernels,
has the sign of FT's macro F1 from the first source minus that from the second.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from medmerge.pages.contrast import by_row, contrast, predicted
from medmerge.pages.typeset import fill
from medmerge.pages.weights import Weights, shift
from medmerge.stats import evaluation, resampling
from medmerge.study import names
from medmerge.study.records import Record

LEAST = 3
"""Fewer studies than this have no correlation to speak of."""


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
        Columns one, other, kernels; ``pearson`` over all kernels; ``layers``, the correlation of layers' means;
        ``within``, that of deviations from them; ``null``, ``null_low`` and ``null_high``, mean and 95 % range of
        ``pearson`` after shuffling; ``p_value`` that shuffling gives as much.
    """
    generator, rows = np.random.default_rng(seed), []
    vectors = {key: {name: np.asarray(w, dtype=np.float64) for name, w in run.items()} for key, run in runs.items()}
    for (one, a), (other, b) in itertools.combinations(vectors.items(), 2):
        x, y = _kernels(a), _kernels(b)
        deviations = [np.concatenate([w - w.mean() for w in run.values()]) for run in (a, b)]
        observed = pearson(x, y)
        products = sum(generator.permuted(np.tile(b[k], (resamples, 1)), axis=1) @ a[k] for k in a)
        spread = x.std() * y.std()
        null = (products / len(x) - x.mean() * y.mean()) / spread if spread > 1e-15 else np.full(resamples, np.nan)
        as_large, (low, high) = (null >= observed - 1e-12).sum(), np.quantile(null, [0.025, 0.975])
        line = {"one": one, "other": other, "kernels": len(x), "pearson": observed}
        line |= {"layers": pearson(_means(a), _means(b)), "within": pearson(*deviations)}
        line |= {"null": null.mean(), "null_low": low, "null_high": high}
        p = (1 + as_large) / (1 + resamples) if np.isfinite(observed) else float("nan")
        rows.append(line | {"p_value": p})
    return pd.DataFrame(rows)


def _kernels(weights: Weights) -> NDArray:
    return np.concatenate(list(weights.values()))


def _means(weights: Weights) -> NDArray:
    return np.array([w.mean() for w in weights.values()])


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
        x, y = _kernels(a), _kernels(b)
        row = "seed" if one.folder.parent == other.folder.parent else "study or settings"
        apart = row if one.run["sources"] == other.run["sources"] else f"{row}, and networks merged"
        line = {"network": names.title(one.folder.parts[-3]), "apart": apart}
        line |= {"correlation": pearson(x, y), "of layers' means": pearson(_means(a), _means(b))}
        rows.append(line | {"mean |difference|": np.abs(x - y).mean(), "same side": ((x > 0.5) == (y > 0.5)).mean()})
    if not rows:
        return pd.DataFrame()
    grouped = pd.DataFrame(rows).groupby(["network", "apart"])
    counted = grouped["correlation"].agg(pairs="size", correlation="mean", least="min", most="max")
    return counted.join(grouped[["of layers' means", "mean |difference|", "same side"]].mean()).reset_index()


def shifts(records: Sequence[Record]) -> pd.DataFrame:
    """Shift of w beside the FT difference of its sources: a line each study that has both.

    Args:
        records: of any number of studies. Of each count MedMerge of two sources and FT from either, with the study's
            own settings and over the seeds that all three have; a study whose sources had seen test images does not.

    Returns:
        Columns study (``pair/backbone``), first and second (the sources), ``shift``, averaged over kernels and seeds,
        the columns of :func:`~medmerge.pages.contrast.contrast` for FT from first minus FT from second, and the
        records: ``merged``, ``of_first`` and ``of_second``. Empty without such a study.

    Raises:
        RecordError: runs of one study were tested on different images.
    """
    studies: dict[Path, dict[tuple, dict[int, Record]]] = {}
    for record in records:
        if record.approach in ("ft", "medmerge") and not record.settings:
            row = record.approach, *record.run["row"]["sources"]
            studies.setdefault(record.folder.parents[1], {}).setdefault(row, {})[record.run["seed"]] = record
    lines, pairs = [], []
    for folder, rows in studies.items():
        merged = next((row for row in rows if row[0] == "medmerge" and len(row) == 3), ())
        needed = [merged, *(("ft", source) for source in merged[1:])]
        overlaps = [found for row in rows.values() for run in row.values() for found in _overlaps(run)]
        if not set(needed) <= set(rows) or any(found.get("images", {}).get("test") for found in overlaps):
            continue
        if not (seeds := sorted(set.intersection(*(set(rows[row]) for row in needed)))):
            continue
        found = [[rows[row][seed] for seed in seeds] for row in needed]
        by_row(sum(found, []))  # refuses other test images
        named = dict(zip(("study", "first", "second"), ("/".join(folder.parts[-2:]), *merged[1:]), strict=True))
        shown = dict(zip(("merged", "of_first", "of_second"), found, strict=True))
        lines.append(named | {"shift": np.mean([*map(shift, found[0])]), **shown})
        pairs.append((named, *found[1:]))
    return pd.DataFrame(lines).join(contrast(pairs)[["difference", "low", "high", "p"]])


def _overlaps(run: Record) -> Iterable[Mapping]:
    return run.run["data"].get("overlap", {}).values()


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
    ranked = [stats.rankdata(v) for v in known], [stats.rankdata(v, axis=1) for v in drawn]
    found = {"same": int((known[0] * known[1] > 0).sum()), "same_low": low, "same_high": high}
    return found | {"pearson": _correlated(known, drawn), "spearman": _correlated(*ranked)}


def statement(table: pd.DataFrame) -> str:
    """What :func:`shifts` says about the claim, in Markdown: the correlation, or that it cannot be estimated."""
    return fill("shift", studies=len(table), least=LEAST, **association(table))


def _resampled(row: object, resamples: int, generator: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Shift and FT difference ``[resamples]`` with the test images and the seeds drawn anew."""
    run, seeds = row.merged[0], len(row.merged)
    columns = {"first": predicted(row.of_first), "second": predicted(row.of_second)}
    cells = evaluation.counted(run.labels, columns, len(run.run["data"]["classes"]))
    scores = resampling.bootstrap(cells, resamples, generator)
    drawn = generator.integers(seeds, size=(resamples, seeds))
    differences = np.take_along_axis(scores[:, :seeds] - scores[:, seeds:], drawn, axis=1)
    return np.array([*map(shift, row.merged)])[drawn].mean(axis=1), differences.mean(axis=1)


def _correlated(known: Sequence[NDArray], drawn: Sequence[NDArray]) -> dict[str, float]:
    """Pearson's correlation of two ``[studies]``, and its interval from ``[resamples, studies]`` where defined."""
    if len(known[0]) < LEAST:
        return dict.fromkeys(("value", "low", "high"), float("nan"))
    values = np.array([pearson(a, b) for a, b in zip(*drawn, strict=True)])
    low, high = np.nanquantile(values, [0.025, 0.975]) if np.isfinite(values).any() else [float("nan")] * 2
    return {"value": pearson(*known), "low": low, "high": high}


def replaced(runs: Sequence[Record]) -> pd.DataFrame:
    """What learnt w is worth in each run, as in :func:`learning`: ``run`` (pair, seed), ``network``, ``difference``."""
    lines = []
    for run in (one for one in runs if not one.controls.empty):
        scores = run.controls.groupby("control")["score"].mean()
        name = f"{names.pair(run.folder.parts[-4])}, seed {run.run['seed']}"
        line = {"run": name, "network": names.title(run.folder.parts[-3])}
        lines.append(line | {"difference": scores["learnt"] - scores["start"]})
    return pd.DataFrame(lines)


def learning(runs: Sequence[Record]) -> dict[str, float]:
    """Validation macro F1 as the probe left it, with learnt w minus with w = 0.5, over runs.

    Batch norm is as learnt, and the epoch was chosen, with the learnt w: both favour it.

    Returns:
        ``runs``, ``difference`` and the ends ``low`` and ``high`` of its 95 % t interval over runs.
    """
    each = replaced(runs)["difference"].to_numpy()
    reach = stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / np.sqrt(len(each))
    return {"runs": len(each), "difference": each.mean(), "low": each.mean() - reach, "high": each.mean() + reach}


def pace(run: Record) -> tuple[float, float]:
    """How far w is from its start at the end of the probe, in the mean over kernels, and how much of that way the
    second half of the epochs adds: about a half if w goes on as it began, nothing if it has come to rest."""
    epochs, weights = run.kernel_history
    moved = np.mean(np.concatenate([np.abs(w - run.neutral) for w in weights.values()], axis=1), axis=1)
    half = np.interp(epochs[-1] / 2, [0, *epochs], [0, *moved])
    return float(moved[-1]), float(1 - half / moved[-1])
