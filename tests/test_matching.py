"""Permuted networks compute the same function; weight matching finds a hidden permutation and never does harm."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medmerge import KernelMerge, backbone, backbones
from medmerge.approaches.matching import align, match, permutation_groups, permute

SMALLEST = """alexnet convnext_tiny densenet_small densenet121 efficientnet_b0 googlenet inception_v3 mnasnet0_5
    mobilenet_v2 mobilenet_v3_small regnet_y_400mf resnet18 resnet50 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1
    swin_mini vgg11_bn vit_mini wide_resnet50_2""".split()
"""One or two networks of each family."""

LARGE = set("alexnet convnext_tiny densenet121 resnet50 vgg11_bn wide_resnet50_2".split())

PARTLY = {"regnet_y_400mf", "resnext50_32x4d", "shufflenet_v2_x0_5", "swin_mini", "vit_mini"}
"""Those in which grouped convolutions, channel shuffles or attention hold some channels in place."""


def random_network(name, seed=0, spread=True):
    """Random weights; with ``spread`` also of the norms, the biases and ConvNeXt's scales, so that all is at stake."""
    torch.manual_seed(seed)
    with torch.no_grad():
        model = backbone(name, "random", 64)
        for module in model.modules() if spread else ():
            for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if tensor.is_floating_point() and (tensor.dim() == 1 or key == "layer_scale"):
                    tensor.uniform_(0.5, 1.5)
    return model


def random_permutations(groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randperm(group.size, generator=generator) for name, group in groups.items()}


def moved(model, seed=0, size=224):
    """The network with all its channels permuted."""
    groups = permutation_groups(model, image_size=size)
    return permute(model, groups, random_permutations(groups, seed))


def nearest(a, b, iterations=100):
    """What `align` does, with fewer passes."""
    groups = permutation_groups(a)
    return permute(b, groups, match(a, b, groups, iterations))


def feature_order(model, permuted, images):
    """Largest difference of the sorted features, relative to the largest feature: their order is free."""
    with torch.no_grad():
        ours, theirs = model(images), permuted(images)
    assert not torch.equal(ours, theirs)
    return float((ours.sort(1).values - theirs.sort(1).values).abs().max() / ours.abs().max())


def product(a, b):
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return sum(float((p.detach().double() * q.detach().double()).sum()) for p, q in pairs)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_every_family_is_among_the_smallest():
    family = re.compile(r"[a-z]+")
    assert {family.match(name)[0] for name in backbones.names()} == {family.match(name)[0] for name in SMALLEST}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in SMALLEST])
def test_a_permuted_network_computes_the_same_function(name):
    model = random_network(name).double()
    size = 96 if name in ("alexnet", "inception_v3") else 64
    groups = permutation_groups(model, image_size=size)
    permuted = permute(model, groups, random_permutations(groups))
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    assert feature_order(model, permuted, images) < 1e-9
    for network in (model, permuted):
        for module in network.modules():
            module.train(isinstance(module, _BatchNorm))
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        assert feature_order(model, permuted, torch.randn(4, 3, size, size, dtype=torch.float64)) < 1e-9
    free = {slot.tensor for group in groups.values() for slot in group.slots}
    everything = {key for key, tensor in model.state_dict().items() if tensor.dim()}
    assert (free == everything) is (name not in PARTLY)


def test_groups_of_densenet_follow_its_concatenations():
    model = backbone("densenet_small", "random")
    groups = permutation_groups(model)
    assert list(groups)[:3] == [
        "features.conv0",
        "features.denseblock1.denselayer1.conv1",
        "features.denseblock1.denselayer1.conv2",
    ]
    assert len(groups) == sum(isinstance(module, nn.Conv2d) for module in model.modules())
    second = groups["features.denseblock1.denselayer1.conv2"]
    assert second.size == 12
    where = {(slot.tensor, slot.axis, slot.start) for slot in second.slots}
    assert ("features.denseblock1.denselayer1.conv2.weight", 0, 0) in where
    for layer in ("denseblock1.denselayer2.conv1", "denseblock1.denselayer3.conv1", "transition1.conv"):
        assert (f"features.{layer}.weight", 1, 24) in where  # after the 24 channels of conv0
    assert ("features.transition1.norm.running_var", 0, 24) in where


def test_groups_of_resnet_are_one_for_each_stage_and_one_for_each_block():
    groups = permutation_groups(backbone("resnet18", "random"))
    residual = {slot.tensor for slot in groups["conv1"].slots}
    assert {
        "conv1.weight",
        "layer1.0.conv2.weight",
        "layer1.1.conv2.weight",
        "layer2.0.downsample.0.weight",
    } <= residual
    assert len(groups) == 4 + 8


def test_groups_of_a_flattened_map_repeat_for_each_pixel():
    groups = permutation_groups(backbone("vgg11", "random"))
    (slot,) = [slot for slot in groups["features.18"].slots if slot.tensor == "classifier.0.weight"]
    assert (slot.axis, slot.start, slot.size, slot.repeat) == (1, 0, 512, 49)


@pytest.mark.parametrize(
    "name",
    [
        "densenet_small",
        "resnet18",
        "mobilenet_v2",
        pytest.param("densenet121", marks=pytest.mark.slow),
    ],
)
def test_a_hidden_permutation_is_found_to_the_bit(name):
    model = random_network(name, spread=False)
    hidden = moved(model, 1)
    assert not same(model, hidden)
    assert same(align(model, hidden), model)


@pytest.mark.parametrize("name", ["densenet_small", "squeezenet1_1"])
def test_the_inner_product_never_falls(name):
    a, b = random_network(name, 0), random_network(name, 1)
    steps = [product(a, nearest(a, b, n)) for n in range(4)]
    assert product(a, b) <= steps[0] and steps == sorted(steps)
    assert product(a, align(a, b)) >= steps[-1] > product(a, b)


def test_a_step_is_taken_back_where_its_linear_part_misleads():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 6, 1, bias=False), nn.Conv2d(6, 6, 1, bias=False)

        def forward(self, x):
            x = self.stem(x)
            return x + self.conv(x)

    for seed in range(20):
        torch.manual_seed(seed)
        a, b = Residual(), Residual()
        groups = permutation_groups(a)
        assert {("conv.weight", 0), ("conv.weight", 1)} < {(slot.tensor, slot.axis) for slot in groups["stem"].slots}
        steps = [product(a, nearest(a, b, n)) for n in range(5)]
        assert steps == sorted(steps) and steps[0] >= product(a, b)


def test_neither_network_is_changed_and_what_is_aligned_can_be_merged():
    a, b = random_network("densenet_small", 0), random_network("densenet_small", 1)
    kept = copy.deepcopy((a, b))
    aligned = align(a, b)
    assert same(a, kept[0]) and same(b, kept[1])
    merge = KernelMerge([a, aligned])
    merge.set_kernel_weights(0.0)
    b.eval(), aligned.eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(aligned(images).sort(1).values, b(images).sort(1).values, rtol=1e-4, atol=1e-4)


def test_filters_that_are_zero_do_not_matter():
    a, b = random_network("densenet_small", 0), random_network("densenet_small", 1)
    with torch.no_grad():
        for model in (a, b):
            model.features.conv0.weight[::2] = 0
            model.features.denseblock2.denselayer1.conv2.weight.zero_()
    aligned = align(a, b)
    assert feature_order(b.double(), aligned.double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)) < 1e-9
    for same_twice in (backbone("densenet_small", "zeros"), a):
        found = match(same_twice, same_twice, permutation_groups(a))
        assert all(torch.equal(p, torch.arange(len(p))) for p in found.values()), "what matches is left alone"


def test_layers_of_one_channel_are_permitted():
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1)).eval()
    assert [group.size for group in permutation_groups(model).values()] == [1, 4, 1]
    assert same(align(model, moved(model, 1)), model)


def test_shared_layers_and_unknown_functions_stay_correct():
    class Gate(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.cumsum(1)

    class Odd(nn.Module):
        """Order matters in the middle, a layer is used twice, a constant weighs channels, a map gates them."""

        def __init__(self, middle):
            super().__init__()
            self.middle = middle
            self.first, self.twice, self.gate = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 1, 1)
            self.scale = nn.Parameter(torch.rand(8, 1, 1))
            self.last = nn.Conv2d(16, 5, 1, bias=False)
            self.register_buffer("weights", torch.rand(1, 5, 1, 1))

        def forward(self, x):
            x = self.twice(self.twice(self.first(x).relu())).relu() * self.scale
            x = x * self.gate(x).sigmoid()
            x = torch.cat([x, self.middle(x)], dim=-3)
            return (self.last(x) * self.weights).mean(dim=(-2, -1))

    def assigned(x):
        x = x.clone()
        x[:, 0] = x[:, 1]
        return x

    plain = set(permutation_groups(Odd(nn.Identity())))
    assert plain == {"first", "gate", "last"}
    roll = dict(roll=lambda x: x.roll(1, 1), cumsum=Gate.apply, softmax=lambda x: x.softmax(1), assigned=assigned)
    roll |= dict(groups=nn.Conv2d(8, 8, 3, padding=1, groups=4), norm=nn.GroupNorm(4, 8), lrn=nn.LocalResponseNorm(3))
    for kind, middle in roll.items():
        torch.manual_seed(0)
        model = Odd(middle).double().eval()
        groups = permutation_groups(model)
        assert set(groups) == {"gate", "last"}, kind
        images = torch.randn(2, 3, 9, 9, dtype=torch.float64)
        assert feature_order(model, moved(model, 2), images) < 1e-9, kind
    for middle in (nn.Identity(), nn.BatchNorm2d(8), nn.GroupNorm(1, 8), nn.Conv2d(8, 8, 1, groups=8), nn.Tanh()):
        model = Odd(middle).double().eval()
        groups = permutation_groups(model)
        assert "first" in groups
        images = torch.randn(2, 3, 9, 9, dtype=torch.float64)
        assert feature_order(model, moved(model, 2), images) < 1e-9


def test_what_cannot_be_aligned_is_refused():
    small, wide = backbone("densenet_small", "random"), backbone("resnet18", "random")
    with pytest.raises(ValueError, match=r"the first layer that differs is features\.conv0\.weight \[24"):
        align(small, wide)
    head = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 8 * 8, 2))
    with pytest.raises(ValueError, match="cannot be run on the meta device for images of 224 px"):
        permutation_groups(head)
    with pytest.raises(ValueError, match="VisionTransformer cannot be run .* for images of 224 px .*Expected 64"):
        permutation_groups(random_network("vit_mini"))
    assert list(permutation_groups(head, image_size=8)) == ["0", "2"]
    assert same(align(head, moved(head, 1, 8), image_size=8), head)
