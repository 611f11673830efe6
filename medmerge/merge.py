"""Learn, kernel by kernel, how to merge networks trained on different data (MedMerge, section 2).

Two networks of one architecture, with kernels ``theta_b`` and ``theta_c``, become one whose j-th kernel is
``w_j * theta_b[j] + (1 - w_j) * theta_c[j]``. Only the ``w`` and the normalisation layers have gradients; once they are
learnt, :meth:`KernelMerge.fold` gives an ordinary network of the sources' class.
"""

import copy
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

GRANULARITIES = ("kernel", "parameter", "layer", "model")
NORMALISATIONS = ("affine", "softmax")

_KERNEL_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORM_LAYERS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


class KernelMerge(nn.Module):
    """One network out of several, with learnable merging weights (paper, section 2).

    A kernel is an output filter of a convolution, ``weight[j]`` with its bias ``bias[j]``; in a linear layer it is an
    output row. The merged kernels are computed in every ``forward`` from the sources' frozen ones, so the only
    parameters of this module are the merging weights and the affine parameters of the normalisation layers.

    Args:
        sources: two or more modules of the same architecture. They are copied and never changed.
        granularity: what shares one merging weight: a ``"kernel"`` (the paper), every single ``"parameter"``, a
            ``"layer"``, or the whole ``"model"``.
        batchnorm: where normalisation layers start (affine parameters and running statistics, and per-channel
            scales such as ConvNeXt's): ``"mean"`` over the sources (the paper), or the index of the source to take
            them from. Integer buffers (``num_batches_tracked``) are never averaged: they are that source's, the
            first's for ``"mean"``.
        normalisation: how the weights of the sources come to sum to one. ``"affine"`` learns all but the last and
            leaves them unconstrained (the paper: w and 1 - w); ``"softmax"`` learns logits, so that weights stay
            within 0 and 1. By default affine for two sources and softmax for more.

    Every source starts with the same weight: 0.5 for two, as in the paper.

    Raises:
        ValueError: fewer than two sources, an unknown option, or sources that do not fit together; the message
            names the first layer that differs and both shapes.
        TypeError: a source is not a module, or holds parameters that are neither kernels nor per-channel.
    """

    def __init__(
        self,
        sources: Sequence[nn.Module],
        *,
        granularity: str = "kernel",
        batchnorm: str | int = "mean",
        normalisation: str | None = None,
    ):
        super().__init__()
        sources = list(sources)
        if normalisation is None:
            normalisation = "affine" if len(sources) == 2 else "softmax"
        _check_choice("granularity", granularity, GRANULARITIES)
        _check_choice("normalisation", normalisation, NORMALISATIONS)
        _check_batchnorm(batchnorm, len(sources))
        _check_alike(sources)
        self.granularity, self.normalisation, self.batchnorm = granularity, normalisation, batchnorm
        self.num_sources = len(sources)
        shared = _start((), self.num_sources, normalisation, sources[0]) if granularity == "model" else None

        def merge_layer(name: str, module: nn.Module) -> nn.Module | None:
            if not _is_kernel_layer(module):
                return None
            layers = [source.get_submodule(name) for source in sources]
            return _MergedLayer(layers, granularity, normalisation, shared)

        self.merged = _replace(_with_merged_norms(sources, batchnorm), merge_layer)
        if not any(True for _ in self.layers()):
            raise TypeError("the sources hold no convolution and no linear layer: there is no kernel to merge")

    def forward(self, x: Tensor) -> Tensor:
        """What the sources return for ``x``; for a backbone, features ``[N, num_features]``."""
        return self.merged(x)

    @property
    def num_features(self) -> int:
        """Width of the sources' output, where they state one."""
        return self.merged.num_features

    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Names of the merged layers (as in the sources) with their modules, in the sources' order."""
        for name, module in self.merged.named_modules():
            if isinstance(module, _MergedLayer):
                yield name, module

    def merging_parameters(self) -> list[nn.Parameter]:
        """The parameters that hold the merging weights, each once; the others are the normalisation layers'."""
        return list({id(w): w for _, layer in self.layers() for _, w, _ in layer.mixtures()}.values())

    @torch.no_grad()
    def kernel_weights(self) -> dict[str, Tensor]:
        """The merging weights in use, by layer name, detached.

        Returns:
            For two sources the first source's weight w of every kernel, ``[kernels]``; for n > 2 the weight of every
            source, ``[n, kernels]``. A weight that is shared (granularity ``"layer"`` and ``"model"``) is repeated.
            With granularity ``"parameter"`` the trailing shape is the layer's weight's, and biases have entries of
            their own, ``"<layer>.bias"``.
        """
        weights = {}
        for name, layer in self.layers():
            for suffix, w, kernels in layer.mixtures():
                share = _shares(w, self.normalisation)
                share = share if self.num_sources > 2 else share[0]
                if self.granularity in ("layer", "model"):
                    share = share[..., None].expand(*share.shape, kernels)
                weights[name + suffix] = share.detach().clone()
        return weights

    @torch.no_grad()
    def set_kernel_weights(self, weights: float | Mapping[str, Tensor | float]) -> None:
        """Set the merging weights of all layers, or of those named.

        Args:
            weights: the first source's weight for all kernels (with n > 2 sources the others share the rest
                equally), or a mapping from layer names to such a number or to a tensor as :meth:`kernel_weights`
                gives it. Layers that the mapping leaves out keep theirs.

        Raises:
            KeyError: a layer that is not there (the nearest name is given).
            ValueError: a shape that does not fit; weights that do not sum to one; with ``"softmax"``, weights
                outside 0 and 1; different weights where the granularity allows one.
        """
        slots = {
            name + suffix: (w, kernels) for name, layer in self.layers() for suffix, w, kernels in layer.mixtures()
        }
        if not isinstance(weights, Mapping):
            weights = dict.fromkeys(slots, weights)
        if unknown := [name for name in weights if name not in slots]:
            near = difflib.get_close_matches(unknown[0], slots, 1) or [next(iter(slots))]
            raise KeyError(f"no merged layer {unknown[0]!r}; the nearest of {len(slots)} is {near[0]!r}")
        new: dict[int, Tensor] = {}
        for name, value in weights.items():
            w, kernels = slots[name]
            stored = self._stored(name, value, w, kernels)
            if not torch.equal(new.setdefault(id(w), stored), stored):
                raise ValueError(f"all layers share one weight (granularity 'model'), but {name} is given another")
        for w, _ in slots.values():
            if id(w) in new:
                w.copy_(new[id(w)])

    def _stored(self, name: str, value: Tensor | float, w: Tensor, kernels: int) -> Tensor:
        """``value`` in the form in which ``w`` holds it."""
        n, shape = self.num_sources, w.shape[1:]
        value = torch.as_tensor(value, dtype=w.dtype, device=w.device)
        if value.dim() == 0:
            share = torch.cat([value.expand(1), ((1 - value) / (n - 1)).expand(n - 1)])
            share = share.view(n, *[1] * len(shape)).expand(n, *shape)
        else:
            full = shape if self.granularity in ("kernel", "parameter") else torch.Size([kernels])
            wanted = full if n == 2 else (n, *full)
            if value.shape != torch.Size(wanted):
                raise ValueError(f"weights of {name} have shape {list(value.shape)}, not {list(wanted)}")
            share = torch.stack([value, 1 - value]) if n == 2 else value
            if full != shape:
                if (share != share[:, :1]).any():
                    raise ValueError(f"{name} has one weight (granularity {self.granularity!r}), not one per kernel")
                share = share[:, 0]
        if not torch.isfinite(share).all() or (share.sum(0) - 1).abs().max() > 1e-4:
            raise ValueError(f"weights of {name} must be finite and sum to one over the {n} sources")
        if self.normalisation == "affine":
            return share[:-1]
        if share.min() < 0 or share.max() > 1:
            raise ValueError(
                f"weights of {name} must lie within 0 and 1 (softmax), not {share.min():g}…{share.max():g}"
            )
        return share.log()

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """The merged network as an ordinary one: the first source's class and state dict keys, no trace of the merge.

        Its output is this module's, bit for bit. All parameters of the copy are trainable; ``self`` is not changed.
        """
        plain = _replace(copy.deepcopy(self.merged), lambda _, m: m.fold() if isinstance(m, _MergedLayer) else None)
        return plain.requires_grad_(True)

    def extra_repr(self) -> str:
        options = ("granularity", "batchnorm", "normalisation")
        return ", ".join([f"sources={self.num_sources}", *(f"{name}={getattr(self, name)!r}" for name in options)])


class _MergedLayer(nn.Module):
    """A convolution or linear layer whose kernels are a weighted mean of frozen ones.

    Args:
        layers: the layer in every source.
        granularity, normalisation: as for :class:`KernelMerge`.
        shared: the weight to use where one serves the whole model.
    """

    def __init__(self, layers: Sequence[nn.Module], granularity: str, normalisation: str, shared: nn.Parameter | None):
        super().__init__()
        first = layers[0]
        self.normalisation, self.num_sources = normalisation, len(layers)
        self.layer = copy.deepcopy(first)
        self.layer.weight = self.layer.bias = None
        for i, layer in enumerate(layers):
            self.register_buffer(f"weight_{i}", layer.weight.detach().clone())
            self.register_buffer(f"bias_{i}", None if layer.bias is None else layer.bias.detach().clone())
        shape = {"kernel": first.weight.shape[:1], "parameter": first.weight.shape}.get(granularity, ())
        self.w = shared if shared is not None else _start(shape, len(layers), normalisation, first)
        by_parameter = granularity == "parameter" and first.bias is not None
        self.w_bias = _start(first.bias.shape, len(layers), normalisation, first) if by_parameter else None

    def mixtures(self) -> Iterator[tuple[str, nn.Parameter, int]]:
        """Name suffix, stored weights ``[rows, ...]`` and number of kernels of each set of merging weights."""
        yield "", self.w, len(self.weight_0)
        if self.w_bias is not None:
            yield ".bias", self.w_bias, len(self.weight_0)

    def kernels(self) -> tuple[Tensor, Tensor | None]:
        """The merged weight and bias, shaped as in the sources."""
        weights = [getattr(self, f"weight_{i}") for i in range(self.num_sources)]
        biases = [getattr(self, f"bias_{i}") for i in range(self.num_sources)]
        weight = _mix(self.w, weights, self.normalisation)
        if biases[0] is None:
            return weight, None
        return weight, _mix(self.w if self.w_bias is None else self.w_bias, biases, self.normalisation)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.kernels()
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, bias)
        return self.layer._conv_forward(x, weight, bias)

    def fold(self) -> nn.Module:
        """The ordinary layer with the merged kernels."""
        layer = copy.deepcopy(self.layer)
        weight, bias = self.kernels()
        layer.weight = nn.Parameter(weight.detach().clone())
        layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        return layer


@torch.no_grad()
def zeros_like(source: nn.Module) -> nn.Module:
    """A copy of ``source`` whose kernels are all zero: the paper's "combining with zeros" (section 4).

    Kernels and biases of convolutions and linear layers become zero. Normalisation layers stay as they are, so that
    merging with the copy weighs the source's kernels against nothing and leaves the rest alone.
    """
    zeros = copy.deepcopy(source)
    for module in zeros.modules():
        if _is_kernel_layer(module):
            for parameter in module.parameters(recurse=False):
                parameter.zero_()
    return zeros


def _mix(w: Tensor, sources: Sequence[Tensor], normalisation: str) -> Tensor:
    """Weighted mean of ``sources``, each ``[kernels, ...]``, under stored weights ``w`` ``[rows, ...]``.

    Two sources go through ``lerp``, which is exact at both ends and where the sources are equal, for any ``w``.
    """
    dims = sources[0].dim()
    if len(sources) == 2:
        first = w[0] if normalisation == "affine" else w.softmax(0)[0]
        return torch.lerp(sources[1], sources[0], _align(first, dims))
    shares = _shares(w, normalisation)
    return sum(_align(share, dims) * source for share, source in zip(shares, sources, strict=True))


def _shares(w: Tensor, normalisation: str) -> Tensor:
    """Weights of all n sources ``[n, ...]`` from the stored ones: n - 1 rows (affine) or n rows of logits (softmax)."""
    return w.softmax(0) if normalisation == "softmax" else torch.cat([w, 1 - w.sum(0, keepdim=True)])


def _align(w: Tensor, dims: int) -> Tensor:
    return w.reshape(w.shape + (1,) * (dims - w.dim()))


def _start(shape: Sequence[int], n: int, normalisation: str, like: nn.Module) -> nn.Parameter:
    """Stored weights that give every one of ``n`` sources the same share."""
    reference = next(like.parameters())
    if normalisation == "affine":
        return nn.Parameter(torch.full((n - 1, *shape), 1 / n, dtype=reference.dtype, device=reference.device))
    return nn.Parameter(torch.zeros((n, *shape), dtype=reference.dtype, device=reference.device))


def _is_kernel_layer(module: nn.Module) -> bool:
    """Whether the module's own forward is that of a plain convolution or linear layer."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in _KERNEL_LAYERS)


@torch.no_grad()
def _with_merged_norms(sources: Sequence[nn.Module], batchnorm: str | int) -> nn.Module:
    """A copy of the first source in which everything but the kernel layers is merged by the ``batchnorm`` policy."""
    base = copy.deepcopy(sources[0])
    for module, *twins in zip(base.modules(), *(source.modules() for source in sources), strict=True):
        if _is_kernel_layer(module):
            continue
        own = {**module._parameters, **module._buffers}
        for name, tensor in own.items():
            if tensor is None:
                continue
            values = [getattr(twin, name) for twin in twins]
            if batchnorm != "mean":
                tensor.copy_(values[batchnorm])
            elif tensor.is_floating_point():
                tensor.copy_(torch.stack(values).mean(0))
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter.requires_grad_(True)
    return base


def _replace(root: nn.Module, new: Callable[[str, nn.Module], nn.Module | None]) -> nn.Module:
    """``root`` with every module ``m`` that has a ``new(name, m)`` replaced by it, in place.

    A module that is used in several places gives way to one replacement in all of them.
    """
    done: dict[int, nn.Module] = {}
    for name, module in list(root.named_modules(remove_duplicate=False)):
        if id(module) not in done:
            replacement = new(name, module)
            if replacement is None:
                continue
            done[id(module)] = replacement.train(module.training)
        if not name:
            return done[id(module)]
        root.set_submodule(name, done[id(module)])
    return root


def _check_choice(what: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{what}={value!r} is not one of {', '.join(map(repr, allowed))}")


def _check_batchnorm(batchnorm: object, n: int) -> None:
    index = isinstance(batchnorm, int) and not isinstance(batchnorm, bool) and 0 <= batchnorm < n
    if batchnorm != "mean" and not index:
        raise ValueError(f"batchnorm={batchnorm!r} is neither 'mean' nor the index of a source (0 to {n - 1})")


def _check_alike(sources: Sequence[nn.Module]) -> None:
    """Raise unless all sources have the same modules, options, tensor names, shapes and dtypes."""
    for source in sources:
        if not isinstance(source, nn.Module):
            raise TypeError(f"a source is a {type(source).__name__}, not a torch.nn.Module; load it with backbone()")
    if len(sources) < 2:
        raise ValueError(f"merging needs two or more sources, got {len(sources)}")
    first = sources[0]
    for i, other in enumerate(sources[1:], start=1):
        for a, b in zip_longest(_tensors(first), _tensors(other)):
            if a != b:
                raise ValueError(
                    f"source {i} does not fit source 0: the first layer that differs is {_described(a)} in source 0 "
                    f"and {_described(b)} in source {i}. Only networks of one architecture can be merged"
                )
        for a, b in zip_longest(_options(first), _options(other)):
            if a != b:
                raise ValueError(f"source {i} does not fit source 0: {a} in source 0 is {b} in source {i}")
    for name, module in first.named_modules():
        if _is_kernel_layer(module) or isinstance(module, _NORM_LAYERS):
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if sum(size > 1 for size in parameter.shape) > 1:
                raise TypeError(
                    f"{f'{name}.{own}'.lstrip('.')} {list(parameter.shape)} of a {type(module).__name__} is neither a "
                    "kernel of a convolution or linear layer nor a per-channel parameter: it cannot be merged by kernel"
                )


def _tensors(module: nn.Module) -> Iterator[tuple[str, tuple[int, ...], torch.dtype, torch.device]]:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        yield name, tuple(tensor.shape), tensor.dtype, tensor.device


def _options(module: nn.Module) -> Iterator[str]:
    for name, child in module.named_modules():
        yield f"{name} {type(child).__name__}({child.extra_repr()})".lstrip()


def _described(entry: tuple[str, tuple[int, ...], torch.dtype, torch.device] | None) -> str:
    if entry is None:
        return "missing"
    name, shape, dtype, device = entry
    return f"{name} {list(shape)} ({str(dtype).removeprefix('torch.')}, {device})"
