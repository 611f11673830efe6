"""What the paper's own tables can show: intervals of its entries, and differences that one run could have told apart.

The tables give accuracy and macro F1 of one run each, on test sets whose sizes follow from section 3 and whose class
shares from the official labels. What they do not give, the confusion matrix, is replaced by one that has both scores
(:func:`confusions`); the spread over test images is then that of its multinomials. No data and no record is needed,
except for how closely errors of two runs on the same images go together (:func:`togetherness`).
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import optimize, stats

from medmerge.pages.contrast import ALPHA, by_row, margin, predicted
from medmerge.pages.typeset import fill
from medmerge.stats import evaluation, resampling
from medmerge.study.records import Record, gather

APPROACHES = ("ft", "lp_ft", "medmerge")
LEANING = {"ISIC-2019": "HAM10K", "APTOS": "EyePACS", "RSNA-Pneumonia": "ImageNet"}
"""The source that w leans to on a target, as the paper reads its Fig. 2."""

DRAWS = 4000


@dataclass(frozen=True)
class Target:
    """A target of the paper.

    Attributes:
        counts: images of each class in the whole dataset, by name, from the official labels.
        share: of them that is tested on (section 3).
    """

    counts: Mapping[str, int]
    share: float

    @property
    def tested(self) -> np.ndarray:
        """Test images of each class, int64 ``[K]``, if the random split kept the shares: largest remainders get the
        last images."""
        exact = self.share * np.array(list(self.counts.values()), dtype=np.float64)
        whole = np.floor(exact).astype(np.int64)
        missing = round(exact.sum()) - whole.sum()
        whole[np.argsort(whole - exact, kind="stable")[:missing]] += 1
        return whole


TARGETS = {
    "ISIC-2019": Target(
        dict(MEL=4522, NV=12_875, BCC=3323, AK=867, BKL=2624, DF=239, VASC=253, SCC=628),
        0.2,
    ),
    "APTOS": Target({"0": 1805, "1": 370, "2": 999, "3": 193, "4": 295}, 0.1),
    "RSNA-Pneumonia": Target({"Normal": 8851, "Lung Opacity": 6012}, 0.1),
}
"""By their names in the tables. Of APTOS the 3,662 images that are labelled, not the paper's 3,962."""


def rows(path: Path) -> pd.DataFrame:
    """The paper's 30 rows: table, backbone, approach, source, target, accuracy, macro_f1."""
    return pd.read_csv(path, dtype={"table": str})


def confusions(target: Target, accuracy: float, macro_f1: float) -> list[np.ndarray]:
    """Probabilities of each prediction for each class, ``[K, K]``, that have both scores on the expected test set.

    An image of class k is predicted as j with odds ``share_j ** t * exp(s [j = k])``: s is what the network knows, t
    how far it leans to frequent classes. Of a second shape the odds halve with every class between k and j, as for
    grades. All solutions of both are returned, one of each that differ by less than 0.01 everywhere; with two classes
    there is but one matrix.

    Raises:
        ValueError: none has these scores to within 0.001.
    """
    counts = target.tested.astype(np.float64)
    classes = np.arange(len(counts))
    prior, found = np.log(counts / counts.sum()), []

    def probabilities(values: np.ndarray, apart: np.ndarray | float) -> np.ndarray:
        odds = np.exp(values[1] * prior[None] + values[0] * np.eye(len(counts)) - apart)
        return odds / odds.sum(1, keepdims=True)

    def misses(values: np.ndarray, apart: np.ndarray | float) -> list[float]:
        cells = counts[:, None] * probabilities(values, apart)
        return [np.trace(cells) / counts.sum() - accuracy, _macro_f1(cells) - macro_f1]

    for apart in (0.0, math.log(2) * np.abs(np.subtract.outer(classes, classes))):
        for start in itertools.product((2.0, 4.0, 6.0), (-0.5, 0.0, 0.5, 1.0)):
            one = optimize.least_squares(misses, start, args=(apart,))
            matrix = probabilities(one.x, apart)
            if np.abs(one.fun).max() < 1e-3 and all(np.abs(matrix - other).max() > 0.01 for other in found):
                found.append(matrix)
    if not found:
        raise ValueError(f"no confusion of these shapes has accuracy {accuracy} and macro F1 {macro_f1}")
    return found


def _macro_f1(cells: np.ndarray) -> np.ndarray:
    """Macro F1 of confusion matrices ``[..., K, K]``, true classes in rows."""
    right = np.diagonal(cells, axis1=-2, axis2=-1)
    return (2 * right / np.maximum(cells.sum(-1) + cells.sum(-2), 1e-12)).mean(-1)


def spread(target: Target, accuracy: float, macro_f1: float) -> dict[str, float]:
    """Macro F1's interval and standard error over test images of the same class sizes: ``low``, ``high``, ``error``.

    The widest over all :func:`confusions`; 95 %, the quantiles of 4,000 test sets.
    """
    found = []
    for matrix in confusions(target, accuracy, macro_f1):
        generator = np.random.default_rng(0)
        cells = [generator.multinomial(count, row, DRAWS) for count, row in zip(target.tested, matrix, strict=True)]
        scores = _macro_f1(np.stack(cells, 1).astype(np.float64))
        low, high = macro_f1 + (np.quantile(scores, [ALPHA / 2, 1 - ALPHA / 2]) - scores.mean())
        found.append({"low": low, "high": high, "error": scores.std()})
    return max(found, key=lambda one: one["error"])


def intervals(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`rows` with ``low``, ``high``, ``error`` and ``images``, the number of test images."""
    found = [spread(TARGETS[row.target], row.accuracy, row.macro_f1) for row in table.itertuples()]
    images = [int(TARGETS[target].tested.sum()) for target in table["target"]]
    return table.join(pd.DataFrame(found, index=table.index)).assign(images=images)


def comparisons(table: pd.DataFrame, together: float, seeds: float = 0.0) -> pd.DataFrame:
    """MedMerge against each baseline of its target and backbone: 24 differences in macro F1.

    Args:
        table: as :func:`intervals` gives it.
        together: correlation of two runs' scores over test sets, see :func:`togetherness`; 0 is the unpaired test that
            the tables alone allow.
        seeds: standard deviation of macro F1 between seeds, which a single run of each adds to.

    Returns:
        Columns backbone, target, against, difference; ``visible``, the smallest difference of that pair of rows that a
        two-sided test at 5 % would have found; ``corrected``, the same with Bonferroni's correction for all of them.
    """
    lines, whole = [], (table["approach"] != "MedMerge").sum()
    for (backbone, target), group in table.groupby(["backbone", "target"], sort=False):
        ours = group[group["approach"] == "MedMerge"].iloc[0]
        for other in group[group["approach"] != "MedMerge"].itertuples():
            images = ours["error"] ** 2 + other.error**2 - 2 * together * ours["error"] * other.error
            error = math.sqrt(images + 2 * seeds**2)
            one, every = (stats.norm.ppf(1 - ALPHA / 2 / m) * error for m in (1, whole))
            line = {"backbone": backbone, "target": target, "against": f"{other.approach} {other.source}"}
            line |= {"difference": round(ours["macro_f1"] - other.macro_f1, 3)}
            lines.append(line | {"visible": one, "corrected": every})
    return pd.DataFrame(lines)


def togetherness(studies: Sequence[Sequence[Record]]) -> float:
    """Correlation over test sets of the macro F1 of MedMerge and of a baseline, on the same images: the median over
    baselines and seeds of finished studies.

    It is why a paired comparison sees smaller differences than two intervals side by side.
    """
    found = []
    for records in studies:
        rows = by_row(records)
        merged = next(runs for runs in rows.values() if runs[0].approach == "medmerge")
        for runs in rows.values():
            found += [] if runs is merged else [_correlation(a, b) for a, b in zip(merged, runs, strict=True)]
    return float(np.median(found))


def _correlation(a: Record, b: Record) -> float:
    both = {name: predicted([run]) for name, run in (("a", a), ("b", b))}
    cells = evaluation.counted(a.labels, both, len(a.run["data"]["classes"]))
    drawn = resampling.bootstrap(cells, DRAWS, np.random.default_rng(0))
    return float(np.corrcoef(drawn.T)[0, 1])


def complete_studies(folder: Path) -> list[list[Record]]:
    """The five rows of each finished pair below a folder of records, those without settings of their own."""
    found: dict[tuple[str, ...], list[Record]] = {}
    for record in gather(folder, "*/*/*/seed*"):
        if record.approach in APPROACHES and not record.settings and not record.multilabel:
            found.setdefault(record.folder.parts[-4:-2], []).append(record)
    return [runs for runs in found.values() if len({_seeds(runs, one) for one in APPROACHES}) == 1]


def _seeds(runs: Sequence[Record], approach: str) -> frozenset[int]:
    return frozenset(run.run["seed"] for run in runs if run.approach == approach)


def ways(entries: pd.DataFrame, studies: Sequence[Sequence[Record]]) -> dict[str, pd.DataFrame]:
    """:func:`comparisons` as the tables alone allow them, paired by image, and with what another seed changes.

    Args:
        entries: :func:`intervals`.
        studies: :func:`complete_studies`; how closely errors go together, and what a seed changes, is theirs.
    """
    together, seeds = togetherness(studies), seed_change(studies)
    found = {"two intervals": comparisons(entries, 0.0), "paired": comparisons(entries, together)}
    return found | ({} if seeds is None else {"paired, other seeds": comparisons(entries, together, seeds)})


def seed_change(studies: Sequence[Sequence[Record]]) -> float | None:
    """What another seed changes in finished studies (:func:`medmerge.pages.contrast.margin`), the median."""
    spreads = [spread for runs in studies if (spread := margin(runs)) is not None]
    return float(np.median(spreads)) if spreads else None


def summary(found: Mapping[str, pd.DataFrame], seeds: float | None) -> str:
    """The abstract's gain beside what its test set can show, and how many comparisons are as large, in Markdown.

    Args:
        found: :func:`ways`.
    """
    paired, strictest, gain = found["paired"], [*found.values()][-1], headline(found)
    visible, corrected = (
        {name: int((table["difference"] > table[limit]).sum()) for name, table in found.items()}
        for limit in ("visible", "corrected")
    )
    places = dict.fromkeys(strictest[strictest["difference"] > strictest["visible"]]["target"])
    facts = {"visible": visible, "corrected": corrected, "places": list(places), "gain": gain, "paired": paired}
    return fill("paper", seeds=seeds, images=int(TARGETS[gain["target"]].tested.sum()), **facts)


def headline(found: Mapping[str, pd.DataFrame]) -> pd.Series:
    """The abstract's gain: Table 1's largest over a target's best baseline, a line of the strictest :func:`ways`."""
    strictest = [*found.values()][-1]
    first = strictest[strictest["backbone"] == "densenet121"]
    gains = first.loc[first.groupby("target")["difference"].idxmin()]
    return gains.loc[gains["difference"].idxmax()]


def needed(paired: pd.DataFrame) -> pd.DataFrame:
    """Test images at which MedMerge's difference from the best baseline would be visible, by target and backbone.

    Columns backbone, target, ``images`` of the paper, difference, and ``needed``, NaN where it is not above 0.
    """
    lines = []
    for (backbone, target), group in paired.groupby(["backbone", "target"], sort=False):
        best = group.sort_values("difference").iloc[0]
        images = int(TARGETS[target].tested.sum())
        factor = (best["visible"] / best["difference"]) ** 2 if best["difference"] > 0 else float("nan")
        line = {"backbone": backbone, "target": target, "images": images, "difference": best["difference"]}
        lines.append(line | {"needed": np.maximum(factor, 1) * images})
    return pd.DataFrame(lines)


def best(table: pd.DataFrame, score: str) -> pd.DataFrame:
    """By table and target the rows with the highest score: columns table, target, rows, ours (MedMerge is it alone)."""
    lines = []
    for (number, target), group in table.groupby(["table", "target"], sort=False):
        top = group[group[score] == group[score].max()]
        names = [f"{row.approach} {row.source}" for row in top.itertuples()]
        ours = names == [f"MedMerge {top.iloc[0]['source']}"]
        lines.append({"table": number, "target": target, "rows": " and ".join(names), "ours": ours})
    return pd.DataFrame(lines)


def claims(table: pd.DataFrame) -> pd.DataFrame:
    """What the paper's text says of its tables, beside the numbers: columns claim, place, numbers, holds.

    ``holds`` is ``"yes"``, ``"no"`` or ``"in part"``, of the numbers as they stand: none of it is a test.
    """
    scores, keys = {"accuracy": "accuracy", "macro_f1": "macro F1"}, ["table", "target", "source"]
    lines = pd.concat([best(table, column).assign(score=words) for column, words in scores.items()])
    tuned, probed = (table[table["approach"] == approach] for approach in ("FT", "LP-FT"))
    probing = tuned.merge(probed, on=keys)
    probing["gain"] = (probing["macro_f1_y"] - probing["macro_f1_x"]).round(3)
    below = probing.query("table == '1' and source == 'ImageNet' and gain < 0").set_index("target")["gain"].to_dict()
    first = tuned[tuned["table"] == "1"].set_index(["target", "source"])["macro_f1"]
    shift = [
        {"target": target, "source": source, "gain": first[target, source] - first[target].drop(source).item()}
        for target, source in LEANING.items()
    ]
    facts = {"gains": gains(table), "lines": lines, "lost": lines[~lines["ours"]].to_dict("records"), "below": below}
    worst = probing.loc[probing["gain"].idxmin()]
    text = fill("paper_claims", **facts, probing=probing, worst=worst, shift=shift)
    rows = [line.removeprefix("- ").strip().split(" | ") for line in text.splitlines() if line]
    return pd.DataFrame(rows, columns=["claim", "place", "numbers", "holds"])


def gains(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """MedMerge's macro F1 above the best baseline's, by table and target."""
    keys, ours = ["table", "target"], table["approach"] == "MedMerge"
    most = table[~ours].groupby(keys, sort=False)["macro_f1"].max()
    gain = (table[ours].set_index(keys)["macro_f1"] - most).round(3)
    return {number: gain[number].to_dict() for number in dict.fromkeys(table["table"])}
