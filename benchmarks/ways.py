"""Other ways to write a merge's forward pass. They have the same parameters as `KernelMerge` and compute the same.

Each keeps the sources' kernels frozen and learns an ``[kernels]`` vector w a layer, 0.5 at first; the merged kernel is
``torch.lerp(second, first, w)`` in all of them. They differ in when it is computed and how the network gets it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from medmerge import KernelMerge


class Merge(nn.Module):
    """What the ways share: the merged network, ``network``, and of every kernel layer both kernels and w.

    Args:
        sources: two backbones whose kernel layers have no biases.
    """

    def __init__(self, sources: Sequence[nn.Module]):
        super().__init__()
        merge = KernelMerge(sources)
        self.network, self.names = merge.fold(), [name for name, _ in merge.layers()]
        self.num_features = self.network.num_features
        self.w = nn.ParameterList()
        for i, name in enumerate(self.names):
            first, second = (source.get_submodule(name) for source in sources)
            if first.bias is not None:
                raise ValueError(f"{name} has a bias, which these ways leave out")
            self.take(name, first.weight.detach().clone(), second.weight.detach().clone(), i)

    def take(self, name: str, first: Tensor, second: Tensor, number: int) -> None:
        """Keep a layer's kernels, in buffers, and make its w."""
        self.register_buffer(f"first_{number}", first)
        self.register_buffer(f"second_{number}", second)
        self.w.append(nn.Parameter(torch.full((len(first),), 0.5)))
        self.network.get_submodule(name).weight = None

    def merged(self) -> dict[str, Tensor]:
        """All merged kernels, by the name of the parameter that they stand for."""
        return {
            f"{name}.weight": torch.lerp(
                getattr(self, f"second_{i}"), self.first(name, i), w.view(-1, *[1] * (self.first(name, i).dim() - 1))
            )
            for i, (name, w) in enumerate(zip(self.names, self.w, strict=True))
        }

    def first(self, name: str, number: int) -> Tensor:
        """The first source's kernels of a layer."""
        return getattr(self, f"first_{number}")


class Functional(Merge):
    """A dictionary of all merged kernels, handed to `torch.func.functional_call` (FusionBench, AdaMerging's ports)."""

    def take(self, name: str, first: Tensor, second: Tensor, number: int) -> None:
        """The first source's kernels stay the network's parameter, frozen; every call replaces it for its time."""
        super().take(name, first, second, number)
        delattr(self, f"first_{number}")
        self.network.get_submodule(name).weight = nn.Parameter(first, requires_grad=False)

    def first(self, name: str, number: int) -> Tensor:
        return self.network.get_submodule(name).weight

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.network, self.merged(), (x,))


class Assigned(Merge):
    """The dictionary is set into the layers on every forward pass, one attribute after another (AdaMerging)."""

    def take(self, name: str, first: Tensor, second: Tensor, number: int) -> None:
        """The layer's parameter gives way to an ordinary attribute."""
        super().take(name, first, second, number)
        layer = self.network.get_submodule(name)
        del layer.weight
        layer.weight = None

    def forward(self, x: Tensor) -> Tensor:
        for name, kernel in self.merged().items():
            layer, _, attribute = name.rpartition(".")
            setattr(self.network.get_submodule(layer), attribute, kernel)
        return self.network(x)


class Parametrised(Merge):
    """A parametrisation of each layer's weight (`torch.nn.utils.parametrize`)."""

    class Mean(nn.Module):
        """The mean of a layer's frozen weight, which is the parametrised one, and another."""

        def __init__(self, second: Tensor):
            super().__init__()
            self.register_buffer("second", second)
            self.w = nn.Parameter(torch.full((len(second),), 0.5))

        def forward(self, first: Tensor) -> Tensor:
            return torch.lerp(self.second, first, self.w.view(-1, *[1] * (first.dim() - 1)))

    def take(self, name: str, first: Tensor, second: Tensor, number: int) -> None:
        """The first source's kernels become the layer's parameter, frozen."""
        layer = self.network.get_submodule(name)
        layer.weight = nn.Parameter(first, requires_grad=False)
        parametrize.register_parametrization(layer, "weight", self.Mean(second))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


WAYS: dict[str, type[nn.Module]] = {
    "KernelMerge": KernelMerge,
    "parametrisation per layer": Parametrised,
    "functional_call with a merged dictionary": Functional,
    "merged dictionary set into the layers": Assigned,
}
"""By name; the first is this package's."""
