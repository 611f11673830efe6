"""Transformers merge as convolutional networks do: attention's projections are kernels, positions follow the norms."""

import copy
import io

import pandas as pd
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from medmerge import Classifier, KernelMerge, backbone, zeros_like
from medmerge.backbones import CheckpointError, check_image_size, patch_size
from medmerge.saving import save
from medmerge.sources import is_embedding
from medmerge.study import definitions
from medmerge.study import run as study
from medmerge.study.params import ParameterError, Parameters
from medmerge.training import Protocol, parameter_groups

SIZE = 32
GRANULARITIES = ["kernel", "parameter", "layer", "model"]
PROJECTION = "encoder.layers.encoder_layer_0.self_attention.in_proj"
ADDED = ("class_token", "pos_embedding", "relative_position_bias_table", "logit_scale")


class SwinV2(torchvision.models.SwinTransformer):
    """Swin v2, small: its position biases come from a network of linear layers."""

    def __init__(self):
        from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

        super().__init__(
            *([4, 4], 24, [2, 2], [2, 4], [4, 4]),
            stochastic_depth_prob=0.0,
            block=SwinTransformerBlockV2,
            downsample_layer=PatchMergingV2,
        )
        self.head = nn.Identity()


def source(name: str, seed: int) -> nn.Module:
    """A network as after training: no parameter at its initial value, so that mixing them up shows."""
    torch.manual_seed(seed)
    model = SwinV2().eval() if name == "swin_v2" else backbone(name, "random", SIZE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=["vit_mini", "swin_mini", "swin_v2"])
def pair(request):
    return source(request.param, 0), source(request.param, 1)


@pytest.fixture(scope="module")
def vits():
    return [source("vit_mini", seed) for seed in range(3)]


@pytest.fixture
def x():
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))


def random_weights(merge: KernelMerge) -> dict:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.rand(w.shape, generator=generator) for name, w in merge.kernel_weights().items()}


def modes(*models: nn.Module):
    """Eval without and with gradients (attention computes these two in different ways), and training."""
    for training, gradients in ((False, False), (False, True), (True, True)):
        with torch.set_grad_enabled(gradients):
            yield [model.train(training) for model in models]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_ends_are_the_sources_to_the_bit(pair, x, granularity):
    for index, w in ((0, 1.0), (1, 0.0)):
        merge = KernelMerge(pair, batchnorm=index, granularity=granularity)
        merge.set_kernel_weights(w)
        for merged, original in modes(merge, pair[index]):
            assert torch.equal(merged(x), original(x))


def test_equal_sources_make_w_irrelevant_to_the_bit(pair, x):
    merge = KernelMerge([pair[0], copy.deepcopy(pair[0])])
    for w in (0.5, -3.7, 0.123, 11.0):
        merge.set_kernel_weights(w)
        for merged, original in modes(merge, pair[0]):
            assert torch.equal(merged(x), original(x))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("normalisation", ["affine", "softmax"])
def test_fold_is_an_ordinary_network_with_the_same_output_to_the_bit(pair, x, granularity, normalisation):
    merge = KernelMerge(pair, granularity=granularity, normalisation=normalisation)
    if granularity in ("kernel", "parameter"):
        merge.set_kernel_weights(random_weights(merge))
    plain = merge.fold()
    for merged, folded in modes(merge, plain):
        assert torch.equal(merged(x), folded(x))
    assert [type(m) for m in plain.modules()] == [type(m) for m in pair[0].modules()]
    assert list(plain.state_dict()) == list(pair[0].state_dict())
    assert [name for name, _ in plain.named_modules()] == [name for name, _ in pair[0].named_modules()]
    assert all(parameter.requires_grad for parameter in plain.parameters())
    fresh = copy.deepcopy(pair[1])
    fresh.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(x), plain.eval()(x))


@torch.no_grad()
def test_kernels_of_attention_are_rows_of_its_projections(vits):
    merge = KernelMerge(vits[:2])
    names = [name for name in merge.kernel_weights() if name.startswith("encoder.layers.encoder_layer_0.")]
    block = "encoder.layers.encoder_layer_0"
    ends = ["self_attention.in_proj", "self_attention.out_proj", "mlp.0", "mlp.3"]
    assert names == [f"{block}.{end}" for end in ends], "in forward order"
    assert [len(merge.kernel_weights()[name]) for name in names] == [144, 48, 96, 48]
    w = random_weights(merge)[PROJECTION]
    merge.set_kernel_weights({PROJECTION: w})
    b, c, merged = (m.encoder.layers.encoder_layer_0.self_attention for m in (*vits[:2], merge.fold()))
    torch.testing.assert_close(
        merged.in_proj_weight, w[:, None] * b.in_proj_weight + (1 - w[:, None]) * c.in_proj_weight
    )
    torch.testing.assert_close(merged.in_proj_bias, w * b.in_proj_bias + (1 - w) * c.in_proj_bias)
    torch.testing.assert_close(merged.out_proj.weight, (b.out_proj.weight + c.out_proj.weight) / 2)


def test_positions_tokens_and_norms_follow_the_batchnorm_policy(pair):
    for batchnorm in ("mean", 0, 1):
        plain = KernelMerge(pair, batchnorm=batchnorm).fold()
        norms = {name for name, m in plain.named_modules() if isinstance(m, nn.LayerNorm)}
        seen = set()
        for key, got in plain.named_parameters():
            owner, _, own = key.rpartition(".")
            if owner in norms or own in ADDED:
                b, c = (s.get_parameter(key) for s in pair)
                assert torch.equal(got, (b + c) / 2 if batchnorm == "mean" else (b, c)[batchnorm]), key
                seen.add(own)
        assert seen & set(ADDED) and {"weight", "bias"} <= seen


def test_probe_step_changes_w_norms_positions_and_head_and_nothing_else(pair, x):
    merge = KernelMerge(pair)
    merge.merged.num_features = 48
    model = Classifier(merge, 3).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    F.cross_entropy(model(x), torch.tensor([0, 2, 1])).backward()
    optimizer.step()
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, value in model.state_dict().items():
        layer, _, own = name.rpartition(".")
        expected = own == "w" or layer in norms or layer == "head" or own in ADDED
        assert (name in learns) == expected, name
        assert torch.equal(value, before[name]) != expected, name


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gradient_of_w_is_the_kernel_gradient_along_the_difference(vits, x, granularity):
    b, c = (copy.deepcopy(m).double() for m in vits[:2])
    merge = KernelMerge([b, c], granularity=granularity)
    plain = merge.fold()
    for model in (merge, plain):
        model(x.double()).square().sum().backward()
    attention, *of_sources = (m.get_submodule(PROJECTION.removesuffix(".in_proj")) for m in (plain, b, c))
    weight, bias = (
        getattr(attention, name).grad * (getattr(of_sources[0], name) - getattr(of_sources[1], name))
        for name in ("in_proj_weight", "in_proj_bias")
    )
    layer = dict(merge.layers())[PROJECTION]
    if granularity == "kernel":
        torch.testing.assert_close(layer.w.grad[0], weight.sum(1) + bias, rtol=1e-9, atol=1e-12)
    elif granularity == "parameter":
        torch.testing.assert_close(layer.w.grad[0], weight, rtol=1e-9, atol=1e-12)
        bias_w = dict(merge.layers())[f"{PROJECTION}.bias"].w
        torch.testing.assert_close(bias_w.grad[0], bias, rtol=1e-9, atol=1e-12)
    elif granularity == "layer":
        torch.testing.assert_close(layer.w.grad[0], weight.sum() + bias.sum(), rtol=1e-9, atol=1e-12)
    else:
        assert layer.w is next(merge.layers())[1].w and layer.w.grad.abs() > 0


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_three_sources_share_by_softmax(vits, x, granularity):
    merge = KernelMerge(vits, granularity=granularity, batchnorm=1).eval()
    weights = merge.kernel_weights()
    assert merge.normalisation == "softmax" and all(w.shape[0] == 3 for w in weights.values())
    merge.set_kernel_weights(
        {name: torch.eye(3)[1].view(3, *[1] * (w.dim() - 1)).expand(w.shape) for name, w in weights.items()}
    )
    for merged, folded, original in modes(merge, merge.fold(), vits[1]):
        assert torch.equal(merged(x), original(x)) and torch.equal(merged(x), folded(x))


@torch.no_grad()
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_weights_round_trip_through_copies_and_files(pair, x, granularity):
    merge = KernelMerge(pair, granularity=granularity).eval()
    merge.set_kernel_weights(0.25)
    if granularity in ("kernel", "parameter"):
        merge.set_kernel_weights(random_weights(merge))
    other = KernelMerge(pair, granularity=granularity).eval()
    other.set_kernel_weights(merge.kernel_weights())
    file = io.BytesIO()
    torch.save(merge.state_dict(), file)
    file.seek(0)
    loaded = KernelMerge(pair[::-1], granularity=granularity, batchnorm=1).eval()
    loaded.load_state_dict(torch.load(file, weights_only=True), strict=True)
    for again in (other, loaded, copy.deepcopy(merge)):
        assert list(again.kernel_weights()) == list(merge.kernel_weights())
        assert torch.equal(again(x), merge(x))


@torch.no_grad()
def test_swapping_the_sources_maps_w_to_one_minus_w(pair, x):
    merge, swapped = KernelMerge(pair).eval(), KernelMerge(pair[::-1]).eval()
    weights = random_weights(merge)
    merge.set_kernel_weights(weights)
    swapped.set_kernel_weights({name: 1 - w for name, w in weights.items()})
    torch.testing.assert_close(merge(x), swapped(x), rtol=1e-4, atol=1e-5)


def test_sources_are_neither_changed_nor_shared(pair, x):
    before = [copy.deepcopy(s.state_dict()) for s in pair]
    types = [[type(m) for m in s.modules()] for s in pair]
    merge = KernelMerge(pair)
    with torch.no_grad():
        for tensor in (*merge.parameters(), *merge.buffers(), *merge.fold().parameters()):
            tensor.fill_(7)
    for s, state, kinds in zip(pair, before, types, strict=True):
        assert list(s.state_dict()) == list(state) and [type(m) for m in s.modules()] == kinds
        assert all(torch.equal(value, state[key]) for key, value in s.state_dict().items())


@pytest.mark.parametrize("bias", [True, False])
def test_attention_with_other_options_merges_too(bias):
    torch.manual_seed(0)
    x = torch.randn(5, 2, 16)
    layers = [nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, bias=bias, batch_first=True) for _ in range(2)]
    merge = KernelMerge(layers, batchnorm=0)
    merge.set_kernel_weights(1.0)
    for merged, folded, original in modes(merge, merge.fold(), layers[0]):
        assert torch.equal(merged(x), original(x)) and torch.equal(folded(x), original(x))


def test_sources_with_other_heads_or_windows_are_refused(vits):
    other = copy.deepcopy(vits[1])
    other.encoder.layers.encoder_layer_1.self_attention.num_heads = 2
    with pytest.raises(ValueError, match=r"encoder_layer_1\.self_attention .*num_heads=4.*num_heads=2"):
        KernelMerge([vits[0], other])
    swins = [source("swin_mini", seed) for seed in range(2)]
    swins[1].features[1][1].attn.shift_size = [1, 1]
    with pytest.raises(ValueError, match=r"features\.1\.1\.attn .*shift_size=\[2, 2\].*shift_size=\[1, 1\]"):
        KernelMerge(swins)


def test_only_known_embeddings_are_taken_for_positions(vits):
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.pos_embedding = nn.Linear(4, 4), nn.Parameter(torch.ones(1, 3, 4))

    with pytest.raises(TypeError, match=r"pos_embedding \[1, 3, 4\] of a Mine .*known position embedding"):
        KernelMerge([Mine(), Mine()])
    assert is_embedding(vits[0].encoder, "pos_embedding") and not is_embedding(vits[0], "class_token")


@torch.no_grad()
def test_zeros_has_no_kernel_left_and_keeps_norms_and_positions(pair, x):
    zeros = zeros_like(pair[0])
    assert [type(m) for m in zeros.modules()] == [type(m) for m in pair[0].modules()]
    norms = {name for name, m in zeros.named_modules() if isinstance(m, nn.LayerNorm)}
    for key, parameter in zeros.named_parameters():
        owner, _, own = key.rpartition(".")
        if owner in norms or own in ADDED:
            assert torch.equal(parameter, pair[0].get_parameter(key)), key
        else:
            assert not parameter.any(), key
    merge = KernelMerge([pair[0], zeros]).eval()
    merge.set_kernel_weights(1.0)
    assert torch.equal(merge(x), pair[0].eval()(x))


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_mini", "swin_mini", "vit_b_32", "swin_t", "swin_v2_t"])
def test_saved_classifier_is_torchvisions_own_network(name, tmp_path):
    torch.manual_seed(0)
    model = Classifier(backbone(name, "random", SIZE), 5).eval()
    path = tmp_path / "model.safetensors"
    save(model, path)
    size = {"image_size": SIZE} if patch_size(name) else {}
    if name.endswith("mini"):
        from medmerge.backbones import SMALL

        kind, options = SMALL[name]
        plain = kind(**options, **size, num_classes=5)
    else:
        plain = torchvision.models.get_model(name, num_classes=5, **size)
    plain.load_state_dict(safetensors.torch.load_file(path), strict=True)
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain.eval()(x), model(x)) and model(x).shape == (2, 5)
    again = backbone(name, path, SIZE)
    assert torch.equal(again(x), model.backbone(x)) and not again.training


def test_a_vit_is_built_for_the_image_size_and_a_swin_takes_any():
    assert (patch_size("vit_mini"), patch_size("vit_h_14"), patch_size("swin_t"), patch_size("resnet50")) == (
        *(8, 14),
        *(None, None),
    )
    assert backbone("vit_mini", "random").image_size == 224
    assert backbone("vit_mini", "random", 48).encoder.pos_embedding.shape == (1, 37, 48)
    for size in (4, 60):
        with pytest.raises(ValueError, match=f"images of {size} pixels .* vit_mini.* 8 x 8; give a multiple of 8"):
            backbone("vit_mini", "random", size)
        check_image_size("swin_t", size)
    swin = backbone("swin_mini", "random")
    assert all(swin(torch.zeros(1, 3, size, size)).shape == (1, 48) for size in (16, 33, 64))


@torch.no_grad()
def test_position_embeddings_of_another_image_size_are_interpolated(tmp_path):
    torch.manual_seed(0)
    model = backbone("vit_mini", "random", 64)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    wide = backbone("vit_mini", tmp_path / "w.pt", 128)
    for key, value in wide.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]) == (key != "encoder.pos_embedding"), key
    small, large = model.encoder.pos_embedding, wide.encoder.pos_embedding
    assert large.shape == (1, 257, 48) and torch.equal(large[:, 0], small[:, 0]), "the class token's is kept"
    grids = small[0, 1:].view(8, 8, 48), large[0, 1:].view(16, 16, 48)
    for at in (0, -1):  # corners are aligned
        torch.testing.assert_close(grids[0][at, at], grids[1][at, at], rtol=1e-4, atol=1e-6)
    assert torch.equal(backbone("vit_mini", tmp_path / "w.pt", 64).encoder.pos_embedding, small)


def test_torchvisions_weights_of_a_vit_are_loaded_at_another_size(monkeypatch):
    torch.manual_seed(0)
    full = torchvision.models.vit_b_32()
    state = full.state_dict()
    old = {key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v for key, v in state.items()}
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: dict(old))
    model = backbone("vit_b_32", "imagenet", 64)
    assert model.encoder.pos_embedding.shape == (1, 5, 768)
    for key, value in model.state_dict().items():
        assert key == "encoder.pos_embedding" or torch.equal(value, state[key]), key


def test_older_and_unfit_files_of_a_vit(tmp_path):
    model = backbone("vit_mini", "random", 64)
    state = model.state_dict()
    old = {key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v for key, v in state.items()}
    assert "encoder.layers.encoder_layer_0.mlp.linear_1.weight" in old
    torch.save(old | {"heads.head.weight": torch.ones(9, 48), "heads.head.bias": torch.ones(9)}, tmp_path / "w.pt")
    again = backbone("vit_mini", tmp_path / "w.pt", 64).state_dict()
    assert all(torch.equal(again[key], value) for key, value in state.items())
    for shape in ((1, 64, 48), (1, 65, 40), (65, 48)):
        torch.save(state | {"encoder.pos_embedding": torch.ones(shape)}, tmp_path / "bad.pt")
        with pytest.raises(CheckpointError, match=r"pos_embedding is \[.*\] in the file and \[1, 17, 48\]"):
            backbone("vit_mini", tmp_path / "bad.pt", 32)


def test_weight_decay_is_for_rows_of_linear_layers_alone(pair):
    merge = KernelMerge(pair)
    decays, others, weights = (group["params"] for group in parameter_groups(merge, Protocol()))
    assert not decays and len(others) + len(weights) == len(list(merge.parameters()))
    plain = merge.fold()
    decays = {id(p) for p in parameter_groups(plain, Protocol())[0]["params"]}
    for key, parameter in plain.named_parameters():
        owner, _, own = key.rpartition(".")
        kernel = isinstance(plain.get_submodule(owner), (nn.Linear, nn.Conv2d)) and own == "weight"
        assert (id(parameter) in decays) == (kernel or own == "in_proj_weight"), key


def test_a_whole_study_runs_on_a_transformer(tmp_path, monkeypatch):
    name = "vit_mini"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "_config.yml").write_text("")
    p = Parameters.parse(
        {
            **{"pair": "tiny", "base_data": "one", "base_weights": "random", "source_data": "two"},
            **{"source_weights": "random", "target_data": "synthetic:moles", "backbone": name, "image_size": SIZE},
            **{"lp_epochs": 1, "ft_epochs": 1, "lp_lr": 1e-3, "ft_lr": 1e-3, "device": "cpu", "precision": "fp32"},
        }
    )
    records = study.run(p)
    assert [r.run["row"]["approach"] for r in records] == ["ft", "ft", "lp_ft", "lp_ft", "medmerge"]
    merged = records[-1]
    assert list(merged.kernel_weights) == [n for n, _ in KernelMerge([backbone(name, "zeros", SIZE)] * 2).layers()]
    assert pd.Series({n: abs(w - 0.5).max() for n, w in merged.kernel_weights.items()}).gt(0).all()
    loaded = backbone(name, merged.folder / definitions.MODEL, SIZE)
    assert loaded(torch.zeros(1, 3, SIZE, SIZE)).shape == (1, 48)
    with pytest.raises(ParameterError, match="image_size: images of 30 pixels"):
        study.check(p.model_copy(update={"image_size": 30, "pair": "other"}))
