"""What is measured once and kept: read where it is there, else measured and written."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError

from medmerge import files
from medmerge.study.params import Parameters
from medmerge.study.records import RecordError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Sheet(BaseModel):
    """A record of something measured, as JSON; fields that are no longer known are let through."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Measured(Generic[T]):
    """A measurement that parameters ask for, and its record.

    Attributes:
        where: the record's file.
        asked: what it must have been measured with, by name.
        measure: makes it anew.
        definition: what a record was measured with; other names than ``asked`` has may be in it.
        load: reads the file; ValueError and its like say that it is damaged.
        save: writes it.
    """

    where: Callable[[Parameters], Path]
    asked: Callable[[Parameters], Mapping[str, object]]
    measure: Callable[[Parameters], T]
    definition: Callable[[T], Mapping[str, object]]
    load: Callable[[Path], T]
    save: Callable[[Path, T], None]

    def read(self, p: Parameters) -> T | None:
        """The record that the parameters ask for, or None where nothing was measured yet.

        Raises:
            RecordError: it cannot be read, or was measured with other parameters.
        """
        path = self.where(p)
        if not path.is_file():
            return None
        try:
            found = self.load(path)
            there = self.definition(found)
        except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
            reason = "; ".join(line.strip() for line in str(error).splitlines()[:3])
            raise RecordError(f"{path} is damaged ({reason}); restore it, or remove it to measure again") from error
        for name, value in self.asked(p).items():
            default = Parameters.model_fields[name].default if name in Parameters.model_fields else None
            if there.get(name, default) != value:
                raise RecordError(
                    f"{path} was measured with {name} {there.get(name, default)}, not {value}; remove it to measure "
                    "again, or give this study another `pair` name"
                )
        return found

    def ensure(self, p: Parameters) -> T:
        """The same, measured and written where it is not there."""
        if self.read(p) is None:
            log.info("measuring %s", self.where(p).name)
            self.save(self.where(p), self.measure(p))
        return self.read(p)

    def state(self, p: Parameters) -> Path | None:
        """Where the record is, or None where it is not there."""
        return self.where(p) if self.read(p) is not None else None


def save_json(path: Path, sheet: BaseModel | Mapping) -> None:
    """Write a record as JSON, in one atomic step."""
    content = (
        sheet.model_dump_json(indent=1)
        if isinstance(sheet, BaseModel)
        else json.dumps(sheet, indent=1, ensure_ascii=False)
    )
    files.write(path, content + "\n")
