"""Permute one network's channels towards another's, so that their kernels can be compared and merged one by one.

The output channels of a layer may change places if every tensor that holds them is permuted alike: the function stays
as it is (Ainsworth et al., "Git Re-Basin: Merging Models modulo Permutation Symmetries", ICLR 2023). Two networks from
different initial values have their features in unrelated orders; :func:`align` finds the order of one that is nearest
to the other's, by weight matching (their section 3.2). Published tools need a list, for each architecture, of the
tensors that share channels. Here it is derived from the network, residual sums and DenseNet's concatenations included.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from medmerge.approaches.channels import Watch, named_tensors
from medmerge.sources import check

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Slot:
    """A place of a group's channels in a tensor: channel i is at ``start + i * repeat`` and the ``repeat - 1`` after.

    Attributes:
        tensor: name of the parameter or buffer, as in the state dict.
        axis: the axis that the channels lie on.
        start: position of the first.
        size: how many channels.
        repeat: positions of each: 1, but H * W in the columns of a linear layer after a flattening.
    """

    tensor: str
    axis: int
    start: int
    size: int
    repeat: int = 1

    def rows(self, tensor: Tensor) -> Tensor:
        """What ``tensor`` holds of each channel, float64 ``[size, entries]``."""
        part = tensor.detach().narrow(self.axis, self.start, self.size * self.repeat)
        return part.movedim(self.axis, 0).reshape(self.size, -1).double()

    @torch.no_grad()
    def permute_(self, tensor: Tensor, permutation: Tensor) -> None:
        """Put channel ``permutation[i]`` of ``tensor`` in place i, in place."""
        part = tensor.narrow(self.axis, self.start, self.size * self.repeat)
        channels = part.unflatten(self.axis, (self.size, self.repeat))
        part.copy_(channels.index_select(self.axis, permutation.to(tensor.device)).flatten(self.axis, self.axis + 1))


@dataclass(frozen=True)
class Group:
    """Channels that can only be permuted together.

    Attributes:
        size: how many channels.
        slots: every place in the network's tensors that holds them.
    """

    size: int
    slots: tuple[Slot, ...]


def permutation_groups(network: nn.Module, *, image_size: int = 224) -> dict[str, Group]:
    """The groups of channels of ``network`` that can be permuted, in forward order.

    A convolution or linear layer makes a new group. Elementwise functions, pooling, normalisation and depthwise
    convolutions keep it; sums and products (residual connections, squeeze and excitation) make two groups one;
    concatenation puts groups one after another. What the input and any function not known here read or give (a channel
    shuffle, a convolution in several groups) stays in place, so every group that is returned is safe to permute. What
    the network returns may be permuted too: it is a backbone, whose head will be new.

    Args:
        network: maps images ``[N, 3, S, S]`` to one tensor, in eval mode.
        image_size: S, of interest only to networks that take no other.

    Returns:
        Groups by the name of the layer whose outputs they first are, as in the network.

    Raises:
        ValueError: the network cannot be run without data.
    """
    twin = copy.deepcopy(network).to("meta").eval()
    watch = Watch(twin)
    dtype = next((tensor.dtype for tensor in twin.parameters()), None)
    try:
        with torch.no_grad(), watch:
            twin(torch.empty(2, 3, image_size, image_size, dtype=dtype, device="meta"))
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError) as error:  # torch._assert
        raise ValueError(
            f"{type(network).__name__} cannot be run on the meta device for images of {image_size} px ({error}); its "
            "forward must take one batch of images and decide nothing by their values"
        ) from error
    slots: dict[int, list[Slot]] = {}
    for (name, axis), blocks in watch.axes.items():
        start = 0
        for group, size, repeat in blocks:
            root = watch.root(group)
            if root is not None:
                slots.setdefault(root, []).append(Slot(name, axis, start, size, repeat))
            start += size * repeat
    return {watch.layers[root]: Group(slots[root][0].size, tuple(slots[root])) for root in sorted(slots)}


@torch.no_grad()
def permute(network: nn.Module, groups: Mapping[str, Group], permutations: Mapping[str, Tensor]) -> nn.Module:
    """A copy of ``network`` with permuted channels: the same function, up to the order of its features.

    Args:
        groups: the network's, as :func:`permutation_groups` returns them.
        permutations: for each group, or some, int64 ``[size]``: the channel that comes to each place.
    """
    permuted = copy.deepcopy(network)
    tensors = named_tensors(permuted)
    for name, permutation in permutations.items():
        for slot in groups[name].slots:
            slot.permute_(tensors[slot.tensor], permutation)
    return permuted


def match(
    reference: nn.Module, other: nn.Module, groups: Mapping[str, Group], iterations: int = 100
) -> dict[str, Tensor]:
    """The permutations of ``other`` that bring its parameters nearest to those of ``reference`` (weight matching).

    They maximise the Frobenius inner product over all parameters: kernels, biases and affine parameters of norms, as in
    the paper; running statistics follow, but are not compared. By coordinate ascent (its Algorithm 1): with all groups
    but one held, the best permutation of that one is a linear assignment problem. A step is taken only if the product
    grows, so it never falls. From a local optimum there is no way on, so the ascent is run twice, from the identity
    as in the paper, and from a pass through the network that compares each layer by its inputs, which are matched
    already, and its own biases alone; the better end is returned. It is at least as near as ``other`` was.

    Args:
        groups: those of either network, as :func:`permutation_groups` returns them.
        iterations: passes over all groups, at most; an ascent ends with the first that changes nothing.

    Returns:
        int64 ``[size]`` on the CPU for each group, for :func:`permute`.
    """
    ours, theirs = dict(reference.named_parameters()), dict(other.named_parameters())
    ends = []
    for start in ("identity", "forward"):
        ascent = _Ascent(groups, ours, theirs)
        if start == "forward":
            ascent.forward()
        order = np.random.default_rng(0)
        for _ in range(iterations):
            if not sum(ascent.improve(name) for name in order.permutation(list(groups))):
                break
        ends.append(ascent)
    return max(ends, key=_Ascent.product).permutations


def align(reference: nn.Module, other: nn.Module, *, image_size: int = 224) -> nn.Module:
    """A copy of ``other``, the same function, with its channels in the order that is nearest to ``reference``.

    Of more than two networks each is aligned to the first. What the features mean changes places: a head that ``other``
    had no longer fits; a new one does not mind.

    Args:
        image_size: as for :func:`permutation_groups`.

    Raises:
        ValueError: the networks are of different architectures or cannot be run without data.
    """
    check([reference, other])
    groups = permutation_groups(reference, image_size=image_size)
    return permute(other, groups, match(reference, other, groups))


class _Ascent:
    """Coordinate ascent on the inner product of two networks' parameters.

    Args:
        ours, theirs: the parameters by name; neither is changed.
    """

    def __init__(self, groups: Mapping[str, Group], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]):
        self.groups, self.ours = groups, ours
        self.theirs = {name: tensor.detach().clone() for name, tensor in theirs.items()}
        self.permutations = {name: torch.arange(group.size) for name, group in groups.items()}
        self.slots = {name: [slot for slot in group.slots if slot.tensor in ours] for name, group in groups.items()}
        self.holders: dict[str, set[tuple[str, int]]] = {}
        self.quadratic = set()  # groups on two axes of one tensor: an assignment maximises their linear part only
        for name, slots in self.slots.items():
            for slot in slots:
                holders = self.holders.setdefault(slot.tensor, set())
                if any(other == name and axis != slot.axis for other, axis in holders):
                    self.quadratic.add(name)
                holders.add((name, slot.axis))

    def product(self) -> float:
        """The inner product of all parameters."""
        pairs = ((tensor.detach().double(), self.theirs[name].double()) for name, tensor in self.ours.items())
        return sum(float((ours * theirs).sum()) for ours, theirs in pairs)

    def products(self, slots: Iterable[Slot], size: int) -> np.ndarray:
        """Inner product of what ``slots`` hold of our channel i and their channel j, ``[size, size]``."""
        pairs = ((slot.rows(self.ours[slot.tensor]), slot.rows(self.theirs[slot.tensor])) for slot in slots)
        return sum((ours @ theirs.T for ours, theirs in pairs), torch.zeros(size, size)).cpu().numpy()

    def improve(self, name: str) -> bool:
        """Set one group to its best permutation, given all others; returns whether the product has grown."""
        products = self.products(self.slots[name], self.groups[name].size)
        rows, columns = linear_sum_assignment(products, maximize=True)
        least = _TOLERANCE * np.abs(products).max()
        if products[rows, columns].sum() - products.trace() <= least:
            return False
        before = self.product() if name in self.quadratic else 0.0
        self.apply(name, torch.from_numpy(columns))
        if name in self.quadratic and self.product() - before <= least:
            self.apply(name, torch.from_numpy(columns).argsort())
            return False
        return True

    def forward(self) -> None:
        """Match each group in forward order, by those parameters whose other axes are matched already."""
        done = set()
        for name, group in self.groups.items():
            known = [
                slot
                for slot in self.slots[name]
                if all(other in done for other, axis in self.holders[slot.tensor] if axis != slot.axis)
            ]
            columns = linear_sum_assignment(self.products(known, group.size), maximize=True)[1]
            self.apply(name, torch.from_numpy(columns))
            done.add(name)

    def apply(self, name: str, permutation: Tensor) -> None:
        """Permute a group."""
        for slot in self.slots[name]:
            slot.permute_(self.theirs[slot.tensor], permutation)
        self.permutations[name] = self.permutations[name][permutation]
