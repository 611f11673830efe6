"""Tables and sentences of a pair's page, computed from its records and from nothing else."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from medmerge.pages.contrast import ALPHA, against, by_row, interval, margin, predicted
from medmerge.pages.typeset import fill, number, span
from medmerge.stats import evaluation, significance
from medmerge.study.names import phrase
from medmerge.study.records import Record, score_column

BASELINES = ("ft", "lp_ft")
"""Approaches that the plan's first claim is about; a page with others among its rows is no family of the plan."""

GRADED = ("aptos2019", "eyepacs", "medmnist:retinamnist")
"""Targets whose classes are grades, in order."""

SINGLE = "With several labels an image these tests are not defined here."
"""Said in place of the tables where images have several labels."""

_NAMES = {
    **{"against": "MedMerge minus", "label": "row", "reference": "minus"},
    **{"p_holm": "p (Holm)", "superior": "superiority", "equivalence": "within the margin"},
}


def scores(records: Sequence[Record]) -> pd.DataFrame:
    """A row each: label, approach, seeds, means over seeds of the test metrics, and macro F1's interval.

    ``low`` and ``high`` are the 95 % bootstrap interval over test images; ``sd`` the standard deviation over seeds
    (NaN for one).
    """
    table = []
    for label, runs in by_row(records).items():
        metrics, (low, high) = pd.DataFrame([run.run["metrics"] for run in runs]), interval(runs)
        line = {"label": label, "approach": runs[0].approach, "seeds": len(runs), **metrics.mean()}
        table.append(line | {"mean": line["macro_f1"], "low": low, "high": high, "sd": metrics["macro_f1"].std()})
    return pd.DataFrame(table)


def score_table(records: Sequence[Record]) -> pd.DataFrame:
    """:func:`scores` with the columns and names that a reader wants."""
    table = scores(records)
    names = {"label": "run", "mean": "macro F1", "macro_auroc": "AUROC", "macro_ap": "average precision", "ece": "ECE"}
    columns = ("label", "seeds", "mean", "low", "high", "accuracy", "macro_auroc", "macro_ap", "ece")
    return table[[name for name in columns if name in table]].rename(columns=names)


def difference_table(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """A :func:`~medmerge.pages.contrast.contrast` with the names that a reader wants.

    Args:
        columns: those that are shown; by default what names the line, the difference, its interval and both p. Over
            one seed (column ``seeds``) nothing is judged.
    """
    if {"seeds", "superior"} <= {*table}:
        few = table["seeds"] == 1
        masked = {
            "superior": table["superior"].mask(few, "one seed"),
            "equivalence": table["equivalence"].mask(few, "–"),
        }
        table = table.assign(**masked)
    named = table.columns[: table.columns.get_loc("difference")]
    return table[list(columns) or [*named, "difference", "low", "high", "p", "p_holm"]].rename(columns=_NAMES)


def differences(records: Sequence[Record]) -> pd.DataFrame:
    """:func:`~medmerge.pages.contrast.against`: over seeds and images together, or over images alone where there is one
    seed or an image has several labels.
    """
    alone = records[0].multilabel or margin(records) is None
    return against(records, over="images" if alone else "seeds")


def comparison(records: Sequence[Record]) -> pd.DataFrame:
    """MedMerge against each baseline with the names that a reader wants: :func:`differences`, and where these are over
    seeds and images the interval over images alone.
    """
    found = differences(records)
    if "superior" not in found:
        return difference_table(found)
    images = against(records)
    found["images alone"] = [span(*ends) for ends in zip(images["low"], images["high"], strict=True)]
    columns = ("against", "difference", "low", "high", "superior", "equivalence", "images alone", "p_holm")
    return difference_table(found, *columns)


def recall_table(records: Sequence[Record]) -> pd.DataFrame:
    """A row each with the mean recall (sensitivity) of every class."""
    table = scores(records)
    recalls = [column for column in table if column.startswith("recall/")]
    names = {column: column.removeprefix("recall/") for column in recalls}
    return table[["label", *recalls]].rename(columns={"label": "recall of", **names})


def class_scores(records: Sequence[Record]) -> pd.DataFrame:
    """A line for each row and class, each class against the rest, means over seeds.

    Columns: label, approach, class, and the numbers and scores of :func:`~medmerge.stats.evaluation.class_scores`, NaN
    where undefined.
    """
    frames = []
    for label, runs in by_row(records).items():
        classes = runs[0].run["data"]["classes"]
        found = [evaluation.class_scores(run.labels, run.probabilities, classes) for run in runs]
        mean = pd.concat([pd.DataFrame(one).T.astype(float) for one in found]).groupby(level=0).mean().loc[classes]
        mean = mean.astype({"positives": int, "negatives": int}).rename_axis("class").reset_index()
        frames.append(pd.DataFrame({"label": label, "approach": runs[0].approach, **mean}))
    return pd.concat(frames, ignore_index=True)


def verdict(records: Sequence[Record]) -> str:
    """What a pair's records say about MedMerge, in Markdown: scores, differences, and how sure."""
    merged, best, line, pairs = _headline(records)
    sure, differences = pairs["p_holm"] < ALPHA, pairs["difference"]
    better, worse = (int((sure & (sign * differences > 0)).sum()) for sign in (1, -1))
    facts = {"merged": merged, "best": best, "line": line, "differences": differences, "better": better}
    return fill("verdict", worse=worse, **facts)


def circumstances(records: Sequence[Record]) -> str:
    """What the numbers rest on, in Markdown: images, size, weights, seeds, precision and device."""
    first, seeds = records[0], sorted({record.run["seed"] for record in records})
    devices = sorted({f"{record.run['precision']} on {record.run['device']}" for record in records})
    facts = {"images": first.images, "data": first.run["data"], "several": first.multilabel}
    return fill("circumstances", p=first.run["parameters"], seeds=seeds, devices=devices, **facts)


def overlap_note(records: Sequence[Record]) -> str:
    """What the sources had seen of the target's images, in Markdown; empty if nothing, or if nothing is recorded."""
    found = [(record.images, *one) for record in records for one in record.run["data"].get("overlap", {}).items()]
    notes = [fill("overlap", images=images, source=source, found=met) for images, source, met in found]
    return " ".join(filter(None, dict.fromkeys(notes)))


def planned_verdict(records: Sequence[Record]) -> str:
    """What a pair says of the first claim of the analysis plan (`book/plan.md`), in Markdown, with the margin."""
    if records[0].multilabel:
        return SINGLE
    spread = margin(records)
    if spread is None:
        return "One seed: what another would change is not known, and the analysis plan decides nothing on it."
    found = against(records, over="seeds")
    others = {r.run["row"]["title"]: None for r in records if r.approach not in (*BASELINES, "medmerge")}
    facts = {"found": found, "margin": spread, "others": list(others), "outcome": decide(found)}
    return fill("planned", seeds={record.run["seed"] for record in records}, **facts)


def decide(found: pd.DataFrame) -> str:
    """What the plan makes of MedMerge against its baselines: ``"support"``, ``"failure"`` or ``"undecided"``.

    Support: superior to every baseline. Failure: inferior, or equivalent, to one. With one seed nothing is decided.

    Args:
        found: :func:`~medmerge.pages.contrast.against`, over seeds.
    """
    if (found["equivalence"] == "unknown").any():
        return "undecided"
    if (found["superior"] == "superior").all():
        return "support"
    failed = (found["superior"] == "inferior") | (found["equivalence"] == "equivalent")
    return "failure" if failed.any() else "undecided"


def secondary(records: Sequence[Record]) -> pd.DataFrame:
    """Secondary outcomes, described and in no family: a line a baseline, of MedMerge minus it.

    Accuracy, mean over seeds, with McNemar's p of each seed, and macro AUROC, mean over seeds, with DeLong's interval,
    not defined where a class has one image or is ranked perfectly by both.
    """
    rows = by_row(records)
    (merged,) = [runs for runs in rows.values() if runs[0].approach == "medmerge" and not runs[0].settings]
    labels, lines = merged[0].labels, []
    for label, runs in rows.items():
        if runs is merged:
            continue
        exact = [significance.mcnemar(labels, a, b) for a, b in zip(predicted(merged), predicted(runs), strict=True)]
        line = {"MedMerge minus": label, "accuracy": float(np.mean([difference for difference, _ in exact]))}
        line["McNemar's p, by seed"] = ", ".join(number(p, ".2g") for _, p in exact)
        try:
            area = significance.delong(
                labels, *(np.stack([run.probabilities for run in each]) for each in (merged, runs))
            )
            line |= {"AUROC": area.difference, "low": area.low, "high": area.high}
        except ValueError:
            line |= dict.fromkeys(("AUROC", "low", "high"), float("nan"))
        lines.append(line)
    return pd.DataFrame(lines)


def kappas(records: Sequence[Record]) -> pd.DataFrame:
    """:func:`~medmerge.stats.significance.quadratic_kappa` of grades, a line a row: mean over seeds, and each."""
    lines = []
    for label, runs in by_row(records).items():
        count, found = len(runs[0].run["data"]["classes"]), zip(predicted(runs), runs, strict=True)
        each = np.array([significance.quadratic_kappa(run.labels, one, count) for one, run in found], dtype=float)
        lines.append({"run": label, "quadratic kappa": each.mean(), "by seed": ", ".join(map(number, each))})
    return pd.DataFrame(lines)


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
    away = np.abs(w - record.neutral)
    found = {"mean": float(away.mean()), "largest": float(away.max())}
    found |= {"share_first": float((w > record.neutral).mean()), "kernels": len(w)}
    return found | {"kept_epoch": int(kept), "steps": int(steps), "budget": float(lr * steps)}


def histories(records: Sequence[Record]) -> pd.DataFrame:
    """All histories in one frame, with columns run, approach and seed; runs that trained nothing have no rows."""
    frames = [r.history.assign(run=r.label, approach=r.approach, seed=r.run["seed"]) for r in records]
    return pd.concat([frame for frame in frames if len(frame)] or frames, ignore_index=True)


def choice_table(records: Sequence[Record]) -> pd.DataFrame:
    """What runs chose on the validation images beyond an epoch, a row each; without rows where none did."""
    table = []
    for record in records:
        for name, value in record.run.get("choices", {}).items():
            text = " + ".join(map(phrase, value)) if isinstance(value, list) else value
            table += [(record.label, record.run["seed"], f"{name}: {text}")] if name != "validation" else []
    return pd.DataFrame(table, columns=["run", "seed", "chosen"])


def numbers(records: Sequence[Record]) -> dict[str, str]:
    """What the book's prose takes from a page, by name: the best baseline, the training images, w's budget."""
    _, best, *_ = _headline(records)
    moved = displacement(next(record for record in records if record.kernel_weights))
    found = {"best-baseline": best["label"], "train-images": number(records[0].images["train"], ",")}
    return found | {"budget": number(moved["budget"], ".2f")}


def _headline(records: Sequence[Record]) -> tuple[pd.Series, pd.Series, pd.Series, pd.DataFrame]:
    """MedMerge's scores, the best baseline's, the comparison of the two, and all comparisons."""
    table, pairs = scores(records), against(records)
    merged = table[table["approach"] == "medmerge"].iloc[0]
    best = table[table["approach"] != "medmerge"].sort_values("mean").iloc[-1]
    return merged, best, pairs[pairs["against"] == best["label"]].iloc[0], pairs
