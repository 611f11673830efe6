"""What a parameter file asks for: its rows and seeds, what defines each run, and where its record lies."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medmerge.approaches import APPROACHES
from medmerge.study import records
from medmerge.study.params import ParameterError, Parameters, of_role
from medmerge.study.places import home, weights
from medmerge.study.records import Record, RecordError

PROTOCOL = 1
"""Counts changes of meaning: of a default, or of how a parameter is used. Part of what defines a run."""

MODEL = Path("checkpoint", "model.safetensors")
"""The trained network, in a run's folder, and beside it the list of its images; git ignores both."""

MERGE = MODEL.with_name("merge.safetensors")
"""What the linear probe of a merging run learnt, beside it: merging weights, normalisation and head."""

COMMON = of_role("data", "training")
"""Parameters that the numbers of every approach depend on."""


@dataclass(frozen=True)
class Row:
    """A row of the paper's Table 1: an approach and what its sources were trained on; or of an ablation's.

    Attributes:
        settings: parameters by name, with the values that this row has in place of its study's.
    """

    approach: str
    sources: tuple[str, ...]
    settings: tuple[tuple[str, object], ...] = ()

    @property
    def name(self) -> str:
        """Its folder, such as ``"lp_ft-ham10k"`` or ``"medmerge-objects-lesions+batchnorm=repair"``."""
        return "-".join((self.approach, *self.sources)) + "".join(f"+{name}={value}" for name, value in self.settings)

    def parameters(self, p: Parameters) -> Parameters:
        """The study's parameters with this row's settings."""
        return p.model_copy(update={**dict(self.settings), "vary": {}})

    @property
    def title(self) -> str:
        """Its approach in words, such as ``"LP-FT"``."""
        return APPROACHES[self.approach].title

    @property
    def label(self) -> str:
        """The row in words, as its record's :attr:`~medmerge.study.records.Record.label`."""
        return records.label(self.title, self.sources, dict(self.settings))


def rows(p: Parameters) -> list[Row]:
    """The rows that the parameters ask for: merging approaches once, the others from each source.

    With ``vary`` each of them once for every combination of the settings that it reads; where a setting has the
    study's own value the row is the study's own.
    """
    sources = list(weights(p))
    return [
        Row(name, names, settings)
        for name in p.approaches
        for names in ([tuple(sources)] if APPROACHES[name].merges else [(source,) for source in sources])
        for settings in _combinations(p, reads(name))
    ]


def reads(approach: str) -> set[str]:
    """Parameters that an approach's numbers depend on, beside its sources and seed."""
    return {*COMMON, *APPROACHES[approach].reads}


def _combinations(p: Parameters, read: set[str]) -> list[tuple[tuple[str, object], ...]]:
    varied = {name: values for name, values in p.vary.items() if name in read}
    return [
        tuple((name, value) for name, value in zip(varied, values, strict=True) if value != getattr(p, name))
        for values in itertools.product(*varied.values())
    ]


def folder(p: Parameters, row: Row, seed: int) -> Path:
    """Where a run's record lies: ``results/<track>/<pair>/<backbone>/<row>/seed<k>``."""
    return home() / p.results / p.track / p.pair / p.backbone / row.name / f"seed{seed}"


def split_path(p: Parameters) -> Path:
    """Where a study's split lies, for others to use: ``results/<track>/<pair>/split.csv``."""
    return home() / p.results / p.track / p.pair / "split.csv"


def definition(p: Parameters, row: Row, seed: int) -> dict:
    """The parameters that a run's numbers depend on; paths and devices are not among them."""
    p, read = row.parameters(p), [name for name in Parameters.model_fields if name in reads(row.approach)]
    values = {n: getattr(p, n) for n in read}
    if values.get("normalisation") == ("softmax" if len(row.sources) > 2 else "affine"):
        values["normalisation"] = "auto"  # the same under another name
    return {"approach": row.approach, "sources": list(row.sources), "seed": seed} | values


def definition_hash(values: dict) -> str:
    """SHA-256 over a definition. Defaults are left out, so that a new parameter leaves old records finished."""
    return hashlib.sha256(json.dumps([PROTOCOL, chosen(values)], sort_keys=True).encode()).hexdigest()


def chosen(values: Mapping) -> dict:
    """A definition without defaults: the same whichever parameters there were when it was written."""
    fields = Parameters.model_fields
    return {name: value for name, value in values.items() if name not in fields or value != fields[name].default}


def finished(p: Parameters, row: Row, seed: int) -> Record | None:
    """The record of a run, if it is finished; where ``precision`` is ``"auto"``, in whichever it was asked for.

    Raises:
        RecordError: its folder holds a run of another definition; the message names the first difference.
    """
    where, wanted = folder(p, row, seed), definition(p, row, seed)
    try:
        record = records.read(where)
    except FileNotFoundError:
        return None
    if wanted["precision"] == "auto":
        wanted["precision"] = record.run["definition"].get("precision", "auto")
    if record.run["hash"] != definition_hash(wanted):
        raise RecordError(
            f"{where} holds a finished run of another definition: {difference(record.run['definition'], wanted)}. Give "
            "this one another `pair` name, or move that folder away"
        )
    return record


def difference(there: Mapping, here: Mapping) -> str:
    """The first difference of two definitions, in words; a parameter that one of them does not know has its default."""
    one, other = chosen(there), chosen(here)
    name = next((name for name in {**one, **other} if one.get(name) != other.get(name)), "protocol")
    default = Parameters.model_fields[name].default if name in Parameters.model_fields else None
    return f"{name} is {one.get(name, default)!r} there and {other.get(name, default)!r} here"


def epochs(p: Parameters, row: Row) -> int:
    """Epochs of a run in which images go through the whole network.

    Those of a linear probe on features that are computed once are none, nor is what a row that combines networks trains
    on the way where a part of it is missing.
    """
    approach, p = APPROACHES[row.approach], row.parameters(p)
    if approach.combines:
        return 0
    through = "batchnorm_free" in approach.reads or p.lp_batchnorm == "train" and "lp_batchnorm" in approach.reads
    return p.ft_epochs + (p.lp_epochs if through else 0)


def needed(todo: list[tuple[Row, int]]) -> set[str]:
    """Names of the sources that runs start from."""
    return {source for row, _ in todo for source in row.sources}


def parts(row: Row) -> list[Row]:
    """The rows whose finished networks a row combines; each that is not here is trained on the way."""
    return [part(row, one, source) for one in APPROACHES[row.approach].combines for source in row.sources]


def part(row: Row, approach: str, source: str) -> Row:
    """The row of one of the networks that a row combines: an approach from one source, under the row's settings."""
    return Row(approach, (source,), tuple((name, value) for name, value in row.settings if name in reads(approach)))


def check(p: Parameters) -> list[Record]:
    """The merged runs of the studies that a page shows.

    Raises:
        ParameterError: it names no study.
        RecordError: one of its studies has no such run.
    """
    if not p.studies:
        raise ParameterError("studies: name the studies that the page shows, such as [skin, chest/mobilenet_v2]")
    return records.merged(home() / p.results / p.track, p.studies)


def state(p: Parameters) -> dict[str, Path | None]:
    """The same by name, each with its folder; a study that has none by its own name."""
    found: dict[str, Path | None] = {}
    for study in p.studies:
        runs = records.merged_in(home() / p.results / p.track, study)
        found |= {"/".join(folder.parts[-4:]): folder for folder in runs} or {study: None}
    return found
