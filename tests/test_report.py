"""The page's tables and sentences, on hand-made records whose scores are known."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from medmerge.pages import contrast, origin, report, typeset
from medmerge.pages.typeset import number
from medmerge.stats import evaluation
from medmerge.study import records
from medmerge.study.records import RecordError

CLASSES = ["a", "b", "c"]
LABELS = np.repeat([0, 1, 2], [60, 30, 10])
ROWS = {
    "ft-b": ("ft", "FT", ["b"]),
    "ft-c": ("ft", "FT", ["c"]),
    "medmerge-b-c": ("medmerge", "MedMerge", ["b", "c"]),
}


def predicted(errors: int, seed: int = 0) -> np.ndarray:
    """The labels with so many of them wrong."""
    values = LABELS.copy()
    wrong = np.random.default_rng(seed).permutation(len(LABELS))[:errors]
    values[wrong] = (values[wrong] + 1) % 3
    return values


def macro_f1(errors: int, seed: int = 0) -> float:
    return f1_score(LABELS, predicted(errors, seed), average="macro")


def make(folder, row: str, errors: int, seed: int = 0, **changes):
    """A record of a row whose predictions have so many errors."""
    approach, title, sources = ROWS[row]
    chosen = predicted(errors, seed)
    probabilities = np.full((len(LABELS), 3), 0.1)
    probabilities[np.arange(len(LABELS)), chosen] = 0.8
    train, val, test = ({"a": 60, "b": 30, "c": 1000}, {"a": 6, "b": 3, "c": 1}, {"a": 60, "b": 30, "c": 10})
    run = {
        "definition": {},
        "hash": "f" * 64,
        "row": {"approach": approach, "title": title, "sources": sources},
        "seed": seed,
        "parameters": {
            **{"backbone": "densenet121", "image_size": 64, "split": "grouped", "base_data": "b", "seeds": [0]},
            **{"select": "best", "batch_size": 50, "lp_lr": 0.01},
        },
        "data": {"name": "made", "classes": CLASSES, "fingerprint": "e" * 64, "notes": []}
        | {"counts": {"train": train, "val": val, "test": test}},
        "metrics": evaluation.metrics(LABELS, probabilities, CLASSES),
        "cost": {"features": {"seconds": 1800.0}, "linear_probe": {"seconds": 1800.0, "peak_memory_mib": 7.0}},
        "device": "a CPU",
        "precision": "fp32",
        "provenance": {"commit": "d" * 40, "versions": {"medmerge": "1", "torch": "2", "torchvision": "3"}},
    } | changes
    history = pd.DataFrame(
        {"phase": ["linear_probe"] * 3 + ["fine_tune"], "epoch": [1, 2, 3, 1], "val_macro_f1": [0.1, 0.4, 0.4, 0.9]}
    )
    predictions = pd.DataFrame({"id": [str(i) for i in range(len(LABELS))], "label": [CLASSES[k] for k in LABELS]})
    for k, name in enumerate(CLASSES):
        predictions[f"p_{name}"] = probabilities[:, k]
    merged = {"z": np.float32([0.5, 0.75]), "a": np.float32([0.25, 0.5, -0.5, 0.5])}
    weights = merged if approach == "medmerge" else {}
    return records.write(folder / row / f"seed{seed}", run, history, predictions, weights)


def study(folder, ft_b: int, ft_c: int, medmerge: int, seeds=(0,)):
    errors = dict(zip(ROWS, (ft_b, ft_c, medmerge), strict=True))
    return [make(folder, row, count, seed) for row, count in errors.items() for seed in seeds]


def test_scores_of_one_seed(tmp_path):
    table = report.scores(study(tmp_path, 30, 10, 20)).set_index("label")
    assert list(table.index) == ["FT b", "FT c", "MedMerge b + c"]
    for label, errors in (("FT b", 30), ("FT c", 10), ("MedMerge b + c", 20)):
        row = table.loc[label]
        assert row["mean"] == pytest.approx(macro_f1(errors)) and row["accuracy"] == pytest.approx(1 - errors / 100)
        assert row["low"] < row["mean"] < row["high"] and np.isnan(row["sd"]) and row["seeds"] == 1
    assert list(table["approach"]) == ["ft", "ft", "medmerge"]


def test_scores_of_two_seeds_are_their_mean(tmp_path):
    made = study(tmp_path, 30, 10, 20, seeds=(1, 0))
    table = report.scores(made).set_index("label")
    both = [macro_f1(30, 0), macro_f1(30, 1)]
    assert both[0] != both[1]
    assert table.loc["FT b", "mean"] == pytest.approx(np.mean(both))
    assert table.loc["FT b", "sd"] == pytest.approx(np.std(both, ddof=1))
    assert list(table["seeds"]) == [2, 2, 2]
    assert [r.run["seed"] for r in contrast.by_row(made)["FT b"]] == [0, 1]
    assert "2 seeds" in report.verdict(made) and "seeds 0, 1;" in report.circumstances(made)


def test_comparisons_are_medmerge_minus_each_row(tmp_path):
    table = contrast.against(study(tmp_path, 60, 10, 20)).set_index("against")
    assert list(table.index) == ["FT b", "FT c"]
    assert table.loc["FT b", "difference"] == pytest.approx(macro_f1(20) - macro_f1(60)) and macro_f1(20) > macro_f1(60)
    assert table.loc["FT c", "difference"] == pytest.approx(macro_f1(20) - macro_f1(10)) and macro_f1(20) < macro_f1(10)
    assert ((table["low"] < table["difference"]) & (table["difference"] < table["high"])).all()
    assert table.loc["FT b", "p_holm"] == pytest.approx(2 * table.loc["FT b", "p"]) and table.loc["FT b", "p"] < 0.01
    assert table["p_holm"].tolist() == evaluation.holm(table["p"]).tolist()


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ((70, 60, 0), "above 2 and below 0 of the 2 .* better than 2 and worse than none .*FT c with"),
        ((0, 10, 80), "above 0 and below 2 of the 2 .* better than none and worse than 2 .*FT b with"),
        ((80, 0, 50), "above 1 and below 1 of the 2 .* better than 1 and worse than 1 .*FT c with"),
        ((20, 20, 20), r"above 0 and below 0 of the 2 .* better than none and worse than none .* is 0\.000"),
        ((21, 40, 20), "above 2 and below 0 of the 2 .* better than 1 and worse than none .*FT b with"),
    ],
)
def test_the_sentence_says_what_the_table_says(tmp_path, errors, said):
    made = study(tmp_path, *errors)
    sentence = report.verdict(made)
    assert re.search(said, sentence), sentence
    assert f"a macro F1 of **{macro_f1(errors[2]):.3f}**" in sentence and "1 seed)" in sentence
    best = max(macro_f1(count) for count in errors[:2])
    assert f"with {best:.3f}; MedMerge's difference from it is {number(macro_f1(errors[2]) - best, '+.3f')}" in sentence
    assert f"The best baseline is {report.numbers(made)['best-baseline']} with" in sentence


@pytest.mark.parametrize(("select", "kept"), [("best", 2), ("last", 3)])
def test_displacement_beside_its_budget(tmp_path, select, kept):
    record = make(tmp_path, "medmerge-b-c", 5)
    record.run["parameters"]["select"] = select
    moved = report.displacement(record)
    assert moved == {
        **{"mean": 0.25, "largest": 1.0, "share_first": pytest.approx(1 / 6), "kernels": 6, "kept_epoch": kept},
        "steps": kept * 22,
        "budget": pytest.approx(0.01 * kept * 22),  # 1090 images in batches of 50
    }


def test_rows_with_other_seeds_are_refused(tmp_path):
    made = study(tmp_path, 1, 2, 3)
    extra = make(tmp_path, "ft-c", 2, seed=1)
    for mixed in ([*made, extra], [made[0], extra, made[2]]):
        for function in (report.scores, contrast.against):
            with pytest.raises(RecordError, match=r"FT c has other seeds than FT b; run all rows with the same seeds"):
                function(mixed)
    made[2].run["data"]["fingerprint"] = "0" * 64
    with pytest.raises(RecordError, match=r"medmerge-b-c.seed0 was tested on other images than .*ft-b.seed0"):
        report.scores(made)


def test_the_comparison_needs_the_approach_once(tmp_path):
    made = study(tmp_path, 1, 2, 3)
    with pytest.raises(RecordError, match="0 rows of 'medmerge'"):
        contrast.against(made[:2])
    with pytest.raises(RecordError, match="2 rows of 'ft'"):
        contrast.against(made, "ft")
    assert contrast.against(made[2:]).empty


def test_circumstances(tmp_path):
    made = study(tmp_path, 1, 2, 3, seeds=(0, 2))
    made[1].run["device"] = "a GPU"
    made[1].run["precision"] = "bf16"
    assert report.circumstances(made) == (
        "DenseNet-121 at 64 px; 1,090 training, 10 validation and 100 test images of made (3 classes: a, b, c), "
        "grouped split; base weights: b; seeds 0, 2; bf16 on a GPU and fp32 on a CPU."
    )
    assert "seed 0; fp32 on a CPU." in report.circumstances(study(tmp_path / "x", 1, 2, 3))


def test_a_class_that_no_test_image_has(tmp_path):
    made = study(tmp_path, 1, 2, 3)
    for record in made:
        record.run["metrics"]["recall/b"] = None
    table = report.recall_table(made)
    assert list(table.columns) == ["recall of", "a", "b", "c"] and table["b"].isna().all() and table["a"].notna().all()
    assert typeset.texts(table)["b"] == ["–"] * 3


def test_tables_of_costs_origins_and_histories(tmp_path):
    made = study(tmp_path, 1, 2, 3)
    costs = origin.costs(made)
    assert costs["total, s"].tolist() == [3600.0] * 3 and costs["peak memory, MiB"].tolist() == [7.0] * 3
    origins = origin.sources(made)
    assert origins.loc[0, ["commit", "definition", "images"]].tolist() == ["d" * 10, "f" * 10, "e" * 10]
    histories = report.histories(made)
    assert len(histories) == 12 and set(histories["run"]) == {record.label for record in made}
    assert report.score_table(made).shape == (3, 8)
    assert list(report.difference_table(contrast.against(made)))[0] == "MedMerge minus"


def test_the_committed_page_says_what_its_records_say():
    """To the last digit that is shown: nothing since its release has moved a number of it."""
    results = Path(__file__).resolve().parents[1] / "results"
    page = json.loads((results / "open" / "skin.ipynb").read_text(encoding="utf-8"))
    outputs = [output["data"] for cell in page["cells"] for output in cell.get("outputs", ()) if "data" in output]
    shown = ["".join(data["text/markdown"]) for data in outputs if "text/markdown" in data]
    runs = records.gather(results, "open/skin/*/*/seed*")
    assert report.verdict(runs) in shown


def overlap(images=(0, 0, 0), groups=(0, 0, 0), allowed=False):
    counts = {"images": images, "groups": groups}
    found = {kind: dict(zip(("train", "val", "test"), each, strict=True)) for kind, each in counts.items()}
    return found | {"allowed": allowed}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"c": overlap()}, ""),
        (
            {"c": overlap(images=(0, 0, 12), groups=(0, 2, 9))},
            "**Warning: c was trained on images of this target**; test: 12 of 100 images themselves, 9 more by their "
            "patient or lesion; validation: 0 of 10 images themselves, 2 more by their patient or lesion. Scores on "
            "them say less than they seem to.",
        ),
        (
            {"c": overlap(images=(1000, 0, 0), allowed=True)},
            "**Warning: c was trained on images of this target** (the parameters say that this is meant: "
            "`allow_overlap`); training: 1,000 of 1,090 images themselves, 0 more by their patient or lesion. No "
            "validation or test image is among them.",
        ),
        (
            {"c": {"unknown": "no list of its images"}},
            "It could not be checked whether c was trained on any of these images: no list of its images.",
        ),
    ],
)
def test_overlap_of_target_and_source(tmp_path, found, said):
    made = study(tmp_path, 1, 2, 3)
    assert report.overlap_note(made) == "", "records from before it was looked for"
    for record in made[1:]:
        record.run["data"]["overlap"] = found
    assert report.overlap_note(made) == said, "once, though two rows start from this source"
