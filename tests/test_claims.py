"""The plan's claims, on hand-made records whose answers are known, and on the files and records of the repository."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import test_report
from sklearn.metrics import f1_score
from test_report import make

from medmerge.approaches import CORE, RIVALS
from medmerge.data import split_files
from medmerge.pages import agreement, claims, explanations, papertables, second
from medmerge.pages.claims import FAILURE, SUPPORT, UNASSESSED, UNDECIDED, Pair
from medmerge.pages.contrast import contrast
from medmerge.study import definitions
from medmerge.study import notebooks as pages
from medmerge.study.run import finished

ROOT = Path(__file__).resolve().parents[1]
FIVE = {
    "ft-b": ("ft", "FT", ["b"]),
    "ft-c": ("ft", "FT", ["c"]),
    "lp_ft-b": ("lp_ft", "LP-FT", ["b"]),
    "lp_ft-c": ("lp_ft", "LP-FT", ["c"]),
    "medmerge-b-c": ("medmerge", "MedMerge", ["b", "c"]),
}
BEST, EVEN, WORST = (45, 40, 45, 40, 5), (20, 20, 20, 20, 20), (5, 40, 5, 40, 45)
"""Errors of the five rows in order: the merge far ahead, all alike, the merge far behind."""


@pytest.fixture(autouse=True)
def five_rows(monkeypatch):
    monkeypatch.setattr(test_report, "ROWS", FIVE)


def pair(folder: Path, errors: tuple[int, ...], name: str = "chest", seeds=(1, 2, 3)) -> Pair:
    """Errors of each row; w of the merge has a mean below 0.5, towards c."""
    made = [make(folder / name, row, count, k) for row, count in zip(FIVE, errors, strict=True) for k in seeds]
    p = SimpleNamespace(base_data="b", source_data="c", seeds=[1, 2, 3], backbone="densenet121")
    return Pair(name, p, tuple(made), len(made), 15)


def verdicts(*found: Pair) -> list[str]:
    return [claim.verdict for claim in claims.claims(found)]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ((BEST, BEST, BEST), SUPPORT),
        ((BEST, BEST, WORST), FAILURE),
        ((EVEN, BEST, BEST), FAILURE),  # equal runs are equivalent within any margin
    ],
)
def test_beating_the_baselines(tmp_path, errors, expected):
    found = [pair(tmp_path, each, name) for name, each in zip(claims.CLEAN, errors, strict=True)]
    assert verdicts(*found)[0] == expected
    (claim, *_) = claims.claims(found)
    assert (
        claim.found.count("; ") == 2 and "Skin lesions: superior to 4, inferior to 0" in claim.found or EVEN in errors
    )


def test_support_needs_every_pair_and_failure_any(tmp_path):
    few = pair(tmp_path, BEST, "retina", seeds=(1,))
    assert not few.counts and few.seeds == (1,)
    best, worst = pair(tmp_path, BEST), pair(tmp_path, WORST, "skin-seeds")
    assert verdicts(best, few)[0] == UNASSESSED and verdicts(worst, few)[0] == FAILURE
    assert "retina" not in claims.claims([best, few])[0].found
    assert verdicts(few) == [UNDECIDED] * 4 and claims.claims([few])[0].found == "no pair has the seeds that it needs"


@pytest.mark.parametrize(
    ("low", "high", "whole", "expected"),
    [
        (0.01, 0.05, True, SUPPORT),
        (-0.01, 0.05, True, UNDECIDED),
        (0.031, 0.05, True, UNDECIDED),
        (-0.02, 0.029, True, FAILURE),
        (-0.02, 0.029, False, UNDECIDED),
    ],
)
def test_a_gain_of_three_percent(tmp_path, low, high, whole, expected):
    one, few = pair(tmp_path, BEST), pair(tmp_path, BEST, "retina", seeds=(1,))
    vars(one)["comparisons"] = one.comparisons.assign(low=low, high=high)
    assert verdicts(*([one] if whole else [one, few]))[1] == expected


def test_linear_probing_first(tmp_path):
    above, below = (60, 60, 5, 5, 10), (5, 5, 60, 60, 10)
    one, other = (pair(tmp_path, above, name) for name in ("chest", "retina"))
    assert verdicts(one, other)[2] == SUPPORT and verdicts(one)[2] == UNASSESSED
    assert verdicts(*(pair(tmp_path / "b", below, name) for name in ("chest", "retina")))[2] == FAILURE
    mixed = pair(tmp_path / "m", (60, 5, 5, 60, 10), "skin-seeds")
    assert verdicts(one, mixed)[2] == UNASSESSED and verdicts(one, mixed, other)[2] == SUPPORT
    table = claims.probing_first(mixed)
    assert list(table["source"]) == ["b", "c"] and list(table["superior"]) == ["superior", "inferior"]
    assert table["p_holm"].min() == pytest.approx(2 * table["p"].min()), "two comparisons a family"


def test_weights_shift_to_the_better_source(tmp_path):
    towards, away = (40, 20, 30, 30, 10), (20, 40, 30, 30, 10)
    one = pair(tmp_path, towards)
    claim = claims.claims([one])[3]
    assert claim.verdict == SUPPORT and claim.found.endswith("; mean w of b by seed 0.3333, 0.3333, 0.3333")
    b, c = (np.mean([r.run["metrics"]["macro_f1"] for r in one.row("ft", source)]) for source in "bc")
    assert f"FT is better from c by {c - b:.3f} (margin {one.margin:.3f});" in claim.found
    assert verdicts(one, pair(tmp_path, away, "retina"))[3] == FAILURE
    for weights in one.row("medmerge")[0].kernel_weights.values():
        weights[:] = 0.75
    assert verdicts(one)[3] == UNDECIDED, "one seed of three went the other way"


def test_weights_that_hardly_moved_say_nothing(tmp_path):
    one = pair(tmp_path, (40, 20, 30, 30, 10))
    for run in one.row("medmerge"):
        for weights in run.kernel_weights.values():
            weights[:] = 0.5 - claims.SHIFT / 2
    assert verdicts(one)[3] == UNASSESSED
    assert verdicts(pair(tmp_path, (20, 20, 30, 30, 10), "retina"))[3] == UNASSESSED, "no source is better"


def test_pooling_learning_and_pace(tmp_path):
    found = [pair(tmp_path, errors, name) for errors, name in ((BEST, "chest"), (WORST, "retina"))]
    table = second.first_pooled(found)
    assert tuple(table["against"]) == claims.BASELINES and set(table["pairs"]) == {2}
    low, high = (one.comparisons.set_index("against").loc["FT b", "difference"] for one in reversed(found))
    assert low < table["difference"][0] < high
    scores = {"control": ["learnt", "start", "start"], "score": [0.5, 0.4, 0.46], "reestimated": 0.0}
    gain = agreement.learning(
        [SimpleNamespace(controls=pd.DataFrame(scores), folder=Path("chest/densenet121/m/s"), run={"seed": 1})] * 2
    )
    assert (gain["runs"], gain["difference"]) == (2, pytest.approx(0.07)) and gain["low"] == pytest.approx(gain["high"])
    steady = {"a": 0.5 + 0.01 * np.array([[1, -1], [2, -2], [3, -3], [4, -4]])}
    run = SimpleNamespace(neutral=0.5, kernel_history=(np.arange(1, 5), steady))
    assert agreement.pace(run) == pytest.approx((0.04, 0.5))
    choices = [{"soup": ["FT b"]}, {"soup": ["FT b", "FT c"]}, {"coefficient": 0.0}, {"coefficient": 0.3}, {}]
    rivals = {str(k): [SimpleNamespace(run={"choices": one})] for k, one in enumerate(choices)}
    assert explanations.copies(rivals) == {"0": "FT b", "2": "coefficient 0"}


# ---------------------------------------------------------------- the files of the plan


def test_the_plans_files_are_here_and_ask_for_what_it_says():
    for name, backbone in claims.PLANNED:
        one = claims.pair(name, backbone)
        assert one.p.backbone == backbone and one.asked == 15, name
        assert one.p.seeds == list(claims.SEEDS) or one.p.seeds == list(one.seeds), "fewer only where they were run"
        assert {record.run["parameters"]["pair"] for record in one.records} <= {one.p.pair}
    plan = (ROOT / "book/plan.md").read_text(encoding="utf-8")
    table = [
        line.split("|")[2].strip(" `") for line in plan.splitlines() if line.startswith(("| skin", "| chest", "| ret"))
    ]
    assert table == [*claims.CLEAN, claims.LEAKY], "the plan's order"


def test_a_seed_counts_when_all_rows_have_it(tmp_path, monkeypatch):
    path = ROOT / "params/open/chest.yaml"
    p, there = pages.parameters(path), []
    rows = definitions.rows(p)
    there += [(row.name, 1) for row in rows] + [(rows[0].name, 2)]
    made = {one: make(tmp_path, "ft-b", 1, one[1]) for one in there}
    monkeypatch.setattr(claims, "finished", lambda p, row, seed: made.get((row.name, seed)))
    one = claims.pair.__wrapped__("chest")
    assert one.seeds == (1,) and len(one.records) == 5 and one.begun == 6 and not one.counts


def test_failures_stand_first(tmp_path):
    failed, few = pair(tmp_path, WORST), pair(tmp_path, EVEN, "retina", seeds=(1,))
    said = claims.verdict([failed, few])
    assert "Chest X-rays (3 seeds)" in said and "Not run with enough seeds: Fundus photographs; what needs all" in said
    assert said.index("Found not to hold:** MedMerge beats") < said.index("Cannot be assessed from these runs:**")
    assert "nothing is decided yet" in claims.verdict([few])


def test_rows_stand_beside_the_papers_in_its_order(tmp_path):
    paper = papertables.rows(ROOT / "book/paper-tables.csv")
    table = claims.beside_the_paper(pair(tmp_path, EVEN, "retina"), paper)
    assert list(table["label"]) == ["FT b", "FT c", "LP-FT b", "LP-FT c", "MedMerge b + c"]
    assert table["paper"].iloc[0] == 0.639, "the paper's row of APTOS"
    assert set(table["pair"]) == {"Fundus photographs, DenseNet-121"}


def test_how_much_the_source_has_seen_is_said(tmp_path):
    leaky = pair(tmp_path, BEST, "skin-leaky")
    (merge, *_) = leaky.row("medmerge")
    assert "**The contaminated arm has no overlap**" in explanations.seen(leaky)
    merge.run["data"]["overlap"] = {"c": {"images": {"train": 9, "test": 30}, "groups": {"test": 5}, "allowed": True}}
    said = explanations.seen(leaky)
    assert said.startswith(
        "Of the contaminated arm's 100 test images, c has been trained or validated on 30 (30\N{NO-BREAK SPACE}%), and"
    )
    assert said.endswith("for 5 more.")


def test_what_having_seen_an_image_is_worth(tmp_path):
    """The rows of c are right wherever c has learnt from the image, and elsewhere as good as FT from b."""
    leaky = pair(tmp_path, EVEN, "skin-leaky")
    split = {str(k): ["train", "test", "val"][k % 4] for k in range(100) if k % 4 < 3}
    learnt = (leaky.records[0].predictions["id"].map(split) == "train").to_numpy()
    for record in leaky.records:
        if "c" in record.run["row"]["sources"]:
            shown = record.predictions.iloc[:, 2:].to_numpy()
            shown[learnt] = np.eye(3)[record.labels[learnt]]
            record.predictions.iloc[:, 2:] = shown
    found = explanations.worth(leaky, split).set_index("row")
    assert list(found.index) == ["FT c", "LP-FT b", "LP-FT c", "MedMerge b + c"]
    check = found.loc["LP-FT b"]
    assert check["learnt_difference"] == check["held_out_difference"] == check["difference"] == 0
    rest = found.drop(index="LP-FT b")
    assert (rest["held_out_difference"] == 0).all() and (rest["difference"] == rest["learnt_difference"]).all()
    assert ((0 < rest["low"]) & (rest["low"] < rest["difference"]) & (rest["difference"] < rest["high"])).all()
    plain = leaky.row("ft", "b")
    alone = [f1_score(run.labels[learnt], run.probabilities[learnt].argmax(1), average="macro") for run in plain]
    assert rest["learnt_difference"].iloc[-1] == pytest.approx(1 - np.mean(alone))


def test_the_split_of_the_contaminated_arms_source():
    leaky, source = (
        pages.parameters(ROOT / f"params/open/{name}.yaml") for name in ("skin-leaky", explanations.LEAKY_SOURCE)
    )
    assert source.save_weights == leaky.source_weights and source.target_data == leaky.source_data
    split = explanations.source_split()
    (trained,) = [finished(source, row, seed) for row in definitions.rows(source) for seed in source.seeds]
    assert split_files.fingerprint(list(split), list(split.values())) == trained.run["data"]["split"]["fingerprint"]
    assert Counter(split.values()) == trained.run["data"]["images"]
    merge = claims.pair("skin-leaky").row("medmerge")[0]
    met = merge.predictions["id"].map(split).isin(["train", "val"]).sum()
    assert met == merge.run["data"]["overlap"]["ham10k"]["images"]["test"], "as counted from the weights' own list"


# ---------------------------------------------------------------- rivals and controls

RIVAL_ROWS = {
    "average-b-c": ("average", "Average", ["b", "c"]),
    "soup-b-c": ("soup", "Soup", ["b", "c"]),
    "fixed_w-b-c": ("fixed_w", "Merge, w fixed", ["b", "c"]),
}


def made(folder: Path, errors: dict[str, int], seeds=(1, 2)) -> dict[str, list]:
    """Rows by label, with so many errors each."""
    runs = {row: [make(folder, row, count, seed) for seed in seeds] for row, count in errors.items()}
    return {one[0].label: one for one in runs.values()}


@pytest.fixture
def rivals(monkeypatch):
    monkeypatch.setattr(test_report, "ROWS", {**FIVE, **RIVAL_ROWS})


def test_a_row_is_compared_over_the_seeds_that_it_has(tmp_path, rivals):
    found = made(tmp_path, {"medmerge-b-c": 20, "average-b-c": 30, "soup-b-c": 10}) | {"FT b": []}
    found["Average b + c"].pop(0)
    table = explanations.held_against(found, ["Average b + c", "Soup b + c", "FT b"], 0.01).set_index("against")
    assert list(table.index) == ["Average b + c", "Soup b + c"] and list(table["seeds"]) == [1, 2]
    average, soup = (table.loc[f"{name} b + c"] for name in ("Average", "Soup"))
    (alone,) = found["Average b + c"]
    merged = found["MedMerge b + c"]
    assert average["mean"] == alone.run["metrics"]["macro_f1"]
    assert average.difference == pytest.approx(merged[1].run["metrics"]["macro_f1"] - average["mean"])
    assert average.difference > 0 > soup.difference
    assert table["p_holm"].min() == pytest.approx(2 * table["p"].min()), "two comparisons a family"
    (expected,) = contrast([({}, merged, found["Soup b + c"])], "seeds", 0.01).to_dict("records")
    same = ("difference", "low", "high", "p", "equivalence")
    assert soup[list(same)].to_dict() == {name: expected[name] for name in same}


def test_the_files_share_a_pair_and_ask_for_every_rival_and_control():
    asked, five = set(), claims.pair("skin-seeds", "mobilenet_v2").p
    for name in explanations.FURTHER:
        path = ROOT / f"params/open/{name}.yaml"
        p = pages.parameters(path)
        own = ("notebook", "title", "note", "approaches", "vary", "seeds")
        assert {**p.model_dump(), **dict.fromkeys(own)} == {**five.model_dump(), **dict.fromkeys(own)}, name
        asked |= set(p.approaches)
    assert asked - set(RIVALS) <= set(CORE) and {*RIVALS, "ft", "lp_ft", "medmerge", "fixed_w"} <= asked


def test_another_start_that_changes_nothing_is_found(tmp_path, rivals):
    found = made(tmp_path, {"medmerge-b-c": 20})
    again = [make(tmp_path / "again", "medmerge-b-c", 20, seed) for seed in (1, 2)]
    for run in again:
        run.run["row"]["settings"] = {"batchnorm": "reestimated"}
    found[again[0].label] = again
    assert explanations.unchanged(found) == ["MedMerge b + c (batch norm reestimated)"]
    again[1].predictions.loc[0, "p_a"] += 1e-9
    assert explanations.unchanged(found) == []
