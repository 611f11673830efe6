"""What the records say together: the answer, pooled over pairs, about learning w, and whether w came to rest."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from medmerge.pages import claims, second
from medmerge.pages.claims import FAILURE, SUPPORT, Pair
from medmerge.pages.contrast import GAIN, contrast
from medmerge.pages.template import fill
from medmerge.stats import pooling
from medmerge.study import names
from medmerge.study.records import Record

BASELINES = {
    ("ft", 0): "FT from the base",
    ("ft", 1): "FT from the medical source",
    ("lp_ft", 0): "LP-FT from the base",
    ("lp_ft", 1): "LP-FT from the medical source",
}
"""By approach and place of the source."""


POOLED = "All pairs pooled"


def compared() -> pd.DataFrame:
    """MedMerge minus the paper's four baselines, in every pair that counts and pooled over those of DenseNet-121.

    Pooled is the second round, by its plan, where a pair of it counts; else the first, which was pooled afterwards.

    Returns:
        A line a difference: ``baseline``, ``row`` (of MedMerge), ``pair``, ``network``, ``tested`` (images),
        ``difference``, ``low``, ``high``, ``power``; whether it is of ``whole``, the pairs pooled, which come last,
        with the ends of random effects, ``random_low`` and ``random_high``; and whether pooling was ``planned``.
    """
    later = second.counted()
    families = {name: second.family(rows) for name, rows in later.items()}
    lines = []
    for name, family in families.items():
        network = names.title("densenet121") + family["row"].str.removeprefix(second.SLOW)
        tested = len(later[name][second.SLOW][0].predictions)
        lines.append(family.assign(pair=names.pair(name), network=network, tested=tested))
    first = {network: [one for one in claims.pairs(network) if one.counts] for network in claims.BACKBONES}
    for one in (one for found in first.values() for one in found):
        known = {one.row(a, one.sources[at])[0].label: name for (a, at), name in BASELINES.items()}
        family = one.comparisons.replace({"against": known}).assign(row=second.SLOW, pair=one.short)
        lines.append(family.assign(network=names.title(one.p.backbone), tested=len(one.records[0].predictions)))
    whole = second.pooled(families) if later else pooled(first["densenet121"]).query("stage == 'at the end'")
    whole = whole.assign(whole=True, pair=POOLED, network=POOLED)
    if later:
        whole["pair"] = POOLED + whole["row"].str.removeprefix(second.SLOW)
    table = pd.concat([*(line.assign(whole=False) for line in lines), whole], ignore_index=True)
    table = table.fillna({"row": second.SLOW}).rename(columns={"against": "baseline"})
    shown = ["baseline", "row", "pair", "network", "tested", "difference", "low", "high", "power", "whole", "pairs"]
    table = table[table["baseline"].isin(second.PAPERS)][[*shown, "random_low", "random_high"]]
    return table.assign(planned=bool(later))


def outcome(table: pd.DataFrame) -> str:
    """Whether MedMerge beats ordinary transfer: as the second plan decides, where its pooling is what there is; else
    support if every pooled interval is above 0, and failure if each ends below the paper's gain.

    Args:
        table: :func:`compared`.
    """
    if table["planned"].all():
        return second.decided(second.counted())[0].verdict
    whole = table[table["whole"]]
    return SUPPORT if (whole["low"] > 0).all() else FAILURE if (whole["high"] < GAIN).all() else second.OPEN


def told(table: pd.DataFrame, strength: float) -> dict[str, str]:
    """For the book's first page, in Markdown: the ``answer``, how ``sure`` it is, and whether to ``use`` MedMerge.

    Args:
        table: :func:`compared`.
        strength: power that the second round was planned with.
    """
    p, rows = claims.parameters(second.PAIRS[0]), second.pair(second.PAIRS[0])
    facts = {"gain": GAIN, "outcome": outcome(table), "planned": table["planned"].all(), "strength": strength}
    facts |= {"whole": table[table["whole"]], "each": table[~table["whole"]], "asked": len(p.seeds)}
    facts["done"] = len(next(iter(rows.values())))
    return {name: fill(name, **facts) for name in ("answer", "sure", "use")}


def pooled(found: Sequence[Pair]) -> pd.DataFrame:
    """MedMerge minus each baseline, pooled over pairs: at the end, and after the probe where all runs have kept that.

    Returns:
        A line a baseline: ``against``, ``stage`` ("after the probe" or "at the end"), ``pairs``, and the fields of
        :class:`medmerge.stats.pooling.Pooled`.
    """
    lines = []
    for (approach, place), name in BASELINES.items():
        rows = [({}, one.row("medmerge"), one.row(approach, one.sources[place])) for one in found]
        probed = [({}, *([run.after_probe() for run in runs] for runs in pair)) for _, *pair in rows]
        whole = all(run for _, *pair in probed for runs in pair for run in runs)
        for stage, pairs in {**({"after the probe": probed} if whole else {}), "at the end": rows}.items():
            each = contrast(pairs, "seeds")
            result = pooling.pool(each["difference"], each["error"])
            lines.append({"against": name, "stage": stage, "pairs": len(found), **vars(result)})
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


def replaced(runs: Sequence[Record]) -> pd.DataFrame:
    """What learnt w is worth in each run, as in :func:`learning`: ``run`` (pair, seed), ``network``, ``difference``."""
    lines = []
    for run in (one for one in runs if not one.controls.empty):
        scores = run.controls.groupby("control")["score"].mean()
        name = f"{names.pair(run.folder.parts[-4])}, seed {run.run['seed']}"
        line = {"run": name, "network": names.title(run.folder.parts[-3])}
        lines.append(line | {"difference": scores["learnt"] - scores["start"]})
    return pd.DataFrame(lines)


def pace(run: Record) -> tuple[float, float]:
    """How far w is from its start at the end of the probe, in the mean over kernels, and how much of that way the
    second half of the epochs adds: about a half if w goes on as it began, nothing if it has come to rest."""
    epochs, weights = run.kernel_history
    moved = np.mean(np.concatenate([np.abs(w - run.neutral) for w in weights.values()], axis=1), axis=1)
    half = np.interp(epochs[-1] / 2, [0, *epochs], [0, *moved])
    return float(moved[-1]), float(1 - half / moved[-1])


def copies(found: Mapping[str, Sequence[Record]]) -> dict[str, str]:
    """Rivals that chose to be one of the networks that they could have combined, with what each seed chose."""
    chosen = {label: [_alone(run.run.get("choices", {})) for run in runs] for label, runs in found.items()}
    return {label: ", ".join(names) for label, names in chosen.items() if names and all(names)}


def _alone(choices: Mapping[str, object]) -> str:
    soup, coefficient = choices.get("soup", ()), choices.get("coefficient")
    if len(soup) == 1:
        return names.phrase(soup[0])
    return f"coefficient {coefficient:g}" if coefficient in (0.0, 1.0) else ""
