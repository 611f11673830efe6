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

import numpy as np
import pandas as pd
import torch
from torch import nn

from medmerge import devices, files
from medmerge.approaches import matching, rivals
from medmerge.backbones import Classifier, state_sha256
from medmerge.batchnorm import layers
from medmerge.sources import kernel_layers
from medmerge.study import definitions, inputs
from medmerge.study import run as study
from medmerge.study.features import cosines
from medmerge.study.measured import Measured, Sheet, provenance, save_json
from medmerge.study.names import title
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.places import home
from medmerge.study.records import RecordError
from medmerge.training import Task, loss, validate

log = logging.getLogger(__name__)

ORDERS = ("as trained", "aligned")
"""Orders of source c's channels, its own and the one that is nearest to source b's."""

STATISTICS = ("interpolated", "re-estimated")
"""Batch norm's running statistics along a line, as :func:`line` has them."""

STEPS, BEYOND = 11, 2
"""Points of a line from end to end, and how many more beyond each end."""


class Content(Sheet):
    """What ``premise.json`` holds.

    Attributes:
        definition: the parameters that the numbers depend on, with the names of the sources and the seed of the heads.
        sources: fingerprint by name, source b first; ``aligned`` is that of source c after alignment.
        data: fingerprint of the target's images, labels and split.
        images: images by part: those that heads and statistics were measured on, and those that were scored.
        prior_loss: validation loss of answering every image with the class shares of the training images.
    """

    definition: dict
    sources: dict[str, str]
    aligned: str
    data: str
    images: dict[str, int]
    prior_loss: float
    device: str
    precision: str
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
        b, c = map(title, self.names)
        labels = {"as trained": f"{b} and {c}"} | ({"aligned": f"{b} and {c}, aligned"} if self.moved else {})
        return {label: table[table["order"] == order].reset_index(drop=True) for order, label in labels.items()}


def distances(b: nn.Module, c: nn.Module) -> pd.DataFrame:
    """How far two networks of one architecture are from each other, layer by layer.

    Returns:
        A row for each layer that has kernels, in the networks' order: ``layer``; ``kind``, its class; ``shape``, of the
        weight, such as ``"64x3x7x7"``; ``kernels``; ``distance``, the L2 norm of b - c by the mean of both norms: 0
        where they are equal, about 1.41 where they have nothing in common; ``cosine`` of the angle between the weights;
        ``kernel_cosine``, the mean of the cosines of the single kernels, with their quantiles ``low`` (5 %), ``median``
        and ``high`` (95 %). Of kernels that are zero there is no cosine: NaN where there is no other.
    """
    rows = []
    for ours, theirs in zip(kernel_layers(b), kernel_layers(c), strict=True):
        first, second = (getattr(one.module, one.weight).detach().double().cpu().numpy() for one in (ours, theirs))
        norms = np.linalg.norm(first) + np.linalg.norm(second)
        single = pd.Series(cosines(first, second))
        low, median, high = single.quantile([0.05, 0.5, 0.95])
        rows.append(
            {"layer": ours.name, "kind": type(ours.module).__name__, "shape": "x".join(map(str, first.shape))}
            | {"kernels": len(first), "distance": 2 * np.linalg.norm(first - second) / norms if norms else np.nan}
            | {"cosine": cosines(first[None], second[None]).item(), "kernel_cosine": single.mean()}
            | {"low": low, "median": median, "high": high}
        )
    return pd.DataFrame(rows)


def line(b: Classifier, c: Classifier, task: Task, steps: int = STEPS, beyond: int = BEYOND) -> pd.DataFrame:
    """Loss and scores on the validation images along the straight line c + a (b - c) between two classifiers.

    Parameters and running statistics lie on the line; beyond its ends a variance that would be negative is 0. The mean
    of two networks' statistics is not what the network between them needs (`medmerge.batchnorm`), so they are measured
    anew as well, on training images. Test images are never read.

    Args:
        b, c: of one architecture and with the same classes. Neither is changed.
        task: the images, and how to compute.
        steps: points from a = 0 to a = 1, both included; two or more.
        beyond: how many more of them beyond both ends.

    Returns:
        A row a point and kind of statistics, by growing a: ``a``; ``statistics``, one of :data:`STATISTICS`;
        ``val_loss`` and the scores of :func:`~medmerge.training.validate`.
    """
    rows = []
    for step in range(-beyond, steps + beyond):
        a = step / (steps - 1)
        model = between(b, c, a).to(task.device)
        rows.append({"a": a, "statistics": STATISTICS[0], **validate(model, task.val, task)})
        rivals.reestimated(model, task)
        rows.append({"a": a, "statistics": STATISTICS[1], **validate(model, task.val, task)})
    return pd.DataFrame(rows)


@torch.no_grad()
def between(b: nn.Module, c: nn.Module, a: float) -> nn.Module:
    """The network c + a (b - c), every floating-point tensor of it; at 0 and 1 it is c and b to the bit."""
    model = copy.deepcopy(c)
    for first, second in zip(b.state_dict().values(), model.state_dict().values(), strict=True):
        if second.is_floating_point():
            second.copy_(torch.lerp(second, first.to(second.device), a))
    for norm in layers(model).values():
        norm.running_var.clamp_(min=0)
    return model.eval()


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
    for order, network in zip(ORDERS, (c, nearest), strict=True):
        if order == ORDERS[0] or prints[1] != prints[2]:  # else the same numbers again
            log.info("%s and %s, %s: distances, and the line between them", *task.sources, order)
            found = distances(b, network), line(ours, _probed(network, task.sources[1], task), task)
        for tables, table in zip((apart, lines), found, strict=True):
            tables.append(table.assign(order=order))
    content = Content(
        definition=defined,
        sources=dict(zip(task.sources, prints, strict=False)),
        aligned=prints[2],
        data=fingerprint,
        images={"train": len(task.train), "val": len(task.val)},
        prior_loss=prior_loss(task),
        device=devices.describe(task.device),
        precision=devices.choose_precision(task.protocol.precision, task.device),
        provenance=provenance(),
    )
    return PremiseSheet(content, pd.concat(apart, ignore_index=True), pd.concat(lines, ignore_index=True))


def _probed(source: nn.Module, name: str, task: Task) -> nn.Module:
    return rivals.probed(rivals.reestimated(copy.deepcopy(source).to(task.device), task), name, task)


def definition(p: Parameters) -> dict:
    """The parameters that the numbers depend on; paths and devices are not among them."""
    read = definitions.reads("lp_ft") - {"ft_epochs", "ft_lr"}
    chosen = {name: getattr(p, name) for name in Parameters.model_fields if name in read}
    return {"sources": [p.base_data, p.source_data], "seed": p.seeds[0]} | chosen


def check(p: Parameters) -> None:
    """Refuse what cannot be measured here.

    Raises:
        ParameterError: there is no source c, no such backbone, or weights or images are not here.
    """
    if not p.source_data:
        raise ParameterError("premise: is about two sources; give source_data and source_weights")
    if problems := study.impossible(p) or inputs.missing(p, (p.base_data, p.source_data)):
        raise ParameterError("\n".join(problems))


def _measured(p: Parameters) -> PremiseSheet:
    """:func:`measure` with the sources and images that the parameters name."""
    done, names = study.done(p), (p.base_data, p.source_data)
    inputs.check_sources(p, names, done)
    dataset = inputs.load_data(p, done)
    b, c = (inputs.load_source(p, name, p.seeds[0]) for name in names)
    task = Task(dataset.train, dataset.val, len(dataset.classes), p.seeds[0], study.protocol(p), sources=names)
    return measure(b, c, task, definition(p), dataset.fingerprint)


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
    measure=_measured,
    definition=lambda sheet: sheet.content.definition,
    load=_load,
    save=_save,
    check=check,
)
"""The record of the premise that the parameters ask for."""


def state(p: Parameters) -> dict[str, Path | None]:
    """The record by name, and where it is, or None where it is not there.

    Raises:
        RecordError: it is damaged, or was measured with other parameters, weights or images than this study's runs.
    """
    if sheet := SHEET.read(p):
        there = {**sheet.content.sources, "": sheet.content.data}
        for record in study.done(p.model_copy(update={"seeds": p.seeds[:1]})):
            found = {**record.run["sources"], "": record.run["data"]["fingerprint"]}
            if any(there.get(name, value) != value for name, value in found.items()):
                raise RecordError(
                    f"{SHEET.where(p)} was measured on other weights or images than {record.folder} was computed from; "
                    "remove one of them and run again"
                )
    return {"what lies between the sources": SHEET.where(p) if sheet else None}


def run(p: Parameters) -> PremiseSheet:
    """The record that the parameters ask for; measured and written where it is not there.

    Raises:
        ParameterError, RecordError: as :func:`check` and :func:`state`.
        DataError, CheckpointError: the images or weights cannot be read.
    """
    state(p)
    return SHEET.run(p)
