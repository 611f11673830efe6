"""The claim that the shift of w follows fine-tuning: on hand-made studies whose scores and weights are known."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from test_report import macro_f1, make

from medmerge.pages import report, shift
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
    (row,) = shift.shift_table(runs).itertuples()
    assert (row.study, row.target, row.first, row.second, row.seeds) == ("pair/net", "made", "b", "c", 2)
    assert row.shift == pytest.approx(0.1) and row.shift_layers == pytest.approx(0.12)
    expected = np.mean([macro_f1(5, s) - macro_f1(30, s) for s in (0, 1)])
    b, c = ([run for run in runs if run.label == f"FT {name}"] for name in "bc")
    whole = evaluation.compare(runs[0].labels, report.predicted(b), report.predicted(c), 3)
    assert row.difference == pytest.approx(expected)
    assert (row.low, row.high, row.p) == (whole.low, whole.high, whole.p_value)
    assert row.same_sign and row.decided


def test_a_shift_against_fine_tuning_is_said_to_be_so(tmp_path):
    (row,) = shift.shift_table(study(tmp_path / "pair" / "net", 30, 5, 0.6)).itertuples()
    assert not row.same_sign and row.decided and row.high < 0


def test_two_studies_are_too_few_for_a_correlation(tmp_path):
    runs = study(tmp_path / "p" / "net", 5, 30, 0.6) + study(tmp_path / "q" / "net", 30, 5, 0.6)
    found = shift.association(runs, 200)
    assert (found.studies, found.same_sign, found.decided) == (2, 1, 2)
    assert np.isnan([found.pearson, found.pearson_low, found.spearman, found.spearman_high]).all()
    said = shift.statement(runs)
    assert "cannot be estimated from 2 studies" in said and "p/net" in said and "opposite signs" in said
    assert "correlation +" not in said


def test_correlation_across_studies(tmp_path):
    made = {"p": (5, 40, 0.58), "q": (10, 20, 0.54), "r": (30, 25, 0.49), "s": (45, 5, 0.40)}
    runs = [run for name, what in made.items() for run in study(tmp_path / name / "net", *what)]
    table, found = shift.shift_table(runs), shift.association(runs, 300)
    assert (found.studies, found.same_sign) == (4, int(table["same_sign"].sum()))
    assert found.pearson == pytest.approx(np.corrcoef(table["shift"], table["difference"])[0, 1])
    assert found.spearman == pytest.approx(spearmanr(table["shift"], table["difference"])[0])
    assert found.pearson_low < found.pearson_high <= 1 and found.pearson_low > 0.5
    assert found.same_low <= found.same_sign <= found.same_high
    assert "cannot" not in shift.statement(runs)


def test_what_is_missing_is_named(tmp_path):
    runs = study(tmp_path / "pair" / "net", 5, 30, 0.6)
    without = [run for run in runs if run.label != "FT c"]
    with pytest.raises(RecordError, match="0 rows of FT from c for the seeds"):
        shift.shift_table(without)
    other = make(tmp_path / "pair" / "net", "medmerge-b-c", 5, 1)
    other.__dict__["kernel_weights"] = runs[-1].kernel_weights
    with pytest.raises(RecordError, match="FT from b for the seeds"):
        shift.shift_table([*runs, other])
    runs[0].run["data"]["fingerprint"] = "0" * 64
    with pytest.raises(RecordError, match="tested on different images"):
        shift.shift_table(runs)


def test_merges_with_zeros_have_no_part_in_the_claim(tmp_path):
    runs = study(tmp_path / "pair" / "net", 5, 30, 0.6)
    runs[-1].run["row"]["sources"] = ["b"]
    with pytest.raises(RecordError, match="no run merged two sources"):
        shift.shift_table(runs)


def test_the_studys_own_fine_tuning_is_taken_where_it_was_varied_too(tmp_path):
    folder = tmp_path / "pair" / "net"
    runs = study(folder, 5, 30, 0.6)
    varied = make(folder / "varied", "ft-b", 50)
    object.__setattr__(varied, "folder", folder / "ft-b+ft_lr=0.1" / "seed0")
    varied.run["row"]["settings"] = {"ft_lr": 0.1}
    (row,) = shift.shift_table([*runs, varied]).itertuples()
    assert row.difference == pytest.approx(macro_f1(5) - macro_f1(30))


def test_two_merged_rows_of_one_study_are_not_two_studies(tmp_path):
    folder = tmp_path / "pair" / "net"
    runs = study(folder, 5, 30, 0.6)
    again = make(folder / "more", "medmerge-b-c", 5)
    assert again.kernel_weights and len(again.predictions)
    object.__setattr__(again, "folder", folder / "medmerge-b-c+w_lr=0.1" / "seed0")
    assert len(shift.shift_table([*runs, again])) == 2
    with pytest.raises(RecordError, match="several rows of merged runs"):
        shift.association([*runs, again], 10)
