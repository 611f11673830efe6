"""The tables of the book's chapter on speed, in Markdown, from what `python -m benchmarks` wrote."""

import json
from pathlib import Path
from statistics import median

from medmerge.study.names import title

HERE = Path(__file__).resolve().parent
OURS, GIVEN_BACK, OTHER = "KernelMerge", "FT, memory given back", "functional_call with a merged dictionary"


def load(part: str, kind: str = "cpu") -> dict:
    """What was measured.

    Raises:
        FileNotFoundError: it was not.
    """
    path = HERE / (f"{part}.json" if kind == "cpu" else f"{part}-{kind}.json")
    if not path.is_file():
        raise FileNotFoundError(f"no benchmarks/{path.name}: run python -m benchmarks {part}")
    return json.loads(path.read_text(encoding="utf-8"))


def _table(heads: list[str], rows: list[list[object]], left: int = 1) -> str:
    """A table whose first ``left`` columns are words."""
    marks = ["---"] * left + ["---:"] * (len(heads) - left)
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [heads, marks, *rows])


def _network(row: dict) -> str:
    return f"{title(row['backbone'])}, {row['image size']} px"


def _quartiles(values: list[float]) -> str:
    low, middle, high = values
    return f"{middle:.3f} ± {(high - low) / 2:.3f}"


def _by_way() -> dict[str, dict[str, dict]]:
    """Steps, by network and way."""
    found: dict[str, dict[str, dict]] = {}
    for row in load("step")["rows"]:
        found.setdefault(_network(row), {})[row["way"]] = row
    return found


def step() -> str:
    """Time of a probe step over that of an FT step, written in two ways, and ours over the other."""
    body = [
        [network, f"{one[OURS]['FT step, ms']:,.0f} ms"]
        + [_quartiles(values) for values in (one[OURS]["of FT"], one[OTHER]["of FT"], one[OTHER]["KernelMerge of it"])]
        for network, one in _by_way().items()
    ]
    return _table(["network", "FT", "this package", "functional_call", "this package of it"], body)


def memory() -> str:
    """Memory of all tensors in the same steps above fine-tuning's, at its peak."""
    copies = "counted copies above FT"
    body = [[name, f"{one[OURS][copies]:+.1f}", f"{one[OTHER][copies]:+.1f}"] for name, one in _by_way().items()]
    return _table(["network", "this package", "functional_call"], body)


def kept() -> str:
    """A step of fine-tuning in a process that gives memory back to the system, over one in which it stays."""
    body = [[name, f"{one[GIVEN_BACK]['of FT'][1]:.2f}"] for name, one in _by_way().items()]
    return _table(["network", "time, given back over kept"], body)


def pipeline() -> str:
    """An epoch against its steps alone."""
    rates = ("images", "epoch, images/s", "ready batches, images/s")
    rows = load("pipeline")["rows"]
    body = [[_network(row), *map(row.get, rates), f"{row['of ready'][1]:.3f}"] for row in rows]
    return _table(["network", "images", "epoch, images/s", "steps alone, images/s", "ratio"], body)


def row() -> str:
    """The five approaches of a pair against a plain script."""
    body = [
        [_processor(one), f"{one['cores']}, {one['precision']}", one["epochs"], one["seed"]]
        + [f"{one['plain, s']:.0f}", f"{one['medmerge, s']:.0f}", f"{one['times faster']:.2f} x"]
        + [f"{one['plain macro_f1']:.3f}", f"{one['medmerge macro_f1']:.3f}"]
        for one in load("row")["rows"]
    ]
    heads = ["processor", "cores, precision", "epochs", "seed", "plain, s", "medmerge, s", "faster"]
    return _table([*heads, "F1, plain", "F1, medmerge"], body)


def _processor(row: dict) -> str:
    return row["device"].split(", ")[-1]


def machine() -> str:
    """What was measured on, a line a part."""
    lines = []
    for part in ("step", "pipeline", "row"):
        found = load(part)
        m, minutes = found["machine"], found["seconds"] / 60
        devices = dict.fromkeys(row.get("device", m["device"]) for row in found["rows"])
        words = f"{' and '.join(devices)}, {m['cores']} cores, {m['memory_gib']} GiB, PyTorch {m['torch']}"
        lines.append([f"`{part}.json`", words, f"{minutes:.0f} min"])
    return _table(["measured", "on", "in"], lines, 2)


def paper() -> str:
    """What the parameter files of the paper's pairs and sources ask for, and how long that takes at measured rates."""
    steps = [row for row in load("step")["rows"] if row["image size"] == 224]
    rates = {row["backbone"]: row["batch"] / row["FT step, ms"] * 1000 for row in steps}
    body = []
    for path in sorted((HERE.parent / "params" / "paper").glob("*.yaml")):
        if found := passes(path):
            backbone, count = found
            hours = count / rates[backbone] / 3600
            body.append([f"`{path.name}`", f"{count / 1e6:.2f} million", f"{hours:,.0f} h"])
    return _table(["parameter file", "training images, a seed", "one CPU core, bf16"], body)


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


def targets() -> str:
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
        ("peak of its tensors above FT, copies of the kernels", "at most 2", f"{copies:+.1f} at most", copies <= 2),
        ("epoch, of its steps alone", "at least 0.95", f"{ready:.3f} at least", ready >= 0.95),
    ]
    found: dict[str, list[float]] = {}
    for one in (one for one in load("row")["rows"] if one["precision"] == "auto"):
        words = f"{_processor(one)}, {one['cores']} core{'s' * (one['cores'] > 1)}, {one['epochs']} epochs"
        found.setdefault(words, []).append(one["times faster"])
    for words, each in found.items():
        faster = median(each)
        asked.append((f"five approaches, of a plain script, {words}", "3 x", f"{faster:.2f} x", faster >= 3))
    verdicts = ["yes" if met else "**no**" for *_, met in asked]
    if low <= 1 < worst:
        verdicts[1] = "within noise"
    body = [[*one[:-1], said] for one, said in zip(asked, verdicts, strict=True)]
    return _table(["what", "asked", "found", ""], body)


TEXTS = {one.__name__: one for one in (targets, step, memory, kept, pipeline, row, machine, paper)}
"""By what ``{benchmark}`` asks for."""
