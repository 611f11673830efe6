"""The tables of the book's chapter on speed, in Markdown, from what `python -m benchmarks` wrote."""

import functools
import json
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
NAMES = {"densenet121": "DenseNet-121", "resnet50": "ResNet-50", "resnet18": "ResNet-18", "mobilenet_v2": "MobileNetV2"}
NAMES |= {"densenet_small": "small DenseNet"}
OURS, GIVEN_BACK = "KernelMerge", "FT, memory given back"


def load(part: str, kind: str = "cpu") -> dict | None:
    """What was measured, or None where it was not."""
    path = HERE / (f"{part}.json" if kind == "cpu" else f"{part}-{kind}.json")
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def markdown(what: str) -> str:
    """A table of the chapter, by its name in :data:`TABLES`.

    Raises:
        FileNotFoundError: what it needs was not measured.
    """
    return "\n".join(TABLES[what]())


def _rows(part: str, kind: str = "cpu") -> list[dict]:
    found = load(part, kind)
    if found is None:
        raise FileNotFoundError(f"no benchmarks/{part}.json: run python -m benchmarks {part}")
    return found["rows"]


def _table(heads: list[str], rows: list[list[object]], left: int = 1) -> list[str]:
    """Lines of a table; the first ``left`` columns are words."""
    marks = ["---"] * left + ["---:"] * (len(heads) - left)
    return ["| " + " | ".join(map(str, row)) + " |" for row in [heads, marks, *rows]]


def _network(row: dict) -> str:
    return f"{NAMES[row['backbone']]}, {row['image size']} px"


def step() -> list[str]:
    """Time of a probe step over that of an FT step, written in two ways, and ours over the other."""
    rows, ways = _by_way()
    body = []
    for network, one in rows.items():
        body.append([network, f"{one[OURS]['FT step, ms']:,.0f} ms", *(_quartiles(one[way]["of FT"]) for way in ways)])
        others = (_quartiles(one[way]["KernelMerge of it"]) for way in ways[1:])
        body.append(["*this package of it*", "", "", *others])
    return _table(["network", "FT", *map(_short, ways)], body)


def _quartiles(values: list[float]) -> str:
    low, middle, high = values
    return f"{middle:.3f} ± {(high - low) / 2:.3f}"


def memory() -> list[str]:
    """Memory of the same steps above fine-tuning's at its peak: of the process, and of the tensors in it."""
    rows, ways = _by_way()
    body = []
    for network, one in rows.items():
        peaks = (f"{one[way]['copies above FT']:+.1f}" for way in ways)
        body.append([network, f"{one[OURS]['FT memory, MiB']:,} MiB", *peaks])
        body.append(["*of tensors*", "", *(f"{one[way]['counted copies above FT']:+.1f}" for way in ways)])
    return _table(["network", "FT, peak", *map(_short, ways)], body)


def _by_way() -> tuple[dict[str, dict[str, dict]], list[str]]:
    rows: dict[str, dict[str, dict]] = {}
    for row in _rows("step"):
        rows.setdefault(_network(row), {})[row["way"]] = row
    return rows, [way for way in dict.fromkeys(row["way"] for row in _rows("step")) if way != GIVEN_BACK]


def _short(way: str) -> str:
    return "this package" if way == OURS else "functional_call"


def kept() -> list[str]:
    """A step of fine-tuning in a process that gives memory back to the system, over one in which it stays."""
    rows, _ = _by_way()
    body = [
        [
            network,
            f"{one[GIVEN_BACK]['of FT'][1]:.2f}",
            f"{one[GIVEN_BACK]['memory, MiB'] - one[OURS]['FT memory, MiB']:+,}",
        ]
        for network, one in rows.items()
    ]
    return _table(["network", "time, given back over kept", "peak, MiB"], body)


def probe() -> list[str]:
    """A linear probe from features that are computed once."""
    body = [
        [
            *(_network(row) + ", " + row["precision"], row["epochs"], f"{row['once, s']:.2f}"),
            *(f"{row['every epoch, s']:.0f}", f"{row['times faster']:.0f} x", f"{row['largest difference']:.1g}"),
        ]
        for row in _rows("probe")
    ]
    return _table(["network", "epochs", "once, s", "every epoch, s", "faster", "heads differ by"], body)


def pipeline() -> list[str]:
    """An epoch against its steps alone."""
    body = [
        [
            *(_network(row), row["images"], row["epoch, images/s"], row["ready batches, images/s"]),
            f"{row['of ready'][1]:.3f}",
        ]
        for row in _rows("pipeline")
    ]
    return _table(["network", "images", "epoch, images/s", "steps alone, images/s", "ratio"], body)


def row() -> list[str]:
    """The five approaches of a pair against a plain script."""
    body = [
        [
            *(
                _processor(row),
                f"{row['cores']}, {row['precision']}",
                row["epochs"],
                row["seed"],
                f"{row['plain, s']:.0f}",
                f"{row['medmerge, s']:.0f}",
            ),
            *(f"{row['times faster']:.2f} x", f"{row['plain macro_f1']:.3f}", f"{row['medmerge macro_f1']:.3f}"),
        ]
        for row in _rows("row")
    ]
    heads = [
        "processor",
        "cores, precision",
        "epochs",
        "seed",
        "plain, s",
        "medmerge, s",
        "faster",
        "F1, plain",
        "F1, medmerge",
    ]
    return _table(heads, body)


def growth() -> list[str]:
    """Time and memory as things grow."""
    order = list(dict.fromkeys(row["what"] for row in _rows("growth")))
    body = [
        [
            *(row["what"], f"{row['value']:,}", NAMES[row["backbone"]], f"{row['ms an image']:.2f}"),
            f"{row['memory, MiB']:,.0f}" if row["memory, MiB"] is not None else "–",
            f"{row['of FT']:.3f}" if "of FT" in row else "–",
        ]
        for row in sorted(_rows("growth"), key=lambda row: (order.index(row["what"]), row["value"]))
    ]
    return _table(["what grows", "to", "network", "ms an image", "MiB", "of FT"], body, 3)


def machine() -> list[str]:
    """What was measured on, a line a part."""
    lines = []
    for part in ("step", "probe", "pipeline", "row", "growth"):
        if found := load(part):
            m, minutes = found["machine"], found["seconds"] / 60
            devices = dict.fromkeys(row.get("device", m["device"]) for row in found["rows"])
            words = f"{' and '.join(devices)}, {m['cores']} cores, {m['memory_gib']} GiB, PyTorch {m['torch']}"
            lines.append([f"`{part}.json`", words, f"{minutes:.0f} min"])
    return _table(["measured", "on", "in"], lines, 2)


def paper() -> list[str]:
    """What the parameter files of the paper's pairs and sources ask for, and how long that takes at measured rates."""
    fine_tuning = {
        kind: {
            row["backbone"]: row["batch"] / row["FT step, ms"] * 1000
            for row in (load("step", kind) or {"rows": []})["rows"]
            if row["image size"] == 224
        }
        for kind in ("cpu", "cuda")
    }
    body = []
    for path in sorted((HERE.parent / "params" / "paper").glob("*.yaml")):
        if (found := passes(path)) is None:
            continue
        backbone, count = found
        hours = [count / rates[backbone] / 3600 if backbone in rates else None for rates in fine_tuning.values()]
        shown = ["not measured" if h is None else f"{h:,.0f} h" if h >= 10 else f"{h:.1f} h" for h in hours]
        body.append([f"`{path.name}`", f"{count / 1e6:.2f} million", *shown])
    return _table(["parameter file", "training images, a seed", "one CPU core, bf16", "a GPU"], body)


def passes(path: Path) -> tuple[str, int] | None:
    """The backbone of a parameter file of the paper, and how many training images its rows see with one seed.

    Features that a linear probe computes once are not counted, nor is validation. None for files of other pages and
    for the clean splits, which have no more images than the paper's.
    """
    from medmerge.data import PAPER_NUMBERS
    from medmerge.data.loaders.chexpert import FRONTAL
    from medmerge.study import definitions
    from medmerge.study import notebooks as pages

    p = pages.parameters(path)
    if p.cost_repeats or p.pair.endswith("-clean"):
        return None
    official = {"ham10k": 10_015, "chexpert": FRONTAL["train"]}  # whose own split is taken
    images = official.get(p.target_data) or round(PAPER_NUMBERS[p.target_data].files * p.fractions[0])
    epochs = {"ft": p.ft_epochs, "lp_ft": p.ft_epochs, "medmerge": p.lp_epochs + p.ft_epochs}
    return p.backbone, images * sum(epochs[row.approach] for row in definitions.rows(p))


def targets() -> list[str]:
    """What was asked of the code before it was measured, what was found, and whether that is so."""
    steps, waits = _rows("step"), _rows("pipeline")
    ours = [one for one in steps if one["way"] == OURS]
    slowest = max(one["of FT"][1] for one in ours)
    low, worst, high = max(
        (one["KernelMerge of it"] for one in steps if one["way"] not in (OURS, GIVEN_BACK)), key=lambda q: q[1]
    )
    copies, counted = (max(one[name] for one in ours) for name in ("copies above FT", "counted copies above FT"))
    probes = [one for one in _rows("probe") if one["precision"] == "fp32"]
    faster, apart = min(one["times faster"] for one in probes), max(one["largest difference"] for one in probes)
    ready = min(one["of ready"][1] for one in waits)
    asked = [
        ("probe step, of an FT step", "at most 1.05", f"{slowest:.3f} at most", slowest <= 1.05),
        ("probe step, of another way", "at most 1", f"{worst:.3f} at most ({low:.3f} to {high:.3f})", worst <= 1),
        ("peak of its tensors above FT, copies of the kernels", "at most 2", f"{counted:+.1f} at most", counted <= 2),
        ("the same of the process, with what lies free in it", "at most 2", f"{copies:+.1f} at most", copies <= 2),
        ("LP from features computed once", "20 x", f"{faster:.0f} x", faster >= 20),
        ("its head, of LP through the backbone", "within 1e-5", f"{apart:.1g}", apart <= 1e-5),
        ("epoch, of its steps alone", "at least 0.95", f"{ready:.3f} at least", ready >= 0.95),
        *_row_targets(),
    ]
    verdicts = ["yes" if met else "**no**" for *_, met in asked]
    if low <= 1 < worst:
        verdicts[1] = "within noise"
    return _table(
        ["what", "asked", "found", ""], [[*one[:-1], said] for one, said in zip(asked, verdicts, strict=True)]
    )


def _row_targets() -> list[tuple[str, str, str, bool]]:
    """By processor, core count and epochs: the median over seeds and repeats."""
    found: dict[str, list[float]] = {}
    for one in _rows("row"):
        if one["precision"] == "auto":
            words = f"{_processor(one)}, {one['cores']} core{'s' * (one['cores'] > 1)}, {one['epochs']} epochs"
            found.setdefault(words, []).append(one["times faster"])
    medians = {words: median(values) for words, values in found.items()}
    return [
        (f"five approaches, of a plain script, {words}", "3 x", f"{faster:.2f} x", faster >= 3)
        for words, faster in medians.items()
    ]


def _processor(row: dict) -> str:
    return row["device"].split(", ")[-1]


TABLES = {
    **{"targets": targets, "step": step, "memory": memory, "kept": kept, "probe": probe, "pipeline": pipeline},
    **{"row": row, "growth": growth, "machine": machine},
    "paper": paper,
}
TEXTS = {name: functools.partial(markdown, name) for name in TABLES}
"""By what ``{benchmark}`` asks for."""
