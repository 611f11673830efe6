"""A run computed once more: the same, not the same, and what is kept of it."""

import json
from pathlib import Path

import pytest
import torch
from test_study import TINY, write_weights

from medmerge import backbone, save_backbone
from medmerge.cli import main as cli
from medmerge.study import records, revisits
from medmerge.study.records import RecordError

FOLDER = Path("results/demo/demo/densenet_small")


@pytest.fixture
def project(project):
    """A project with two sources and the finished FT from both."""
    write_weights(project)
    Path("p.yaml").write_text(json.dumps({**TINY, "approaches": ["ft"], "ft_epochs": 2}))
    assert cli.main(["train", "p.yaml"]) == 0
    return project


def rerun(capsys, status: int = 0) -> str:
    capsys.readouterr()
    assert cli.main(["rerun", "p.yaml", "--row", "ft-objects", "--seed", "0"]) == status
    return capsys.readouterr().out.splitlines()[-1] if not status else capsys.readouterr().err


def test_the_same_machine_gives_every_file_again_and_touches_none(project, capsys):
    asked = json.loads(Path("p.yaml").read_text())
    Path("p.yaml").write_text(json.dumps(asked | {"precision": "auto"}))  # the record's own, fp32, is taken
    folder = project / FOLDER / "ft-objects/seed0"
    before = {path: path.read_bytes() for path in (project / "results").rglob("*") if path.is_file()}
    assert rerun(capsys) == "FT objects, seed 0: all 3 files of the record the same, byte for byte"
    after = {path: path.read_bytes() for path in (project / "results").rglob("*") if path.is_file()}
    (kept,) = after.keys() - before.keys()
    assert kept == project / "results/demo/demo/reruns/densenet_small-ft-objects-seed0.json"
    assert {path: after[path] for path in before} == before
    (found,) = revisits.reruns([records.read(folder)])
    assert not found.rerun.different and set(found.rerun.same) == {"history.csv", "predictions.csv", "run.json"}
    assert found.rerun.metrics == found.record.run["metrics"] and found.rerun.device == found.record.run["device"]


def test_what_differs_is_named_with_both_scores(project, capsys):
    """The record's own numbers are changed, as if another machine had computed it."""
    path = project / FOLDER / "ft-objects/seed0/run.json"
    run = json.loads(path.read_text())
    here, run["metrics"]["macro_f1"], run["device"] = run["metrics"]["macro_f1"], 0.123456, "another machine"
    path.write_text(json.dumps(run))
    line = rerun(capsys)
    assert line.startswith("FT objects, seed 0: 2 files of the record the same, 1 different (run.json). macro_f1: ")
    assert f"macro_f1: {here:.4f} on " in line and line.endswith(", 0.1235 on another machine")
    (found,) = revisits.reruns([records.read(path.parent)])
    assert found.rerun.different == ("run.json",)
    run["metrics"]["macro_f1"] = here
    path.write_text(json.dumps(run))
    with pytest.raises(RecordError, match=r"is about another record than the one of .*; run medmerge rerun again"):
        revisits.reruns([records.read(path.parent)])


def test_a_damaged_file_is_named(project):
    record = records.read(project / FOLDER / "ft-objects/seed0")
    revisits.rerun_path(record).parent.mkdir()
    revisits.rerun_path(record).write_bytes(b'{"record": "x"}')
    with pytest.raises(RecordError, match=r"seed0.json is damaged \(.*\); restore it, or remove it"):
        revisits.reruns([record])


def test_other_weights_or_images_are_refused_before_any_training(project, capsys, monkeypatch):
    """What would be put down to the machine would come from them."""
    path = project / FOLDER / "ft-objects/seed0/run.json"
    run = json.loads(path.read_text())
    path.write_text(json.dumps({**run, "data": {**run["data"], "fingerprint": "0" * 64}}))
    monkeypatch.setattr("medmerge.training.fit", lambda *_, **__: pytest.fail("trained"))
    assert "was computed on other images, labels or splits than are here now" in rerun(capsys, 2)
    path.write_text(json.dumps(run))
    torch.manual_seed(99)
    save_backbone(backbone("densenet_small", "random"), Path("w/objects.safetensors"), "densenet_small")
    assert "started from other weights of objects than are here now" in rerun(capsys, 2)
    assert not (project / "results/demo/demo/reruns").exists()


def test_weights_that_the_run_saves_stay_as_they_are(project, capsys):
    values = {**TINY, "approaches": ["ft"], "ft_epochs": 1, "source_data": "", "source_weights": "", "pair": "source"}
    Path("p.yaml").write_text(json.dumps({**values, "save_weights": "w/mine.safetensors"}))
    assert cli.main(["train", "p.yaml"]) == 0
    stamp = Path("w/mine.safetensors").stat().st_mtime_ns
    assert "all 3 files" in rerun(capsys) and Path("w/mine.safetensors").stat().st_mtime_ns == stamp
