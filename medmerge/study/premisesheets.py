"""How far apart a study's two sources are and what lies between them: measured once, kept, and put into sentences.

``results/<track>/<pair>/premise/`` holds what `medmerge.study.premise` found for source b and source c, c as it was
trained and c aligned to b: ``premise.json``, ``distances.csv`` and ``line.csv``. Test images are never read.
"""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from medmerge import backbones, devices, files
from medmerge.approaches import ingredients, matching
from medmerge.backbones import state_sha256
from medmerge.study import definitions, inputs, premise, records
from medmerge.study import run as study
from medmerge.study.inputs import home
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.records import Record, RecordError
from medmerge.training import Task

log = logging.getLogger(__name__)

ORDERS = ("as trained", "aligned")
"""Orders of source c's channels, its own and the one that is nearest to source b's."""

STATISTICS = ("interpolated", "re-estimated")
"""Batch norm's running statistics along a line, as :func:`medmerge.study.premise.line` has them."""

STEPS, BEYOND = 11, 0.25
"""Points of a line, and how far it goes on; see :func:`medmerge.study.premise.line`."""

_DISTANCES = ("layer", "kind", "shape", "kernels", "distance", "cosine", "kernel_cosine", "low", "median", "high")
_NAMES = {"order", "statistics", "layer", "kind", "shape"}
_Print = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=1)]


class Content(BaseModel):
    """What ``premise.json`` holds.

    Attributes:
        definition: the parameters that the numbers depend on, with the names of the sources and the seed of the heads.
        sources: fingerprint by name, source b first; ``aligned`` is that of source c after alignment.
        data: fingerprint of the target's images, labels and split.
        images: images by part: those that heads and statistics were measured on, and those that were scored.
        prior_loss: validation loss of answering every image with the class shares of the training images.
        steps, beyond: of the line.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    format: Literal[1] = 1
    definition: dict
    sources: Annotated[dict[str, _Print], Field(min_length=2, max_length=2)]
    aligned: _Print
    data: str
    images: dict[Literal["train", "val"], _Count]
    prior_loss: Annotated[float, Field(gt=0)]
    steps: Annotated[int, Field(ge=2)]
    beyond: Annotated[float, Field(ge=0)]
    device: str
    precision: Literal["fp32", "bf16"]
    provenance: dict


@dataclass(frozen=True)
class PremiseSheet:
    """A record of the premise.

    Attributes:
        content: where the numbers come from.
        distances: :func:`medmerge.study.premise.distances` of b and c, with a column ``order``, one of :data:`ORDERS`.
        line: :func:`medmerge.study.premise.line` between b and c as :func:`measure` prepares them, likewise.
    """

    content: Content
    distances: pd.DataFrame
    line: pd.DataFrame

    @property
    def names(self) -> tuple[str, str]:
        """What sources b and c were trained on."""
        b, c = self.content.sources
        return b, c

    @property
    def moved(self) -> bool:
        """Whether alignment moved any channel."""
        return self.content.aligned != self.content.sources[self.names[1]]

    def by_pair(self, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """A table's part of each order, by a label for figures; aligned only where alignment moved a channel."""
        b, c = self.names
        labels = {"as trained": f"{b} and {c}"} | ({"aligned": f"{b} and {c}, aligned"} if self.moved else {})
        return {label: table[table["order"] == order].reset_index(drop=True) for order, label in labels.items()}


def path(p: Parameters) -> Path:
    """The folder of the record that the parameters ask for."""
    return home() / p.results / p.track / p.pair / "premise"


def definition(p: Parameters) -> dict:
    """The parameters that the numbers depend on; paths and devices are not among them."""
    read = definitions.reads("lp_ft") - {"ft_epochs", "ft_lr"}
    chosen = {name: getattr(p, name) for name in Parameters.model_fields if name in read}
    return {"sources": [p.base_data, p.source_data], "seed": p.seeds[0]} | chosen


def read(p: Parameters) -> PremiseSheet | None:
    """The record that the parameters ask for, or None where nothing was measured yet.

    Raises:
        RecordError: it cannot be read, does not hold what it should, or was measured with other parameters.
    """
    where = path(p) / "premise.json"
    if not where.is_file():
        return None
    try:
        content = Content.model_validate_json(where.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise _damaged(where, f"{place}: {first['msg']}") from error
    known = {name: field.default for name, field in Parameters.model_fields.items()}
    wanted, there = ({**known, **values} for values in (definition(p), content.definition))
    for name, value in wanted.items():
        if there.get(name) != value:
            raise RecordError(
                f"{where} was measured with {name} {there.get(name)}, not {value}; remove its folder to measure again, "
                "or give this study another `pair` name"
            )
    sheet = PremiseSheet(content, _table(path(p) / "distances.csv"), _table(path(p) / "line.csv"))
    for file, problem in (("distances.csv", _distances_fault(sheet)), ("line.csv", _line_fault(sheet))):
        if problem:
            raise _damaged(path(p) / file, problem)
    return sheet


def _damaged(where: Path, problem: str) -> RecordError:
    return RecordError(f"{where} is damaged ({problem}); restore it, or remove its folder to measure again")


def _table(where: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(where)
    except (OSError, ValueError) as error:
        raise _damaged(where, str(error)) from error
    for column in table.columns:
        if column not in _NAMES and not pd.api.types.is_numeric_dtype(table[column]):
            raise _damaged(where, f"{column} holds what is no number")
    return table


def _distances_fault(sheet: PremiseSheet) -> str:
    table = sheet.distances
    if missing := {"order", *_DISTANCES} - set(table):
        return f"no column {', '.join(sorted(missing))}"
    layers = [table.loc[table["order"] == order, "layer"].tolist() for order in ORDERS]
    if not layers[0] or layers[0] != layers[1] or len(table) != 2 * len(layers[0]):
        return f"{len(table)} rows, and not the same layers for {' and '.join(ORDERS)}"
    outside = (table[["cosine", "kernel_cosine", "low", "median", "high"]].abs() > 1).any(axis=None)
    return "a cosine is not in -1 to 1" if outside or not table["distance"].dropna().between(0, 2).all() else ""


def _line_fault(sheet: PremiseSheet) -> str:
    table, content = sheet.line, sheet.content
    if missing := {"order", "a", "statistics", "val_loss", "val_accuracy", "val_macro_f1"} - set(table):
        return f"no column {', '.join(sorted(missing))}"
    more = round(content.beyond * (content.steps - 1))
    points = [step / (content.steps - 1) for step in range(-more, content.steps + more)]
    for order in ORDERS:
        for statistics in STATISTICS:
            chosen = table[(table["order"] == order) & (table["statistics"] == statistics)]
            if not np.array_equal(np.round(chosen["a"], 6), np.round(points, 6)):
                return f"{len(chosen)} points {order}, {statistics}, where there are {len(points)} on the line"
    if len(table) != len(ORDERS) * len(STATISTICS) * len(points):
        return "rows of no known order or statistics"
    return "" if np.isfinite(table["val_loss"]).all() and (table["val_loss"] >= 0).all() else "a loss is no number"


def check(p: Parameters) -> bool:
    """Whether the record is there already; if not, whether it can be measured here.

    Raises:
        ParameterError: there is no source c, no such backbone, or weights or images are not here.
        RecordError: as :func:`read`, or finished runs of this study started from other sources or images.
    """
    if not p.source_data:
        raise ParameterError("premise: is about two sources; give source_data and source_weights")
    if p.backbone not in backbones.names():
        raise ParameterError(f"backbone: unknown {p.backbone!r} (medmerge.backbones.names())")
    sheet = read(p)
    if sheet:
        for run in _finished(p):
            _same(sheet, run, path(p))
    elif problems := inputs.missing(p, (p.base_data, p.source_data)):
        raise ParameterError("\n".join(problems))
    return sheet is not None


def _finished(p: Parameters) -> list[Record]:
    return [run for row in definitions.rows(p) for seed in p.seeds if (run := study.finished(p, row, seed))]


def _same(sheet: PremiseSheet, run: Record, where: Path) -> None:
    there, seed = run.run["sources"], sheet.content.definition["seed"]
    other = [name for name, found in sheet.content.sources.items() if there.get(name, found) != found]
    if run.run["data"]["fingerprint"] != sheet.content.data:
        other.append("the target's images")
    if other and run.run["seed"] == seed:
        raise RecordError(
            f"{where} was measured on other weights or images ({', '.join(other)}) than {run.folder} was computed "
            "from; remove one of them and run again"
        )


def run(p: Parameters) -> PremiseSheet:
    """The record that the parameters ask for; measured and written where it is not there.

    Raises:
        ParameterError, RecordError: as :func:`check`.
        DataError, CheckpointError: the images or weights cannot be read.
    """
    if not check(p):
        write(path(p), _prepared(p))
    return read(p)


def _prepared(p: Parameters) -> PremiseSheet:
    """:func:`measure` with the sources and images that the parameters name."""
    done, names = _finished(p), (p.base_data, p.source_data)
    inputs.check_sources(p, names, done)
    dataset = inputs.load_data(p, done)
    b, c = (inputs.load_source(p, name, p.seeds[0]) for name in names)
    task = Task(dataset.train, dataset.val, len(dataset.classes), p.seeds[0], study.protocol(p), sources=names)
    return measure(b, c, task, definition(p), dataset.fingerprint)


def measure(b: nn.Module, c: nn.Module, task: Task, defined: dict, fingerprint: str) -> PremiseSheet:
    """Measure how far source c is from source b, as it was trained and aligned, and the lines between them.

    Each source gets the target's statistics in its batch norms and then a head that is linearly probed on the target,
    all heads from the same initial values. So a line has the same ends with interpolated and re-estimated statistics.

    Args:
        b, c: backbones; neither is changed.
        task: the target's images, how to compute, and in ``sources`` the names of b and c.
        defined: as :func:`definition` gives it.
        fingerprint: of the target's images, labels and split.
    """
    nearest = matching.align(b, c, image_size=task.train.inputs.shape[-1])
    prints = [state_sha256(network) for network in (b, c, nearest)]
    ours, distances, lines = _probed(b, task.sources[0], task), [], []
    for order, network in zip(ORDERS, (c, nearest) if prints[1] != prints[2] else (c,), strict=False):
        log.info("%s and %s, %s: distances, and the line between them", *task.sources, order)
        theirs = _probed(network, task.sources[1], task)
        distances.append(premise.distances(b, network))
        lines.append(premise.line(ours, theirs, task, steps=STEPS, beyond=BEYOND, measure=True))
    tables = [
        pd.concat([found[min(i, len(found) - 1)].assign(order=order) for i, order in enumerate(ORDERS)])
        for found in (distances, lines)
    ]
    content = Content(
        definition=defined,
        sources=dict(zip(task.sources, prints, strict=False)),
        aligned=prints[2],
        data=fingerprint,
        images={"train": len(task.train), "val": len(task.val)},
        prior_loss=premise.prior_loss(task),
        steps=STEPS,
        beyond=BEYOND,
        device=devices.describe(task.device),
        precision=devices.choose_precision(task.protocol.precision, task.device),
        provenance=records.provenance(),
    )
    return PremiseSheet(content, *(table[["order", *table.columns.drop("order")]] for table in tables))


def _probed(source: nn.Module, name: str, task: Task) -> nn.Module:
    return ingredients.probed(ingredients.reestimated(copy.deepcopy(source).to(task.device), task), name, task)


def write(where: Path, sheet: PremiseSheet) -> None:
    """Write a record. Each file appears whole, ``premise.json`` last."""
    texts = {"distances.csv": sheet.distances, "line.csv": sheet.line}
    texts = {name: table.to_csv(index=False, float_format="%.9g") for name, table in texts.items()}
    for name, text in (texts | {"premise.json": sheet.content.model_dump_json(indent=1) + "\n"}).items():
        files.write(where / name, text)
