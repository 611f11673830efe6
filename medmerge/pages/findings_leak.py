"""What an overlap is worth: contaminated beside clean arm, and images that a source has learnt from beside others.

The second comparison is within the contaminated arm: its test images that its medical source was trained on, beside
test images of the same dataset that the source's own split held out. Both are of one population; what a row gains over
fine-tuning from the base weights should differ between them by chance alone, unless it profits from having seen them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from medmerge.data import split_files
from medmerge.pages import report
from medmerge.pages.findings import FILES, Pair
from medmerge.stats import significance
from medmerge.stats.significance import SeedInterval
from medmerge.study import definitions
from medmerge.study import notebooks as pages
from medmerge.study.places import home
from medmerge.study.records import Record

SOURCE = "source-ham10k-leaky"
"""Parameter file of the contaminated arm's medical source."""

LEARNT, HELD_OUT = "train", "test"
"""Parts of the source's split. Images that it was validated on chose its epoch and are in neither comparison."""


@dataclass(frozen=True)
class Worth:
    """What a row gains over fine-tuning from the base weights, in macro F1.

    Attributes:
        row: its label.
        learnt, held_out: on test images that the source was trained on, and on those that its split held out.
        difference: ``learnt`` minus ``held_out``.
        low, high: its 95 % interval.
    """

    row: str
    learnt: SeedInterval
    held_out: SeedInterval
    difference: float
    low: float
    high: float


def source_split() -> dict[str, str]:
    """The part of the source's own split, ``train``, ``val`` or ``test``, by the id of its images; empty without it.

    Raises:
        DataError: the file is damaged.
    """
    path = definitions.split_path(pages.parameters(home() / FILES / f"{SOURCE}.yaml"))
    return split_files.read(path).parts if path.is_file() else {}


def worth(leaky: Pair, split: Mapping[str, str]) -> list[Worth]:
    """Every row but fine-tuning from the base weights, in the order of the records.

    Images of the two parts are others, so that their variances add; the seeds' share is counted in both, which errs on
    the wide side. Degrees of freedom are the smaller of the two.

    Args:
        split: :func:`source_split`.
    """
    plain = leaky.row("ft", leaky.sources[0])
    return [
        _worth(label, runs, plain, split)
        for label, runs in report.by_row(leaky.records).items()
        if runs[0].label != plain[0].label
    ]


def _worth(label: str, runs: list[Record], plain: list[Record], split: Mapping[str, str]) -> Worth:
    learnt, held_out = (_gain(runs, plain, chosen(plain[0], split, part)) for part in (LEARNT, HELD_OUT))
    difference, error = learnt.difference - held_out.difference, math.hypot(learnt.error, held_out.error)
    reach = float(stats.t.ppf(1 - significance.ALPHA / 2, min(learnt.freedom, held_out.freedom))) * error
    return Worth(label, learnt, held_out, difference, difference - reach, difference + reach)


def _gain(runs: list[Record], plain: list[Record], images: np.ndarray) -> SeedInterval:
    classes = len(plain[0].run["data"]["classes"])
    labels, a, b = plain[0].labels, report.predicted(runs), report.predicted(plain)
    return significance.over_seeds(labels[images], a[:, images], b[:, images], classes)


def chosen(record: Record, split: Mapping[str, str], part: str) -> np.ndarray:
    """Which of a record's test images, bool [N], are in a part of the source's split."""
    return (record.predictions["id"].map(split) == part).to_numpy()


def text(clean: Pair, leaky: Pair) -> str:
    """Both comparisons, in Markdown."""
    if not (clean.records and leaky.records):
        return (
            "**Not answered.** It needs a seed of both arms of the skin pair; of the clean one "
            f"{len(clean.seeds) or 'none'} and of the contaminated one {len(leaky.seeds) or 'none'} is finished. What "
            "such a split hides, without training a merge, is in the chapter on datasets."
        )
    return "\n".join([_seen(leaky), "", *_arms(clean, leaky), "", *_parts(leaky)])


def _arms(clean: Pair, leaky: Pair) -> list[str]:
    """MedMerge minus each baseline in both arms."""
    classes = [len(one.records[0].run["data"]["classes"]) for one in (clean, leaky)]
    few = [one.name for one in (clean, leaky) if len(one.seeds) == 1]
    lines = [f"Of {' and '.join(few)} there is one seed: intervals are then of test images alone.", ""] if few else []
    if classes[0] != classes[1]:
        lines += [f"The arms differ in more: their images are of {classes[0]} and of {classes[1]} classes.", ""]
    lines += ["| MedMerge minus | without the overlap | with it |", "| --- | ---: | ---: |"]
    tables = [one.comparisons.set_index("against") for one in (clean, leaky)]
    for label in tables[0].index:
        cells = [_interval(*table.loc[label, ["difference", "low", "high"]]) for table in tables]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def _parts(leaky: Pair) -> list[str]:
    """The rows on images that the source has learnt from, and on those that it has not."""
    split, first = source_split(), leaky.records[0]
    counts = {part: int(chosen(first, split, part).sum()) for part in (LEARNT, HELD_OUT)}
    if not all(counts.values()):
        return [f"Which test images the source has learnt from is not known here: `{SOURCE}` has no split for them."]
    base = leaky.row("ft", leaky.sources[0])[0].label
    heads = [f"learnt from ({counts[LEARNT]:,} images)", f"held out ({counts[HELD_OUT]:,})", "difference"]
    lines = [f"| minus {base} | {' | '.join(heads)} |", "| --- | ---: | ---: | ---: |"]
    for one in worth(leaky, split):
        cells = [_interval(gain.difference, gain.low, gain.high) for gain in (one.learnt, one.held_out, one)]
        lines.append(f"| {one.row} | {' | '.join(cells)} |")
    return lines


def _interval(difference: float, low: float, high: float) -> str:
    """A narrow column breaks before the interval, not within it."""
    return f"{difference:+.3f} ({low:+.3f} to {high:+.3f})".replace(" to ", "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}")


def _seen(leaky: Pair) -> str:
    """How many of the contaminated arm's test images its medical source has met."""
    (run, *_) = leaky.row("medmerge")
    source = leaky.p.source_data
    found = run.run["data"].get("overlap", {}).get(source, {})
    images, groups = (found.get(kind, {}).get("test", 0) for kind in ("images", "groups"))
    if not images + groups:
        return (
            f"**The contaminated arm has no overlap**: its records say that {source} has seen none of its test images."
        )
    tested = len(run.predictions)
    related = f", and on another image of the same patient or lesion for {groups:,} more" if groups else ""
    return (
        f"Of the contaminated arm's {tested:,} test images, {source} has been trained or validated on {images:,} "
        f"({images / tested:.0%}){related}."
    )
