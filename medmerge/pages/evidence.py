"""What the records of the first round say together: pooled over pairs, about learning w, and whether w came to rest."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from medmerge.pages.claims import Pair
from medmerge.pages.contrast import contrast
from medmerge.stats import pooling
from medmerge.study.records import Record

BASELINES = {
    ("ft", 0): "FT from the base",
    ("ft", 1): "FT from the medical source",
    ("lp_ft", 0): "LP-FT from the base",
    ("lp_ft", 1): "LP-FT from the medical source",
}
"""By approach and place of the source."""


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
    scores = [run.controls.groupby("control")["score"].mean() for run in runs]
    each = np.array([one["learnt"] - one["start"] for one in scores])
    reach = stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / np.sqrt(len(each))
    return {"runs": len(each), "difference": each.mean(), "low": each.mean() - reach, "high": each.mean() + reach}


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
        return str(soup[0])
    return f"coefficient {coefficient:g}" if coefficient in (0.0, 1.0) else ""
