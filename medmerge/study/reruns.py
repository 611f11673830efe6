"""A finished run computed once more, from its parameter file, and held against its record file by file."""

import gzip
import hashlib
import json
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medmerge import files
from medmerge.study import inputs
from medmerge.study import run as study
from medmerge.study.definitions import Row, chosen
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.records import Record, RecordError

CIRCUMSTANCES = ("cost", "device", "provenance", "parameters")
"""What ``run.json`` may differ in: where, by which commit and how fast. Its ``definition`` is compared."""

FOLDER = "reruns"


class Rerun(BaseModel):
    """What a second computation of a run found.

    Attributes:
        record: SHA-256 of the record's ``run.json`` that it was held against.
        device: where it was computed, in words.
        commit: of the package, as in a record's provenance.
        same: names of the record's files that came out byte for byte the same; of ``run.json`` all but circumstances.
        different: names of those that did not.
        metrics: its own scores on the test images.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    format: Literal[1] = 1
    record: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    device: str
    commit: str
    same: tuple[str, ...]
    different: tuple[str, ...]
    metrics: Mapping[str, float | None]


@dataclass(frozen=True)
class Compared:
    """A record and its rerun."""

    record: Record
    rerun: Rerun

    @property
    def identical(self) -> bool:
        """Whether every file came out the same."""
        return not self.rerun.different

    def sentence(self) -> str:
        """What was found, for a terminal."""
        name = f"{self.record.label}, seed {self.record.run['seed']}"
        same, different, metric = len(self.rerun.same), self.rerun.different, _score(self.record)
        if self.identical:
            return f"{name}: all {same} files of the record the same, byte for byte"
        there, here = self.record.run["metrics"][metric], self.rerun.metrics[metric]
        return (
            f"{name}: {same} files of the record the same, {len(different)} different ({', '.join(different)}). "
            f"{metric}: {here:.4f} on {self.rerun.device}, {there:.4f} on {self.record.run['device']}"
        )


def _score(record: Record) -> str:
    """The metric that runs of a target are compared by."""
    return "macro_auroc" if record.multilabel else "macro_f1"


def run(p: Parameters, row: Row, seed: int) -> Compared:
    """Compute a finished run again, in a folder of its own that is removed, and write what was found beside its study.

    Raises:
        ParameterError: the run is not finished, or what it needs is not here.
        RecordError: the images or weights that are here are not those that it was computed from.
        DataError, CheckpointError, TrainingError, DiskError: as :func:`medmerge.study.run`.
    """
    record = study.finished(p, row, seed)
    if record is None:
        raise ParameterError(f"{row.label}, seed {seed} is not finished: there is nothing to hold a rerun against")
    with tempfile.TemporaryDirectory(prefix="medmerge-rerun-") as name:
        apart, only = p.model_copy(update={"results": name, "save_weights": "", "seeds": [seed]}), {(row, seed)}
        study.check(apart, only)
        inputs.load_data(apart, [record])
        inputs.check_sources(apart, row.sources, [record])
        (again,) = study.run(apart, only)
        there, here = content(record.folder), content(again.folder)
        found = Rerun(
            record=_digest(record),
            device=again.run["device"],
            commit=again.run["provenance"]["commit"],
            same=tuple(file for file in there if there[file] == here.get(file)),
            different=tuple(sorted(file for file in there.keys() | here.keys() if there.get(file) != here.get(file))),
            metrics=again.run["metrics"],
        )
    files.write(path(record), found.model_dump_json(indent=1) + "\n")
    return Compared(record, found)


def path(record: Record) -> Path:
    """Where the rerun of a run is kept: ``<pair>/reruns/<backbone>-<row>-seed<k>.json``."""
    backbone, row, seed = record.folder.parts[-3:]
    return record.folder.parents[2] / FOLDER / f"{backbone}-{row}-{seed}.json"


def read(record: Record) -> Compared | None:
    """A run and its rerun, or None where it has none.

    Raises:
        RecordError: the file is damaged, or was held against another record.
    """
    where = path(record)
    if not where.is_file():
        return None
    try:
        found = Rerun.model_validate_json(where.read_bytes())
    except ValidationError as error:
        raise RecordError(f"{where} is damaged ({error.errors()[0]['msg']}); restore it, or remove it") from error
    if found.record != _digest(record):
        raise RecordError(f"{where} is about another record than the one of {record.folder}; run medmerge rerun again")
    return Compared(record, found)


def of(runs: Sequence[Record]) -> list[Compared]:
    """The reruns that there are of some records."""
    return [found for one in runs if (found := read(one))]


def _digest(record: Record) -> str:
    return hashlib.sha256((record.folder / "run.json").read_bytes()).hexdigest()


def _unpacked(file: Path) -> bytes:
    if file.suffix != ".gz":
        return file.read_bytes()
    try:
        return gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise RecordError(f"{file} is damaged ({error}); restore it, or run it again") from error


def content(folder: Path, circumstances: Sequence[str] = CIRCUMSTANCES) -> dict[str, bytes]:
    """The files of a record by name, ``run.json`` without its circumstances; what lies in folders below is no part.

    Those that are compressed are here as they were before, content and name: what counts is what they hold.

    Raises:
        RecordError: a compressed file is damaged.
    """
    found = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            found[file.name.removesuffix(".gz")] = _unpacked(file)
    run = json.loads(found["run.json"])
    run["definition"] = chosen(run["definition"])
    found["run.json"] = json.dumps({name: value for name, value in run.items() if name not in circumstances}).encode()
    return found
