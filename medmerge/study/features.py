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

import numpy as np
import pandas as pd
import safetensors.numpy
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from medmerge import files
from medmerge.study import definitions, revisits
from medmerge.study import run as study
from medmerge.study.measured import Measured, Sheet, provenance
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.records import Record, RecordError
from medmerge.training import prepare

MERGED = "merged"
"""Name of the merged network."""

Networks = Mapping[str, nn.Module]
"""Backbones of one architecture by name; see :func:`networks`."""

SHOWN, SLICES = {"deeper": 4, "low": 6, "high": 6}, 8
"""Kernels that are shown of a part (:func:`layers`) where not all are, and input channels of each of the deeper one."""

IMAGES, BATCH, SIDE = 64, 16, 64
"""Test images whose maps are compared, images at a time, and pixels that a kept map measures at most."""


class Layer(Sheet):
    """A layer, the kernels of it that are shown from the highest w to the lowest, and the size of what is shown.

    Attributes:
        kernels: number of kernels.
        shown: indices below it.
        size: of the kernels (height, width), or of a feature map before it is made smaller to be kept.
    """

    layer: str
    kernels: int
    shown: list[int]
    size: tuple[int, int]


class About(Sheet):
    """What a record is about: the run, the image, the networks in order, the layers.

    Attributes:
        run, network: the run's hash and that of its trained network (empty where its record has none).
        image: id of the sample; images: test images that maps are compared on, the sample first.
    """

    run: str
    network: str
    label: str
    seed: int
    backbone: str
    image_size: int
    dataset: str
    image: str
    images: int
    networks: list[str]
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
            ``[shown]``; ``correlation/<level>`` float32 ``[images, pairs of networks]`` (:func:`correlation`);
            ``filters`` float16 ``[networks, shown, h, w, 3]``, the first layer's kernels as pictures within 0 and 1,
            where 0.5 is a weight of zero; ``slices`` float16 ``[networks, shown, s, h, w]`` (:func:`slices`);
            ``kernels/first`` and the like float32 ``[kernels, columns]``; of drawn images ``image``, uint8
            ``[S, S, 3]``.
    """

    about: About
    arrays: Mapping[str, np.ndarray]

    def kernels(self, part: str) -> pd.DataFrame:
        """:func:`kernels` of the layer of a part: ``first``, ``deeper``, ``low`` or ``high``."""
        names = self.about.networks
        columns = ["kernel", "w", *(f"norm {name}" for name in names), *(f"cosine {a} {b}" for a, b in self.pairs)]
        return pd.DataFrame(self.arrays[f"kernels/{part}"], columns=columns).astype({"kernel": int})

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every two of the networks, in order."""
        return list(itertools.combinations(self.about.networks, 2))


def networks(record: Record) -> dict[str, nn.Module]:
    """The backbones of a merged run, in eval mode on the CPU.

    Returns:
        The first source, ``"merged"`` (the merge as its linear probe left it, folded), the further sources; each source
        as it was merged: aligned where the run did so, and ``"zeros"`` where one was merged with zeros.

    Raises:
        RecordError: what the run's probe learnt is not here, its sources are others here, or one is named as these are.
        ParameterError, CheckpointError: its sources or images are not here.
    """
    merging, (first, *others) = revisits.merged_classifier(record)
    name, *names = record.run["row"]["sources"]
    found = {name: first, MERGED: merging.backbone.eval().fold(), **dict(zip(names or ["zeros"], others, strict=True))}
    if len(found) < 2 + len(others):
        raise RecordError(f"{record.folder}: rename the source that is called {MERGED} or zeros, as networks here are")
    return {key: network.eval() for key, network in found.items()}


def layers(network: nn.Module) -> dict[str, str]:
    """The convolutions that are shown, by part.

    ``low`` and ``high`` stand for low- and high-level features, whose layers the paper does not name: the first
    convolution and the last, which exist in every architecture and are nearest to the image and to the pooled features;
    their outputs are taken before normalisation. ``first`` is the first one's kernels, ``deeper`` those of the middle
    one of all after the first that see more than one position.

    Raises:
        ParameterError: there are fewer than two convolutions.
    """
    found = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    first, *after = found
    if not after:
        raise ParameterError("studies: low- and high-level features take two convolutions; this network has one")
    wide = [name for name in after if max(found[name].kernel_size) > 1] or after
    return {"first": first, "deeper": wide[(len(wide) - 1) // 2], "low": first, "high": after[-1]}


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


def cosines(one: NDArray, other: NDArray) -> NDArray[np.float64]:
    """Cosine of each row of ``[rows, ...]`` with the other's, NaN where either is zero."""
    one, other = (np.asarray(values, np.float64).reshape(len(values), -1) for values in (one, other))
    with np.errstate(invalid="ignore"):
        return (one * other).sum(1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))


def kernels(networks: Networks, w: ArrayLike, layer: str) -> pd.DataFrame:
    """A row a kernel of a layer: its w, its norm in every network, and cosines between networks.

    Args:
        w: the first source's merging weights of the layer, ``[kernels]``.

    Returns:
        Columns kernel, w; ``norm <name>``, the Euclidean norm of ``weight[kernel]`` without its bias; and
        ``cosine <one> <other>`` for every two networks in order, NaN where a kernel is zero. Computed in float64.
    """
    weights = _weights(networks, layer)
    norms = {f"norm {name}": np.linalg.norm(one.reshape(len(one), -1), axis=1) for name, one in weights.items()}
    pairs = itertools.combinations(weights, 2)
    alike = {f"cosine {one} {other}": cosines(weights[one], weights[other]) for one, other in pairs}
    return pd.DataFrame({"kernel": np.arange(len(w)), "w": np.asarray(w, np.float64), **norms, **alike})


def slices(networks: Networks, layer: str, chosen: Sequence[int], count: int) -> NDArray[np.float64]:
    """A few input channels of a few kernels of a layer, on one scale for all networks.

    Args:
        chosen: the kernels.
        count: input channels of each: those with the largest sum of squared weights over the networks, in their order.

    Returns:
        ``[networks, len(chosen), count, h, w]`` within -1 and 1, fewer where the layer has fewer input channels.
    """
    weights = np.stack([weight[list(chosen)] for weight in _weights(networks, layer).values()])
    size = (weights**2).sum((0, 3, 4))
    strongest = np.sort(np.argsort(-size, axis=1, kind="stable")[:, :count], axis=1)
    found = weights[:, np.arange(len(strongest))[:, None], strongest]
    return found / (np.abs(found).max() or 1.0)


def _weights(networks: Networks, layer: str) -> dict[str, NDArray[np.float64]]:
    return {name: network.get_submodule(layer).weight.detach().double().numpy() for name, network in networks.items()}


@torch.no_grad()
def maps(network: nn.Module, images: Tensor, layer: str) -> Tensor:
    """What a module gives for images, before anything that follows works on it in place; it is called once.

    Args:
        images: prepared (:func:`medmerge.samples.prepare`), float32 ``[B, 3, H, W]``, on the network's device.

    Returns:
        Of a convolution float32 ``[B, C, h, w]``.
    """
    found: list[Tensor] = []
    hook = network.get_submodule(layer).register_forward_hook(lambda _, inputs, output: found.append(output.clone()))
    network(images)
    hook.remove()
    return found[0]


def correlation(one: NDArray, other: NDArray) -> NDArray[np.float64]:
    """Pearson correlation of two networks' feature maps over all positions of all channels, for each image.

    Each channel is centred on its own mean over the positions first, so that it is about where features are, and not
    about which channels are large everywhere.

    Args:
        one, other: ``[B, C, h, w]``.

    Returns:
        ``[B]``; NaN where one of them does not vary over positions, such as at 1 × 1.
    """
    one, other = (np.asarray(values, np.float64) for values in (one, other))
    return cosines(*(values - values.mean((2, 3), keepdims=True) for values in (one, other)))


def measure(record: Record) -> Found:
    """Compute what a record keeps, from the networks and test images of a run.

    Raises:
        RecordError, ParameterError, DataError, CheckpointError: the networks or the images are not here.
    """
    merged_with, p, w = networks(record), revisits.parameters(record), record.kernel_weights
    merged, test = merged_with[MERGED], study.load_data(p).test
    pixels, _ = test.batch(torch.arange(min(IMAGES, len(test))))
    chosen = layers(merged)
    shown = {part: extremes(w[layer], SHOWN.get(part, len(w[layer]))) for part, layer in chosen.items()}
    sizes = {part: merged.get_submodule(layer).kernel_size for part, layer in chosen.items()}

    pictures = slices(merged_with, chosen["first"], shown["first"], 3).transpose(0, 1, 3, 4, 2)
    inner = slices(merged_with, chosen["deeper"], shown["deeper"], SLICES)
    arrays = {"filters": (0.5 + pictures / 2).astype(np.float16), "slices": inner.astype(np.float16)}
    for part, layer in chosen.items():
        arrays[f"kernels/{part}"] = kernels(merged_with, w[layer], layer).to_numpy(np.float32)
    for level in ("low", "high"):
        each, arrays[f"correlation/{level}"] = _compared(merged_with, chosen[level], pixels)
        sizes[level] = each.shape[-2:]
        arrays |= _kept(level, each[:, shown[level]])
    if p.target_data.startswith("synthetic:"):
        arrays["image"] = pixels[0].permute(1, 2, 0).numpy()

    about = About(
        run=record.run["hash"],
        network=record.run.get("network", ""),
        label=record.label,
        seed=record.run["seed"],
        backbone=p.backbone,
        image_size=p.image_size,
        dataset=p.target_data,
        image=test.ids[0],
        images=len(pixels),
        networks=list(merged_with),
        provenance=provenance(),
        **{
            part: Layer(layer=layer, kernels=len(w[layer]), shown=shown[part].tolist(), size=sizes[part])
            for part, layer in chosen.items()
        },
    )
    return Found(about, arrays)


def _compared(networks: Networks, layer: str, pixels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The first image's maps of a layer, float32 ``[networks, C, h, w]``, and correlations ``[images, pairs]``."""
    first, correlations = [], []
    for batch in pixels.split(BATCH):
        found = [maps(network, prepare(batch), layer).numpy() for network in networks.values()]
        first.append(np.stack([one[0] for one in found]))
        correlations.append(np.stack([correlation(a, b) for a, b in itertools.combinations(found, 2)], axis=1))
    return first[0], np.concatenate(correlations).astype(np.float32)


def _kept(level: str, maps: np.ndarray) -> dict[str, np.ndarray]:
    """Maps ``[networks, C, h, w]`` made small by averaging, each channel on one scale over the networks."""
    step = -(-max(maps.shape[-2:]) // SIDE)
    small = F.avg_pool2d(torch.from_numpy(maps), step, ceil_mode=True).numpy()
    scale = np.abs(small).max((0, 2, 3))
    scaled = small / np.where(scale, scale, 1)[:, None, None]
    return {f"maps/{level}": scaled.astype(np.float16), f"scale/{level}": scale.astype(np.float32)}


def choose(p: Parameters) -> Record:
    """The run that a page shows: the first merged one of its study by row and seed, one without settings before others.

    Raises:
        ParameterError: the parameters do not name one study.
        RecordError: it has no merged run.
    """
    if len(p.studies) != 1:
        raise ParameterError(f"studies: a page on features shows one study, pair or pair/backbone, not {p.studies}")
    return definitions.check(p)[0]


check = choose


def sheet(record: Record) -> Measured[Found]:
    """The record of a run's features, ``<pair>/features/<backbone>-<row>-seed<k>.safetensors``."""
    name = f"{'-'.join(record.folder.parts[-3:])}.safetensors"
    return Measured(
        where=lambda p: record.folder.parents[2] / "features" / name,
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


def run(p: Parameters) -> Found:
    """The features of the run that a page shows; what is raised is raised by :func:`choose` and :func:`measure`."""
    return sheet(choose(p)).run(p)


def _save(path: Path, found: Found) -> None:
    arrays = {name: np.ascontiguousarray(array) for name, array in found.arrays.items()}
    files.write(path, safetensors.numpy.save(arrays, {"about": found.about.model_dump_json()}))


def _load(path: Path) -> Found:
    with safetensors.safe_open(path, framework="numpy") as file:
        about = About.model_validate_json(file.metadata()["about"])
        return Found(about, {name: file.get_tensor(name) for name in file.keys()})
