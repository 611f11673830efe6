"""torchvision's classifiers as feature extractors, and their checkpoints.

A backbone is a torchvision network without its classification head (the paper's B of section 2): ``forward`` maps
images ``[N, 3, H, W]`` to features ``[N, num_features]``. Its state dict keeps torchvision's names.
"""

import difflib
import functools
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision.models
from torch import Tensor, nn
from torchvision.models import DenseNet, SwinTransformer, VisionTransformer

from medmerge import statefiles
from medmerge.merge import zeros_like
from medmerge.statefiles import AUXILIARY, at_size
from medmerge.statefiles import CheckpointError as CheckpointError
from medmerge.statefiles import read_state as read_state
from medmerge.statefiles import state_sha256 as state_sha256

SMALL = {
    "densenet_small": (DenseNet, dict(growth_rate=12, block_config=(3, 3, 3), num_init_features=24, bn_size=2)),
    "vit_mini": (VisionTransformer, dict(patch_size=8, num_layers=3, num_heads=4, hidden_dim=48, mlp_dim=96)),
    "swin_mini": (
        SwinTransformer,
        dict(patch_size=[4, 4], embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], mlp_ratio=2.0)
        | dict(stochastic_depth_prob=0.0),
    ),
}
"""Networks of our own for tests and the demo: torchvision's DenseNet, ViT and Swin, smaller."""

IMAGE_SIZE = 224
"""Side in pixels that a ViT is built for where none is given."""

_REFUSED = {
    "maxvit": "its windows and position tables are built for one image size, and it has no known way to another"
}


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
        self.head = nn.Linear(backbone.num_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of images ``[N, 3, H, W]``."""
        return self.head(self.backbone(x))


def names() -> list[str]:
    """Every architecture that :func:`backbone` knows."""
    known = torchvision.models.list_models(module=torchvision.models)
    return sorted([*SMALL, *(name for name in known if not name.startswith(tuple(_REFUSED)))])


def backbone(name: str, weights: str | Path = "imagenet", image_size: int | None = None) -> nn.Module:
    """A torchvision network without its classification head.

    The head is the last linear layer with the dropout right before it (for SqueezeNet, the last convolution).

    Args:
        name: an architecture of :func:`names`, such as ``"densenet121"``, ``"resnet50"``, ``"swin_t"``.
        weights: ``"imagenet"`` (torchvision's IMAGENET1K_V1) or another member of its weights enum; ``"random"``
            (torchvision's initialisation, from the global random state); ``"zeros"`` (all kernels zero,
            :func:`~medmerge.merge.zeros_like`); or the path of a ``.safetensors``, ``.pt`` or ``.pth`` file with a
            state dict of this architecture, with or without a head of any width.
        image_size: side of the images in pixels, for a ViT, which has a position embedding a patch; by default
            :data:`IMAGE_SIZE`. Embeddings of weights for another size are interpolated (bicubic; Dosovitskiy et al.
            2021, section 3.2). All other networks take any size and ignore it.

    Returns:
        The module in eval mode, with the attribute ``num_features``.

    Raises:
        ValueError: an unknown architecture or weights name (the nearest known one is given), or an image size that
            the architecture cannot take.
        FileNotFoundError: the file is not there.
        CheckpointError: the file is damaged, holds code, or does not fit the architecture.
        ConnectionError: torchvision's weights are not on this machine and cannot be downloaded.
    """
    check_name(name)
    size = IMAGE_SIZE if image_size is None else image_size
    check_image_size(name, size)
    if is_path(weights):
        model = _headless(_build(name, None, size))
        statefiles.load(model, Path(weights), name)
    elif weights in ("random", "zeros"):
        model = _headless(_build(name, None, size))
        model = zeros_like(model) if weights == "zeros" else model
    else:
        model = _headless(_build(name, check_weights(name, str(weights)), size))
    return model.eval()


def check_name(name: str) -> None:
    """Raise a ValueError unless ``name`` is an architecture of :func:`names`; the nearest are given, or the reason."""
    for prefix, reason in _REFUSED.items():
        if name.startswith(prefix):
            raise ValueError(
                f"backbone {name!r} is not supported: {reason}. Take another of medmerge.backbones.names()"
            )
    if name not in names():
        near = difflib.get_close_matches(name, names(), 3) or names()[:3]
        raise ValueError(f"unknown backbone {name!r}; did you mean {', '.join(near)}? (medmerge.backbones.names())")


def check_image_size(name: str, image_size: int) -> None:
    """Raise a ValueError unless the architecture ``name`` takes images of ``image_size`` pixels a side.

    A ViT takes multiples of its patch size; the others take any size.
    """
    patch = patch_size(name)
    if patch and (image_size < patch or image_size % patch):
        allowed = sorted({max(image_size // patch, 1) * patch, (image_size // patch + 1) * patch})
        raise ValueError(
            f"images of {image_size} pixels a side do not fit {name}, which cuts them into patches of {patch} x "
            f"{patch}; give a multiple of {patch}, such as {' or '.join(map(str, allowed))}"
        )


@functools.cache
def patch_size(name: str) -> int | None:
    """Side in pixels of the patches of a ViT; None for other networks, which take images of any size."""
    if not name.startswith("vit_"):
        return None
    if name in SMALL:
        return SMALL[name][1]["patch_size"]
    with torch.device("meta"):
        return torchvision.models.get_model(name).patch_size


def check_weights(name: str, weights: str):
    """The member of torchvision's weights enum that ``weights`` names for the architecture ``name``.

    Raises:
        ValueError: there is none; the message lists what is allowed.
    """
    members = {} if name in SMALL else torchvision.models.get_model_weights(name).__members__
    enum, _, member = weights.rpartition(".")
    member = "IMAGENET1K_V1" if weights == "imagenet" else member
    if member not in members or (enum and enum != type(members[member]).__name__):
        imagenet = ["imagenet"] if "IMAGENET1K_V1" in members else []
        allowed = [*imagenet, *members, "random", "zeros", "a path to .safetensors, .pt or .pth"]
        raise ValueError(f"unknown weights {weights!r} for {name}; allowed: {', '.join(allowed)}")
    return members[member]


def is_path(weights: str | Path) -> bool:
    """Whether ``weights`` names a file, and not a member of torchvision's enum, ``"random"`` or ``"zeros"``."""
    return isinstance(weights, Path) or "/" in weights or weights.endswith((".safetensors", ".pt", ".pth"))


def save_backbone(model: nn.Module, path: Path, name: str, **metadata: str) -> None:
    """Write the state dict of ``model`` as safetensors, in one atomic step.

    Args:
        name: the architecture, noted in the file's header and compared when the file is loaded.
        metadata: further strings to keep in the header.
    """
    statefiles.write(model.state_dict(), path, name, metadata)


def save_classifier(model: Classifier, path: Path, name: str, **metadata: str) -> None:
    """Write a classifier as safetensors, in one atomic step; :func:`backbone` loads it without the head.

    The names are torchvision's: ``torchvision.models.get_model(name, num_classes=K)`` (of a ViT with its
    ``image_size``) loads the file strictly and computes the same function. Where it cannot (:func:`has_plain_head`),
    they are those of :class:`Classifier`.

    Args:
        name, metadata: as for :func:`save_backbone`.

    Raises:
        TypeError: the model is not one network, such as an ensemble.
    """
    if not isinstance(model, Classifier):
        raise TypeError(f"{type(model).__name__} is not one network with a head: it cannot be saved as one")
    state = model.state_dict()
    if has_plain_head(name):
        head = model.head.state_dict()
        state = model.backbone.state_dict() | {f"{model.backbone.head_key}.{key}": head[key] for key in head}
    statefiles.write(state, path, name, metadata)


def load_classifier(path: Path, name: str, image_size: int | None = None) -> Classifier:
    """The classifier that :func:`save_classifier` wrote, in eval mode: the same tensors.

    Args:
        image_size: as for :func:`backbone`.

    Raises:
        FileNotFoundError, CheckpointError: as for :func:`backbone`; or the file holds a backbone without a head.
    """
    model, state = backbone(name, Path(path), image_size), read_state(path)
    key = model.head_key if has_plain_head(name) else "head"
    head = {part: state.get(f"{key}.{part}") for part in ("weight", "bias")}
    if any(tensor is None for tensor in head.values()):
        raise CheckpointError(f"{path} holds no head {key}, only a backbone")
    classifier = Classifier(model, len(head["bias"]))
    classifier.head.load_state_dict(head)
    return classifier.eval()


def has_plain_head(name: str) -> bool:
    """Whether torchvision's own network is a :class:`Classifier`: features, then one linear layer.

    SqueezeNet's head is a convolution before the pooling; GoogLeNet and Inception have auxiliary heads.
    """
    return not name.startswith(("squeezenet", "googlenet", "inception"))


def _build(name: str, weights, image_size: int) -> nn.Module:
    sized = {"image_size": image_size} if patch_size(name) else {}
    if name in SMALL:
        kind, options = SMALL[name]
        return kind(**options, **sized)
    inception = name in ("googlenet", "inception_v3")
    extra = {"aux_logits": False, "init_weights": False} if inception and weights is None else {}
    try:
        if not sized or weights is None:
            model = torchvision.models.get_model(name, weights=weights, **extra, **sized)
        else:
            model = torchvision.models.get_model(name, num_classes=len(weights.meta["categories"]), **sized)
            model.load_state_dict(at_size(model, weights.get_state_dict(progress=False, check_hash=True)))
    except (URLError, OSError) as error:
        raise ConnectionError(
            f"torchvision's weights {weights} for {name} could not be downloaded ({error}). On a machine without "
            f"internet, fetch {weights.url} elsewhere and give its path"
        ) from error
    if inception:
        model.transform_input, model.aux_logits = True, False
        for key in AUXILIARY:
            setattr(model, key.removesuffix("."), None)
    return model


def _headless(model: nn.Module) -> nn.Module:
    """Take the classification head off ``model`` and note its name and the width of the features."""
    name = next(attribute for attribute in ("classifier", "fc", "heads", "head") if hasattr(model, attribute))
    head = getattr(model, name)
    layers = dict(head.named_children()) if isinstance(head, nn.Sequential) else {"": head}
    keys, modules = list(layers), list(layers.values())
    last = max(i for i, layer in enumerate(modules) if isinstance(layer, (nn.Linear, nn.Conv2d)))
    width = modules[last].in_features if isinstance(modules[last], nn.Linear) else modules[last].in_channels
    tail = [layer for layer in modules[last + 1 :] if isinstance(layer, nn.AdaptiveAvgPool2d)]
    before = modules[: last - 1] if last and isinstance(modules[last - 1], nn.Dropout) else modules[:last]
    kept = before + tail
    setattr(model, name, nn.Sequential(*kept) if kept else nn.Identity())
    model.num_features, model.head_name = width, name
    model.head_key = f"{name}.{keys[last]}".removesuffix(".")
    return model
