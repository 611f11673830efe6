"""What the records say together: the answer, pooled over pairs, about learning w, and whether w came to rest."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from medmerge.pages import claims, second
from medmerge.pages.claims import Pair
from medmerge.pages.contrast import GAIN, Rows, contrast
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
        A line a difference: ``baseline``, ``pair``, ``network``, ``tested`` (images), ``difference``, ``low``,
        ``high``, ``power``, whether it is ``pooled``, and whether pooling was ``planned``. Pooled lines come last: of
        these ``pair`` is :data:`POOLED`, and ``random_low`` and ``random_high`` are the interval of random effects.
    """
    later = {name: rows for name in second.PAIRS if second.counts(rows := second.pair(name))}
    lines = [_of_second(name, rows) for name, rows in later.items()]
    for network in claims.BACKBONES:
        lines += [_of_first(one, bool(later)) for one in claims.pairs(network) if one.counts]
    table = pd.concat(lines, ignore_index=True).assign(random_low=np.nan, random_high=np.nan)
    for baseline, each in table[table["pooled"]].groupby("baseline", sort=False):
        one = pooling.pool(each["difference"], each["error"])
        line = {"baseline": baseline, "pair": POOLED, "network": POOLED, "pooled": False, **vars(one)}
        table.loc[len(table)] = {name: line.get(name) for name in table}
    shown = ["baseline", "pair", "network", "tested", "difference", "low", "high", "power", "pooled"]
    return table[[*shown, "random_low", "random_high"]].assign(planned=bool(later))


def _of_first(one: Pair, later: bool) -> pd.DataFrame:
    """A pair's lines of :func:`compared`; its differences are pooled if there is no ``later`` pair."""
    known = {one.row(a, one.sources[at])[0].label: name for (a, at), name in BASELINES.items()}
    lines = one.comparisons.assign(baseline=one.comparisons["against"].map(known), pair=one.short)
    pooled = not later and one.p.backbone == "densenet121"
    return lines.assign(network=names.title(one.p.backbone), tested=len(one.records[0].predictions), pooled=pooled)


def _of_second(name: str, rows: Rows) -> pd.DataFrame:
    lines = second.family(rows).query("row == @second.SLOW and against in @second.PAPERS")
    tested = len(rows[second.SLOW][0].predictions)
    lines = lines.assign(baseline=lines["against"], pair=names.title(name), tested=tested, pooled=True)
    return lines.assign(network=names.title("densenet121"))


def answer(table: pd.DataFrame) -> str:
    """Whether MedMerge beats ordinary transfer, in Markdown.

    Args:
        table: :func:`compared`.
    """
    pooled = table[table["pair"] == POOLED]
    pairs = table[table["pooled"]]["pair"].unique()
    apart = pooled[(pooled["low"] > 0) | (pooled["high"] < 0)]
    return fill("answer", pooled=pooled, apart=apart, pairs=pairs, gain=GAIN)


def use(table: pd.DataFrame) -> str:
    """What follows for a reader with networks of their own, in Markdown.

    Args:
        table: :func:`compared`.
    """
    return fill("use", pooled=table[table["pair"] == POOLED])


def sure(table: pd.DataFrame, strength: float) -> str:
    """How sure that answer is, in Markdown.

    Args:
        table: :func:`compared`.
        strength: power that the second round was planned with.
    """
    each, p = table[table["pair"] != POOLED], claims.parameters(second.PAIRS[0])
    done = len(next(iter(second.pair(second.PAIRS[0]).values())))
    facts = {"tested": each["tested"].astype(int), "power": each["power"], "strength": strength}
    facts |= {"random": table[table["pair"] == POOLED], "planned": table["planned"].all()}
    return fill("sure", gain=GAIN, done=done, asked=len(p.seeds), **facts)


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
        name = f"{names.title(run.folder.parts[-4])}, seed {run.run['seed']}"
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
