"""What a record must hold for its readers, and what to say of a file of ours that cannot be read.

Fields that are not known here are let through, so that older readers read newer records.
"""

import contextlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

_Count = Annotated[int, Field(ge=0)]
_Name = Annotated[str, Field(min_length=1)]
_ByPart = Literal["train", "val", "test"]
_Scores = dict[str, float | None]


class RecordError(ValueError):
    """A record that cannot be read, or that stands where another run would be written."""


@contextlib.contextmanager
def reading(path: Path, todo: str = "restore it, or remove its folder and run again") -> Iterator[None]:
    """Turn what goes wrong while a file is read into a :class:`RecordError` that names it, and says what to do."""
    try:
        yield
    except (ValueError, KeyError, OSError, EOFError, zlib.error, SafetensorError) as error:
        reason = str(error).strip()
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = ": ".join([*filter(None, [".".join(map(str, first["loc"]))]), first["msg"]])
        raise RecordError(f"{path} is damaged ({reason}); {todo}") from error


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Row(_Part):
    approach: _Name
    title: _Name
    sources: Annotated[list[_Name], Field(min_length=1)]
    settings: dict[str, Any] = {}


class _Data(_Part):
    classes: Annotated[list[_Name], Field(min_length=1)]
    name: _Name
    fingerprint: _Name
    counts: Annotated[dict[_ByPart, dict[str, _Count]], Field(min_length=3)]
    multilabel: bool = False
    images: Annotated[dict[_ByPart, _Count], Field(min_length=3)] | None = None
    notes: list[str] = []
    split: dict[str, Any] = {}
    overlap: dict[str, dict[str, Any]] = {}


class _Run(_Part):
    definition: dict[str, Any]
    hash: _Name
    row: _Row
    seed: _Count
    parameters: dict[str, Any]
    data: _Data
    sources: dict[str, str]
    metrics: _Scores
    layers: list[_Name]
    cost: dict[str, dict[str, float]]
    device: str
    precision: str
    provenance: dict[str, Any]
    stages: dict[str, _Scores] = {}
    choices: dict[str, Any] = {}
    network: str = ""


_REQUIRED = {name for name, field in _Run.model_fields.items() if field.is_required()}


def run(path: Path) -> dict:
    """The content of a ``run.json``.

    Raises:
        RecordError: it is not JSON, or a field is missing or has another type or range.
    """
    with reading(path):
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and (missing := _REQUIRED - content.keys()):
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        _Run.model_validate(content)
    return content
