"""The plan's claims, on hand-made records whose answers are known, and on the files and records of the repository."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import test_report
from sklearn.metrics import f1_score
from test_report import make

from medmerge.data import split_files
from medmerge.pages import findings, findings_leak, findingspage, planned, report
from medmerge.pages.findings import FAILURE, SUPPORT, UNDECIDED, Pair
from medmerge.study import definitions
from medmerge.study import notebooks as pages
from medmerge.study import run as study

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
    p = SimpleNamespace(base_data="b", source_data="c", seeds=[1, 2, 3])
    return Pair(name, p, tuple(made), len(made), 15)


def verdicts(*found: Pair) -> list[str]:
    return [claim.verdict for claim in findings.claims(found)]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ((BEST, BEST, BEST), SUPPORT),
        ((BEST, BEST, WORST), FAILURE),
        ((EVEN, BEST, BEST), FAILURE),  # equal runs are equivalent within any margin
    ],
)
def test_beating_the_baselines(tmp_path, errors, expected):
    found = [pair(tmp_path, each, name) for name, each in zip(findings.CLEAN, errors, strict=True)]
    assert verdicts(*found)[0] == expected
    (claim, *_) = findings.claims(found)
    assert claim.found.count("; ") == 2 and "skin-seeds: superior to 4, inferior to 0" in claim.found or EVEN in errors


def test_support_needs_every_pair_and_failure_any(tmp_path):
    few = pair(tmp_path, BEST, "retina", seeds=(1,))
    assert not few.counts and few.seeds == (1,)
    best, worst = pair(tmp_path, BEST), pair(tmp_path, WORST, "skin-seeds")
    assert verdicts(best, few)[0] == UNDECIDED and verdicts(worst, few)[0] == FAILURE
    assert "retina" not in findings.claims([best, few])[0].found
    assert verdicts(few) == [UNDECIDED] * 4 and findings.claims([few])[0].found == "no pair has the seeds that it needs"


@pytest.mark.parametrize(
    ("low", "high", "whole", "expected"),
    [
        (0.01, 0.05, True, SUPPORT),
        (0.01, 0.03, True, SUPPORT),
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


def test_the_gain_is_over_the_best_baseline(tmp_path):
    claim = findings.claims([pair(tmp_path, (30, 25, 20, 10, 9))])[1]
    assert claim.found.endswith("of LP-FT c") and claim.found.startswith("chest: +0.0")


def test_linear_probing_first(tmp_path):
    above, below = (60, 60, 5, 5, 10), (5, 5, 60, 60, 10)
    one, other = (pair(tmp_path, above, name) for name in ("chest", "retina"))
    assert verdicts(one, other)[2] == SUPPORT and verdicts(one)[2] == UNDECIDED
    assert verdicts(*(pair(tmp_path / "b", below, name) for name in ("chest", "retina")))[2] == FAILURE
    mixed = pair(tmp_path / "m", (60, 5, 5, 60, 10), "skin-seeds")
    assert verdicts(one, mixed)[2] == UNDECIDED and verdicts(one, mixed, other)[2] == SUPPORT
    table = findings.probing_first(mixed)
    assert list(table["source"]) == ["b", "c"] and list(table["superior"]) == ["superior", "inferior"]
    raw = [report.compare(mixed.row("lp_ft", s), mixed.row("ft", s)).p_value for s in "bc"]
    assert table["p_holm"].min() == pytest.approx(2 * min(raw)), "two comparisons a family"


def test_weights_shift_to_the_better_source(tmp_path):
    towards, away = (40, 20, 30, 30, 10), (20, 40, 30, 30, 10)
    one = pair(tmp_path, towards)
    claim = findings.claims([one])[3]
    assert claim.verdict == SUPPORT and claim.found.endswith("; mean w of b by seed 0.3333, 0.3333, 0.3333")
    b, c = (np.mean([r.run["metrics"]["macro_f1"] for r in one.row("ft", source)]) for source in "bc")
    assert f"FT is better from c by {c - b:.3f} (margin {planned.margin(one.records):.3f});" in claim.found
    assert verdicts(one, pair(tmp_path, away, "retina"))[3] == FAILURE
    for weights in one.row("medmerge")[0].kernel_weights.values():
        weights[:] = 0.75
    assert verdicts(one)[3] == UNDECIDED, "one seed of three went the other way"


# ---------------------------------------------------------------- the files of the plan


def test_the_plans_files_are_here_and_ask_for_what_it_says():
    for name, backbone in findings.PLANNED:
        one = findings.pair(name, backbone)
        assert one.p.backbone == backbone and one.asked == 15, name
        assert one.p.seeds == list(findings.SEEDS) or one.p.seeds == list(one.seeds), "fewer only where they were run"
        assert {record.run["parameters"]["pair"] for record in one.records} <= {one.p.pair}
    plan = (ROOT / "book/plan.md").read_text(encoding="utf-8")
    table = [
        line.split("|")[2].strip(" `") for line in plan.splitlines() if line.startswith(("| skin", "| chest", "| ret"))
    ]
    assert table == [*findings.CLEAN, findings.LEAKY], "the plan's order"


def test_a_seed_counts_when_all_rows_have_it(tmp_path, monkeypatch):
    path = ROOT / "params/open/chest.yaml"
    p, there = pages.parameters(path), []
    rows = definitions.rows(p)
    there += [(row.name, 1) for row in rows] + [(rows[0].name, 2)]
    made = {one: make(tmp_path, "ft-b", 1, one[1]) for one in there}
    monkeypatch.setattr(study, "finished", lambda p, row, seed: made.get((row.name, seed)))
    one = findings.pair("chest")
    assert one.seeds == (1,) and len(one.records) == 5 and one.begun == 6 and not one.counts


def test_every_text_of_the_chapter_is_there_and_used():
    chapter = (ROOT / "book/findings.md").read_text(encoding="utf-8")
    for name, text in findingspage.TEXTS.items():
        assert f"```{{findings}} {name}\n" in chapter and text().strip()
    assert chapter.count("```{findings}") == len(findingspage.TEXTS)


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    """The chapter's texts over pairs of a test's own; pairs that it does not name have no record."""

    def over(**found: Pair) -> dict[str, str]:
        def one(name: str, backbone: str) -> Pair:
            there = found.get(name) if backbone == "densenet121" else None
            return there or Pair(name, SimpleNamespace(base_data="b", source_data="c", seeds=[1, 2, 3]), (), 0, 15)

        monkeypatch.setattr(findingspage, "_pair", one)
        findingspage._claims.cache_clear()
        return {name: text().replace("\N{NO-BREAK SPACE}", " ") for name, text in findingspage.TEXTS.items()}

    yield over
    findingspage._claims.cache_clear()


def test_a_chapter_without_runs_says_so(chapter):
    texts = chapter()
    assert "nothing is decided yet" in texts["verdict"] and "no seed" not in texts["scores"]
    assert "| chest | DenseNet-121 | 0 of 15 | none | no |" in texts["progress"] and "Not answered" in texts["leak"]


def test_failures_stand_first(tmp_path, chapter):
    texts = chapter(chest=pair(tmp_path, WORST), retina=pair(tmp_path, EVEN, "retina", seeds=(1,)))
    said = texts["verdict"]
    assert "chest (3 seeds)" in said and "Not run with enough seeds: skin-seeds, retina" in said
    assert said.index("Found not to hold:** MedMerge beats") < said.index("Undecided:**")
    assert "| chest | DenseNet-121 | 15 of 15 | 1, 2, 3 | yes |" in texts["progress"]
    assert "| retina, DenseNet-121 | FT b | 0.639 |" in texts["scores"], "the paper's row of APTOS"
    assert "| chest, DenseNet-121 | LP-FT c | 0.944 |" in texts["scores"]
    assert texts["tests"].count("\n") == 1 + 8 and "| chest, DenseNet-121 | FT b | -" in texts["tests"]
    assert texts["tests"].count("| one seed | – |") == 4, "retina's, which decide nothing"
    assert texts["agreement"].count("| chest, DenseNet-121 |") == 3


def test_the_figure_has_the_pairs_that_count(tmp_path, chapter):
    chapter(chest=pair(tmp_path, BEST), retina=pair(tmp_path, EVEN, "retina", seeds=(1,)))
    figure = findingspage.figure()
    (panel,) = figure.axes
    assert panel.get_title(loc="left") == "chest, DenseNet-121" and len(panel.get_yticks()) == 4
    lines = {line.get_gid(): line.get_xdata() for line in panel.lines if line.get_gid()}
    table = findingspage._pair("chest", "densenet121").comparisons
    assert [list(lines[f"chest, DenseNet-121/{y}"]) for y in range(4)] == table[["low", "high"]].values.tolist()
    assert "4 of 4 intervals leave out 0" in figure.alt
    chapter()
    assert findingspage.figure() is None


def test_what_the_overlap_is_worth(tmp_path, chapter):
    arms = {"skin-seeds": pair(tmp_path, EVEN, "skin-seeds"), "skin-leaky": pair(tmp_path, BEST, "skin-leaky")}
    (merge, *_) = arms["skin-leaky"].row("medmerge")
    assert "**The contaminated arm has no overlap**" in chapter(**arms)["leak"]
    merge.run["data"]["overlap"] = {"c": {"images": {"train": 9, "test": 30}, "groups": {"test": 5}, "allowed": True}}
    lines = chapter(**arms)["leak"].splitlines()
    assert lines[0].startswith(f"Of the contaminated arm's {len(merge.predictions)} test images, c has been trained or")
    assert f"on 30 ({30 / len(merge.predictions):.0%}), and on another image" in lines[0] and "for 5 more" in lines[0]
    merge.run["data"]["overlap"]["c"]["groups"]["test"] = 0
    assert chapter(**arms)["leak"].splitlines()[0].endswith(f"on 30 ({30 / len(merge.predictions):.0%}).")
    assert lines[4].startswith("| FT b | +0.000 (+0.000 to +0.000) | +0.")
    assert len(lines) == 10 and lines[-1].startswith("Which test images the source has learnt from is not known here")


def test_an_arm_of_one_seed_is_described(tmp_path, chapter):
    arms = {name: pair(tmp_path, BEST, name, seeds) for name, seeds in (("skin-seeds", (1, 2)), ("skin-leaky", (1,)))}
    text = chapter(**arms)["leak"]
    assert "Of skin-leaky there is one seed: intervals are then of test images alone." in text
    assert "The arms differ" not in text
    for record in arms["skin-leaky"].records:
        record.run["data"]["classes"] = ["a", "b", "c", "d"]
        record.predictions["p_d"] = 0.0
    assert "The arms differ in more: their images are of 3 and of 4 classes." in chapter(**arms)["leak"]
    (line,) = [line for line in text.splitlines() if line.startswith("| FT b |")]
    for one in arms.values():
        row = one.comparisons.set_index("against").loc["FT b"]
        assert f"{row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})" in line


def test_what_having_seen_an_image_is_worth(tmp_path, chapter, monkeypatch):
    """The rows of c are right wherever c has learnt from the image, and elsewhere as good as FT from b."""
    leaky = pair(tmp_path, EVEN, "skin-leaky")
    split = {str(k): ["train", "test", "val"][k % 4] for k in range(100) if k % 4 < 3}
    learnt = findings_leak.chosen(leaky.records[0], split, "train")
    assert learnt.sum() == 25 and list(np.flatnonzero(learnt)[:2]) == [0, 4]
    for record in leaky.records:
        if "c" in record.run["row"]["sources"]:
            shown = record.predictions.iloc[:, 2:].to_numpy()
            shown[learnt] = np.eye(3)[record.labels[learnt]]
            record.predictions.iloc[:, 2:] = shown
    found = {one.row: one for one in findings_leak.worth(leaky, split)}
    assert list(found) == ["FT c", "LP-FT b", "LP-FT c", "MedMerge b + c"]
    check = found.pop("LP-FT b")
    assert check.learnt.difference == check.held_out.difference == check.difference == 0
    for one in found.values():
        assert one.held_out.difference == 0 and one.difference == one.learnt.difference
        assert 0 < one.low < one.difference < one.high
    plain = leaky.row("ft", "b")
    alone = [f1_score(run.labels[learnt], run.probabilities[learnt].argmax(1), average="macro") for run in plain]
    assert one.learnt.difference == pytest.approx(1 - np.mean(alone))
    monkeypatch.setattr(findings_leak, "source_split", lambda: split)
    lines = chapter(**{"skin-seeds": leaky, "skin-leaky": leaky})["leak"].splitlines()
    assert "| minus FT b | learnt from (25 images) | held out (25) | difference |" in lines
    assert f"| FT c | {one.difference:+.3f} (" in lines[-4]


def test_the_split_of_the_contaminated_arms_source():
    leaky, source = (
        pages.parameters(ROOT / f"params/open/{name}.yaml") for name in ("skin-leaky", findings_leak.SOURCE)
    )
    assert source.save_weights == leaky.source_weights and source.target_data == leaky.source_data
    split = findings_leak.source_split()
    (trained,) = [study.finished(source, row, seed) for row in definitions.rows(source) for seed in source.seeds]
    assert split_files.fingerprint(list(split), list(split.values())) == trained.run["data"]["split"]["fingerprint"]
    assert Counter(split.values()) == trained.run["data"]["images"]
    merge = findings.pair("skin-leaky").row("medmerge")[0]
    met = sum(findings_leak.chosen(merge, split, part).sum() for part in ("train", "val"))
    assert met == merge.run["data"]["overlap"]["ham10k"]["images"]["test"], "as counted from the weights' own list"
