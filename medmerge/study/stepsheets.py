"""Where the time of a step goes, measured once and kept, and the table and sentences that are computed from it.

``results/<track>/cost/<backbone>-<size>px-profile.json`` is what :func:`medmerge.study.steps.measure` returned,
checked when
it is read. It describes its own machine, which need not be that of the record of costs beside it.
"""

import logging
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

from medmerge.study import costsheets, steps
from medmerge.study.cost import VARIANTS
from medmerge.study.params import Parameters
from medmerge.study.steps import PARTS, PROFILED

log = logging.getLogger(__name__)

REPEATS = 5
"""Steps of each variant that are timed."""

_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
_Whole = Annotated[int, Field(ge=0)]
_Count = Annotated[int, Field(ge=1)]
_Positive = Annotated[float, Field(gt=0)]


class Part(BaseModel):
    """A part of a step: its seconds, floating point operations, and bytes read and written."""

    model_config = _STRICT
    seconds: Annotated[float, Field(ge=0)]
    flops: _Whole
    bytes: _Whole


class Taken(BaseModel):
    """A step, in seconds without and with the profiler, and the parts of the latter by
    :data:`medmerge.study.steps.PARTS`.
    """

    model_config = _STRICT
    seconds: _Positive
    profiled: _Positive
    parts: dict[str, Part]

    @model_validator(mode="after")
    def _complete(self) -> "Taken":
        if self.parts.keys() != PARTS.keys():
            raise ValueError(f"parts are {', '.join(sorted(self.parts))}, not {', '.join(sorted(PARTS))}")
        total = sum(part.seconds for part in self.parts.values())
        if abs(total - self.profiled) > 1e-6 * self.profiled:
            raise ValueError(f"parts sum to {total} s, not to the step's {self.profiled} s")
        return self


class Machine(BaseModel):
    """What the machine does at best, as :func:`medmerge.study.steps.machine` gives it."""

    model_config = _STRICT
    product: _Positive
    convolution: _Positive
    copy_: Annotated[float, Field(gt=0, alias="copy")]


class StepSheet(BaseModel):
    """A record of steps taken apart: the fields that :func:`medmerge.study.steps.measure` returns."""

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
    load: Annotated[list[float], Field(min_length=2, max_length=2)]
    provenance: dict
    machine: Machine
    steps: dict[str, Taken]

    @model_validator(mode="after")
    def _complete(self) -> "StepSheet":
        if missing := set(PROFILED) - self.steps.keys():
            raise ValueError(f"steps lack {', '.join(sorted(missing))}")
        return self

    def floor(self, variant: str, part: str) -> float:
        """Seconds that a part would take at the machine's best, whichever is longer: its arithmetic or its traffic."""
        counted = self.steps[variant].parts[part]
        arithmetic = counted.flops / max(self.machine.product, self.machine.convolution)
        return max(arithmetic, counted.bytes / self.machine.copy_)


def path(p: Parameters) -> Path:
    """Where the record that the parameters ask for lies."""
    where = costsheets.path(p)
    return where.with_name(f"{where.stem}-profile.json")


def read(p: Parameters) -> StepSheet | None:
    """The record that the parameters ask for, or None where nothing was measured yet.

    Raises:
        RecordError: it cannot be read, does not hold what it should, or was measured with other parameters.
    """
    return costsheets.checked(path(p), StepSheet, {}, p)


def run(p: Parameters) -> StepSheet:
    """The record that the parameters ask for; measured and written where it is not there.

    Raises:
        RecordError: as :func:`read`.
    """
    if read(p) is None:
        log.info("taking a step of %s at %d px apart", p.backbone, p.image_size)
        options = {"repeats": REPEATS, "device": p.device, "precision": p.precision}
        found = steps.measure(p.backbone, p.image_size, p.batch_size, **options)
        costsheets.write(path(p), StepSheet(**found))
    return read(p)


def parts(sheet: StepSheet) -> pd.DataFrame:
    """A row a variant and part that it has, and a row ``"step"`` of each variant, which is their sum.

    Columns: variant, title, part (key), what (its name), milliseconds, share (of the step), gflops, megabytes (10⁶
    bytes), floor (milliseconds), ratio (time over floor, NaN where nothing is counted).
    """
    rows = []
    for variant in PROFILED:
        step = sheet.steps[variant]
        floors = {name: sheet.floor(variant, name) for name in PARTS}
        each = [(name, what, step.parts[name].model_dump(), floors[name]) for name, what in PARTS.items()]
        total = {key: sum(counted[key] for _, _, counted, _ in each) for key in ("seconds", "flops", "bytes")}
        for name, what, counted, floor in [*each, ("step", "the step", total, sum(floors.values()))]:
            if not (counted["seconds"] or counted["bytes"]):
                continue
            rows.append(
                {"variant": variant, "title": VARIANTS[variant].title, "part": name, "what": what}
                | {"milliseconds": 1e3 * counted["seconds"], "share": counted["seconds"] / step.profiled}
                | {"gflops": counted["flops"] / 1e9, "megabytes": counted["bytes"] / 1e6, "floor": 1e3 * floor}
                | {"ratio": counted["seconds"] / floor if floor else float("nan")}
            )
    return pd.DataFrame(rows)


def summary(sheet: StepSheet) -> list[str]:
    """Sentences on where a step's time goes and how far that is from the floor. Markdown."""
    table = parts(sheet).set_index(["variant", "part"])
    sentences = []
    for variant, name in (("ft", "FT"), ("kernel", "MedMerge's probe")):
        rows = table.loc[variant]
        step, rest = rows.loc["step"], rows.drop(index="step")
        convolutions = rest.loc[["convolution", "convolution_backward"], "share"].sum()
        largest = (rest["milliseconds"] - rest["floor"]).drop(index="calls").idxmax()
        lost = rest.loc[largest, "milliseconds"] - rest.loc[largest, "floor"]
        sentences.append(
            f"A step of {name} takes {step['milliseconds']:.1f} ms, {step['ratio']:.2f} times its floor of "
            f"{step['floor']:.1f} ms. Convolutions take {convolutions:.0%} of it, {rest.loc['calls', 'share']:.0%} "
            f"passes between operations. Furthest above its floor: {rest.loc[largest, 'what']}, by {lost:.1f} ms."
        )
    probe, tuned = table.loc["kernel"], table.loc["ft"]
    saved = tuned.loc["optimizer", "milliseconds"] - probe.loc["optimizer", "milliseconds"]
    sentences.append(
        f"The weighted mean itself, with the gradient of w, takes {probe.loc['merge', 'milliseconds']:.1f} ms, "
        f"{probe.loc['merge', 'share']:.1%} of the probe's step (floor {probe.loc['merge', 'floor']:.1f} ms). AdamW, "
        f"with fewer numbers that learn, takes {abs(saved):.1f} ms {'less' if saved >= 0 else 'more'} than in FT."
    )
    return sentences


def circumstances(sheet: StepSheet) -> str:
    """On what machine a record was measured and what that does at best, in sentences."""
    best, busy = sheet.machine, " to ".join(f"{load:.1f}" for load in sheet.load)
    changed = ", ".join(
        f"{VARIANTS[name].title} {step.profiled / step.seconds - 1:+.0%}" for name, step in sheet.steps.items()
    )
    return (
        f"{sheet.backbone} at {sheet.image_size} px, batches of {sheet.batch_size}, {sheet.precision}, on "
        f"{sheet.device}; time by the clock of the median of {sheet.repeats} steps under the profiler, against steps "
        f"without it: {changed}. At best this machine does {best.product / 1e9:,.0f} GFLOPs a second in a matrix "
        f"product, {best.convolution / 1e9:,.0f} in a convolution, and moves {best.copy_ / 1e9:,.1f} GB a second. "
        f"Load average {busy} on {sheet.cores} cores."
    )
