"""Bugs that other merging and transfer-learning code has had, each as a test that ours has not (see the docstrings)."""

import dataclasses

import pytest
import torch
from test_merge import source
from test_study import parameters, write_weights
from test_training import samples
from torch import nn

from medmerge import KernelMerge, backbone, data
from medmerge.study import run as study
from medmerge.study.definitions import Row
from medmerge.training import prepare


def trained(seed: int, name: str = "densenet_small") -> nn.Module:
    """A network with batch-norm statistics and kernels away from their start."""
    return source(name, seed)


@pytest.fixture
def pair():
    return trained(0), trained(1)


def images(count: int = 24) -> torch.Tensor:
    return prepare(samples(count, 3).inputs)


def test_nothing_in_a_merge_of_fresh_networks_is_nan():
    """mergekit `linear`: weights cast to int64 are 0, and 0 / 0 makes integer buffers NaN."""
    fresh = [backbone("densenet_small", "random") for _ in range(3)]
    assert fresh[0].features.norm0.num_batches_tracked == 0
    for count in (2, 3):
        for name, tensor in KernelMerge(fresh[:count]).fold().state_dict().items():
            assert torch.isfinite(tensor.double()).all(), name


def test_layers_are_paired_by_name_not_position():
    """AdaMerging: names of `named_parameters()` zipped with `state_dict()` values; 158 of ResNet-50's 161 mispaired."""
    b, c = trained(0, "resnet50"), trained(1, "resnet50")
    merge = KernelMerge([b, c])
    names = list(merge.kernel_weights())
    merge.set_kernel_weights(dict.fromkeys(reversed(names), 0.0) | {"layer3.2.conv2": 1.0})
    plain, of_b, of_c = (m.state_dict() for m in (merge.fold(), b, c))
    for name in names:
        chosen = of_b if name == "layer3.2.conv2" else of_c
        assert torch.equal(plain[f"{name}.weight"], chosen[f"{name}.weight"]), name


def test_layers_in_another_order_are_refused_not_mispaired():
    """The same: two layers of one shape in another order would be mixed up without a word."""

    def network(order: str) -> nn.Module:
        return nn.Sequential().append(nn.ModuleDict({name: nn.Conv2d(4, 4, 3) for name in order}))

    with pytest.raises(ValueError, match="first layer that differs is 0.a.weight"):
        KernelMerge([network("ab"), network("ba")])


def test_test_images_cannot_reach_learning(tmp_path, monkeypatch):
    """AdaMerging and FusionBench learn coefficients on the test set; FissionFusion evaluates it every epoch."""
    write_weights(tmp_path)
    monkeypatch.chdir(tmp_path)
    dataset = data.load("synthetic:moles", image_size=32, fractions=(0.2, 0.2, 0.6))
    other = dataclasses.replace(dataset.test, inputs=255 - dataset.test.inputs, labels=dataset.test.labels.flip(0))
    row, found = Row("medmerge", ("objects", "lesions")), []
    for name, one in {"a": dataset, "b": dataclasses.replace(dataset, test=other)}.items():
        found.append(study.run_row(parameters(pair=name), row, 0, one))
    weights = [record.kernel_weights for record in found]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert (found[0].folder / "history.csv").read_bytes() == (found[1].folder / "history.csv").read_bytes()
    assert (found[0].probabilities != found[1].probabilities).any()


@torch.no_grad()
def test_affine_weights_are_not_clamped_before_use(pair):
    """FusionBench `layer_wise_fusion`: a default clamp to [0, 1], applied before softmax when both are set."""
    merge, name = KernelMerge(pair, normalisation="affine"), "features.conv0"
    for w in (1.5, -0.5):
        merge.set_kernel_weights(w)
        expected = pair[1].features.conv0.weight + w * (pair[0].features.conv0.weight - pair[1].features.conv0.weight)
        assert torch.equal(merge.kernel_weights()[name], torch.full((24,), w))
        torch.testing.assert_close(merge.fold().features.conv0.weight, expected)


def test_softmax_weights_are_of_the_logits_and_of_nothing_else(pair):
    """The same: logits beyond [0, 1] keep their weight and their gradient."""
    merge = KernelMerge(pair, normalisation="softmax").eval()
    for _, layer in merge.layers():
        layer.w.data[0].fill_(2.0)
        layer.w.data[1].fill_(-1.0)
    shares = torch.tensor([2.0, -1.0]).softmax(0)
    assert all(torch.allclose(w, shares[0].expand_as(w)) for w in merge.kernel_weights().values())
    merge(images(4)).square().sum().backward()
    assert all(layer.w.grad.abs().max() > 0 for _, layer in merge.layers())
