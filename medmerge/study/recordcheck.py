"""Whether a ``run.json`` is one: the fields that its readers rely on, and nothing beyond them.

Fields that are not known here are let through, so that older readers read newer records. The tables beside it are
files of ours; one that cannot be read at all is named.
"""

import json
import zlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

_AGAIN = "restore it, or remove its folder and run again"


class RecordError(ValueError):
    """A record that cannot be read, or that stands where another run would be written."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


_Count = Annotated[int, Field(ge=0)]
_Name = Annotated[str, Field(min_length=1)]


class _Row(_Part):
    approach: _Name
    title: _Name
    sources: Annotated[list[_Name], Field(min_length=1)]
    settings: dict[str, Any] = {}


class _Parts(_Part):
    train: dict[str, _Count]
    val: dict[str, _Count]
    test: dict[str, _Count]


class _Images(_Part):
    train: _Count
    val: _Count
    test: _Count


class _Overlap(_Part):
    unknown: str = ""
    images: dict[str, _Count] = {}
    groups: dict[str, _Count] = {}


class _Data(_Part):
    classes: Annotated[list[_Name], Field(min_length=1)]
    name: _Name
    fingerprint: _Name
    counts: _Parts
    multilabel: bool = False
    images: _Images | None = None
    notes: list[str] = []
    split: dict[str, Any] = {}
    overlap: dict[str, _Overlap] = {}


class _Parameters(_Part):
    backbone: _Name
    image_size: Annotated[int, Field(ge=1)]
    split: _Name
    base_data: str


class _Cost(_Part):
    seconds: Annotated[float, Field(ge=0)]
    peak_memory_mib: float = 0.0


class _Versions(_Part):
    medmerge: str
    torch: str
    torchvision: str


class _Provenance(_Part):
    versions: _Versions
    commit: str
    system: str = ""


class _Run(_Part):
    definition: dict[str, Any]
    hash: _Name
    row: _Row
    seed: _Count
    parameters: _Parameters
    data: _Data
    sources: dict[str, str]
    metrics: dict[str, float | None]
    layers: list[_Name]
    cost: dict[str, _Cost]
    device: str
    precision: str
    provenance: _Provenance
    stages: dict[str, dict[str, float | None]] = {}
    choices: dict[str, Any] = {}
    network: str = ""


def run(path: Path) -> dict:
    """The content of a ``run.json``.

    Raises:
        RecordError: it is not JSON, or a field is missing or has another type or range.
    """
    try:
        content = json.loads(path.read_bytes(), parse_constant=_refused)
        required = {name for name, field in _Run.model_fields.items() if field.is_required()}
        if isinstance(content, dict) and (missing := required - content.keys()):
            listed = ", ".join(sorted(missing))
            raise RecordError(f"the record in {path.parent} lacks {listed}; restore it or run it again")
        _Run.model_validate(content)
    except RecordError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise RecordError(f"{path} is damaged: {where}: {first['msg'].lower()}; {_AGAIN}") from None
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is damaged ({error}); {_AGAIN}") from error
    return content


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def table(path: Path, **options: Any) -> pd.DataFrame:
    """A table of a record.

    Raises:
        RecordError: it cannot be read.
    """
    try:
        return pd.read_csv(path, **options)
    except (ValueError, OSError, OverflowError, EOFError, zlib.error) as error:  # pandas' own are ValueErrors
        raise RecordError(f"{path} is damaged ({str(error).strip()}); {_AGAIN}") from error


def tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a record's safetensors file.

    Raises:
        RecordError: it is no such file.
    """
    try:
        return safetensors.numpy.load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise RecordError(f"{path} is damaged ({error}); {_AGAIN}") from error
