"""torchvision's convolutional classifiers as feature extractors, and their checkpoints.

A backbone is a torchvision network without its classification head (the paper's B of section 2): ``forward`` maps
images ``[N, 3, H, W]`` to features ``[N, num_features]``. Its state dict keeps torchvision's names.
"""

import difflib
import hashlib
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import safetensors.torch
import torch
import torchvision.models
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from medmerge.merge import zeros_like

SMALL = {
    "densenet_small": dict(growth_rate=12, block_config=(3, 3, 3), num_init_features=24, bn_size=2),
}
"""Networks of our own for tests and the demo: torchvision's DenseNet, smaller."""

_NOT_CONVOLUTIONAL = ("vit_", "swin", "maxvit")
_CONTAINERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; the message names the file and what is wrong with it."""


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
    return sorted([*SMALL, *(name for name in known if not name.startswith(_NOT_CONVOLUTIONAL))])


def backbone(name: str, weights: str | Path = "imagenet") -> nn.Module:
    """A torchvision CNN without its classification head.

    The head is the last linear layer with the dropout right before it (for SqueezeNet, the last convolution).

    Args:
        name: an architecture of :func:`names`, such as ``"densenet121"``, ``"resnet50"``, ``"mobilenet_v2"``.
        weights: ``"imagenet"`` (torchvision's IMAGENET1K_V1) or another member of its weights enum; ``"random"``
            (torchvision's initialisation, from the global random state); ``"zeros"`` (all kernels zero,
            :func:`~medmerge.merge.zeros_like`); or the path of a ``.safetensors``, ``.pt`` or ``.pth`` file with a
            state dict of this architecture, with or without a head of any width.

    Returns:
        The module in eval mode, with the attribute ``num_features``.

    Raises:
        ValueError: an unknown architecture or weights name; the nearest known one is given.
        FileNotFoundError: the file is not there.
        CheckpointError: the file is damaged, holds code, or does not fit the architecture.
        ConnectionError: torchvision's weights are not on this machine and cannot be downloaded.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), 3) or names()[:3]
        raise ValueError(f"unknown backbone {name!r}; did you mean {', '.join(near)}? (medmerge.backbones.names())")
    if is_path(weights):
        model = _headless(_build(name, None))
        _load(model, Path(weights), name)
    elif weights in ("random", "zeros"):
        model = _headless(_build(name, None))
        model = zeros_like(model) if weights == "zeros" else model
    else:
        model = _headless(_build(name, check_weights(name, str(weights))))
    return model.eval()


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
    _write(model.state_dict(), path, name, metadata)


def _write(state: Mapping[str, Tensor], path: Path, name: str, metadata: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    safetensors.torch.save_file(tensors, partial, metadata={"format": "pt", "medmerge.backbone": name, **metadata})
    partial.replace(path)


def save_classifier(model: Classifier, path: Path, name: str, **metadata: str) -> None:
    """Write a classifier as safetensors, in one atomic step; :func:`backbone` loads it without the head.

    The names are torchvision's: ``torchvision.models.get_model(name, num_classes=K)`` loads the file strictly and
    computes the same function. Where it cannot (:func:`has_plain_head`), they are those of :class:`Classifier`.

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
    _write(state, path, name, metadata)


def load_classifier(path: Path, name: str) -> Classifier:
    """The classifier that :func:`save_classifier` wrote, in eval mode: the same tensors.

    Raises:
        FileNotFoundError, CheckpointError: as for :func:`backbone`; or the file holds a backbone without a head.
    """
    model, state = backbone(name, Path(path)), read_state(path)
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


def state_sha256(model: nn.Module) -> str:
    """SHA-256 over the names, types and values of a state dict, in hex: the same however it was stored."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors``, ``.pt`` or ``.pth`` file, on the CPU. Never runs code from the file.

    Raises:
        FileNotFoundError, CheckpointError: as for :func:`backbone`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings(action="ignore"):  # of a pickle protocol that it may not know
            state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file ({error}); fetch or write it again"
        ) from error
    except Exception as error:  # torch.load raises nearly anything on damaged files
        unsafe = isinstance(error, pickle.UnpicklingError) and _is_pickle(path)
        reason = (
            "holds Python objects beside tensors, which are never loaded because a pickle can run code; "
            "save its state_dict() alone"
            if unsafe
            else "is damaged or not a PyTorch checkpoint; fetch or write it again"
        )
        raise CheckpointError(f"{path} {reason}") from error
    for key in _CONTAINERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} holds no state dict of tensors; save model.state_dict()")
    return dict(state)


def _is_pickle(path: Path) -> bool:
    """Whether a file starts as a pickle or as the archive of one."""
    with open(path, "rb") as file:
        return file.read(1) in (b"\x80", b"P")


def _load(model: nn.Module, path: Path, name: str) -> None:
    """Fill ``model`` from the file, forgiving prefixes, DenseNet's old names and another head, and nothing else."""
    state = read_state(path)
    _check_architecture(path, name)
    while prefix := _shared_prefix(state, model):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    state = {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items()}
    wanted = model.state_dict()
    state = {key: value for key, value in state.items() if key in wanted or not _is_head(key, model)}
    optional = {key for key in wanted if key.endswith("num_batches_tracked")}
    problems = [f"{key} is missing" for key in wanted if key not in state and key not in optional]
    problems += [f"{key} does not belong to it" for key in state if key not in wanted]
    problems += [
        f"{key} is {list(state[key].shape)} in the file and {list(wanted[key].shape)} in the network"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    problems += [f"{key} is not finite" for key in state if key in wanted and not torch.isfinite(state[key]).all()]
    if problems:
        more = f", and {len(problems) - 1} more like it" if len(problems) > 1 else ""
        raise CheckpointError(f"{path} does not fit {name}: {problems[0]}{more}")
    model.load_state_dict(state, strict=not optional - state.keys())


def _check_architecture(path: Path, name: str) -> None:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            written = (file.metadata() or {}).get("medmerge.backbone", name)
        if written != name:
            raise CheckpointError(f"{path} was written for {written}, not for {name}")


def _shared_prefix(state: Mapping[str, Tensor], model: nn.Module) -> str | None:
    """The wrapper's prefix that all keys but the head's have, if there is one."""
    body = [key for key in state if not _is_head(key, model)]
    return next((p for p in _PREFIXES if body and all(key.startswith(p) for key in body)), None)


def _is_head(key: str, model: nn.Module) -> bool:
    """Whether a key is of a classification head, torchvision's, ours or an auxiliary one."""
    return key.startswith((f"{model.head_name}.", "head.", *_AUXILIARY))


def _build(name: str, weights) -> nn.Module:
    if name in SMALL:
        return torchvision.models.DenseNet(**SMALL[name])
    inception = name in ("googlenet", "inception_v3")
    extra = {"aux_logits": False, "init_weights": False} if inception and weights is None else {}
    try:
        model = torchvision.models.get_model(name, weights=weights, **extra)
    except (URLError, OSError) as error:
        raise ConnectionError(
            f"torchvision's weights {weights} for {name} could not be downloaded ({error}). On a machine without "
            f"internet, fetch {weights.url} elsewhere and give its path"
        ) from error
    if inception:
        model.transform_input, model.aux_logits = True, False
        for key in _AUXILIARY:
            setattr(model, key.removesuffix("."), None)
    return model


def _headless(model: nn.Module) -> nn.Module:
    """Take the classification head off ``model`` and note its name and the width of the features."""
    name = next(attribute for attribute in ("classifier", "fc") if hasattr(model, attribute))
    head = getattr(model, name)
    layers = list(head) if isinstance(head, nn.Sequential) else [head]
    last = max(i for i, layer in enumerate(layers) if isinstance(layer, (nn.Linear, nn.Conv2d)))
    width = layers[last].in_features if isinstance(layers[last], nn.Linear) else layers[last].in_channels
    tail = [layer for layer in layers[last + 1 :] if isinstance(layer, nn.AdaptiveAvgPool2d)]
    before = layers[: last - 1] if last and isinstance(layers[last - 1], nn.Dropout) else layers[:last]
    kept = before + tail
    setattr(model, name, nn.Sequential(*kept) if kept else nn.Identity())
    model.num_features, model.head_name = width, name
    model.head_key = f"{name}.{last}" if isinstance(head, nn.Sequential) else name
    return model
