"""Which networks can be merged: where their kernels are, what must be alike, and what no copy can carry along."""

import copy
import functools
import io
import itertools
import logging
import pickle
import reprlib
import types
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

log = logging.getLogger(__name__)

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

_NORM_LAYERS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_REWRITTEN = {
    BasePruningMethod: "torch.nn.utils.prune.remove",
    WeightNorm: "torch.nn.utils.remove_weight_norm",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm",
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
    """Raise unless the sources can be merged; two that have the same weights are said in the log.

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
    first, *others = ([*_facts(source)] for source in sources)
    for i, other in enumerate(others, start=1):
        for (a, here), (b, there) in itertools.zip_longest(first, other, fillvalue=(None, "missing")):
            if a != b:
                raise ValueError(
                    f"source {i} does not fit source 0: the first layer that differs is {here} in source 0 and {there} "
                    f"in source {i}. Only networks of one architecture, device and precision can be merged, and what "
                    "else they hold must be alike"
                )
    _check_kernels(sources[0])
    for i, j in itertools.combinations(range(len(sources)), 2):
        if same_weights(sources[i], sources[j]):
            log.warning(
                "sources %d and %d have the same weights: between them, no merging weight changes anything", i, j
            )


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks of one architecture have the same parameters, not all of them zero."""
    pairs = [(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True) if not a.is_meta]
    return all(torch.equal(a, b) for a, b in pairs) and any(a.any() for a, _ in pairs)


def copied(source: nn.Module) -> nn.Module:
    """A copy of a network that shares no layer with it.

    Raises:
        TypeError: it cannot be copied.
    """
    try:
        twin = copy.deepcopy(source)
    except Exception as error:
        raise TypeError(f"source 0 cannot be copied ({error}); take out what it holds beside its layers") from error
    if shared := {*source.modules()} & {*twin.modules()}:
        kind = type(shared.pop()).__name__
        raise TypeError(f"source 0 cannot be copied: its {kind} gives itself for its copy; leave out its __deepcopy__")
    return twin


def is_embedding(module: nn.Module, name: str) -> bool:
    """Whether the parameter ``name`` of ``module`` is one of :data:`EMBEDDINGS`."""
    come = [kind.__module__ for kind in type(module).__mro__]
    return any(name == known and any(one.startswith(begin) for one in come) for begin, known in EMBEDDINGS)


def _fault(module: nn.Module) -> str:
    """What keeps a layer's own weights from being merged, and the way out; empty where nothing does."""
    if hasattr(module, "kernel_weights"):
        return "is a merge; fold() it, or merge its own sources with the others"
    if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
        return "is compiled; merge the network that it was compiled from"
    if parametrize.is_parametrized(module):
        key = next(iter(module.parametrizations))
        return f"is parametrised; first call torch.nn.utils.parametrize.remove_parametrizations(layer, {key!r})"
    for hook in module._forward_pre_hooks.values():
        for call in (call for kind, call in _REWRITTEN.items() if isinstance(hook, kind)):
            key = getattr(hook, "name", getattr(hook, "_tensor_name", "weight"))
            return f"computes its {key} in a hook; first call {call}(layer, {key!r})"
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
    roles: dict[tuple, tuple[str, object]] = {}
    own = set()
    for layer in kernel_layers(source):
        weight = getattr(layer.module, layer.weight)
        for key, role in ((layer.weight, bool(layer.groups)), (layer.bias, id(weight))):
            own.add((layer.module, key))
            if key:
                tensor, path = getattr(layer.module, key), f"{layer.owner}.{key}".lstrip(".")
                known, *others = roles.setdefault((tensor.data_ptr() or path, tensor.shape), (path, role, id(tensor)))
                if others != [role, id(tensor)]:
                    raise TypeError(f"{path} and {known} share their memory, but are not one kernel; untie or tie them")
    for name, module in source.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is None or (module, key) in own:
                continue
            path = f"{f'{name}.{key}'.lstrip('.')} {list(parameter.shape)} of a {type(module).__name__}"
            if tied := roles.get((parameter.data_ptr(), parameter.shape)):
                raise TypeError(f"{path} is tied to kernels, {tied[0]}; untie it")
            several = sum(size > 1 for size in parameter.shape) > 1
            if several and not isinstance(module, _NORM_LAYERS) and not is_embedding(module, key):
                raise TypeError(
                    f"{path} is neither a kernel of a convolution or linear layer, nor a per-channel parameter, nor a "
                    "known position embedding: it cannot be merged by kernel"
                )


def _facts(source: nn.Module) -> Iterator[tuple[object, str]]:
    """All that must be alike in sources: what is compared, and how it reads in a message.

    Of tensors that are merged shape and type; ties between them; layers' classes; every other attribute, however deep,
    and integer buffers but for single numbers, such as counts of batches.
    """
    for name, tensor in (*source.named_parameters(), *source.named_buffers()):
        text = f"{name} {list(tensor.shape)} ({str(tensor.dtype).removeprefix('torch.')}, {tensor.device})"
        yield text, text
    for name, module in source.named_modules():
        text = f"{name} {type(module).__name__}".lstrip()
        yield text, text
    names = {id(value): name for name, value in (*source.named_modules(), *source.named_buffers())}
    names |= {id(value): name for name, value in source.named_parameters()}
    kernels = {id(getattr(one.module, key)) for one in kernel_layers(source) for key in (one.weight, one.bias) if key}
    for name, module in source.named_modules():
        held = {key: names.get(id(value)) for key, value in module._parameters.items()}
        tables = module._buffers.items()
        held |= {key: t.clone() for key, t in tables if t is not None and not t.is_floating_point() and t.numel() > 1}
        held |= {key: value for key, value in vars(module).items() if key not in _OF_MODULES | NOT_COMPARED}
        for key, value in sorted(held.items()):
            text = reprlib.repr(value) if len(repr(value)) > 100 else repr(value)
            where = f"{name}.{key}".lstrip(".")
            shown = f"{name} {type(module).__name__}({key}={text})".lstrip()
            yield (name, key, _State(where, names, kernels).of(value)), shown
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            _State(f"a hook of {name}", names, kernels).of(list(hooks.values()))


class _Refused(TypeError):
    """What an attribute holds cannot be copied as part of a network."""


class _State(pickle.Pickler):
    """Bytes that are the same for values that are the same, in which the network's own parts stand as their names."""

    def __init__(self, where: str, names: Mapping[int, str], kernels: Collection[int]):
        self.file, self.where, self.names, self.kernels = io.BytesIO(), where, names, kernels
        self.parts: list[str] = []
        super().__init__(self.file)
        self.fast = True  # equal values give equal bytes, whether they are one object or two

    def of(self, value: object) -> bytes:
        """The bytes of ``value``; none for what cannot be told."""
        try:
            self.dump(value)
        except _Refused:
            raise
        except Exception:
            return b""
        return self.file.getvalue()

    def persistent_id(self, value: object) -> str | None:
        if id(value) in self.kernels:
            name = self.names[id(value)]
            raise _Refused(f"{self.where} holds a kernel, {name}, outside its layer; read it from the layer")
        if id(value) in self.names:
            self.parts.append(self.names[id(value)] or "the network")
            return self.parts[-1]
        return None

    def reducer_override(self, value: object) -> object:
        if isinstance(value, Tensor):
            if wrong := _wrong(value):
                raise _Refused(f"{self.where} holds a tensor that {wrong}")
            content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            return _as(str(value.dtype), tuple(value.shape), content)
        if isinstance(value, weakref.ref):
            if id(value()) in self.names:
                raise _Refused(f"{self.where} holds a weak reference to a part of the network, which no copy follows")
            return _as("weak reference")
        if isinstance(value, functools._lru_cache_wrapper):
            return _as(value.__wrapped__)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, (type, types.ModuleType)):
            return NotImplemented if value is tuple else _as(value.__name__)
        own = type(value).__reduce__ is not object.__reduce__ or type(value).__reduce_ex__ is not object.__reduce_ex__
        if hasattr(value, "__dict__") and not own:
            return _as(type(value).__qualname__, {k: v for k, v in vars(value).items() if k not in NOT_COMPARED})
        return NotImplemented

    def _function(self, function: types.FunctionType) -> object:
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        held = [cells, function.__defaults__, function.__kwdefaults__]
        inner = _State(self.where, self.names, self.kernels)
        found = inner.of(held)
        if inner.parts:
            raise _Refused(
                f"{self.where} holds a function that keeps {inner.parts[0]} of this source, and a copy would too; make "
                "it a method, or give it what it needs as an argument"
            )
        code = function.__code__
        return _as(code.co_code, code.co_names, repr(code.co_consts), found)


def _as(*parts: object) -> tuple:
    return tuple, (parts,)
