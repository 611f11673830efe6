"""Three sources in a study's parameters: what is refused, what runs, and that two sources are what they were."""

import numpy as np
import pytest

from medmerge import explore
from medmerge.pages import report
from medmerge.study import definitions, inputs
from medmerge.study import run as study
from medmerge.study.definitions import definition, definition_hash
from medmerge.study.params import ParameterError, Parameters

TWO = {
    **{"pair": "tiny", "base_data": "one", "base_weights": "random", "source_data": "two", "source_weights": "random"},
    **{"target_data": "synthetic:moles", "backbone": "densenet_small", "image_size": 32, "approaches": ["medmerge"]},
    **{"lp_epochs": 1, "ft_epochs": 1, "lp_lr": 1e-2, "ft_lr": 1e-3, "device": "cpu", "precision": "fp32"},
}
THREE = TWO | {"more_data": ["three"], "more_weights": ["random"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"more_weights": []}, "more_data and more_weights: 1 and 0 entries"),
        ({"more_data": ["one"]}, "more_data: 'one' is named twice"),
        ({"more_data": ["two"]}, "more_data: 'two' is named twice"),
        ({"more_data": ["d", "d"], "more_weights": ["random"] * 2}, "more_data: 'd' is named twice"),
        ({"source_data": "", "source_weights": ""}, "more_data: these come after source c"),
        ({"batchnorm": 3}, "batchnorm: 3 is no source; they count from 0 to 2"),
        ({"more_data": ["a/b"]}, "more_data"),
    ],
)
def test_further_sources_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ParameterError, match=message):
        Parameters.parse(THREE | changes)


def test_batch_norm_may_start_at_any_source_and_no_further():
    assert Parameters.parse(THREE | {"batchnorm": 2}).batchnorm == 2
    with pytest.raises(ParameterError, match="they count from 0 to 1"):
        Parameters.parse(TWO | {"batchnorm": 2})


def test_the_automatic_normalisation_is_the_one_that_it_stands_for():
    def hashed(values, **changes):
        p = Parameters.parse(values | changes)
        (row,) = definitions.rows(p)
        return definition_hash(definition(p, row, 0))

    assert hashed(TWO) == hashed(TWO, normalisation="affine") != hashed(TWO, normalisation="softmax")
    assert hashed(THREE) == hashed(THREE, normalisation="softmax") != hashed(THREE, normalisation="affine")


def test_rows_name_every_source_and_each_is_looked_for():
    p = Parameters.parse(THREE | {"approaches": ["ft", "medmerge"], "more_weights": ["w/none.pt"]})
    assert [row.name for row in definitions.rows(p)] == ["ft-one", "ft-two", "ft-three", "medmerge-one-two-three"]
    (problem,) = inputs.missing(p, ["three"])
    assert problem.startswith("more_weights: no file w/none.pt")
    assert not inputs.missing(p, ["one", "two"])


def test_random_sources_differ_and_depend_on_their_seed():
    p = Parameters.parse(THREE)
    names = ("one", "two", "three")
    drawn = [inputs.load_source(p, n, seed).features.conv0.weight for seed in (0, 1) for n in names]
    assert len({w.sum().item() for w in drawn}) == 6
    assert (inputs.load_source(p, "three", 0).features.conv0.weight == drawn[2]).all()


def test_a_study_of_three_sources_keeps_and_reports_all_their_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "_config.yml").touch()
    p = Parameters.parse(THREE)
    (record,) = study.run(p)
    assert record.run["row"]["sources"] == ["one", "two", "three"] and len(record.run["sources"]) == 3
    epochs, history = record.kernel_history
    for name, w in record.source_weights.items():
        assert w.shape[0] == 3 and w.ndim == 2
        np.testing.assert_allclose(w.sum(0), 1, rtol=1e-5)
        assert np.abs(w - 1 / 3).max() > 1e-4
        np.testing.assert_allclose(history[name][-1], w[0], atol=1e-4)
    moved = report.displacement(record)
    flat = np.concatenate(list(record.kernel_weights.values()))
    assert moved["kernels"] == flat.size and moved["mean"] == pytest.approx(np.abs(flat - 1 / 3).mean())
    with pytest.raises(ValueError, match=r"has 3: give one source's weights, .*record\.source_weights"):
        explore(record)
    assert study.run(p)[0].run == record.run, "it is finished"
