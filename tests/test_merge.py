"""The method's invariants: to the bit where arithmetic allows it, on real architectures and on small ones."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
import torchvision
from test_sources import modes
from torch import nn

from medmerge import Classifier, KernelMerge, backbone, zeros_like
from medmerge.sources import kernel_layers

GRANULARITIES = ["kernel", "parameter", "layer", "model"]
NORMS = (nn.BatchNorm2d, nn.LayerNorm)
ADDED = ("scale", "class_token", "pos_embedding", "relative_position_bias_table", "logit_scale")
"""Parameters beside norms that are no kernels."""


class Small(nn.Module):
    """Every kind of layer that has kernels: with bias and without, strided, grouped, depthwise, padded, linear."""

    num_features = 5

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding="same")
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        return self.last(self.scale * F.relu(self.depthwise(self.grouped(x))))


class SwinV2(torchvision.models.SwinTransformer):
    """Swin v2, small: its position biases come from a network of linear layers."""

    num_features = 48

    def __init__(self):
        from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

        super().__init__(
            *([4, 4], 24, [2, 2], [2, 4], [4, 4]),
            stochastic_depth_prob=0.0,
            block=SwinTransformerBlockV2,
            downsample_layer=PatchMergingV2,
        )
        self.head = nn.Identity()


OWN = {"small": Small, "swin_v2": SwinV2}
NETWORKS = [*OWN, "densenet_small", "densenet121", "resnet50", "mobilenet_v2", "vit_mini", "swin_mini"]


def source(name: str, seed: int) -> nn.Module:
    """A network as after training: no norm, bias or position is at its default, so that mixing them up shows."""
    torch.manual_seed(seed)
    model = OWN[name]() if name in OWN else backbone(name, "random", 64)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, NORMS):
                for key, tensor in (*module.named_parameters(), *module.named_buffers()):
                    tensor.copy_(torch.rand(tensor.shape) + (0.5 if key in ("weight", "running_var") else -0.5))
            if isinstance(module, nn.BatchNorm2d):
                module.num_batches_tracked.fill_(100 + seed)
            for key, parameter in module.named_parameters(recurse=False):
                if key in ADDED or key.endswith("bias"):
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request):
    return source(request.param, 0), source(request.param, 1)


@pytest.fixture(params=["small", "vit_mini", "swin_mini"])
def light(request):
    return source(request.param, 0), source(request.param, 1)


@pytest.fixture
def small():
    return source("small", 0), source("small", 1)


@pytest.fixture
def x():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def random_weights(merge: KernelMerge, seed: int = 3) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(w.shape, generator=generator) for name, w in merge.kernel_weights().items()}


@pytest.mark.parametrize(("name", "layers", "kernels"), [("densenet121", 120, 10_240), ("resnet50", 53, 26_560)])
def test_number_of_kernels(name, layers, kernels):
    weights = KernelMerge([backbone(name, "random"), backbone(name, "random")]).kernel_weights()
    assert (len(weights), sum(w.numel() for w in weights.values())) == (layers, kernels)


def test_ends_are_the_sources_to_the_bit(pair, x):
    for index, w in ((0, 1.0), (1, 0.0)):
        merge = KernelMerge(pair, batchnorm=index)
        merge.set_kernel_weights(w)
        for merged, original in modes(merge, copy.deepcopy(pair[index])):
            assert torch.equal(merged(x), original(x))


@torch.no_grad()
def test_equal_sources_make_w_irrelevant_to_the_bit(pair, x):
    merge = KernelMerge([pair[0], copy.deepcopy(pair[0])]).eval()
    expected = pair[0](x)
    for w in (0.5, -3.7, 0.123, 11.0):
        merge.set_kernel_weights(w)
        assert torch.equal(merge(x), expected)


def test_fold_is_an_ordinary_network_with_the_same_output_to_the_bit(pair, x):
    merge = KernelMerge(pair)
    merge.set_kernel_weights(random_weights(merge))
    plain = merge.fold()
    assert [(name, type(m)) for name, m in plain.named_modules()] == [(n, type(m)) for n, m in pair[0].named_modules()]
    assert list(plain.state_dict()) == list(pair[0].state_dict())
    assert all(parameter.requires_grad for parameter in plain.parameters())
    fresh = copy.deepcopy(pair[1])
    fresh.load_state_dict(plain.state_dict(), strict=True)
    for merged, folded, loaded in modes(merge, plain, fresh):
        out = merged(x)
        assert torch.equal(out, folded(x)) and torch.equal(out, loaded(x))


@torch.no_grad()
def test_fold_is_a_copy(small, x):
    merge = KernelMerge(small).eval()
    before = merge(x)
    for parameter in merge.fold().parameters():
        parameter.fill_(9)
    assert torch.equal(merge(x), before)


@torch.no_grad()
def test_kernels_are_the_papers_weighted_mean(small):
    merge = KernelMerge(small)
    weights = random_weights(merge)
    merge.set_kernel_weights(weights)
    b, c, plain = (dict(m.named_parameters()) for m in (*small, merge.fold()))
    for layer, w in weights.items():
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if name in b:
                wide = w.view(-1, *[1] * (b[name].dim() - 1))
                torch.testing.assert_close(plain[name], wide * b[name] + (1 - wide) * c[name])


@torch.no_grad()
def test_swapping_the_sources_maps_w_to_one_minus_w(pair, x):
    merge, swapped = KernelMerge(pair).eval(), KernelMerge(pair[::-1]).eval()
    weights = {name: (w * 64).round() / 64 for name, w in random_weights(merge).items()}
    weights = {name: torch.where(w == 0.5, 0.25, w) for name, w in weights.items()}
    merge.set_kernel_weights(weights)
    swapped.set_kernel_weights({name: 1 - w for name, w in weights.items()})
    assert torch.equal(merge(x), swapped(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_networks_in_half_precision_learn_as_those_of_others(small, x, dtype):
    merge = KernelMerge([m.to(dtype) for m in small])
    optimizer = torch.optim.SGD(merge.merging_parameters(), 1e-4)
    for w in merge.merging_parameters():
        w.grad = torch.ones_like(w)
    optimizer.step()
    moved = torch.cat([w for w in merge.kernel_weights().values()]) - 0.5
    torch.testing.assert_close(moved.double(), torch.full_like(moved, -1e-4).double(), rtol=1e-3, atol=0)
    x = x.to(dtype)
    assert merge.eval()(x).dtype == dtype and torch.equal(merge(x), merge.fold()(x))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gradient_of_w_is_the_kernel_gradient_along_the_difference(light, x, granularity):
    b, c = (m.double() for m in light)
    merge = KernelMerge([b, c], granularity=granularity).eval()
    plain = merge.fold().eval()
    for model in (merge, plain):
        model(x.double()).square().sum().backward()
    layers, expected = dict(merge.layers()), {}
    for layer in kernel_layers(plain):
        for key in filter(None, (layer.weight, layer.bias)):
            folded, of_b, of_c = (getattr(m.get_submodule(layer.owner), key) for m in (plain, b, c))
            product = folded.grad * (of_b - of_c)
            own = f"{layer.name}.bias" if granularity == "parameter" and key == layer.bias else layer.name
            if granularity == "kernel":
                product = product.flatten(1).sum(1) if product.dim() > 1 else product
            elif granularity != "parameter":
                product = product.sum()
            expected[layers[own].w] = expected.get(layers[own].w, 0) + product
    assert expected
    for w, gradient in expected.items():
        torch.testing.assert_close(w.grad[0], gradient, rtol=1e-9, atol=1e-12)


def test_probe_step_changes_w_norms_and_head_and_nothing_else(pair, x):
    model = Classifier(KernelMerge(pair), 3).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    F.cross_entropy(model(x), torch.tensor([0, 2])).backward()
    optimizer.step()
    norms = {n for n, m in model.named_modules() if isinstance(m, NORMS)}
    for name, value in model.state_dict().items():
        layer, _, kind = name.rpartition(".")
        expected = kind == "w" or layer in norms or layer == "head" or kind in ADDED
        assert torch.equal(value, before[name]) != expected, name
    assert all(p.requires_grad == (not torch.equal(p, before[name])) for name, p in model.named_parameters())


def test_sources_are_neither_changed_nor_shared(light, x):
    before = [copy.deepcopy(s.state_dict()) for s in light]
    model = Classifier(KernelMerge(light), 2).train()
    F.cross_entropy(model(x), torch.tensor([0, 1])).backward()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers(), *model.backbone.fold().parameters()):
            tensor.fill_(7)
    for s, state in zip(light, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in s.state_dict().items())
        assert all(parameter.grad is None for parameter in s.parameters())


def test_what_is_no_kernel_starts_at_the_mean_or_at_one_source(pair):
    kernels = {f"{k.owner}.{key}" for k in kernel_layers(pair[0]) for key in (k.weight, k.bias)}
    first, second = (s.state_dict() for s in pair)
    for batchnorm in ("mean", 0, 1):
        plain = KernelMerge(pair, batchnorm=batchnorm).fold().state_dict()
        for key in plain.keys() - kernels:
            b, c, index = first[key], second[key], 0 if batchnorm == "mean" else batchnorm
            mean = batchnorm == "mean" and b.is_floating_point()  # counts are never averaged
            assert torch.equal(plain[key], (b + c) / 2 if mean else (b, c)[index]), key


@torch.no_grad()
def test_state_dict_saves_and_loads(pair, x):
    merge = KernelMerge(pair).eval()
    merge.set_kernel_weights(random_weights(merge))
    file = io.BytesIO()
    torch.save(merge.state_dict(), file)
    file.seek(0)
    other = KernelMerge(pair[::-1]).eval()
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(other(x), merge(x))


@torch.no_grad()
@pytest.mark.parametrize("normalisation", ["affine", "softmax"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_weights_round_trip(light, x, granularity, normalisation):
    options = {"granularity": granularity, "normalisation": normalisation}
    merge, other = (KernelMerge(light, **options).eval() for _ in range(2))
    assert all((w == 0.5).all() for w in merge.kernel_weights().values())
    merge.set_kernel_weights(0.25)
    for layer in kernel_layers(light[0]):
        w = merge.kernel_weights()[layer.name]
        torch.testing.assert_close(w, torch.full_like(w, 0.25))
        assert len(w) == len(layer)
    if granularity in ("kernel", "parameter"):
        merge.set_kernel_weights(random_weights(merge))
    other.set_kernel_weights(merge.kernel_weights())
    for w, again in zip(merge.kernel_weights().values(), other.kernel_weights().values(), strict=True):
        torch.testing.assert_close(w, again)
    assert torch.equal(copy.deepcopy(merge)(x), merge(x)) and torch.equal(merge.fold()(x), merge(x))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_granularity_has_the_same_ends(light, x, granularity):
    for index, w in ((0, 1.0), (1, 0.0)):
        for normalisation in ("affine", "softmax"):
            merge = KernelMerge(light, granularity=granularity, batchnorm=index, normalisation=normalisation)
            merge.set_kernel_weights(w)
            for merged, folded, original in modes(merge, merge.fold(), copy.deepcopy(light[index])):
                out = original(x)
                assert torch.equal(merged(x), out) and torch.equal(folded(x), out)


def test_number_of_learnt_weights(small):
    def learnt(granularity):
        named = KernelMerge(small, granularity=granularity).named_parameters()
        return sum(w.numel() for name, w in named if name.endswith((".w", ".w_bias")))

    kernels = 8 + 8 + 8 + 5
    parameters = sum(p.numel() for n, p in small[0].named_parameters() if not n.startswith(("norm", "scale")))
    expected = {"kernel": kernels, "parameter": parameters, "layer": 4, "model": 1}
    assert {granularity: learnt(granularity) for granularity in GRANULARITIES} == expected


@pytest.mark.parametrize("name", ["small", "vit_mini"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("normalisation", ["affine", "softmax"])
def test_three_sources(x, name, granularity, normalisation):
    sources = [source(name, seed) for seed in range(3)]
    merge = KernelMerge(sources, granularity=granularity, normalisation=normalisation, batchnorm=1)
    weights = merge.kernel_weights()
    for w in weights.values():
        assert w.shape[0] == 3
        torch.testing.assert_close(w, torch.full_like(w, 1 / 3))
    b, c, d, mean = (next(iter(kernel_layers(m))).module.weight for m in (*sources, merge.fold()))
    torch.testing.assert_close(mean, (b + c + d) / 3)
    merge.set_kernel_weights(
        {name: torch.eye(3)[1].view(3, *[1] * (w.dim() - 1)).expand(w.shape) for name, w in weights.items()}
    )
    for merged, folded, original in modes(merge, merge.fold(), copy.deepcopy(sources[1])):
        out = merged(x)
        assert torch.equal(out, original(x)) and torch.equal(out, folded(x))
    merge(x).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in merge.parameters() if p.grad is not None)


def test_defaults_follow_the_paper_for_two_and_softmax_for_more(small):
    assert KernelMerge(small).normalisation == "affine"
    assert KernelMerge([*small, small[0]]).normalisation == "softmax"


@torch.no_grad()
def test_one_layer_can_be_set_alone(small):
    merge = KernelMerge(small)
    merge.set_kernel_weights({"grouped": 1.0})
    weights = merge.kernel_weights()
    assert (weights.pop("grouped") == 1).all()
    assert all((w == 0.5).all() for w in weights.values())


def test_layer_used_in_two_places_stays_one_layer(x):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 3, 3, padding=1)
            self.again = self.first

        def forward(self, x):
            return self.again(F.relu(self.first(x)))

    torch.manual_seed(0)
    sources = [Shared(), Shared()]
    merge = KernelMerge(sources)
    merge.set_kernel_weights(1.0)
    assert merge.merged.first is merge.merged.again and len(merge.kernel_weights()) == 1
    assert torch.equal(merge(x), sources[0](x))
    plain = merge.fold()
    assert plain.first is plain.again and torch.equal(plain(x), merge(x))


def test_a_source_may_be_a_single_layer():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 2), nn.Linear(4, 2)]
    merge = KernelMerge(layers)
    assert type(merge.fold()) is nn.Linear
    torch.testing.assert_close(merge.fold().weight, (layers[0].weight + layers[1].weight) / 2)


@torch.no_grad()
def test_zeros_like_keeps_norms_and_only_weighs_kernels(light, x):
    zeros = zeros_like(light[0])
    kernels = {f"{k.owner}.{key}" for k in kernel_layers(light[0]) for key in (k.weight, k.bias)}
    for name, parameter in zeros.named_parameters():
        assert not parameter.any() if name in kernels else torch.equal(parameter, light[0].get_parameter(name)), name
    merge = KernelMerge([light[0], zeros]).eval()
    merge.set_kernel_weights(1.0)
    assert torch.equal(merge(x), light[0](x))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            "resnet50",
            r"features\.conv0\.weight \[24, 3, 7, 7\].* in source 0 .*conv1\.weight \[64, 3, 7, 7\].* in source 1",
        ),
        ("densenet121", r"features\.conv0\.weight \[24, 3, 7, 7\].*features\.conv0\.weight \[64, 3, 7, 7\]"),
    ],
)
def test_another_architecture_is_refused_with_the_first_difference(other, message):
    with pytest.raises(ValueError, match=message):
        KernelMerge([backbone("densenet_small", "random"), backbone(other, "random")])


def test_same_shapes_with_other_options_are_refused(small):
    other = copy.deepcopy(small[1])
    other.stem.stride = (1, 1)
    with pytest.raises(ValueError, match=r"stem Conv2d\(.*stride=\(2, 2\).*stem Conv2d\(.*stride=\(1, 1\)"):
        KernelMerge([small[0], other])
    deeper = copy.deepcopy(small[1])
    deeper.last.append(nn.ReLU())
    with pytest.raises(ValueError, match="last.3"):
        KernelMerge([small[0], deeper])
    with pytest.raises(ValueError, match=r"float32.*float64"):
        KernelMerge([small[0], copy.deepcopy(small[1]).double()])


def test_unmergeable_parameters_are_named():
    attention = nn.MultiheadAttention(8, 2, kdim=4)
    with pytest.raises(TypeError, match=r"q_proj_weight \[8, 8\] of a MultiheadAttention"):
        KernelMerge([attention, copy.deepcopy(attention)])
    with pytest.raises(TypeError, match=r"weight \[4, 2\] of a Embedding"):
        KernelMerge([nn.Embedding(4, 2), nn.Embedding(4, 2)])
    with pytest.raises(TypeError, match="no convolution"):
        KernelMerge([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "kernels"}, "granularity='kernels' is not one of 'kernel'"),
        ({"normalisation": "sigmoid"}, "normalisation"),
        ({"batchnorm": 2}, "0 to 1"),
        ({"batchnorm": True}, "batchnorm=True"),
        ({"batchnorm": "first"}, "batchnorm='first'"),
    ],
)
def test_unknown_options_are_refused(small, options, message):
    with pytest.raises(ValueError, match=message):
        KernelMerge(small, **options)


def test_number_of_sources(small):
    with pytest.raises(ValueError, match="two or more sources, got 1"):
        KernelMerge(small[:1])
    with pytest.raises(TypeError, match="str"):
        KernelMerge([small[0], "weights.pt"])


def test_wrong_weights_change_nothing(small):
    merge = KernelMerge(small)
    for weights, error, message in [
        ({"stem": 0.7, "gruoped": 0.1}, KeyError, "grouped"),
        ({"stem": 0.7, "grouped": torch.zeros(3)}, ValueError, r"\[3\], not \[8\]"),
        ({"stem": 0.7, "grouped": float("nan")}, ValueError, "finite"),
    ]:
        with pytest.raises(error, match=message):
            merge.set_kernel_weights(weights)
    assert all((w == 0.5).all() for w in merge.kernel_weights().values())
    with pytest.raises(ValueError, match="within 0 and 1"):
        KernelMerge(small, normalisation="softmax").set_kernel_weights(1.5)
    with pytest.raises(ValueError, match="one weight"):
        KernelMerge(small, granularity="layer").set_kernel_weights({"stem": torch.arange(8.0)})
    with pytest.raises(ValueError, match="share one weight"):
        KernelMerge(small, granularity="model").set_kernel_weights({"stem": 0.1, "grouped": 0.2})
