"""What is measured once and kept: read where it is there, else measured and written."""

import importlib.metadata
import json
import logging
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from medmerge import files
from medmerge.study.params import Parameters
from medmerge.study.records import RecordError, reading

log = logging.getLogger(__name__)

LIBRARIES = ("medmerge", "torch", "torchvision", "numpy", "scikit-learn", "pandas", "pillow")

T = TypeVar("T")


class Sheet(BaseModel):
    """A record of something measured, as JSON; fields that are no longer known are let through."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


def save_json(path: Path, sheet: BaseModel | Mapping) -> None:
    """Write a record as JSON, in one atomic step."""
    content = sheet.model_dump() if isinstance(sheet, BaseModel) else sheet
    files.write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Measured(Generic[T]):
    """A measurement that parameters ask for, and its record.

    Attributes:
        where: the record's file.
        asked: what it must have been measured with, by name.
        measure: makes it anew.
        load: reads the file; ValueError and its like say that it is damaged.
        save: writes it.
        definition: what a record was measured with; other names than ``asked`` has may be in it.
        check: raises where something is missing that measuring needs.
    """

    where: Callable[[Parameters], Path]
    asked: Callable[[Parameters], Mapping[str, object]]
    measure: Callable[[Parameters], T]
    load: Callable[[Path], T]
    save: Callable[[Path, T], None] = save_json
    definition: Callable[[T], Mapping[str, object]] = vars
    check: Callable[[Parameters], None] = lambda p: None

    def read(self, p: Parameters) -> T | None:
        """The record that the parameters ask for, or None where nothing was measured yet.

        Raises:
            RecordError: it cannot be read, or was measured with other parameters.
        """
        path = self.where(p)
        if not path.is_file():
            return None
        with reading(path, "restore it, or remove it to measure again"):
            found = self.load(path)
            there = self.definition(found)
        for name, value in self.asked(p).items():
            default = Parameters.model_fields[name].default if name in Parameters.model_fields else None
            if there.get(name, default) != value:
                raise RecordError(
                    f"{path} was measured with {name} {there.get(name, default)}, not {value}; remove it to measure "
                    "again, or give this study another `pair` name"
                )
        return found

    def run(self, p: Parameters) -> T:
        """The same; measured and written where it is not there.

        Raises:
            RecordError: as :meth:`read`; and whatever ``check`` and ``measure`` raise.
        """
        if self.read(p) is None:
            self.check(p)
            log.info("measuring %s", self.where(p).name)
            self.save(self.where(p), self.measure(p))
        return self.read(p)

    def state(self, p: Parameters) -> Path | None:
        """Where the record is, or None where it is not there.

        Raises:
            RecordError: as :meth:`read`.
        """
        return self.where(p) if self.read(p) is not None else None


def provenance() -> dict:
    """Versions of the package and its libraries, of Python and the system, and the commit with its state."""
    return {
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES}
        | {"python": platform.python_version()},
        "system": f"{platform.system()} {platform.machine()}",
        "commit": _commit(),
    }


def _commit() -> str:
    """The package's git commit, with ``+changes`` where its sources differ from it, or ``"unknown"``."""
    here = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", str(here)) else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
