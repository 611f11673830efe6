"""A step taken apart: parts sum to the step, counts are those of pencil and paper, no operation is left out."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_cost import BATCH, CLASSES, HEAD, KERNELS, NORMS, p, step  # noqa: F401

from medmerge.study import cost, costsheets, steps, stepsheets
from medmerge.study.records import RecordError
from medmerge.study.steps import PARTS, PROFILED, Count

aten = torch.ops.aten
FULL, HALF = BATCH * 16 * 16, BATCH * 8 * 8
"""Pixels before and behind the second convolution of the small network."""


def nbytes(call) -> dict[str, int]:
    counter = Count()
    with counter:
        call()
    return dict(counter.bytes)


# ---------------------------------------------------------------- counts


@pytest.mark.parametrize("name", PROFILED)
def test_flops_by_part_are_those_of_a_count_by_hand(name):
    found = steps.count(step(name))
    first, second = 2 * FULL * 4 * 3 * 9, 2 * HALF * 5 * 4 * 9
    head = 2 * BATCH * 5 * CLASSES
    assert found.flops["convolution"] == first + second
    assert found.flops["convolution_backward"] == first + 2 * second, "of the images no gradient is needed"
    assert found.flops["other"] == 3 * head and sum(found.flops.values()) == cost.flops(step(name))


def test_bytes_of_convolutions_are_those_of_a_count_by_hand():
    found = steps.count(step("ft"))
    images, first, second = 3 * FULL, 4 * FULL, 5 * HALF
    kernels = 4 * 3 * 9, 5 * 4 * 9
    assert found.bytes["convolution"] == 4 * (images + kernels[0] + first + first + kernels[1] + second)
    reads = first + images + kernels[0] + second + first + kernels[1]
    assert found.bytes["convolution_backward"] == 4 * (reads + sum(kernels) + first)
    assert found.bytes["merge"] == 0


def test_bytes_of_the_weighted_mean_are_those_of_a_count_by_hand():
    """Forward reads both sources and w; backward takes their difference, times the gradient, summed over a kernel."""
    found = steps.count(step("kernel"))
    rows = 4 + 5
    forward = 3 * KERNELS + rows
    backward = 3 * KERNELS + 3 * KERNELS + KERNELS + rows
    assert found.bytes["merge"] == 4 * (forward + backward) and found.flops["merge"] == 0


def test_adamw_reads_four_tensors_and_writes_three():
    one = step("ft")
    numbers, parameters = KERNELS + NORMS + HEAD, len(list(one.model.parameters()))
    counters = parameters * 4
    assert steps.count(one).bytes["optimizer"] > 4 * 7 * numbers, "the first step fills its state"
    found = steps.count(one).bytes["optimizer"]
    assert found == 4 * 7 * numbers + 3 * counters, "step counters: read and written, then read"


def test_bytes_of_single_calls():
    x, y = torch.zeros(10, 8), torch.zeros(10, 8)
    assert nbytes(lambda: x + y) == {"other": 3 * 320}
    assert nbytes(lambda: x.add_(y)) == {"other": 3 * 320}
    assert nbytes(lambda: x.copy_(y)) == {"casts": 2 * 320}, "what is overwritten is not read"
    assert nbytes(lambda: x.zero_()) == {"other": 320}
    assert nbytes(lambda: torch.add(x, y, out=torch.empty(10, 8))) == {"other": 3 * 320}
    assert nbytes(lambda: x.to(torch.bfloat16)) == {"casts": 320 + 160}
    one = torch.zeros(1)
    assert nbytes(lambda: one.expand(10, 8) + y) == {"other": 4 + 2 * 320}, "an expanded tensor is read as it lies"
    assert sum(nbytes(lambda: (x.view(80), x[0], x.t(), torch.empty(99), x.detach())).values()) == 0
    assert nbytes(lambda: torch.cat([x, y])) == {"other": 4 * 320}


def test_every_kind_of_operation_has_its_part():
    assert steps.part("convolution", "", "") == "convolution"
    assert steps.part("cudnn_convolution_transpose_backward", "", "") == "convolution_backward"
    assert steps.part("cudnn_batch_norm_backward", "CudnnBatchNormBackward0", "") == "normalisation"
    assert steps.part("sum", "LerpBackward1", "") == steps.part("lerp", "", "") == "merge"
    assert steps.part("sum", "MeanBackward1", "") == "other" and steps.part("_to_copy", "", "") == "casts"
    assert steps.part("div", "", "prepare") == "prepare" and steps.part("lerp", "", "optimizer") == "optimizer"


# ---------------------------------------------------------------- times


@pytest.mark.parametrize("name", PROFILED)
def test_parts_sum_to_the_step_and_hold_every_operation(name, monkeypatch):
    one = step(name)
    counted = steps.count(one)
    assert set(counted.bytes) <= set(PARTS) - {"calls"}
    seen, own = [], steps._part
    monkeypatch.setattr(steps, "_part", lambda event, names: seen.append((event, own(event, names))) or seen[-1][1])
    seconds, parts = steps.times(one, counted.names)
    assert list(parts) == list(PARTS) and sum(parts.values()) == pytest.approx(seconds)
    assert all(parts[part] > 0 for part in counted.bytes if counted.bytes[part]) and parts["calls"] > 0
    assert (parts["merge"] > 0) == (name == "kernel")
    left = {e.name.removeprefix("aten::") for e, found in seen if not found and e.name.startswith("aten::")}
    assert not left & counted.names, "an operation that was counted is no call"


def test_a_step_taken_apart_is_a_step_as_before():
    plain, apart = step("kernel"), step("kernel")
    for _ in range(3):
        expected = plain()
    steps.times(apart, steps.count(apart).names)
    assert torch.equal(apart(), expected) and "region" not in vars(apart)
    states = apart.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


# ---------------------------------------------------------------- the measurement and its record


@pytest.fixture(scope="module")
def measured() -> dict:
    return steps.measure("densenet_small", 32, BATCH, repeats=3, device="cpu", precision="fp32")


def test_floors_are_positive_and_below_what_was_measured(measured):
    sheet = stepsheets.StepSheet(**measured)
    for variant in PROFILED:
        floors = {part: sheet.floor(variant, part) for part in PARTS}
        assert floors["calls"] == 0 and floors["convolution"] > 0 and floors["optimizer"] > 0
        assert 0 < sum(floors.values()) < sheet.steps[variant].profiled


def test_a_record_comes_back_and_is_not_measured_again(measured, p, monkeypatch):  # noqa: F811
    asked = []
    monkeypatch.setattr(steps, "measure", lambda *args, **options: asked.append(options) or measured)
    assert stepsheets.read(p) is None
    sheet = stepsheets.run(p)
    assert stepsheets.run(p) == sheet == stepsheets.StepSheet(**measured) and len(asked) == 1
    where = stepsheets.path(p)
    assert where.name == "densenet_small-32px-profile.json" and where.parent == costsheets.path(p).parent
    content = json.loads(where.read_text())
    content["steps"]["ft"]["parts"]["merge"]["seconds"] += 1
    where.write_text(json.dumps(content))
    with pytest.raises(RecordError, match="steps.ft: .*parts sum to .* remove it to measure again"):
        stepsheets.read(p)
    with pytest.raises(RecordError, match="batch_size 4, not 8"):
        where.write_text(json.dumps(measured))
        stepsheets.read(p.model_copy(update={"batch_size": 8}))


def made(measured: dict) -> stepsheets.StepSheet:
    """Round numbers: a machine of 100 FLOPs and 10 bytes a second."""
    content = json.loads(json.dumps(measured)) | {"machine": {"product": 100.0, "convolution": 50.0, "copy": 10.0}}
    for variant in PROFILED:
        parts = {name: {"seconds": 1.0, "flops": 0, "bytes": 5} for name in PARTS}
        parts["convolution"] = {"seconds": 11.0, "flops": 400, "bytes": 10}
        parts["calls"] = {"seconds": 1.0, "flops": 0, "bytes": 0}
        if variant == "ft":
            parts["merge"] = {"seconds": 0.0, "flops": 0, "bytes": 0}
        total = sum(part["seconds"] for part in parts.values())
        content["steps"][variant] = {"seconds": total, "profiled": total, "parts": parts}
    return stepsheets.StepSheet(**content)


def test_the_table_and_the_sentences_follow_the_numbers(measured):
    sheet = made(measured)
    table = stepsheets.parts(sheet).set_index(["variant", "part"])
    row = table.loc["kernel", "convolution"]
    assert row["floor"] == 4000 and row["ratio"] == pytest.approx(2.75), "arithmetic takes longer than traffic"
    assert table.loc["kernel", "merge"]["floor"] == 500 and ("ft", "merge") not in table.index
    step_row = table.loc["kernel", "step"]
    assert step_row["milliseconds"] == 19_000 and step_row["floor"] == pytest.approx(4000 + 7 * 500)
    assert np.isnan(table.loc["ft", "calls"]["ratio"])
    first, second, third = stepsheets.summary(sheet)
    assert first.startswith("A step of FT takes 18000.0 ms, 2.57 times its floor of 7000.0 ms. Convolutions take 67%")
    assert first.endswith("above its floor: convolutions, forward, by 7000.0 ms.")
    assert "A step of MedMerge's probe takes 19000.0 ms" in second
    assert "takes 1000.0 ms, 5.3% of the probe's step (floor 500.0 ms)" in third


def test_the_machine_is_asked_in_the_precision_of_the_step():
    found = steps.machine(torch.device("cpu"), "fp32")
    assert found.keys() == {"product", "convolution", "copy"} and all(value > 0 for value in found.values())
    with Count() as counter:
        F.conv2d(torch.zeros(32, 128, 16, 16), torch.zeros(128, 128, 3, 3), padding=1)
    assert counter.flops["convolution"] == 2 * 32 * 16 * 16 * 128 * 128 * 9, "as `machine` counts it"
