"""Which networks can be merged: where their kernels are, what must be alike, and what no copy can carry along."""

import functools
import itertools
import reprlib
import sys
import types
import weakref
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

EMBEDDINGS = (
    ("torchvision.models.vision_transformer", "pos_embedding"),
    ("torchvision.models.swin_transformer", "relative_position_bias_table"),
    ("timm.", "pos_embed"),
    ("timm.", "relative_position_bias_table"),
)
"""Parameters that are added to activations and so are no kernels, though they have several dimensions: the Python
module that their class comes from, as it begins, and their name."""

NOT_COMPARED = frozenset({"training", "pretrained_cfg", "default_cfg", "name_or_path", "_name_or_path"})
"""Attributes that may differ between sources: a network's mode, and where its weights come from."""

_NORM_LAYERS = (_NormBase, nn.LayerNorm, nn.GroupNorm)
_REWRITTEN = {
    BasePruningMethod: "torch.nn.utils.prune.remove",
    WeightNorm: "torch.nn.utils.remove_weight_norm",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm",
}
_OF_MODULES = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_MANY = "Only networks of one architecture, on one device and of one precision, can be merged"


class Kernels(NamedTuple):
    """The kernels of one layer.

    Attributes:
        name: the layer's name in the network; of attention's input projection ``<attention>.in_proj``.
        owner: name of the module that has them.
        module: that module.
        weight: name of their tensor in it.
        bias: name of their biases, or None where there are none.
    """

    name: str
    owner: str
    module: nn.Module
    weight: str
    bias: str | None

    @property
    def groups(self) -> int:
        """Of a transposed convolution, whose kernels lie along the second axis, the number of groups; else 0."""
        return self.module.groups if isinstance(self.module, _ConvTransposeNd) else 0

    def __len__(self) -> int:
        weight = getattr(self.module, self.weight)
        return weight.shape[1] * self.groups if self.groups else weight.shape[0]


def kernel_layers(network: nn.Module) -> list[Kernels]:
    """The layers of ``network`` that have kernels, in its order: convolutions, linear layers, attention's projections.

    Attention whose queries, keys and values differ in width has projections of another kind, which are left out.
    """
    found = []
    for name, module in network.named_modules():
        if isinstance(module, (_ConvNd, nn.Linear)):
            found.append((name, name, module, "weight", "bias"))
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            found.append((f"{name}.in_proj".lstrip("."), name, module, "in_proj_weight", "in_proj_bias"))
    return [Kernels(*entry, bias if getattr(entry[2], bias, None) is not None else None) for *entry, bias in found]


def check(sources: Sequence[nn.Module]) -> None:
    """Raise unless the sources can be merged.

    Raises:
        TypeError: a source that is no module, or that holds what a merge cannot carry; the message says where.
        ValueError: fewer than two, or sources that are not alike, in parameters, layers or other state.
    """
    for i, source in enumerate(sources):
        if not isinstance(source, nn.Module):
            raise TypeError(f"a source is a {type(source).__name__}, not a torch.nn.Module; load it with backbone()")
        _check_plain(source, i)
    if len(sources) < 2:
        raise ValueError(f"merging needs two or more sources, got {len(sources)}")
    first = sources[0]
    for i, other in enumerate(sources[1:], start=1):
        for a, b in itertools.zip_longest(_tensors(first), _tensors(other)):
            if a != b:
                raise ValueError(
                    f"source {i} does not fit source 0: the first layer that differs is {_described(a)} in source 0 "
                    f"and {_described(b)} in source {i}. {_MANY}"
                )
        for a, b in itertools.zip_longest(_classes(first), _classes(other), fillvalue="missing"):
            if a != b:
                raise ValueError(f"source {i} does not fit source 0: {a} in source 0 is {b} in source {i}. {_MANY}")
    states = [_state(source) for source in sources]
    for i, other in enumerate(states[1:], start=1):
        for path in states[0] | other:
            if not (path in states[0] and path in other and _equal(states[0][path], other[path])):
                raise ValueError(
                    f"source {i} does not fit source 0: {_shown(first, states[0], path)} in source 0 is "
                    f"{_shown(sources[i], other, path)} in source {i}, and only parameters and buffers are merged. "
                    "Set it alike in all sources, or register what is to be merged"
                )
    _check_tensors(first)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks of one architecture have the same parameters and buffers, not all of them zero."""
    pairs = list(zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    return all(torch.equal(a, b) for a, b in pairs) and any(a.any() for a, _ in pairs)


def _check_plain(source: nn.Module, i: int) -> None:
    """Raise if a module's weights are something else than ordinary tensors that a layer has as its own."""
    for name, module in source.named_modules():
        where = f"source {i}: {name or 'the network'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
            raise TypeError(f"{where} is compiled; merge the network that it was compiled from")
        if parametrize.is_parametrized(module):
            key = next(iter(module.parametrizations))
            call = f"torch.nn.utils.parametrize.remove_parametrizations(layer, {key!r})"
            raise TypeError(f"{where} has its {key} parametrised; make it an ordinary one first, by {call}")
        for hook in module._forward_pre_hooks.values():
            for kind, call in _REWRITTEN.items():
                if isinstance(hook, kind):
                    key = getattr(hook, "name", getattr(hook, "_tensor_name", "weight"))
                    raise TypeError(
                        f"{where} computes its {key} by a hook; make it final first, by {call}(layer, {key!r})"
                    )
        for key, value in (*module._parameters.items(), *module._buffers.items(), *vars(module).items()):
            if isinstance(value, (Tensor, torch.ScriptObject)) and (wrong := _wrong(value)):
                raise TypeError(f"{where}: its {key} {wrong}")
    for kernels in kernel_layers(source):
        for key in filter(None, (kernels.weight, kernels.bias)):
            value = kernels.module._parameters.get(key)
            if value is None or not value.is_floating_point() or value.layout is not torch.strided:
                raise TypeError(
                    f"source {i}: {key} of {kernels.name or 'the network'} is no dense parameter of floating-point "
                    "numbers, so there is nothing to learn from it; make it an nn.Parameter"
                )


def _wrong(value: Tensor | torch.ScriptObject) -> str:
    """What keeps a tensor from being merged, and the way out; empty where nothing does."""
    if is_lazy(value):
        return "has no shape yet; run the network once on a batch"
    if isinstance(value, torch.ScriptObject) or value.is_quantized:
        return "is packed or quantised; merge the network before it is converted"
    if value.is_inference():
        return "was made in torch.inference_mode, and cannot learn; build or load the network outside, or under no_grad"
    if value.grad_fn is not None:
        return "is part of a graph; keep it with .detach()"
    return ""


def _check_tensors(source: nn.Module) -> None:
    """Raise if a parameter with several dimensions is no kernel, or a kernel is in two places that do not agree."""
    at, memory = {}, {}
    for kernels in kernel_layers(source):
        axis = "transposed" if kernels.groups else ""
        weight = kernels.module._parameters[kernels.weight]
        for key, role in ((kernels.weight, axis), (kernels.bias, f"bias of {id(weight)}")):
            if key is None:
                continue
            tensor, path = kernels.module._parameters[key], f"{kernels.owner}.{key}".lstrip(".")
            tie, known = at.setdefault(id(tensor), (path, role))
            if known != role:
                raise TypeError(f"{path} and {tie} are one parameter with different kernels; untie them")
            place = (tensor.data_ptr() or path, tensor.shape)
            if memory.setdefault(place, id(tensor)) != id(tensor):
                raise TypeError(f"{path} shares its memory with another parameter; assign the parameter itself to tie")
    own = {(id(one.module), key) for one in kernel_layers(source) for key in (one.weight, one.bias)}
    for name, module in source.named_modules():
        for key, parameter in module._parameters.items():
            path = f"{name}.{key}".lstrip(".")
            if parameter is None or (id(module), key) in own:
                continue
            if id(parameter) in at:
                raise TypeError(
                    f"{path} of a {type(module).__name__} is tied to kernels, {at[id(parameter)][0]}; untie it"
                )
            several = sum(size > 1 for size in parameter.shape) > 1 and not isinstance(module, _NORM_LAYERS)
            if several and not is_embedding(module, key):
                raise TypeError(
                    f"{path} {list(parameter.shape)} of a {type(module).__name__} is neither a kernel of a convolution "
                    "or linear layer, nor a per-channel parameter, nor a known position embedding: it cannot be merged "
                    "by kernel"
                )


def is_embedding(module: nn.Module, name: str) -> bool:
    """Whether the parameter ``name`` of ``module`` is one of :data:`EMBEDDINGS`."""
    come = [kind.__module__ for kind in type(module).__mro__]
    return any(name == known and any(one.startswith(begin) for one in come) for begin, known in EMBEDDINGS)


def _tensors(module: nn.Module) -> Iterator[tuple[str, tuple[int, ...], torch.dtype, torch.device]]:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        yield name, tuple(tensor.shape), tensor.dtype, tensor.device


def _described(entry: tuple[str, tuple[int, ...], torch.dtype, torch.device] | None) -> str:
    if entry is None:
        return "missing"
    name, shape, dtype, device = entry
    return f"{name} {list(shape)} ({str(dtype).removeprefix('torch.')}, {device})"


def _classes(module: nn.Module) -> Iterator[str]:
    for name, child in module.named_modules():
        yield f"{name} {type(child).__name__}".lstrip()


def _state(source: nn.Module) -> dict[tuple[str, str], object]:
    """What a source holds beyond floating-point tensors, by the module's name and the path from there.

    Parameters that are tied, and attributes that are parameters, stand as the name that they have first. Integer
    buffers are in it, but no single ones, such as counts of batches.
    """
    walk, state = _Walk(source), {}
    for name, module in source.named_modules():
        for key, tensor in module._parameters.items():
            state[name, f"{key} (which)"] = None if tensor is None else walk.names[id(tensor)]
        for key, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_floating_point() and buffer.numel() > 1:
                state[name, key] = buffer
        for key, value in vars(module).items():
            if key in _HOOKS:
                list(walk.leaves(name, key, list(value.values())))
            elif key not in _OF_MODULES | NOT_COMPARED:
                state |= {(name, path): leaf for path, leaf in walk.leaves(name, key, value)}
    return state


class _Walk:
    """Goes through what modules hold as ordinary attributes, however deep."""

    def __init__(self, network: nn.Module):
        named = (*network.named_modules(), *network.named_parameters(), *network.named_buffers())
        self.names = {id(value): name for name, value in named}
        layers = kernel_layers(network)
        self.kernels = {id(getattr(layer.module, layer.weight)) for layer in layers}
        self.kernels |= {id(getattr(layer.module, layer.bias)) for layer in layers if layer.bias}
        self.around: set[int] = set()

    def leaves(self, owner: str, path: str, value: object) -> Iterator[tuple[str, object]]:
        """Path and value of everything in ``value`` that has no parts; a part of the network stands as its name."""
        where = f"{owner}.{path}".lstrip(".")
        if id(value) in self.kernels:
            raise TypeError(f"{where} is a kernel, {self.names[id(value)]}, outside its layer; read it from the layer")
        if id(value) in self.names:
            yield path, ("part of the network", self.names[id(value)])
            return
        if isinstance(value, weakref.ref) and id(value()) in self.names:
            raise TypeError(f"{where} is a weak reference to a part of the network, which no copy follows")
        if isinstance(value, Tensor) and (wrong := _wrong(value)):
            raise TypeError(f"{where} {wrong}")
        parts = self._parts(value)
        if parts is None:
            yield path, value
        elif id(value) not in self.around:
            self.around.add(id(value))
            found = [leaf for key, part in parts.items() for leaf in self.leaves(owner, f"{path}{key}", part)]
            self.around.remove(id(value))
            names = [leaf[1] for _, leaf in found if isinstance(leaf, tuple) and leaf[:1] == ("part of the network",)]
            if isinstance(value, types.FunctionType) and names:
                raise TypeError(
                    f"{where} is a function that holds on to {names[0] or 'the network'} of this source, and so would "
                    "a copy's; make it a method, or give it what it needs as an argument"
                )
            yield from found

    @staticmethod
    def _parts(value: object) -> dict[str, object] | None:
        """What ``value`` consists of, by how one gets there; None for what has no parts."""
        if isinstance(value, Mapping):
            return {f"[{key!r}]": part for key, part in value.items()}
        if isinstance(value, (list, tuple)) and type(value) is not torch.Size:
            return {f"[{i}]": part for i, part in enumerate(value)} | {" length": len(value)}
        if isinstance(value, types.MethodType):
            return {".__func__": value.__func__.__code__, ".__self__": value.__self__}
        if isinstance(value, functools.partial):
            return {".func": value.func, ".args": value.args, ".keywords": value.keywords}
        if isinstance(value, types.FunctionType):
            cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
            held = {f" ({name})": cell.cell_contents for name, cell in cells}
            return {" code": value.__code__, " defaults": value.__defaults__, " keywords": value.__kwdefaults__} | held
        if isinstance(value, nn.Module):
            own = {f".{key}": part for key, part in vars(value).items() if key not in _OF_MODULES | NOT_COMPARED}
            kept = {**value._parameters, **value._buffers, **value._modules}
            return own | {f".{key}": part for key, part in kept.items()}
        ours = type(value).__module__.partition(".")[0] not in sys.stdlib_module_names | {"torch", "numpy"}
        plain = isinstance(value, (Tensor, type, Enum)) or not hasattr(value, "__dict__")
        if plain or not (ours or isinstance(value, types.SimpleNamespace)):
            return None
        return {f".{key}": part for key, part in vars(value).items() if key not in NOT_COMPARED}


def _equal(a: object, b: object) -> bool:
    """Whether two attributes are the same as far as one can tell; what is only equal to itself counts as the same."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        same = a.shape == b.shape and (a.dtype, a.device) == (b.dtype, b.device)
        return same and bool(((a == b) | ((a != a) & (b != b))).all())
    if type(a).__eq__ is object.__eq__:
        return True
    if hasattr(a, "shape"):
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    return bool(a == b or (a != a and b != b))


def _shown(source: nn.Module, state: Mapping[tuple[str, str], object], path: tuple[str, str]) -> str:
    """Where a difference lies, and what is there."""
    name, key = path
    module, attribute = source.get_submodule(name), key.partition("[")[0]
    value = getattr(module, attribute, None)
    if not (isinstance(value, (list, tuple, dict)) and len(repr(value)) < 60):
        attribute, value = key, state.get(path, "missing")
    text = repr(value) if isinstance(value, (list, tuple, dict)) else reprlib.repr(value)
    return f"{name} {type(module).__name__}({attribute}={text})".lstrip()
