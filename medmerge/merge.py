"""Learn, kernel by kernel, how to merge networks trained on different data (MedMerge, section 2).

Two networks of one architecture, with kernels ``theta_b`` and ``theta_c``, become one whose j-th kernel is
``w_j * theta_b[j] + (1 - w_j) * theta_c[j]``. Only the ``w`` and the normalisation layers have gradients; once they are
learnt, :meth:`KernelMerge.fold` gives an ordinary network of the sources' class.
"""

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from medmerge.sources import Kernels, check, copied, kernel_layers

GRANULARITIES = ("kernel", "parameter", "layer", "model")
NORMALISATIONS = ("affine", "softmax")


class KernelMerge(nn.Module):
    """One network out of several, with learnable merging weights (paper, section 2).

    A kernel is an output filter of a convolution, ``weight[j]`` with its bias ``bias[j]`` (``weight[:, j]`` of a
    transposed one); in a linear layer it is an output row. Of ``nn.MultiheadAttention`` the input projection is such a
    layer too, called ``<attention>.in_proj``: its kernels are the rows of queries, keys and values. The network is a
    copy of the first source, hooks and attributes included, whose kernels are parametrised
    (`torch.nn.utils.parametrize`): each is the mean of the sources' frozen ones, computed where the network reads it.
    Layers stay what ``isinstance`` says they are, though ``type(layer) is nn.Conv2d`` no longer holds. The only
    parameters are the merging weights, the affine parameters of the normalisation layers, and what else is a parameter
    a channel or a position (:data:`medmerge.sources.EMBEDDINGS`).

    Args:
        sources: two or more modules of the same architecture. They are never changed.
        granularity: what shares one merging weight: a ``"kernel"`` (the paper), every single ``"parameter"``, a
            ``"layer"``, or the whole ``"model"``.
        batchnorm: where normalisation layers start (affine parameters and running statistics, and with them
            per-channel scales such as ConvNeXt's, class tokens and position embeddings): ``"mean"`` over the sources
            (the paper), or the index of the source to take them from. Integer buffers (``num_batches_tracked``) are
            never averaged: they are that source's, the first's for ``"mean"``.
        normalisation: how the weights of the sources come to sum to one. ``"affine"`` learns all but the last and
            leaves them unconstrained (the paper: w and 1 - w); ``"softmax"`` learns logits, so that weights stay
            within 0 and 1. ``"auto"`` is affine for two sources and softmax for more.

    Every source starts with the same weight: 0.5 for two, as in the paper. Merging weights are float32, or wider where
    the sources are; in half precision they would stay where they start.

    Raises:
        ValueError: fewer than two sources, an unknown option, or sources that do not fit together, in layers, shapes
            or plain attributes; the message names the first that differs and what it is in both.
        TypeError: a source is not a module, or holds what cannot be merged by kernel or copied; the message names it
            and the way out.
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
        if isinstance(sources, nn.Module):
            raise TypeError(f"sources is a single {type(sources).__name__}; merging needs a list of networks")
        sources = list(sources)
        if normalisation == "auto":
            normalisation = "affine" if len(sources) == 2 else "softmax"
        asked = ("granularity", granularity, GRANULARITIES), ("normalisation", normalisation, NORMALISATIONS)
        for what, value, allowed in asked:
            if value not in allowed:
                raise ValueError(f"{what}={value!r} is not one of {', '.join(map(repr, allowed))}")
        if batchnorm != "mean" and (type(batchnorm) is not int or not 0 <= batchnorm < len(sources)):
            last = len(sources) - 1
            raise ValueError(f"batchnorm={batchnorm!r} is neither 'mean' nor the index of a source (0 to {last})")
        check(sources)
        self.granularity, self.normalisation, self.batchnorm = granularity, normalisation, batchnorm
        self.num_sources = len(sources)
        with torch.inference_mode(False), torch.no_grad():
            self.merged: Any = copied(sources[0])
            _merge_norms(self.merged, sources, batchnorm)
            self._parametrise(sources[1:])
        if not self._weights:
            raise TypeError("the sources hold no convolution and no linear layer: there is no kernel to merge")

    def _parametrise(self, others: Sequence[nn.Module]) -> None:
        """Make every kernel tensor of the copy a :class:`Mean`; one that several layers share is one in all of them."""
        self._weights: dict[str, tuple[Mean, int]] = {}
        self._orders: dict[str, list[str]] = {}
        lists: dict[nn.Parameter, Any] = {}
        holder = None
        for layer in kernel_layers(self.merged):
            module, count = layer.module, len(layer)
            self._orders[layer.owner] = list(module._parameters)
            holder = holder if self.granularity == "model" else None
            for key in filter(None, (layer.weight, layer.bias)):
                first = module._parameters.pop(key)
                module.register_buffer(key, first.detach())
                mean = lists[first][0] if first in lists else self._mean(layer, key, count, first, others, holder)
                parametrize.register_parametrization(module, key, mean, unsafe=True)
                if first not in lists and (key == layer.weight or self.granularity == "parameter"):
                    self._weights[layer.name if key == layer.weight else f"{layer.name}.bias"] = mean.holder, count
                module.parametrizations[key] = lists.setdefault(first, module.parametrizations[key])
                holder = mean.holder
            type(module).__name__ = type(module).__bases__[0].__name__  # what a network may ask for

    def _mean(
        self, layer: Kernels, key: str, kernels: int, first: Tensor, others: Sequence[Any], holder: Any
    ) -> "Mean":
        tensors = [getattr(other.get_submodule(layer.owner), key).detach().clone() for other in others]
        shape = {"kernel": (kernels,), "parameter": first.shape}.get(self.granularity, ())
        groups = layer.groups if key == layer.weight else 0
        return Mean(tensors, self.normalisation, shape, groups, None if self.granularity == "parameter" else holder)

    def forward(self, *args: object, **kwargs: object) -> object:
        """What the sources return for these arguments; for a backbone and images, features ``[N, num_features]``."""
        return self.merged(*args, **kwargs)

    @property
    def num_features(self) -> int:
        """Width of the sources' output, where they state one."""
        network: Any = self.merged
        return network.num_features

    def layers(self) -> Iterator[tuple[str, "Mean"]]:
        """Names as in :meth:`kernel_weights`, in the sources' order, with the module whose ``w`` the weights are."""
        return ((name, mean) for name, (mean, _) in self._weights.items())

    def merging_parameters(self) -> list[nn.Parameter]:
        """The parameters that hold the merging weights, each once; the others are the normalisation layers'."""
        return list({id(mean): mean.w for _, mean in self.layers()}.values())

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
        for name, (mean, count) in self._weights.items():
            share = mean.shares() if self.num_sources > 2 else mean.shares()[0]
            if self.granularity in ("layer", "model"):
                share = share[..., None].expand(*share.shape, count)
            weights[name] = share.detach().clone()
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
        if not isinstance(weights, Mapping):
            weights = dict.fromkeys(self._weights, weights)
        if unknown := [name for name in weights if name not in self._weights]:
            near = difflib.get_close_matches(unknown[0], self._weights, 1) or [next(iter(self._weights))]
            raise KeyError(f"no merged layer {unknown[0]!r}; the nearest of {len(self._weights)} is {near[0]!r}")
        new: dict[Mean, Tensor] = {}
        for name, value in weights.items():
            mean, count = self._weights[name]
            stored = self._stored(name, value, mean.w, count)
            if not torch.equal(new.setdefault(mean, stored), stored):
                raise ValueError(f"all layers share one weight (granularity 'model'), but {name} is given another")
        for mean, stored in new.items():
            mean.w.copy_(stored)

    def _stored(self, name: str, value: Tensor | float, w: Tensor, count: int) -> Tensor:
        """``value`` in the form in which ``w`` holds it."""
        n, one = self.num_sources, self.granularity in ("layer", "model")
        full = (count,) if one else w.shape[1:]
        value = torch.as_tensor(value, dtype=w.dtype, device=w.device)
        of_first = n == 2 or value.dim() == 0
        if value.dim() and value.shape != torch.Size(full if of_first else (n, *full)):
            raise ValueError(f"weights of {name} have shape {list(value.shape)}, not {[n, *full][n == 2 :]}")
        value = value if value.dim() else value.expand(full)
        share = torch.stack([value, *[(1 - value) / (n - 1)] * (n - 1)]) if of_first else value
        if not torch.isfinite(share).all() or (share.sum(0) - 1).abs().max() > 1e-4:
            raise ValueError(f"weights of {name} must be finite and sum to one over the {n} sources")
        if one and (share != share[:, :1]).any():
            raise ValueError(f"{name} has one weight (granularity {self.granularity!r}), not one per kernel")
        share = share[:, 0] if one else share
        if self.normalisation == "affine":
            return share[:-1]
        if share.min() < 0 or share.max() > 1:
            raise ValueError(
                f"weights of {name} must lie within 0 and 1 (softmax), not {share.min():g}…{share.max():g}"
            )
        return share.log()

    def fold(self) -> nn.Module:
        """The merged network as an ordinary one: the first source's class and state dict keys, no trace of the merge.

        Its output is this module's, bit for bit. All parameters of the copy are trainable; ``self`` is not changed.
        """
        with torch.inference_mode(False), torch.no_grad():
            plain: nn.Module = copy.deepcopy(self.merged)
            folded: dict[nn.Module, nn.Parameter] = {}
            for name, order in self._orders.items():
                module: Any = plain.get_submodule(name)
                own = dict(module._parameters)
                for key, computed in module.parametrizations.items():
                    if computed not in folded:  # not read as an attribute: what is read may come from a cache
                        folded[computed] = nn.Parameter(computed().detach().clone())
                    own[key] = folded[computed]
                del module.parametrizations
                module.__class__ = type(module).__bases__[0]  # the class is shared with the merge, so it stays as it is
                module._parameters.clear()
                module._parameters.update({key: own[key] for key in order})
            return plain.requires_grad_(True)

    def __deepcopy__(self, memo: dict) -> "KernelMerge":
        twin = memo[id(self)] = self.__new__(type(self))
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin

    def __getstate__(self) -> dict:
        raise TypeError("a KernelMerge cannot be pickled; save it with medmerge.save(merge, path), or its state_dict()")

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in ("granularity", "batchnorm", "normalisation"))
        biases = ".bias" if self.granularity == "parameter" else " "
        counts = [count for name, (_, count) in self._weights.items() if not name.endswith(biases)]
        of = f"{self.num_sources} sources, {len(counts)} layers, {sum(counts):,} kernels"
        return f"KernelMerge({type(self.merged).__name__}, {of}, {options})"


class Mean(nn.Module):
    """The weighted mean of one tensor of all sources, as a parametrisation of the first source's.

    Args:
        others: the tensor in the other sources, ``[kernels, ...]``; of a transposed convolution ``[in, kernels, ...]``.
        normalisation: as for :class:`KernelMerge`.
        shape: of the merging weights of one source.
        groups: of a transposed convolution, and 0 for all other tensors.
        holder: whose weights to use, in place of own ones.
    """

    def __init__(
        self, others: Sequence[Tensor], normalisation: str, shape: Sequence[int], groups: int, holder: "Mean | None"
    ):
        super().__init__()
        self.normalisation, self.groups, self.n = normalisation, groups, len(others) + 1
        for i, other in enumerate(others, start=1):
            self.register_buffer(f"source_{i}", other)
        self._holder = () if holder is None else (holder,)  # in a tuple it is no submodule, and w is in the state once
        if holder is None:
            rows, value = (self.n - 1, 1 / self.n) if normalisation == "affine" else (self.n, 0.0)
            exact = torch.promote_types(others[0].dtype, torch.float32)  # in bf16 a step of 1e-4 from 0.5 is none
            self.w = nn.Parameter(torch.full((rows, *shape), value, dtype=exact, device=others[0].device))

    @property
    def holder(self) -> "Mean":
        """The one whose ``w`` ``[rows, ...]`` counts: weights of n - 1 sources (affine), logits of all n (softmax)."""
        return self._holder[0] if self._holder else self

    def shares(self) -> Tensor:
        """Weights of all n sources ``[n, ...]``."""
        w = self.holder.w
        return w.softmax(0) if self.normalisation == "softmax" else torch.cat([w, 1 - w.sum(0, keepdim=True)])

    def forward(self, first: Tensor) -> Tensor:
        """The mean; of two sources by ``lerp``, which is exact at both ends and where the sources are equal."""
        others = [getattr(self, f"source_{i}") for i in range(1, self.n)]
        if self.n == 2:
            w = self.holder.w[0] if self.normalisation == "affine" else self.holder.w.softmax(0)[0]
            mean = torch.lerp(others[0], first, self._along(w, first))
        else:
            pairs = zip(self.shares(), (first, *others), strict=True)
            mean = sum(self._along(share, first) * source for share, source in pairs)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return mean
        # Even under no_grad, torch multiplies in another order by what requires a gradient, as a parameter does.
        return mean.requires_grad_(self.holder.w.requires_grad)

    def _along(self, share: Tensor, tensor: Tensor) -> Tensor:
        """Weights, one a kernel or fewer or more, so that they multiply ``tensor``."""
        if self.groups and share.dim() == 1:
            share = share.view(self.groups, 1, -1).expand(-1, len(tensor) // self.groups, -1).flatten(0, 1)
        return share.reshape(share.shape + (1,) * (tensor.dim() - share.dim())).to(tensor)


@torch.no_grad()
def zeros_like(source: nn.Module) -> nn.Module:
    """A copy of ``source`` whose kernels are all zero: the paper's "combining with zeros" (section 4).

    Kernels and biases of convolutions and linear layers become zero, those in attention too. Normalisation layers and
    position embeddings stay as they are, so that merging with the copy weighs the source's kernels against nothing and
    leaves the rest alone.
    """
    zeros = copy.deepcopy(source)
    for layer in kernel_layers(zeros):
        for key in filter(None, (layer.weight, layer.bias)):
            getattr(layer.module, key).zero_()
    return zeros


def _merge_norms(base: nn.Module, sources: Sequence[nn.Module], batchnorm: str | int) -> None:
    """Merge everything but the kernels by the ``batchnorm`` policy, in place; it becomes trainable."""
    kernels = {(layer.owner, key) for layer in kernel_layers(base) for key in (layer.weight, layer.bias)}
    for (name, module), *twins in zip(base.named_modules(), *(source.modules() for source in sources), strict=True):
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or (name, key) in kernels:
                continue
            values = [getattr(twin, key) for twin in twins]
            if isinstance(batchnorm, int):
                tensor.copy_(values[batchnorm])
            elif tensor.is_floating_point():
                tensor.copy_(torch.stack(values).mean(0))
            if isinstance(tensor, nn.Parameter):
                tensor.requires_grad_(True)
