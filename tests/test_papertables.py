"""What the paper's tables can show: the entries are the paper's, the spread is that of predictions that are known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_report import study

from medmerge import data
from medmerge.pages import papertables
from medmerge.pages.papertables import TARGETS, Target
from medmerge.stats import evaluation, resampling
from medmerge.study import records

ROOT = Path(__file__).resolve().parents[1]
ENTRIES = ROOT / "book" / "paper-tables.csv"


@pytest.fixture(scope="module")
def table():
    return papertables.intervals(papertables.rows(ENTRIES))


def test_the_entries_are_the_papers(real_data):
    """Every row of both tables, in their order, as the text of the paper has them."""
    text = (real_data.parent / "paper" / "medmerge.txt").read_text(encoding="utf-8") + "\n"
    rows = papertables.rows(ENTRIES)
    place = 0
    for row in rows.itertuples():
        line = f"\t{row.target}\t{row.accuracy:.3f}\t{row.macro_f1:.3f}\n"
        place = text.index(line, place)
        before = text[text.rindex("\n", 0, place) + 1 : place].replace("\\mathbf", "").replace("{\\rm", "{")
        words = before.replace("$", "").replace("{", "").replace("}", "").replace(" (Ours)", "").split("\t")
        assert [word.strip() for word in words] == [row.approach, row.source]
    assert len(rows) == 30 and rows["table"].tolist() == ["1"] * 15 + ["A1"] * 15


def test_class_sizes_are_those_of_the_official_labels(real_data):
    isic = pd.read_csv(next((real_data / "isic2019").glob("*GroundTruth.csv")))
    assert {name: int(isic[name].sum()) for name in TARGETS["ISIC-2019"].counts} == TARGETS["ISIC-2019"].counts
    aptos = pd.read_csv(real_data / "aptos2019" / "train.csv")["diagnosis"].value_counts()
    assert {str(grade): int(count) for grade, count in aptos.sort_index().items()} == TARGETS["APTOS"].counts
    rsna = data.PAPER_NUMBERS["rsna"].why
    assert all(f"{count:,}" in rsna for count in TARGETS["RSNA-Pneumonia"].counts.values())


def test_test_sets_are_of_section_3():
    sizes = {name: int(target.tested.sum()) for name, target in TARGETS.items()}
    assert sizes == {"ISIC-2019": 5066, "APTOS": 366, "RSNA-Pneumonia": 1486}
    odd = Target({"a": 5, "b": 5, "c": 5}, 1 / 3)
    assert odd.tested.sum() == 5 and set(odd.tested) <= {1, 2}


def test_every_confusion_has_the_scores_that_were_printed(table):
    for row in table.itertuples():
        target = TARGETS[row.target]
        for matrix in papertables.confusions(target, row.accuracy, row.macro_f1):
            assert np.allclose(matrix.sum(1), 1) and (matrix > 0).all()
            cells = target.tested[:, None] * matrix
            assert np.trace(cells) / cells.sum() == pytest.approx(row.accuracy, abs=1e-3)
            f1 = 2 * np.diag(cells) / (cells.sum(0) + cells.sum(1))
            assert f1.mean() == pytest.approx(row.macro_f1, abs=1e-3)


@pytest.mark.parametrize(("accuracy", "macro_f1"), [(0.99, 0.2), (0.3, 0.9)])
def test_scores_that_cannot_be_are_refused(accuracy, macro_f1):
    with pytest.raises(ValueError, match=f"has accuracy {accuracy} and macro F1 {macro_f1}"):
        papertables.spread(TARGETS["APTOS"], accuracy, macro_f1)


@pytest.mark.parametrize(
    ("studies", "least", "most"), [("skin", 0.9, 1.1), ("skin-seeds", 0.9, 1.1), ("skin-leaky", 0.5, 2.5)]
)
def test_the_spread_is_that_of_predictions_that_are_known(studies, least, most):
    """On our own records: the standard error from two printed scores, beside the bootstrap's, as the page says."""
    found = records.gather(ROOT / "results" / "open", f"{studies}/densenet121/*/seed*")
    assert len(found) >= 5
    for record in found:
        labels, metrics = record.labels, record.run["metrics"]
        count = len(record.run["data"]["classes"])
        assert count == (8 if studies == "skin-leaky" else 3)
        target = Target({str(k): int((labels == k).sum()) for k in range(count)}, 1.0)
        ours = papertables.spread(target, metrics["accuracy"], metrics["macro_f1"])
        cells = evaluation.counted(labels, {"p": record.probabilities.argmax(1)[None]}, count)
        drawn = resampling.bootstrap(cells, 4000, np.random.default_rng(0))
        assert least < ours["error"] / drawn.std() < most, record.folder
        low, high = evaluation.bootstrap_interval(labels, record.probabilities.argmax(1)[None], count)
        assert least - 0.02 < (ours["high"] - ours["low"]) / (high - low) < most + 0.02


def test_comparisons_are_four_a_target_and_pairing_sees_more(table):
    alone, paired = (papertables.comparisons(table, together) for together in (0.0, 0.6))
    assert len(alone) == 24 and set(alone.groupby(["backbone", "target"]).size()) == {4}
    assert (paired["visible"] < alone["visible"]).all()
    first = table.iloc[[0, 4]]["error"]
    assert alone.iloc[0]["visible"] == pytest.approx(stats.norm.ppf(0.975) * np.hypot(*first))
    assert (paired["corrected"] / paired["visible"]).round(2).unique() == [1.57]
    seeds = papertables.comparisons(table, 0.6, 0.01)
    assert np.allclose((seeds["visible"] / 1.96) ** 2 - (paired["visible"] / 1.96) ** 2, 2e-4, rtol=1e-3)
    assert alone.iloc[0]["against"] == "FT ImageNet" and alone.iloc[0]["difference"] == 0.029


def test_togetherness_is_one_for_the_same_predictions(tmp_path):
    same = study(tmp_path / "same", 20, 20, 20)
    assert papertables.togetherness([same]) == pytest.approx(1)
    other = study(tmp_path / "other", 40, 45, 5)
    assert papertables.togetherness([other]) < 0.8


def test_claims_follow_the_numbers(table):
    found = papertables.claims(table).set_index("claim")["holds"]
    assert list(found) == ["yes", "in part", "in part", "no", "yes"]
    changed = table.copy()
    isic = (changed["target"] == "ISIC-2019") & (changed["source"] == "ImageNet") & (changed["approach"] == "LP-FT")
    changed.loc[isic, "macro_f1"] = 0.9
    again = papertables.claims(changed)
    assert again["holds"].iloc[3] == "yes"
    assert "LP-FT ImageNet" in again["numbers"].iloc[1] and "−0.186 on ISIC-2019" in again["numbers"].iloc[0]
    small = table[table["table"] == "1"].assign(macro_f1=0.5)
    assert papertables.gains(small)["1"] == dict.fromkeys(TARGETS, 0.0)


def test_the_chapters_sentence_is_computed(table):
    studies = papertables.complete_studies(ROOT / "results" / "open")
    assert all(len({run.label for run in runs}) == 5 for runs in studies)
    ways = papertables.ways(table, studies)
    text = papertables.summary(ways, papertables.seed_change(studies))
    for frame in ways.values():
        assert f"**{(frame['difference'] > frame['visible']).sum()}**" in text
    assert f"**{(ways['paired']['difference'] > 0).sum()} of 24**" in text
    needed = papertables.needed(ways["paired"])
    assert len(needed) == 6 and (needed["needed"].isna() == (needed["difference"] <= 0)).all()
    assert not (needed["needed"] < needed["images"]).any()
