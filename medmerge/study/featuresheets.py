"""The record of a merged run's kernels and feature maps, measured once and kept small, and what is said from it.

``results/<track>/<pair>/features/<backbone>-<row>-seed<k>.safetensors`` rebuilds the page without networks or images.
The sample is the first test image of the split: nothing is chosen by how it looks. Of real images only maps are kept,
never the image.
"""

import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import safetensors.numpy
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from medmerge import files
from medmerge.study import features, records, revisits
from medmerge.study import run as study
from medmerge.study.inputs import home
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.records import Record, RecordError
from medmerge.training import prepare

log = logging.getLogger(__name__)

CHANNELS, KERNELS, SLICES = 6, 4, 8
"""Feature maps of a level, kernels of the deeper layer, and input channels of each of these, that are shown."""

IMAGES, BATCH, SIDE = 64, 16, 64
"""Test images whose maps are compared, images at a time, and pixels that a kept map measures at most."""

_STRICT = ConfigDict(extra="forbid", frozen=True)
_Name = Annotated[str, Field(min_length=1)]
_Count = Annotated[int, Field(ge=1)]


class Layer(BaseModel):
    """A layer, the kernels of it that are shown from the highest w to the lowest, and the size of what is shown.

    Attributes:
        kernels: number of kernels.
        shown: indices below it.
        size: of the kernels (height, width), or of a feature map before it is made smaller to be kept.
    """

    model_config = _STRICT
    layer: _Name
    kernels: _Count
    shown: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    size: tuple[_Count, _Count]


class About(BaseModel):
    """What a record is about: the run, the image, the networks in order, the layers.

    Attributes:
        run, network: the run's hash and that of its trained network (empty where its record has none).
        image: id of the sample; images: test images that maps are compared on, the sample first.
    """

    model_config = _STRICT
    format: Literal[1] = 1
    run: _Name
    network: str
    label: _Name
    seed: int
    backbone: _Name
    image_size: _Count
    dataset: _Name
    image: _Name
    images: _Count
    networks: Annotated[list[_Name], Field(min_length=3)]
    first: Layer
    deeper: Layer
    low: Layer
    high: Layer
    provenance: dict


@dataclass(frozen=True)
class Found:
    """A record of features.

    Attributes:
        about: what it is about.
        arrays: ``maps/<level>`` float16 ``[networks, shown, h, w]`` within -1 and 1, over ``scale/<level>`` float32
            ``[shown]``; ``correlation/<level>`` float32 ``[images, pairs of networks]``
            (:func:`medmerge.study.features.correlation`); ``filters`` float16 ``[networks, shown, h, w, 3]``
            (:func:`medmerge.study.features.filters`); ``slices`` float16 ``[networks, shown, s, h, w]``
            (:func:`medmerge.study.features.slices`); ``kernels/first`` and the like float32 ``[kernels, columns]``; of
            drawn images ``image``, uint8 ``[S, S, 3]``.
    """

    about: About
    arrays: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        """Raises ValueError unless the arrays are those that ``about`` asks for."""
        about, networks = self.about, len(self.about.networks)
        pairs = networks * (networks - 1) // 2
        wanted = {"filters": ("float16", (networks, len(about.first.shown), *about.first.size, 3))}
        wanted["slices"] = ("float16", (networks, len(about.deeper.shown), None, *about.deeper.size))
        for level in ("low", "high"):
            shown = len(getattr(about, level).shown)
            wanted[f"maps/{level}"] = ("float16", (networks, shown, None, None))
            wanted[f"scale/{level}"] = ("float32", (shown,))
            wanted[f"correlation/{level}"] = ("float32", (about.images, pairs))
        for part in ("first", "deeper", "low", "high"):
            one = getattr(about, part)
            wanted[f"kernels/{part}"] = ("float32", (one.kernels, 2 + networks + pairs))
            if max(one.shown) >= one.kernels:
                raise ValueError(f"{part} shows kernel {max(one.shown)} of {one.kernels}")
        if "image" in self.arrays:
            wanted["image"] = ("uint8", (about.image_size, about.image_size, 3))
        if names := wanted.keys() ^ self.arrays.keys():
            raise ValueError(f"arrays differ from those expected in {', '.join(sorted(names))}")
        for name, (dtype, shape) in wanted.items():
            array = self.arrays[name]
            if array.dtype != dtype or not _fits(array.shape, shape):
                raise ValueError(f"{name} is {array.dtype} {list(array.shape)}")
            if name.startswith(("maps", "scale", "filters", "slices")) and not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite")

    def kernels(self, part: str) -> pd.DataFrame:
        """:func:`medmerge.study.features.kernels` of the layer of a part: ``first``, ``deeper``, ``low`` or
        ``high``.
        """
        names = self.about.networks
        columns = ["kernel", "w", *(f"norm {name}" for name in names), *(f"cosine {a} {b}" for a, b in self.pairs)]
        return pd.DataFrame(self.arrays[f"kernels/{part}"], columns=columns).astype({"kernel": int})

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every two of the networks, in order."""
        return list(itertools.combinations(self.about.networks, 2))


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether a shape is the wanted one; None stands for any length but zero."""
    return len(shape) == len(wanted) and all(n and n == (m or n) for n, m in zip(shape, wanted, strict=True))


def path(record: Record) -> Path:
    """Where the features of a run are kept: ``<pair>/features/<backbone>-<row>-seed<k>.safetensors``."""
    backbone, row, seed = record.folder.parts[-3:]
    return record.folder.parents[2] / "features" / f"{backbone}-{row}-{seed}.safetensors"


def choose(p: Parameters) -> Record:
    """The run that a page shows: the first merged one of its study by row and seed, one without settings before others.

    Raises:
        ParameterError: the parameters do not name one study.
        RecordError: it has no merged run.
    """
    if len(p.studies) != 1:
        raise ParameterError(f"studies: a page on features shows one study, pair or pair/backbone, not {p.studies}")
    return records.merged(home() / p.results / p.track, p.studies)[0]


def run(record: Record) -> Found:
    """The features of a run: read where they are kept, else measured and written.

    Raises:
        RecordError, ParameterError, DataError, CheckpointError: as :func:`read` and :func:`measure`.
    """
    if not path(record).is_file():
        log.info("measuring the features of %s, seed %d", record.label, record.run["seed"])
        write(path(record), measure(record))
    return read(record)


def measure(record: Record) -> Found:
    """Compute what a record keeps, from the networks and test images of a run.

    Raises:
        RecordError, ParameterError, DataError, CheckpointError: the networks or the images are not here.
    """
    networks, p = features.networks(record), revisits.parameters(record)
    names, merged = list(networks), networks[features.MERGED]
    levels = features.levels(merged)
    layers = {"first": levels["low"], "deeper": features.deeper_layer(merged), **levels}
    counts = {
        "first": len(record.kernel_weights[layers["first"]]),
        "deeper": KERNELS,
        "low": CHANNELS,
        "high": CHANNELS,
    }
    shown = {part: features.extremes(record.kernel_weights[layer], counts[part]) for part, layer in layers.items()}

    filters = features.filters(networks, layers["first"])
    slices = features.slices(networks, layers["deeper"], shown["deeper"], SLICES)
    arrays = {
        "filters": np.stack([filters[name][shown["first"]] for name in names]).astype(np.float16),
        "slices": np.stack([slices[name] for name in names]).astype(np.float16),
    }
    tables = {part: features.kernels(networks, record.kernel_weights, layer) for part, layer in layers.items()}
    arrays |= {f"kernels/{part}": table.to_numpy(np.float32) for part, table in tables.items()}
    test = study.load_data(p).test
    pixels, _ = test.batch(torch.arange(min(IMAGES, len(test))))
    sizes = {part: merged.get_submodule(layers[part]).kernel_size for part in ("first", "deeper")}
    for level, (maps, correlations) in _maps(networks, levels, pixels).items():
        sizes[level] = maps.shape[-2:]
        arrays |= _kept(level, maps[:, shown[level]]) | {f"correlation/{level}": correlations}
    if p.target_data.startswith("synthetic:"):
        arrays["image"] = pixels[0].permute(1, 2, 0).numpy().copy()
    parts = {
        part: Layer(layer=layers[part], kernels=len(tables[part]), shown=shown[part].tolist(), size=sizes[part])
        for part in layers
    }
    about = About(
        **{"run": record.run["hash"], "network": record.run.get("network", ""), "label": record.label},
        **{"seed": record.run["seed"], "backbone": p.backbone, "image_size": p.image_size, "dataset": p.target_data},
        **{"image": test.ids[0], "images": len(pixels), "networks": names, "provenance": records.provenance()},
        **parts,
    )
    return Found(about, arrays)


def _maps(networks: features.Networks, levels: Mapping[str, str], pixels: torch.Tensor) -> dict[str, tuple]:
    """By level: the first image's maps, float32 ``[networks, C, h, w]``, and correlations ``[images, pairs]``."""
    first, correlations = {}, {level: [] for level in levels}
    for batch in pixels.split(BATCH):
        found = features.maps(networks, prepare(batch), list(levels.values()))
        for level, layer in levels.items():
            maps = [found[name][layer].numpy() for name in networks]
            first.setdefault(level, np.stack([one[0] for one in maps]))
            pairs = [features.correlation(one, other) for one, other in itertools.combinations(maps, 2)]
            correlations[level].append(np.stack(pairs, axis=1))
    return {level: (first[level], np.concatenate(correlations[level]).astype(np.float32)) for level in levels}


def _kept(level: str, maps: np.ndarray) -> dict[str, np.ndarray]:
    """Maps ``[networks, C, h, w]`` made small by averaging, each channel on one scale over the networks."""
    step = -(-max(maps.shape[-2:]) // SIDE)
    small = F.avg_pool2d(torch.from_numpy(maps), step, ceil_mode=True).numpy() if step > 1 else maps
    scale = np.abs(small).max((0, 2, 3))
    scaled = small / np.where(scale, scale, 1)[:, None, None]
    return {f"maps/{level}": scaled.astype(np.float16), f"scale/{level}": scale.astype(np.float32)}


def write(where: Path, found: Found) -> None:
    """Write a record, in one atomic step."""
    arrays = {name: np.ascontiguousarray(array) for name, array in found.arrays.items()}
    files.write(where, safetensors.numpy.save(arrays, {"about": found.about.model_dump_json()}))


def read(record: Record) -> Found:
    """The kept features of a run.

    Raises:
        RecordError: there are none, they cannot be read or do not hold what they should, or are of another run.
    """
    where = path(record)
    if not where.is_file():
        raise RecordError(f"no {where}: run notebooks/features.ipynb where {record.folder} was computed")
    try:
        with safetensors.safe_open(where, framework="numpy") as file:
            about = About.model_validate_json((file.metadata() or {}).get("about", ""))
            found = Found(about, {name: file.get_tensor(name) for name in file.keys()})
    except (SafetensorError, ValidationError, ValueError, TypeError) as error:
        reason = "; ".join(str(error).splitlines()[:3])
        raise RecordError(f"{where} is damaged ({reason}); restore it, or remove it to measure again") from error
    for name, there in (("hash", about.run), ("network", about.network)):
        if there != record.run.get(name, ""):
            raise RecordError(
                f"{where} was measured on another run than {record.folder} holds ({name} {there[:10] or 'none'}, not "
                f"{record.run.get(name, '')[:10] or 'none'}); remove it to measure again"
            )
    return found


def agreement(found: Found) -> pd.DataFrame:
    """How alike the feature maps of two networks are, a row a level and pair.

    Columns: level, layer, channels, positions (such as "16 × 16"), one, other, correlation (of the sample, over all
    channels), low, median, high (quartiles over the images). NaN where maps do not vary over positions.
    """
    rows = []
    for level in ("low", "high"):
        layer, values = getattr(found.about, level), found.arrays[f"correlation/{level}"].astype(np.float64)
        size = f"{layer.size[0]} × {layer.size[1]}"
        for (one, other), column in zip(found.pairs, values.T, strict=True):
            known = column[~np.isnan(column)]
            low, median, high = np.quantile(known, [0.25, 0.5, 0.75]) if len(known) else [np.nan] * 3
            rows.append(
                {"level": level, "layer": layer.layer, "channels": layer.kernels, "positions": size, "one": one}
                | {"other": other, "correlation": column[0], "low": low, "median": median, "high": high}
            )
    return pd.DataFrame(rows)


def summary(found: Found) -> list[str]:
    """Sentences that hold the paper's words on its Fig. 3 against what was measured. Markdown."""
    table, about = agreement(found).set_index(["level", "one", "other"]), found.about
    pairs = [pair for pair in found.pairs if features.MERGED in pair]
    lines = []
    for level, word in (("low", "first"), ("high", "last")):
        each = [
            f"{table.loc[(level, *pair), 'correlation']:.2f} with {next(n for n in pair if n != features.MERGED)} "
            f"(quartiles over {about.images} test images {table.loc[(level, *pair), 'low']:.2f} to "
            f"{table.loc[(level, *pair), 'high']:.2f})"
            for pair in pairs
        ]
        layer = getattr(about, level)
        lines.append(
            f"**{level.title()}-level**, the {word} convolution (`{layer.layer}`, {layer.kernels} channels of "
            f"{layer.size[0]} × {layer.size[1]}): the merged network's maps correlate {' and '.join(each)}."
        )
    low, high = (table.loc[level].loc[pairs, "median"].mean() for level in ("low", "high"))
    if np.isnan(low + high):
        answer = "There is no telling which level changes more: maps of one of them do not vary over positions."
    else:
        answer = (
            f"The median correlation with a source is {low:.2f} at the low level and {high:.2f} at the high one: here "
            f"{'low' if low > high else 'high'}-level features are the ones that the merge changes less, "
            f"{'as' if low > high else 'unlike what'} the paper says."
        )
    one, merged, *others = about.networks
    apart = {level: table.loc[(level, one, others[0]), "median"] for level in ("low", "high")}
    return [
        *lines,
        answer,
        f"That need not come from w: the two sources' own maps correlate {apart['low']:.2f} (low) and "
        f"{apart['high']:.2f} (high), before anything is merged.",
    ]
