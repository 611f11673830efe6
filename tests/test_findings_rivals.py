"""MedMerge against rivals and controls: which runs are compared, over which seeds, in which family."""

from pathlib import Path

import pandas as pd
import pytest
import test_report
from test_findings import FIVE, pair
from test_report import make

from medmerge.approaches.paper import CORE
from medmerge.approaches.rivals import RIVALS
from medmerge.pages import findings, findings_rivals, planned, report
from medmerge.study import notebooks as pages
from medmerge.study.records import RecordError

ROOT = Path(__file__).resolve().parents[1]
ROWS = {
    "average-b-c": ("average", "Average", ["b", "c"]),
    "soup-b-c": ("soup", "Soup", ["b", "c"]),
    "fixed_w-b-c": ("fixed_w", "Merge, w fixed", ["b", "c"]),
}


@pytest.fixture(autouse=True)
def these_rows(monkeypatch):
    monkeypatch.setattr(test_report, "ROWS", {**FIVE, **ROWS})


def made(folder: Path, errors: dict[str, int], seeds=(1, 2)) -> report.Rows:
    """Rows by label, with so many errors each."""
    runs = {row: [make(folder, row, count, seed) for seed in seeds] for row, count in errors.items()}
    return {one[0].label: one for one in runs.values()}


def test_a_row_is_compared_over_the_seeds_that_it_has(tmp_path):
    found = made(tmp_path, {"medmerge-b-c": 20, "average-b-c": 30, "soup-b-c": 10})
    found["Average b + c"].pop(0)
    table = findings_rivals.compared(found, ["Average b + c", "Soup b + c"], 0.01).set_index("against")
    assert list(table["seeds"]) == [1, 2]
    average, soup = (table.loc[f"{name} b + c"] for name in ("Average", "Soup"))
    (alone,) = found["Average b + c"]
    merged = found["MedMerge b + c"]
    assert average["mean"] == alone.run["metrics"]["macro_f1"]
    assert average.difference == pytest.approx(merged[1].run["metrics"]["macro_f1"] - average["mean"])
    assert average.difference > 0 > soup.difference
    raw = [report.compare(merged[1:], [alone]).p_value, report.compare(merged, found["Soup b + c"]).p_value]
    assert table["p_holm"].min() == pytest.approx(2 * min(raw)), "two comparisons a family"
    expected = planned.difference(merged, found["Soup b + c"], soup.p_holm, 0.01)
    assert soup[list(expected)].to_dict() == expected


def test_other_test_images_are_refused(tmp_path):
    found = made(tmp_path, {"medmerge-b-c": 20, "soup-b-c": 10})
    found["Soup b + c"][0].run["data"]["fingerprint"] = "0" * 64
    with pytest.raises(RecordError, match="was tested on other images than"):
        findings_rivals.compared(found, ["Soup b + c"], None)


def test_rivals_and_controls_are_two_families(tmp_path):
    found = made(tmp_path, {"medmerge-b-c": 20, "average-b-c": 30, "fixed_w-b-c": 21, "ft-b": 40})
    found["Soup b + c"] = []
    scores = pd.DataFrame({"control": ["learnt", "shuffled", "start"], "draw": 0, "score": [0.75, 0.625, 0.5]})
    vars(found["MedMerge b + c"][0])["controls"] = scores.assign(reestimated=0.5)
    said = findings_rivals.text(pair(tmp_path / "five", (45, 40, 45, 40, 20), "skin-seeds"), found)
    rivals, others, sentence, missing = said.split("\n\n")
    assert rivals.startswith("| MedMerge minus rival |") and rivals.count("\n") == 2
    assert "| Average b + c | 0." in rivals
    assert others.startswith("| MedMerge minus control |") and others.count("\n") == 2
    assert "| Merge, w fixed b + c | 0." in others and "FT b" not in said and "one seed" not in said
    assert "is **0.750**: above what" in sentence and missing == "Not run: Soup b + c."


def test_without_the_merge_nothing_is_answered(tmp_path):
    one = pair(tmp_path, (45, 40, 45, 40, 20), "skin-seeds")
    assert findings_rivals.text(one, made(tmp_path, {"soup-b-c": 10})).startswith("**Not answered.**")
    only = made(tmp_path / "only", {"medmerge-b-c": 20})
    assert "No rival has been run." in findings_rivals.text(one, only)


def test_a_row_of_one_seed_is_described(tmp_path):
    one = pair(tmp_path / "five", (45, 40, 45, 40, 20), "skin-seeds")
    found = made(tmp_path, {"medmerge-b-c": 5, "soup-b-c": 45}, seeds=(1,))
    (line,) = [line for line in findings_rivals.text(one, found).splitlines() if line.startswith("| Soup b + c |")]
    assert line.endswith("| one seed | – |") and "superior" not in line


def test_the_files_share_a_pair_and_ask_for_every_rival_and_control():
    asked, five = set(), findings.pair(*findings_rivals.PAIR).p
    for name in findings_rivals.FILES:
        path = ROOT / f"params/open/{name}.yaml"
        p = pages.parameters(path)
        own = ("title", "note", "approaches", "vary", "seeds")
        assert {**p.model_dump(), **dict.fromkeys(own)} == {**five.model_dump(), **dict.fromkeys(own)}, name
        asked |= set(p.approaches)
    assert asked == {*RIVALS, "ft", "lp_ft", *findings_rivals.OWN} and set(findings_rivals.OWN) <= set(CORE)


def test_another_start_that_changes_nothing_is_said_to(tmp_path):
    one = pair(tmp_path / "five", (45, 40, 45, 40, 20), "skin-seeds")
    found = made(tmp_path, {"medmerge-b-c": 20})
    again = [make(tmp_path / "again", "medmerge-b-c", 20, seed) for seed in (1, 2)]
    for run in again:
        run.run["row"]["settings"] = {"batchnorm": "reestimated"}
    found[again[0].label] = again
    said = (
        "MedMerge b + c (batchnorm reestimated) predicts what MedMerge does, to the last digit: with free batch norms"
    )
    assert said in findings_rivals.text(one, found)
    again[1].predictions.loc[0, "p_a"] += 1e-9
    assert said not in findings_rivals.text(one, found)
