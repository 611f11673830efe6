"""Which networks can be merged: where their kernels are, what must be alike, and what no copy can carry along."""

import copy
import functools
import itertools
import logging
import reprlib
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

log = logging.getLogger(__name__)

EMBEDDINGS = {
    "torchvision.models.": ("pos_embedding", "relative_position_bias_table"),
    "timm.": ("pos_embed", "relative_position_bias_table"),
}
"""Parameters that are added to activations and so are no kernels, though they have several dimensions: their names, by
the Python module that their class comes from, as it begins."""

NOT_COMPARED = frozenset({"training", "pretrained_cfg", "default_cfg", "name_or_path", "_name_or_path"})
"""Attributes that may differ between sources: a network's mode, and where its weights come from."""

_NORM_LAYERS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_UNDO = {
    "torch.nn.utils.prune": "prune.remove",
    "torch.nn.utils.weight_norm": "remove_weight_norm",
    "torch.nn.utils.spectral_norm": "remove_spectral_norm",
    "torch.nn.utils.parametrize": "parametrize.remove_parametrizations",
}
_OF_MODULES = frozenset({*vars(nn.Module()), "_compiled_call_impl"})


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
    module: Any
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
    """Raise unless the sources can be merged; two with the same weights, or with other hooks, are said in the log.

    Raises:
        TypeError: a source that is no module, or that holds what a merge cannot carry; the message says where.
        ValueError: fewer than two, or sources that are not alike, in parameters, layers or other state.
    """
    for i, source in enumerate(sources):
        if not isinstance(source, nn.Module):
            raise TypeError(f"a source is a {type(source).__name__}, not a torch.nn.Module; load it with backbone()")
        for name, module in source.named_modules():
            if fault := _fault(module):
                raise TypeError(f"source {i}: {name or 'the network'} ({type(module).__name__}) {fault}")
    if len(sources) < 2:
        raise ValueError(f"merging needs two or more sources, got {len(sources)}")
    _check_kernels(sources[0])
    first, *others = ([*_facts(source)] for source in sources)
    for i, other in enumerate(others, start=1):
        for (a, here), (b, there) in itertools.zip_longest(first, other, fillvalue=(None, "missing")):
            if a != b:
                both = f"{here} in source 0 and {there} in source {i}"
                raise ValueError(
                    f"source {i} does not fit source 0: the first layer that differs is {both}; all must be alike"
                )
    for i, source in enumerate(sources[1:], start=1):
        for (name, ours), theirs in zip(sources[0].named_modules(), source.modules(), strict=True):
            if _hooks(ours) != _hooks(theirs):
                log.warning("%s: source %d has other hooks; the merge has source 0's", name or "the network", i)
    for (i, one), (j, other) in itertools.combinations(enumerate(sources), 2):
        pairs = [(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True) if not a.is_meta]
        if all(torch.equal(a, b) for a, b in pairs) and any(a.any() for a, _ in pairs):
            log.warning("sources %d and %d have the same weights: no merging weight between them has an effect", i, j)


def copied(source: nn.Module) -> nn.Module:
    """A copy of a network that shares no layer with it.

    Raises:
        TypeError: it cannot be copied.
    """
    try:
        twin = copy.deepcopy(source)
    except Exception as error:
        raise TypeError(f"source 0 cannot be copied ({error}); take out what it holds beside its layers") from error
    for shared in {*source.modules()} & {*twin.modules()}:
        raise TypeError(f"source 0 cannot be copied: its {type(shared).__name__} gives itself for its copy")
    return twin


def is_embedding(module: nn.Module, name: str) -> bool:
    """Whether the parameter ``name`` of ``module`` is one of :data:`EMBEDDINGS`."""
    come = [kind.__module__ for kind in type(module).__mro__]
    return any(name in known and any(one.startswith(begin) for one in come) for begin, known in EMBEDDINGS.items())


def _fault(module: nn.Module) -> str:
    """What keeps a layer's own weights from being merged, and the way out; empty where nothing does."""
    if hasattr(module, "kernel_weights"):
        return "is a merge; fold() it, or merge its own sources with the others"
    if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
        return "is compiled; merge the network that it was compiled from"
    for computes in (module, *module._forward_pre_hooks.values()):
        for undo in (_UNDO[kind.__module__] for kind in type(computes).__mro__ if kind.__module__ in _UNDO):
            tensors = getattr(computes, "parametrizations", [getattr(computes, "_tensor_name", "weight")])
            key = getattr(computes, "name", next(iter(tensors)))
            return f"computes its {key}; first call torch.nn.utils.{undo}(layer, {key!r})"
    for key, value in (*module._parameters.items(), *module._buffers.items(), *vars(module).items()):
        if isinstance(value, (Tensor, torch.ScriptObject)) and (wrong := _wrong(value)):
            return f"holds {key}, which {wrong}"
    for kernels in kernel_layers(module):
        for key in (kernels.weight, kernels.bias) if kernels.module is module else ():
            value = module._parameters.get(key)
            dense = value is not None and type(value.detach()) is Tensor and not value.is_sparse
            if key and not (dense and value.is_floating_point()):
                return f"has a {key} that is no dense parameter of floating-point numbers; make it an nn.Parameter"
    return ""


def _hooks(module: nn.Module) -> list[object]:
    """What is called before and after a module: code, or the class of what has none."""
    hooks = *module._forward_pre_hooks.values(), None, *module._forward_hooks.values()
    return [getattr(hook, "__code__", type(hook)) for hook in hooks]


def _wrong(value: Tensor | torch.ScriptObject) -> str:
    """What keeps a tensor from being merged or copied, and the way out; empty where nothing does."""
    if is_lazy(value):
        return "has no shape yet; run the network once on a batch"
    if isinstance(value, torch.ScriptObject) or value.is_quantized:
        return "is packed or quantised; merge the network before it is converted"
    if value.is_inference():
        return "was made in torch.inference_mode, and cannot learn; build or load the network outside, or under no_grad"
    return "is part of a graph; keep it with .detach()" if value.grad_fn is not None else ""


def _check_kernels(source: nn.Module) -> None:
    """Raise if a parameter with several dimensions is no kernel, or one that several layers share is not one kernel."""
    roles: dict[tuple[nn.Module, str | None], tuple] = {}
    for layer in kernel_layers(source):
        weight, bias = getattr(layer.module, layer.weight), getattr(layer.module, layer.bias or layer.weight)
        roles[layer.module, layer.bias] = id(weight), id(bias)
        roles[layer.module, layer.weight] = bool(layer.groups), id(weight)
    seen: dict[tuple, tuple] = {}
    for name, module in source.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            path, role = f"{name}.{key}".lstrip("."), roles.get((module, key))
            known, other = seen.setdefault((parameter.data_ptr() or path, parameter.shape), (path, role))
            if role != other:
                raise TypeError(f"{path} and {known} share their memory, but are not one kernel; untie or tie them")
            several = sum(size > 1 for size in parameter.shape) > 1
            if several and not role and not isinstance(module, _NORM_LAYERS) and not is_embedding(module, key):
                known = (
                    "a kernel of a convolution or linear layer, a per-channel parameter or a known position embedding"
                )
                raise TypeError(f"{path} {list(parameter.shape)} of a {type(module).__name__} is not {known}")


def _facts(source: nn.Module) -> Iterator[tuple[object, str]]:
    """All that must be alike in sources: what is compared, and how it reads in a message.

    Of tensors that are merged shape and type; ties between them; layers' classes; every other attribute, however deep,
    and integer buffers but for single numbers, such as counts of batches.
    """
    tensors = [*source.named_parameters(remove_duplicate=False), *source.named_buffers(remove_duplicate=False)]
    parts = {id(part): name or "the network" for name, part in reversed([*source.named_modules(), *tensors])}
    for name, tensor in tensors:
        tied = "" if parts[id(tensor)] == name else f", tied to {parts[id(tensor)]}"
        text = f"{name} {list(tensor.shape)} ({str(tensor.dtype).removeprefix('torch.')}, {tensor.device}{tied})"
        yield text, text
    for name, module in source.named_modules():
        text = f"{name} {type(module).__name__}".lstrip()
        yield text, text
    kernels = {id(getattr(one.module, key)) for one in kernel_layers(source) for key in (one.weight, one.bias) if key}
    for name, module in source.named_modules():
        tables = [(key, value) for key, value in module._buffers.items() if value is not None and value.numel() > 1]
        held = {key: value.clone() for key, value in tables if not value.is_floating_point()}
        held |= {key: value for key, value in vars(module).items() if key not in _OF_MODULES | NOT_COMPARED}
        for key, value in sorted(held.items()):
            text = reprlib.repr(value) if len(repr(value)) > 100 else repr(value)
            shown = f"{name} {type(module).__name__}({key}={text})".lstrip()
            yield (name, key, _told(value, f"{name}.{key}".lstrip("."), parts, kernels)), shown
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            _told(hook, f"a hook of {name}", parts, kernels)


def _told(value: Any, where: str, parts: Mapping[int, str], kernels: set[int], within: tuple = ()) -> object:
    """``value`` as tuples and text: equal for equal values, with their names for the network's own parts.

    Raises:
        TypeError: it holds what a copy of the network could not.
    """
    weak = isinstance(value, weakref.ref)
    name = parts.get(id(value() if weak else value))
    if name and weak:
        raise TypeError(f"{where} holds a weak reference to {name}, which no copy follows")
    if id(value) in kernels:
        raise TypeError(f"{where} holds a kernel, {name}, outside its layer; read it from the layer")
    if name and any(isinstance(outer, types.FunctionType) for outer in within):
        raise TypeError(
            f"{where} holds a function that keeps {name} of this source, and its copy too; make it a method"
        )
    if name or any(value is outer for outer in within):
        return name or "itself"
    if isinstance(value, (type, types.ModuleType)):
        return value.__name__
    if value is None or isinstance(value, (str, bytes, int, float, complex)):
        return repr(value)
    if isinstance(value, Tensor) and (wrong := _wrong(value)):
        raise TypeError(f"{where} holds a tensor that {wrong}")
    try:
        held = _held(value)
    except Exception:  # no two of a kind can be told apart, nor is there a part of the network in them
        held = ()
    return type(value).__name__, *(_told(one, where, parts, kernels, (*within, value)) for one in held)


def _held(value: Any) -> Iterable[object]:
    """All that an object is made of."""
    if isinstance(value, Tensor):
        return str(value.dtype), *value.shape, value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return [item for item in value.items() if item[0] not in NOT_COMPARED]
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, functools._lru_cache_wrapper):
        return [value.__wrapped__]
    if isinstance(value, types.FunctionType):
        code, kept = value.__code__, [cell.cell_contents for cell in value.__closure__ or ()]
        return code.co_code, code.co_names, repr(code.co_consts), kept, value.__defaults__, value.__kwdefaults__
    how = value.__reduce_ex__(4)  # as copy.deepcopy asks: its class, arguments, attributes and two iterators
    return [how] if isinstance(how, str) else [*how[:3], *map(list, filter(None, how[3:]))]
