"""torchvision's classifiers as feature extractors, and their checkpoints.

A backbone is a torchvision network without its classification head (the paper's B of section 2): ``forward`` maps
images ``[N, 3, H, W]`` to features ``[N, num_features]``. Its state dict keeps torchvision's names.
"""

import difflib
import functools
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision.models
from torch import Tensor, nn
from torchvision.models import DenseNet, SwinTransformer, VisionTransformer, WeightsEnum
from torchvision.models.vision_transformer import interpolate_embeddings

from medmerge import weightfiles
from medmerge.merge import zeros_like
from medmerge.weightfiles import CheckpointError
from medmerge.weightfiles import read_state as read_state
from medmerge.weightfiles import state_sha256 as state_sha256

log = logging.getLogger(__name__)

SMALL: dict[str, tuple[Any, dict[str, Any]]] = {
    "densenet_small": (DenseNet, dict(growth_rate=12, block_config=(3, 3, 3), num_init_features=24, bn_size=2)),
    "vit_mini": (VisionTransformer, dict(patch_size=8, num_layers=3, num_heads=4, hidden_dim=48, mlp_dim=96)),
    "swin_mini": (SwinTransformer, dict(patch_size=[4, 4], embed_dim=24, depths=[2, 2], num_heads=[2, 4])),
}
SMALL["swin_mini"][1].update(window_size=[4, 4], mlp_ratio=2.0, stochastic_depth_prob=0.0)
"""Networks of our own for tests and the demo: torchvision's DenseNet, ViT and Swin, smaller."""

IMAGE_SIZE = 224
"""Side in pixels that a ViT is built for where none is given."""

_RECOGNISED = ("resnet", "resnext", "wide_resnet", "densenet")
NAME, MERGE, TRANSFORMS = "medmerge.backbone", "medmerge.merge", "medmerge.transform_input"
"""What the headers of our own files say: the architecture, a merge's options, and whether inputs are transformed."""


class Classifier(nn.Module):
    """A backbone with one linear layer on its features (the paper's H after B, section 2).

    Args:
        backbone: maps ``[N, 3, H, W]`` to ``[N, num_features]`` and states ``num_features``.
        num_classes: width of the output.

    ``forward`` returns logits ``[N, num_classes]``.
    """

    def __init__(self, backbone: nn.Module, num_classes: int):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(int(backbone.num_features), num_classes)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of images ``[N, 3, H, W]``."""
        return self.head(self.backbone(x))


def names() -> list[str]:
    """Every architecture that :func:`backbone` knows."""
    known = torchvision.models.list_models(module=torchvision.models)
    return sorted([*SMALL, *(name for name in known if not name.startswith("maxvit"))])


def backbone(
    name: str, weights: str | Path | Mapping[str, object] | WeightsEnum = "imagenet", image_size: int | None = None
) -> nn.Module:
    """A torchvision network without its classification head.

    The head is the last linear layer with the dropout right before it (for SqueezeNet, the last convolution).

    Args:
        name: an architecture of :func:`names`, such as ``"densenet121"``, ``"resnet50"``, ``"swin_t"``.
        weights: ``"imagenet"`` (torchvision's IMAGENET1K_V1) or another member of its weights enum, by name or itself;
            ``"random"`` (torchvision's initialisation, from the global random state); ``"zeros"`` (all kernels zero,
            :func:`~medmerge.merge.zeros_like`); or a file or a state dict that holds such a network somewhere, with
            any head or none (:mod:`medmerge.weightfiles`). timm's ResNet, DenseNet and Inception are torchvision's.
        image_size: side of the images in pixels, for a ViT, which has a position embedding a patch; by default
            :data:`IMAGE_SIZE`. Embeddings of weights for another size are interpolated (bicubic; Dosovitskiy et al.
            2021, section 3.2). All other networks take any size and ignore it.

    Returns:
        The module in eval mode, with the attribute ``num_features``. ``transform_input`` of GoogLeNet and Inception
        is on for torchvision's ImageNet weights, which were trained so, and for what was made of them here; else off.

    Raises:
        ValueError: an unknown architecture or weights name (the nearest known one is given), or an image size that
            the architecture cannot take.
        FileNotFoundError: the file is not there.
        CheckpointError: the file is damaged, holds code, or does not fit the architecture, whose name is then given
            where it is a ResNet or a DenseNet.
        ConnectionError: torchvision's weights are not on this machine and cannot be downloaded.
    """
    if not isinstance(name, str) or (name not in names() and (is_path(name) or weights in names())):
        raise ValueError(f'{str(name)[:80]!r} is no architecture, which comes first: backbone("resnet18", weights=...)')
    check_name(name)
    size = IMAGE_SIZE if image_size is None else image_size
    check_image_size(name, size)
    model = _headless(name, size)
    if isinstance(weights, Mapping):
        _fill(model, weightfiles.flat(weights, "weights"), "the state dict")
    elif is_path(weights):
        _load(model, Path(weights).expanduser())
    elif weights == "zeros":
        model = zeros_like(model)
    elif weights != "random":
        _download(model, check_weights(name, weights))
    return model.eval()


def check_name(name: str) -> None:
    """Raise a ValueError unless ``name`` is an architecture of :func:`names`; the nearest are given, or the reason."""
    if name.startswith("maxvit"):
        raise ValueError(f"backbone {name!r} is not supported: it is built for one image size; see backbones.names()")
    if name not in names():
        near = difflib.get_close_matches(name, names(), 3) or names()[:3]
        raise ValueError(f"unknown backbone {name!r}; did you mean {', '.join(near)}? (medmerge.backbones.names())")


def check_image_size(name: str, image_size: int) -> None:
    """Raise a ValueError unless the architecture ``name`` takes images of ``image_size`` pixels a side.

    A ViT takes multiples of its patch size; the others take any size.
    """
    patch = patch_size(name)
    if patch and (image_size < patch or image_size % patch):
        patches = f"which cuts them into patches of {patch} x {patch}; give a multiple of {patch}"
        raise ValueError(f"images of {image_size} pixels a side do not fit {name}, {patches}")


def patch_size(name: str) -> int | None:
    """Side in pixels of the patches of a ViT; None for other networks, which take images of any size."""
    if not name.startswith("vit_"):
        return None
    return SMALL[name][1]["patch_size"] if name in SMALL else int(name.rpartition("_")[2])


def check_weights(name: str, weights: str | WeightsEnum) -> WeightsEnum:
    """The member of torchvision's weights enum that ``weights`` is or names for the architecture ``name``.

    Raises:
        ValueError: there is none; the message lists what is allowed.
    """
    members = {} if name in SMALL else torchvision.models.get_model_weights(name).__members__
    enum, _, member = str(weights).rpartition(".")
    member = "IMAGENET1K_V1" if weights == "imagenet" else member
    if member not in members or (enum and enum != type(members[member]).__name__):
        imagenet = ["imagenet"] if "IMAGENET1K_V1" in members else []
        allowed = [*imagenet, *members, "random", "zeros", "a file", "a state dict"]
        raise ValueError(f"unknown weights {str(weights)[:80]!r} for {name}; allowed: {', '.join(allowed)}")
    return members[member]


def is_path(weights: str | Path) -> bool:
    """Whether ``weights`` names a file, and not a member of torchvision's enum, ``"random"`` or ``"zeros"``.

    A name with a folder or a suffix is a file's, whether it is there or not; another where it is.
    """
    if not isinstance(weights, str) or weights in ("imagenet", "random", "zeros"):
        return isinstance(weights, Path)
    return "/" in weights or ("." in weights and "_Weights." not in weights) or Path(weights).is_file()


def recognise(state: Mapping[str, Tensor]) -> str:
    """The ResNet or DenseNet, torchvision's or timm's, whose names and shapes tensors have; empty for any other."""
    state = weightfiles.plain(state)
    for name in names():
        if name.startswith(_RECOGNISED):
            wanted, head = _shapes(name)
            _, body = weightfiles.under(state, wanted, "the file")
            if body.keys() & wanted and not weightfiles.problems(body, wanted, head):
                return name
    return ""


def architecture(path: str | Path) -> str:
    """The architecture of a file of weights: as its header says, else as :func:`recognise` finds it, or empty.

    Raises:
        FileNotFoundError, CheckpointError: as for :func:`~medmerge.weightfiles.read_state`.
    """
    return weightfiles.header(path).get(NAME) or recognise(read_state(path))


def _load(model: Any, path: Path) -> None:
    """Fill a backbone from a file, which may say that it is of another architecture or a merge."""
    noted, name = weightfiles.header(path), model.architecture
    if MERGE in noted:
        raise CheckpointError(f"{path} holds a KernelMerge: medmerge.load(path) reads it, and its fold() is a backbone")
    if noted.get(NAME, name) != name:
        raise CheckpointError(f"{path} was written for {noted[NAME]}, not for {name}")
    published = [] if name in SMALL else [Path(w.url).name for w in torchvision.models.get_model_weights(name)]
    _fill(model, read_state(path), str(path), TRANSFORMS in noted or path.name in published)


def _download(model: Any, weights: WeightsEnum) -> None:
    """Fill a backbone with torchvision's weights."""
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        offline = f"On a machine without internet, fetch {weights.url} elsewhere and give its path"
        raise ConnectionError(f"torchvision's {weights} could not be downloaded ({error}). {offline}") from error
    _fill(model, state, str(weights), True)


def _fill(model: Any, state: Mapping[str, Tensor], origin: str, transform_input: bool = False) -> None:
    """Fill a backbone from tensors in which it is, or raise a CheckpointError that names ``origin``."""
    wanted = model.state_dict()
    state = weightfiles.plain(state)
    prefix, found = weightfiles.under(state, wanted, origin)
    body = _at_size(model, found)
    beside = [key for key in state if key.removeprefix(prefix) not in wanted]
    if problems := weightfiles.problems(body, wanted, model.head_name):
        more = f", and {len(problems) - 1} more like it" if len(problems) > 1 else ""
        other = recognise(state)
        hint = f"; it is {other}: backbone({other!r}, weights=...)" if other not in ("", model.architecture) else ""
        if beside and not hint and "missing" in problems[0]:
            hint = f"; what it holds is called {weightfiles.few(beside)}"
        raise CheckpointError(f"{origin} does not fit {model.architecture}: {problems[0]}{more}{hint}")
    with torch.no_grad():
        for key in body.keys() & wanted:
            wanted[key].copy_(body[key])
    if hasattr(model, "transform_input"):
        model.transform_input = transform_input
    if beside:
        log.info("%s: left aside, beside the network: %s", origin, weightfiles.few(beside))


def _at_size(model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """``state`` with a ViT's position embeddings interpolated to the image size that ``model`` is built for."""
    positions = state.get("encoder.pos_embedding")
    if not isinstance(model, VisionTransformer) or positions is None:
        return state
    there, here = positions.shape, model.encoder.pos_embedding.shape
    square = len(there) == 3 and there[1] > 1 and math.isqrt(there[1] - 1) ** 2 == there[1] - 1
    if there == here or not square or there[::2] != here[::2]:
        return state
    return interpolate_embeddings(model.image_size, model.patch_size, state)


def has_plain_head(name: str) -> bool:
    """Whether torchvision's own network is a :class:`Classifier`: features, then one linear layer.

    SqueezeNet's head is a convolution before the pooling; GoogLeNet and Inception have auxiliary heads.
    """
    return not name.startswith(("squeezenet", "googlenet", "inception"))


@functools.cache
def _shapes(name: str) -> tuple[dict[str, Tensor], str]:
    """The state dict of a backbone without values, and the name of its head."""
    with torch.device("meta"):
        model = _headless(name, IMAGE_SIZE)
    return model.state_dict(), model.head_name


def _headless(name: str, image_size: int) -> Any:
    """A network without its classification head, whose name it notes with the width of the features."""
    options: dict[str, Any] = {"image_size": image_size} if patch_size(name) else {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": False}
    make, small = SMALL.get(name, (functools.partial(torchvision.models.get_model, name), {}))
    model = make(**small, **options)
    attribute = next(attribute for attribute in ("classifier", "fc", "heads", "head") if hasattr(model, attribute))
    head = getattr(model, attribute)
    keys, layers = zip(*(head.named_children() if isinstance(head, nn.Sequential) else [("", head)]), strict=True)
    last = max(i for i, layer in enumerate(layers) if isinstance(layer, (nn.Linear, nn.Conv2d)))
    before = layers[: last - 1] if last and isinstance(layers[last - 1], nn.Dropout) else layers[:last]
    kept = [*before, *(layer for layer in layers[last + 1 :] if isinstance(layer, nn.AdaptiveAvgPool2d))]
    setattr(model, attribute, nn.Sequential(*kept) if kept else nn.Identity())
    model.architecture, model.head_name = name, attribute
    model.head_key = f"{attribute}.{keys[last]}".removesuffix(".")
    model.num_features = layers[last].weight.shape[1]
    return model
