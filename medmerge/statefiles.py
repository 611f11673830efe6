"""Files of weights: read without running code, fitted to a network by name and shape, written in one atomic step."""

import hashlib
import json
import math
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

from medmerge import files

_CONTAINERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
_OLD_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(encoder_layer_\d+\.mlp\.)linear_1\."), r"\g<1>0."),
    (re.compile(r"(encoder_layer_\d+\.mlp\.)linear_2\."), r"\g<1>3."),
)
_POSITIONS = "encoder.pos_embedding"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; the message names the file and what is wrong with it."""


def write(state: Mapping[str, Tensor], path: Path, name: str, metadata: Mapping[str, str]) -> None:
    """Write a state dict as safetensors, the architecture's ``name`` and ``metadata`` in its header."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    content = safetensors.torch.save(tensors, {"format": "pt", "medmerge.backbone": name, **metadata})
    files.write(path, _in_order(content))


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata sorted: the library writes them in another order in every process."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[end:]


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
        FileNotFoundError, CheckpointError: no such file; one that is damaged or holds more than tensors.
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


def load(model: nn.Module, path: Path, name: str) -> None:
    """Fill a backbone from a file, forgiving prefixes, torchvision's old names and another head, and nothing else.

    Args:
        model: the network without its head, with the attribute ``head_name``.
        name: the architecture, as :func:`write` noted it.

    Raises:
        FileNotFoundError, CheckpointError: as for :func:`read_state`; or the file does not fit.
    """
    state = read_state(path)
    _check_architecture(path, name)
    while prefix := _shared_prefix(state, model):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    for old, new in _OLD_NAMES:
        state = {old.sub(new, key): value for key, value in state.items()}
    state = at_size(model, state)
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
    return key.startswith((f"{model.head_name}.", "head.", *AUXILIARY))


def at_size(model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """``state`` with a ViT's position embeddings interpolated to the image size that ``model`` is built for."""
    if not isinstance(model, VisionTransformer) or _POSITIONS not in state:
        return state
    there, here = state[_POSITIONS].shape, model.encoder.pos_embedding.shape
    square = len(there) == 3 and there[1] > 1 and math.isqrt(there[1] - 1) ** 2 == there[1] - 1
    if there == here or not square or there[::2] != here[::2]:
        return state
    return interpolate_embeddings(model.image_size, model.patch_size, state)
