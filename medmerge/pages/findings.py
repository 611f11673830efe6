"""The claims of the paper held against the open study, as the analysis plan (`book/plan.md`) says they are decided."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medmerge.pages import planned, report
from medmerge.stats import evaluation
from medmerge.study import definitions
from medmerge.study import notebooks as pages
from medmerge.study import run as study
from medmerge.study.params import Parameters
from medmerge.study.places import home
from medmerge.study.records import Record

FILES = Path("params", "open")
CLEAN = {"skin-seeds": "ISIC-2019", "chest": "RSNA-Pneumonia", "retina": "APTOS"}
"""Parameter files of the plan's clean pairs, in its order, and the target of the paper that each stands in for."""

LEAKY = "skin-leaky"
BACKBONES = {"densenet121": "", "mobilenet_v2": "-mobilenet"}
"""The plan's backbones, its first one first, and the end of their parameter files' names."""

PLANNED = [(name, "densenet121") for name in (*CLEAN, LEAKY)] + [(name, "mobilenet_v2") for name in CLEAN]
"""Every pair of the plan and its backbone, in the plan's order."""

SEEDS = (1, 2, 3)
"""What the plan asks for; a file has fewer where computing time ended."""

LEAST = 2
"""Seeds that a pair needs to count."""

GAIN = 0.03
"""What the paper's abstract speaks of."""

SUPPORT, FAILURE, UNDECIDED = "support", "failure", "undecided"


@dataclass(frozen=True)
class Pair:
    """The five rows of a parameter file of the plan, with the seeds that all of them have.

    Attributes:
        name: of the file, without its backbone: a key of ``CLEAN``, or ``LEAKY``.
        records: of the seeds that every row has; none where there is no such seed.
        begun: runs that are finished, of any seed.
        asked: runs that the plan asks for.
    """

    name: str
    p: Parameters
    records: tuple[Record, ...]
    begun: int
    asked: int

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that all five rows have."""
        return tuple(sorted({record.run["seed"] for record in self.records}))

    @property
    def counts(self) -> bool:
        """Whether the plan lets it decide anything."""
        return len(self.seeds) >= LEAST

    @property
    def sources(self) -> tuple[str, str]:
        """What b and c were trained on."""
        return self.p.base_data, self.p.source_data

    @functools.cached_property
    def comparisons(self) -> pd.DataFrame:
        """:func:`medmerge.pages.planned.comparisons` of the records."""
        return planned.comparisons(self.records)

    def row(self, approach: str, *sources: str) -> list[Record]:
        """The runs of a row, by seed."""
        runs = [r for r in self.records if r.approach == approach]
        runs = [r for r in runs if not sources or tuple(r.run["row"]["sources"]) == sources]
        return sorted(runs, key=lambda record: record.run["seed"])


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, what was found, and whether that is support, failure or undecided.

    Attributes:
        place: of the paper.
        found: a sentence a pair that counts, in Markdown.
    """

    claim: str
    place: str
    found: str
    verdict: str


def pair(name: str, backbone: str = "densenet121") -> Pair:
    """A pair of the plan as far as it is run.

    Raises:
        RecordError: a record is damaged, or of another definition than the parameter file's.
    """
    path = home() / FILES / f"{name}{BACKBONES[backbone]}.yaml"
    p = pages.parameters(path)
    rows = definitions.rows(p)
    found = {seed: [r for row in rows if (r := study.finished(p, row, seed))] for seed in SEEDS}
    whole = [record for runs in found.values() if len(runs) == len(rows) for record in runs]
    return Pair(name, p, tuple(whole), sum(map(len, found.values())), len(rows) * len(SEEDS))


def pairs(backbone: str = "densenet121") -> list[Pair]:
    """The plan's clean pairs with a backbone, in its order."""
    return [pair(name, backbone) for name in CLEAN]


def claims(found: Sequence[Pair]) -> list[Claim]:
    """The claims that the pairs' scores and merging weights decide.

    Args:
        found: the clean pairs; those with fewer than two seeds decide nothing.
    """
    counted = [one for one in found if one.counts]
    whole = len(counted) == len(found)
    return [
        _beats(counted, whole),
        _gain(counted, whole),
        _probing_first(counted, whole),
        _better_source(counted, whole),
    ]


def _verdict(outcomes: Sequence[str], whole: bool) -> str:
    """Support takes it from every pair of the plan, failure from any."""
    if FAILURE in outcomes:
        return FAILURE
    return SUPPORT if whole and set(outcomes) == {SUPPORT} else UNDECIDED


def _beats(counted: Sequence[Pair], whole: bool) -> Claim:
    sentences, outcomes = [], []
    for one in counted:
        table = one.comparisons
        numbers = [(table["superior"] == word).sum() for word in ("superior", "inferior")]
        numbers.append((table["equivalence"] == "equivalent").sum())
        outcomes.append(planned.decide(table))
        words = "{}: superior to {}, inferior to {}, equivalent to {} of {}".format(one.name, *numbers, len(table))
        sentences.append(words)
    return Claim("MedMerge beats FT and LP-FT", "4, Table 1", _join(sentences), _verdict(outcomes, whole))


def _gain(counted: Sequence[Pair], whole: bool) -> Claim:
    sentences, supported, below = [], [], []
    for one in counted:
        scores, table = report.scores(one.records), one.comparisons
        best = scores[scores["approach"] != "medmerge"].sort_values("mean").iloc[-1]["label"]
        line = table[table["against"] == best].iloc[0]
        supported.append(0 < line["low"] <= GAIN <= line["high"])
        below.append(line["high"] < GAIN)
        sentences.append(f"{one.name}: {line['difference']:+.3f} ({line['low']:+.3f} to {line['high']:+.3f}) of {best}")
    failed = whole and all(below)
    verdict = SUPPORT if any(supported) else FAILURE if failed else UNDECIDED
    return Claim("up to 3 % higher F1 than the best baseline", "abstract", _join(sentences), verdict)


def _probing_first(counted: Sequence[Pair], whole: bool) -> Claim:
    sentences, above, below = [], 0, 0
    for one in counted:
        table = probing_first(one)
        words = [
            f"{row.source} {row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})" for row in table.itertuples()
        ]
        sentences.append(f"{one.name}: from {' and '.join(words)}")
        above += (table["superior"] == "superior").all()
        below += (table["superior"] == "inferior").all()
    verdict = SUPPORT if above >= 2 else FAILURE if below >= 2 else UNDECIDED
    return Claim("LP-FT beats FT", "4", _join(sentences), verdict)


def probing_first(one: Pair) -> pd.DataFrame:
    """LP-FT minus FT from either source: columns source, and those of :func:`medmerge.pages.planned.comparisons`.

    The family is these two comparisons.
    """
    rows = [(source, one.row("lp_ft", source), one.row("ft", source)) for source in one.sources]
    adjusted = evaluation.holm([report.compare(runs, others).p_value for _, runs, others in rows])
    spread = planned.margin(one.records)
    lines = [
        {"source": source, **planned.difference(runs, others, p, spread)}
        for (source, runs, others), p in zip(rows, adjusted, strict=True)
    ]
    return pd.DataFrame(lines)


def _better_source(counted: Sequence[Pair], whole: bool) -> Claim:
    sentences, outcomes = [], []
    for one in counted:
        scores = {
            source: np.mean([r.run["metrics"]["macro_f1"] for r in one.row("ft", source)]) for source in one.sources
        }
        better, ahead, spread = max(scores, key=scores.get), np.ptp([*scores.values()]), planned.margin(one.records)
        shares = [_mean_weight(record) for record in one.row("medmerge")]
        sign = 1 if better == one.sources[0] else -1
        towards = [sign * (share - 0.5) > 0 for share in shares]
        outcomes.append(SUPPORT if all(towards) else UNDECIDED if any(towards) else FAILURE)
        values = ", ".join(f"{share:.4f}" for share in shares)
        lead = f"{one.name}: FT is better from {better} by {ahead:.3f} (margin {spread:.3f})"
        sentences.append(f"{lead}; mean w of {one.sources[0]} by seed {values}")
    return Claim("w shifts to the source whose FT is better", "4, Fig. 2", _join(sentences), _verdict(outcomes, whole))


def _mean_weight(record: Record) -> float:
    return float(np.concatenate([w.ravel() for w in record.kernel_weights.values()]).mean(dtype=np.float64))


def _join(sentences: Sequence[str]) -> str:
    return "; ".join(sentences) or "no pair has the seeds that it needs"
