"""A run's folder: written once, whole, and enough to rebuild every table and figure without a GPU.

``results/<track>/<pair>/<backbone>/<row>/seed<k>/`` holds ``run.json``, ``history.csv``, ``predictions.csv`` and, for
merged runs, ``kernel_weights.safetensors`` and, since it is kept, ``kernel_weights_history.safetensors``. ``run.json``
is written last: where it is, the run is finished.
"""

import contextlib
import functools
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.numpy
from numpy.typing import ArrayLike
from pydantic import ValidationError
from safetensors import SafetensorError

from medmerge import files
from medmerge.study import names

KERNEL_HISTORY = "kernel_weights_history.safetensors"
HISTORY_BYTES = 800_000
"""A longer history of merging weights keeps every second, third ... epoch, so that it can be committed."""

MANY = 2_000
"""Test images beyond which a record keeps probabilities to four decimals and a sixteenth of the history."""

_REQUIRED = {
    *("definition", "hash", "row", "seed", "parameters", "data", "sources", "metrics", "layers"),
    *("cost", "device", "precision", "provenance"),
}


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
            reason = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise RecordError(f"{path} is damaged ({reason}); {todo}") from error


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        folder: where it lies.
        run: ``run.json``: ``definition`` and its ``hash``; ``row`` (``approach``, ``title``, ``sources``), ``seed``;
            ``parameters`` as resolved; ``data`` (classes, counts, fingerprint, notes and, absent from older records,
            multilabel, images, split, overlap); ``sources`` (fingerprints); ``metrics`` on test, and in ``stages``
            those of the network as the linear probe left it; ``cost`` by phase; ``provenance``.
        file: name of its test predictions, without the ``.gz`` that follows where they are many.
    """

    folder: Path
    run: Mapping
    file: str = "predictions.csv"

    @property
    def label(self) -> str:
        """The row in words, such as ``"MedMerge ImageNet-1k + HAM10000"``, with settings of its own in brackets."""
        return label(self.run["row"]["title"], self.run["row"]["sources"], self.settings)

    @property
    def approach(self) -> str:
        """Its row's approach, as parameter files name it."""
        return self.run["row"]["approach"]

    @property
    def settings(self) -> Mapping[str, object]:
        """The parameters in which the row differs from its study, by name; see ``vary``."""
        return self.run["row"].get("settings", {})

    @functools.cached_property
    def history(self) -> pd.DataFrame:
        """A row an epoch, with phase, epoch (from 1), train_loss, val_loss, val_accuracy, val_macro_f1.

        Multi-label runs have ``val_macro_auroc`` too; see :func:`score_column`.
        """
        return _table(self.folder / "history.csv")

    @functools.cached_property
    def predictions(self) -> pd.DataFrame:
        """A row a test image, as :func:`prediction_frame` makes them."""
        path = files.stored(self.folder / self.file)
        empty = {f"y_{name}": [""] for name in self.run["data"]["classes"]} if self.multilabel else None
        return _table(path, dtype={"id": str, "label": str}, na_values=empty, keep_default_na=False)

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several of the classes, or none."""
        return bool(self.run["data"].get("multilabel", False))

    @property
    def images(self) -> dict[str, int]:
        """Images by part (train, val, test)."""
        data = self.run["data"]
        return data.get("images") or {part: sum(counts.values()) for part, counts in data["counts"].items()}

    @property
    def labels(self) -> np.ndarray:
        """True classes of the test images, int64 ``[N]``; multi-label float64 ``[N, K]``, 1, 0 or NaN (not known)."""
        classes = self.run["data"]["classes"]
        if self.multilabel:
            return self.predictions[[f"y_{name}" for name in classes]].to_numpy(float)
        return pd.Categorical(self.predictions["label"], classes).codes.astype(np.int64)

    @property
    def probabilities(self) -> np.ndarray:
        """Test probabilities, float64 ``[N, K]``."""
        return self.predictions[[f"p_{name}" for name in self.run["data"]["classes"]]].to_numpy(float)

    def after_probe(self) -> "Record | None":
        """The same run as its linear probe left it: test predictions and metrics then; None if they are not kept."""
        stage = "linear_probe"
        if stage not in self.run.get("stages", {}):
            return None
        return Record(self.folder, {**self.run, "metrics": self.run["stages"][stage]}, f"predictions_{stage}.csv")

    @functools.cached_property
    def kernel_weights(self) -> dict[str, np.ndarray]:
        """The first source's learnt weight w by layer, ``[kernels]``, in forward order; empty where nothing was merged.

        Of more than two sources those of the others are in :attr:`source_weights`.
        """
        return {name: w[0] for name, w in self.source_weights.items()}

    @functools.cached_property
    def source_weights(self) -> dict[str, np.ndarray]:
        """The learnt weights of all n sources by layer, ``[n, kernels]``, which sum to one; else as above."""
        path = self.folder / "kernel_weights.safetensors"
        if not path.exists():
            return {}
        two = self.num_merged == 2
        weights = _tensors(path)
        return {n: np.stack([weights[n], 1 - weights[n]]) if two else weights[n] for n in self.run["layers"]}

    @property
    def num_merged(self) -> int:
        """How many networks a merged run merges; two where one source is merged with zeros."""
        return max(2, len(self.run["row"]["sources"]))

    @property
    def ends(self) -> tuple[str, str]:
        """What w = 1 and w = 0 take in a merged run, by name; the names of two sources, or of one and ``zeros``."""
        first, second = (*self.run["row"]["sources"], "zeros")[:2]
        return first, second

    @property
    def neutral(self) -> float:
        """The merging weight at which all of them count alike, 0.5 for two."""
        return 1 / self.num_merged

    @functools.cached_property
    def batchnorm(self) -> pd.DataFrame:
        """:func:`medmerge.batchnorm.report` before and after the linear probe (column ``when``); empty if not kept."""
        return self._kept("batchnorm")

    @functools.cached_property
    def controls(self) -> pd.DataFrame:
        """:func:`medmerge.approaches.paper.replaced_weights`; empty if not kept."""
        return self._kept("controls")

    def _kept(self, name: str) -> pd.DataFrame:
        path = files.stored(self.folder / f"{name}.csv")
        return _table(path) if path.exists() else pd.DataFrame()

    @functools.cached_property
    def kernel_history(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Epochs ``[E]`` of the linear probe (from 1), and the first source's w after each, float32 ``[E, kernels]``.

        Both empty where none is stored: runs that merged nothing, and records from before it was kept.
        """
        path = self.folder / KERNEL_HISTORY
        if not path.exists():
            return np.empty(0, np.int64), {}
        stored = _tensors(path)
        moved = {name: stored[f"w/{name}"].astype(np.float32) for name in self.run["layers"]}
        first = {name: w if w.ndim == 2 else w[:, 0] for name, w in moved.items()}
        return stored["epochs"], {name: w + np.float32(self.neutral) for name, w in first.items()}


def _table(path: Path, **options: object) -> pd.DataFrame:
    with reading(path):
        return pd.read_csv(path, **options)


def _tensors(path: Path) -> dict[str, np.ndarray]:
    with reading(path):
        return safetensors.numpy.load_file(path)


def prediction_frame(
    ids: Sequence[str], labels: ArrayLike, probabilities: np.ndarray, classes: Sequence[str]
) -> pd.DataFrame:
    """The rows of ``predictions.csv``: id, true label or labels, and a column of probabilities a class, ``p_<class>``.

    Args:
        labels: class indices ``[N]``, which become a column ``label`` of names; or ``[N, K]`` of 1, 0 and NaN (not
            known), which become a column ``y_<class>`` each, empty for not known.
        probabilities: ``[N, K]``.
    """
    labels = np.asarray(labels)
    if labels.ndim == 1:
        truth = {"label": [classes[k] for k in labels]}
    else:
        truth = {f"y_{name}": labels[:, k] for k, name in enumerate(classes)}
    return pd.DataFrame({"id": ids} | truth | {f"p_{name}": probabilities[:, k] for k, name in enumerate(classes)})


def kept(probabilities: np.ndarray) -> np.ndarray:
    """Test probabilities ``[N, K]`` as a record keeps them, and as its metrics are computed from; see :data:`MANY`."""
    return probabilities.astype(np.float64).round(4) if len(probabilities) > MANY else probabilities


def label(title: str, sources: Sequence[str], settings: Mapping[str, object]) -> str:
    """A row in words: its approach's title, its sources and, in brackets, the settings that set it apart."""
    named = ", ".join(f"{names.setting(name)} {value}" for name, value in settings.items())
    return f"{title} {' + '.join(map(names.title, sources))}" + (named and f" ({named})")


def score_column(history: pd.DataFrame) -> str:
    """The column of a history by which the kept epoch is chosen: macro AUROC for multi-label runs, else macro F1."""
    return "val_macro_auroc" if "val_macro_auroc" in history else "val_macro_f1"


def write(
    folder: Path,
    run: Mapping,
    history: pd.DataFrame,
    predictions: pd.DataFrame,
    kernel_weights: Mapping[str, np.ndarray],
    kernel_history: Mapping[str, np.ndarray] | None = None,
    tables: Mapping[str, pd.DataFrame] | None = None,
) -> Record:
    """Write a finished run. Each file appears whole, ``run.json`` last.

    Args:
        kernel_weights: arrays by layer, in forward order: of two sources the first one's ``[kernels, ...]``, of n > 2
            all ``[n, kernels, ...]``; with a weight a parameter, the mean of each kernel's is kept.
        kernel_history: w - 1/n after every epoch of the linear probe by layer, float16 ``[epochs, kernels]``, of n > 2
            sources ``[epochs, n, kernels]``. The last epoch is always kept, the others as far as :data:`HISTORY_BYTES`
            allow.
        tables: further tables, each written to ``<name>.csv``. One that is long, as of many test images, is compressed
            (:func:`medmerge.files.write_long`).
    """
    files.write(folder / "history.csv", history_text(history))
    for name, table in {"predictions": predictions, **(tables or {})}.items():
        files.write_long(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.9g").encode())
    if kernel_weights:
        dims = 2 if len(run["row"]["sources"]) > 2 else 1
        kept = {name: w.mean(tuple(range(dims, w.ndim))) if w.ndim > dims else w for name, w in kernel_weights.items()}
        files.write(folder / "kernel_weights.safetensors", _packed(kept))
    if kernel_history:
        allowed = HISTORY_BYTES // (16 if len(predictions) > MANY else 1)
        files.write(folder / KERNEL_HISTORY, _packed(_thinned(kernel_history, allowed)))
    run = {**run, "layers": list(kernel_weights)}
    files.write(folder / "run.json", (json.dumps(run, indent=1, ensure_ascii=False) + "\n").encode())
    return Record(folder, run)


def history_text(history: pd.DataFrame) -> str:
    """The content of ``history.csv``, which a run that goes on writes after every epoch too."""
    return history.to_csv(index=False)


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The arrays as safetensors, which writes memory as it lies: a transposed array would come back wrong."""
    return safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def _thinned(history: Mapping[str, np.ndarray], allowed: int) -> dict[str, np.ndarray]:
    """The tensors of a history's file: ``epochs`` (from 1), and ``w/<layer>``, counted back from the last epoch."""
    count = len(next(iter(history.values())))
    step = math.ceil(sum(w.nbytes for w in history.values()) / allowed)
    epochs = np.arange(count, 0, -step)[::-1].copy()
    return {"epochs": epochs, **{f"w/{name}": w[epochs - 1] for name, w in history.items()}}


def read(folder: Path) -> Record:
    """The finished run in ``folder``.

    Raises:
        FileNotFoundError: there is none.
        RecordError: ``run.json`` is damaged or files are missing.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"no finished run in {folder}")
    with reading(path):
        run = json.loads(path.read_bytes())
        if lacking := _REQUIRED.difference(run):
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
    for name in ("history.csv", "predictions.csv", *["kernel_weights.safetensors"][: len(run["layers"])]):
        if not files.stored(folder / name).is_file():
            raise RecordError(f"the record in {folder} lacks {name}; restore it or run it again")
    return Record(folder, run)


def gather(results: str | Path, pattern: str = "**") -> list[Record]:
    """All finished runs in a folder and below it, or in those of its folders that match ``pattern``.

    Args:
        results: ``results``, a study's folder, a run's own, or what ``medmerge learn`` wrote.
        pattern: such as ``"*/*/*/seed*"``.
    """
    return [read(path.parent) for path in sorted(Path(results).expanduser().glob(f"{pattern}/run.json"))]


def merged(results: Path, studies: Sequence[str]) -> list[Record]:
    """The finished runs with merging weights of each study, in the studies' order.

    Args:
        results: a track's folder, such as ``results/open``.
        studies: ``pair``, for all its backbones, or ``pair/backbone``; ``*`` stands for any name, of what is left.

    Raises:
        RecordError: a study is named twice, or has no such run; those that have are listed.
    """
    found: dict[Path, Record] = {}
    for study in studies:
        runs = merged_in(results, study)
        if not runs:
            known = sorted({"/".join(folder.parts[-4:-2]) for folder in merged_in(results, "*")})
            there = ", ".join(known) or "none"
            raise RecordError(f"studies: no merged run of {study} below {results}; there are: {there}")
        if (twice := runs.keys() & found.keys()) and "*" not in study:
            raise RecordError(f"studies: {study} names {min(twice)} for the second time")
        found |= {folder: record for folder, record in runs.items() if folder not in found}
    return list(found.values())


def pattern(study: str) -> str:
    """The folders of a study's runs below its track; of all its backbones where it names none."""
    return f"{study}/*/seed*" if "/" in study else f"{study}/*/*/seed*"


def merged_in(results: Path, study: str) -> dict[Path, Record]:
    """The finished runs with merging weights of a study, as :func:`merged` names it, by folder."""
    return {record.folder: record for record in gather(results, pattern(study)) if record.kernel_weights}
