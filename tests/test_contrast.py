"""Differences over seeds and images, and what the analysis plan makes of them, on hand-made records."""

import numpy as np
import pytest
from test_report import CLASSES, LABELS, ROWS, macro_f1, make, predicted, study

from medmerge.pages import contrast, report
from medmerge.pages.typeset import number
from medmerge.stats import evaluation, significance


def planned(records):
    return contrast.against(records, over="seeds")


def test_margin_is_what_another_seed_changes(tmp_path):
    made = study(tmp_path, 30, 10, 20, seeds=(0, 1, 2))
    each = [[macro_f1(errors, seed) for seed in range(3)] for errors in (30, 10, 20)]
    assert contrast.margin(made) == pytest.approx(np.sqrt(np.mean([np.var(row, ddof=1) for row in each])))
    assert contrast.margin([run for run in made if run.run["seed"] == 0]) is None


def test_comparisons_are_those_of_significance(tmp_path):
    made = study(tmp_path, 30, 10, 20, seeds=(0, 1, 2))
    table = planned(made).set_index("against")
    assert list(table.index) == ["FT b", "FT c"]
    ours = np.stack([predicted(20, seed) for seed in range(3)])
    for label, errors in (("FT b", 30), ("FT c", 10)):
        theirs = np.stack([predicted(errors, seed) for seed in range(3)])
        found, line = significance.over_seeds(LABELS, ours, theirs, 3), table.loc[label]
        assert (line["difference"], line["low"], line["high"]) == (found.difference, found.low, found.high)
        margin = contrast.margin(made)
        same = significance.equivalence(found.difference, found.error, margin, found.freedom)
        assert line["equivalence"] == same
    p = contrast.against(made).set_index("against")["p_holm"]
    assert (table["p_holm"] == p).all()


@pytest.mark.parametrize(
    ("errors", "superior", "expected"),
    [
        ((40, 45, 5), ["superior", "superior"], "support"),
        ((40, 5, 40), ["not shown", "inferior"], "failure"),
        ((45, 20, 19), ["superior", "not shown"], "undecided"),
    ],
)
def test_outcomes_are_the_plans(tmp_path, errors, superior, expected):
    made = study(tmp_path, *errors, seeds=(0, 1, 2))
    assert list(planned(made)["superior"]) == superior
    assert report.decide(planned(made)) == expected and f"counts as **{expected}**" in report.planned_verdict(made)


def test_equivalence_to_a_baseline_fails_the_claim(tmp_path, monkeypatch):
    made = study(tmp_path, 45, 20, 19, seeds=(0, 1, 2))
    for module in (contrast, report):
        monkeypatch.setattr(module, "margin", lambda records: 0.5)
    assert list(planned(made)["equivalence"]) == ["different but within the margin", "equivalent"]
    assert report.decide(planned(made)) == "failure" and "equivalent to 1 of 2" in report.planned_verdict(made)


def test_a_page_with_rivals_is_no_family_of_the_plan(tmp_path, monkeypatch):
    monkeypatch.setitem(ROWS, "ft-c", ("soup", "Soup", ["b", "c"]))
    said = report.planned_verdict(study(tmp_path, 40, 45, 5, seeds=(0, 1)))
    assert "superior to 2" in said and "counts as" not in said
    assert said.endswith("With Soup among them this decides nothing: the plan's claim is about FT and LP-FT alone.")


def test_one_seed_decides_nothing(tmp_path):
    made = study(tmp_path, 40, 45, 5)
    assert list(planned(made)["superior"]) == ["superior"] * 2
    assert set(planned(made)["equivalence"]) == {"unknown"}
    assert report.decide(planned(made)) == "undecided" and "decides nothing" in report.planned_verdict(made)


def test_secondary_outcomes_are_accuracy_and_area(tmp_path):
    made = study(tmp_path, 30, 10, 20, seeds=(0, 1))
    table = report.secondary(made).set_index("MedMerge minus")
    assert table.loc["FT b", "accuracy"] == pytest.approx(0.1) and table.loc["FT c", "accuracy"] == pytest.approx(-0.1)
    p = [significance.mcnemar(LABELS, predicted(20, k), predicted(30, k))[1] for k in range(2)]
    assert table.loc["FT b", "McNemar's p, by seed"] == ", ".join(number(one, ".2g") for one in p)
    area = [evaluation.metrics(LABELS, run.probabilities, CLASSES)["macro_auroc"] for run in made]
    assert table.loc["FT b", "AUROC"] == pytest.approx(np.mean(area[4:]) - np.mean(area[:2]))


def test_an_area_that_is_ranked_perfectly_by_both_has_no_error(tmp_path):
    table = report.secondary(study(tmp_path, 0, 0, 0, seeds=(0, 1)))
    assert list(table["low"]) == list(table["high"]) == [0, 0]


def test_kappas_are_of_grades(tmp_path):
    made = study(tmp_path, 30, 10, 20, seeds=(0, 1))
    table = report.kappas(made).set_index("run")
    expected = [significance.quadratic_kappa(LABELS, predicted(10, seed), 3) for seed in range(2)]
    assert table.loc["FT c", "quadratic kappa"] == pytest.approx(np.mean(expected))
    constant = make(tmp_path / "one", "ft-b", 0)
    assert report.kappas([constant])["quadratic kappa"].iloc[0] == 1.0 and len(ROWS) == 3
