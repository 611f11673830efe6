"""A finished run computed once more, from its parameter file, and held against its record file by file."""

import gzip
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medmerge.study import inputs
from medmerge.study import run as study
from medmerge.study.definitions import Row, chosen
from medmerge.study.measured import Sheet, save_json
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.records import Record, RecordError, reading

CIRCUMSTANCES = ("cost", "device", "provenance", "parameters")
"""What ``run.json`` may differ in: where, by which commit and how fast. Its ``definition`` is compared."""


class Rerun(Sheet):
    """What a second computation of a run found.

    Attributes:
        record: SHA-256 of the record's ``run.json`` that it was held against.
        device: where it was computed, in words.
        commit: of the package, as in a record's provenance.
        same: names of the record's files that came out byte for byte the same; of ``run.json`` all but circumstances.
        different: names of those that did not.
        metrics: its own scores on the test images.
    """

    format: int = 1
    record: str
    device: str
    commit: str
    same: tuple[str, ...]
    different: tuple[str, ...]
    metrics: dict[str, float | None]


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
        same, different = len(self.rerun.same), self.rerun.different
        if self.identical:
            return f"{name}: all {same} files of the record the same, byte for byte"
        metric = "macro_auroc" if self.record.multilabel else "macro_f1"
        there, here = self.record.run["metrics"][metric], self.rerun.metrics[metric]
        return (
            f"{name}: {same} files of the record the same, {len(different)} different ({', '.join(different)}). "
            f"{metric}: {here:.4f} on {self.rerun.device}, {there:.4f} on {self.record.run['device']}"
        )


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
    save_json(path(record), found)
    return Compared(record, found)


def path(record: Record) -> Path:
    """Where the rerun of a run is kept: ``<pair>/reruns/<backbone>-<row>-seed<k>.json``."""
    return record.folder.parents[2] / "reruns" / f"{'-'.join(record.folder.parts[-3:])}.json"


def of(runs: Sequence[Record]) -> list[Compared]:
    """The reruns that there are of some records.

    Raises:
        RecordError: a file is damaged, or was held against another record.
    """
    found = []
    for record in runs:
        if (where := path(record)).is_file():
            with reading(where, "restore it, or remove it"):
                found.append(Compared(record, Rerun.model_validate_json(where.read_bytes())))
            if found[-1].rerun.record != _digest(record):
                raise RecordError(
                    f"{where} is about another record than the one of {record.folder}; run medmerge rerun again"
                )
    return found


def _digest(record: Record) -> str:
    return hashlib.sha256((record.folder / "run.json").read_bytes()).hexdigest()


def content(folder: Path, circumstances: Sequence[str] = CIRCUMSTANCES) -> dict[str, bytes]:
    """The files of a record by name, ``run.json`` without its circumstances; what lies in folders below is no part.

    Those that are compressed are here as they were before, content and name: what counts is what they hold.

    Raises:
        RecordError: a compressed file is damaged.
    """
    found = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            with reading(file):
                raw = file.read_bytes()
                found[file.name.removesuffix(".gz")] = gzip.decompress(raw) if file.suffix == ".gz" else raw
    run = json.loads(found["run.json"])
    run["definition"] = chosen(run["definition"])
    found["run.json"] = json.dumps({name: value for name, value in run.items() if name not in circumstances}).encode()
    return found
