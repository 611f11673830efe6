"""The second plan's verdicts on hand-made records, and its files as they stand."""

import numpy as np
import pandas as pd
import pytest
import test_report
from test_claims import BEST, FIVE, WORST, pair
from test_report import CLASSES, LABELS, make, predicted

from medmerge.pages import claims, second
from medmerge.pages.claims import BASELINES, FAILURE, SUPPORT, UNASSESSED
from medmerge.pages.figures.forest import answer
from medmerge.pages.second import FAST, LONG, OPEN, SLOW
from medmerge.stats import significance

KINDS = dict(zip((*BASELINES, SLOW, FAST, LONG), (*FIVE, "medmerge-b-c", "ft-b"), strict=True))
"""What a row is, and which record stands for it."""


@pytest.fixture(autouse=True)
def five_rows(monkeypatch):
    monkeypatch.setattr(test_report, "ROWS", FIVE)


def rows(folder, *errors: int, seeds=(1, 2, 3)) -> dict[str, list]:
    """A pair by what its rows are: errors of FT and LP-FT, each from either source, of MedMerge twice, and long FT."""
    found = {}
    for (kind, row), count in zip(KINDS.items(), errors, strict=True):
        found[kind] = [make(folder / kind, row, count, seed) for seed in seeds]
        for run in found[kind]:
            run.run["row"]["settings"] = {FAST: {"w_lr": 0.001}, LONG: {"ft_epochs": 100}}.get(kind, {})
    return found


def verdicts(**pairs) -> list[str]:
    return [claim.verdict for claim in second.decided({name.replace("_", "-"): one for name, one in pairs.items()})]


def test_one_row_of_medmerge_that_beats_all_is_enough(tmp_path):
    ahead = [rows(tmp_path / name, 45, 40, 45, 40, 40, 2, 45) for name in "ab"]
    # far more than 0.03: better than every baseline, and not the gain that the paper reports
    assert verdicts(skin_2=ahead[0], chest_2=ahead[1])[:2] == [SUPPORT, OPEN]
    behind = [rows(tmp_path / name, 2, 40, 45, 40, 45, 45, 45) for name in "cd"]
    assert verdicts(skin_2=behind[0], chest_2=behind[1])[:2] == [FAILURE, FAILURE]
    assert verdicts(skin_2=behind[0])[1] == OPEN, "both pairs must exclude the gain"


def test_probing_first_and_sources(tmp_path):
    assert verdicts(skin_2=rows(tmp_path / "a", 45, 45, 2, 2, 20, 20, 20))[2] == SUPPORT
    assert verdicts(skin_2=rows(tmp_path / "b", 2, 2, 45, 45, 20, 20, 20))[2] == FAILURE
    assert verdicts(skin_2=rows(tmp_path / "c", 20, 20, 20, 20, 20, 20, 20))[3] == UNASSESSED
    towards = rows(tmp_path / "d", 60, 5, 20, 20, 20, 20, 20)
    assert verdicts(skin_2=towards)[3] == SUPPORT, "w of the records is a third, towards c"
    assert verdicts(skin_2=rows(tmp_path / "e", 5, 60, 20, 20, 20, 20, 20))[3] == FAILURE
    for weights in towards[FAST][0].kernel_weights.values():
        weights[:] = 0.5
    assert verdicts(skin_2=towards)[3] == OPEN


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(0.01, 0.05, SUPPORT), (0.04, 0.08, OPEN), (-0.01, 0.05, OPEN), (-0.04, 0.02, FAILURE)],
)
def test_the_gain_is_supported_where_the_interval_is_above_0_and_holds_it(tmp_path, monkeypatch, low, high, outcome):
    table = pd.DataFrame({"row": [SLOW], "difference": [(low + high) / 2], "low": [low], "high": [high]})
    monkeypatch.setattr(second, "family", lambda rows: pd.concat([table.assign(against=kind) for kind in BASELINES]))
    one = rows(tmp_path, 45, 40, 45, 40, 40, 2, 45)
    assert second._gain({"skin-2": one, "chest-2": one})[1] == outcome


@pytest.mark.parametrize(
    ("difference", "error", "superior", "outcome"),
    [
        (-0.03, 0.005, "inferior", FAILURE),
        (0.0, 0.003, "not shown", FAILURE),  # equivalent
        (-0.01, 0.008, "not shown", OPEN),  # below +0.01 alone is neither
        (0.03, 0.005, "superior", SUPPORT),
    ],
)
def test_probing_first_is_refuted_where_it_is_inferior_or_equivalent(
    tmp_path, monkeypatch, difference, error, superior, outcome
):
    line = {"row": "LP-FT", "against": "FT", "difference": difference, "error": error, "superior": superior}
    table = pd.DataFrame([line | {"low": difference - 1.96 * error, "high": difference + 1.96 * error}] * 2)
    monkeypatch.setattr(second, "pooled", lambda tables: table)
    assert second._probing_first({"skin-2": rows(tmp_path, 45, 45, 45, 45, 20, 20, 20)})[1] == outcome


def test_two_seeds_decide_nothing(tmp_path):
    few = rows(tmp_path, 45, 40, 45, 40, 2, 2, 45, seeds=(1, 2))
    assert verdicts(skin_2=few) == [OPEN] * 4 and second.decided({"skin-2": few})[0].found == second.NOT_RUN


ONE, THREE = "On 1 medical target together", "On 3 medical targets together"


@pytest.mark.parametrize(
    ("first", "later", "begins"),
    [
        (WORST, None, f"**Not in our tests.** {THREE}"),
        (BEST, None, f"**Yes, on our data.** {THREE}"),
        (WORST, (45, 40, 45, 40, 45, 2, 45), f"**Yes, on our data.** {ONE}"),  # one row of MedMerge is enough
        (BEST, (5, 40, 5, 40, 45, 45, 40), f"**Not in our tests.** {ONE}"),
    ],
)
def test_the_answer_is_the_plans_where_a_pair_of_it_counts(tmp_path, monkeypatch, first, later, begins):
    pairs = [pair(tmp_path, first, name) for name in claims.CLEAN]
    found = rows(tmp_path / "later", *later) if later else {SLOW: []}
    monkeypatch.setattr(claims, "pairs", lambda network: pairs if network == "densenet121" else [])
    monkeypatch.setattr(second, "pair", lambda name: found if name == "skin-2" else {SLOW: []})
    table = second.compared()
    assert len(table) == 4 + 12 + 12 * bool(later) and table["whole"].sum() == 4 + 4 * bool(later)
    told = second.told(table, 0.8)
    assert told["answer"].startswith(begins)
    assert told["use"].startswith("If you can pay" if "Yes" in begins else "Fine-tune each")
    assert ("as [planned before the runs]" if later else "0 of 6 seeds") in told["sure"]
    assert answer(table, 0.03, 0.01).alt.count("pooled: ") == table["whole"].sum()
    if not later:
        unsure = second.told(table.assign(low=-0.05, high=0.05, random_low=-0.05, random_high=0.05), 0.8)
        assert unsure["answer"].startswith("**We cannot tell yet.**") and "no longer left out" in unsure["sure"]


def test_what_too_few_seeds_say_is_described(tmp_path):
    few = rows(tmp_path, 30, 25, 20, 15, 10, 12, 28, seeds=(1,))
    found = second.described({"skin-2": few, "chest-2": {SLOW: []}})
    assert len(found) == 10 and set(found["pair"]) == {"Skin lesions, second round"} and set(found["seeds"]) == {"1"}
    assert found["difference"].str.fullmatch(r"[+−]0\.\d{3} \(.* to .*\)").all()


def test_a_family_without_ft_of_twice_the_epochs_has_eight_comparisons(tmp_path):
    kinds = [kind for kind in KINDS if kind != LONG]
    few = {kind: runs for kind, runs in rows(tmp_path, 45, 40, 45, 40, 40, 2, 45).items() if kind in kinds}
    table = second.family(few)
    assert len(table) == 8 and table["p_holm"].min() == pytest.approx(8 * table["p"].min())
    assert (table.query("row == @FAST")["superior"] == "superior").all()


def test_a_family_is_both_rows_and_the_spread_is_that_of_all_rows(tmp_path):
    one = rows(tmp_path, 30, 25, 20, 15, 10, 12, 28)
    table = second.family(one)
    assert len(table) == 10 and set(table["against"]) == {*BASELINES, LONG} and set(table["row"]) == {SLOW, FAST}
    scores = [[run.run["metrics"]["macro_f1"] for run in runs] for runs in one.values()]
    spread = significance.seed_spread(scores), 7 * 2
    a, b = (np.stack([predicted(count, seed) for seed in (1, 2, 3)]) for count in (10, 30))
    found = significance.over_seeds(LABELS, a, b, len(CLASSES), spread=spread)
    line = table.query("row == @SLOW and against == 'FT from the base'").iloc[0]
    assert (line["low"], line["high"]) == (found.low, found.high)
    alone = significance.over_seeds(LABELS, a, b, len(CLASSES))
    images = alone.error**2 - np.var([x - y for x, y in zip(scores[4], scores[0], strict=True)], ddof=1) / 3
    assert found.error**2 == pytest.approx(images + 2 * spread[0] ** 2 / 3) and found.freedom > 14
    assert table["p_holm"].min() == pytest.approx(10 * table["p"].min())


def test_the_files_ask_for_every_row():
    for name, network in second.PLANNED:
        assert set(second.pair(name, network)) == {
            *BASELINES,
            SLOW,
            FAST,
            *([LONG] if network == "densenet121" else []),
        }
    assert claims.GAIN == 0.03
