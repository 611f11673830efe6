"""What other merging weights do to the validation score of a merged run."""

import numpy as np
import pytest
from test_study import parameters, write_weights

from medmerge import training
from medmerge.study import definitions, revisits
from medmerge.study import run as study
from medmerge.study.records import RecordError


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """One merged run: its project's folder and its record. Only to be read."""
    folder = tmp_path_factory.mktemp("trials")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MEDMERGE_CACHE", str(folder.parent / "cache"))
        write_weights(folder)
        (record,) = study.run(parameters(approaches=["medmerge"]))
    return folder, record


def test_a_layer_is_replaced_and_put_back(merged, monkeypatch):
    monkeypatch.chdir(merged[0])
    (trial,), layer, seen = revisits.later_trials([merged[1]]).values(), "features.denseblock1.denselayer1.conv1", []
    assert trial.metric == "macro F1" and trial.images == merged[1].images["val"] != merged[1].images["test"]

    def scored(model, samples, task):
        seen.append({name: w.numpy() for name, w in model.backbone.kernel_weights().items()})
        assert len(samples) == trial.images
        return training.validate(model, samples, task)

    monkeypatch.setattr("medmerge.study.revisits.validate", scored)
    history = merged[1].history
    best = history[history["phase"] == "linear_probe"]["val_macro_f1"].max()
    assert trial(layer, None) == pytest.approx(best, abs=1e-6), "as learnt"
    score = trial(layer, 1.0)
    assert trial(layer, 1.0) == score and len(seen) == 2, "computed once"
    after = {name: w.numpy() for name, w in trial.merging.backbone.kernel_weights().items()}
    for name, w in merged[1].kernel_weights.items():
        assert np.array_equal(w, after[name])
        assert (seen[1][name] == 1).all() if name == layer else np.array_equal(seen[1][name], w)
    with pytest.raises(KeyError, match="no merged layer"):
        trial("features.conv9", 0.5)


@pytest.mark.parametrize("settings", [{"approaches": ["medmerge_zeros"]}, {"batchnorm": "repair", "align": "weights"}])
def test_merges_of_every_kind_are_rebuilt(tmp_path, monkeypatch, settings):
    monkeypatch.chdir(tmp_path)
    write_weights(tmp_path)
    record = study.run(parameters(**{"approaches": ["medmerge"], **settings}))[0]
    trial = revisits.Trial(record)
    assert trial(next(iter(record.kernel_weights)), None) == pytest.approx(record.controls.iloc[0]["score"])


def test_it_says_what_is_not_here(merged, monkeypatch, tmp_path):
    path = merged[1].folder / definitions.MERGE
    path.rename(tmp_path / "kept")
    assert not revisits.later_trials([merged[1]])
    with pytest.raises(RecordError, match="lies only where the run was computed"):
        revisits.merged_classifier(merged[1])
    (tmp_path / "kept").rename(path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no file w/objects.safetensors"):
        revisits.merged_classifier(merged[1])
