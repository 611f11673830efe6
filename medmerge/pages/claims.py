"""The claims of the paper held against the open study, as the analysis plan (`book/plan.md`) says they are decided."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medmerge.pages import ablation, report
from medmerge.pages.contrast import GAIN, Rows, against, contrast, margin, over_seeds
from medmerge.pages.typeset import estimate, fill, number
from medmerge.pages.weights import shift
from medmerge.study import cost, definitions, names, notebooks
from medmerge.study.params import Parameters
from medmerge.study.places import home
from medmerge.study.records import Record
from medmerge.study.run import finished

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

SUPPORT, FAILURE, UNDECIDED = "support", "failure", "undecided"
UNASSESSED = "cannot be assessed"
"""What the data could not have shown either way."""

ENOUGH = 0.8
"""Power of a claim's best comparison without which the claim is not undecided, but unassessed."""

SHIFT = 0.01
"""How far the mean of w must have moved from 0.5 for its side to say anything."""

CLAIMS = (
    ("MedMerge beats FT and LP-FT", "4, Table 1"),
    ("up to 3 % higher F1 than the best baseline", "abstract"),
    ("LP-FT beats FT", "4"),
    ("w shifts to the source whose FT is better", "4, Fig. 2"),
)
"""Those about scores and weights, with their place in the paper: each round of the study decides them by its plan."""

BASELINES = ("FT from the base", "FT from the medical source", "LP-FT from the base", "LP-FT from the medical source")
"""The paper's four baselines, by what they are in any pair."""


class Pair:
    """The five rows of a parameter file of the plan, with the seeds that all of them have.

    Attributes:
        name: of the file, without its backbone: a key of ``CLEAN``, or ``LEAKY``.
        p: its parameters.
        records: of the seeds that every row has; none where there is no such seed.
        begun: runs that are finished, of any seed.
        asked: runs that the plan asks for.
        title, short: the pair and its network, and the pair, in words.
        seeds: those that all five rows have.
        counts: whether the plan lets it decide anything.
        sources: what b and c were trained on.
    """

    def __init__(self, name: str, p: Parameters, records: Sequence[Record], begun: int, asked: int):
        self.name, self.p, self.records, self.begun, self.asked = name, p, tuple(records), begun, asked
        self.title, self.short = names.study(f"{name}/{p.backbone}"), names.pair(name)
        self.seeds = tuple(sorted({record.run["seed"] for record in records}))
        self.counts = len(self.seeds) >= LEAST
        self.sources = p.base_data, p.source_data

    @functools.cached_property
    def comparisons(self) -> pd.DataFrame:
        """MedMerge against every baseline, over seeds (:func:`~medmerge.pages.contrast.against`)."""
        return against(self.records, over="seeds")

    @functools.cached_property
    def margin(self) -> float | None:
        """:func:`medmerge.pages.contrast.margin` of the records."""
        return margin(self.records)

    def row(self, approach: str, *sources: str) -> list[Record]:
        """The runs of a row, by seed."""
        runs = [r for r in self.records if r.approach == approach]
        runs = [r for r in runs if not sources or tuple(r.run["row"]["sources"]) == sources]
        return sorted(runs, key=lambda record: record.run["seed"])

    @property
    def baselines(self) -> Rows:
        """The runs of each of :data:`BASELINES`."""
        rows = [self.row(approach, source) for approach in report.BASELINES for source in self.sources]
        return dict(zip(BASELINES, rows, strict=True))


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, what was found, and whether that is support, failure, undecided or cannot be assessed.

    Attributes:
        place: of the paper.
        found: a sentence a pair that counts.
    """

    claim: str
    place: str
    found: str
    verdict: str


@functools.cache
def pair(name: str, backbone: str = "densenet121") -> Pair:
    """A pair of the plan as far as it is run.

    Raises:
        RecordError: a record is damaged, or of another definition than the parameter file's.
    """
    p = parameters(f"{name}{BACKBONES[backbone]}")
    rows = definitions.rows(p)
    found = {seed: [r for row in rows if (r := finished(p, row, seed))] for seed in SEEDS}
    whole = [record for runs in found.values() if len(runs) == len(rows) for record in runs]
    return Pair(name, p, whole, sum(map(len, found.values())), len(rows) * len(SEEDS))


def pairs(backbone: str = "densenet121") -> list[Pair]:
    """The plan's clean pairs with a backbone, in its order."""
    return [pair(name, backbone) for name in CLEAN]


def begun() -> list[Pair]:
    """Every pair with a seed that all rows have, in the plan's order."""
    return [one for key in PLANNED if (one := pair(*key)).records]


def recorded(name: str) -> list[Record]:
    """The finished runs of a parameter file of the open track."""
    p = parameters(name)
    return [record for row in definitions.rows(p) for seed in p.seeds if (record := finished(p, row, seed))]


def parameters(name: str) -> Parameters:
    """Of a parameter file of the open track."""
    return notebooks.parameters(home() / FILES / f"{name}.yaml")


def verdict(found: Sequence[Pair]) -> str:
    """How the claims stand, in a few sentences of Markdown.

    Args:
        found: as for :func:`claims`.
    """
    made = [*claims(found), *others()]
    by = {word: [c.claim for c in made if c.verdict == word] for word in (FAILURE, SUPPORT, UNDECIDED, UNASSESSED)}
    counted, missing = [one for one in found if one.counts], [one.short for one in found if not one.counts]
    return fill("findings", by=by, counted=counted, missing=missing)


def claims(found: Sequence[Pair]) -> list[Claim]:
    """:data:`CLAIMS`, decided by the pairs.

    An undecided one whose comparisons all have less power than :data:`ENOUGH` at the paper's gain is not assessed.

    Args:
        found: the clean pairs; those with fewer than two seeds decide nothing.
    """
    counted = [one for one in found if one.counts]
    made = []
    for claim, check in zip(CLAIMS, (_beats, _gain, _probing_first, _better_source), strict=True):
        said, outcome, power = check(counted, len(counted) == len(found))
        text = "; ".join(said) or "no pair has the seeds that it needs"
        if power:
            text += f" (power at {GAIN:+.2f}: {number(min(power), '.0%')} to {number(max(power), '.0%')})"
            outcome = UNASSESSED if outcome == UNDECIDED and max(power) < ENOUGH else outcome
        made.append(Claim(*claim, text, outcome))
    return made


Checked = tuple[list[str], str, list[float]]
"""Sentences, what they come to, and the power of the comparisons that decide it."""


def _verdict(outcomes: Iterable[str], whole: bool) -> str:
    """Support takes it from every pair of the plan, failure from any."""
    if FAILURE in outcomes:
        return FAILURE
    return SUPPORT if whole and set(outcomes) == {SUPPORT} else UNDECIDED


def _beats(counted: Sequence[Pair], whole: bool) -> Checked:
    said, power = [], []
    for one in counted:
        judged = one.comparisons["superior"].value_counts()
        superior, inferior = (judged.get(word, 0) for word in ("superior", "inferior"))
        same, count = (one.comparisons["equivalence"] == "equivalent").sum(), len(one.comparisons)
        said.append(f"{one.short}: superior to {superior}, inferior to {inferior}, equivalent to {same} of {count}")
        power += [*one.comparisons["power"]]
    return said, _verdict([report.decide(one.comparisons) for one in counted], whole), power


def _gain(counted: Sequence[Pair], whole: bool) -> Checked:
    said, lines = [], []
    for one in counted:
        scores = report.scores(one.records).set_index("label")
        best = scores[scores["approach"] != "medmerge"]["mean"].idxmax()
        lines.append(one.comparisons.set_index("against").loc[best])
        said.append(f"{one.short}: {estimate(*lines[-1][['difference', 'low', 'high']])} over {best}")
    failed = whole and all(line["high"] < GAIN for line in lines)
    supported = any(0 < line["low"] <= GAIN <= line["high"] for line in lines)
    return said, SUPPORT if supported else FAILURE if failed else UNDECIDED, []


def probing_first(one: Pair) -> pd.DataFrame:
    """LP-FT minus FT from either source, over seeds; the family is these two comparisons."""
    rows = [({"source": names.title(s)}, one.row("lp_ft", s), one.row("ft", s)) for s in one.sources]
    return contrast(rows, "seeds", one.margin)


def _probing_first(counted: Sequence[Pair], whole: bool) -> Checked:
    tables, said = [probing_first(one) for one in counted], []
    for one, table in zip(counted, tables, strict=True):
        words = [f"{r.source} {estimate(r.difference, r.low, r.high)}" for r in table.itertuples()]
        said.append(f"{one.short}: from {' and '.join(words)}")
    above, below = (sum((t["superior"] == word).all() for t in tables) for word in ("superior", "inferior"))
    outcome = SUPPORT if above >= 2 else FAILURE if below >= 2 else UNDECIDED
    return said, outcome, [share for table in tables for share in table["power"]]


def _better_source(counted: Sequence[Pair], whole: bool) -> Checked:
    said, outcomes = [], []
    for one in counted:
        tuned = [one.row("ft", source) for source in one.sources]
        scores = [np.mean([run.run["metrics"]["macro_f1"] for run in runs]) for runs in tuned]
        better, leans = names.title(one.sources[int(np.argmax(scores))]), [*map(shift, one.row("medmerge"))]
        towards = np.array(leans) * (1 if np.argmax(scores) == 0 else -1)
        gap = over_seeds(*tuned)
        if np.ptp(scores) > one.margin and gap.low * gap.high > 0 and max(abs(towards)) >= SHIFT:
            outcomes.append(SUPPORT if min(towards) > 0 else UNDECIDED if max(towards) > 0 else FAILURE)
        values = ", ".join(f"{0.5 + one:.4f}" for one in leans)
        lead = f"{one.short}: FT is better from {better} by {np.ptp(scores):.3f} (margin {one.margin:.3f})"
        said.append(f"{lead}; mean w of {names.title(one.sources[0])} by seed {values}")
    return said, _verdict(outcomes, whole) if outcomes or not counted else UNASSESSED, []


def others() -> list[Claim]:
    """The rest of the plan's claims, which no pair decides, and the paper's on cost.

    Raises:
        RecordError: a record is damaged.
    """
    runs = recorded("skin-batchnorm")
    frozen = ablation.differences(runs).itertuples() if len(runs) > 1 else ()
    norms = "; ".join(f"{row.stage} {estimate(row.difference, row.low, row.high)}" for row in frozen)
    sheet = cost.SHEET.read(parameters("cost-densenet121"))
    low, middle, high = sheet.ratio("kernel", "lp") if sheet else (0.0, 0.0, 0.0)
    probe = (
        f"a step of the probe takes {middle:.2f} times a step of LP (quartiles {low:.2f} to {high:.2f}), on a CPU core"
    )
    costs = "the probe costs no more than LP but for the weighted average", "4, Computational cost"
    return [
        Claim("frozen batch norms cost performance", "4", f"one exploratory seed: {norms or 'not run'}", UNASSESSED),
        Claim("with zeros, deeper layers alternate", "4, Fig. 4", "one exploratory seed, described", UNASSESSED),
        Claim("weights of parameters add nothing over kernels", "4", "not run in this round", UNASSESSED),
        Claim("similar gains with ResNet-50", "A1", "not run in this round", UNASSESSED),
        Claim(*costs, probe if sheet else "not measured", FAILURE if low > 1 else UNDECIDED),
    ]


def beside_the_paper(one: Pair, paper: pd.DataFrame) -> pd.DataFrame:
    """The pair's five rows in the order of the paper's tables, with the paper's macro F1 of its target.

    Args:
        paper: :func:`medmerge.pages.papertables.rows`; a network that is not in it has no numbers of the paper.
    """
    labels = [runs[0].label for runs in (*one.baselines.values(), one.row("medmerge"))]
    found = report.scores(one.records).set_index("label").loc[labels].reset_index()
    target = CLEAN.get(one.name, "ISIC-2019")
    theirs = paper[(paper["backbone"] == one.p.backbone) & (paper["target"] == target)]["macro_f1"].tolist()
    return found.assign(pair=one.title, paper=theirs or float("nan"))
