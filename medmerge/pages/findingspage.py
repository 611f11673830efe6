"""Tables and sentences of the chapter on what was found, in Markdown, computed when the book is built."""

import functools
from collections.abc import Iterator

import pandas as pd

from medmerge.pages import agreement, findings, findings_leak, findings_rivals, papertables, planned, report
from medmerge.pages.figures import findings as figures_findings
from medmerge.pages.findings import CLEAN, LEAKY, PLANNED, Claim, Pair
from medmerge.pages.paperpage import ENTRIES
from medmerge.study import definitions, records, reruns
from medmerge.study import notebooks as pages
from medmerge.study import run as study
from medmerge.study.places import home

NAMES = {"densenet121": "DenseNet-121", "mobilenet_v2": "MobileNetV2"}
EXTERNAL = {
    "from scratch": ("external-scratch", "ResNet-18"),
    "FT": ("external-ft", "MobileNetV2"),
    "LP": ("external-lp", "MobileNetV2"),
}
"""Parameter files of the external check and their networks, by scheme."""

WATTS = 10
"""Assumed power of a busy core of a server, memory and cooling included."""


@functools.cache
def _pair(name: str, backbone: str) -> Pair:
    return findings.pair(name, backbone)


def _pairs(backbone: str) -> list[Pair]:
    return [_pair(name, backbone) for name in CLEAN]


def _begun() -> Iterator[tuple[str, Pair]]:
    """Every pair with a seed that all rows have, with its backbone, in the plan's order."""
    for name, backbone in PLANNED:
        if _pair(name, backbone).records:
            yield backbone, _pair(name, backbone)


@functools.cache
def _claims() -> tuple[Claim, ...]:
    return tuple(findings.claims(_pairs("densenet121")))


def verdict() -> str:
    """How the claims stand, in a few sentences."""
    counted = [one for one in _pairs("densenet121") if one.counts]
    if not counted:
        return "No pair of the plan has the seeds that it needs: nothing is decided yet."
    by = {word: [c.claim for c in _claims() if c.verdict == word] for word in ("failure", "support", "undecided")}
    names = {"failure": "Found not to hold", "support": "Supported", "undecided": "Undecided"}
    pairs = ", ".join(f"{one.name} ({len(one.seeds)} seeds)" for one in counted)
    lines = [f"- **{names[word]}:** {'; '.join(claims)}." for word, claims in by.items() if claims]
    missing = [one.name for one in _pairs("densenet121") if not one.counts]
    rest = f" Not run with enough seeds: {', '.join(missing)}; what needs all pairs stays undecided." if missing else ""
    return "\n".join([f"By the plan's rules, on the pairs that count with DenseNet-121: {pairs}.{rest}", "", *lines])


def claims() -> str:
    """Every claim that scores and weights decide, what was found, and the verdict."""
    lines = ["| the paper's claim | place | found | so |", "| --- | --- | --- | --- |"]
    return "\n".join(lines + [f"| {c.claim} | {c.place} | {c.found} | **{c.verdict}** |" for c in _claims()])


def scores() -> str:
    """The paper's rows beside ours."""
    paper = papertables.rows(home() / ENTRIES)
    paper = paper[paper["backbone"] == "densenet121"]
    lines = ["| pair, network | row | the paper, on its target | ours | 95 % interval | seeds |"]
    lines.append("| --- | --- | ---: | ---: | :---: | ---: |")
    for backbone, one in _begun():
        theirs = paper[paper["target"] == CLEAN.get(one.name, "ISIC-2019")]["macro_f1"]
        found = report.scores(one.records).set_index("label")
        for (label, row), stated in zip(_as_in_the_paper(one, found), theirs, strict=True):
            stated = f"{stated:.3f}" if backbone == "densenet121" else "–"
            where = f"{row['low']:.3f} to {row['high']:.3f} | {row['seeds']}"
            lines.append(f"| {one.name}, {NAMES[backbone]} | {label} | {stated} | {row['mean']:.3f} | {where} |")
    return "\n".join(lines) if len(lines) > 2 else "No pair has a seed of all five rows yet."


def _as_in_the_paper(one: Pair, found: pd.DataFrame) -> list[tuple[str, pd.Series]]:
    """Rows in the order of the paper's tables: FT and LP-FT from base and source, and the merge."""
    order = [("ft", source) for source in one.sources] + [("lp_ft", source) for source in one.sources]
    labels = [one.row(approach, source)[0].label for approach, source in order] + [one.row("medmerge")[0].label]
    return [(label, found.loc[label]) for label in labels]


def tests() -> str:
    """MedMerge against each baseline over seeds and images, pair by pair."""
    heads = ("MedMerge minus", "difference", "95 % interval", "p (Holm)", "superiority", "within the margin")
    lines = ["| pair, network | " + " | ".join(heads) + " |", "| --- | --- | ---: | :---: | ---: | --- | --- |"]
    for backbone, one in _begun():
        for row in one.comparisons.itertuples():
            cells = planned.cells(row, len(one.seeds))
            lines.append(f"| {one.name}, {NAMES[backbone]} | {row.against} | {cells} |")
    return "\n".join(lines) if len(lines) > 2 else "No pair has a seed of all five rows yet."


def progress() -> str:
    """What the plan asks for, and how much of it was run."""
    lines = ["| pair | network | runs | seeds of all five rows | decides |", "| --- | --- | ---: | :---: | :---: |"]
    for name, backbone in PLANNED:
        one = _pair(name, backbone)
        seeds, decides = ", ".join(map(str, one.seeds)) or "none", "yes" if one.counts else "no"
        lines.append(f"| {name} | {NAMES[backbone]} | {one.begun} of {one.asked} | {seeds} | {decides} |")
    return "\n".join(lines)


def resnet() -> str:
    """The paper's Table A1 and what became of it here."""
    paper = papertables.rows(home() / ENTRIES)
    lines = ["| target | row | the paper: accuracy | macro F1 | ours |", "| --- | --- | ---: | ---: | --- |"]
    for row in paper[paper["backbone"] == "resnet50"].itertuples():
        scores = f"{row.accuracy:.3f} | {row.macro_f1:.3f}"
        lines.append(f"| {row.target} | {row.approach} {row.source} | {scores} | not run |")
    return "\n".join(lines)


def seeds_agree() -> str:
    """How alike the merging weights of two seeds are."""
    lines = ["| pair, network | seeds | over kernels | of layers' means | within layers | by layers alone |"]
    lines.append("| --- | :---: | ---: | ---: | ---: | :---: |")
    for backbone, one in _begun():
        if not one.counts:
            continue
        runs = {record.run["seed"]: record.kernel_weights for record in one.row("medmerge")}
        for row in agreement.seed_agreement(runs).itertuples():
            values = (
                f"{row.pearson:.3f} | {row.layers:.3f} | {row.within:.3f} | {row.null_low:.3f} to {row.null_high:.3f}"
            )
            lines.append(f"| {one.name}, {NAMES[backbone]} | {row.one}, {row.other} | {values} |")
    return "\n".join(lines) if len(lines) > 2 else "No pair has two seeds of the merge yet."


def leak() -> str:
    """What the overlap of the contaminated skin pair is worth."""
    clean, leaky = (_pair(name, "densenet121") for name in ("skin-seeds", LEAKY))
    return findings_leak.text(clean, leaky)


def rivals() -> str:
    """MedMerge against its rivals and controls, on the skin pair with MobileNetV2."""
    return findings_rivals.text(_pair(*findings_rivals.PAIR), findings_rivals.rows())


def compute() -> str:
    """Hours and an estimate of energy, by study."""
    found = records.gather(home() / "results" / "open", "*/*/*/seed*")
    table = pd.DataFrame(
        {
            "study": record.folder.parts[-4],
            "hours": sum(phase["seconds"] for phase in record.run["cost"].values()) / 3600,
        }
        for record in found
    )
    total = table.groupby("study", sort=True)["hours"].agg(["size", "sum"])
    lines = ["| study | runs | hours of one core |", "| --- | ---: | ---: |"]
    lines += [f"| {study} | {row['size']:.0f} | {row['sum']:.1f} |" for study, row in total.iterrows()]
    hours = total["sum"].sum()
    lines.append(f"| *all* | {total['size'].sum():.0f} | {hours:.1f} |")
    energy = f"At an assumed {WATTS} W for a busy core that is {hours * WATTS / 1000:.2f} kWh."
    return "\n".join([*lines, "", f"{energy} Failed and repeated runs, tests and timings are not counted."])


def again() -> str:
    """Runs that were computed a second time, and what differed."""
    lines = [
        "| pair | row, seed | on, and then on | files the same | macro F1, and then | another seed changes it by |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for backbone, one in _begun():
        spread = planned.margin(one.records)
        for found in reruns.of(one.records):
            there, rerun = found.record.run, found.rerun
            files = f"{len(rerun.same)} of {len(rerun.same) + len(rerun.different)}"
            scores = f"{there['metrics']['macro_f1']:.4f}, {rerun.metrics['macro_f1']:.4f}"
            where = f"{there['device']}; {rerun.device}"
            row = f"{found.record.label}, {there['seed']}"
            changes = "–" if spread is None else f"{spread:.4f}"
            lines.append(f"| {one.name}, {NAMES[backbone]} | {row} | {where} | {files} | {scores} | {changes} |")
    return "\n".join(lines) if len(lines) > 2 else "No run of a pair has been computed a second time yet."


def external() -> str:
    """Published scores on RetinaMNIST and ours, scheme by scheme."""
    lines = [
        "| whose | network, input | scheme | accuracy | AUROC | seeds |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    published = pd.read_csv(home() / "book" / "external.csv")
    for scheme, group in published.groupby("scheme", sort=False):
        for row in group.itertuples():
            scores = f"{_spread(row.accuracy, row.accuracy_sd)} | {_spread(row.auroc, row.auroc_sd)} | –"
            lines.append(f"| {{cite:t}}`{row.source}` | {row.network}, {row.input} | {scheme} | {scores} |")
        name, network = EXTERNAL[scheme]
        metrics = pd.DataFrame([r.run["metrics"] for r in _external(name)], columns=["accuracy", "macro_auroc"])
        means, sds = metrics.mean(), metrics.std()
        scores = [_spread(means[column], sds[column]) if len(metrics) else "not run" for column in metrics]
        where = f"{network}, {group['input'].iloc[0]} | {scheme} | {' | '.join(scores)} | {len(metrics) or '–'}"
        lines.append(f"| **ours** | {where} |")
    return "\n".join(lines)


def _external(name: str) -> list[records.Record]:
    path = home() / findings.FILES / f"{name}.yaml"
    p = pages.parameters(path)
    found = [study.finished(p, row, seed) for row in definitions.rows(p) for seed in p.seeds]
    return [record for record in found if record]


def _spread(value: float, sd: float) -> str:
    return f"{value:.3f}" if pd.isna(sd) else f"{value:.3f} ± {sd:.3f}"


def figure() -> figures_findings.BookFigure | None:
    """MedMerge minus each baseline of the pairs that count; None where none does."""
    counted = {f"{one.name}, {NAMES[backbone]}": one for backbone, one in _begun() if one.counts}
    tables = {name: one.comparisons for name, one in counted.items()}
    margins = {name: planned.margin(one.records) for name, one in counted.items()}
    return figures_findings.differences(tables, margins, findings.GAIN) if counted else None


TEXTS = {
    **{"verdict": verdict, "claims": claims, "scores": scores, "tests": tests, "progress": progress, "resnet": resnet},
    **{
        "agreement": seeds_agree,
        "leak": leak,
        "rivals": rivals,
        "compute": compute,
        "external": external,
        "again": again,
    },
}
"""By what ``{findings}`` asks for."""
