"""Learn, kernel by kernel, how to merge networks trained on different data (MedMerge, section 2).

Two networks of one architecture, with kernels ``theta_b`` and ``theta_c``, become one whose j-th kernel is
``w_j * theta_b[j] + (1 - w_j) * theta_c[j]``. Only the ``w`` and the normalisation layers have gradients; once they are
learnt, :meth:`KernelMerge.fold` gives an ordinary network of the sources' class.
"""

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from medmerge import kernels

GRANULARITIES = ("kernel", "parameter", "layer", "model")
NORMALISATIONS = ("affine", "softmax")

_NORM_LAYERS = (_NormBase, nn.LayerNorm, nn.GroupNorm)
_UNPRINTED = ("num_heads", "batch_first", "window_size", "shift_size")


class KernelMerge(nn.Module):
    """One network out of several, with learnable merging weights (paper, section 2).

    A kernel is an output filter of a convolution, ``weight[j]`` with its bias ``bias[j]``; in a linear layer it is an
    output row. Of ``nn.MultiheadAttention`` the input projection is such a layer too, called ``<attention>.in_proj``:
    its kernels are the rows of queries, keys and values. The merged kernels are computed in every ``forward`` from the
    sources' frozen ones, so the only parameters of this module are the merging weights, the affine parameters of the
    normalisation layers, and what else is a parameter a channel or a position (a transformer's class token and
    position embeddings, :data:`medmerge.kernels.EMBEDDINGS`).

    Args:
        sources: two or more modules of the same architecture. They are copied and never changed.
        granularity: what shares one merging weight: a ``"kernel"`` (the paper), every single ``"parameter"``, a
            ``"layer"``, or the whole ``"model"``.
        batchnorm: where normalisation layers start (affine parameters and running statistics, and with them
            per-channel scales such as ConvNeXt's, class tokens and position embeddings): ``"mean"`` over the sources
            (the paper), or the index of the source to take them from. Integer buffers (``num_batches_tracked``) are
            never averaged: they are that source's, the first's for ``"mean"``.
        normalisation: how the weights of the sources come to sum to one. ``"affine"`` learns all but the last and
            leaves them unconstrained (the paper: w and 1 - w); ``"softmax"`` learns logits, so that weights stay
            within 0 and 1. ``"auto"`` is affine for two sources and softmax for more.

    Every source starts with the same weight: 0.5 for two, as in the paper.

    Raises:
        ValueError: fewer than two sources, an unknown option, or sources that do not fit together; the message
            names the first layer that differs and both shapes.
        TypeError: a source is not a module, or holds parameters that are neither kernels, nor per-channel, nor known
            position embeddings.
    """

    def __init__(
        self,
        sources: Sequence[nn.Module],
        *,
        granularity: str = "kernel",
        batchnorm: str | int = "mean",
        normalisation: str = "auto",
    ):
        super().__init__()
        sources = list(sources)
        if normalisation == "auto":
            normalisation = "affine" if len(sources) == 2 else "softmax"
        _check_choice("granularity", granularity, GRANULARITIES)
        _check_choice("normalisation", normalisation, NORMALISATIONS)
        _check_batchnorm(batchnorm, len(sources))
        _check_alike(sources)
        sources = [kernels.split_attention(_shared_copy(source)) for source in sources]
        _check_mergeable(sources[0])
        self.granularity, self.normalisation, self.batchnorm = granularity, normalisation, batchnorm
        self.num_sources = len(sources)
        shared = kernels.start((), self.num_sources, normalisation, sources[0]) if granularity == "model" else None

        def merge_layer(name: str, module: nn.Module) -> nn.Module | None:
            if not kernels.is_kernel_layer(module):
                return None
            return kernels.MergedLayer([s.get_submodule(name) for s in sources], granularity, normalisation, shared)

        self.merged = kernels.replace(_with_merged_norms(sources, batchnorm), merge_layer)
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
            if isinstance(module, kernels.MergedLayer):
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
            for suffix, w, count in layer.mixtures():
                share = kernels.shares(w, self.normalisation)
                share = share if self.num_sources > 2 else share[0]
                if self.granularity in ("layer", "model"):
                    share = share[..., None].expand(*share.shape, count)
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
        slots = {name + suffix: (w, count) for name, layer in self.layers() for suffix, w, count in layer.mixtures()}
        if not isinstance(weights, Mapping):
            weights = dict.fromkeys(slots, weights)
        if unknown := [name for name in weights if name not in slots]:
            near = difflib.get_close_matches(unknown[0], slots, 1) or [next(iter(slots))]
            raise KeyError(f"no merged layer {unknown[0]!r}; the nearest of {len(slots)} is {near[0]!r}")
        new: dict[int, Tensor] = {}
        for name, value in weights.items():
            w, count = slots[name]
            stored = self._stored(name, value, w, count)
            if not torch.equal(new.setdefault(id(w), stored), stored):
                raise ValueError(f"all layers share one weight (granularity 'model'), but {name} is given another")
        for w, _ in slots.values():
            if id(w) in new:
                w.copy_(new[id(w)])

    def _stored(self, name: str, value: Tensor | float, w: Tensor, count: int) -> Tensor:
        """``value`` in the form in which ``w`` holds it."""
        n, shape = self.num_sources, w.shape[1:]
        value = torch.as_tensor(value, dtype=w.dtype, device=w.device)
        if value.dim() == 0:
            share = torch.cat([value.expand(1), ((1 - value) / (n - 1)).expand(n - 1)])
            share = share.view(n, *[1] * len(shape)).expand(n, *shape)
        else:
            full = shape if self.granularity in ("kernel", "parameter") else torch.Size([count])
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
        plain = copy.deepcopy(self.merged)
        plain = kernels.replace(plain, lambda _, m: m.fold() if isinstance(m, kernels.MergedLayer) else None)
        return kernels.join_attention(plain).requires_grad_(True)

    def extra_repr(self) -> str:
        options = ("granularity", "batchnorm", "normalisation")
        return ", ".join([f"sources={self.num_sources}", *(f"{name}={getattr(self, name)!r}" for name in options)])


@torch.no_grad()
def zeros_like(source: nn.Module) -> nn.Module:
    """A copy of ``source`` whose kernels are all zero: the paper's "combining with zeros" (section 4).

    Kernels and biases of convolutions and linear layers become zero, those in attention too. Normalisation layers and
    position embeddings stay as they are, so that merging with the copy weighs the source's kernels against nothing and
    leaves the rest alone.
    """
    zeros = kernels.split_attention(copy.deepcopy(source))
    for module in filter(kernels.is_kernel_layer, zeros.modules()):
        for parameter in module.parameters(recurse=False):
            parameter.zero_()
    return kernels.join_attention(zeros)


def _shared_copy(source: nn.Module) -> nn.Module:
    """A copy of ``source`` that shares its tensors."""
    return copy.deepcopy(source, {id(tensor): tensor for tensor in (*source.parameters(), *source.buffers())})


@torch.no_grad()
def _with_merged_norms(sources: Sequence[nn.Module], batchnorm: str | int) -> nn.Module:
    """A copy of the first source in which everything but the kernel layers is merged by the ``batchnorm`` policy."""
    base = copy.deepcopy(sources[0])
    for module, *twins in zip(base.modules(), *(source.modules() for source in sources), strict=True):
        if kernels.is_kernel_layer(module):
            continue
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            values = [getattr(twin, name) for twin in twins]
            if batchnorm != "mean":
                tensor.copy_(values[batchnorm])
            elif tensor.is_floating_point():
                tensor.copy_(torch.stack(values).mean(0))
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(True)
    return base


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


def _check_mergeable(source: nn.Module) -> None:
    """Raise if a parameter with several dimensions is neither a kernel nor a position embedding."""
    for name, module in source.named_modules():
        if kernels.is_kernel_layer(module) or isinstance(module, _NORM_LAYERS):
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if sum(size > 1 for size in parameter.shape) > 1 and not kernels.is_embedding(module, own):
                raise TypeError(
                    f"{f'{name}.{own}'.lstrip('.')} {list(parameter.shape)} of a {type(module).__name__} is neither a "
                    "kernel of a convolution or linear layer, nor a per-channel parameter, nor a known position "
                    "embedding: it cannot be merged by kernel"
                )


def _tensors(module: nn.Module) -> Iterator[tuple[str, tuple[int, ...], torch.dtype, torch.device]]:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        yield name, tuple(tensor.shape), tensor.dtype, tensor.device


def _options(module: nn.Module) -> Iterator[str]:
    for name, child in module.named_modules():
        unprinted = [f"{option}={getattr(child, option)}" for option in _UNPRINTED if hasattr(child, option)]
        yield f"{name} {type(child).__name__}({', '.join(filter(None, [child.extra_repr(), *unprinted]))})".lstrip()


def _described(entry: tuple[str, tuple[int, ...], torch.dtype, torch.device] | None) -> str:
    if entry is None:
        return "missing"
    name, shape, dtype, device = entry
    return f"{name} {list(shape)} ({str(dtype).removeprefix('torch.')}, {device})"
