"""What the paper supposes of its sources, measured once: how far apart they are, and what lies between them.

The paper speaks of different initialisations, but its medical sources were fine-tuned from the very ImageNet weights
that they are merged with. Then a merged kernel c + w (b - c) is a scaled task vector within one basin; sources from
different initial values are another matter (Frankle et al. 2020; Ainsworth et al. 2023).

``results/<track>/<pair>/premise/`` holds what was found for source b and source c, c as it was trained and c aligned to
b: ``premise.json``, ``distances.csv`` and ``line.csv``. Test images are never read.
"""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from medmerge import backbones, devices, files
from medmerge.approaches import ingredients, matching
from medmerge.backbones import Classifier, state_sha256
from medmerge.batchnorm import layers, reestimate
from medmerge.study import definitions, inputs, records
from medmerge.study import run as study
from medmerge.study.measured import Measured, Sheet, save_json
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.places import home
from medmerge.study.records import Record, RecordError
from medmerge.training import Task, loss, validate

log = logging.getLogger(__name__)

ORDERS = ("as trained", "aligned")
"""Orders of source c's channels, its own and the one that is nearest to source b's."""

STATISTICS = ("interpolated", "re-estimated")
"""Batch norm's running statistics along a line, as :func:`line` has them."""

STEPS, BEYOND = 11, 0.25
"""Points of a line, and how far it goes on; see :func:`line`."""

_Print = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=1)]


class Content(Sheet):
    """What ``premise.json`` holds.

    Attributes:
        definition: the parameters that the numbers depend on, with the names of the sources and the seed of the heads.
        sources: fingerprint by name, source b first; ``aligned`` is that of source c after alignment.
        data: fingerprint of the target's images, labels and split.
        images: images by part: those that heads and statistics were measured on, and those that were scored.
        prior_loss: validation loss of answering every image with the class shares of the training images.
        steps, beyond: of the line.
    """

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
        distances: :func:`distances` of b and c, with a column ``order``, one of :data:`ORDERS`.
        line: :func:`line` between b and c as :func:`measure` prepares them, likewise.
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


@torch.no_grad()
def distances(b: nn.Module, c: nn.Module) -> pd.DataFrame:
    """How far two networks of one architecture are from each other, layer by layer.

    Returns:
        A row for each convolution and linear layer, in the networks' order: ``layer``; ``kind``, its class; ``shape``,
        of the weight, such as ``"64x3x7x7"``; ``kernels``; ``distance``, the L2 norm of b - c by the mean of both
        norms: 0 where they are equal, about 1.41 where they have nothing in common; ``cosine`` of the angle between
        the weights; ``kernel_cosine``, the mean of the cosines of the single kernels, with their quantiles ``low``
        (5 %), ``median`` and ``high`` (95 %). Of kernels that are zero there is no cosine: NaN where there is no other.

    Raises:
        ValueError: the networks have other layers or shapes; the first that differs is named.
    """
    ours, theirs = _kernels(b), _kernels(c)
    for name in ours | theirs:
        shapes = [list(kernels[name][1].shape) if name in kernels else "missing" for kernels in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name} is {shapes[0]} in the first network and {shapes[1]} in the second")
    rows = []
    for name, (kind, first) in ours.items():
        second = theirs[name][1]
        norms = first.norm() + second.norm()
        single = _cosines(first.flatten(1), second.flatten(1))
        known = single[~single.isnan()]
        low, median, high = np.quantile(known, [0.05, 0.5, 0.95]) if len(known) else [np.nan] * 3
        rows.append(
            {"layer": name, "kind": kind, "shape": "x".join(map(str, first.shape)), "kernels": len(first)}
            | {"distance": float(2 * (first - second).norm() / norms) if norms else np.nan}
            | {"cosine": float(_cosines(first.flatten()[None], second.flatten()[None]))}
            | {"kernel_cosine": float(known.mean()), "low": low, "median": median, "high": high}
        )
    return pd.DataFrame(rows)


def _kernels(network: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Class and weight, float64 on the CPU, of each convolution and linear layer."""
    return {
        name: (type(module).__name__, module.weight.detach().double().cpu())
        for name, module in network.named_modules()
        if isinstance(module, (_ConvNd, nn.Linear))
    }


def _cosines(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of each row of ``[rows, entries]`` with the other's, NaN where either is zero."""
    cosines = F.cosine_similarity(first, second, dim=1, eps=0)
    return torch.where((first.norm(dim=1) > 0) & (second.norm(dim=1) > 0), cosines.clamp(-1, 1), torch.nan)


def line(
    b: Classifier, c: Classifier, task: Task, *, steps: int = 11, beyond: float = 0.25, measure: bool = False
) -> pd.DataFrame:
    """Loss and scores on the validation images along the straight line c + a (b - c) between two classifiers.

    Parameters and running statistics lie on the line; beyond its ends a variance that would be negative is 0. The mean
    of two networks' statistics is not what the network between them needs (`medmerge.batchnorm`), so they may
    be measured anew as well, on training images. Test images are never read.

    Args:
        b, c: of one architecture and with the same classes. Neither is changed.
        task: the images, and how to compute.
        steps: points from a = 0 to a = 1, both included; two or more.
        beyond: how far to go on beyond both ends, rounded to whole steps.
        measure: whether to add the line with batch norm's statistics re-estimated at every point.

    Returns:
        A row a point and kind of statistics, by growing a: ``a``; ``statistics`` (``"interpolated"`` or
        ``"re-estimated"``); ``val_loss`` and the scores of :func:`~medmerge.training.validate`.

    Raises:
        ValueError: fewer than two steps, or classifiers of different shapes.
    """
    if steps < 2 or beyond < 0:
        raise ValueError(f"steps={steps} and beyond={beyond}: a line needs two points or more, and beyond >= 0")
    wrong = next((key for key, pair in _pairs(b, c).items() if len({tensor.shape for tensor in pair}) != 1), None)
    if wrong or b.state_dict().keys() != c.state_dict().keys():
        raise ValueError(f"the classifiers differ in {wrong or 'their layers'}: there is no line between them")
    more = round(beyond * (steps - 1))
    rows = []
    for step in range(-more, steps + more):
        a = step / (steps - 1)
        model = between(b, c, a).to(task.device)
        rows.append({"a": a, "statistics": "interpolated", **validate(model, task.val, task)})
        if measure:
            with task.autocast:
                reestimate(model, task.measured)
            rows.append({"a": a, "statistics": "re-estimated", **validate(model, task.val, task)})
    return pd.DataFrame(rows)


@torch.no_grad()
def between(b: nn.Module, c: nn.Module, a: float) -> nn.Module:
    """The network c + a (b - c), every floating-point tensor of it; at 0 and 1 it is c and b to the bit."""
    model = copy.deepcopy(c)
    for first, second in _pairs(b, model).values():
        if second.is_floating_point():
            second.copy_(torch.lerp(second, first.to(second.device), a))
    for norm in layers(model).values():
        norm.running_var.clamp_(min=0)
    return model.eval()


def _pairs(b: nn.Module, c: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    ours, theirs = b.state_dict(), c.state_dict()
    return {key: (ours[key], theirs[key]) for key in ours if key in theirs}


def barrier(table: pd.DataFrame, column: str = "val_loss") -> pd.Series:
    """Height of the barrier between the ends of a line: the largest loss in between less the mean of both ends'.

    Zero or less: the two are linearly connected (Frankle et al., "Linear Mode Connectivity and the Lottery Ticket
    Hypothesis", ICML 2020). The largest is taken over the ends too; what lies beyond them does not count.

    Args:
        table: as :func:`line` gives it.
        column: a loss.

    Returns:
        By ``statistics``. For the re-estimated ones the ends are re-estimated too.
    """
    inside = table[table["a"].between(0, 1)]
    grouped = inside.sort_values("a").groupby("statistics", sort=False)[column]
    return grouped.agg(lambda loss: loss.max() - (loss.iloc[0] + loss.iloc[-1]) / 2)


def prior_loss(task: Task) -> float:
    """Validation loss of answering every image with the training images' class shares: what knowing nothing costs.

    One image is added to every class, so that a class that is not in the training images costs a finite loss.
    """
    labels = task.train.labels.cpu()
    if task.multilabel:
        present, known = labels.nansum(0).double() + 1, (~labels.isnan()).sum(0).double() + 2
        logits = torch.logit(present / known)
    else:
        logits = torch.log(torch.bincount(labels, minlength=task.num_classes).double() + 1)
    return loss(logits.float().expand(len(task.val), -1), task.val.labels.cpu()).item()


def definition(p: Parameters) -> dict:
    """The parameters that the numbers depend on; paths and devices are not among them."""
    read = definitions.reads("lp_ft") - {"ft_epochs", "ft_lr"}
    chosen = {name: getattr(p, name) for name in Parameters.model_fields if name in read}
    return {"sources": [p.base_data, p.source_data], "seed": p.seeds[0]} | chosen


def state(p: Parameters) -> dict[str, Path | None]:
    """The record by name, and where it is, or None where it is not there.

    Raises:
        RecordError: it is damaged, or was measured with other parameters, weights or images than this study's runs.
    """
    sheet = SHEET.read(p)
    for run in _finished(p) if sheet else ():
        _same(sheet, run, SHEET.where(p))
    return {"what lies between the sources": SHEET.where(p) if sheet else None}


def check(p: Parameters) -> None:
    """Refuse what cannot be measured here.

    Raises:
        ParameterError: there is no source c, no such backbone, or weights or images are not here.
    """
    if not p.source_data:
        raise ParameterError("premise: is about two sources; give source_data and source_weights")
    if p.backbone not in backbones.names():
        raise ParameterError(f"backbone: unknown {p.backbone!r} (medmerge.backbones.names())")
    if problems := inputs.missing(p, (p.base_data, p.source_data)):
        raise ParameterError("\n".join(problems))


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
        ParameterError, RecordError: as :func:`check` and :func:`state`.
        DataError, CheckpointError: the images or weights cannot be read.
    """
    if state(p)["what lies between the sources"] is None:
        check(p)
    return SHEET.ensure(p)


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
    ours, apart, lines = _probed(b, task.sources[0], task), [], []
    for order, network in zip(ORDERS, (c, nearest) if prints[1] != prints[2] else (c,), strict=False):
        log.info("%s and %s, %s: distances, and the line between them", *task.sources, order)
        theirs = _probed(network, task.sources[1], task)
        apart.append(distances(b, network))
        lines.append(line(ours, theirs, task, steps=STEPS, beyond=BEYOND, measure=True))
    tables = [
        pd.concat([found[min(i, len(found) - 1)].assign(order=order) for i, order in enumerate(ORDERS)])
        for found in (apart, lines)
    ]
    content = Content(
        definition=defined,
        sources=dict(zip(task.sources, prints, strict=False)),
        aligned=prints[2],
        data=fingerprint,
        images={"train": len(task.train), "val": len(task.val)},
        prior_loss=prior_loss(task),
        steps=STEPS,
        beyond=BEYOND,
        device=devices.describe(task.device),
        precision=devices.choose_precision(task.protocol.precision, task.device),
        provenance=records.provenance(),
    )
    return PremiseSheet(content, *(table[["order", *table.columns.drop("order")]] for table in tables))


def _probed(source: nn.Module, name: str, task: Task) -> nn.Module:
    return ingredients.probed(ingredients.reestimated(copy.deepcopy(source).to(task.device), task), name, task)


def _load(path: Path) -> PremiseSheet:
    content = Content.model_validate_json(path.read_bytes())
    return PremiseSheet(content, *(pd.read_csv(path.with_name(f"{name}.csv")) for name in ("distances", "line")))


def _save(path: Path, sheet: PremiseSheet) -> None:
    """Each file appears whole, ``premise.json`` last."""
    for name in ("distances", "line"):
        files.write(path.with_name(f"{name}.csv"), getattr(sheet, name).to_csv(index=False, float_format="%.9g"))
    save_json(path, sheet.content)


SHEET = Measured(
    where=lambda p: home() / p.results / p.track / p.pair / "premise" / "premise.json",
    asked=definition,
    measure=_prepared,
    definition=lambda sheet: sheet.content.definition,
    load=_load,
    save=_save,
)
"""The record of the premise that the parameters ask for."""
