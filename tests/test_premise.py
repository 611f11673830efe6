"""Distances between networks are those of hand-made ones; a line starts and ends at its networks."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from medmerge import backbone
from medmerge.backbones import Classifier
from medmerge.batchnorm import reestimate
from medmerge.data import Samples
from medmerge.study import premise
from medmerge.training import Protocol, Task, validate


def classifier(seed, classes=3):
    """Random weights, with statistics as after some training."""
    torch.manual_seed(seed)
    model = Classifier(backbone("densenet_small", "random"), classes).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 32, 32) * (1 + seed))
    return model.eval()


@pytest.fixture(scope="module")
def task():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(24) % 3
    parts = [Samples(pixels, rows, labels[rows], tuple(map(str, rows.tolist()))) for rows in torch.arange(24).split(12)]
    return Task(*parts, 3, protocol=Protocol(batch_size=4, device="cpu", precision="fp32"))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_distances_of_networks_made_by_hand():
    b, c = (nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3), nn.Linear(2, 2)) for _ in range(2))
    with torch.no_grad():
        b[0].weight[:] = torch.tensor([3.0, 0.0, 4.0]).view(3, 1, 1, 1)
        c[0].weight[:] = torch.tensor([3.0, 4.0, 0.0]).view(3, 1, 1, 1)
        b[2].weight[:] = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
        c[2].weight[:] = torch.tensor([[0.0, 1.0], [-2.0, 0.0]])
    first, second = premise.distances(b, c).to_dict("records")
    assert (first["layer"], first["kind"], first["shape"], first["kernels"]) == ("0", "Conv2d", "3x1x1x1", 3)
    assert first["distance"] == pytest.approx(32**0.5 / 5) and first["cosine"] == pytest.approx(9 / 25)
    assert first["kernel_cosine"] == first["median"] == pytest.approx(1), "only one kernel is in both"
    assert second["kernel_cosine"] == pytest.approx(-0.5) and second["low"] == pytest.approx(-0.95)
    assert second["cosine"] == pytest.approx(-4 / 5)


def test_distances_at_the_extremes():
    b, other = backbone("densenet_small", "random"), backbone("densenet_small", "random")
    table = premise.distances(b, b)
    assert (table["distance"] == 0).all() and table["cosine"].to_numpy() == pytest.approx(1)
    assert list(table["layer"]) == [name for name, m in b.named_modules() if isinstance(m, nn.Conv2d)]
    unrelated = premise.distances(b, other)
    assert unrelated["distance"].mean() == pytest.approx(2**0.5, abs=0.1) and unrelated["cosine"].abs().max() < 0.3
    zeros = backbone("densenet_small", "zeros")
    table = premise.distances(b, zeros)
    assert table["distance"].to_numpy() == pytest.approx(2) and table["kernel_cosine"].isna().all()
    assert premise.distances(zeros, zeros)["distance"].isna().all()
    with pytest.raises(ValueError, match="conv0 is .* in the first network and missing in the second"):
        premise.distances(b, backbone("resnet18", "random"))


def test_a_line_passes_through_both_networks_and_changes_neither(task):
    b, c = classifier(0), classifier(1)
    kept = copy.deepcopy((b, c))
    table = premise.line(b, c, task, steps=3, beyond=0.5)
    assert list(table["a"]) == [-0.5, 0, 0.5, 1, 1.5] and set(table["statistics"]) == {"interpolated"}
    assert same(b, kept[0]) and same(c, kept[1])
    assert same(premise.between(b, c, 1), _counts(b, c)) and same(premise.between(b, c, 0), c)
    for a, model in ((0, c), (1, b)):
        (row,) = table[table["a"] == a].to_dict("records")
        assert {key: row[key] for key in row if key.startswith("val_")} == validate(model, task.val, task)
    assert np.isfinite(table["val_loss"]).all()


def _counts(b, c):
    """b with the batches counted by c: integers do not lie on a line."""
    model = copy.deepcopy(b)
    for key, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            tensor.copy_(c.state_dict()[key])
    return model


def test_half_way_is_the_mean_and_statistics_can_be_measured_there(task):
    b, c = classifier(0), classifier(1)
    middle = premise.between(b, c, 0.5)
    weight = (b.backbone.features.conv0.weight + c.backbone.features.conv0.weight) / 2
    torch.testing.assert_close(middle.backbone.features.conv0.weight, weight)
    variance = (b.backbone.features.norm0.running_var + c.backbone.features.norm0.running_var) / 2
    torch.testing.assert_close(middle.backbone.features.norm0.running_var, variance)
    table = premise.line(b, c, task, steps=3, beyond=0, measure=True)
    assert list(table["statistics"]) == ["interpolated", "re-estimated"] * 3
    reestimate(middle, task.measured)
    assert table["val_loss"][3] == validate(middle, task.val, task)["val_loss"] != table["val_loss"][2]


def test_only_validation_and_training_images_are_read(task, monkeypatch):
    seen = []
    monkeypatch.setattr(premise, "validate", lambda model, val, t: seen.append(val) or validate(model, val, t))
    premise.line(classifier(0), classifier(1), task, steps=2, beyond=0)
    assert len(seen) == 2 and all(val is task.val for val in seen)


def test_a_variance_beyond_the_line_is_not_negative():
    b, c = classifier(1), classifier(0)
    c.backbone.features.norm0.running_var.fill_(0.1)
    b.backbone.features.norm0.running_var.fill_(10)
    assert (premise.between(b, c, -0.25).backbone.features.norm0.running_var == 0).all()


def test_the_barrier_is_the_height_over_the_mean_of_the_ends():
    table = pd.DataFrame({"a": [-0.5, 0, 0.5, 1, 1.5], "statistics": "interpolated", "val_loss": [9.0, 1, 4, 2, 9]})
    assert premise.barrier(table).to_dict() == {"interpolated": 2.5}
    flat = table.assign(statistics="re-estimated", val_loss=1.0)
    both = premise.barrier(pd.concat([flat, table]))
    assert both.to_dict() == {"re-estimated": 0, "interpolated": 2.5}


def test_what_has_no_line_is_refused(task):
    b = classifier(0)
    with pytest.raises(ValueError, match="differ in head.weight"):
        premise.line(b, classifier(1, classes=4), task)
    with pytest.raises(ValueError, match="steps=1"):
        premise.line(b, b, task, steps=1)
