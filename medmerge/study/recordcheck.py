"""Whether what is read as a record is one: types and ranges that its readers rely on, and nothing beyond them.

Fields that are not known here are let through, so that older readers read newer records. A message names the file, the
field or row, what it holds, and the next step.
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

_AGAIN = "restore it, or remove its folder and run again"
_TOLERANCE = 1e-3
"""By how much the probabilities of an image may miss a sum of one: they are rounded, and bf16's are coarse."""


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
    if len(set(content["data"]["classes"])) < len(content["data"]["classes"]):
        raise RecordError(f"{path} is damaged: data.classes: a class is listed twice; {_AGAIN}")
    return content


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def history(path: Path) -> pd.DataFrame:
    """The table of a ``history.csv``: columns phase and epoch (from 1), others numbers.

    Raises:
        RecordError: it is none.
    """
    frame = _table(path)
    _has(path, frame, ("phase", "epoch"))
    _numbers(path, frame.drop(columns="phase"))
    if not (frame["epoch"] >= 1).all():
        raise RecordError(f"{path} is damaged: epoch {frame['epoch'].min()}, where the first is 1; {_AGAIN}")
    return frame


def predictions(path: Path, classes: Sequence[str], multilabel: bool) -> pd.DataFrame:
    """The table of a ``predictions.csv``, as :func:`medmerge.study.records.prediction_frame` makes it.

    Raises:
        RecordError: an id twice, a label that is none of the classes, or what is no probability.
    """
    unknown = {f"y_{name}": [""] for name in classes} if multilabel else None
    frame = _table(path, dtype={"id": str, "label": str}, na_values=unknown, keep_default_na=False)
    labels = [f"y_{name}" for name in classes] if multilabel else ["label"]
    columns = [f"p_{name}" for name in classes]
    _has(path, frame, ("id", *labels, *columns))
    if frame["id"].duplicated().any():
        twice = frame.loc[frame["id"].duplicated(), "id"].iloc[0]
        raise RecordError(f"{path} is damaged: the image {twice!r} is listed twice; {_AGAIN}")
    _numbers(path, frame[columns])
    values = frame[columns].to_numpy(float)
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise RecordError(f"{path} is damaged: probabilities from {values.min()} to {values.max()}; {_AGAIN}")
    if multilabel:
        _numbers(path, frame[labels].dropna())
        wrong = ~(frame[labels].isin([0, 1]) | frame[labels].isna()).all(axis=1)
    else:
        wrong = ~frame["label"].isin(classes)
        off = np.abs(values.sum(axis=1) - 1) > max(_TOLERANCE, 1e-4 * len(classes))
        if off.any():
            image = frame["id"][off].iloc[0]
            raise RecordError(f"{path} is damaged: the probabilities of {image!r} do not add up to one; {_AGAIN}")
    if wrong.any():
        raise RecordError(f"{path} is damaged: the label of {frame['id'][wrong].iloc[0]!r} is unknown; {_AGAIN}")
    return frame


def weights(path: Path, names: Sequence[str], dims: int) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, finite, each with ``dims`` dimensions.

    Args:
        names: those that must be there; others may be.

    Raises:
        RecordError: it is no such file.
    """
    try:
        found = safetensors.numpy.load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path} is damaged ({error}); {_AGAIN}") from error
    for name in names:
        if name not in found:
            raise RecordError(f"{path} is damaged: it lacks {name}; {_AGAIN}")
        tensor = found[name]
        if tensor.ndim != dims or tensor.dtype.kind not in "fiu" or not np.isfinite(tensor).all():
            what = f"{tensor.dtype} {list(tensor.shape)}"
            raise RecordError(f"{path} is damaged: {name}, {what}, is not {dims}-dimensional and finite; {_AGAIN}")
    return found


def table(path: Path) -> pd.DataFrame:
    """Any other table of a record.

    Raises:
        RecordError: it is not one.
    """
    return _table(path)


def _table(path: Path, **options: Any) -> pd.DataFrame:
    try:
        return pd.read_csv(path, **options)
    except (ValueError, OSError, OverflowError, EOFError, zlib.error) as error:  # pandas' own are ValueErrors
        raise RecordError(f"{path} is damaged ({str(error).strip()}); {_AGAIN}") from error


def _has(path: Path, frame: pd.DataFrame, columns: Sequence[str]) -> None:
    if absent := [name for name in columns if name not in frame]:
        raise RecordError(f"{path} is damaged: it lacks the column {absent[0]}; {_AGAIN}")


def _numbers(path: Path, frame: pd.DataFrame) -> None:
    for name, column in frame.items():
        if column.dtype.kind not in "fiu" or not np.isfinite(column).all():
            if len(column):
                raise RecordError(f"{path} is damaged: the column {name} has what is no finite number; {_AGAIN}")
