"""What each phase costs, measured once and kept, and the tables and sentences that are computed from it.

``results/<track>/cost/<backbone>-<size>px.json`` is what :func:`medmerge.study.cost.measure` returned, checked when it
is
read. Pages are drawn from it; a number on them is either measured or, where it says so, derived.
"""

import logging
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medmerge import backbones, files
from medmerge.study import cost
from medmerge.study.cost import VARIANTS
from medmerge.study.inputs import home
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.records import RecordError

log = logging.getLogger(__name__)

ALIKE = 0.1
"""Two costs count as alike where the quartiles of their ratio lie within this of 1."""

MEMORY = ("parameters", "gradients", "optimizer", "frozen", "saved")
"""The kinds of bytes of :func:`medmerge.study.cost.memory`, in the order in which they are shown."""

_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
_Whole = Annotated[int, Field(ge=0)]
_Count = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(gt=0)]


class Memory(BaseModel):
    """Bytes by what they are for, as :func:`medmerge.study.cost.memory` gives them."""

    model_config = _STRICT
    parameters: _Whole
    frozen: _Whole
    gradients: _Whole
    optimizer: _Whole
    saved: _Whole


class Measured(BaseModel):
    """One variant: seconds of each round, numbers that learn, FLOPs and bytes of a step, and a GPU's peak in MiB."""

    model_config = _STRICT
    seconds: list[_Seconds]
    trainable: _Whole
    flops: _Count
    memory: Memory
    peak_memory_mib: float | None


class CostSheet(BaseModel):
    """A record of costs: the fields that :func:`medmerge.study.cost.measure` returns."""

    model_config = _STRICT
    format: Literal[1] = 1
    backbone: str
    image_size: _Count
    batch_size: _Count
    classes: _Count
    repeats: _Count
    kind: Literal["cpu", "cuda"]
    device: str
    precision: Literal["fp32", "bf16"]
    threads: _Count
    cores: int | None
    clock: Literal["cpu", "wall"]
    load: Annotated[list[float], Field(min_length=2, max_length=2)]
    variants: dict[str, Measured]
    provenance: dict

    @model_validator(mode="after")
    def _complete(self) -> "CostSheet":
        if missing := VARIANTS.keys() - self.variants.keys():
            raise ValueError(f"variants lack {', '.join(sorted(missing))}")
        for name, measured in self.variants.items():
            if len(measured.seconds) != self.repeats:
                raise ValueError(f"{name} has {len(measured.seconds)} rounds, not {self.repeats}")
        return self

    def seconds(self, name: str) -> np.ndarray:
        """Seconds of a step of a variant in every round, float64 ``[repeats]``."""
        return np.array(self.variants[name].seconds)

    def ratio(self, name: str, to: str = "ft") -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile over the rounds of one variant's seconds over another's."""
        return quartiles(self.seconds(name) / self.seconds(to))


def quartiles(values: np.ndarray) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return low, median, high


def path(p: Parameters) -> Path:
    """Where the record that the parameters ask for lies."""
    return home() / p.results / p.track / "cost" / f"{p.backbone}-{p.image_size}px.json"


def read(p: Parameters) -> CostSheet | None:
    """The record that the parameters ask for, or None where nothing was measured yet.

    Raises:
        RecordError: it cannot be read, does not hold what it should, or was measured with other parameters.
    """
    return checked(path(p), CostSheet, {"repeats": p.cost_repeats}, p)


def checked(where: Path, kind: type[BaseModel], asked: dict, p: Parameters) -> BaseModel | None:
    """A record of what was measured, or None where it is not there.

    Args:
        kind: what it must hold.
        asked: values that it must have been measured with, beside those that the parameters ask for.

    Raises:
        RecordError: as :func:`read`.
    """
    if not where.is_file():
        return None
    try:
        sheet = kind.model_validate_json(where.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        problem = f"{place}: {first['msg']}" + (f", and {error.error_count() - 1} more" * (error.error_count() > 1))
        raise RecordError(f"{where} is damaged ({problem}); restore it, or remove it to measure again") from error
    asked = {"backbone": p.backbone, "image_size": p.image_size, "batch_size": p.batch_size, **asked}
    asked |= {name: value for name, value in (("kind", p.device), ("precision", p.precision)) if value != "auto"}
    for name, value in asked.items():
        if getattr(sheet, name) != value:
            raise RecordError(
                f"{where} was measured with {name} {getattr(sheet, name)}, not {value}; remove it to measure again"
            )
    return sheet


def check(p: Parameters) -> bool:
    """Whether the record is there already.

    Raises:
        ParameterError: no such backbone, or no number of rounds.
        RecordError: as :func:`read`.
    """
    if p.backbone not in backbones.names():
        raise ParameterError(f"backbone: unknown {p.backbone!r} (medmerge.backbones.names())")
    if not p.cost_repeats:
        raise ParameterError("cost_repeats: 0; a page on costs needs one round at least, and twenty for its quartiles")
    return read(p) is not None


def run(p: Parameters) -> CostSheet:
    """The record that the parameters ask for; measured and written where it is not there.

    Raises:
        ParameterError, RecordError: as :func:`check`.
    """
    if not check(p):
        log.info("measuring %s at %d px, %d rounds", p.backbone, p.image_size, p.cost_repeats)
        options = {"repeats": p.cost_repeats, "device": p.device, "precision": p.precision}
        write(path(p), CostSheet(**cost.measure(p.backbone, p.image_size, p.batch_size, **options)))
    return read(p)


def write(where: Path, sheet: BaseModel) -> None:
    """Write a record, in one atomic step."""
    files.write(where, sheet.model_dump_json(indent=1, by_alias=True) + "\n")


def steps(sheet: CostSheet) -> pd.DataFrame:
    """A row a variant, all measured.

    Columns: variant, title, milliseconds (median), images (a second), low, median, high (quartiles of the ratio to FT
    within a round), trainable, gflops, flops (over FT's), mib (sum of what is held), peak (MiB, or None).
    """
    rows = []
    for name, variant in VARIANTS.items():
        measured, seconds = sheet.variants[name], float(np.median(sheet.seconds(name)))
        low, median, high = sheet.ratio(name)
        rows.append(
            {"variant": name, "title": variant.title, "milliseconds": 1e3 * seconds}
            | {"images": sheet.batch_size / seconds, "low": low, "median": median, "high": high}
            | {"trainable": measured.trainable, "gflops": measured.flops / 1e9}
            | {"flops": measured.flops / sheet.variants["ft"].flops}
            | {"mib": held(sheet, name) / 2**20, "peak": measured.peak_memory_mib}
        )
    return pd.DataFrame(rows)


def held(sheet: CostSheet, name: str) -> int:
    """Bytes that a step of a variant holds, of all kinds."""
    return sum(getattr(sheet.variants[name].memory, kind) for kind in MEMORY)


def memory(sheet: CostSheet) -> pd.DataFrame:
    """MiB that a step holds, a row a variant (by its title) and a column a kind of :data:`MEMORY`."""
    rows = {v.title: {kind: getattr(sheet.variants[name].memory, kind) / 2**20 for kind in MEMORY}
            for name, v in VARIANTS.items()}  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def phases(sheet: CostSheet, lp_epochs: int, ft_epochs: int, images: int = 10_000) -> pd.DataFrame:
    """Whole phases and approaches, derived: epochs times steps. Validation, reading and decoding are left out.

    Args:
        images: training images; seconds are in proportion to them.

    Returns:
        A row a phase and then a row an approach. Columns: what, kind ("phase" or "approach"), seconds (median), images
        (training images seen a second, each epoch counted), low, median, high (quartiles of the ratio to FT's
        seconds within a round).
    """
    of = {name: sheet.seconds(name) / sheet.batch_size for name in VARIANTS}
    cached, tune = of["features"] + lp_epochs * of["lp_cached"], ft_epochs * of["ft"]
    through, probe = lp_epochs * of["lp"], lp_epochs * of["kernel"]
    both = lp_epochs + ft_epochs
    table = [
        ("LP, features computed once", "phase", cached, lp_epochs),
        ("LP, through the backbone each epoch", "phase", through, lp_epochs),
        ("MedMerge's probe", "phase", probe, lp_epochs),
        ("FT", "phase", tune, ft_epochs),
        ("LP-FT", "approach", cached + tune, both),
        ("MedMerge", "approach", probe + tune, both),
        (f"FT with {both} epochs", "approach", both * of["ft"], both),
    ]
    rows = []
    for what, kind, each, epochs in table:
        low, median, high = quartiles(each / tune)
        seconds = float(np.median(each))
        rows.append(
            {"what": what, "kind": kind, "seconds": images * seconds, "images": epochs / seconds}
            | {"low": low, "median": median, "high": high}
        )
    return pd.DataFrame(rows)


def summary(sheet: CostSheet, lp_epochs: int, ft_epochs: int) -> list[str]:
    """Sentences that answer, from one record, what MedMerge's probe costs beside LP and FT. Markdown."""
    variants, whole = sheet.variants, phases(sheet, lp_epochs, ft_epochs).set_index("what")
    time = "processor time" if sheet.clock == "cpu" else "time"
    to_lp = sheet.ratio("kernel", "lp")
    answer = "No" if to_lp[0] > 1 + ALIKE else "Yes" if to_lp[2] <= 1 + ALIKE else "These rounds cannot tell"
    cached, probe = (whole.loc[what, "median"] for what in ("LP, features computed once", "MedMerge's probe"))
    kernel, tuned, single = variants["kernel"], variants["ft"], variants["parameter"]
    matched = ft_epochs + lp_epochs * sheet.ratio("kernel")[1]
    return [
        f"**{answer}**: a step of MedMerge's probe takes {_times(to_lp)} the {time} of a step of LP through the same "
        f"frozen backbone, and {kernel.flops / variants['lp'].flops:.2f} times its FLOPs. Merging weights need the "
        "gradient of every merged kernel, and so the whole backward pass.",
        f"LP through a frozen backbone can compute its features once: {lp_epochs} epochs then take {cached:.3f} times "
        f"what {ft_epochs} epochs of FT take (derived). MedMerge's features change with w at every step, so its probe "
        f"cannot: {probe:.2f} times (derived).",
        f"Beside FT, a step of the probe takes {_times(sheet.ratio('kernel'))} the {time}, "
        f"{kernel.flops / tuned.flops:.2f} times the FLOPs and {held(sheet, 'kernel') / held(sheet, 'ft'):.2f} times "
        f"the memory held, while {kernel.trainable:,} numbers learn in place of {tuned.trainable:,}.",
        f"One w a parameter in place of one a kernel takes {_times(sheet.ratio('parameter', 'kernel'))} the {time}, "
        f"{single.trainable / kernel.trainable:.1f} times the numbers that learn and "
        f"{held(sheet, 'parameter') / held(sheet, 'kernel'):.2f} times the memory held.",
        f"MedMerge with {lp_epochs} epochs of its probe and {ft_epochs} of fine-tuning is matched in {time} by FT with "
        f"{matched:.0f} epochs (derived).",
    ]


def circumstances(sheet: CostSheet) -> str:
    """On what and under which load a record was measured, in a sentence."""
    clock = "processor time of this process" if sheet.clock == "cpu" else "time by the clock"
    busy = " to ".join(f"{load:.1f}" for load in sheet.load)
    warning = ""
    if sheet.load[0] > 1:
        hit = "caches and memory were shared" if sheet.clock == "cpu" else "seconds hold waiting"
        warning = f" Others were computing at the time: {hit}, so ratios say more than seconds."
    return (
        f"{sheet.backbone} at {sheet.image_size} px, batches of {sheet.batch_size}, {sheet.classes} classes, "
        f"{sheet.precision}, on {sheet.device}; {sheet.repeats} rounds of all variants in turn, {clock}. Load average "
        f"of the machine {busy} on {sheet.cores} cores, this measurement included at the end.{warning}"
    )


def _times(ratio: tuple[float, float, float]) -> str:
    low, median, high = ratio
    return f"{median:.2f} times (quartiles {low:.2f} to {high:.2f})"
