"""From parameters to records: what is refused, run, resumed after an interruption, and not run again."""

import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from data_fixtures import write_ham10k, write_isic2019

from medmerge import Parameters, backbone, data, devices, explore, save_backbone, training
from medmerge.approaches import APPROACHES, matching
from medmerge.backbones import CheckpointError, read_state
from medmerge.pages import report
from medmerge.stats import evaluation
from medmerge.study import definitions, inputs, revisits
from medmerge.study import run as study
from medmerge.study.definitions import Row
from medmerge.study.params import ParameterError, Role
from medmerge.study.records import RecordError, read

TINY = {
    **{"base_data": "objects", "base_weights": "w/objects.safetensors"},
    **{"source_data": "lesions", "source_weights": "w/lesions.safetensors"},
    **{"backbone": "densenet_small", "image_size": 32, "fractions": [0.2, 0.2, 0.6], "precision": "fp32"},
    **{"device": "cpu", "lp_epochs": 2, "lp_lr": 3e-2, "ft_epochs": 2, "ft_lr": 2e-3},
}


def parameters(**changes) -> Parameters:
    return Parameters.parse({**TINY, **changes})


def write_weights(folder):
    for seed, name in enumerate(("objects", "lesions")):
        torch.manual_seed(seed)
        save_backbone(backbone("densenet_small", "random"), folder / "w" / f"{name}.safetensors", "densenet_small")


@pytest.fixture
def project(project):
    """A project with two sources."""
    write_weights(project)
    return project


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """All five rows, run once without interruption: a folder and the records. Only to be read."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MEDMERGE_CACHE", str(folder.parent / "cache"))
        write_weights(folder)
        return folder, study.run(parameters())


def copy_of(finished, project):
    """The finished records, in a project of a test's own."""
    shutil.copytree(finished[0] / "results", project / "results")


def files(folder) -> dict:
    return {p.relative_to(folder): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_every_parameter_is_part_of_the_numbers_or_says_what_else_it_is():
    p, other = parameters(), object()  # no parameter has this value
    rows = [Row(name, ("objects",)) for name in APPROACHES]

    def moved(name):
        """Approaches whose definition another value of a parameter changes."""
        changed = p.model_copy(update={name: other})
        return {row.approach for row in rows if definitions.definition(changed, row, 0).get(name) is other}

    for name in Parameters.model_fields:
        role = Parameters.model_fields[name].json_schema_extra["role"]
        of = {"data": set(APPROACHES), "training": set(APPROACHES)}
        of["approach"] = {one for one in APPROACHES if name in APPROACHES[one].reads}
        assert role in get_args(Role), name
        assert moved(name) == of.get(role, set()), name
        assert role != "approach" or of[role], name


def defined(row: Row, seed: int = 0, **changes) -> str:
    return definitions.definition_hash(definitions.definition(parameters(**changes), row, seed))


def test_definitions_tell_runs_apart_by_hash():
    ft, other = Row("ft", ("objects",)), Row("ft", ("lesions",))
    assert len({defined(ft), defined(ft, 1), defined(other), defined(ft, resize="pad")}) == 4
    assert defined(ft, resize="stretch") == defined(ft, lp_lr=0.5) == defined(ft)
    merged = ("medmerge", ("objects", "lesions"))
    assert defined(Row(*merged, (("batchnorm", 1), ("w_lr", 0.1)))) == defined(Row(*merged), batchnorm=1, w_lr=0.1)
    assert (
        defined(Row(*merged))
        == defined(Row(*merged), normalisation="affine")
        != defined(Row(*merged), normalisation="softmax")
    )
    three, more = Row("medmerge", ("a", "b", "c")), {"more_data": ["c"], "more_weights": ["random"]}
    assert defined(three, **more) == defined(three, **more, normalisation="softmax")
    for name, approach in APPROACHES.items():
        assert set(approach.settings) - {"score_controls"} <= approach.reads, f"{name}: these only add a table"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_data": "synthetic:mole"}, "target_data: unknown 'synthetic:mole'; did you mean synthetic:moles"),
        ({"backbone": "resnet5"}, "backbone: unknown backbone 'resnet5'; did you mean .*resnet50"),
        ({"source_data": "", "source_weights": ""}, "medmerge merges two sources; give source_data and source_weights"),
        ({"base_weights": "w/none.pt"}, r"base_weights: no file w/none\.pt: .*give the path .* or imagenet"),
        ({"base_weights": "imagnet"}, "base_weights: unknown weights 'imagnet' for densenet_small; allowed: random"),
        ({"target_data": "ham10k"}, "target_root: ham10k needs the folder .* must hold HAM10000_.* Get"),
        ({"target_data": "isic2019", "target_root": "gone"}, "target_root: no gone: .* must hold ISIC_2019_.* Get"),
        ({"target_data": "x", "backbone": "y", "approaches": ["z"]}, r"(?s)approaches: .*backbone: .*target_data: "),
        ({"base_weights": "w/a.pt", "source_weights": "w/b.pt", "target_root": "c"}, r"(?s)a\.pt.*b\.pt.*target_root"),
    ],
)  # fmt: skip
def test_check_refuses_before_anything_is_written(project, changes, message):
    before = files(project)
    for function in (study.check, study.run):
        with pytest.raises(ParameterError, match=message):
            function(parameters(**changes))
    assert files(project) == before


def test_a_run_leaves_a_whole_record(finished):
    folder, records = finished
    classes = ["common", "atypical", "globular", "melanoma"]
    labels = ["FT objects", "FT lesions", "LP-FT objects", "LP-FT lesions", "MedMerge objects + lesions"]
    assert [record.label for record in records] == labels
    for record in records:
        merged = record.run["row"]["approach"] == "medmerge"
        assert {p.name for p in record.folder.iterdir()} == {
            *("run.json", "history.csv", "predictions.csv", "checkpoint"),
            *(["predictions_linear_probe.csv"] if record.run["row"]["approach"] != "ft" else []),
            *(["batchnorm.csv", "controls.csv"] if merged else []),
            *(["kernel_weights.safetensors", "kernel_weights_history.safetensors"] if merged else []),
        }
        assert {p.name for p in (record.folder / "checkpoint").iterdir()} == {
            *("model.safetensors", "model.images.csv"),
            *(["merge.safetensors"] if merged else []),
        }
        scores = evaluation.metrics(record.labels, record.probabilities, classes)
        assert record.run["metrics"] == pytest.approx(scores, abs=1e-6)
        assert record.run["data"]["classes"] == classes
        assert len(record.predictions) == sum(record.run["data"]["counts"]["test"].values()) > 300
        assert record.predictions["id"].is_unique
        phases = ["fine_tune"] if record.run["row"]["approach"] == "ft" else ["linear_probe", "fine_tune"]
        assert list(zip(record.history["phase"], record.history["epoch"], strict=True)) == [
            (phase, epoch) for phase in phases for epoch in (1, 2)
        ]
        assert set(record.run["cost"]) >= set(phases)
        assert record.run["parameters"] == json.loads(parameters().model_dump_json())
        assert str(folder) not in json.dumps(record.run)


def test_learnt_weights_are_of_every_kernel_and_their_history_leads_to_them(finished):
    merged = finished[1][-1]
    network = backbone("densenet_small", "random")
    kernels = {n: (len(m.weight),) for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert list(kernels.items()) == [(name, w.shape) for name, w in merged.kernel_weights.items()]
    epochs, history = merged.kernel_history
    assert epochs.tolist() == [1, 2] and list(history) == list(merged.kernel_weights)
    probe = merged.history[merged.history["phase"] == "linear_probe"]
    kept = int(probe["val_macro_f1"].to_numpy().argmax())
    for name, w in merged.kernel_weights.items():
        np.testing.assert_allclose(history[name][kept], w, atol=2e-4, err_msg=name)
        assert np.abs(history[name][1] - history[name][0]).max() > 1e-3 and np.abs(w - 0.5).max() > 1e-3
    assert not finished[1][0].kernel_history[1], "nothing was merged"


def test_all_rows_are_tested_on_the_same_images_and_trained(finished):
    dataset = data.load("synthetic:moles", image_size=32, fractions=(0.2, 0.2, 0.6))
    truth = [dataset.classes[k] for k in dataset.test.labels]
    states = [read_state(finished[0] / "w" / f"{name}.safetensors") for name in ("objects", "lesions")]
    for record in finished[1]:
        assert record.run["data"]["fingerprint"] == dataset.fingerprint
        assert list(record.predictions["id"]) == list(dataset.test.ids)
        assert list(record.predictions["label"]) == truth
        states.append(read_state(record.folder / "checkpoint" / "model.safetensors"))
    assert len({state["features.conv0.weight"].numpy().tobytes() for state in states}) == 7
    head = {"classifier.weight", "classifier.bias"}
    assert all(state.keys() - head == states[0].keys() for state in states)


def test_first_epochs_start_from_the_same_head_in_all_rows(project, monkeypatch):
    """Read off what `fit` is given, in a whole study."""
    heads = {}

    def note(model, train, val, phase, task, still=()):
        heads.setdefault(task.key, getattr(model, "head", model).weight.detach().clone())
        raise InterruptedError

    monkeypatch.setattr(training, "fit", note)
    p = parameters()
    dataset = study.load_data(p)
    for row in definitions.rows(p):
        with pytest.raises(InterruptedError):
            study.run_row(p, row, 0, dataset)
    first, *others = heads.values()
    assert len(others) == 4 and all(torch.equal(first, other) for other in others)


def test_what_is_finished_is_not_repeated_and_needs_neither_data_nor_weights_nor_device(project, finished, monkeypatch):
    copy_of(finished, project)
    for path in (project / "w").iterdir():
        path.unlink()
    before = files(project / "results")
    monkeypatch.setattr(data, "load", None)
    again = study.run(parameters(device="cuda", target_root="gone"))
    assert files(project / "results") == before
    assert [record.run for record in again] == [record.run for record in finished[1]]


def test_a_finished_run_of_another_definition_is_refused(project, finished):
    copy_of(finished, project)
    before = files(project / "results")
    for changes, message in (
        ({"ft_lr": 0.5}, r"ft-objects.* ft_lr is 0\.002 there and 0\.5 here\. .* another `pair`"),
        ({"resize": "pad"}, r"ft-objects.* resize is 'stretch' there and 'pad' here"),
        ({"granularity": "layer"}, "medmerge-objects-lesions.* granularity is 'kernel' there and 'layer' here"),
    ):
        with pytest.raises(RecordError, match=message):
            study.run(parameters(**changes))
    assert study.check(parameters(lp_lr=0.5, approaches=["ft"])) == []
    assert files(project / "results") == before


def test_auto_takes_a_run_in_either_precision_as_finished_and_nothing_else_takes_that_of_another(project):
    p = parameters(approaches=["ft"], seeds=[0], ft_epochs=1, precision="fp32")
    folders = [record.folder for record in study.run(p)]
    assert [record.folder for record in study.run(p.model_copy(update={"precision": "auto"}))] == folders
    with pytest.raises(RecordError, match="precision is 'fp32' there and 'bf16' here"):
        study.run(p.model_copy(update={"precision": "bf16"}))


def test_a_run_is_not_continued_in_another_precision(project, monkeypatch):
    """As on a cluster of several kinds of processors."""
    options, validate, calls = {"approaches": ["ft"], "precision": "auto"}, training.validate, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return validate(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "validate", interrupted)
        patch.setattr(devices, "_capabilities", dict)
        study.run(parameters(**options))
    monkeypatch.setattr(devices, "_capabilities", lambda: {"avx512_bf16": True})
    records = [study.run(parameters(**options, pair=pair))[0] for pair in ("demo", "whole")]
    assert [record.run["precision"] for record in records] == ["bf16", "bf16"]
    assert records[0].run["network"] == records[1].run["network"]


def test_other_data_or_weights_under_a_finished_record_are_refused(project, finished):
    copy_of(finished, project)
    path = project / "results/demo/demo/densenet_small/ft-lesions/seed0/run.json"
    before = path.read_text()
    run = json.loads(before)
    path.write_text(json.dumps(run | {"data": run["data"] | {"fingerprint": "0" * 64}}))
    with pytest.raises(RecordError, match="ft-lesions.seed0 was computed on other images"):
        study.run(parameters(seeds=[0, 1]))
    path.write_text(before)
    save_backbone(backbone("densenet_small", "zeros"), project / "w/lesions.safetensors", "densenet_small")
    with pytest.raises(RecordError, match="ft-lesions.seed0 started from other weights of lesions than are here now"):
        study.run(parameters(seeds=[0, 1]))
    (project / "w/lesions.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"lesions\.safetensors is text, not weights"):
        study.run(parameters(seeds=[0, 1]))
    assert not list(project.rglob("seed1"))


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text('{"hash": "x')])
def test_a_damaged_record_is_not_run_over(project, finished, damage):
    copy_of(finished, project)
    folder = project / "results/demo/demo/densenet_small/medmerge-objects-lesions/seed0"
    damage(folder / ("history.csv" if damage is Path.unlink else "run.json"))
    before = files(project / "results")
    with pytest.raises(RecordError, match="medmerge-objects-lesions.seed0.*(lacks history.csv|is damaged).*restore it"):
        study.run(parameters())
    assert files(project / "results") == before


@pytest.fixture
def source():
    alone = {"approaches": ["ft"], "source_data": "", "source_weights": "", "ft_epochs": 1, "pair": "source"}
    return parameters(**alone, save_weights="out/moles.safetensors")


def test_save_weights_makes_a_source_also_after_the_run(project, source, caplog):
    (record,) = study.run(source)
    path = project / "out/moles.safetensors"
    content, before = path.read_bytes(), files(project)
    assert content == (record.folder / definitions.MODEL).read_bytes()
    study.run(source)
    assert files(project) == before
    assert len(study.check(parameters(source_data="moles", source_weights="out/moles.safetensors"))) == 5
    path.unlink()
    study.run(source)
    assert path.read_bytes() == content and not list(path.parent.glob(".*"))
    path.unlink()
    (record.folder / definitions.MODEL).unlink()
    study.run(source)
    assert not path.exists() and str(project) not in caplog.text
    assert "save_weights: this finished run's network is not here" in caplog.text


def test_every_seed_has_a_source_of_its_own(project, source):
    seeds = {"seeds": [0, 1]}
    study.run(source.model_copy(update={**seeds, "save_weights": "out/moles-{seed}.safetensors"}))
    one, other = (project / f"out/moles-{seed}.safetensors" for seed in (0, 1))
    assert one.read_bytes() != other.read_bytes()
    pair = {"source_data": "moles", "source_weights": "out/moles-{seed}.safetensors", "approaches": ["ft"], **seeds}
    row = Row("ft", ("moles",))
    other.rename(project / "kept")
    (first,) = study.run(parameters(**pair), [(row, 0)])
    with pytest.raises(ParameterError, match=r"no file out/moles-1\.safetensors"):
        study.check(parameters(**pair))
    (project / "kept").rename(other)
    one.unlink()  # of a finished seed nothing is needed
    (second,) = study.run(parameters(**pair), [(row, 1)])
    assert first.run["sources"]["moles"] != second.run["sources"]["moles"]
    shutil.copyfile(other, one)
    with pytest.raises(RecordError, match=r"seed0 started from other weights of moles"):
        study.run(parameters(**{**pair, "approaches": ["ft", "lp_ft"]}), [(Row("lp_ft", ("moles",)), 0)])


def test_images_of_the_source_are_left_out_of_the_target_even_where_its_own_copy_is_not_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_ham10k(tmp_path / "ham")
    classes = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
    labels = {f"ISIC_{n:07d}": classes[n % 8] for n in range(94)}
    write_isic2019(tmp_path / "isic", labels)
    (tmp_path / "ham" / "images" / "ISIC_0000003.jpg").unlink()
    p = parameters(
        **{"target_data": "isic2019", "target_root": "isic", "exclude_data": "ham10k", "exclude_root": "ham"},
        fractions=[0.6, 0.2, 0.2],
    )
    dataset = study.load_data(p)
    ids = {i for part in (dataset.train, dataset.val, dataset.test) for i in part.ids}
    assert ids == {f"ISIC_{n:07d}" for n in range(14, 94)}


VARIED = {"approaches": ["lp_ft", "medmerge"], "vary": {"batchnorm_free": ["both", "none"], "w_lr": [None, 0.1]}}


def test_varied_settings_make_a_row_for_each_combination_that_an_approach_reads():
    names = [row.name for row in definitions.rows(parameters(**VARIED))]
    assert names == [
        *("lp_ft-objects", "lp_ft-lesions", "medmerge-objects-lesions", "medmerge-objects-lesions+w_lr=0.1"),
        *("medmerge-objects-lesions+batchnorm_free=none", "medmerge-objects-lesions+batchnorm_free=none+w_lr=0.1"),
    ]
    plain = parameters(approaches=["medmerge"])
    row = definitions.rows(plain)[0]
    assert row in definitions.rows(parameters(**VARIED)), "with the study's own values it is the study's own row"


def test_a_row_with_the_studys_own_values_is_the_studys_own_row():
    plain, varied = parameters(approaches=["medmerge"]), parameters(**VARIED)
    row = definitions.rows(plain)[0]
    assert row in definitions.rows(varied) and definitions.folder(plain, row, 0) == definitions.folder(varied, row, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vary": {"batchnorm_fre": ["both"]}}, "vary: batchnorm_fre: unknown parameter; did you mean batchnorm_free"),
        ({"vary": {"batchnorm": ["mean", "median"]}}, "vary: batchnorm: 'median'"),
        ({"vary": {"w_lr": []}}, r"vary: w_lr: \[\] must hold one value at least"),
        ({"vary": {"resize": ["pad", "stretch"]}}, "vary: resize is shared by all runs of a study"),
        ({"vary": {"device": ["cpu", "cuda"]}}, "vary: device is read by none"),
        ({"vary": {"ft_epochs": [2, 0]}}, "ft_epochs: 0 leaves nothing of the approach ft"),
    ],
)
def test_a_varied_setting_that_cannot_be_or_changes_nothing_is_refused(project, changes, message):
    with pytest.raises(ParameterError, match=message):
        study.check(parameters(**changes))


def test_an_ablation_adds_to_its_study_and_keeps_what_its_probe_predicted(project):
    one = study.run(parameters(approaches=["medmerge"]))
    changes = {"approaches": ["medmerge", "medmerge_zeros"], "vary": {"batchnorm_free": ["both", "none"]}}
    before = files(one[0].folder)
    found = study.run(parameters(**changes))
    assert files(one[0].folder) == before and len(found) == 6
    frozen = found[1]
    assert frozen.label == "MedMerge objects + lesions (free in batch norm: none)"
    assert frozen.run["definition"]["batchnorm_free"] == frozen.run["parameters"]["batchnorm_free"] == "none"
    assert frozen.run["parameters"]["vary"] == {} and frozen.settings == {"batchnorm_free": "none"}
    for record in found:
        probed = record.after_probe()
        assert probed.label == record.label and not np.allclose(probed.probabilities, record.probabilities)
        scored = evaluation.metrics(probed.labels, probed.probabilities, record.run["data"]["classes"])["macro_f1"]
        assert scored == pytest.approx(probed.run["metrics"]["macro_f1"])
        assert set(record.batchnorm["when"]) == {"before probe", "after probe"} and not record.controls.empty
    assert found[0].kernel_weights.keys() == found[2].kernel_weights.keys()
    assert found[2].run["row"]["sources"] == ["objects"]


def test_a_permuted_twin_merges_like_the_source_itself_once_aligned(project):
    """Aligned, the two are one network, whose merge is that network whatever w is."""
    source = backbone("densenet_small", "w/objects.safetensors")
    groups = matching.permutation_groups(source, image_size=32)
    shuffled = {name: torch.randperm(group.size) for name, group in groups.items()}
    twin = matching.permute(source, groups, shuffled)
    save_backbone(twin, project / "w" / "lesions.safetensors", "densenet_small")
    found = study.run(parameters(approaches=["medmerge"], vary={"align": ["none", "weights"]}, ft_epochs=0))
    unlike, alike = (record.controls.drop_duplicates("control").set_index("control")["score"] for record in found)
    assert alike["first source"] == alike["second source"] == alike["learnt"] == alike["start"]
    assert len(set(unlike[["first source", "second source", "learnt", "start"]])) > 1


# ---------------------------------------------------------------- other merging weights in a finished merge


def test_a_trial_replaces_the_weights_of_a_layer_and_puts_them_back(finished, monkeypatch):
    monkeypatch.chdir(finished[0])
    merged, layer, seen = finished[1][-1], "features.denseblock1.denselayer1.conv1", []
    (trial,) = revisits.later_trials([merged]).values()
    assert trial.metric == "macro F1" and trial.images == merged.images["val"] != merged.images["test"]

    def scored(model, samples, task):
        seen.append({name: w.numpy() for name, w in model.backbone.kernel_weights().items()})
        assert len(samples) == trial.images
        return training.validate(model, samples, task)

    monkeypatch.setattr("medmerge.study.revisits.validate", scored)
    history = merged.history
    best = history[history["phase"] == "linear_probe"]["val_macro_f1"].max()
    assert trial(layer, None) == pytest.approx(best, abs=1e-6), "as learnt"
    score = trial(layer, 1.0)
    assert trial(layer, 1.0) == score and len(seen) == 2, "computed once"
    after = {name: w.numpy() for name, w in trial.merging.backbone.kernel_weights().items()}
    for name, w in merged.kernel_weights.items():
        assert np.array_equal(w, after[name])
        assert (seen[1][name] == 1).all() if name == layer else np.array_equal(seen[1][name], w)
    with pytest.raises(KeyError, match="no merged layer"):
        trial("features.conv9", 0.5)


@pytest.mark.parametrize("settings", [{"approaches": ["medmerge_zeros"]}, {"batchnorm": "repair", "align": "weights"}])
def test_merges_of_every_kind_are_rebuilt(project, settings):
    record = study.run(parameters(**{"approaches": ["medmerge"], **settings}))[0]
    trial = revisits.Trial(record)
    assert trial(next(iter(record.kernel_weights)), None) == pytest.approx(record.controls.iloc[0]["score"])


def test_what_a_merge_cannot_be_rebuilt_without_is_named(project, finished):
    copy_of(finished, project)
    merged = read(project / finished[1][-1].folder.relative_to(finished[0]))
    (project / "w/objects.safetensors").unlink()
    with pytest.raises(ParameterError, match="no file w/objects.safetensors"):
        revisits.merged_classifier(merged)
    (merged.folder / definitions.MERGE).unlink()
    assert not revisits.later_trials([merged])
    with pytest.raises(RecordError, match="lies only where the run was computed"):
        revisits.merged_classifier(merged)


# ---------------------------------------------------------------- three sources


THREE = {
    **{"pair": "tiny", "base_data": "one", "base_weights": "random", "source_data": "two", "source_weights": "random"},
    **{"target_data": "synthetic:moles", "backbone": "densenet_small", "image_size": 32, "approaches": ["medmerge"]},
    **{"lp_epochs": 1, "ft_epochs": 1, "lp_lr": 1e-2, "ft_lr": 1e-3, "device": "cpu", "precision": "fp32"},
    **{"more_data": ["three"], "more_weights": ["random"]},
}


def test_every_source_has_its_row_and_is_looked_for_and_random_ones_differ():
    p = Parameters.parse(THREE | {"approaches": ["ft", "medmerge"], "more_weights": ["w/none.pt"]})
    assert [row.name for row in definitions.rows(p)] == ["ft-one", "ft-two", "ft-three", "medmerge-one-two-three"]
    (problem,) = inputs.missing(p, ["three"])
    assert problem.startswith("more_weights: no file w/none.pt") and not inputs.missing(p, ["one", "two"])
    p, names = Parameters.parse(THREE), ("one", "two", "three")
    drawn = [inputs.load_source(p, n, seed).features.conv0.weight for seed in (0, 1) for n in names]
    assert len({w.sum().item() for w in drawn}) == 6
    assert (inputs.load_source(p, "three", 0).features.conv0.weight == drawn[2]).all()


def test_a_study_of_three_sources_keeps_and_reports_all_their_weights(project):
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
