"""Kernels and feature maps of a merged run: what is shown is what the networks hold, and what is kept is checked."""

import numpy as np
import pytest
import torch
import torchvision
from test_figures import words
from test_study import parameters, write_weights
from torch import nn

from medmerge.pages import features as told
from medmerge.pages.typeset import number
from medmerge.study import definitions, features, records, revisits
from medmerge.study import run as study
from medmerge.study.params import ParameterError
from medmerge.study.records import RecordError
from medmerge.training import prepare


def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """One merged run: its project's folder, its record, its networks, what is kept. Only to be read."""
    folder = tmp_path_factory.mktemp("features")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MEDMERGE_CACHE", str(folder.parent / "cache"))
        (folder / "_config.yml").touch()
        write_weights(folder)
        (record,) = study.run(parameters(approaches=["medmerge"]))
        networks = features.networks(record)
        return folder, record, networks, features.sheet(record).run(None)


def test_networks_are_the_sources_and_what_the_probe_learnt_bit_for_bit(merged, monkeypatch):
    monkeypatch.chdir(merged[0])
    _, record, networks, _ = merged
    assert list(networks) == ["objects", "merged", "lesions"]
    merging, sources = revisits.merged_classifier(record)
    with torch.no_grad():
        assert torch.equal(networks["merged"](images()), merging.backbone.eval()(images()))
        for name, source in zip(("objects", "lesions"), sources, strict=True):
            assert torch.equal(networks[name](images()), source(images()))
    assert not any(module.training for network in networks.values() for module in network.modules())
    for layer, w in record.kernel_weights.items():
        b, c = (networks[name].get_submodule(layer).weight.detach() for name in ("objects", "lesions"))
        assert torch.equal(
            networks["merged"].get_submodule(layer).weight, torch.lerp(c, b, torch.tensor(w)[:, None, None, None])
        )


def test_the_table_of_kernels_is_numpys(merged):
    _, record, networks, _ = merged
    layer = features.layers(networks["merged"])["deeper"]
    assert networks["merged"].get_submodule(layer).kernel_size == (3, 3)
    table = features.kernels(networks, record.kernel_weights[layer], layer)
    b, m, c = (network.get_submodule(layer).weight.detach().double().numpy() for network in networks.values())
    for j in range(len(b)):
        assert table["norm merged"][j] == pytest.approx(np.sqrt((m[j] ** 2).sum()))
        expected = np.vdot(b[j], c[j]) / np.linalg.norm(b[j]) / np.linalg.norm(c[j])
        assert table["cosine objects lesions"][j] == pytest.approx(expected)
    assert np.array_equal(table["w"], record.kernel_weights[layer])


@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v2"])
def test_levels_are_the_first_and_the_last_convolution_to_run(name):
    with torch.device("meta"):
        network, ran = torchvision.models.get_model(name), []
    for layer, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 32, 32, device="meta"))
    found = features.layers(network)
    assert (found["low"], found["first"], found["high"]) == (ran[0], ran[0], ran[-1]) and found["deeper"] in ran[1:]
    with pytest.raises(ParameterError, match="take two convolutions"):
        features.layers(network.features[0] if hasattr(network, "features") else network.conv1)


def test_maps_are_a_forward_by_hand_and_leave_no_trace():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3))
    first = network[0](images()).detach()
    assert torch.equal(features.maps(network, images(), "0"), first) and (first < 0).any(), "before the ReLU in place"
    assert torch.equal(features.maps(network, images(), "2"), network[2](first.relu()))
    assert not any(module._forward_hooks for module in network.modules())


def test_extremes_come_from_both_ends():
    assert features.extremes([0.5, 0.9, 0.1, 0.9, 0.4], 4).tolist() == [1, 3, 4, 2]
    assert features.extremes([0.5, 0.9, 0.1], 2).tolist() == [1, 2] and len(features.extremes([0.5, 0.6], 6)) == 2


def test_correlation_is_of_positions_within_channels():
    maps = np.random.default_rng(0).normal(size=(2, 3, 4, 4))
    offset = np.arange(3.0)[:, None, None] * 100
    np.testing.assert_allclose(features.correlation(maps, 2 * maps + offset), 1)
    np.testing.assert_allclose(features.correlation(maps, -maps), -1)
    one, other = (values - values.mean((1, 2), keepdims=True) for values in (maps[0], maps[1]))
    assert features.correlation(maps[:1], maps[1:])[0] == pytest.approx(np.corrcoef(one.ravel(), other.ravel())[0, 1])
    assert np.isnan(features.correlation(maps[..., :1, :1], maps[..., :1, :1])).all()


def test_a_record_holds_the_first_test_image_and_its_maps(merged, monkeypatch):
    monkeypatch.chdir(merged[0])
    _, record, networks, found = merged
    test = study.load_data(revisits.parameters(record)).test
    pixels, _ = test.batch(torch.arange(1))
    assert found.about.image == test.ids[0] and np.array_equal(found.arrays["image"], pixels[0].permute(1, 2, 0))
    level, scale = found.about.low, found.arrays["scale/low"]
    maps = {name: features.maps(network, prepare(pixels), level.layer).numpy() for name, network in networks.items()}
    for i, name in enumerate(networks):
        whole = maps[name][0, level.shown]
        np.testing.assert_allclose(found.arrays["maps/low"][i] * scale[:, None, None], whole, atol=1e-3 * scale.max())
    w = record.kernel_weights[level.layer]
    assert (
        np.array_equal(found.kernels("low")["w"], w) and w[level.shown[0]] == w.max() and w[level.shown[-1]] == w.min()
    )
    table = told.agreement(found)
    expected = features.correlation(maps["objects"], maps["merged"])
    assert table["correlation"][0] == pytest.approx(expected[0], abs=1e-5)
    assert features.sheet(record).where(None).stat().st_size < 400_000


def test_it_says_what_is_not_here(merged, monkeypatch, tmp_path):
    monkeypatch.chdir(merged[0])
    record, learnt = merged[1], merged[1].folder / definitions.MERGE
    for name in ("hash", "network"):
        other = records.Record(record.folder, {**record.run, name: "f" * 64})
        with pytest.raises(RecordError, match="measured with .*, not ffff.*remove it to measure again"):
            features.sheet(other).read(None)
    learnt.rename(tmp_path / "merge")
    with pytest.raises(RecordError, match="lies only where the run was computed"):
        features.networks(record)
    (tmp_path / "merge").rename(learnt)
    with pytest.raises(ParameterError, match="shows one study"):
        features.choose(parameters(studies=["a", "b"], notebook="features"))


def test_figures_show_what_is_kept(merged):
    found = merged[3]
    figure = told.feature_maps(found)
    shown = {image.get_gid(): image for part in figure.subfigs for axes in part.axes for image in axes.images}
    assert np.array_equal(shown["image"].get_array(), found.arrays["image"])
    np.testing.assert_array_equal(shown["high/1/2"].get_array(), found.arrays["maps/high"][1, 2])
    assert len(shown) == 1 + 3 * 6 * 2 and {image.get_clim() for key, image in shown.items() if "/" in key} == {(-1, 1)}
    assert found.about.image in figure.alt and "low-level objects and merged" in figure.alt
    figure = told.first_filters(found)
    (w,) = [image for axes in figure.axes for image in axes.images if image.get_gid() == "w"]
    values = np.asarray(w.get_array().filled(np.nan)).ravel()
    assert (np.diff(values[~np.isnan(values)]) <= 0).all() and (~np.isnan(values)).sum() == found.about.first.kernels
    assert "Median cosine" in figure.alt
    figure = told.deeper_kernels(found)
    row = found.kernels("deeper").loc[found.about.deeper.shown[0]]
    cosine = number(row["cosine objects lesions"], ".2f")
    assert any(f"w {row['w']:.2f}" in word and cosine in word for word in words(figure))
