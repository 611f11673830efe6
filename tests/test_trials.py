"""What other merging weights do to the validation score of a merged run."""

import numpy as np
import pytest
import torch
from test_study import parameters, write_weights

from medmerge import training
from medmerge.stats import evaluation
from medmerge.study import definitions, revisits
from medmerge.study import run as study
from medmerge.study.records import RecordError
from medmerge.study.revisits import Trial


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


@pytest.fixture
def trial(merged, monkeypatch) -> Trial:
    monkeypatch.chdir(merged[0])
    return revisits.trial(merged[1])


def test_as_learnt_it_is_the_probes_own_validation_score(merged, trial):
    history = merged[1].history
    probe = history[history["phase"] == "linear_probe"]["val_macro_f1"]
    assert trial("features.conv0", None) == pytest.approx(probe.max(), abs=1e-6)
    assert trial.metric == "macro F1" and trial.images == merged[1].images["val"]


def test_a_layer_is_replaced_and_put_back(merged, trial, monkeypatch):
    merge, layer = trial.merging.backbone, "features.denseblock1.denselayer1.conv1"
    learnt = {name: w.numpy() for name, w in merge.kernel_weights().items()}
    seen = []

    def scored(model, samples, task):
        seen.append({name: w.numpy() for name, w in merge.kernel_weights().items()})
        assert len(samples) == merged[1].images["val"] != merged[1].images["test"]
        return training.predict(model, samples, task)

    monkeypatch.setattr("medmerge.study.revisits.predict", scored)
    score = trial(layer, 1.0)
    assert trial(layer, 1.0) == score and len(seen) == 1, "computed once"
    (during,) = seen
    assert (during[layer] == 1).all()
    after = {name: w.numpy() for name, w in merge.kernel_weights().items()}
    for name, w in merged[1].kernel_weights.items():
        assert np.array_equal(w, learnt[name]) and np.array_equal(w, after[name])
        assert name == layer or np.array_equal(during[name], w)
    with pytest.raises(KeyError, match="no merged layer"):
        trial("features.conv9", 0.5)


def test_the_score_is_that_of_the_changed_network(trial):
    merging, layer = trial.merging, "features.conv0"
    score = trial(layer, 0.0)
    merging.backbone.set_kernel_weights({layer: 0.0})
    with torch.no_grad():
        probabilities = training.predict(merging, trial.val, trial.task)
    expected = evaluation.metrics(trial.val.labels.numpy(), probabilities, list("abcd"))["macro_f1"]
    assert score == expected


def test_it_says_what_is_not_here(merged, monkeypatch, tmp_path):
    monkeypatch.chdir(merged[0])
    path = merged[1].folder / definitions.MERGE
    path.rename(tmp_path / "kept")
    with pytest.raises(RecordError, match="lies only where the run was computed"):
        revisits.trial(merged[1])
    (tmp_path / "kept").rename(path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no file w/objects.safetensors"):
        revisits.trial(merged[1])
