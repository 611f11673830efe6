"""Statistics of learnt weights: against hand computation, other implementations, and the optimiser itself."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_report import make

from medmerge.pages import agreement, weights
from medmerge.pages.typeset import fill
from medmerge.study import records
from medmerge.study.layers import architecture
from medmerge.study.records import RecordError

RESULTS = Path(__file__).parents[1] / "results"


def drawn(backbone: str, spread: float = 0.02, seed: int = 0, **means: float) -> dict[str, np.ndarray]:
    """w around 0.5 for every layer of an architecture, plus a number where a layer's name ends with the key."""
    generator, weights = np.random.default_rng(seed), {}
    for name, (_, shape) in architecture(backbone).items():
        added = sum(value for end, value in means.items() if name.endswith(end))
        weights[name] = generator.normal(0.5 + added, spread, shape[0])
    return weights


def test_rows_hold_merged_runs_in_order_of_seeds(tmp_path):
    runs = [make(tmp_path, row, 5, seed) for seed in (1, 0) for row in ("ft-b", "medmerge-b-c")]
    rows = weights.merged_rows(runs)
    assert {folder.name: [run.run["seed"] for run in found] for folder, found in rows.items()} == {
        "medmerge-b-c": [0, 1]
    }
    assert rows[tmp_path / "medmerge-b-c"][0].ends == ("b", "c")
    with pytest.raises(RecordError, match="none of the 1 records holds merging weights"):
        weights.merged_rows(runs[:1])


def test_one_source_is_merged_with_zeros(tmp_path):
    record = make(tmp_path, "medmerge-b-c", 5)
    record.run["row"]["sources"] = ["b"]
    assert record.ends == ("b", "zeros")


@pytest.mark.parametrize(
    ("backbone", "units", "rest"), [("densenet121", 58, 4), ("resnet50", 16, 5), ("resnet18", 8, 4)]
)
def test_every_layer_has_its_block_and_unit(backbone, units, rest):
    table = weights.layer_kinds(drawn(backbone), backbone)
    assert list(table["layer"]) == list(architecture(backbone))
    assert table["unit"].nunique() - 1 == units and (table["unit"] == "").sum() == rest, "stem and transitions or ways"
    assert table[table["unit"] != ""]["block"].str.fullmatch(r"(dense block|layer) \d").all()


def test_kernels_are_averaged_over_seeds(tmp_path):
    runs = [make(tmp_path, "medmerge-b-c", 5, seed) for seed in (0, 1)]
    runs[1].kernel_weights["z"][:] = [1.5, 0.25]
    mean = weights.mean_weights(runs)
    assert list(mean) == ["z", "a"] and mean["z"].tolist() == [1.0, 0.5]


def test_layers_of_another_network_are_refused():
    with pytest.raises(ValueError, match="'resnet50' has no layers"):
        weights.layer_kinds(drawn("densenet_small"), "resnet50")
    with pytest.raises(ValueError, match="resnet18 has fewer than two blocks"):
        weights.alternation(drawn("resnet18"), "resnet18")


def test_difference_of_kinds_is_paired_by_dense_layer():
    w = drawn("densenet121")
    found = weights.alternation(w, "densenet121", resamples=500)
    units = [name.removesuffix(".conv1") for name in w if name.endswith(".conv1")]
    expected = [w[f"{unit}.conv1"].mean() - w[f"{unit}.conv2"].mean() for unit in units]
    assert found["units"] == len(units) == 58
    assert found["difference"] == pytest.approx(np.mean(expected))
    half = 1.96 * np.std(expected) / math.sqrt(58)
    expected = found["difference"] - half, found["difference"] + half
    assert (found["low"], found["high"]) == pytest.approx(expected, abs=0.3 * half)


def test_both_1x1_convolutions_of_a_residual_block_count():
    found = weights.alternation(drawn("resnet50", 0.0, conv1=0.1, conv3=0.3), "resnet50", 100)
    assert found["units"] == 16 and (found["difference"], found["low"], found["high"]) == pytest.approx((0.2, 0.2, 0.2))


@pytest.mark.parametrize("backbone", ["densenet121", "resnet50"])
def test_alternation_is_found_where_it_is_and_not_where_it_is_not(backbone):
    alternates = weights.alternation(drawn(backbone, 0.02, conv2=-0.02), backbone, 2000)
    assert alternates["low"] > 0.015 and alternates["within"] < -0.3 and alternates["p_within"] < 0.01
    chance = weights.alternation(drawn(backbone), backbone, 2000)
    assert chance["low"] < 0 < chance["high"] and chance["p_whole"] > 0.05 and chance["p_within"] > 0.05


def test_weights_at_their_start_have_no_autocorrelation():
    found = weights.alternation(drawn("densenet_small", 0.0), "densenet_small", 50)
    assert found["difference"] == found["low"] == found["high"] == 0
    assert math.isnan(found["whole"]) and math.isnan(found["p_within"])


def test_autocorrelation_by_hand():
    r, p = weights.autocorrelation([1, -1, 1, -1], permutations=4000)
    assert r == pytest.approx(-3 / 4)  # 3 products of -1 over 4 squares
    assert p == pytest.approx(2 / 3, abs=0.03)  # the 6 orders have -3/4, -1/4 and 1/4 twice each: 4 as far from -1/4
    r, _ = weights.autocorrelation([1, 3, 10, 12], ["a", "a", "b", "b"], 50)
    assert r == pytest.approx(-2 / 4)  # deviations -1, 1, -1, 1; the pair across blocks does not count


def test_agreement_on_layers_is_told_from_agreement_on_kernels():
    layers = {f"l{i}": 0.4 + 0.02 * i for i in range(10)}
    generator = np.random.default_rng(0)
    noise = [{name: mean + generator.normal(0, 0.01, 50) for name, mean in layers.items()} for _ in range(2)]
    (row,) = agreement.seed_agreement(dict(enumerate(noise)), 300).itertuples()
    assert row.pearson > 0.9 and row.layers > 0.99 and abs(row.within) < 0.15
    assert row.null_low < row.pearson < row.null_high and row.p_value > 0.05
    shared = {name: generator.normal(0, 0.01, 50) for name in layers}
    alike = [{k: 0.5 + shared[k] + generator.normal(0, 0.01, 50) for k in layers} for _ in range(2)]
    (row,) = agreement.seed_agreement(dict(enumerate(alike)), 300).itertuples()
    assert row.within == pytest.approx(0.5, abs=0.1) and row.pearson > row.null_high and row.p_value == 1 / 301


@pytest.mark.parametrize("steps", [1, 7, 60])
def test_adams_reach_is_reached_and_not_passed(steps):
    def furthest(gradients) -> float:
        w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([w], lr=0.01, eps=1e-30)
        for gradient in gradients:
            w.grad = torch.tensor([gradient], dtype=torch.float64)
            optimizer.step()
        return abs(w.item()) / 0.01

    reach = weights.adam_reach(steps)
    assert furthest((0.999 / 0.9) ** t for t in range(steps)) == pytest.approx(reach, rel=1e-9)
    assert furthest([3.0] * steps) == pytest.approx(steps, rel=1e-9) and reach >= steps * (1 - 1e-12)
    generator = np.random.default_rng(0)
    assert all(furthest(generator.standard_cauchy(steps)) < reach * (1 + 1e-9) for _ in range(20))


@pytest.mark.parametrize(("w_lr", "lr"), [(None, 0.01), (0.1, 0.1)])
def test_displacement_stands_beside_budget_and_reach(tmp_path, w_lr, lr):
    record = make(tmp_path / "pair" / "net", "medmerge-b-c", 5)
    record.run["parameters"]["w_lr"] = w_lr
    (row,) = weights.displacements([record, make(tmp_path / "pair" / "net", "ft-b", 5)]).itertuples()
    assert (row.study, row.seed, row.steps, row.mean, row.largest) == ("pair/net", 0, 44, 0.25, 1.0)
    assert row.w_lr == pytest.approx(lr) and row.budget == pytest.approx(44 * lr)
    assert row.reach == pytest.approx(lr * weights.adam_reach(44)) and row.share == pytest.approx(1 / (44 * lr))


def test_budget_of_softmax_is_that_of_its_logits_carried_over(tmp_path):
    record = make(tmp_path, "medmerge-b-c", 5)
    record.run["parameters"]["normalisation"] = "softmax"
    (row,) = weights.displacements([record]).itertuples()
    logits = torch.tensor([0.44, -0.44], dtype=torch.float64)
    assert row.budget == pytest.approx(logits.softmax(0)[0].item() - 0.5) and row.reach < 0.5


def test_committed_run_moved_less_than_adam_could():
    (row,) = weights.displacements(records.gather(RESULTS, "open/skin/densenet121/*/seed*")).itertuples()
    assert 0 < row.mean < row.largest < row.reach and row.w_lr == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "1×1 and 3×3 convolutions differ in mean w: the difference is +0.0100 (+0.0020 to +0.0200, 9 units)"),
        ({}, "within blocks neighbours alternate"),
        ({"low": -0.002, "p_within": 0.2}, "are not shown to differ"),
        ({"p_within": 0.2}, "no alternation along depth is shown"),
        ({"within": 0.5}, "the opposite of alternating"),
    ],
)
def test_the_sentence_on_alternation_is_no_stronger_than_its_tests(changes, said):
    found = {"difference": 0.01, "low": 0.002, "high": 0.02, "units": 9}
    found |= {"whole": -0.1, "p_whole": 0.4, "within": -0.5, "p_within": 0.01} | changes
    assert said in fill("alternation", **found)
