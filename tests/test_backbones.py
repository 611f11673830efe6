"""Backbones: torchvision's networks without their heads, and every way in which a checkpoint can be good or bad."""

import argparse
import bz2
import gzip
import io
import os
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from medmerge import Classifier, backbone, backbones, load, save, save_backbone, weightfiles
from medmerge.backbones import CheckpointError, check_weights, has_plain_head, names, read_state, state_sha256

ARCHITECTURES = [
    *("densenet_small", "densenet121", "resnet50", "mobilenet_v2", "vgg11_bn", "squeezenet1_1", "convnext_tiny"),
    *("googlenet", "shufflenet_v2_x0_5", "efficientnet_b0", "mobilenet_v3_small", "regnet_y_400mf"),
]
SMALL, CONV = "densenet_small", "features.conv0.weight"


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = backbone(SMALL, "random")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.num_batches_tracked.fill_(7)
    return model


def full_network(name: str) -> nn.Module:
    torch.manual_seed(1)
    if name == SMALL:
        return torchvision.models.DenseNet(24, num_init_features=24)
    extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    return torchvision.models.get_model(name, num_classes=5, **extra)


@pytest.fixture
def narrow_vgg(monkeypatch):
    """VGG with layers of 64 units before its last, instead of 4,096: half a gigabyte less to draw, write and read."""

    class Linear(nn.Linear):
        def __init__(self, inputs: int, outputs: int):
            super().__init__(*(64 if width == 4096 else width for width in (inputs, outputs)))

    monkeypatch.setattr(torchvision.models.vgg, "nn", SimpleNamespace(**{**vars(nn), "Linear": Linear}))


def write(state, path):
    safetensors.torch.save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_features_are_the_full_networks_up_to_its_head(name, tmp_path, narrow_vgg):
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    if name == SMALL:
        model = network()
        assert model(x).shape == (2, model.num_features) and not model.training
        return
    full = full_network(name).eval()
    model = backbone(name, write(full.state_dict(), tmp_path / "full.pt"))
    features = model(x)
    assert features.shape == (2, model.num_features) and not model.training
    keys = [key for key in full.state_dict() if key in model.state_dict()]
    assert list(model.state_dict()) == keys
    head = getattr(full, model.head_name)
    if name == "squeezenet1_1":  # its head is a convolution before the pooling
        assert torch.equal(features, full.features(x).mean((2, 3), keepdim=True).flatten(1))
        return
    linear = head if isinstance(head, nn.Linear) else head[-1]
    assert torch.equal(linear(features), full(x))


def test_names_are_sorted_and_all_but_maxvit():
    known = names()
    assert known == sorted(set(known)) and len(known) > 60
    assert {*ARCHITECTURES, "inception_v3", "resnext50_32x4d", "mnasnet0_5"} <= set(known)
    assert {"vit_b_16", "swin_t", "swin_v2_t", "vit_mini", "swin_mini"} <= set(known)
    assert set(torchvision.models.list_models(module=torchvision.models)) - set(known) == {"maxvit_t"}
    assert set(known) - set(torchvision.models.list_models(module=torchvision.models)) == set(backbones.SMALL)


def test_random_depends_on_the_global_state_alone():
    assert same(network(3), network(3))
    assert not torch.equal(network(3).features.conv0.weight, network(4).features.conv0.weight)


@torch.no_grad()
def test_zeros_has_no_kernel_left():
    model = backbone(SMALL, "zeros")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert not module.weight.any()
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()


def test_classifier_is_a_backbone_and_one_linear_layer():
    model = Classifier(network(), 3).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x), model.head(model.backbone(x))) and model(x).shape == (2, 3)


def test_a_file_has_the_same_bytes_whichever_process_writes_it(tmp_path):
    """The library keeps metadata in a hash map, whose order is another in every process, and now and then in one."""
    metadata = {f"key {i}": f'{i} – é"' for i in range(20)}
    written = set()
    for i in range(5):
        path = tmp_path / f"{i}.safetensors"
        weightfiles.write({"b": torch.arange(3.0), "a": torch.ones(2, 2).half()}, path, metadata)
        written.add(path.read_bytes())
    assert len(written) == 1
    with safetensors.safe_open(path, framework="pt") as file:
        assert list(file.metadata()) and file.metadata().items() >= metadata.items()
        assert torch.equal(file.get_tensor("b"), torch.arange(3.0)) and file.get_tensor("a").dtype == torch.half


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_round_trip_is_exact(tmp_path, suffix):
    model = network()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_backbone(model, path, SMALL, trained_on="synthetic:moles")
        with safetensors.safe_open(path, "pt") as file:
            assert file.metadata() | {} == {
                **{"format": "pt", "medmerge.backbone": SMALL, "trained_on": "synthetic:moles"}
            }
        assert [p.name for p in tmp_path.iterdir()] == [path.name]
    else:
        write(model.state_dict(), path)
    other = backbone(SMALL, path)
    assert same(other, model) and not other.training
    assert state_sha256(other) == state_sha256(model) != state_sha256(network(1))
    assert same(backbone(SMALL, str(path)), model)


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_saved_classifier_is_torchvisions_own_network(name, tmp_path, narrow_vgg):
    path = tmp_path / "model.safetensors"
    torch.manual_seed(0)
    model = Classifier(backbone(name, "random"), 5).eval()
    save(model, path, trained_on="x")
    if name == SMALL:
        plain = torchvision.models.DenseNet(**backbones.SMALL[name][1], num_classes=5)
    elif has_plain_head(name):
        plain = torchvision.models.get_model(name, num_classes=5)
    else:
        plain = Classifier(backbone(name, "zeros"), 5)
    plain.load_state_dict(safetensors.torch.load_file(path), strict=True)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain.eval()(x), model(x))
    assert same(backbone(name, path), model.backbone) and same(load(path), model)


def under(prefix: str, state: dict) -> dict:
    return {prefix + key: value for key, value in state.items()}


def moved(state: dict) -> dict:
    """Another network of the same names."""
    return {key: value + 1 for key, value in state.items()}


OTHERS = {
    "plain": lambda s: s,
    "DataParallel": lambda s: under("module.", s | {"head.weight": torch.ones(9, 4)}),
    "DataParallel within": lambda s: {k.replace("features.", "features.module."): v for k, v in s.items()},
    "compiled": lambda s: {"model_state": under("_orig_mod.module.backbone.", s)},
    "deep": lambda s: under("module.densenet121.", s) | {"module.densenet121.classifier.0.weight": torch.ones(14, 3)},
    "Lightning": lambda s: {
        "state_dict": under("model.", s) | {"criterion.pos_weight": torch.ones(3)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
        "hyper_parameters": argparse.Namespace(lr=0.1),
        "best": np.float64(0.5),
        "path": Path("last.ckpt"),
    },
    "self-supervised": lambda s: {
        "net": under("encoder_q.", s)
        | under("encoder_k.", moved(s))
        | {"queue": torch.ones(9), "fc.0.bias": torch.ones(2)}
    },
    "average beside": lambda s: {"model": s, "model_ema": moved(s), "epoch": 3},
    "average alone": lambda s: {"state_dict_ema": under("module.", s) | {"n_averaged": torch.tensor(3)}},
    "twice the same": lambda s: {"last": s, "best": {key: value.clone() for key, value in s.items()}},
    "in a list": lambda s: {"networks": [s]},
    "float64": lambda s: {key: value.double() if value.is_floating_point() else value for key, value in s.items()},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_the_network_is_found_whatever_wraps_it_or_lies_beside(tmp_path, kind):
    model = network()
    torch.save(OTHERS[kind](model.state_dict()), tmp_path / "w.pt")
    assert same(backbone(SMALL, tmp_path / "w.pt"), model)
    assert same(backbone(SMALL, OTHERS[kind](model.state_dict())), model)


@pytest.mark.parametrize("name", ["w.pth.tar", "w.ckpt", "pytorch_model.bin", "weights", "w.pt", "w.safetensors"])
def test_a_file_is_what_it_holds_under_any_name(tmp_path, monkeypatch, name):
    model = network()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for save_as in (torch.save, safetensors.torch.save_file):
        save_as(model.state_dict(), tmp_path / name)
        assert all(same(backbone(SMALL, weights), model) for weights in (tmp_path / name, f"~/{name}", name))


def test_two_networks_in_one_file_are_not_chosen_between(tmp_path):
    state = network().state_dict()
    for first, second in (("student", "teacher"), ("fold0", "fold1")):
        torch.save({first: state, second: moved(state)}, tmp_path / "w.pt")
        with pytest.raises(CheckpointError, match=rf"holds 2 such networks, under '{first}\.' and '{second}\.': save"):
            backbone(SMALL, tmp_path / "w.pt")


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize("name", ["pruned", "channels pruned", "weight norm", "old weight norm", "weight norm of all"])
def test_pruned_and_weight_normed_files_are_what_they_compute(tmp_path, name):
    model = network()
    conv, change, undo = model.features.conv0, lambda c: c, None
    if "pruned" in name:
        change = (lambda c: prune.l1_unstructured(c, "weight", 0.3)) if name == "pruned" else None
        change = change or (lambda c: prune.ln_structured(c, "weight", 0.3, n=2, dim=0))
        undo = lambda c: prune.remove(c, "weight")  # noqa: E731
    elif name == "weight norm":
        change, undo = parametrizations.weight_norm, lambda c: parametrize.remove_parametrizations(c, "weight")
    else:
        axis = None if "all" in name else 0
        change, undo = lambda c: nn.utils.weight_norm(c, dim=axis), nn.utils.remove_weight_norm
    change(conv)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    assert "features.conv0.weight" not in read_state(tmp_path / "w.pt")
    loaded = backbone(SMALL, tmp_path / "w.pt")
    undo(conv)
    assert torch.equal(loaded.features.conv0.weight, conv.weight)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm`:FutureWarning")
def test_other_parametrisations_are_named_with_the_way_out(tmp_path):
    for change, way in (
        (parametrizations.spectral_norm, r"stored parametrised: .*remove_parametrizations\(\)"),
        (nn.utils.spectral_norm, r"stored parametrised: .*remove_spectral_norm\(\)"),
    ):
        model = network()
        change(model.features.conv0)
        with pytest.raises(CheckpointError, match=rf"features\.conv0\.weight is missing, {way}"):
            backbone(SMALL, model.state_dict())


def test_networks_that_ask_for_a_version_of_their_file_take_any(tmp_path):
    torch.manual_seed(0)
    model = Classifier(backbone("mnasnet0_5", "random"), 3)
    save(model, tmp_path / "m.safetensors")
    assert same(load(tmp_path / "m.safetensors"), model)
    assert same(backbone("mnasnet0_5", dict(model.backbone.state_dict())), model.backbone)


def test_old_densenet_names_and_another_head_are_forgiven(tmp_path):
    model = network()
    state = {}
    for key, value in model.state_dict().items():
        for part in ("norm1", "conv1", "norm2", "conv2"):
            key = key.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.") if "denselayer" in key else key
        if not key.endswith("num_batches_tracked"):  # older than these counts
            state[key] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    state |= {"classifier.weight": torch.ones(14, model.num_features), "classifier.bias": torch.ones(14)}
    for suffix in (".pt", ".safetensors"):
        loaded = backbone(SMALL, write(state, tmp_path / f"old{suffix}")).state_dict()
        for key, value in model.state_dict().items():
            assert torch.equal(loaded[key], value) or key.endswith("num_batches_tracked"), key


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out_and_inputs_transformed_as_in_training(name, tmp_path, monkeypatch):
    torch.manual_seed(0)
    full = torchvision.models.get_model(name, init_weights=False, aux_logits=True).eval()
    path = write(full.state_dict(), tmp_path / "full.pth")
    published = write(
        full.state_dict(), tmp_path / torchvision.models.get_model_weights(name).DEFAULT.url.split("/")[-1]
    )
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: torch.load(path))
    imagenet = backbone(name, "imagenet")
    save(imagenet, tmp_path / "ours.safetensors")
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    for weights in (path, "imagenet", tmp_path / "ours.safetensors", published):
        model = backbone(name, weights)
        full.transform_input = weights != path
        assert torch.equal(full.fc(model(x)), full(x))
        assert torch.is_tensor(model.train()(x))
        assert not [key for key in model.state_dict() if "aux" in key.lower()]
    assert load(tmp_path / "ours.safetensors").transform_input


def broken(change):
    state = network().state_dict()
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("features.conv0.weight"), r"features\.conv0\.weight is missing$"),
        (lambda s: s.update({"features.se.weight": torch.ones(1)}), r"features\.se\.weight does not belong to it"),
        (
            lambda s: s.update({"features.conv0.weight": torch.ones(24, 3, 3, 3)}),
            r"conv0\.weight is \[24, 3, 3, 3\] in the file and \[24, 3, 7, 7\] in the network",
        ),
        (lambda s: s["features.norm0.bias"].fill_(float("nan")), r"features\.norm0\.bias is not finite"),
        (lambda s: s["features.norm0.bias"].fill_(float("inf")), r"features\.norm0\.bias is not finite"),
        (lambda s: [s.pop(k) for k in list(s) if "norm0" in k], r"norm0\.weight is missing, and 3 more like it"),
        (lambda s: s["features.norm0.running_var"][3].fill_(-0.1), r"norm0\.running_var holds negative variances"),
        (lambda s: s.update({CONV: s[CONV].to(torch.int8)}), rf"{CONV} holds int8: save the network before"),
        (lambda s: s.update({CONV: s[CONV].double() * 1e300}), rf"{CONV} is not finite"),
        (lambda s: s.update({CONV: s[CONV].to(torch.float8_e5m2)}), rf"{CONV} holds float8_e5m2"),
        (lambda s: s.update({CONV: s[CONV] + 0j}), rf"{CONV} holds complex64"),
        (lambda s: s.clear(), r"(is missing, and \d+ more like it|holds no state dict)"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_state_that_does_not_fit_is_named(tmp_path, change, message, suffix):
    path = write(broken(change), tmp_path / f"w{suffix}")
    with pytest.raises(CheckpointError, match=message) as raised:
        backbone(SMALL, path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda w: w.to("meta"), "is a meta tensor, which has no values"),
        (lambda w: w.to_sparse(), r"is sparse: save its to_dense\(\)"),
        (lambda w: w.flatten(1).to_sparse_csr(), "is sparse"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "holds qint8"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:.*quantize_per_tensor")
def test_tensors_that_are_no_plain_numbers_are_refused_by_name(value, message):
    state = network().state_dict()
    with pytest.raises(CheckpointError, match=f"the state dict does not fit {SMALL}: {CONV} {message}"):
        backbone(SMALL, state | {CONV: value(state[CONV])})


def test_only_a_head_is_no_backbone(tmp_path):
    state = {"head.weight": torch.ones(2, 3), "classifier.bias": torch.ones(2)}
    with pytest.raises(CheckpointError, match="features.conv0.weight is missing"):
        backbone(SMALL, write(state, tmp_path / "head.pt"))


def test_another_architecture_is_refused_and_named(tmp_path):
    save_backbone(network(), tmp_path / "small.safetensors", SMALL)
    with pytest.raises(CheckpointError, match="was written for densenet_small, not for densenet121"):
        backbone("densenet121", tmp_path / "small.safetensors")
    other = torchvision.models.resnet18(num_classes=3)
    torch.save({"model": under("module.", other.state_dict())}, tmp_path / "w.pt")
    hint = r"features\.conv0\.weight is missing, and \d+ more like it; it is resnet18: backbone\('resnet18', weights"
    with pytest.raises(CheckpointError, match=hint):
        backbone(SMALL, tmp_path / "w.pt")
    state = {key.replace("features", "trunk"): value for key, value in network().state_dict().items()}
    with pytest.raises(CheckpointError, match=r"more like it; what it holds is called trunk\.conv0\.weight, .* more$"):
        backbone(SMALL, state)
    deeper = torchvision.models.resnet34().state_dict()
    with pytest.raises(CheckpointError, match=r"layer1\.2\.conv1\.weight does not belong to it.*it is resnet34"):
        backbone("resnet18", deeper)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("w.pt", "resnet18"), "'w.pt' is no architecture, which comes first"),
        (("imagenet", "densenet121"), "'imagenet' is no architecture, which comes first"),
        (({"a": torch.ones(1)}, "resnet18"), "is no architecture, which comes first"),
        ((torchvision.models.ResNet18_Weights.DEFAULT,), "is no architecture, which comes first"),
        (("resnet18", torchvision.models.ResNet50_Weights.DEFAULT), "unknown weights 'ResNet50_Weights.IMAGENET1K_V2'"),
        (("resnet18", torchvision.models.resnet18), "unknown weights '<function resnet18"),
        (("resnet18", {"epoch": 3}), r"weights holds no state dict of tensors; save model\.state_dict\(\)"),
        (("resnet18", []), r"unknown weights '\[\]' for resnet18; allowed: imagenet"),
        (("densnet121", "random"), "unknown backbone 'densnet121'; did you mean densenet121"),
        (("vit_b_61", "random"), "unknown backbone 'vit_b_61'; did you mean vit_b_16"),
        (("maxvit_t", "random"), "'maxvit_t' is not supported: .* one image size"),
        (("densenet121", "imagnet"), "unknown weights .* for densenet121; allowed: imagenet, IMAGENET1K_V1"),
        (("densenet121", "IMAGENET1K_V7"), "unknown weights .* for densenet121; allowed: imagenet"),
        (("densenet121", ""), "unknown weights '' for densenet121; allowed: imagenet"),
        (("densenet121", "DenseNet169_Weights.IMAGENET1K_V1"), "unknown weights .* for densenet121; allowed: imagenet"),
        ((SMALL,), "unknown weights 'imagenet' for densenet_small; allowed: random, zeros, a file"),
    ],
)
def test_arguments_of_another_kind_or_order_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        backbone(*arguments)


def test_members_of_torchvisions_enums_are_weights(monkeypatch):
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: dict(state))
    model = backbone("resnet18", torchvision.models.ResNet18_Weights.DEFAULT)
    assert torch.equal(model.conv1.weight, state["conv1.weight"])


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121", "inception_v3"])
def test_timms_networks_of_these_names_are_torchvisions(name):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(name, num_classes=5).eval()
    ours = backbone(name, theirs.state_dict())
    x = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(x), theirs.forward_head(theirs.forward_features(x), pre_logits=True))
    assert backbones.recognise(theirs.state_dict()) == ("" if "inception" in name else name)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_files(tmp_path, suffix, share):
    path = write(network().state_dict(), tmp_path / f"w{suffix}")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"(empty|damaged|not a complete).*fetch or write it again"):
        backbone(SMALL, path)


def archive(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, text in members.items():
            file.writestr(name.replace("__", "/").replace("_", "."), text)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n <!DOCTYPE html><html></html>", "is a web page or XML, not weights; fetch"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1", "a Git LFS pointer.*`git lfs pull`"),
        (b"hello world", "is text, not weights; fetch or write it again"),
        (b'{"weight_map": {"conv1.weight": "model-00001-of-00002.safetensors"}}', "is JSON, not weights; give"),
        (b"\x93NUMPY\x01\x00", "is a NumPy array; load it with what wrote it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file, such as Keras writes"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.0.1", "is a protocol buffer, such as ONNX"),
        (gzip.compress(b"x" * 100, mtime=0), "is compressed; unpack it"),
        (bz2.compress(b"x" * 100), "is compressed; unpack it"),
        (bytes(257) + b"ustar\x0000", "is a tar archive; unpack it"),
        (archive(w_pth=b"x"), "is an archive of other files, not a state dict; unpack it"),
        (archive(a_npy=b"x"), "is an archive of another library, not a state dict; load it"),
        (archive(config_json=b"x", model_weights_h5=b"y"), "not a state dict; load it with what wrote it"),
        (archive(m__data_pkl=b"", m__constants_pkl=b"", m__code__a_py=b""), r"TorchScript archive.*torch\.jit\.load"),
        (bytes(range(256)), "is damaged or not a PyTorch checkpoint"),
    ],
)
def test_something_else_under_the_name_of_a_checkpoint(tmp_path, content, message):
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as raised:
            backbone(SMALL, tmp_path / name)
        assert str(raised.value).startswith(str(tmp_path / name))


class Trap:
    """Writes a file when it is unpickled carelessly."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "wrap", [lambda s, t: t, lambda s, t: {**s, "trap": t}, lambda s, t: {"state_dict": s, "a": t}]
)
def test_code_in_a_checkpoint_never_runs(tmp_path, wrap, protocol):
    sprung = tmp_path / "sprung"
    content = wrap(network().state_dict(), Trap(sprung))
    with open(tmp_path / "raw.pt", "wb") as file:
        pickle.dump(content, file, protocol=protocol)
    torch.save(content, tmp_path / "zip.pt", pickle_protocol=protocol)
    for name in ("raw.pt", "zip.pt"):
        with pytest.raises(CheckpointError, match=r"a pickle can run code; save its state_dict\(\) alone"):
            backbone(SMALL, tmp_path / name)
    assert not sprung.exists()
    pickle.loads((tmp_path / "raw.pt").read_bytes(), encoding="bytes") if protocol == 2 else None
    assert sprung.exists() == (protocol == 2), "the trap is one"


def test_a_whole_module_is_refused_with_the_way_out(tmp_path):
    torch.save(network(), tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match=r"save its state_dict\(\) alone"):
        backbone(SMALL, tmp_path / "module.pt")
    for content in ([1, 2], {}, {"a": 1}, torch.ones(2)):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match="holds no state dict of tensors"):
            read_state(tmp_path / "other.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        backbone(SMALL, tmp_path / "nowhere.pt")


def test_weights_of_torchvisions_enum():
    with pytest.raises(ValueError, match="allowed: IMAGENET1K_SWAG"):
        check_weights("regnet_y_128gf", "imagenet")
    enum = torchvision.models.ResNet50_Weights
    assert check_weights("resnet50", "imagenet") is enum.IMAGENET1K_V1
    assert check_weights("resnet50", "IMAGENET1K_V2") is check_weights("resnet50", str(enum.IMAGENET1K_V2))
    assert check_weights("resnet50", "DEFAULT") is enum.IMAGENET1K_V2


@pytest.mark.parametrize("name", ["densenet121", "resnet50", "googlenet", "inception_v3", "squeezenet1_1"])
def test_offline_imagenet_says_what_to_do(name, monkeypatch):
    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    with pytest.raises(ConnectionError, match=r"no network.*fetch https://\S+\.pth elsewhere and give its path"):
        backbone(name, "imagenet")


@torch.no_grad()
@pytest.mark.parametrize(
    ("file", "name"), [("densenet121_tinyimagenet", "densenet121"), ("mobilenet_v2_imagenet1k", "mobilenet_v2")]
)
def test_real_weight_files(real_data, file, name):
    path = real_data / "weights" / f"{file}.safetensors"
    model, stored = backbone(name, path), read_state(path)
    for key, value in model.state_dict().items():
        if key in stored:  # at the file's precision
            assert torch.equal(value, stored[key].to(value.dtype)), key
    assert {key for key in stored if key not in model.state_dict()} <= {
        f"{head}.{kind}" for head in ("classifier", "classifier.1") for kind in ("weight", "bias")
    }
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(model(x)).all() and model(x).std() > 0
