"""Statistics of learnt weights: against hand computation, other implementations, and the optimiser itself."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_report import make

from medmerge.pages import agreement, weights
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


def skin() -> list[records.Record]:
    return records.gather(RESULTS, "open/skin/densenet121/*/seed*")


def test_rows_hold_merged_runs_in_order_of_seeds(tmp_path):
    runs = [make(tmp_path, row, 5, seed) for seed in (1, 0) for row in ("ft-b", "medmerge-b-c")]
    rows = weights.merged_rows(runs)
    assert {folder.name: [run.run["seed"] for run in found] for folder, found in rows.items()} == {
        "medmerge-b-c": [0, 1]
    }
    assert rows[tmp_path / "medmerge-b-c"][0].ends == ("b", "c")


def test_one_source_is_merged_with_zeros(tmp_path):
    record = make(tmp_path, "medmerge-b-c", 5)
    record.run["row"]["sources"] = ["b"]
    assert record.ends == ("b", "zeros")


def test_no_merged_run_is_refused(tmp_path):
    with pytest.raises(RecordError, match="none of the 1 records holds merging weights"):
        weights.merged_rows([make(tmp_path, "ft-b", 5)])


def test_seeds_of_other_sources_are_not_one_row(tmp_path):
    runs = [make(tmp_path, "medmerge-b-c", 5, seed) for seed in (0, 1)]
    runs[1].run["row"]["sources"] = ["c", "b"]
    with pytest.raises(RecordError, match="other sources or layers"):
        weights.merged_rows(runs)


def test_kernels_are_averaged_over_seeds(tmp_path):
    runs = [make(tmp_path, "medmerge-b-c", 5, seed) for seed in (0, 1)]
    runs[1].kernel_weights["z"][:] = [1.5, 0.25]
    mean = weights.mean_weights(runs)
    assert list(mean) == ["z", "a"] and mean["z"].tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("backbone", "kinds"),
    [
        ("densenet121", {"stem": 1, "1×1 bottleneck": 58, "3×3 growth": 58, "1×1 transition": 3}),
        ("densenet_small", {"stem": 1, "1×1 bottleneck": 9, "3×3 growth": 9, "1×1 transition": 2}),
        ("resnet50", {"stem": 1, "1×1 conv1": 16, "3×3 conv2": 16, "1×1 conv3": 16, "1×1 downsample": 4}),
        ("resnet18", {"stem": 1, "3×3 conv1": 8, "3×3 conv2": 8, "1×1 downsample": 3}),
    ],
)
def test_every_layer_has_its_kind_and_block(backbone, kinds):
    table = weights.layer_kinds(drawn(backbone), backbone)
    assert table["kind"].value_counts().to_dict() == kinds
    assert list(table["layer"]) == list(architecture(backbone))
    blocks = table["block"].str.extract(r"(dense block|layer) \d").dropna()
    assert len(blocks) == len(table) - kinds["stem"] - kinds.get("1×1 transition", 0)


def test_layers_of_another_network_are_refused():
    with pytest.raises(ValueError, match="'resnet50' has no layers"):
        weights.layer_kinds(drawn("densenet_small"), "resnet50")
    with pytest.raises(ValueError, match="'nothing' has no layers"):
        weights.layer_kinds(drawn("densenet_small"), "nothing")
    short = drawn("densenet_small") | {"features.conv0": np.ones(3)}
    with pytest.raises(ValueError, match="conv0"):
        weights.layer_kinds(short, "densenet_small")


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


def test_a_step_between_blocks_does_not_hide_the_alternation_within_them():
    made = drawn("densenet121", 0.01, conv2=-0.02)
    for name, w in made.items():
        w += 0.2 * ("denseblock4" in name)
    found = weights.alternation(made, "densenet121", 2000)
    assert found["whole"] > 0.5 and found["within"] < -0.5 and found["p_within"] < 0.01


def test_networks_without_both_kinds_are_refused():
    with pytest.raises(ValueError, match="resnet18 has fewer than two blocks"):
        weights.alternation(drawn("resnet18"), "resnet18")


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


def test_autocorrelation_of_noise_is_significant_as_often_as_it_should_be():
    generator = np.random.default_rng(1)
    p = [weights.autocorrelation(generator.normal(size=20), None, 199, generator)[1] for _ in range(400)]
    assert 0.025 < np.mean(np.array(p) <= 0.05) < 0.08


def test_icc_is_that_of_shrout_and_fleiss():
    """The worked example of Shrout and Fleiss 1979, table 4: ICC(2,1) = 0.29."""
    ratings = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    assert agreement.icc(ratings) == pytest.approx(0.29, abs=0.005)
    assert agreement.icc([[1, 1], [2, 2], [4, 4]]) == 1
    assert agreement.icc([[1, 2], [2, 3], [4, 5]]) < 1  # correlation 1, agreement less
    assert math.isnan(agreement.icc([[1, 1]])) and math.isnan(agreement.icc([[2, 2], [2, 2]]))


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


def test_correlations_are_numpys_over_all_kernels_and_by_layer():
    a, b = drawn("densenet_small", seed=1), drawn("densenet_small", seed=2)
    x, y = (np.concatenate(list(w.values())) for w in (a, b))
    (row,) = agreement.seed_agreement({"s": a, "t": b}, 50).itertuples()
    assert (row.one, row.other, row.kernels) == ("s", "t", len(x))
    assert row.pearson == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_every_pair_of_seeds_is_compared():
    runs = {seed: drawn("densenet_small", seed=seed) for seed in range(3)}
    assert agreement.seed_agreement(runs, 20)[["one", "other"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 2]]


def test_weights_that_do_not_vary_have_no_correlation():
    flat = {0: {"a": [0.5, 0.5]}, 1: {"a": [0.5, 0.5]}}
    assert agreement.seed_agreement(flat, 20)[["pearson", "icc", "null", "p_value"]].isna().all(axis=None)


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


def test_weights_that_do_not_learn_have_no_budget(tmp_path):
    record = make(tmp_path, "medmerge-b-c", 5)
    record.run["parameters"]["w_lr"] = 0.0
    (row,) = weights.displacements([record]).itertuples()
    assert row.w_lr == row.budget == row.reach == 0 and math.isnan(row.share)


def test_budget_of_softmax_is_that_of_its_logits_carried_over(tmp_path):
    record = make(tmp_path, "medmerge-b-c", 5)
    record.run["parameters"]["normalisation"] = "softmax"
    (row,) = weights.displacements([record]).itertuples()
    logits = torch.tensor([0.44, -0.44], dtype=torch.float64)
    assert row.budget == pytest.approx(logits.softmax(0)[0].item() - 0.5) and row.reach < 0.5


def test_committed_run_moved_less_than_adam_could():
    (row,) = weights.displacements(skin()).itertuples()
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
    assert said in weights.alternation_sentence(found)
