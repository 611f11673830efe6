"""Kernels layer by layer: which parameters of a network they are, and a layer that computes a weighted mean of several.

The ground that :class:`medmerge.merge.KernelMerge` stands on.
"""

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention
from torchvision.models.vision_transformer import Encoder

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""What has kernels: an output filter ``weight[j]`` of a convolution, an output row of a linear layer."""

EMBEDDINGS = ((Encoder, "pos_embedding"), (ShiftedWindowAttention, "relative_position_bias_table"))
"""Parameters that are added to activations and so are no kernels, though they have several dimensions."""


class MergedLayer(nn.Module):
    """A convolution or linear layer whose kernels are a weighted mean of frozen ones.

    Modules that read a layer's ``weight`` and ``bias`` and never call it, as attention does, get the merged ones.

    Args:
        layers: the layer in every source.
        granularity, normalisation: as for :class:`~medmerge.merge.KernelMerge`.
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
        self.w = shared if shared is not None else start(shape, len(layers), normalisation, first)
        by_parameter = granularity == "parameter" and first.bias is not None
        self.w_bias = start(first.bias.shape, len(layers), normalisation, first) if by_parameter else None

    def mixtures(self) -> Iterator[tuple[str, nn.Parameter, int]]:
        """Name suffix, stored weights ``[rows, ...]`` and number of kernels of each set of merging weights."""
        yield "", self.w, len(self.weight_0)
        if self.w_bias is not None:
            yield ".bias", self.w_bias, len(self.weight_0)

    @property
    def weight(self) -> Tensor:
        """The merged kernels, shaped as in the sources."""
        return mix(self.w, [getattr(self, f"weight_{i}") for i in range(self.num_sources)], self.normalisation)

    @property
    def bias(self) -> Tensor | None:
        """The merged biases ``[kernels]``, or None where the sources have none."""
        if self.bias_0 is None:
            return None
        biases = [getattr(self, f"bias_{i}") for i in range(self.num_sources)]
        return mix(self.w if self.w_bias is None else self.w_bias, biases, self.normalisation)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer with the merged kernels returns."""
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, self.weight, self.bias)
        return self.layer._conv_forward(x, self.weight, self.bias)

    def fold(self) -> nn.Module:
        """The ordinary layer with the merged kernels."""
        layer = copy.deepcopy(self.layer)
        weight, bias = self.weight, self.bias
        layer.weight = nn.Parameter(weight.detach().clone())
        layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        return layer


class SplitAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` whose input projection ``[3 * embed_dim, embed_dim]`` is a layer, ``in_proj``.

    Made by :func:`split_attention`. The computation is the parent's, its fast path in eval mode included.
    """

    @property
    def in_proj_weight(self) -> Tensor:
        """The projection's kernels ``[3 * embed_dim, embed_dim]``: rows of queries, keys and values."""
        return self.in_proj.weight

    @property
    def in_proj_bias(self) -> Tensor | None:
        """Their biases ``[3 * embed_dim]``, or None."""
        return self.in_proj.bias


def split_attention(root: nn.Module) -> nn.Module:
    """``root`` with every ``nn.MultiheadAttention`` in it a :class:`SplitAttention`, in place; parameters are shared.

    Attention whose queries, keys and values differ in width has three projections and stays as it is.
    """
    for module in list(root.modules()):
        if type(module) is nn.MultiheadAttention and module.in_proj_weight is not None:
            weight, bias, output = module.in_proj_weight, module.in_proj_bias, module.out_proj
            projection = nn.Linear(*weight.T.shape, bias=bias is not None, device="meta")
            projection.weight, projection.bias = weight, bias
            module.in_proj_weight = module.in_proj_bias = None
            module.__class__ = SplitAttention
            del module.out_proj
            module.in_proj, module.out_proj = projection.train(module.training), output  # in forward order
    return root


def join_attention(root: nn.Module) -> nn.Module:
    """The inverse of :func:`split_attention`, in place."""
    for module in list(root.modules()):
        if isinstance(module, SplitAttention):
            weight, bias = module.in_proj.weight, module.in_proj.bias
            del module.in_proj
            module.__class__ = nn.MultiheadAttention
            module.in_proj_weight, module.in_proj_bias = weight, bias
    return root


def is_kernel_layer(module: nn.Module) -> bool:
    """Whether the module's own forward is that of a plain convolution or linear layer."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in LAYERS)


def is_embedding(module: nn.Module, name: str) -> bool:
    """Whether the parameter ``name`` of ``module`` is one of :data:`EMBEDDINGS`."""
    return any(isinstance(module, kind) and name == known for kind, known in EMBEDDINGS)


def replace(root: nn.Module, new: Callable[[str, nn.Module], nn.Module | None]) -> nn.Module:
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


def mix(w: Tensor, sources: Sequence[Tensor], normalisation: str) -> Tensor:
    """Weighted mean of ``sources``, each ``[kernels, ...]``, under stored weights ``w`` ``[rows, ...]``.

    Two sources go through ``lerp``, which is exact at both ends and where the sources are equal, for any ``w``.
    """
    dims = sources[0].dim()
    if len(sources) == 2:
        first = w[0] if normalisation == "affine" else w.softmax(0)[0]
        return torch.lerp(sources[1], sources[0], _align(first, dims))
    weights = shares(w, normalisation)
    return sum(_align(share, dims) * source for share, source in zip(weights, sources, strict=True))


def shares(w: Tensor, normalisation: str) -> Tensor:
    """Weights of all n sources ``[n, ...]`` from the stored ones: n - 1 rows (affine) or n rows of logits (softmax)."""
    return w.softmax(0) if normalisation == "softmax" else torch.cat([w, 1 - w.sum(0, keepdim=True)])


def start(shape: Sequence[int], n: int, normalisation: str, like: nn.Module) -> nn.Parameter:
    """Stored weights that give every one of ``n`` sources the same share."""
    reference = next(like.parameters())
    if normalisation == "affine":
        return nn.Parameter(torch.full((n - 1, *shape), 1 / n, dtype=reference.dtype, device=reference.device))
    return nn.Parameter(torch.zeros((n, *shape), dtype=reference.dtype, device=reference.device))


def _align(w: Tensor, dims: int) -> Tensor:
    return w.reshape(w.shape + (1,) * (dims - w.dim()))
