"""Files of weights, whoever wrote them: read without running code, fitted to a network by name and shape.

What a file is shows in its content, never in its name. Its tensors are searched for the one prefix under which all
names of the network are, whatever lies beside: an optimiser, a loss, a projector, another head.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from medmerge import files

log = logging.getLogger(__name__)

AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Prefixes of the auxiliary heads of GoogLeNet and Inception."""

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_COPIES = {"ema", "swa", "avg", "average", "averaged", "averaging", "shadow", "momentum", "target", "k"}
_OLD_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(encoder_layer_\d+\.mlp\.)linear_1\."), r"\g<1>0."),
    (re.compile(r"(encoder_layer_\d+\.mlp\.)linear_2\."), r"\g<1>3."),
)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_AGAIN = "fetch or write it again"
_EXPORT = "load it with what wrote it, and save the network's state_dict() with PyTorch"
_UNPACK = "unpack it and give the file inside"
_KINDS = (
    (rb"PK\0.*/constants\.pkl", "a TorchScript archive, which holds code", "save torch.jit.load(path).state_dict()"),
    (rb"PK\0(?!.*/data\.pkl).*\.(npy|h5|json)", "an archive of another library, not a state dict", _EXPORT),
    (rb"PK\0(?!.*/data\.pkl)", "an archive of other files, not a state dict", _UNPACK),
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself", "run `git lfs pull` where it came from"),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml|!--)", "a web page or XML, not weights", _AGAIN),
    (rb"\x89HDF\r\n", "an HDF5 file, such as Keras writes", _EXPORT),
    (rb"\x93NUMPY", "a NumPy array", _EXPORT),
    (rb"GGUF|.{4}TFL3", "a model of another library", _EXPORT),
    (rb"\x08[\x01-\x20][\x12\x1a\x32\x3a\x42]", "a protocol buffer, such as ONNX and TensorFlow write", _EXPORT),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "compressed", _UNPACK),
    (rb".{257}ustar", "a tar archive", _UNPACK),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|.{128}DICM", "an image", "give the weights"),
    (rb"\s*[\[{][\s\x21-\x7e]+$", "JSON, not weights", "give the file that it describes"),
    (rb"[\s\x20-\x7e]+$", "text, not weights", _AGAIN),
    (rb"$", "empty", _AGAIN),
)
"""What else comes under the name of a checkpoint: how it begins (of an archive the names of its members),
what it is, the way out."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; the message names the file and what is wrong with it."""


def write(state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write a state dict as safetensors with ``metadata`` in its header: the same bytes whichever process writes."""
    tensors = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}
    content = safetensors.torch.save(tensors, {"format": "pt", **metadata})
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])  # the library writes metadata in another order in every process
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8
    files.write(Path(path).expanduser(), len(text).to_bytes(8, "little") + text + content[end:])


def state_sha256(model: nn.Module) -> str:
    """SHA-256 over the names, types and values of a state dict, in hex: the same however it was stored."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------- reading


def read_state(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU. Never runs code from it.

    Args:
        path: safetensors, or what ``torch.save`` wrote, under any name; ``~`` is the home folder.

    Returns:
        By name; what lies in containers is named after them, such as ``"state_dict.conv1.weight"``.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it is something else, which the message names, is damaged, or holds no tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        inside = f"; it is a folder with {few(sorted(p.name for p in path.iterdir()))}" if path.is_dir() else ""
        raise FileNotFoundError(f"no checkpoint at {path}{inside}")
    with open(path, "rb") as file:
        head = file.read(512)
    if head[6:9] == b"\0\0{":
        try:
            return safetensors.torch.load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a complete safetensors file ({error}); {_AGAIN}") from error
    _check_kind(path, head)
    return flat(_unpickled(path, head), str(path))


def header(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty for any other."""
    try:
        with safe_open(Path(path).expanduser(), framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def flat(content: object, origin: str) -> dict[str, Tensor]:
    """All tensors in nested mappings and lists, by their dotted names.

    Raises:
        CheckpointError: there are none; the message names ``origin``.
    """
    found = {} if isinstance(content, Tensor) else dict(_named_tensors(content))
    if not found:
        raise CheckpointError(f"{origin} holds no state dict of tensors; save model.state_dict()")
    return found


def _named_tensors(content: object, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix, content
    elif isinstance(content, (Mapping, list, tuple)) and depth < 8:
        for key, value in content.items() if isinstance(content, Mapping) else enumerate(content):
            yield from _named_tensors(value, f"{prefix}.{key}" if prefix else str(key), depth + 1)


def _check_kind(path: Path, head: bytes) -> None:
    """Raise unless a file may be one of ``torch.save``: a pickle, or a zip archive with one."""
    if head.startswith(b"PK"):
        with contextlib.suppress(zipfile.BadZipFile, ValueError, OSError, NotImplementedError):  # torch.load says more
            head = "\0".join(["PK", *zipfile.ZipFile(path).namelist()]).encode()
    for start, what, way in _KINDS:
        if re.match(start, head, re.DOTALL):
            raise CheckpointError(f"{path} is {what}; {way}")
    if re.search(r"\.data-\d+-of-\d+$|\.ckpt\.(index|meta)$", path.name):
        raise CheckpointError(f"{path} is a part of a TensorFlow checkpoint; {_EXPORT}")


def _unpickled(path: Path, head: bytes) -> object:
    try:
        with (
            open(path, "rb") as file,  # given a path, torch.load goes by its suffix
            warnings.catch_warnings(action="ignore"),
            torch.serialization.safe_globals(_harmless()),
        ):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises nearly anything on damaged files
        reason = f"is damaged or not a PyTorch checkpoint; {_AGAIN}"
        if isinstance(error, pickle.UnpicklingError) and head[:1] in (b"\x80", b"P"):
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = f"Python objects{f' ({named[1]})' if named else ''} beside tensors"
            reason = f"holds {what}, which are never loaded because a pickle can run code; save its state_dict() alone"
        raise CheckpointError(f"{path} {reason}") from error


def _harmless() -> list:
    """Plain values that trainers store beside a state dict: options, paths and NumPy's numbers."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    kinds = {type(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "i8", "u1", "?")}
    return [argparse.Namespace, type(Path()), np.dtype, *kinds, scalar, (scalar, "numpy.core.multiarray.scalar")]


def few(names: Sequence[str]) -> str:
    """The first of many names, for a message."""
    return (", ".join(names[:3]) or "nothing") + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# ---------------------------------------------------------------- fitting


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` under today's names, without the parts that wrappers add, pruned and weight-normed weights computed."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        short = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        for old, new in _OLD_NAMES:
            short = old.sub(new, short)
        renamed[key if short in renamed else short] = value
    for first, second, function in _COMPUTED:
        for key in [key for key in renamed if key.endswith(first)]:
            base = key.removesuffix(first)
            pair = [renamed[key], renamed.get(base + second)]
            if all(one is not None and one.dtype in _FLOATS and one.layout == torch.strided for one in pair):
                with contextlib.suppress(RuntimeError):  # of other shapes: they are something else
                    renamed[base.replace("parametrizations.", "")] = function(*pair)
                    del renamed[key], renamed[base + second]
    return renamed


def _weight_norm(direction: Tensor, length: Tensor) -> Tensor:
    """What ``torch.nn.utils.weight_norm`` computes; it keeps the length along one axis, or of the whole weight."""
    axes = [axis for axis, size in enumerate(length.shape) if size > 1]
    return torch._weight_norm(direction, length, (axes or [0])[0] if length.dim() else -1)


_COMPUTED: tuple[tuple[str, str, Callable], ...] = (
    ("_orig", "_mask", torch.mul),
    ("_v", "_g", _weight_norm),
    (".original1", ".original0", _weight_norm),
)
"""Ends of the names of two tensors that a weight is computed from, by pruning and by both weight norms, and how."""


def under(state: Mapping[str, Tensor], wanted: Iterable[str], origin: str) -> tuple[str, dict[str, Tensor]]:
    """The prefix under which all wanted names are, and what is under it; where none has all, that which has the most.

    Raises:
        CheckpointError: several have them, with other values, and none is a running average of another.
    """
    required = {key for key in wanted if not key.endswith("num_batches_tracked")}
    found: Counter[str] = Counter()
    for key in state:
        starts = [0, *(match.end() for match in re.finditer(r"\.", key))]
        found.update(key[:start] for start in starts if key[start:] in required)
    whole = [prefix for prefix, count in found.items() if count == len(required)]
    own = [prefix for prefix in whole if not _COPIES & set(re.split(r"[._]", prefix))] or whole
    first = own[0] if own else max(found, key=found.__getitem__, default="")
    if any(not torch.equal(state[first + key], state[other + key]) for other in own[1:] for key in required):
        there = " and ".join(map(repr, own))
        raise CheckpointError(f"{origin} holds {len(own)} such networks, under {there}: save one's state dict alone")
    if len(whole) > len(own):
        log.warning("%s: takes the network under %r, not its average under %r", origin, first, *set(whole) - set(own))
    return first, {key[len(first) :]: value for key, value in state.items() if key.startswith(first)}


def problems(body: Mapping[str, Tensor], wanted: Mapping[str, Tensor], head: str) -> list[str]:
    """Why tensors do not fill a network, a sentence each.

    Args:
        body: the tensors under the network's own names.
        wanted: its state dict.
        head: the name of the head that it does not have; another's is forgiven.
    """
    modules, heads = {key.partition(".")[0] for key in wanted}, (f"{head}.", "head.", *AUXILIARY)
    missing = [key for key in wanted if key not in body and not key.endswith("num_batches_tracked")]
    others = [key for key in body if key not in wanted and key.partition(".")[0] in modules]
    faults = {key: _fault(key, body[key], wanted[key]) for key in wanted if key in body}
    return [
        *(f"{key} is missing{_stored_as(key, body)}" for key in missing),
        *(f"{key} does not belong to it" for key in others if not key.startswith(heads)),
        *(f"{key} {fault}" for key, fault in faults.items() if fault),
    ]


def _stored_as(key: str, body: Mapping[str, Tensor]) -> str:
    """What a file has in place of a weight that is parametrised, and the way out."""
    layer, _, own = key.rpartition(".")
    if body.keys().isdisjoint([f"{layer}.parametrizations.{own}.original", f"{key}_orig"]):
        return ""
    undo = "torch.nn.utils.parametrize.remove_parametrizations() or remove_spectral_norm()"
    return f", stored parametrised: {undo} before saving undoes that"


def _fault(key: str, value: Tensor, wanted: Tensor) -> str:
    """What is wrong with a tensor, or nothing."""
    dtype = str(value.dtype).removeprefix("torch.")
    if value.is_meta:
        return "is a meta tensor, which has no values: save the network after it was filled"
    if value.layout != torch.strided:
        return "is sparse: save its to_dense()"
    if value.is_quantized or value.is_complex() or (wanted.is_floating_point() and value.dtype not in _FLOATS):
        return f"holds {dtype}: save the network before it is quantised, with floating-point weights"
    if value.shape != wanted.shape:
        return f"is {list(value.shape)} in the file and {list(wanted.shape)} in the network"
    if not wanted.is_meta and not torch.isfinite(value.to(wanted.dtype)).all():
        return "is not finite"
    return "holds negative variances" if key.endswith("running_var") and (value < 0).any() else ""
