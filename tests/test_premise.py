"""What lies between two sources: distances and lines made by hand, the record that keeps them, and its sentences."""

import copy
import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from medmerge import backbone
from medmerge.approaches import matching
from medmerge.backbones import Classifier, state_sha256
from medmerge.batchnorm import reestimate
from medmerge.data import Samples
from medmerge.pages import premise_report
from medmerge.study import premise
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.premise import ORDERS, STATISTICS, PremiseSheet
from medmerge.study.records import RecordError
from medmerge.training import Protocol, Task, validate

NAMES = ("objects", "lesions")


def source(seed: int) -> nn.Module:
    """Random weights, with statistics as after some training."""
    torch.manual_seed(seed)
    network = backbone("densenet_small", "random").train()
    with torch.no_grad():
        network(torch.randn(16, 3, 32, 32))
    return network.eval()


@pytest.fixture(scope="module")
def task() -> Task:
    """Images whose brightness tells the class."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(48) % 3
    pixels = torch.randint(0, 90, (48, 3, 32, 32), dtype=torch.uint8, generator=draw)
    pixels += (80 * labels).to(torch.uint8)[:, None, None, None]
    parts = [Samples(pixels, rows, labels[rows], tuple(map(str, rows.tolist()))) for rows in torch.arange(48).split(24)]
    protocol = Protocol(batch_size=8, device="cpu", precision="fp32", lp_epochs=4, lp_lr=0.03)
    return Task(*parts, 3, protocol=protocol, sources=NAMES)


def parameters(**changes) -> Parameters:
    values = {"track": "own", "pair": "mine", "backbone": "densenet_small", "image_size": 32, "precision": "fp32"}
    values |= {"base_data": "objects", "base_weights": "b.safetensors", "batch_size": 8, "notebook": "premise"}
    values |= {"source_data": "lesions", "source_weights": "c.safetensors", "lp_epochs": 4, "lp_lr": 0.03}
    return Parameters(**values | {"premise": True} | changes)


def measured(task: Task, b: nn.Module, c: nn.Module) -> PremiseSheet:
    return premise.measure(b, c, task, premise.definition(parameters()), "the images")


@pytest.fixture(scope="module")
def permuted(task) -> PremiseSheet:
    """b, and b with its channels in another order: the same function."""
    b = source(0)
    groups = matching.permutation_groups(b, image_size=32)
    torch.manual_seed(1)
    order = {name: torch.randperm(group.size) for name, group in groups.items()}
    return measured(task, b, matching.permute(b, groups, order))


# ---------------------------------------------------------------- the measurement


def classifier(seed: int) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(source(seed), 3).eval()


def same(a: nn.Module, b: nn.Module) -> bool:
    floating = [key for key, tensor in a.state_dict().items() if tensor.is_floating_point()]
    return all(torch.equal(a.state_dict()[key], b.state_dict()[key]) for key in floating)


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


def test_a_line_passes_through_both_networks_and_measures_statistics_between_them(task, monkeypatch):
    b, c, seen = classifier(0), classifier(1), []
    kept = copy.deepcopy((b, c))
    monkeypatch.setattr(premise, "validate", lambda model, val, t: seen.append(val) or validate(model, val, t))
    table = premise.line(b, c, task, steps=3, beyond=1)
    assert seen and all(val is task.val for val in seen), "test images are never read"
    assert list(table["a"][::2]) == [-0.5, 0, 0.5, 1, 1.5] and list(table["statistics"]) == [*STATISTICS] * 5
    assert same(b, kept[0]) and same(c, kept[1])
    assert same(premise.between(b, c, 1), b) and same(premise.between(b, c, 0), c)
    middle = premise.between(b, c, 0.5)
    weight = (b.backbone.features.conv0.weight + c.backbone.features.conv0.weight) / 2
    torch.testing.assert_close(middle.backbone.features.conv0.weight, weight)
    found = table.set_index(["a", "statistics"])["val_loss"]
    for a, model in ((0, c), (0.5, middle), (1, b)):
        assert found[a, "interpolated"] == validate(model, task.val, task)["val_loss"]
    reestimate(middle, task.measured)
    assert found[0.5, "re-estimated"] == validate(middle, task.val, task)["val_loss"] != found[0.5, "interpolated"]


def test_the_barrier_is_the_height_over_the_mean_of_the_ends():
    table = pd.DataFrame({"a": [-0.5, 0, 0.5, 1, 1.5], "statistics": "interpolated", "val_loss": [9.0, 1, 4, 2, 9]})
    flat = table.assign(statistics="re-estimated", val_loss=1.0)
    assert premise.barrier(pd.concat([flat, table])).to_dict() == {"re-estimated": 0, "interpolated": 2.5}


def points(sheet) -> list[str]:
    return [line.removeprefix("- ") for line in premise_report.summary(sheet).splitlines()]


def test_a_source_that_is_the_base_is_nowhere_else(task):
    b = source(0)
    kept = copy.deepcopy(b)
    sheet = measured(task, b, copy.deepcopy(b))
    assert (sheet.distances["distance"] == 0).all() and sheet.distances["cosine"].to_numpy() == pytest.approx(1)
    assert not sheet.moved and len(set(sheet.line["val_loss"])) == 1, "one classifier all along, to the bit"
    assert (premise_report.barriers(sheet)[["barrier", "rise"]].abs() < 1e-12).all(axis=None)
    sentences = points(sheet)
    assert sentences[0].startswith("**One basin**: the straight line from lesions to objects has no barrier")
    assert "share a start" in sentences[1] and "leaves every channel of lesions in its place" in sentences[3]
    assert list(sheet.by_pair(sheet.line)) == ["objects and lesions"]
    assert state_sha256(b) == state_sha256(kept), "the source is not changed"


def test_alignment_finds_a_network_whose_channels_are_in_another_order(permuted):
    assert permuted.moved and permuted.content.aligned == permuted.content.sources["objects"]
    apart, aligned = (permuted.distances[permuted.distances["order"] == order] for order in ORDERS)
    assert (aligned["distance"] == 0).all() and apart["distance"].median() > 1
    near = premise_report.closeness(permuted).set_index("order")
    assert near.loc["aligned", "cosine"] == pytest.approx(1) and near.loc["as trained", "cosine"] < 0.6
    rise = premise_report.barriers(permuted).set_index(["order", "statistics"])["rise"]
    assert (rise["aligned"] == 0).all() and rise["as trained", "interpolated"] > 0
    assert list(permuted.by_pair(permuted.line)) == ["objects and lesions", "objects and lesions, aligned"]


def test_what_knowing_nothing_costs(task):
    def part(labels):
        images = torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8)
        return Samples(images, torch.arange(len(labels)), torch.tensor(labels), tuple(map(str, range(len(labels)))))

    found = premise.prior_loss(Task(part([0, 0, 0, 1]), part([0, 1, 2]), 3))
    assert found == pytest.approx(-(math.log(4 / 7) + math.log(2 / 7) + math.log(1 / 7)) / 3)
    several = Task(part([[1.0, 0.0], [1.0, math.nan]]), part([[1.0, 1.0], [math.nan, 0.0]]), 2)
    assert premise.prior_loss(several) == pytest.approx(-(math.log(3 / 4) + math.log(1 / 3) + math.log(2 / 3)) / 3)


# ---------------------------------------------------------------- the record


def test_a_record_comes_back_and_is_that_of_these_parameters(permuted, project):
    p = parameters()
    assert list(premise.state(p).values()) == [None]
    premise.SHEET.save(premise.SHEET.where(p), permuted)
    found, folder = premise.run(p), project / "results/own/mine/premise"
    assert found.content == permuted.content and list(premise.state(p).values()) == [folder / "premise.json"]
    for one, other in ((found.distances, permuted.distances), (found.line, permuted.line)):
        pd.testing.assert_frame_equal(one, other, rtol=1e-7)
    with pytest.raises(RecordError, match="was measured with"):
        premise.run(parameters(seeds=[3]))
    assert premise.run(parameters(ft_epochs=3, device="cpu")), "no number depends on them"


def test_what_cannot_be_measured_is_refused(project):
    for changes, message in (
        ({"source_data": "", "source_weights": ""}, "is about two"),
        ({}, "base_weights: no file"),
    ):
        with pytest.raises(ParameterError, match=message):
            premise.run(parameters(**changes))


# ---------------------------------------------------------------- sentences, of made-up numbers


def made(sheet, *, cosine=0.9, ends=(0.6, 0.8), prior=1.1, middle=(0.7, 0.7), aligned=(0.7, 0.7)) -> PremiseSheet:
    """A sheet with these cosines, losses of c and b, and losses half way: interpolated and re-estimated."""
    distances = sheet.distances.assign(cosine=cosine, kernel_cosine=cosine, distance=1.0)
    line = sheet.line.reset_index(drop=True)
    line["val_loss"] = np.interp(line["a"], [0, 1], ends)
    for order, pair in zip(ORDERS, (middle, aligned), strict=True):
        for statistics, loss in zip(STATISTICS, pair, strict=True):
            line.loc[(line["order"] == order) & (line["statistics"] == statistics) & (line["a"] == 0.5), "val_loss"] = (
                loss
            )
    line.loc[~line["a"].between(0, 1), "val_loss"] = 99.0
    content = sheet.content.model_copy(update={"prior_loss": prior})
    return dataclasses.replace(sheet, content=content, distances=distances, line=line)


def test_barriers_of_a_line_made_by_hand(permuted):
    table = premise_report.barriers(made(permuted, middle=(1.5, 0.7))).set_index(["order", "statistics"])
    high, flat = table.loc["as trained", "interpolated"], table.loc["as trained", "re-estimated"]
    assert (high["rise"], high["barrier"], high["share"]) == pytest.approx((0.8, 0.8, 0.8 / 0.4))
    assert flat["rise"] == pytest.approx(0, abs=1e-12) and flat["barrier"] == pytest.approx(0.1), "b is worse than c"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({}, "**One basin**: the straight line from lesions to objects has no barrier"),
        ({"middle": (0.75, 0.7)}, "**One basin, but for batch norm**"),
        ({"middle": (0.9, 0.75)}, "**Two basins**"),
        ({"prior": 0.7, "middle": (0.9, 0.9)}, "**This cannot be told**"),
    ],
)
def test_the_verdict_follows_the_numbers(permuted, values, verdict):
    assert points(made(permuted, **values))[0].startswith(verdict)


def test_the_sentences_follow_the_numbers(permuted):
    apart = points(made(permuted, cosine=0.02, middle=(1.5, 0.9), aligned=(1.0, 0.8)))
    assert "have nothing in common" in apart[1] and "cosine between their weights is 0.020" in apart[1]
    assert "0.600 at lesions and 0.800 at objects (1.100 for the class shares)" in apart[2]
    assert "by up to 0.800 (at a = 0.5, 200\N{NO-BREAK SPACE}% of what the ends gained over the class" in apart[2]
    assert "from 0.800 to 0.300 with interpolated and from 0.200 to 0.100 with re-estimated running" in apart[3]
    near = points(made(permuted, cosine=0.97))
    assert "share a start" in near[1] and "a scaled task vector" in near[1] and "nowhere with interpolated" in near[2]
    assert "partly alike" in points(made(permuted, cosine=0.3))[1]
    assert "24 training images" in premise_report.circumstances(permuted)
    assert len(premise_report.closeness(permuted)) == 2 and len(premise_report.barriers(permuted)) == 4
