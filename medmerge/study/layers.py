"""The layers of a merged network in words: shape, kind and place of each, for pages and the explorer."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import nn

from medmerge import backbones
from medmerge.sources import kernel_layers

_BLOCKS = {"denseblock": "dense block", "transition": "transition", "layer": "layer", "encoder_layer_": "layer"}

Modules = Mapping[str, tuple[nn.Module, torch.Size]]
"""Layers by name, with the shape of their weight."""


@dataclass(frozen=True)
class Layer:
    """A merged layer.

    Attributes:
        name: as in the backbone.
        kernels: how many it has.
        shape: of its weight, such as ``"64 × 3 × 7 × 7"``; empty where the architecture is not known.
        kind: in words, such as ``"7×7 convolution"``; likewise.
        block: the part of the network that it belongs to, such as ``"dense block 1"``.
    """

    name: str
    kernels: int
    shape: str = ""
    kind: str = ""
    block: str = ""


def layers(weights: Mapping[str, ArrayLike], backbone: str = "", modules: Modules | None = None) -> list[Layer]:
    """The layers of merging weights ``{layer: w}``, w of ``[kernels]``, in their order.

    Args:
        backbone: a known architecture, which gives shapes and kinds.
        modules: those of a network that is at hand, in its place.
    """
    modules = architecture(backbone) if modules is None else modules
    return [
        Layer(name, len(w), *(_described(*modules[name]) if name in modules else ("", "")), _block(name))
        for name, w in weights.items()
    ]


def modules_of(network: nn.Module) -> Modules:
    """A network's layers that have kernels."""
    return {layer.name: (layer.module, getattr(layer.module, layer.weight).shape) for layer in kernel_layers(network)}


@functools.cache
def architecture(backbone: str) -> Modules:
    """The same of a known architecture, made without memory for its weights; none of an unknown one."""
    if backbone not in backbones.names():
        return {}
    with torch.device("meta"):
        return modules_of(backbones.backbone(backbone, "random"))


def _described(module: nn.Module, shape: torch.Size) -> tuple[str, str]:
    text = " × ".join(map(str, shape))
    if isinstance(module, (nn.Linear, nn.MultiheadAttention)):
        return text, "linear"
    size = "×".join(map(str, module.kernel_size))
    grouped = "" if module.groups == 1 else "depthwise " if module.groups == module.in_channels else "grouped "
    return text, f"{size} {grouped}convolution"


def _block(name: str) -> str:
    if found := re.search(r"(?:^|\.)(denseblock|transition|layer|encoder_layer_)(\d+)(?:\.|$)", name):
        return f"{_BLOCKS[found[1]]} {found[2]}"
    if found := re.match(r"features\.(\d+)\.", name):
        return f"features {found[1]}"
    return "stem"
