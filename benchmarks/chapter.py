"""What the book's chapter on speed (`notebooks/speed.ipynb`) needs beyond what `python -m benchmarks` wrote."""

import json
from pathlib import Path
from statistics import median

import pandas as pd

from medmerge.pages.typeset import number

HERE = Path(__file__).resolve().parent
OURS, GIVEN_BACK, OTHER = "KernelMerge", "FT, memory given back", "functional_call with a merged dictionary"


def load(part: str) -> dict:
    """What was measured on a CPU.

    Raises:
        FileNotFoundError: it was not.
    """
    path = HERE / f"{part}.json"
    if not path.is_file():
        raise FileNotFoundError(f"no benchmarks/{path.name}: run python -m benchmarks {part}")
    return json.loads(path.read_text(encoding="utf-8"))


def paper() -> str:
    """What the parameter files of the paper ask for, and how long that takes at measured rates, in Markdown."""
    measured = load("step")
    steps = [row for row in measured["rows"] if row["image size"] == 224]
    rates = {row["backbone"]: row["batch"] / row["FT step, ms"] * 1000 for row in steps}
    body = []
    for path in sorted((HERE.parent / "params" / "paper").glob("*.yaml")):
        if found := passes(path):
            backbone, count = found
            hours = count / rates[backbone] / 3600
            body.append([f"`{path.name}`", f"{count / 1e6:.2f} million", f"{hours:,.0f} h"])
    lines = [
        ["parameter file", "training images, a seed", f"one CPU core, {measured['machine']['precision']}"],
        ["---", "---:", "---:"],
        *body,
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def passes(path: Path) -> tuple[str, int] | None:
    """The backbone of a parameter file of the paper, and how many training images its rows see with one seed.

    Features that a linear probe computes once are not counted, nor is validation. None for files of other pages and
    for the clean splits, which have no more images than the paper's.
    """
    from medmerge.data import PAPER_NUMBERS
    from medmerge.data.loaders.xray import FRONTAL
    from medmerge.study import definitions
    from medmerge.study import notebooks as pages

    p = pages.parameters(path)
    if p.cost_repeats or p.pair.endswith("-clean"):
        return None
    official = {"ham10k": 10_015, "chexpert": FRONTAL["train"]}  # whose own split is taken
    images = official.get(p.target_data) or round(PAPER_NUMBERS[p.target_data].files * p.fractions[0])
    epochs = {"ft": p.ft_epochs, "lp_ft": p.ft_epochs, "medmerge": p.lp_epochs + p.ft_epochs}
    return p.backbone, images * sum(epochs[row.approach] for row in definitions.rows(p))


def targets() -> pd.DataFrame:
    """What was asked of the code before it was measured, what was found, and whether that is so."""
    steps = load("step")["rows"]
    ours = [one for one in steps if one["way"] == OURS]
    slowest = max(one["of FT"][1] for one in ours)
    low, worst, high = max((one["KernelMerge of it"] for one in steps if one["way"] == OTHER), key=lambda q: q[1])
    copies = max(one["counted copies above FT"] for one in ours)
    ready = min(one["of ready"][1] for one in load("pipeline")["rows"])
    asked = [
        ("probe step, of an FT step", "at most 1.05", f"{slowest:.3f} at most", slowest <= 1.05),
        ("probe step, of another way", "at most 1", f"{worst:.3f} at most ({low:.3f} to {high:.3f})", worst <= 1),
        (
            "peak of its tensors above FT, copies of the kernels",
            "at most 2",
            f"{number(copies, '+.1f')} at most",
            copies <= 2,
        ),
        ("epoch, of its steps alone", "at least 0.95", f"{ready:.3f} at least", ready >= 0.95),
    ]
    found: dict[str, list[float]] = {}
    for one in (one for one in load("row")["rows"] if one["precision"] == "auto"):
        words = (
            f"{one['device'].split(', ')[-1]}, {one['cores']} core{'s' * (one['cores'] > 1)}, {one['epochs']} epochs"
        )
        found.setdefault(words, []).append(one["times faster"])
    for words, each in found.items():
        faster = median(each)
        asked.append((f"five approaches, of a plain script, {words}", "3 x", f"{faster:.2f} x", faster >= 3))
    verdicts = ["yes" if met else "no" for *_, met in asked]
    if low <= 1 < worst:
        verdicts[1] = "within noise"
    return pd.DataFrame(asked, columns=["what", "asked", "found", "met"]).assign(met=verdicts)
