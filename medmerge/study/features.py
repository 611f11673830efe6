"""What a merged run's networks look like inside: kernels beside their sources', and feature maps (paper, Fig. 3).

Networks come in the order first source, merged, further sources, so that the merged one stands between two. Channel j
of a convolution's output is what its kernel j made, so that a feature map and a merging weight w belong together.

``results/<track>/<pair>/features/<backbone>-<row>-seed<k>.safetensors`` rebuilds the page without networks or images.
The sample is the first test image of the split: nothing is chosen by how it looks. Of real images only maps are kept,
never the image.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import safetensors.numpy
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medmerge import files
from medmerge.study import merges, records, revisits
from medmerge.study import run as study
from medmerge.study.measured import Measured
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.records import Record, RecordError
from medmerge.training import prepare

MERGED = "merged"
"""Name of the merged network."""

Networks = Mapping[str, nn.Module]
"""Backbones of one architecture by name; see :func:`networks`."""


def networks(record: Record) -> dict[str, nn.Module]:
    """The backbones of a merged run, in eval mode on the CPU.

    Returns:
        The first source, ``"merged"`` (the merge as its linear probe left it, folded), the further sources; each source
        as it was merged: aligned where the run did so, and ``"zeros"`` where one was merged with zeros.

    Raises:
        RecordError: the run merged nothing, what its probe learnt is not here, or its sources are others here.
        ParameterError, CheckpointError: its sources or images are not here.
    """
    if not record.kernel_weights:
        raise RecordError(f"{record.folder} holds no merging weights: give the record of a run that learnt a merge")
    merging, (first, *others) = revisits.merged_classifier(record)
    name, *names = record.run["row"]["sources"]
    names = names or ["zeros"]
    if len({name, MERGED, *names}) < 2 + len(names):
        raise RecordError(f"{record.folder}: sources {name}, {', '.join(names)} and {MERGED!r} must have names apart")
    found = {name: first, MERGED: merging.backbone.eval().fold(), **dict(zip(names, others, strict=True))}
    return {key: network.eval() for key, network in found.items()}


def convolutions(network: nn.Module) -> list[str]:
    """Names of the two-dimensional convolutions, in the network's order."""
    return [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]


def levels(network: nn.Module) -> dict[str, str]:
    """The layers that stand for low- and high-level features: the first and the last convolution.

    The paper does not say which layers its Fig. 3 shows. These exist in every architecture and are the convolutions
    nearest to the image and to the pooled features; their outputs are taken before normalisation.

    Raises:
        ValueError: there are fewer than two convolutions.
    """
    names = convolutions(network)
    if len(names) < 2:
        raise ValueError(f"the network has {len(names)} convolutions; low- and high-level features take two at least")
    return {"low": names[0], "high": names[-1]}


def deeper_layer(network: nn.Module) -> str:
    """The middle one of the convolutions after the first that see more than one position, or of all after the first."""
    after = convolutions(network)[1:]
    wide = [name for name in after if max(network.get_submodule(name).kernel_size) > 1] or after
    if not wide:
        raise ValueError("the network has no convolution after the first")
    return wide[(len(wide) - 1) // 2]


def extremes(w: ArrayLike, count: int) -> NDArray[np.int64]:
    """Indices of the kernels that lean furthest to either source: half of the highest w, then half of the lowest.

    Args:
        w: merging weights of a layer, ``[kernels]``.
        count: how many; all kernels where there are fewer. Of an odd count the highest w have one more.

    Returns:
        From the highest w to the lowest; of equal ones the lower index comes first.
    """
    order = np.argsort(-np.asarray(w), kind="stable")
    if len(order) <= count:
        return order
    low = count // 2
    return np.concatenate([order[: count - low], order[len(order) - low :]])


def kernels(networks: Networks, weights: Mapping[str, ArrayLike], layer: str) -> pd.DataFrame:
    """A row a kernel of a layer: its w, its norm in every network, and cosines between networks.

    Args:
        weights: the first source's w by layer, ``[kernels]``, such as a record's.

    Returns:
        Columns kernel, w; ``norm <name>``, the Euclidean norm of ``weight[kernel]`` without its bias; and
        ``cosine <one> <other>`` for every two networks in order, NaN where a kernel is zero. Computed in float64.

    Raises:
        KeyError: there is no such layer in ``weights``.
    """
    flat = {name: weight.reshape(len(weight), -1) for name, weight in _weights(networks, layer).items()}
    table = {"kernel": np.arange(len(next(iter(flat.values())))), "w": np.asarray(weights[layer], np.float64)}
    norms = {name: np.linalg.norm(rows, axis=1) for name, rows in flat.items()}
    table |= {f"norm {name}": norm for name, norm in norms.items()}
    for one, other in itertools.combinations(flat, 2):
        with np.errstate(invalid="ignore"):
            table[f"cosine {one} {other}"] = (flat[one] * flat[other]).sum(1) / (norms[one] * norms[other])
    return pd.DataFrame(table)


def filters(networks: Networks, layer: str) -> dict[str, NDArray[np.float64]]:
    """The kernels of a layer that sees colours, as pictures on one scale for all networks.

    Returns:
        By network ``[kernels, h, w, 3]`` within 0 and 1: 0.5 is a weight of zero, and the weight of the largest
        magnitude in any of the networks is 0 or 1.

    Raises:
        ValueError: the layer does not have three input channels.
    """
    weights = _weights(networks, layer)
    if (inputs := next(iter(weights.values())).shape[1]) != 3:
        raise ValueError(f"{layer} has kernels of {inputs} input channels; only of 3, colours, are they pictures")
    return {name: 0.5 + weight.transpose(0, 2, 3, 1) / 2 for name, weight in _on_one_scale(weights).items()}


def slices(networks: Networks, layer: str, chosen: Sequence[int], count: int) -> dict[str, NDArray[np.float64]]:
    """A few input channels of a few kernels of any layer, on one scale for all networks.

    Args:
        chosen: the kernels.
        count: input channels of each: those with the largest sum of squared weights over the networks, in their order.

    Returns:
        By network ``[len(chosen), count, h, w]`` within -1 and 1, fewer where the layer has fewer input channels.
    """
    weights = {name: weight[list(chosen)] for name, weight in _weights(networks, layer).items()}
    size = sum((weight**2).sum((2, 3)) for weight in weights.values())
    strongest = np.sort(np.argsort(-size, axis=1, kind="stable")[:, :count], axis=1)
    rows = np.arange(len(strongest))[:, None]
    return _on_one_scale({name: weight[rows, strongest] for name, weight in weights.items()})


def maps(networks: Networks, images: Tensor, layers: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """What named modules give for images, in eval mode and float32. Modes and gradients are left as they were.

    Args:
        images: prepared (:func:`medmerge.samples.prepare`), float32 ``[B, 3, H, W]``, on the networks' device.
        layers: names of modules that every network has and calls once.

    Returns:
        By network and layer, float32 ``[B, C, h, w]`` for a convolution.

    Raises:
        AttributeError: there is no such module.
    """
    return {name: _outputs(network, images, layers) for name, network in networks.items()}


def _outputs(network: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    modes, found = {module: module.training for module in network.modules()}, {}

    def keep(layer: str):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            found[layer] = output.detach().clone()  # what follows may work in place, as VGG's ReLU does

        return hook

    handles = [network.get_submodule(layer).register_forward_hook(keep(layer)) for layer in layers]
    try:
        network.eval()
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            network(images)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return {layer: found[layer] for layer in layers}


def correlation(one: ArrayLike, other: ArrayLike) -> NDArray[np.float64]:
    """Pearson correlation of two networks' feature maps over all positions of all channels, for each image.

    Each channel is centred on its own mean over the positions first, so that it is about where features are, and not
    about which channels are large everywhere.

    Args:
        one, other: ``[B, C, h, w]``.

    Returns:
        ``[B]``; NaN where one of them does not vary over positions, such as at 1 × 1.
    """
    if np.shape(one) != np.shape(other) or np.ndim(one) != 4:
        raise ValueError(f"maps of shapes {list(np.shape(one))} and {list(np.shape(other))}: give two of [B, C, h, w]")
    one, other = (np.asarray(values, np.float64) for values in (one, other))
    one, other = (values - values.mean((2, 3), keepdims=True) for values in (one, other))
    product, *squares = ((a * b).sum((1, 2, 3)) for a, b in ((one, other), (one, one), (other, other)))
    with np.errstate(invalid="ignore"):
        return product / np.sqrt(squares[0] * squares[1])


def _weights(networks: Networks, layer: str) -> dict[str, NDArray[np.float64]]:
    return {name: network.get_submodule(layer).weight.detach().double().numpy() for name, network in networks.items()}


def _on_one_scale(weights: Mapping[str, NDArray]) -> dict[str, NDArray[np.float64]]:
    """Divided by the largest magnitude of all."""
    largest = max(np.abs(weight).max(initial=0) for weight in weights.values()) or 1.0
    return {name: weight / largest for name, weight in weights.items()}


CHANNELS, KERNELS, SLICES = 6, 4, 8
"""Feature maps of a level, kernels of the deeper layer, and input channels of each of these, that are shown."""

IMAGES, BATCH, SIDE = 64, 16, 64
"""Test images whose maps are compared, images at a time, and pixels that a kept map measures at most."""

_Name = Annotated[str, Field(min_length=1)]
_Count = Annotated[int, Field(ge=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Layer(_Part):
    """A layer, the kernels of it that are shown from the highest w to the lowest, and the size of what is shown.

    Attributes:
        kernels: number of kernels.
        shown: indices below it.
        size: of the kernels (height, width), or of a feature map before it is made smaller to be kept.
    """

    layer: _Name
    kernels: _Count
    shown: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    size: tuple[_Count, _Count]


class About(_Part):
    """What a record is about: the run, the image, the networks in order, the layers.

    Attributes:
        run, network: the run's hash and that of its trained network (empty where its record has none).
        image: id of the sample; images: test images that maps are compared on, the sample first.
    """

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
            (:func:`correlation`); ``filters`` float16 ``[networks, shown, h, w, 3]``
            (:func:`filters`); ``slices`` float16 ``[networks, shown, s, h, w]``
            (:func:`slices`); ``kernels/first`` and the like float32 ``[kernels, columns]``; of
            drawn images ``image``, uint8 ``[S, S, 3]``.
    """

    about: About
    arrays: Mapping[str, np.ndarray]

    def kernels(self, part: str) -> pd.DataFrame:
        """:func:`kernels` of the layer of a part: ``first``, ``deeper``, ``low`` or
        ``high``.
        """
        names = self.about.networks
        columns = ["kernel", "w", *(f"norm {name}" for name in names), *(f"cosine {a} {b}" for a, b in self.pairs)]
        return pd.DataFrame(self.arrays[f"kernels/{part}"], columns=columns).astype({"kernel": int})

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every two of the networks, in order."""
        return list(itertools.combinations(self.about.networks, 2))


def choose(p: Parameters) -> Record:
    """The run that a page shows: the first merged one of its study by row and seed, one without settings before others.

    Raises:
        ParameterError: the parameters do not name one study.
        RecordError: it has no merged run.
    """
    if len(p.studies) != 1:
        raise ParameterError(f"studies: a page on features shows one study, pair or pair/backbone, not {p.studies}")
    return merges.check(p)[0]


def path(record: Record) -> Path:
    """Where the features of a run are kept: ``<pair>/features/<backbone>-<row>-seed<k>.safetensors``."""
    backbone, row, seed = record.folder.parts[-3:]
    return record.folder.parents[2] / "features" / f"{backbone}-{row}-{seed}.safetensors"


def sheet(record: Record) -> Measured[Found]:
    """The record of a run's features."""
    return Measured(
        where=lambda p: path(record),
        asked=lambda p: {"run": record.run["hash"], "network": record.run.get("network", "")},
        measure=lambda p: measure(record),
        definition=lambda found: vars(found.about),
        load=_load,
        save=_save,
    )


def state(p: Parameters) -> dict[str, Path | None]:
    """The record by name, and where it is, or None where it or its run is not there.

    Raises:
        RecordError: it is damaged, or was measured on another run.
    """
    try:
        record = choose(p)
    except RecordError:
        return {f"features of {p.studies[0]}": None}
    return {f"features of {record.label}": sheet(record).state(p)}


def check(p: Parameters) -> None:
    """Refuse a page whose study has no merged run.

    Raises:
        ParameterError, RecordError: as :func:`choose`.
    """
    choose(p)


def run(p: Parameters) -> Found:
    """The features of the run that a page shows: read where they are kept, else measured and written.

    Raises:
        RecordError, ParameterError, DataError, CheckpointError: as :func:`choose` and :func:`measure`.
    """
    return sheet(choose(p)).ensure(p)


def measure(record: Record) -> Found:
    """Compute what a record keeps, from the networks and test images of a run.

    Raises:
        RecordError, ParameterError, DataError, CheckpointError: the networks or the images are not here.
    """
    merged_with, p = networks(record), revisits.parameters(record)
    names, merged = list(merged_with), merged_with[MERGED]
    both = levels(merged)
    layers = {"first": both["low"], "deeper": deeper_layer(merged), **both}
    counts = {
        "first": len(record.kernel_weights[layers["first"]]),
        "deeper": KERNELS,
        "low": CHANNELS,
        "high": CHANNELS,
    }
    shown = {part: extremes(record.kernel_weights[layer], counts[part]) for part, layer in layers.items()}

    colours = filters(merged_with, layers["first"])
    inner = slices(merged_with, layers["deeper"], shown["deeper"], SLICES)
    arrays = {
        "filters": np.stack([colours[name][shown["first"]] for name in names]).astype(np.float16),
        "slices": np.stack([inner[name] for name in names]).astype(np.float16),
    }
    tables = {part: kernels(merged_with, record.kernel_weights, layer) for part, layer in layers.items()}
    arrays |= {f"kernels/{part}": table.to_numpy(np.float32) for part, table in tables.items()}
    test = study.load_data(p).test
    pixels, _ = test.batch(torch.arange(min(IMAGES, len(test))))
    sizes = {part: merged.get_submodule(layers[part]).kernel_size for part in ("first", "deeper")}
    for level, (each, correlations) in _maps(merged_with, both, pixels).items():
        sizes[level] = each.shape[-2:]
        arrays |= _kept(level, each[:, shown[level]]) | {f"correlation/{level}": correlations}
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


def _maps(networks: Networks, levels: Mapping[str, str], pixels: torch.Tensor) -> dict[str, tuple]:
    """By level: the first image's maps, float32 ``[networks, C, h, w]``, and correlations ``[images, pairs]``."""
    first, correlations = {}, {level: [] for level in levels}
    for batch in pixels.split(BATCH):
        found = maps(networks, prepare(batch), list(levels.values()))
        for level, layer in levels.items():
            each = [found[name][layer].numpy() for name in networks]
            first.setdefault(level, np.stack([one[0] for one in each]))
            pairs = [correlation(one, other) for one, other in itertools.combinations(each, 2)]
            correlations[level].append(np.stack(pairs, axis=1))
    return {level: (first[level], np.concatenate(correlations[level]).astype(np.float32)) for level in levels}


def _kept(level: str, maps: np.ndarray) -> dict[str, np.ndarray]:
    """Maps ``[networks, C, h, w]`` made small by averaging, each channel on one scale over the networks."""
    step = -(-max(maps.shape[-2:]) // SIDE)
    small = F.avg_pool2d(torch.from_numpy(maps), step, ceil_mode=True).numpy() if step > 1 else maps
    scale = np.abs(small).max((0, 2, 3))
    scaled = small / np.where(scale, scale, 1)[:, None, None]
    return {f"maps/{level}": scaled.astype(np.float16), f"scale/{level}": scale.astype(np.float32)}


def _save(path: Path, found: Found) -> None:
    arrays = {name: np.ascontiguousarray(array) for name, array in found.arrays.items()}
    files.write(path, safetensors.numpy.save(arrays, {"about": found.about.model_dump_json()}))


def _load(path: Path) -> Found:
    with safetensors.safe_open(path, framework="numpy") as file:
        about = About.model_validate_json((file.metadata() or {}).get("about", ""))
        return Found(about, {name: file.get_tensor(name) for name in file.keys()})
