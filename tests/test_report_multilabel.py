"""The page of a target with several labels an image, on hand-made records whose scores are known."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, roc_auc_score
from test_report import ROWS

from medmerge.pages import contrast, report
from medmerge.stats import evaluation
from medmerge.study import records

CLASSES = ["edema", "NA", "fracture", "never known"]
N = 120


def truth() -> np.ndarray:
    generator = np.random.default_rng(0)
    labels = (generator.random((N, 4)) < [0.5, 0.3, 0.1, 0.5]).astype(float)
    labels[generator.random((N, 4)) < 0.1] = np.nan
    labels[:, 3] = np.nan
    return labels


LABELS = truth()


def probabilities(errors: float, seed: int) -> np.ndarray:
    """Sure of the labels, with this share of them wrong."""
    generator = np.random.default_rng(seed)
    wrong = generator.random(LABELS.shape) < errors
    there = np.where(np.isnan(LABELS), 0, LABELS)
    return np.where(wrong, 1 - there, there) * 0.8 + generator.random(LABELS.shape) * 0.2


def macro_f1(errors: float, seed: int) -> float:
    said = probabilities(errors, seed) >= 0.5
    known = ~np.isnan(LABELS[:, :3])
    return np.mean([f1_score(LABELS[known[:, k], k], said[known[:, k], k]) for k in range(3)])


def make(folder, row: str, errors: float, seed: int):
    """A record of a row as `study` writes it, with this share of wrong answers."""
    approach, title, sources = ROWS[row]
    scores = probabilities(errors, seed)
    run = {
        "definition": {},
        "hash": "f" * 64,
        "row": {"approach": approach, "title": title, "sources": sources},
        "seed": seed,
        "parameters": {
            **{"backbone": "densenet121", "image_size": 64, "split": "grouped", "base_data": "b", "select": "best"},
            **{"batch_size": 50, "lp_lr": 0.01},
        },
        "data": {"name": "chexpert", "classes": CLASSES, "fingerprint": "e" * 64, "notes": [], "multilabel": True}
        | {"counts": {part: dict.fromkeys(CLASSES, 700) for part in ("train", "val", "test")}}
        | {"images": {"train": 1000, "val": 60, "test": N}},
        "sources": {name: "2" * 64 for name in sources},
        "metrics": evaluation.metrics(LABELS, scores, CLASSES),
        "cost": {"fine_tune": {"seconds": 1.0}},
        "provenance": {"commit": "d" * 40, "versions": {"medmerge": "1", "torch": "2", "torchvision": "3"}},
        "device": "a CPU",
        "precision": "fp32",
    }
    history = pd.DataFrame({"phase": ["linear_probe"] * 3 + ["fine_tune"], "epoch": [1, 2, 3, 1]})
    history = history.assign(train_loss=0.7, val_loss=0.7, val_macro_f1=[0.0, 0.1, 0.0, 0.2])
    history["val_macro_auroc"] = [0.5, 0.6, 0.7, 0.8]
    frame = records.prediction_frame([str(i) for i in range(N)], LABELS, scores, CLASSES)
    weights = {"conv": np.float32([0.5, 0.75])} if approach == "medmerge" else {}
    records.write(folder / row / f"seed{seed}", run, history, frame, weights)
    return records.read(folder / row / f"seed{seed}")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three rows of two seeds; MedMerge errs least."""
    folder = tmp_path_factory.mktemp("results")
    shares = dict(zip(ROWS, (0.4, 0.2, 0.05), strict=True))
    return [make(folder, row, share, seed) for row, share in shares.items() for seed in (0, 1)]


def test_scores_and_their_intervals(study):
    table = report.scores(study).set_index("label")
    for label, errors in (("FT b", 0.4), ("FT c", 0.2), ("MedMerge b + c", 0.05)):
        row = table.loc[label]
        assert row["mean"] == pytest.approx(np.mean([macro_f1(errors, seed) for seed in (0, 1)]))
        assert row["low"] < row["mean"] < row["high"]
    assert table.loc["MedMerge b + c", "low"] > table.loc["FT b", "high"]
    assert table["recall/never known"].isna().all()


def test_what_is_said_of_them(study):
    assert "better than 2 and worse than none" in report.verdict(study)
    assert report.numbers(study)["train-images"] == "1,000"
    assert report.circumstances(study) == (
        "DenseNet-121 at 64 px; 1,000 training, 60 validation and 120 test images of CheXpert (4 classes, several an "
        "image: edema, NA, fracture, never known), grouped split; base weights: b; seeds 0, 1; fp32 on a CPU."
    )


def test_the_kept_epoch_is_the_one_of_the_best_auroc(study):
    moved = report.displacement(study[-1])
    assert moved["kept_epoch"] == 3 and moved["budget"] == pytest.approx(0.01 * 3 * 20)


def test_tables(study):
    table = report.score_table(study)
    assert list(table) == [
        *("run", "seeds", "macro F1", "low", "high", "accuracy", "AUROC", "average precision", "ECE")
    ]
    assert table.notna().all(axis=None)
    assert list(report.recall_table(study)) == ["recall of", *CLASSES]


def test_classes_one_by_one(study):
    table = report.class_scores(study)
    assert table["class"].tolist() == CLASSES * 3 and table["label"].unique().tolist() == list(contrast.by_row(study))
    row = table.set_index(["label", "class"]).loc["FT b", "fracture"]
    known = ~np.isnan(LABELS[:, 2])
    areas = [roc_auc_score(LABELS[known, 2], probabilities(0.4, seed)[known, 2]) for seed in (0, 1)]
    assert row["auroc"] == pytest.approx(np.mean(areas), abs=1e-6) and areas[0] != areas[1]
    assert (row["positives"], row["negatives"]) == ((LABELS[:, 2] == 1).sum(), (LABELS[:, 2] == 0).sum())
    means, whole = table[table["label"] == "FT b"], report.scores(study).loc[0]
    assert whole["macro_auroc"] == pytest.approx(means["auroc"].mean(), abs=1e-6)
    assert whole["macro_f1"] == pytest.approx(means["f1"].mean())
    assert means["sensitivity"].iloc[:3].tolist() == pytest.approx([whole[f"recall/{name}"] for name in CLASSES[:3]])
    never = table[table["class"] == "never known"]
    assert (never[["positives", "negatives"]] == 0).all(axis=None)
    assert never[["auroc", "ap", "sensitivity", "specificity", "f1"]].isna().all(axis=None)
