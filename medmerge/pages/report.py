"""Tables and sentences of a pair's page, computed from its records and from nothing else."""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from medmerge.stats import evaluation
from medmerge.study.records import Record, RecordError, score_column

Rows = dict[str, list[Record]]

ALPHA = 0.05
"""Family-wise error rate of a pair's comparisons, after Holm."""

_PARTS = {"test": "test", "val": "validation", "train": "training"}
_RESAMPLED: dict[bytes, object] = {}


def by_row(records: Sequence[Record]) -> Rows:
    """Records by their row's label, in order of appearance, each row's seeds in order.

    Raises:
        RecordError: rows with other seeds or other test images than the first: their scores are not comparable.
    """
    rows: Rows = {}
    for record in records:
        rows.setdefault(record.label, []).append(record)
    first = next(iter(rows.values()), [])
    for label, runs in rows.items():
        runs.sort(key=lambda record: record.run["seed"])
        if [r.run["seed"] for r in runs] != [r.run["seed"] for r in first]:
            raise RecordError(f"{label} has other seeds than {first[0].label}; run all rows with the same seeds")
        for record in runs:
            if record.run["data"]["fingerprint"] != first[0].run["data"]["fingerprint"]:
                raise RecordError(f"{record.folder} was tested on other images than {first[0].folder}")
    return rows


def predicted(runs: Sequence[Record]) -> np.ndarray:
    """Predicted class of every test image, int64 ``[seeds, N]``; multi-label 1 or 0, ``[seeds, N, K]``."""
    return np.stack([evaluation.decide(run.probabilities, run.multilabel) for run in runs])


def scores(records: Sequence[Record]) -> pd.DataFrame:
    """A row each: label, approach, seeds, means over seeds of the test metrics, and macro F1's interval.

    ``low`` and ``high`` are the 95 % bootstrap interval over test images; ``sd`` the standard deviation over seeds
    (NaN for one).
    """
    table = []
    for label, runs in by_row(records).items():
        metrics = pd.DataFrame([run.run["metrics"] for run in runs])
        classes = runs[0].run["data"]["classes"]
        low, high = _once(evaluation.bootstrap_interval, runs[0].labels, predicted(runs), num_classes=len(classes))
        table.append(
            {"label": label, "approach": runs[0].approach, "seeds": len(runs)}
            | metrics.mean().to_dict()
            | {"mean": metrics["macro_f1"].mean(), "low": low, "high": high, "sd": metrics["macro_f1"].std()}
        )
    return pd.DataFrame(table)


def comparisons(records: Sequence[Record], reference: str = "medmerge") -> pd.DataFrame:
    """One row against every other: difference in macro F1, 95 % interval, p and Holm-adjusted p.

    Paired by test image (:func:`~medmerge.stats.evaluation.compare`); the family is all rows of this table.

    Args:
        reference: the row, by its label, or by its approach if only one row of it has no settings of its own.
    """
    rows = by_row(records)
    chosen = [label for label in rows if label == reference] or [
        label for label, (run, *_) in rows.items() if run.approach == reference and not run.settings
    ]
    if len(chosen) != 1:
        raise RecordError(f"{len(chosen)} rows of {reference!r} among {list(rows)}; the comparison needs one")
    table = []
    for label, runs in rows.items():
        if label == chosen[0]:
            continue
        result = compare(rows[chosen[0]], runs)
        table.append(
            {"against": label, "difference": result.difference, "low": result.low, "high": result.high}
            | {"p": result.p_value}
        )
    frame = pd.DataFrame(table, columns=["against", "difference", "low", "high", "p"])
    return frame.assign(p_holm=evaluation.holm(frame["p"]) if len(frame) else [])


def compare(runs: Sequence[Record], others: Sequence[Record]) -> evaluation.Comparison:
    """A row's runs against another's, seed by seed, on the same test images
    (:func:`~medmerge.stats.evaluation.compare`).
    """
    classes = runs[0].run["data"]["classes"]
    return _once(evaluation.compare, runs[0].labels, predicted(runs), predicted(others), num_classes=len(classes))


def _once(function: Callable, *arrays: np.ndarray, num_classes: int) -> object:
    """``function(*arrays, num_classes)``, computed once a process: a page shows the same resampling many times."""
    key = hashlib.sha256(repr([function.__name__, num_classes, *((a.dtype.str, a.shape) for a in arrays)]).encode())
    for array in arrays:
        key.update(np.ascontiguousarray(array))
    if key.digest() not in _RESAMPLED:
        _RESAMPLED[key.digest()] = function(*arrays, num_classes)
    return _RESAMPLED[key.digest()]


def verdict(records: Sequence[Record]) -> str:
    """What a pair's records say about MedMerge, in Markdown: scores, differences, and how sure."""
    merged, best, against_best, pairs = _headline(records)
    sure = pairs["p_holm"] < ALPHA
    better, worse = ((sure & (sign * pairs["difference"] > 0)).sum() for sign in (1, -1))
    return (
        f"MedMerge reaches a macro F1 of **{merged['mean']:.3f}** (95 % interval over test images {merged['low']:.3f} "
        f"to {merged['high']:.3f}, {_seeds(merged)}). It is above {(pairs['difference'] > 0).sum()} and below "
        f"{(pairs['difference'] < 0).sum()} of the {len(pairs)} baselines; after Holm's correction it is significantly "
        f"(5 %) better than {better or 'none'} and worse than {worse or 'none'} of them. The best baseline is "
        f"{best['label']} with {best['mean']:.3f}; MedMerge's difference from it is {against_best['difference']:+.3f} "
        f"({against_best['low']:+.3f} to {against_best['high']:+.3f}, Holm-adjusted p = {against_best['p_holm']:.2g})."
    )


def circumstances(records: Sequence[Record]) -> str:
    """What the numbers rest on, in Markdown: images, size, weights, seeds, precision and device."""
    run, images = records[0].run, records[0].images
    p, kind = run["parameters"], ", several an image" if records[0].multilabel else ""
    seeds = sorted({record.run["seed"] for record in records})
    devices = sorted({f"{record.run['precision']} on {record.run['device']}" for record in records})
    return (
        f"{p['backbone']} at {p['image_size']} px; {images['train']:,} training, {images['val']:,} "
        f"validation and {images['test']:,} test images of {run['data']['name']} "
        f"({len(run['data']['classes'])} classes{kind}: {', '.join(run['data']['classes'])}), {p['split']} split; base "
        f"weights: {p['base_data']}; seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; "
        f"{' and '.join(devices)}."
    )


def overlap_note(records: Sequence[Record]) -> str:
    """What the sources had seen of the target's images, in Markdown; empty if nothing, or if nothing is recorded."""
    sentences = []
    for record in records:
        for source, found in record.run["data"].get("overlap", {}).items():
            sentences.append(_overlap(source, found, record.images))
    return " ".join(sentence for sentence in dict.fromkeys(sentences) if sentence)


def _overlap(source: str, found: Mapping, images: Mapping[str, int]) -> str:
    """What one source has seen: the ``images`` themselves, and further ones by their ``groups``, counted by part."""
    if "unknown" in found:
        return f"It could not be checked whether {source} was trained on any of these images: {found['unknown']}."
    met = {part: (found["images"].get(part, 0), found["groups"].get(part, 0)) for part in _PARTS}
    counts = [
        f"{_PARTS[part]}: {same:,} of {images[part]:,} images themselves, {near:,} more by their patient or lesion"
        for part, (same, near) in met.items()
        if same or near
    ]
    if not counts:
        return ""
    meant = " (the parameters say that this is meant: `allow_overlap`)" if found.get("allowed") else ""
    seen = any(met["test"]) or any(met["val"])
    said = "Scores on them say less than they seem to" if seen else "No validation or test image is among them"
    return f"**Warning: {source} was trained on images of this target**{meant}; {'; '.join(counts)}. {said}."


def score_table(records: Sequence[Record]) -> pd.DataFrame:
    """:func:`scores` with the columns and names that a reader wants."""
    table = scores(records).assign(interval=lambda t: _intervals(t, ".3f"))
    names = {
        **{"label": "run", "seeds": "seeds", "accuracy": "accuracy", "mean": "macro F1", "interval": "95 % interval"},
        **{"macro_auroc": "AUROC", "macro_ap": "average precision", "ece": "ECE"},
    }
    return table[[name for name in names if name in table]].rename(columns=names)


def comparison_table(records: Sequence[Record]) -> pd.DataFrame:
    """:func:`comparisons` with the columns and names that a reader wants."""
    table = comparisons(records).assign(interval=lambda t: _intervals(t, "+.3f"))
    names = {"against": "MedMerge minus", "interval": "95 % interval", "p_holm": "p (Holm)"}
    return table.rename(columns=names)[["MedMerge minus", "difference", "95 % interval", "p", "p (Holm)"]]


def recall_table(records: Sequence[Record]) -> pd.DataFrame:
    """A row each with the mean recall (sensitivity) of every class."""
    table = scores(records)
    recalls = [column for column in table if column.startswith("recall/")]
    names = {column: column.removeprefix("recall/") for column in recalls}
    return table[["label", *recalls]].rename(columns={"label": "recall of", **names})


def class_scores(records: Sequence[Record]) -> pd.DataFrame:
    """A line for each row and class, each class against the rest, means over seeds.

    Columns: label, approach, class, and the numbers and scores of :func:`~medmerge.stats.evaluation.class_scores`, NaN
    where
    undefined.
    """
    frames = []
    for label, runs in by_row(records).items():
        classes = runs[0].run["data"]["classes"]
        found = [evaluation.class_scores(run.labels, run.probabilities, classes) for run in runs]
        mean = pd.concat([pd.DataFrame(one).T.astype(float) for one in found]).groupby(level=0).mean().loc[classes]
        mean = mean.astype({"positives": int, "negatives": int}).rename_axis("class").reset_index()
        mean.insert(0, "label", label)
        mean.insert(1, "approach", runs[0].approach)
        frames.append(mean)
    return pd.concat(frames, ignore_index=True)


def class_table(records: Sequence[Record]) -> pd.DataFrame:
    """:func:`class_scores` with the columns and names that a reader wants."""
    names = {
        **{"label": "run", "class": "class", "positives": "with it", "negatives": "without it", "auroc": "AUROC"},
        **{"ap": "average precision", "sensitivity": "sensitivity", "specificity": "specificity", "f1": "F1"},
    }
    return class_scores(records)[list(names)].rename(columns=names)


def _intervals(table: pd.DataFrame, form: str) -> list[str]:
    return [f"{low:{form}} to {high:{form}}" for low, high in table[["low", "high"]].itertuples(index=False)]


def displacement(record: Record) -> dict[str, float]:
    """How far the merging weights of the first source went from their start, 0.5 or of n sources 1/n, beside how far
    AdamW's steps could have carried them.

    Returns:
        ``mean`` and ``largest`` absolute deviation over kernels, ``share_first`` of kernels with w above it, ``steps``
        up to the kept epoch, and ``budget`` = w's learning rate x steps: Adam moves a weight by about its learning
        rate a step.
    """
    w = np.concatenate([values.ravel() for values in record.kernel_weights.values()])
    p, history = record.run["parameters"], record.history
    lr = p["lp_lr"] if p.get("w_lr") is None else p["w_lr"]
    probe = history[history["phase"] == "linear_probe"].reset_index(drop=True)
    kept = probe[score_column(probe)].idxmax() + 1 if p["select"] == "best" else len(probe)
    whole, rest = divmod(record.images["train"], p["batch_size"])
    steps = kept * (whole + (rest > 1 or not whole))
    return {
        "mean": float(np.abs(w - record.neutral).mean()),
        "largest": float(np.abs(w - record.neutral).max()),
        "share_first": float((w > record.neutral).mean()),
        "kernels": len(w),
        "kept_epoch": int(kept),
        "steps": int(steps),
        "budget": float(lr * steps),
    }


def histories(records: Sequence[Record]) -> pd.DataFrame:
    """All histories in one frame, with columns run, approach and seed; runs that trained nothing have no rows."""
    frames = [
        record.history.assign(run=record.label, approach=record.approach, seed=record.run["seed"]) for record in records
    ]
    return pd.concat([frame for frame in frames if len(frame)] or frames, ignore_index=True)


def choice_table(records: Sequence[Record]) -> pd.DataFrame:
    """What runs chose on the validation images beyond an epoch, a row each; without rows where none did."""
    table = []
    for record in records:
        for name, value in record.run.get("choices", {}).items():
            if name != "validation":
                text = " + ".join(value) if isinstance(value, list) else value
                table.append({"run": record.label, "seed": record.run["seed"], "chosen": f"{name}: {text}"})
    return pd.DataFrame(table, columns=["run", "seed", "chosen"])


def costs(records: Sequence[Record]) -> pd.DataFrame:
    """A row a run: seconds by phase and in all, and peak memory in MiB.

    *Ingredients* are the networks that an approach combines, at their price, recalled or not.
    """
    table = []
    for record in records:
        cost = record.run["cost"]
        seconds = {f"{phase.replace('_', ' ')}, s": values["seconds"] for phase, values in cost.items()}
        memory = max((values.get("peak_memory_mib", 0) for values in cost.values()), default=0)
        table.append({"run": record.label, "seed": record.run["seed"], **seconds, "total, s": sum(seconds.values())})
        table[-1]["peak memory, MiB"] = memory
    frame = pd.DataFrame(table)
    last = ["total, s", "peak memory, MiB"]
    return frame[[*(column for column in frame if column not in last), *last]]


def sources(records: Sequence[Record]) -> pd.DataFrame:
    """A row a run: package version, commit, libraries, and the start of its definition's hash."""
    table = []
    for record in records:
        origin = record.run["provenance"]
        table.append(
            {"run": record.label, "seed": record.run["seed"], "commit": origin["commit"][:10]}
            | {name: origin["versions"][name] for name in ("medmerge", "torch", "torchvision")}
            | {"definition": record.run["hash"][:10], "images": record.run["data"]["fingerprint"][:10]}
        )
    return pd.DataFrame(table)


def numbers(records: Sequence[Record]) -> dict[str, str]:
    """The page's numbers by name, formatted, for prose elsewhere in the book."""
    merged, best, against, pairs = _headline(records)
    run = records[0].run
    moved = displacement(next(record for record in records if record.kernel_weights))
    return {
        "finding": _finding(against["difference"], against["p_holm"]),
        "f1": f"{merged['mean']:.3f}",
        "f1-interval": f"{merged['low']:.3f} to {merged['high']:.3f}",
        "best-baseline": best["label"],
        "best-f1": f"{best['mean']:.3f}",
        "difference": f"{against['difference']:+.3f}",
        "difference-interval": f"{against['low']:+.3f} to {against['high']:+.3f}",
        "p-holm": f"{against['p_holm']:.2g}",
        "baselines": str(len(pairs)),
        "seeds": _seeds(merged),
        "test-images": f"{records[0].images['test']:,}",
        "train-images": f"{records[0].images['train']:,}",
        "image-size": str(run["parameters"]["image_size"]),
        "kernels": f"{moved['kernels']:,}",
        "displacement": f"{moved['mean']:.3f}",
        "displacement-largest": f"{moved['largest']:.3f}",
        "budget": f"{moved['budget']:.2f}",
    }


def _headline(records: Sequence[Record]) -> tuple[pd.Series, pd.Series, pd.Series, pd.DataFrame]:
    """MedMerge's scores, the best baseline's, the comparison of the two, and all comparisons."""
    table, pairs = scores(records), comparisons(records)
    merged = table[table["approach"] == "medmerge"].iloc[0]
    best = table[table["approach"] != "medmerge"].sort_values("mean").iloc[-1]
    return merged, best, pairs[pairs["against"] == best["label"]].iloc[0], pairs


def _seeds(row: pd.Series) -> str:
    return f"{row['seeds']} seed" + "s" * int(row["seeds"] > 1)


def _finding(difference: float, p_holm: float) -> str:
    """The difference from the best baseline in one sentence, no stronger than its test."""
    if p_holm >= ALPHA:
        return "No difference between MedMerge and the best baseline is shown, in either direction."
    return f"MedMerge is significantly {'better' if difference > 0 else 'worse'} than the best baseline."
