"""The second round, as its plan (`book/second-plan.md`) decides it, from whatever records there are."""

import functools
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from medmerge.pages import claims
from medmerge.pages.claims import FAILURE, SUPPORT, Claim
from medmerge.pages.contrast import ALPHA, GAIN, Rows, by_row, contrast, margin, over_seeds
from medmerge.pages.typeset import estimate, number
from medmerge.stats import evaluation, pooling
from medmerge.study import definitions, names
from medmerge.study.definitions import Row
from medmerge.study.params import Parameters
from medmerge.study.records import Record
from medmerge.study.run import finished

PAIRS = ("skin-2", "chest-2", "retina-2")
NETWORKS = {"densenet121": "", "resnet50": "-resnet50"}
PLANNED = [(name, "densenet121") for name in PAIRS] + [(name, "resnet50") for name in PAIRS[:2]]
LEAST = 3
"""Seeds that a pair needs to count."""

MARGIN = 0.01
OPEN = "not decidable"
NOT_RUN = "not run with three seeds"
SLOW, FAST = "MedMerge", "MedMerge, w's budget matched"
LONG = "FT from the base, twice the epochs"
PAPERS = ("FT from the base", "FT from the medical source", "LP-FT from the base", "LP-FT from the medical source")
"""The paper's four baselines."""


@functools.cache
def pair(name: str, network: str = "densenet121") -> Rows:
    """A pair's runs by what their row is, of the seeds that all rows have.

    Raises:
        RecordError: a record is damaged, or of another definition than the parameter file's.
    """
    found = {}
    for file in (f"{name}{NETWORKS[network]}", *([f"{name}-long"] if network == "densenet121" else [])):
        p = claims.parameters(file)
        for row in definitions.rows(p):
            runs = {seed: run for seed in p.seeds if (run := finished(p, row, seed))}
            found[_kind(row, p)] = runs
    seeds = sorted(set.intersection(*(set(runs) for runs in found.values())))
    return {kind: [runs[seed] for seed in seeds] for kind, runs in found.items()}


def _kind(row: Row, p: Parameters) -> str:
    if row.approach == "medmerge":
        return FAST if row.settings else SLOW
    return (
        LONG
        if row.settings
        else f"{row.title} from {'the base' if row.sources == (p.base_data,) else 'the medical source'}"
    )


def counted() -> dict[str, Rows]:
    """The pairs with DenseNet-121 that have the seeds to decide anything, by name."""
    return {name: rows for name in PAIRS if counts(rows := pair(name))}


def counts(rows: Rows) -> bool:
    """Whether a pair has the seeds to decide anything."""
    return len(next(iter(rows.values()))) >= LEAST


def family(rows: Rows) -> pd.DataFrame:
    """Both rows of MedMerge minus every baseline, one family: columns ``row``, ``against`` and those of
    :func:`~medmerge.pages.contrast.contrast` over seeds, whose spread is pooled over all rows."""
    merged = [kind for kind in (SLOW, FAST) if kind in rows]
    pairs = [({"row": m, "against": k}, rows[m], rows[k]) for m in merged for k in rows if k not in merged]
    return contrast(pairs, "seeds", MARGIN, _between(rows))


def _between(rows: Rows) -> tuple[float, int]:
    runs = [run for each in rows.values() for run in each]
    return margin(runs), len(runs) - len(by_row(runs))


def described(pairs: Mapping[str, Rows]) -> pd.DataFrame:
    """MedMerge minus every row of pairs with too few seeds to decide anything, for other test images alone.

    Returns:
        Text, a line a difference: ``pair``, ``seeds``, ``MedMerge``, ``minus``, ``difference`` with its 95 % interval.
    """
    lines = []
    for name, rows in pairs.items():
        merged = [kind for kind in (SLOW, FAST) if kind in rows]
        seeds = ", ".join(str(run.run["seed"]) for run in next(iter(rows.values())))
        if not seeds or counts(rows):
            continue
        asked = [({"MedMerge": m, "minus": k}, rows[m], rows[k]) for m in merged for k in rows if k not in merged]
        for r in contrast(asked).itertuples():
            named = {"pair": names.pair(name), "seeds": seeds, "MedMerge": r.MedMerge, "minus": r.minus}
            lines.append({**named, "difference": estimate(r.difference, r.low, r.high)})
    return pd.DataFrame(lines)


def pooled(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Families of several pairs pooled by inverse variance, one family again.

    Returns:
        ``row``, ``against``, ``pairs``, the fields of :class:`~medmerge.stats.pooling.Pooled`, ``p_holm``, ``superior``
        and ``power`` at the paper's gain.
    """
    lines = []
    for (row, against), each in pd.concat(tables.values()).groupby(["row", "against"], sort=False):
        found = pooling.pool(each["difference"], each["error"])
        error = (found.high - found.low) / 2 / stats.norm.ppf(1 - ALPHA / 2)
        p = 2 * stats.norm.sf(abs(found.difference) / error)
        line = {"row": row, "against": against, "pairs": len(each), **vars(found), "p": p}
        lines.append(line | {"power": pooling.power(GAIN, error)})
    table = pd.DataFrame(lines).assign(p_holm=lambda t: evaluation.holm(t["p"]))
    sign = np.where((table["p_holm"] < ALPHA) & (table["low"] * table["high"] > 0), np.sign(table["low"]), 0)
    return table.assign(superior=[{1: "superior", -1: "inferior"}.get(one, "not shown") for one in sign])


def decided(pairs: Mapping[str, Rows]) -> list[Claim]:
    """The plan's claims about scores and weights, on the pairs that count.

    Args:
        pairs: :func:`pair` by name.
    """
    counted = {name: rows for name, rows in pairs.items() if counts(rows)}
    names = (("MedMerge beats FT and LP-FT", "4, Table 1"), ("up to 3 % higher F1 than the best baseline", "abstract"))
    names += (("LP-FT beats FT", "4"), ("w shifts to the source whose FT is better", "4, Fig. 2"))
    if not counted:
        return [Claim(*name, NOT_RUN, OPEN) for name in names]
    found = [check(counted) for check in (_beats, _gain, _probing_first, _better_source)]
    return [Claim(*name, "; ".join(said), outcome) for name, (said, outcome) in zip(names, found, strict=True)]


def _beats(counted: Mapping[str, Rows]) -> tuple[list[str], str]:
    table = pooled({name: family(rows) for name, rows in counted.items()})
    table = table[table["against"].isin(PAPERS)]
    said = [
        f"{r.row} minus {r.against}: {estimate(r.difference, r.low, r.high)}, power {number(r.power, '.0%')}"
        for r in table.itertuples()
    ]
    rows = [each for _, each in table.groupby("row")]
    if any((each["superior"] == "superior").all() for each in rows):
        return said, SUPPORT
    return said, FAILURE if all((each["high"] < MARGIN).any() for each in rows) else OPEN


def _gain(counted: Mapping[str, Rows]) -> tuple[list[str], str]:
    said, supported, below = [], [], []
    for name, rows in counted.items():
        best = max(PAPERS, key=lambda kind: np.mean([run.run["metrics"]["macro_f1"] for run in rows[kind]]))
        for r in family(rows).query("against == @best").itertuples():
            said.append(f"{names.pair(name)}, {r.row} minus {best}: {estimate(r.difference, r.low, r.high)}")
            supported.append(r.low > 0 and r.high >= GAIN)
            below.append(r.high < GAIN)
    whole = {"skin-2", "chest-2"} <= set(counted)
    return said, SUPPORT if any(supported) else FAILURE if whole and all(below) else OPEN


def _probing_first(counted: Mapping[str, Rows]) -> tuple[list[str], str]:
    tables = {}
    for name, rows in counted.items():
        kinds = [(f"LP-FT from {place}", f"FT from {place}") for place in ("the base", "the medical source")]
        lines = [({"row": one, "against": other}, rows[one], rows[other]) for one, other in kinds]
        tables[name] = contrast(lines, "seeds", MARGIN, _between(rows))
    table = pooled(tables)
    said = [f"{r.row} minus {r.against}: {estimate(r.difference, r.low, r.high)}" for r in table.itertuples()]
    if (table["superior"] == "superior").all():
        return said, SUPPORT
    return said, FAILURE if (table["high"] < MARGIN).all() else OPEN


def _better_source(counted: Mapping[str, Rows]) -> tuple[list[str], str]:
    said, outcomes = [], set()
    for name, rows in counted.items():
        gap = over_seeds(rows["FT from the base"], rows["FT from the medical source"], spread=_between(rows))
        if abs(gap.difference) <= MARGIN or gap.low * gap.high <= 0:
            continue
        for kind in (SLOW, FAST):
            shifts = np.sign(gap.difference) * np.array([_mean_weight(run) - 0.5 for run in rows[kind]])
            values = ", ".join(number(shift, "+.4f") for shift in shifts)
            said.append(f"{names.pair(name)}, {kind}: {values} to the better source")
            outcomes.add(SUPPORT if min(shifts) >= MARGIN else FAILURE if max(shifts) <= -MARGIN else OPEN)
    if not said:
        return ["no pair whose sources differ by more than the margin"], claims.UNASSESSED
    return said, outcomes.pop() if len(outcomes) == 1 else OPEN


def _mean_weight(run: Record) -> float:
    return float(np.concatenate([w.ravel() for w in run.kernel_weights.values()]).mean(dtype=np.float64))
