"""The layers of a merged network in words: shape, kind and place of each, for pages and the explorer."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import nn

from medmerge import backbones
from medmerge.kernels import split_attention

_BLOCKS = {"denseblock": "dense block", "transition": "transition", "layer": "layer", "encoder_layer_": "layer"}

Modules = Mapping[str, tuple[nn.Module, torch.Size]]
"""Modules that hold a weight, by name, with its shape."""


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
    modules = _modules(backbone) if modules is None else modules
    return [
        Layer(name, len(w), *(_described(*modules[name]) if name in modules else ("", "")), _block(name))
        for name, w in weights.items()
    ]


@functools.cache
def _modules(backbone: str) -> Modules:
    """A known architecture's, made without memory for the weights; none of an unknown one."""
    if backbone not in backbones.names():
        return {}
    with torch.device("meta"):
        model = split_attention(backbones.backbone(backbone, "random"))
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    return {name: (m, m.weight.shape) for name, m in model.named_modules() if isinstance(m, kinds)}


def _described(module: nn.Module, shape: torch.Size) -> tuple[str, str]:
    text = " × ".join(map(str, shape))
    if isinstance(module, nn.Linear):
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
