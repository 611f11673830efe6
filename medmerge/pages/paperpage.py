"""Tables and sentences of the chapter on the paper's own tables, in Markdown, computed when the book is built."""

import functools
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pandas as pd

from medmerge.pages import papertables, planned
from medmerge.pages.figures import paper as figures_paper
from medmerge.study import records
from medmerge.study.places import home
from medmerge.study.records import Record

ENTRIES = Path("book", "paper-tables.csv")
STUDIES = Path("results", "open")
_TABLES = {"densenet121": "Table 1", "resnet50": "Table A1"}
_APPROACHES = ("ft", "lp_ft", "medmerge")


@functools.cache
def _entries() -> pd.DataFrame:
    return papertables.intervals(papertables.rows(home() / ENTRIES))


@functools.cache
def _studies() -> tuple[tuple[Record, ...], ...]:
    """The five rows of each finished pair of the open study, those without settings of their own."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records.gather(home() / STUDIES, "*/*/*/seed*"):
        if record.approach in _APPROACHES and not record.settings and not record.multilabel:
            found.setdefault(record.folder.parts[-4:-2], []).append(record)
    return tuple(tuple(runs) for runs in found.values() if _complete(runs))


def _complete(runs: Sequence[Record]) -> bool:
    seeds = [{r.run["seed"] for r in runs if r.approach == one} for one in _APPROACHES]
    return bool(seeds[0]) and seeds[0] == seeds[1] == seeds[2]


@functools.cache
def _together() -> float:
    return papertables.togetherness(_studies())


@functools.cache
def _seeds() -> float | None:
    spreads = [spread for runs in _studies() if (spread := planned.margin(runs)) is not None]
    return median(spreads) if spreads else None


def _ways() -> dict[str, pd.DataFrame]:
    """The 24 comparisons, as the tables alone allow them, paired by image, and with what another seed changes."""
    ways = {"two intervals": papertables.comparisons(_entries(), 0.0)}
    ways["paired"] = papertables.comparisons(_entries(), _together())
    if _seeds() is not None:
        ways["paired, other seeds"] = papertables.comparisons(_entries(), _together(), _seeds())
    return ways


def summary() -> str:
    """How many of the comparisons are larger than what could have been seen."""
    ways = _ways()
    found = {name: int((frame["difference"] > frame["visible"]).sum()) for name, frame in ways.items()}
    below = int((ways["paired"]["difference"] < -ways["paired"]["visible"]).sum())
    total, above = len(ways["paired"]), int((ways["paired"]["difference"] > 0).sum())
    lines = [
        f"MedMerge's macro F1 is above the baseline in **{above} of {total}** comparisons. From the tables alone, "
        f"which do not say which images were told rightly, **{found['two intervals']}** of these differences are "
        f"larger than what a single run could have shown at 5 %. With predictions on the same images, whose errors go "
        f"together as ours do, it would be **{found['paired']}**; {below or 'none'} of those below 0 is as large."
    ]
    if "paired, other seeds" in found:
        lines.append(
            f"If another seed changes macro F1 as much as it does in our runs (standard deviation {_seeds():.3f}), it "
            f"is **{found['paired, other seeds']}**."
        )
    return " ".join(lines)


def entries() -> str:
    """All rows with their intervals."""
    lines = ["| target | row | accuracy | macro F1 | 95 % interval |", "| --- | --- | ---: | ---: | :---: |"]
    for row in _entries().itertuples():
        scores = f"{row.accuracy:.3f} | {row.macro_f1:.3f} | {row.low:.3f} to {row.high:.3f}"
        lines.append(f"| {row.target}, Table {row.table} | {row.approach} {row.source} | {scores} |")
    return "\n".join(lines)


def comparisons() -> str:
    """The 24 differences beside the smallest that could have been seen."""
    ways = _ways()
    lines = [f"| target | MedMerge minus | difference | {' | '.join(ways)} |"]
    lines.append("| --- | --- | ---: |" + " ---: |" * len(ways))
    for number, row in enumerate(ways["paired"].itertuples()):
        limits = [frame.iloc[number]["visible"] for frame in ways.values()]
        cells = [f"**{limit:.3f}**" if abs(row.difference) > limit else f"{limit:.3f}" for limit in limits]
        lines.append(
            f"| {row.target}, {_TABLES[row.backbone]} | {row.against} | {row.difference:+.3f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def needed() -> str:
    """How many test images it would take to see MedMerge's difference from the best baseline, by pairing."""
    lines = [
        "| target | test images | MedMerge minus the best baseline | images to see it |",
        "| --- | ---: | ---: | ---: |",
    ]
    paired = _ways()["paired"]
    for (backbone, target), group in paired.groupby(["backbone", "target"], sort=False):
        best = group.sort_values("difference").iloc[0]
        images = int(papertables.TARGETS[target].tested.sum())
        factor = (best["visible"] / best["difference"]) ** 2 if best["difference"] > 0 else None
        wanted = "–" if factor is None else f"{max(factor, 1) * images:,.0f}"
        lines.append(f"| {target}, {_TABLES[backbone]} | {images:,} | {best['difference']:+.3f} | {wanted} |")
    return "\n".join(lines)


def claims() -> str:
    """What the text says of the tables."""
    lines = ["| the paper says | where | its tables | so |", "| --- | --- | --- | --- |"]
    found = papertables.claims(_entries())
    return "\n".join(lines + [f"| {r.claim} | {r.place} | {r.numbers} | {r.holds} |" for r in found.itertuples()])


def grounds() -> str:
    """What the last columns of the comparisons rest on."""
    pairs = {}
    for runs in _studies():
        count = len({run.run["seed"] for run in runs})
        pairs[f"{runs[0].folder.parts[-4]} ({count} seed{'s' * (count > 1)})"] = None
    return f"The errors of two of our runs go together with a correlation of {_together():.2f}: {', '.join(pairs)}."


def figure() -> figures_paper.BookFigure:
    """The figure of all entries."""
    return figures_paper.paper_intervals(_entries())


TEXTS = {"summary": summary, "entries": entries, "comparisons": comparisons, "needed": needed}
TEXTS |= {"claims": claims, "grounds": grounds}
"""By their names in the chapter."""
