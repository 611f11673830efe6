"""What a step costs: the steps train as the training loop does, and every count is that of pencil and paper."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from medmerge import KernelMerge, backbone, training
from medmerge.backbones import Classifier
from medmerge.data import Samples
from medmerge.devices import seeded
from medmerge.pages import cost as told
from medmerge.study import cost
from medmerge.study.cost import CLASSES, VARIANTS, Step
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.records import RecordError
from medmerge.training import Protocol, Task

BATCH = 4
PROBES = [name for name, variant in VARIANTS.items() if variant.learns == "merge"]


class Small(nn.Module):
    """Two convolutions with batch norms: few enough numbers to count by hand."""

    num_features = 5

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 5, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(5)

    def forward(self, x):
        x = self.norm1(self.conv1(x)).relu()
        return self.norm2(self.conv2(x)).relu().mean((2, 3))


KERNELS = 4 * 3 * 9 + 5 * 4 * 9
NORMS, HEAD = 2 * (4 + 5), 5 * CLASSES + CLASSES


def task(size: int = 16, **changes) -> Task:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8, generator=draw)
    batch = Samples(images, torch.arange(BATCH), torch.arange(BATCH) % CLASSES, tuple("abcd"))
    options = {"batch_size": BATCH, "device": "cpu", "precision": "fp32", "lp_lr": 1e-2, "ft_lr": 1e-2, **changes}
    return Task(batch, batch, CLASSES, protocol=Protocol(**options))


def small(count: int = 3) -> list[nn.Module]:
    torch.manual_seed(0)
    return [Small() for _ in range(count)]


def step(name: str, **changes) -> Step:
    return cost.step(name, small(), task(**changes))


# ---------------------------------------------------------------- what a step does


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "features"])
def test_a_step_trains_what_it_says_and_nothing_else(name):
    one = step(name)
    before = {key: value.clone() for key, value in one.model.state_dict().items()}
    learning = {key for key, p in one.model.named_parameters(remove_duplicate=False) if p.requires_grad}
    losses = [one().item() for _ in range(8)]
    assert losses[-1] < losses[0]
    after = one.model.state_dict()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    statistics = {key for key in after if key.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert changed == learning | (statistics if VARIANTS[name].learns in ("all", "merge") else set())
    parts = {re.sub(r"backbone\.(merged\.)?(\w+?)\d\.(\w+)", r"\2.\3", key) for key in learning}
    norms, head = {"norm.weight", "norm.bias"}, {"head.weight", "head.bias"}
    merge = {"conv.parametrizations.weight.0.w"} | norms | head
    expected = {"all": {"conv.weight"} | norms | head, "merge": merge, "head": head}
    assert parts == ({"weight", "bias"} if VARIANTS[name].cached else expected[VARIANTS[name].learns])


@pytest.mark.parametrize("name, phase", [("ft", "fine_tune"), ("kernel", "linear_probe"), ("softmax3", "linear_probe")])
def test_a_step_is_the_training_loops(name, phase):
    """One epoch of one batch ends with the same numbers, bit for bit."""
    one = step(name, lp_epochs=1, ft_epochs=1, select="last")
    own = copy.deepcopy(one.model)
    getattr(training, phase)(own, one.task)
    with seeded(one.task.device, one.task.seed, training.PHASES.index(phase), 0):
        order = torch.randperm(BATCH)
    one.inputs, one.labels = one.inputs[order], one.labels[order]
    one()
    state = own.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in one.model.state_dict().items())


def test_the_two_kinds_of_linear_probe_learn_the_same():
    cached, through = step("lp_cached"), step("lp")
    for _ in range(3):
        torch.testing.assert_close(cached(), through())


# ---------------------------------------------------------------- what is counted


def test_flops_are_those_of_a_count_by_hand():
    first, second = 2 * 4 * (3 * 9) * 16 * 16, 2 * 5 * (4 * 9) * 8 * 8
    head = 2 * 5 * CLASSES
    assert cost.flops(step("features")) == BATCH * (first + second)
    assert cost.flops(step("lp_cached")) == BATCH * 2 * head, "forward and the weight's gradient"
    assert cost.flops(step("lp")) == BATCH * (first + second + 2 * head)
    whole = BATCH * (2 * first + 3 * second + 3 * head)
    assert cost.flops(step("ft")) == whole, "of the images no gradient is needed"
    assert {cost.flops(step(name)) for name in PROBES} == {whole}


def test_numbers_that_learn():
    numbers = {name: cost.trainable(step(name)) for name in VARIANTS}
    assert numbers["features"] == 0 and numbers["lp"] == numbers["lp_cached"] == HEAD
    assert numbers["ft"] == numbers["parameter"] == KERNELS + NORMS + HEAD
    assert numbers["kernel"] == 9 + NORMS + HEAD
    assert numbers["layer"] == 2 + NORMS + HEAD and numbers["model"] == 1 + NORMS + HEAD
    assert numbers["softmax3"] == 3 * 9 + NORMS + HEAD


@pytest.mark.parametrize("name, kernels, norms, features", [("densenet121", 10_240, 83_648, 1024),
                                                            ("resnet50", 26_560, 53_120, 2048)])  # fmt: skip
def test_numbers_that_learn_of_the_papers_backbones(name, kernels, norms, features):
    with torch.device("meta"):
        model = Classifier(KernelMerge([backbone(name, "random") for _ in range(2)]), CLASSES)
    learning = sum(parameter.numel() for parameter in model.parameters())
    assert learning == kernels + norms + features * CLASSES + CLASSES


def test_memory_is_that_of_a_count_by_hand():
    """A probe holds two frozen copies and the merged kernels where FT holds kernels, gradients and two moments."""
    memory = {name: cost.memory(step(name)) for name in VARIANTS}
    statistics = 4 * 2 * (4 + 5) + 2 * 8
    learns = {"ft": KERNELS + NORMS + HEAD, "kernel": 9 + NORMS + HEAD, "parameter": KERNELS + NORMS + HEAD}
    for name, numbers in learns.items():
        assert memory[name]["parameters"] == memory[name]["gradients"] == 4 * numbers
        counters = len(list(step(name).model.parameters()))
        assert memory[name]["optimizer"] == 4 * (2 * numbers + counters)
    assert memory["ft"]["frozen"] == statistics
    assert memory["kernel"]["frozen"] == memory["parameter"]["frozen"] == statistics + 2 * 4 * KERNELS
    assert memory["softmax3"]["frozen"] == statistics + 3 * 4 * KERNELS
    assert memory["kernel"]["saved"] == memory["ft"]["saved"] + 4 * KERNELS, "the merged kernels"
    assert memory["lp"]["saved"] < memory["ft"]["saved"] / 20 and memory["features"]["saved"] == 0


# ---------------------------------------------------------------- the measurement and its record


P = Parameters(
    **{"track": "own", "backbone": "densenet_small", "image_size": 32, "batch_size": BATCH, "cost_repeats": 3},
    **{"notebook": "cost", "device": "cpu", "precision": "fp32"},
)


@pytest.fixture(scope="module")
def measured() -> cost.CostSheet:
    return cost.measure(P)


def test_a_measurement_holds_every_variant_and_round(measured):
    assert list(measured.variants) == list(VARIANTS) and measured.clock == "cpu" and measured.threads == 1
    assert all(len(measured.seconds(name)) == 3 for name in VARIANTS) and measured.ratio("ft") == (1, 1, 1)
    assert {measured.variants[name].flops for name in PROBES} == {measured.variants["ft"].flops}
    assert all(variant.peak_memory_mib is None for variant in measured.variants.values())
    numbers = [measured.variants[name].trainable for name in ("lp", "model", "layer", "kernel", "parameter")]
    assert numbers == sorted(set(numbers)) and set(measured.profile) == set(cost.PROFILED)


def test_a_record_comes_back_and_is_that_of_these_parameters(measured, project):
    path = project / "results/own/cost/densenet_small-32px.json"
    assert cost.state(P) == {"densenet_small-32px": None}
    cost.SHEET.save(path, measured)
    assert cost.run(P) == measured and cost.state(P) == {"densenet_small-32px": path}
    for other in ({"batch_size": 5}, {"cost_repeats": 4}, {"device": "cuda"}, {"precision": "bf16"}):
        with pytest.raises(RecordError, match="was measured with"):
            cost.run(P.model_copy(update=other))
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in content.items() if name != "profile"}))
    assert told.profile(cost.run(P)).empty, "older records have none"
    path.unlink()
    for change, message in (
        ({"cost_repeats": 0}, "cost_repeats: 0"),
        ({"image_size": 64, "backbone": "x"}, "unknown 'x'"),
    ):
        with pytest.raises(ParameterError, match=message):
            cost.run(P.model_copy(update=change))


# ---------------------------------------------------------------- tables and sentences, of made-up seconds


def sheet(measured: cost.CostSheet, load: float = 0.2, **seconds: list[float]) -> cost.CostSheet:
    content = measured.model_dump() | {"load": [load, 1.0]}
    base = {"features": 0.2, "lp_cached": 0.001, "lp": 0.25, "ft": 1.0}
    for name in VARIANTS:
        content["variants"][name]["seconds"] = seconds.get(name, [base.get(name, 1.2)] * 3)
    return cost.CostSheet(**content)


def test_ratios_are_taken_within_a_round(measured):
    """A machine that slows down threefold in the second round changes no ratio."""
    made = sheet(measured, ft=[1.0, 3.0, 1.0], kernel=[1.5, 4.5, 1.5])
    assert made.ratio("kernel") == (1.5, 1.5, 1.5)
    row = told.steps(made).set_index("variant").loc["kernel"]
    assert row["milliseconds"] == 1500 and row["images"] == pytest.approx(BATCH / 1.5)
    assert row["flops"] == 1 and row["mib"] == told.memory(made).sum(axis=1)[row["title"]]


def test_phases_are_epochs_times_steps(measured):
    whole = told.phases(sheet(measured), lp_epochs=10, ft_epochs=20, images=400).set_index("what")
    batches = 400 / BATCH
    seconds = whole["seconds"] / batches
    assert seconds["LP, features computed once"] == pytest.approx(0.2 + 10 * 0.001)
    assert seconds["LP, through the backbone each epoch"] == pytest.approx(2.5)
    assert seconds["MedMerge's probe"] == pytest.approx(12) and seconds["FT"] == pytest.approx(20)
    assert seconds["MedMerge"] == pytest.approx(32) and seconds["LP-FT"] == pytest.approx(20.21)
    assert seconds["FT with 30 epochs"] == pytest.approx(30)
    assert whole["median"]["MedMerge"] == pytest.approx(1.6)
    assert whole["images"]["FT"] == pytest.approx(20 * 400 / (20 * batches))


def test_the_answer_follows_the_numbers(measured):
    def points(made):
        return [line.removeprefix("- ") for line in told.summary(made, 50, 50).splitlines()]

    no = points(sheet(measured))
    assert no[0].startswith("**No**: a step of MedMerge's probe takes 4.80 times (quartiles 4.80 to 4.80)")
    assert no[-1].endswith("by FT with 110 epochs (derived).")
    yes = points(sheet(measured, kernel=[0.25, 0.26, 0.27]))
    assert yes[0].startswith("**Yes**") and yes[-1].endswith("FT with 63 epochs (derived).")
    torn = points(sheet(measured, kernel=[0.2, 0.3, 0.4]))
    assert torn[0].startswith("**These rounds cannot tell**")


def test_the_circumstances_tell_of_a_busy_machine(measured):
    assert "Others were computing" not in told.circumstances(sheet(measured, load=0.2))
    assert "Others were computing" in told.circumstances(sheet(measured, load=2.0))


def test_the_figure_draws_the_tables(measured):
    made = sheet(measured, ft=[1.0, 1.0, 1.0], kernel=[1.1, 1.2, 1.4])
    steps, memory = told.steps(made), told.memory(made)
    (held,) = told.step_memory(memory).axes
    widths = np.array([bar.get_width() for bar in held.patches]).reshape(len(told.KINDS), len(memory))
    np.testing.assert_allclose(widths, memory[list(told.KINDS)].T)
    labels = [label.get_text().replace("\n", " ") for label in held.get_yticklabels()]
    assert labels == list(memory.index) == list(steps["title"])
