"""The second round, as its plan (`book/second-plan.md`) decides it, and the answer of both rounds together."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from medmerge.pages import claims
from medmerge.pages.claims import BASELINES, CLAIMS, FAILURE, SUPPORT, Claim, Pair
from medmerge.pages.contrast import GAIN, Rows, by_row, contrast, margin, over_seeds, pooled
from medmerge.pages.typeset import estimate, fill, number
from medmerge.pages.weights import shift
from medmerge.stats import significance
from medmerge.study import definitions, names
from medmerge.study.definitions import Row
from medmerge.study.params import Parameters
from medmerge.study.run import finished

PAIRS = ("skin-2", "chest-2", "retina-2")
NETWORKS = {"densenet121": "", "resnet50": "-resnet50", "mobilenet_v2": "-mobilenet"}
SMALLER = PAIRS[0], "mobilenet_v2"
"""The pair that was added to the plan; it decides none of the claims."""

PLANNED = [(name, "densenet121") for name in PAIRS] + [(name, "resnet50") for name in PAIRS[:2]] + [SMALLER]
LEAST = 3
"""Seeds that a pair needs to count."""

MARGIN = 0.01
WITHIN = "equivalent", "different but within the margin"
OPEN = "not decidable"
NOT_RUN = "not run with three seeds"
SLOW, FAST = "MedMerge", "MedMerge, w's budget matched"
LONG = "FT from the base, twice the epochs"
POOLED = "All pairs pooled"


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
            found[_kind(row, p)] = {seed: run for seed in p.seeds if (run := finished(p, row, seed))}
    seeds = sorted(set.intersection(*(set(runs) for runs in found.values())))
    return {kind: [runs[seed] for seed in seeds] for kind, runs in found.items()}


def _kind(row: Row, p: Parameters) -> str:
    if row.approach == "medmerge":
        return FAST if row.settings else SLOW
    place = "the base" if row.sources == (p.base_data,) else "the medical source"
    return LONG if row.settings else f"{row.title} from {place}"


def counted(pairs: Mapping[str, Rows] | None = None) -> dict[str, Rows]:
    """The pairs that have the seeds to decide anything, by name; by default of those with DenseNet-121."""
    pairs = {name: pair(name) for name in PAIRS} if pairs is None else pairs
    return {name: rows for name, rows in pairs.items() if len(next(iter(rows.values()))) >= LEAST}


def _against(rows: Rows) -> list[tuple]:
    """Both rows of MedMerge, each with every other row."""
    merged = [kind for kind in (SLOW, FAST) if kind in rows]
    return [({"row": m, "against": k}, rows[m], rows[k]) for m in merged for k in rows if k not in merged]


def family(rows: Rows) -> pd.DataFrame:
    """Both rows of MedMerge minus every baseline, one family: columns ``row``, ``against`` and those of
    :func:`~medmerge.pages.contrast.contrast` over seeds, whose spread is pooled over all rows."""
    return contrast(_against(rows), "seeds", MARGIN, _between(rows))


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
        seeds = ", ".join(str(run.run["seed"]) for run in next(iter(rows.values())))
        for r in contrast(_against(rows)).itertuples() if seeds and name not in counted(pairs) else ():
            named = {"pair": names.pair(name), "seeds": seeds, "MedMerge": r.row, "minus": r.against}
            lines.append({**named, "difference": estimate(r.difference, r.low, r.high)})
    return pd.DataFrame(lines)


def decided(pairs: Mapping[str, Rows]) -> list[Claim]:
    """:data:`~medmerge.pages.claims.CLAIMS`, on the pairs that count.

    Args:
        pairs: :func:`pair` by name.
    """
    if not (enough := counted(pairs)):
        return [Claim(*claim, NOT_RUN, OPEN) for claim in CLAIMS]
    found = [check(enough) for check in (_beats, _gain, _probing_first, _better_source)]
    return [Claim(*claim, "; ".join(said), outcome) for claim, (said, outcome) in zip(CLAIMS, found, strict=True)]


def _beats(counted: Mapping[str, Rows]) -> tuple[list[str], str]:
    table = pooled([family(rows) for rows in counted.values()]).query("against in @BASELINES")
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
        best = max(BASELINES, key=lambda kind: np.mean([run.run["metrics"]["macro_f1"] for run in rows[kind]]))
        for r in family(rows).query("against == @best").itertuples():
            said.append(f"{names.pair(name)}, {r.row} minus {best}: {estimate(r.difference, r.low, r.high)}")
            supported.append(0 < r.low <= GAIN <= r.high)
            below.append(r.high < GAIN)
    whole = {"skin-2", "chest-2"} <= set(counted)
    return said, SUPPORT if any(supported) else FAILURE if whole and all(below) else OPEN


def _probing_first(counted: Mapping[str, Rows]) -> tuple[list[str], str]:
    kinds = list(zip(BASELINES[2:], BASELINES[:2], strict=True))
    tables = [
        contrast([({"row": a, "against": b}, rows[a], rows[b]) for a, b in kinds], "seeds", MARGIN, _between(rows))
        for rows in counted.values()
    ]
    table = pooled(tables)
    said = [f"{r.row} minus {r.against}: {estimate(r.difference, r.low, r.high)}" for r in table.itertuples()]
    if (table["superior"] == "superior").all():
        return said, SUPPORT
    small = [significance.equivalence(r.difference, r.error, MARGIN) for r in table.itertuples()]
    refuted = [r.superior == "inferior" or same in WITHIN for r, same in zip(table.itertuples(), small, strict=True)]
    return said, FAILURE if all(refuted) else OPEN


def _better_source(counted: Mapping[str, Rows]) -> tuple[list[str], str]:
    said, outcomes = [], set()
    for name, rows in counted.items():
        gap = over_seeds(*(rows[kind] for kind in BASELINES[:2]), spread=_between(rows))
        if abs(gap.difference) <= MARGIN or gap.low * gap.high <= 0:
            continue
        for kind in (SLOW, FAST):
            shifts = np.sign(gap.difference) * np.array([*map(shift, rows[kind])])
            values = ", ".join(number(one, "+.4f") for one in shifts)
            said.append(f"{names.pair(name)}, {kind}: {values} to the better source")
            outcomes.add(SUPPORT if min(shifts) >= MARGIN else FAILURE if max(shifts) <= -MARGIN else OPEN)
    if not said:
        return ["no pair whose sources differ by more than the margin"], claims.UNASSESSED
    return said, outcomes.pop() if len(outcomes) == 1 else OPEN


def first_pooled(found: Sequence[Pair]) -> pd.DataFrame:
    """The first round's pairs pooled: at the end, and after the probe where all runs of a baseline have kept that.

    Returns:
        :func:`~medmerge.pages.contrast.pooled` by ``against`` and ``stage`` ("after the probe" or "at the end").
    """
    tables = []
    for one in found:
        pairs, merged = [], one.row("medmerge")
        for kind, runs in one.baselines.items():
            probed = [[run.after_probe() for run in row] for row in (merged, runs)]
            if all(run for row in probed for run in row):
                pairs.append(({"against": kind, "stage": "after the probe"}, *probed))
            pairs.append(({"against": kind, "stage": "at the end"}, merged, runs))
        tables.append(contrast(pairs, "seeds"))
    table = pooled(tables, ("against", "stage"))
    return table[table["pairs"] == len(found)]


def compared() -> pd.DataFrame:
    """MedMerge minus the paper's four baselines, in every pair that counts and pooled over those of DenseNet-121.

    Pooled is the second round, by its plan, where a pair of it counts; else the first, which was pooled afterwards.

    Returns:
        A line a difference: ``baseline``, ``row`` (of MedMerge), ``pair``, ``network``, ``tested`` (images),
        ``difference``, ``low``, ``high``, ``power``; whether it is of ``whole``, the pairs pooled, which come last,
        with the ends of random effects, ``random_low`` and ``random_high``; and whether pooling was ``planned``.
    """
    later = counted()
    families = {name: family(rows) for name, rows in later.items()}
    lines = []
    for name, table in families.items():
        network = names.title("densenet121") + table["row"].str.removeprefix(SLOW)
        tested = len(later[name][SLOW][0].predictions)
        lines.append(table.assign(pair=names.pair(name), network=network, tested=tested))
    first = {network: [one for one in claims.pairs(network) if one.counts] for network in claims.BACKBONES}
    for one in (one for found in first.values() for one in found):
        known = {runs[0].label: kind for kind, runs in one.baselines.items()}
        table = one.comparisons.replace({"against": known}).assign(row=SLOW, pair=one.short)
        lines.append(table.assign(network=names.title(one.p.backbone), tested=len(one.records[0].predictions)))
    if later:
        whole = pooled(families.values())
    else:
        whole = first_pooled(first["densenet121"]).query("stage == 'at the end'").assign(row=SLOW)
    place = POOLED + whole["row"].str.removeprefix(SLOW)
    whole = whole.assign(whole=True, pair=place, network=POOLED)
    table = pd.concat([*(line.assign(whole=False) for line in lines), whole], ignore_index=True)
    shown = ["baseline", "row", "pair", "network", "tested", "difference", "low", "high", "power", "whole", "pairs"]
    table = table.rename(columns={"against": "baseline"})[[*shown, "random_low", "random_high"]]
    return table.query("baseline in @BASELINES").assign(planned=bool(later))


def outcome(table: pd.DataFrame) -> str:
    """Whether MedMerge beats ordinary transfer: as the second plan decides, where its pooling is what there is; else
    support if every pooled interval is above 0, and failure if each ends below the paper's gain.

    Args:
        table: :func:`compared`.
    """
    if table["planned"].all():
        return decided(counted())[0].verdict
    whole = table[table["whole"]]
    return SUPPORT if (whole["low"] > 0).all() else FAILURE if (whole["high"] < GAIN).all() else OPEN


def told(table: pd.DataFrame, strength: float) -> dict[str, str]:
    """For the book's first page, in Markdown: the ``answer``, how ``sure`` it is, and whether to ``use`` MedMerge.

    Args:
        table: :func:`compared`.
        strength: power that the second round was planned with.
    """
    p, rows = claims.parameters(PAIRS[0]), pair(PAIRS[0])
    facts = {"gain": GAIN, "outcome": outcome(table), "planned": table["planned"].all(), "strength": strength}
    facts |= {"whole": table[table["whole"]], "each": table[~table["whole"]], "asked": len(p.seeds)}
    facts["done"] = len(next(iter(rows.values())))
    return {name: fill(name, **facts) for name in ("answer", "sure", "use")}
