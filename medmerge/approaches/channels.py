"""Follow groups of channels through a network: where the outputs of each layer come to lie in every tensor.

The network is run once, without data, and every torch function that it calls is watched; so there is nothing to know
of its architecture. :func:`medmerge.approaches.matching.permutation_groups` is what this is for.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def named_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


class Block(NamedTuple):
    """Consecutive positions of one group; ``group`` None: positions that stay."""

    group: int | None
    size: int
    repeat: int = 1


class Layout(NamedTuple):
    """What lies along the channel axis of a tensor."""

    axis: int
    blocks: tuple[Block, ...]


class Watch(TorchFunctionMode):
    """Notes, for all functions called while it is active, how groups of channels come to lie in their results.

    A tensor without a layout is fixed: none of its positions may move.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.names = {id(tensor): name for name, tensor in named_tensors(network).items()}
        self.layouts: dict[int, Layout] = {}  # of activations, by id
        self.known = set(self.names)
        self.kept: list[Tensor] = []  # so that no id is used again
        self.axes: dict[tuple[str, int], tuple[Block, ...]] = {}  # of parameters and buffers
        self.layers: list[str] = []  # which made each group
        self.roots: list[int] = []  # the group that it was united with, or itself
        self.fixed: set[int] = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = list(tensors_in((args, kwargs)))
        if not self.known.issuperset(map(id, given)):  # made where nobody watched, of anything there was before
            self.fixed.update(range(len(self.roots)))
        result = function(*args, **kwargs)
        results = list(tensors_in(result))
        self.kept += results
        self.known.update(map(id, results))
        name = getattr(function, "__name__", "").strip("_")
        rule = _RULES.get(name)
        layout = rule(self, result, *args, **kwargs) if rule and isinstance(result, Tensor) else None
        if layout is not None:
            self.layouts[id(result)] = layout
        elif results or name == "setitem":
            self.fix(given)
        return result

    def root(self, group: int | None) -> int | None:
        """The group that stands for all that ``group`` is united with; None where it stays in place."""
        while group is not None and self.roots[group] != group:
            group = self.roots[group]
        return None if group in self.fixed else group

    def fix(self, tensors: Iterable[Tensor]) -> None:
        """Let nothing that lies in ``tensors`` be permuted."""
        for tensor in tensors:
            if id(tensor) in self.layouts:
                self.pin(self.layouts[id(tensor)].blocks)
            for axis in range(tensor.dim()) if id(tensor) in self.names else ():
                self.tie(tensor, axis, (Block(None, tensor.shape[axis]),))

    def pin(self, blocks: Iterable[Block]) -> None:
        self.fixed |= {root for block in blocks if (root := self.root(block.group)) is not None}

    def unite(self, first: Sequence[Block], second: Sequence[Block]) -> None:
        """Let both be permuted alike, or not at all."""
        if [block[1:] for block in first] != [block[1:] for block in second]:
            return self.pin((*first, *second))
        for one, other in zip(first, second, strict=True):
            a, b = self.root(one.group), self.root(other.group)
            if a is None or b is None:
                self.pin((one, other))
            else:
                self.roots[max(a, b)] = min(a, b)

    def tie(self, tensor: Tensor | None, axis: int, blocks: tuple[Block, ...]) -> None:
        """Note that ``blocks`` lie on an axis of a parameter or buffer."""
        if tensor is None:
            return
        if id(tensor) not in self.names:  # computed from parameters: what to permute in them is not known
            return self.pin(blocks)
        self.unite(self.axes.setdefault((self.names[id(tensor)], axis), blocks), blocks)

    def blocks(self, tensor: Tensor, axis: int) -> tuple[Block, ...] | None:
        """What lies on the axis of an activation; None if its channels lie on another."""
        axis %= tensor.dim()
        layout = self.layouts.get(id(tensor), Layout(axis, (Block(None, tensor.shape[axis]),)))
        return layout.blocks if layout.axis == axis else None

    def outputs(self, weight: Tensor) -> tuple[Block, ...]:
        """What a layer makes: a new group, or what it made before if it is used again."""
        name = self.names[id(weight)]
        if (name, 0) not in self.axes:
            self.roots.append(len(self.roots))
            self.layers.append(name.removesuffix(".weight"))
            return (Block(self.roots[-1], len(weight)),)
        return self.axes[name, 0]


# Each rule takes the watch, a function's result and its arguments. It gives the layout of the result; None: not known.


def _kernels(watch, result, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Of a convolution, or of a linear layer, whose channels lie on the last axis."""
    axis = 1 if weight.dim() > 2 else input.dim() - 1
    known = id(weight) in watch.names and (weight.dim() == 2 or input.dim() == weight.dim())
    blocks = watch.blocks(input, axis) if known and (groups == 1 or groups == input.shape[1]) else None
    if not blocks:
        return None
    if groups == 1:
        watch.tie(weight, 1, blocks)
        blocks = watch.outputs(weight)
    else:  # depthwise
        each = len(weight) // groups
        blocks = tuple(Block(block.group, block.size, block.repeat * each) for block in blocks)
    watch.tie(weight, 0, blocks)
    watch.tie(bias, 0, blocks)
    return Layout(axis, blocks)


def _batch_norm(watch, result, input, running_mean=None, running_var=None, weight=None, bias=None, *_, **__):
    return _normalised(watch, input, 1, running_mean, running_var, weight, bias)


def _layer_norm(watch, result, input, normalized_shape, weight=None, bias=None, *_, **__):
    whole = len(normalized_shape) == 1
    return _normalised(watch, input, input.dim() - 1, weight, bias) if whole else None


def _group_norm(watch, result, input, num_groups, weight=None, bias=None, *_, **__):
    alike = num_groups in (1, input.shape[1])
    return _normalised(watch, input, 1, weight, bias) if alike else None


def _normalised(watch, input, axis, *tensors):
    blocks = watch.blocks(input, axis)
    for tensor in tensors if blocks else ():
        watch.tie(tensor, 0, blocks)
    return Layout(axis, blocks) if blocks else None


def _elementwise(watch, result, *args, **kwargs):
    tensors = list(tensors_in((args, kwargs)))
    layouts = {id(tensor): watch.layouts[id(tensor)] for tensor in tensors if id(tensor) in watch.layouts}
    full = {key: layout for key, layout in layouts.items() if _width(layout) > 1} or layouts
    ends = {layout.axis - tensor.dim() for tensor in tensors if (layout := layouts.get(id(tensor)))}
    if len(ends) != 1:
        return None
    (end,) = ends  # the channel axis, from the last
    first = next(iter(full.values()))
    if _width(first) != result.shape[end]:
        return None
    blocks = first.blocks
    for tensor in tensors:
        if id(tensor) in layouts:
            if id(tensor) in full:
                watch.unite(blocks, layouts[id(tensor)].blocks)
        elif tensor.dim() >= -end and tensor.shape[end] > 1:  # otherwise the same for all channels
            watch.tie(tensor, tensor.dim() + end, blocks)
    return Layout(result.dim() + end, blocks)


def _width(layout):
    return sum(block.size * block.repeat for block in layout.blocks)


def _pool(watch, result, input, *args, **kwargs):
    layout = watch.layouts.get(id(input))
    return layout if layout and layout.axis == input.dim() - 3 else None


def _mean(watch, result, input, dim=None, keepdim=False, **_):
    layout = watch.layouts.get(id(input))
    if not layout or dim is None:
        return None
    dims = {d % input.dim() for d in ([dim] if isinstance(dim, int) else dim)}
    before = 0 if keepdim else sum(d < layout.axis for d in dims)
    return None if layout.axis in dims else Layout(layout.axis - before, layout.blocks)


def _reshape(watch, result, input, *args, **kwargs):
    """Axes after the channels' may join it, as in a flattening; anything else is not known."""
    layout = watch.layouts.get(id(input))
    if not layout or result.shape[: layout.axis] != input.shape[: layout.axis]:
        return None
    axis = layout.axis
    for end in range(axis + 1, input.dim() + 1):
        merged = math.prod(input.shape[axis:end])
        if result.shape[axis:] == (merged, *input.shape[end:]):
            each = merged // input.shape[axis]
            return Layout(axis, tuple(Block(group, size, repeat * each) for group, size, repeat in layout.blocks))
    return None


def _permute(watch, result, input, *dims, **kwargs):
    layout = watch.layouts.get(id(input))
    dims = kwargs.get("dims", dims[0] if dims and not isinstance(dims[0], int) else dims)
    dims = [d % input.dim() for d in dims]
    return Layout(dims.index(layout.axis), layout.blocks) if layout else None


def _cat(watch, result, tensors, dim=0, **_):
    parts = [watch.blocks(tensor, dim) for tensor in tensors]
    return Layout(dim % result.dim(), sum(parts, ())) if all(parts) else None


_ELEMENTWISE = (
    "abs add clamp clone contiguous div dropout dropout1d dropout2d dropout3d elu exp feature_dropout float gelu "
    "hardsigmoid hardswish hardtanh iadd imul leaky_relu mish mul multiply neg radd relu relu6 rmul rsub selu sigmoid "
    "silu softplus sqrt square sub tanh to"
)
_RULES = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "linear"), _kernels),
    **dict.fromkeys(("batch_norm", "instance_norm"), _batch_norm),
    **dict.fromkeys(("avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"), _pool),
    **dict.fromkeys(("mean", "sum", "amax"), _mean),
    **dict.fromkeys(("flatten", "reshape", "view"), _reshape),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    **{"layer_norm": _layer_norm, "group_norm": _group_norm, "permute": _permute},
}


def tensors_in(value: object) -> Iterator[Tensor]:
    """The tensors in nested sequences and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        for one in value:
            yield from tensors_in(one)
