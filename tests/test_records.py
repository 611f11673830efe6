"""The record of a run: written whole, read back exactly, refused where it is damaged."""

import gzip
import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import medmerge
from medmerge import Parameters, files
from medmerge.study import definitions, measured, records, revisits
from medmerge.study.definitions import Row
from medmerge.study.records import RecordError

FIELDS = Parameters.model_fields
WHERE = Path("demo/moles/densenet_small/medmerge-b-c/seed0")
RUN = {
    "definition": {"approach": "medmerge"},
    "hash": "0" * 64,
    "row": {"approach": "medmerge", "title": "MedMerge", "sources": ["b", "c"]},
    "seed": 0,
    "parameters": {"backbone": "densenet_small", "image_size": 32, "split": "grouped", "base_data": "b"},
    "data": {"name": "moles", "classes": ["nævus", "NA", "a,b"], "fingerprint": "1" * 64}
    | {"counts": {part: {"nævus": 1, "NA": 3, "a,b": 1} for part in ("train", "val", "test")}},
    "sources": {"b": "2" * 64, "c": "3" * 64},
    "metrics": {"macro_f1": 0.5, "recall/NA": None},
    "cost": {"fine_tune": {"seconds": 1.5}},
    "device": "a CPU",
    "precision": "fp32",
    "provenance": {"commit": "4" * 40, "versions": {"medmerge": "1", "torch": "2", "torchvision": "3"}},
}
HISTORY = pd.DataFrame({"phase": ["fine_tune"], "epoch": [1], "train_loss": [0.1 + 0.2], "val_macro_f1": [1 / 3]})
PROBABILITIES = np.random.default_rng(0).dirichlet([1, 1, 1], 5).astype(np.float32)
WEIGHTS = {"z.last": np.float32([0.1, 0.2]), "a.first": np.float32([1 / 3, 7.0, -1e-8])}


def predictions() -> pd.DataFrame:
    frame = pd.DataFrame({"id": ["007", "1e3", "NA", "x/ü.jpg", "a,b"], "label": ["NA", "a,b", "nævus", "NA", "NA"]})
    return frame.assign(**{f"p_{name}": PROBABILITIES[:, k] for k, name in enumerate(RUN["data"]["classes"])})


def write(folder, run=RUN, weights=WEIGHTS):
    return records.write(folder, run, HISTORY, predictions(), weights)


def test_finished_runs_stay_finished():
    stored = sorted(Path(__file__).parents[1].glob("results/*/**/run.json"))
    assert len(stored) >= 119
    for path in stored:
        run = json.loads(path.read_text())
        row = Row(run["row"]["approach"], tuple(run["row"]["sources"]), tuple(run["row"].get("settings", {}).items()))
        p = Parameters.parse({name: run["parameters"][name] for name in run["parameters"] if name in FIELDS})
        assert definitions.definition_hash(definitions.definition(p, row, run["seed"])) == run["hash"], path


@pytest.mark.parametrize("weights", [WEIGHTS, {}])
def test_round_trip_is_exact(tmp_path, weights):
    written, record = write(tmp_path / WHERE, weights=weights), records.read(tmp_path / WHERE)
    assert record.run == written.run == {**RUN, "layers": list(weights)}
    assert record.label == "MedMerge b + c"
    pd.testing.assert_frame_equal(record.history, HISTORY, check_exact=True)
    assert np.array_equal(record.probabilities.astype(np.float32), PROBABILITIES)
    assert record.probabilities.dtype == np.float64
    assert list(record.predictions["id"]) == ["007", "1e3", "NA", "x/ü.jpg", "a,b"]
    assert record.labels.tolist() == [1, 2, 0, 1, 1] and record.labels.dtype == np.int64
    assert list(record.kernel_weights) == list(weights)
    assert all(np.array_equal(record.source_weights[name], np.stack([w, 1 - w])) for name, w in weights.items())
    assert not record.kernel_history[1], "older records have none"
    text = (record.folder / "run.json").read_text(encoding="utf-8")
    assert "nævus" in text and text.endswith("}\n") and len(text.splitlines()) > 10, "for people and for diffs"


@pytest.mark.parametrize(("allowed", "kept"), [(800_000, [1, 2, 3, 4, 5]), (25, [1, 3, 5]), (20, [2, 5]), (1, [5])])
def test_a_history_of_merging_weights_is_thinned_back_from_its_last_epoch(tmp_path, monkeypatch, allowed, kept):
    monkeypatch.setattr(records, "HISTORY_BYTES", allowed)
    shift = {name: np.float16(np.arange(5)[:, None] / 1000 + w) for name, w in WEIGHTS.items()}
    records.write(tmp_path / WHERE, RUN, HISTORY, predictions(), WEIGHTS, shift)
    epochs, history = records.read(tmp_path / WHERE).kernel_history
    assert epochs.tolist() == kept and list(history) == list(WEIGHTS)
    for name, w in history.items():
        assert w.dtype == np.float32 and np.array_equal(w, shift[name][epochs - 1].astype(np.float32) + 0.5)


def test_of_many_test_images_a_record_keeps_less(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MANY", len(predictions()) - 1)
    monkeypatch.setattr(records, "HISTORY_BYTES", 25 * 16)
    shift = {name: np.float16(np.zeros((5, len(w)))) for name, w in WEIGHTS.items()}
    records.write(tmp_path / WHERE, RUN, HISTORY, predictions(), WEIGHTS, shift)
    assert records.read(tmp_path / WHERE).kernel_history[0].tolist() == [1, 3, 5]
    assert records.kept(np.full((len(predictions()), 3), np.float32(1 / 3))).tolist()[0] == [0.3333] * 3
    assert records.kept(np.full((2, 3), np.float32(1 / 3))).dtype == np.float32


def test_a_weight_a_parameter_is_kept_as_each_kernels_mean(tmp_path):
    weights = {"conv": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2), "conv.bias": np.float32([0.1, 0.2])}
    kept = write(tmp_path / WHERE, weights=weights).kernel_weights
    assert kept["conv"].tolist() == [5.5, 17.5] and kept["conv"].dtype == np.float32
    assert np.array_equal(kept["conv.bias"], weights["conv.bias"])


def test_weights_of_three_sources_are_kept_source_by_source(tmp_path):
    run = RUN | {"row": RUN["row"] | {"sources": ["b", "c", "d"]}}
    w = np.random.default_rng(0).dirichlet([1, 1, 1], (4, 2, 5)).astype(np.float32)
    w = np.moveaxis(w, -1, 0)
    away = (w.reshape(3, 4, -1).mean(2)[None] - 1 / 3).astype(np.float16)
    records.write(tmp_path / WHERE, run, HISTORY, predictions(), {"conv": w}, {"conv": away})
    record = records.read(tmp_path / WHERE)
    assert (record.num_merged, record.neutral) == (3, 1 / 3)
    np.testing.assert_allclose(record.source_weights["conv"], w.reshape(3, 4, -1).mean(2), rtol=1e-6)
    assert np.array_equal(record.kernel_weights["conv"], record.source_weights["conv"][0])
    epochs, history = record.kernel_history
    assert epochs.tolist() == [1] and history["conv"].shape == (1, 4)
    np.testing.assert_allclose(history["conv"][0], record.kernel_weights["conv"], atol=1e-3)


MULTILABEL = RUN | {"data": {**RUN["data"], "multilabel": True}}
FINDINGS = np.array([[1, 0, np.nan], [0, 0, np.nan], [np.nan, 1, np.nan], [1, 1, np.nan], [0, 0, np.nan]])
IDS = ["007", "1e3", "NA", "x/ü.jpg", ""]


@pytest.mark.parametrize("labels", [FINDINGS, FINDINGS.astype(np.float32), np.nan_to_num(FINDINGS).astype(np.int64)])
def test_several_labels_an_image_come_back(tmp_path, labels):
    """A class of which nothing is known and ids that look like missing values, too."""
    frame = records.prediction_frame(IDS, labels, PROBABILITIES, RUN["data"]["classes"])
    records.write(tmp_path / WHERE, MULTILABEL, HISTORY, frame, {})
    record = records.read(tmp_path / WHERE)
    assert record.multilabel is True
    assert record.labels.dtype == np.float64 and np.array_equal(record.labels, labels, equal_nan=True)
    assert np.array_equal(record.probabilities.astype(np.float32), PROBABILITIES)
    assert record.predictions["id"].tolist() == IDS


def test_committed_predictions_are_written_again_byte_by_byte():
    committed = records.gather(Path(__file__).resolve().parents[1] / "results", "open/*/*/*/seed*")
    assert committed
    for record in committed:
        ids, classes = record.predictions["id"], record.run["data"]["classes"]
        short = np.array_equal(record.probabilities, record.probabilities.round(4))  # of many test images
        kept_as = np.float64 if short else np.float32
        frame = records.prediction_frame(ids, record.labels, record.probabilities.astype(kept_as), classes)
        found = frame.to_csv(index=False, float_format="%.9g").encode()
        kept = files.stored(record.folder / "predictions.csv")
        same = found == (gzip.decompress(kept.read_bytes()) if kept.suffix == ".gz" else kept.read_bytes())
        assert same, record.folder
        assert kept.stat().st_size < 1_000_000


def test_long_tables_are_compressed_and_read_like_others(tmp_path, monkeypatch):
    plain = write(tmp_path / "plain" / WHERE)
    text = (plain.folder / "predictions.csv").read_bytes()
    folder = tmp_path / "long" / WHERE
    write(folder)
    monkeypatch.setattr(files, "LONGEST", len(text) - 1)
    record = write(folder)
    assert not (folder / "predictions.csv").exists(), "what a shorter table left"
    packed = (folder / "predictions.csv.gz").read_bytes()
    assert gzip.decompress(packed) == text and gzip.compress(text, mtime=0) == packed
    pd.testing.assert_frame_equal(records.read(folder).predictions, plain.predictions, check_exact=True)
    assert revisits.content(folder) == revisits.content(plain.folder)
    assert np.array_equal(record.probabilities, plain.probabilities)
    monkeypatch.setattr(files, "LONGEST", len(text))
    write(folder)
    assert (folder / "predictions.csv").read_bytes() == text and not (folder / "predictions.csv.gz").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *[("run.json", content, r"run\.json is damaged") for content in (b"", b"[1]", b"\xff\xfe", b'{"definition": ')],
        (
            "run.json",
            json.dumps({k: v for k, v in RUN.items() if k != "seed"}).encode(),
            r"lacks layers, seed\); restore",
        ),
        ("history.csv", None, r"lacks history\.csv; restore it or run it again"),
        ("predictions.csv", None, r"lacks predictions\.csv;"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, name, content, message):
    folder = write(tmp_path / WHERE).folder
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(RecordError, match=f"{folder}.*{message}"):
        records.gather(tmp_path)


def test_records_are_gathered_by_place(tmp_path):
    for track, seed in (("open", 1), ("demo", 1), ("demo", 0)):
        folder = tmp_path / track / WHERE.relative_to("demo").with_name(f"seed{seed}")
        write(folder, {**RUN, "seed": seed})
    (tmp_path / "demo/moles/densenet_small/ft-b/seed0/checkpoint").mkdir(parents=True)
    found = [(record.folder.parts[-5], record.run["seed"]) for record in records.gather(tmp_path)]
    assert found == [("demo", 0), ("demo", 1), ("open", 1)]
    assert len(records.gather(tmp_path, "open/*/*/*/seed*")) == 1 and records.gather(tmp_path / "nowhere") == []


def git(folder, *arguments) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_provenance_names_versions_and_the_commit(tmp_path, monkeypatch):
    package = tmp_path / "repository" / "medmerge"
    package.mkdir(parents=True)
    (package / "records.py").write_text("a = 1\n")
    monkeypatch.setattr(measured, "__file__", str(package / "study" / "measured.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert measured.provenance()["commit"] == "unknown"
    git(package.parent, "init", "-q")
    git(package, "add", ".")
    git(package, "commit", "-qm", "first")
    commit = git(package, "rev-parse", "HEAD")
    found = measured.provenance()
    assert found["commit"] == commit and len(commit) == 40
    assert found["versions"]["medmerge"] == medmerge.__version__
    assert set(found["versions"]) == {*measured.LIBRARIES, "python"} and len(found["system"].split()) == 2
    (package / "records.py").write_text("a = 2\n")
    assert measured.provenance()["commit"] == f"{commit}+changes"
