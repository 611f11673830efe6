"""Backbones: torchvision's networks without their heads, and every way in which a checkpoint can be good or bad."""

import argparse
import io
import os
import pickle
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, prune

from medmerge import Classifier, backbone, backbones, load, save, save_backbone, weightfiles
from medmerge.backbones import CheckpointError, has_plain_head, read_state

ARCHITECTURES = [
    *("densenet_small", "densenet121", "resnet50", "mobilenet_v2", "squeezenet1_1", "convnext_tiny"),
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


def write(state, path):
    safetensors.torch.save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_features_are_the_full_networks_up_to_its_head(name, tmp_path):
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


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_saved_classifier_is_torchvisions_own_network(name, tmp_path):
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
@pytest.mark.parametrize("change", [prune.random_structured, parametrizations.spectral_norm, nn.utils.weight_norm])
def test_what_is_stored_pruned_or_parametrised_is_named_with_the_way_out(change):
    model = network()
    change(model.features.conv0, "weight", **({"amount": 0.3, "dim": 0} if change is prune.random_structured else {}))
    way = r"it holds features\.conv0\..* \(undo pruning and parametrisations before saving\)"
    with pytest.raises(CheckpointError, match=rf"features\.conv0\.weight is missing.*; {way}"):
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
        (lambda s: [s.pop(k) for k in list(s) if "norm0" in k], r"norm0\.weight is missing, and 3 more like it"),
        (lambda s: s["features.norm0.running_var"][3].fill_(-0.1), r"norm0\.running_var holds negative variances"),
        (lambda s: s.update({CONV: s[CONV].to(torch.int8)}), rf"{CONV} holds int8: save dense"),
        (lambda s: s.update({CONV: s[CONV].double() * 1e300}), rf"{CONV} is not finite"),
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
        (lambda w: w.to("meta"), "holds no values: save dense"),
        (lambda w: w.to_sparse(), "holds sparse float32: save dense"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "holds qint8"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor")
def test_tensors_that_are_no_plain_numbers_are_refused_by_name(value, message):
    state = network().state_dict()
    with pytest.raises(CheckpointError, match=f"the state dict does not fit {SMALL}: {CONV} {message}"):
        backbone(SMALL, state | {CONV: value(state[CONV])})


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
    with pytest.raises(CheckpointError, match=r"more like it; it holds trunk\.conv0\.weight, .* more \(undo"):
        backbone(SMALL, state)
    deeper = torchvision.models.resnet34().state_dict()
    with pytest.raises(CheckpointError, match=r"layer1\.2\.conv1\.weight does not belong to it.*it is resnet34"):
        backbone("resnet18", deeper)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("w.pt", "resnet18"), "unknown backbone 'w.pt'; did you mean .* It comes first"),
        (({"a": torch.ones(1)}, "resnet18"), "unknown backbone .* It comes first"),
        (("resnet18", torchvision.models.ResNet50_Weights.DEFAULT), "unknown weights 'ResNet50_Weights.IMAGENET1K_V2'"),
        (("resnet18", torchvision.models.resnet18), "unknown weights '<function resnet18"),
        (("resnet18", {"epoch": 3}), r"weights holds no state dict of tensors; save model\.state_dict\(\)"),
        (("densnet121", "random"), "unknown backbone 'densnet121'; did you mean densenet121"),
        (("densenet121", "imagnet"), "unknown weights .* for densenet121; allowed: imagenet, IMAGENET1K_V1"),
        (("densenet121", "DenseNet169_Weights.IMAGENET1K_V1"), "unknown weights .* for densenet121; allowed: imagenet"),
        ((SMALL,), "unknown weights 'imagenet' for densenet_small; allowed: random, zeros, a file"),
    ],
)
def test_arguments_of_another_kind_or_order_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        backbone(*arguments)


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
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "neither a PyTorch checkpoint nor safetensors; .* load it with what"),
        (archive(w_pth=b"x"), "is an archive of other files, not a state dict; unpack it"),
        (archive(m__data_pkl=b"", m__constants_pkl=b"", m__code__a_py=b""), r"TorchScript archive.*torch\.jit\.load"),
        (bytes(range(256)), "is damaged, or neither a PyTorch"),
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
