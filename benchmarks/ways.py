"""Another way to write a merge's forward pass: the same parameters as `KernelMerge`, and the same numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medmerge import KernelMerge


class Functional(nn.Module):
    """A dictionary of all merged kernels, handed to `torch.func.functional_call` (FusionBench, AdaMerging's ports).

    Args:
        sources: two backbones whose kernel layers have no biases.
    """

    def __init__(self, sources: Sequence[nn.Module]):
        super().__init__()
        merge = KernelMerge(sources)
        self.network, self.names = merge.fold(), list(merge.kernel_weights())
        self.num_features, self.w = self.network.num_features, nn.ParameterList()
        for i, name in enumerate(self.names):
            first, second = (source.get_submodule(name) for source in sources)
            if first.bias is not None:
                raise ValueError(f"{name} has a bias, which this way leaves out")
            self.network.get_submodule(name).weight = nn.Parameter(first.weight.detach().clone(), requires_grad=False)
            self.register_buffer(f"second_{i}", second.weight.detach().clone())
            self.w.append(nn.Parameter(torch.full((len(first.weight),), 0.5)))

    def forward(self, x: Tensor) -> Tensor:
        """What the network with the merged kernels returns."""
        merged = {}
        for i, (name, w) in enumerate(zip(self.names, self.w, strict=True)):
            first = self.network.get_submodule(name).weight
            merged[f"{name}.weight"] = torch.lerp(
                getattr(self, f"second_{i}"), first, w.view(-1, *[1] * (first.dim() - 1))
            )
        return functional_call(self.network, merged, (x,))


WAYS: dict[str, type[nn.Module]] = {"KernelMerge": KernelMerge, "functional_call with a merged dictionary": Functional}
"""By name; the first is this package's."""
