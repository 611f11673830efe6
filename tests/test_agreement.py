"""The claim that the shift of w follows fine-tuning: on hand-made studies whose scores and weights are known."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from test_report import macro_f1, make

from medmerge.pages import agreement, contrast
from medmerge.stats import evaluation
from medmerge.study.records import RecordError


def study(folder, errors_b: int, errors_c: int, w: float, seeds=(0,)) -> list:
    """FT from b and c with so many errors, and a merge whose kernels have w on average."""
    made = []
    for seed in seeds:
        made += [make(folder, "ft-b", errors_b, seed), make(folder, "ft-c", errors_c, seed)]
        made.append(make(folder, "medmerge-b-c", 5, seed))
        made[-1].__dict__["kernel_weights"] = {"a": np.full(3, w - 0.02), "z": np.full(1, w + 0.06)}
    return made


def test_shift_and_difference_of_one_study(tmp_path):
    runs = study(tmp_path / "pair" / "net", 5, 30, 0.6, (0, 1))
    (row,) = agreement.shifts(runs).itertuples()
    assert (row.study, row.first, row.second, len(row.merged)) == ("pair/net", "b", "c", 2)
    assert row.shift == pytest.approx(0.1)
    assert row.difference == pytest.approx(np.mean([macro_f1(5, s) - macro_f1(30, s) for s in (0, 1)]))
    b, c = ([run for run in runs if run.label == f"FT {name}"] for name in "bc")
    whole = evaluation.compare(runs[0].labels, contrast.predicted(b), contrast.predicted(c), 3)
    assert (row.low, row.high, row.p) == (whole.low, whole.high, whole.p_value)


def test_two_studies_are_too_few_for_a_correlation(tmp_path):
    runs = study(tmp_path / "p" / "net", 5, 30, 0.6) + study(tmp_path / "q" / "net", 30, 5, 0.6)
    table = agreement.shifts(runs)
    found = agreement.association(table, 200)
    assert found["same"] == 1 and np.isnan([*found["pearson"].values(), *found["spearman"].values()]).all()
    said = agreement.statement(table)
    assert "cannot be estimated from 2 studies" in said and "Pearson" not in said


def test_correlation_across_studies(tmp_path):
    made = {"p": (5, 40, 0.58), "q": (10, 20, 0.54), "r": (30, 25, 0.49), "s": (45, 5, 0.40)}
    runs = [run for name, what in made.items() for run in study(tmp_path / name / "net", *what)]
    table = agreement.shifts(runs)
    found = agreement.association(table, 300)
    assert found["pearson"]["value"] == pytest.approx(np.corrcoef(table["shift"], table["difference"])[0, 1])
    assert found["spearman"]["value"] == pytest.approx(spearmanr(table["shift"], table["difference"])[0])
    assert 0.5 < found["pearson"]["low"] < found["pearson"]["high"] <= 1
    assert found["same_low"] <= found["same"] <= found["same_high"]
    said = agreement.statement(table)
    assert f"the same sign in **{found['same']} of 4 studies**" in said and f"{found['pearson']['value']:+.2f}" in said


def test_what_cannot_answer_is_left_out(tmp_path):
    """A leak, a study without FT from both, merges with zeros, rows with settings of their own."""
    clean, leaky, half, zeros = (study(tmp_path / name / "net", 5, 30, 0.6) for name in "pqrs")
    leaky[0].run["data"]["overlap"] = {"c": {"images": {"test": 3}}}
    zeros[-1].run["row"]["sources"] = ["b"]
    varied = make(tmp_path / "varied", "ft-b", 50)
    object.__setattr__(varied, "folder", tmp_path / "p" / "net" / "ft-b+ft_lr=0.1" / "seed0")
    varied.run["row"]["settings"] = {"ft_lr": 0.1}
    (row,) = agreement.shifts([*clean, *leaky, *half[1:], *zeros, varied]).itertuples()
    assert row.study == "p/net" and row.difference == pytest.approx(macro_f1(5) - macro_f1(30))
    assert agreement.shifts([*half[1:], *zeros]).empty


def test_the_seeds_that_all_have_count_and_on_the_same_images(tmp_path):
    runs = study(tmp_path / "p" / "net", 5, 30, 0.6, (0, 1))
    (row,) = agreement.shifts(runs[:-1]).itertuples()
    assert [run.run["seed"] for run in row.merged] == [0] and len(row.of_first) == 1
    runs[0].run["data"]["fingerprint"] = "0" * 64
    with pytest.raises(RecordError, match="was tested on other images"):
        agreement.shifts(runs)
