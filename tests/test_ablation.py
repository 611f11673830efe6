"""An ablation's tables and sentences, on hand-made records whose scores are known."""

import numpy as np
import pandas as pd
import pytest
from test_report import CLASSES, LABELS, macro_f1, make, predicted

from medmerge.pages import ablation, report, weights
from medmerge.pages.contrast import against
from medmerge.pages.figures import curves
from medmerge.pages.figures.forest import forest
from medmerge.stats import evaluation
from medmerge.study import records
from medmerge.study.records import RecordError


def probabilities(errors: int) -> np.ndarray:
    found = np.full((len(LABELS), 3), 0.1)
    found[np.arange(len(LABELS)), predicted(errors)] = 0.8
    return found


def variant(folder, errors: int, after_probe: int, seed: int = 0, tuned: bool = True, **settings):
    """A MedMerge record with settings, which made so many errors at the end and after its probe."""
    own = make(folder / "study", "medmerge-b-c", errors, seed)
    at_probe = probabilities(after_probe)
    run = {
        **own.run,
        "row": {**own.run["row"], "settings": settings},
        "parameters": {**own.run["parameters"], "batchnorm_free": "both", "w_lr": None, **settings},
        "stages": {"linear_probe": evaluation.metrics(LABELS, at_probe, CLASSES)},
        "cost": {"linear_probe": {"seconds": 1.0}, **({"fine_tune": {"seconds": 1.0}} if tuned else {})},
    }
    name = "row" + "".join(f"+{key}={value}" for key, value in settings.items())
    table = records.prediction_frame([str(i) for i in range(len(LABELS))], LABELS, at_probe, CLASSES)
    history, final = own.history, own.predictions
    tables = {"predictions_linear_probe": table}
    return records.write(folder / name / f"seed{seed}", run, history, final, own.kernel_weights, tables=tables)


@pytest.fixture
def pair(tmp_path):
    return [variant(tmp_path, 5, 10), variant(tmp_path, 25, 40, batchnorm_free="none")]


def test_scores_are_those_of_each_stage(pair):
    table = ablation.scores(pair).set_index(["batchnorm_free", "stage"])
    expected = {("both", ablation.PROBE): 10, ("none", ablation.PROBE): 40, ("both", ablation.END): 5}
    for where, errors in {**expected, ("none", ablation.END): 25}.items():
        assert table.loc[where, "mean"] == pytest.approx(macro_f1(errors))
        assert table.loc[where, "low"] < table.loc[where, "mean"] < table.loc[where, "high"]


def test_each_row_is_compared_with_the_studys_own(pair):
    table = ablation.differences(pair).set_index("stage")
    assert list(table["reference"]) == ["MedMerge b + c"] * 2 and list(table.index) == list(ablation.STAGES)
    assert table.loc[ablation.END, "difference"] == pytest.approx(macro_f1(25) - macro_f1(5))
    assert table.loc[ablation.PROBE, "difference"] == pytest.approx(macro_f1(40) - macro_f1(10))
    np.testing.assert_allclose(table["p_holm"], evaluation.holm(table["p"]))
    said = ablation.verdict(pair)
    assert said.count("1 of 1 rows is significantly (5 %, Holm) worse") == 2 and "none better" in said


def test_without_the_studys_own_row_the_first_is_the_reference(tmp_path):
    runs = [variant(tmp_path, errors, 10, w_lr=rate) for errors, rate in ((5, 0.1), (6, 0.2), (7, 0.3))]
    assert set(ablation.references(runs).values()) == {"MedMerge b + c (rate of w 0.1)"}


def test_a_stage_that_did_not_happen_is_not_shown(tmp_path):
    runs = [variant(tmp_path, 10, 10, tuned=False), variant(tmp_path, 12, 12, tuned=False, batchnorm_free="none")]
    assert set(ablation.scores(runs)["stage"]) == {ablation.PROBE} == set(ablation.differences(runs)["stage"])
    assert "after fine-tuning" not in ablation.verdict(runs).lower()


def test_cells_and_histories_are_what_figures_take(pair, tmp_path):
    drawn = ablation.cells(pair)
    assert list(drawn["first"]) == ["both", "none"] * 2 and set(drawn["second"]) == {""}
    assert set(drawn["stage"]) == {"test, after the probe", "test, after fine-tuning"}
    assert "none" in forest(drawn, "first", xlabel="macro F1", hue="second", panel="stage").alt
    probes = ablation.probe_histories(pair)
    assert list(probes["first"]) == ["both"] * 3 + ["none"] * 3 and list(probes["score"]) == [0.1, 0.4, 0.4] * 2
    assert "at most 0.4" in curves.curves(probes, "epoch", "score", hue="first", xlabel="epoch", ylabel="F1").alt
    two = [variant(tmp_path, 9, 9, batchnorm_free=free, w_lr=rate) for free in ("both", "none") for rate in (0.1, 0.2)]
    assert list(ablation.cells(two)["second"].unique()) == ["0.1", "0.2"]
    assert set(ablation.probe_histories(two)["second"]) == {"0.1", "0.2"}


def test_tables_have_a_line_a_row_and_one_a_difference(pair):
    assert [run.label for run in pair] == ["MedMerge b + c", "MedMerge b + c (free in batch norm: none)"]
    scores, differences = ablation.score_table(pair), report.difference_table(ablation.differences(pair))
    assert list(scores["free in batch norm"]) == ["both", "none"] and len(differences) == 2
    assert scores.loc[0, "test, after fine-tuning"].startswith(f"{macro_f1(5):.3f} (")
    assert list(differences["minus"]) == ["MedMerge b + c"] * 2


def test_one_row_is_nothing_to_compare(pair):
    assert ablation.verdict(pair[:1]) == "There is one row alone: nothing to compare."
    assert ablation.differences(pair[:1]).empty and len(ablation.score_table(pair[:1])) == 1


def test_a_pairs_comparison_takes_the_studys_own_row_for_its_approach(pair):
    assert list(against(pair)["against"]) == [pair[1].label]
    assert list(against(pair, pair[1].label)["against"]) == [pair[0].label]
    with pytest.raises(RecordError, match="0 rows of 'ft'"):
        against(pair, "ft")


CONTROLS = pd.DataFrame(
    [("learnt", 0, 0.5, 0.6), ("start", 0, 0.4, 0.5), ("shuffled", 0, 0.45, 0.55), ("shuffled", 1, 0.48, 0.5)],
    columns=["control", "draw", "score", "reestimated"],
)


@pytest.mark.parametrize(("learnt", "said"), [(0.5, "above"), (0.46, "within the range of"), (0.2, "below")])
def test_the_sentence_on_controls_follows_the_scores(learnt, said):
    table = CONTROLS.assign(score=CONTROLS["score"].where(CONTROLS["control"] != "learnt", learnt))
    sentence = weights.control_sentence(weights.control_summary(table))
    assert f"**{learnt:.3f}**: {said} what the same weights reach" in sentence and "0.450 to 0.480 over 2" in sentence
