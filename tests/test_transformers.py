"""Transformers merge as convolutional networks do: attention's projections are kernels, positions follow the norms."""

import copy

import pandas as pd
import pytest
import safetensors.torch
import torch
import torchvision
from test_merge import random_weights, source
from test_sources import modes
from torch import nn

from medmerge import Classifier, KernelMerge, backbone
from medmerge.backbones import CheckpointError, check_image_size, patch_size
from medmerge.saving import save
from medmerge.sources import is_embedding
from medmerge.study import definitions
from medmerge.study import run as study
from medmerge.study.params import ParameterError, Parameters
from medmerge.training import Protocol, parameter_groups

SIZE = 32
PROJECTION = "encoder.layers.encoder_layer_0.self_attention.in_proj"


@pytest.fixture(scope="module")
def vits():
    return [source("vit_mini", seed) for seed in range(3)]


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
@pytest.mark.parametrize("name", ["vit_mini", "swin_mini", "vit_b_32", "swin_t"])
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


@pytest.mark.parametrize("name", ["vit_mini", "swin_mini", "swin_v2"])
def test_weight_decay_is_for_rows_of_linear_layers_alone(name):
    merge = KernelMerge([source(name, seed) for seed in range(2)])
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
