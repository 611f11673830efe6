"""The method's invariants: to the bit where arithmetic allows it, on real architectures and on small ones."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medmerge import Classifier, KernelMerge, backbone, zeros_like

ARCHITECTURES = ["densenet_small", "densenet121", "resnet50", "mobilenet_v2"]
GRANULARITIES = ["kernel", "parameter", "layer", "model"]


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


def randomised(module: nn.Module, seed: int) -> nn.Module:
    """Batch norms as after training: nothing is at its default, so that mixing them up shows."""
    generator = torch.Generator().manual_seed(seed)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            for name, low in {"weight": 0.5, "bias": -0.5, "running_mean": -0.5, "running_var": 0.5}.items():
                values = low + torch.rand(child.num_features, generator=generator)
                getattr(child, name).data.copy_(values)
            child.num_batches_tracked.fill_(100 + seed)
    return module.eval()


def source(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return randomised(Small() if name == "small" else backbone(name, "random"), seed)


@pytest.fixture(scope="module", params=["small", *ARCHITECTURES])
def pair(request):
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


@torch.no_grad()
def test_ends_are_the_sources_to_the_bit(pair, x):
    for index, w in ((0, 1.0), (1, 0.0)):
        merge = KernelMerge(pair, batchnorm=index).eval()
        merge.set_kernel_weights(w)
        assert torch.equal(merge(x), pair[index](x))


@torch.no_grad()
def test_equal_sources_make_w_irrelevant_to_the_bit(pair, x):
    merge = KernelMerge([pair[0], copy.deepcopy(pair[0])]).eval()
    expected = pair[0](x)
    for w in (0.5, -3.7, 0.123, 11.0):
        merge.set_kernel_weights(w)
        assert torch.equal(merge(x), expected)


@torch.no_grad()
def test_fold_is_an_ordinary_network_with_the_same_output_to_the_bit(pair, x):
    merge = KernelMerge(pair).eval()
    merge.set_kernel_weights(random_weights(merge))
    plain = merge.fold()
    assert type(plain) is type(pair[0])
    assert torch.equal(plain(x), merge(x))
    assert [type(m) for m in plain.modules()] == [type(m) for m in pair[0].modules()]
    fresh = copy.deepcopy(pair[1])
    fresh.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(fresh(x), merge(x))
    assert list(plain.state_dict()) == list(pair[0].state_dict())
    assert all(parameter.requires_grad for parameter in plain.parameters())


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
def test_gradient_of_w_is_the_kernel_gradient_along_the_difference(small, x, granularity):
    b, c = (m.double() for m in small)
    merge = KernelMerge([b, c], granularity=granularity).eval()
    plain = merge.fold().eval()
    target = torch.randn(2, 5, dtype=torch.float64)
    for model in (merge, plain):
        F.mse_loss(model(x.double()), target).backward()
    kernels, (of_b, of_c) = dict(plain.named_parameters()), (dict(m.named_parameters()) for m in (b, c))
    expected = {}
    layers = dict(merge.layers())
    for name in KernelMerge([b, c]).kernel_weights():
        for kind in ("weight", "bias"):
            key = f"{name}.{kind}"
            if key in kernels:
                product = kernels[key].grad * (of_b[key] - of_c[key])
                w = layers[key if granularity == "parameter" and kind == "bias" else name].w
                if granularity == "kernel":
                    product = product.flatten(1).sum(1) if product.dim() > 1 else product
                elif granularity != "parameter":
                    product = product.sum()
                expected[w] = expected.get(w, 0) + product
    assert expected
    for w, gradient in expected.items():
        torch.testing.assert_close(w.grad[0], gradient, rtol=1e-10, atol=1e-14)


def test_probe_step_changes_w_norms_and_head_and_nothing_else(pair, x):
    model = Classifier(KernelMerge(pair), 3).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    F.cross_entropy(model(x), torch.tensor([0, 2])).backward()
    optimizer.step()
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, value in model.state_dict().items():
        layer, _, kind = name.rpartition(".")
        expected = kind == "w" or layer in norms or layer == "head" or kind == "scale"
        assert torch.equal(value, before[name]) != expected, name
    learns = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert learns <= {"w", "weight", "bias", "scale"}


def test_sources_are_neither_changed_nor_shared(small, x):
    before = [copy.deepcopy(s.state_dict()) for s in small]
    model = Classifier(KernelMerge(small), 2).train()
    F.cross_entropy(model(x), torch.tensor([0, 1])).backward()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(7)
    for s, state in zip(small, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in s.state_dict().items())
        assert all(parameter.grad is None for parameter in s.parameters())


def test_integer_buffers_are_never_averaged(pair):
    for batchnorm, expected in (("mean", 100), (0, 100), (1, 101)):
        counts = [
            buffer
            for name, buffer in KernelMerge(pair, batchnorm=batchnorm).named_buffers()
            if name.endswith("num_batches_tracked")
        ]
        assert counts and all(count.dtype == torch.int64 and count.item() == expected for count in counts)


def test_norms_start_at_the_mean_or_at_one_source(pair):
    tensors = [{**dict(s.named_parameters()), **dict(s.named_buffers())} for s in pair]
    norms = [n for n, m in pair[0].named_modules() if isinstance(m, nn.BatchNorm2d)]
    keys = [f"{n}.{kind}" for n in norms for kind in ("weight", "bias", "running_mean", "running_var")]
    for batchnorm in ("mean", 0, 1):
        merged = KernelMerge(pair, batchnorm=batchnorm).merged
        got = {**dict(merged.named_parameters()), **dict(merged.named_buffers())}
        for key in keys:
            b, c = tensors[0][key], tensors[1][key]
            assert torch.equal(got[key], (b + c) / 2 if batchnorm == "mean" else (b, c)[batchnorm]), key


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


@pytest.mark.parametrize("normalisation", ["affine", "softmax"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_kernel_weights_round_trip(small, granularity, normalisation):
    merge = KernelMerge(small, granularity=granularity, normalisation=normalisation)
    assert all((w == 0.5).all() for w in merge.kernel_weights().values())
    merge.set_kernel_weights(0.25)
    for name, w in merge.kernel_weights().items():
        torch.testing.assert_close(w, torch.full_like(w, 0.25))
        if granularity != "parameter":
            assert w.shape == (len(small[0].get_submodule(name).weight),)
    other = KernelMerge(small, granularity=granularity, normalisation=normalisation)
    other.set_kernel_weights(merge.kernel_weights())
    for w, again in zip(merge.kernel_weights().values(), other.kernel_weights().values(), strict=True):
        torch.testing.assert_close(w, again)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_granularity_has_the_same_ends(small, x, granularity):
    for index, w in ((0, 1.0), (1, 0.0)):
        for normalisation in ("affine", "softmax"):
            merge = KernelMerge(small, granularity=granularity, batchnorm=index, normalisation=normalisation).eval()
            merge.set_kernel_weights(w)
            assert torch.equal(merge(x), small[index](x))
            assert torch.equal(merge.fold()(x), small[index](x))


def test_number_of_learnt_weights(small):
    def learnt(granularity):
        named = KernelMerge(small, granularity=granularity).named_parameters()
        return sum(w.numel() for name, w in named if name.endswith((".w", ".w_bias")))

    kernels = 8 + 8 + 8 + 5
    parameters = sum(p.numel() for n, p in small[0].named_parameters() if not n.startswith(("norm", "scale")))
    expected = {"kernel": kernels, "parameter": parameters, "layer": 4, "model": 1}
    assert {granularity: learnt(granularity) for granularity in GRANULARITIES} == expected


@pytest.mark.parametrize("normalisation", ["affine", "softmax"])
def test_three_sources(x, normalisation):
    sources = [source("small", seed) for seed in range(3)]
    merge = KernelMerge(sources, normalisation=normalisation, batchnorm=1).eval()
    for w in merge.kernel_weights().values():
        assert w.shape[0] == 3
        torch.testing.assert_close(w, torch.full_like(w, 1 / 3))
    plain = merge.fold()
    mean = sum(s.stem.weight for s in sources) / 3
    torch.testing.assert_close(plain.stem.weight, mean)
    one_hot = {name: torch.eye(3)[1][:, None].expand(3, w.shape[1]) for name, w in merge.kernel_weights().items()}
    merge.set_kernel_weights(one_hot)
    assert torch.equal(merge(x), sources[1](x))
    assert torch.equal(merge.fold()(x), merge(x))
    F.mse_loss(merge(x), torch.zeros(2, 5)).backward()
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


def test_zeros_like_keeps_norms_and_only_weighs_kernels(small, x):
    zeros = zeros_like(small[0])
    for name, parameter in zeros.named_parameters():
        kept = name.startswith(("norm", "scale"))
        assert torch.equal(parameter, small[0].get_parameter(name)) if kept else not parameter.any()
    merge = KernelMerge([small[0], zeros]).eval()
    merge.set_kernel_weights(1.0)
    assert torch.equal(merge(x), small[0](x))


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


def test_other_dtype_is_refused(small):
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
