"""The claims of the paper held against the open study, as the analysis plan (`book/plan.md`) says they are decided.

Beside them what the plan does not ask: rivals and controls, and what an overlap of source and target is worth.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from medmerge.data import split_files
from medmerge.pages import ablation, report
from medmerge.pages.contrast import ALPHA, GAIN, Rows, against, by_row, contrast, margin, over_seeds
from medmerge.pages.template import fill
from medmerge.pages.typeset import estimate, number
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

FURTHER = tuple(f"skin-{kind}-mobilenet" for kind in ("rivals", "reestimated", "controls", "granularity"))
"""Parameter files whose rows are held against MedMerge. They are of one pair, and share its split and its MedMerge."""

LEAKY_SOURCE = "source-ham10k-leaky"
"""Parameter file of the contaminated arm's medical source."""

LEARNT, HELD_OUT = "train", "test"
"""Parts of that source's split. Images that it was validated on chose its epoch and are in neither comparison."""


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
    def title(self) -> str:
        """The pair and its network, in words."""
        return names.study(f"{self.name}/{self.p.backbone}")

    @property
    def short(self) -> str:
        """The pair in words."""
        return names.pair(self.name)

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

    def assessed(self, power: Sequence[float]) -> "Claim":
        """The claim with the power of its comparisons at the paper's gain; an undecided one needs :data:`ENOUGH`."""
        if not power:
            return self
        found = f"{self.found} (power at {GAIN:+.2f}: {number(min(power), '.0%')} to {number(max(power), '.0%')})"
        powerless = self.verdict == UNDECIDED and max(power) < ENOUGH
        return replace(self, found=found, verdict=UNASSESSED if powerless else self.verdict)


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
    return Pair(name, p, tuple(whole), sum(map(len, found.values())), len(rows) * len(SEEDS))


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
    """The claims that the pairs' scores and merging weights decide.

    Args:
        found: the clean pairs; those with fewer than two seeds decide nothing.
    """
    counted = [one for one in found if one.counts]
    whole = len(counted) == len(found)
    return [check(counted, whole) for check in (_beats, _gain, _probing_first, _better_source)]


def _verdict(outcomes: Sequence[str], whole: bool) -> str:
    """Support takes it from every pair of the plan, failure from any."""
    if FAILURE in outcomes:
        return FAILURE
    return SUPPORT if whole and set(outcomes) == {SUPPORT} else UNDECIDED


def _beats(counted: Sequence[Pair], whole: bool) -> Claim:
    sentences = []
    for one in counted:
        table = one.comparisons
        numbers = [(table["superior"] == word).sum() for word in ("superior", "inferior")]
        numbers.append((table["equivalence"] == "equivalent").sum())
        words = "{}: superior to {}, inferior to {}, equivalent to {} of {}".format(one.short, *numbers, len(table))
        sentences.append(words)
    outcomes = [report.decide(one.comparisons) for one in counted]
    claim = Claim("MedMerge beats FT and LP-FT", "4, Table 1", _join(sentences), _verdict(outcomes, whole))
    return claim.assessed([share for one in counted for share in one.comparisons["power"]])


def _gain(counted: Sequence[Pair], whole: bool) -> Claim:
    sentences, supported, below = [], [], []
    for one in counted:
        scores, table = report.scores(one.records), one.comparisons
        best = scores[scores["approach"] != "medmerge"].sort_values("mean").iloc[-1]["label"]
        line = table[table["against"] == best].iloc[0]
        supported.append(0 < line["low"] <= GAIN <= line["high"])
        below.append(line["high"] < GAIN)
        told = estimate(line["difference"], line["low"], line["high"])
        sentences.append(f"{one.short}: {told} over {best}")
    failed = whole and all(below)
    outcome = SUPPORT if any(supported) else FAILURE if failed else UNDECIDED
    return Claim("up to 3 % higher F1 than the best baseline", "abstract", _join(sentences), outcome)


def probing_first(one: Pair) -> pd.DataFrame:
    """LP-FT minus FT from either source, over seeds; the family is these two comparisons."""
    rows = [
        ({"source": names.title(source)}, one.row("lp_ft", source), one.row("ft", source)) for source in one.sources
    ]
    return contrast(rows, "seeds", one.margin)


def _probing_first(counted: Sequence[Pair], whole: bool) -> Claim:
    sentences, power, above, below = [], [], 0, 0
    for one in counted:
        table = probing_first(one)
        words = [f"{r.source} {estimate(r.difference, r.low, r.high)}" for r in table.itertuples()]
        sentences.append(f"{one.short}: from {' and '.join(words)}")
        power += list(table["power"])
        above += (table["superior"] == "superior").all()
        below += (table["superior"] == "inferior").all()
    outcome = SUPPORT if above >= 2 else FAILURE if below >= 2 else UNDECIDED
    return Claim("LP-FT beats FT", "4", _join(sentences), outcome).assessed(power)


def _better_source(counted: Sequence[Pair], whole: bool) -> Claim:
    sentences, outcomes = [], []
    for one in counted:
        scores = {
            source: np.mean([r.run["metrics"]["macro_f1"] for r in one.row("ft", source)]) for source in one.sources
        }
        better, ahead = max(scores, key=scores.get), np.ptp([*scores.values()])
        shares = [_mean_weight(record) for record in one.row("medmerge")]
        sign = 1 if better == one.sources[0] else -1
        shifts = [sign * (share - 0.5) for share in shares]
        gap = over_seeds(*(one.row("ft", source) for source in one.sources))
        if ahead > one.margin and gap.low * gap.high > 0 and max(map(abs, shifts)) >= SHIFT:
            outcomes.append(SUPPORT if min(shifts) > 0 else UNDECIDED if max(shifts) > 0 else FAILURE)
        values = ", ".join(f"{share:.4f}" for share in shares)
        lead = f"{one.short}: FT is better from {names.title(better)} by {ahead:.3f} (margin {one.margin:.3f})"
        sentences.append(f"{lead}; mean w of {names.title(one.sources[0])} by seed {values}")
    outcome = _verdict(outcomes, whole) if outcomes or not counted else UNASSESSED
    return Claim("w shifts to the source whose FT is better", "4, Fig. 2", _join(sentences), outcome)


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
    found = {
        ("frozen batch norms cost performance", "4"): f"one exploratory seed: {norms or 'not run'}",
        ("with zeros, deeper layers alternate", "4, Fig. 4"): "one exploratory seed, described",
        ("weights of parameters add nothing over kernels", "4"): "not run in this round",
        ("similar gains with ResNet-50", "A1"): "not run in this round",
    }
    unassessed = [Claim(*name, sentence, UNASSESSED) for name, sentence in found.items()]
    claim = "the probe costs no more than LP but for the weighted average", "4, Computational cost"
    return [*unassessed, Claim(*claim, probe if sheet else "not measured", FAILURE if low > 1 else UNDECIDED)]


def _mean_weight(record: Record) -> float:
    return float(np.concatenate([w.ravel() for w in record.kernel_weights.values()]).mean(dtype=np.float64))


def _join(sentences: Sequence[str]) -> str:
    return "; ".join(sentences) or "no pair has the seeds that it needs"


def beside_the_paper(one: Pair, paper: pd.DataFrame) -> pd.DataFrame:
    """The pair's five rows in the order of the paper's tables, with the paper's macro F1 of its target.

    Args:
        paper: :func:`medmerge.pages.papertables.rows`; a network that is not in it has no numbers of the paper.
    """
    labels = [one.row(approach, source)[0].label for approach in ("ft", "lp_ft") for source in one.sources]
    found = report.scores(one.records).set_index("label").loc[[*labels, one.row("medmerge")[0].label]].reset_index()
    target = CLEAN.get(one.name, "ISIC-2019")
    theirs = paper[(paper["backbone"] == one.p.backbone) & (paper["target"] == target)]["macro_f1"].tolist()
    return found.assign(pair=one.title, paper=theirs or float("nan"))


def source_split() -> dict[str, str]:
    """The part of the contaminated source's own split, ``train``, ``val`` or ``test``, by the id of its images; empty
    without it.
    """
    path = definitions.split_path(parameters(LEAKY_SOURCE))
    return split_files.read(path).parts if path.is_file() else {}


def worth(leaky: Pair, split: Mapping[str, str]) -> pd.DataFrame:
    """What each row gains over fine-tuning from the base weights, on images that its source has learnt from or not.

    Both are test images of one population; what a row gains should differ between them by chance alone, unless it
    profits from having seen them. As the images are others, variances add; the seeds' share is counted in both, which
    errs on the wide side. Degrees of freedom are the smaller of the two.

    Args:
        split: :func:`source_split`.

    Returns:
        A line a row: ``row``, then ``difference``, ``low`` and ``high`` of macro F1 three times: those starting with
        ``learnt_``, with ``held_out_``, and of the first minus the second.
    """
    plain = leaky.row("ft", leaky.sources[0])
    parts = plain[0].predictions["id"].map(split)
    lines = []
    for label, runs in by_row(leaky.records).items():
        if label == plain[0].label:
            continue
        learnt, held_out = (over_seeds(runs, plain, (parts == part).to_numpy()) for part in (LEARNT, HELD_OUT))
        difference, error = learnt.difference - held_out.difference, math.hypot(learnt.error, held_out.error)
        reach = float(stats.t.ppf(1 - ALPHA / 2, min(learnt.freedom, held_out.freedom))) * error
        line = {"row": label}
        for name, one in (("learnt_", learnt), ("held_out_", held_out)):
            line |= {f"{name}{value}": getattr(one, value) for value in ("difference", "low", "high")}
        lines.append(line | {"difference": difference, "low": difference - reach, "high": difference + reach})
    return pd.DataFrame(lines)


def seen(leaky: Pair) -> str:
    """How many of the contaminated arm's test images its medical source has met, in Markdown."""
    (run, *_) = leaky.row("medmerge")
    source = leaky.p.source_data
    found = run.run["data"].get("overlap", {}).get(source, {})
    images, groups = (found.get(kind, {}).get("test", 0) for kind in ("images", "groups"))
    return fill("seen", source=names.title(source), tested=len(run.predictions), images=images, groups=groups)


def further_rows() -> Rows:
    """Finished runs of rivals and controls by their row's label, in the files' order; none for a row not run."""
    found: Rows = {}
    for name in FURTHER:
        p = parameters(name)
        for row in definitions.rows(p):
            found[row.label] = [run for seed in p.seeds if (run := finished(p, row, seed))]
    return found


def held_against(found: Mapping[str, list[Record]], labels: Iterable[str], spread: float | None) -> pd.DataFrame:
    """MedMerge minus each of some rows, over the seeds that both have; rows that were not run are left out.

    Args:
        found: :func:`further_rows`.
        labels: of the rows; they are the family of Holm's correction.
        spread: the margin of equivalence, of the pair's five rows.

    Returns:
        ``against``, ``seeds`` that the row shares with MedMerge, ``mean`` macro F1 of the row over these, and the
        columns of :func:`~medmerge.pages.contrast.contrast`.

    Raises:
        RecordError: rows with other test images than MedMerge's.
    """
    merged = {run.run["seed"]: run for run in as_planned(found)}
    lines = []
    for label in labels:
        if runs := [run for run in found[label] if run.run["seed"] in merged]:
            ours = [merged[run.run["seed"]] for run in runs]
            by_row([*ours, *runs])  # refuses other test images
            mean = np.mean([run.run["metrics"]["macro_f1"] for run in runs])
            lines.append(({"against": label, "seeds": len(runs), "mean": mean}, ours, runs))
    return contrast(lines, "seeds", spread)


def as_planned(found: Mapping[str, list[Record]]) -> list[Record]:
    """MedMerge as the pair's own parameters have it."""
    return [run for runs in found.values() for run in runs if run.approach == "medmerge" and not run.settings]


def unchanged(found: Mapping[str, list[Record]]) -> list[str]:
    """Labels of rows with another start of batch norm whose predictions are MedMerge's own, to the last digit."""
    merged = {run.run["seed"]: run for run in as_planned(found)}
    same = []
    for label, runs in found.items():
        shared = [run for run in runs if run.run["seed"] in merged and set(run.settings) == {"batchnorm"}]
        if shared and all(run.predictions.equals(merged[run.run["seed"]].predictions) for run in shared):
            same.append(label)
    return same
