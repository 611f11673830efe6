"""What the explorer takes, holds and says: the part that needs no browser."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_records import HISTORY, RUN, predictions

import medmerge
from medmerge.explorer import payload as explorer_data
from medmerge.pages.agreement import run_agreement
from medmerge.study import names, records
from medmerge.study.layers import architecture
from medmerge.study.layers import layers as study_layers
from medmerge.study.records import RecordError

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {"features.conv0": 6, "features.denseblock1.denselayer1.conv1": 4, "features.transition1.conv": 5}


def drawn(seed: int = 0, spread: float = 0.1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: (0.5 + rng.normal(0, spread, kernels)).astype(np.float32) for name, kernels in LAYERS.items()}


CONTROLS = pd.DataFrame(
    {
        "control": ["learnt", "start", "first source", "second source", *["shuffled", "random"] * 2],
        "score": [0.6, 0.59, 0.3, 0.4, 0.61, 0.58, 0.57, 0.6],
    }
).assign(draw=0, reestimated=0.55)


def record(folder, seed: int = 0, study: str = "moles", epochs: int = 4, weights=None, backbone="densenet_small"):
    """A finished merged run, with a history of its weights unless ``epochs`` is 0."""
    weights = drawn(seed) if weights is None else weights
    probe = pd.DataFrame(
        {"phase": "linear_probe", "epoch": range(1, 5), "train_loss": 1.0, "val_macro_f1": [1, 3, 3, 2]}
    )
    history = {
        name: np.stack([(w - 0.5) * (e + 1) / epochs for e in range(epochs)]).astype(np.float16)
        for name, w in weights.items()
        if epochs
    }
    run = {**RUN, "row": {"approach": "medmerge", "title": "MedMerge", "sources": ["imagenet", "clinic"]}, "seed": seed}
    run["data"] = {**RUN["data"], "name": study, "images": {"train": 30, "val": 10, "test": 5}}
    run["parameters"] = {**RUN["parameters"], "note": "Drawn, not photographed.", "select": "best"}
    run["parameters"] |= {"lp_lr": 1e-3, "batch_size": 10}
    run["provenance"] = {**RUN["provenance"], "commit": "abcdef0123456789"}
    where = folder / f"open/{study}/{backbone}/medmerge-imagenet-skin/seed{seed}"
    return records.write(
        where, run, pd.concat([probe, HISTORY]), predictions(), weights, history, {"controls": CONTROLS}
    )


def zeros(folder):
    """A finished run of one source merged with zeros."""
    merged = record(folder)
    run = {**merged.run, "row": {"approach": "medmerge_zeros", "title": "MedMerge with zeros", "sources": ["clinic"]}}
    where = merged.folder.parents[1] / "medmerge_zeros-skin" / "seed0"
    return records.write(where, run, merged.history, merged.predictions, merged.kernel_weights)


@pytest.fixture
def runs(tmp_path):
    return [record(tmp_path, 0), record(tmp_path, 1)]


FIRST = "moles/densenet_small/medmerge-imagenet-skin/seed0"
SECOND = "moles/densenet_small/medmerge-imagenet-skin/seed1"


class Counted:
    """Answers "what if" with a number of its own, and remembers the questions."""

    metric, images = "macro F1", 120

    def __init__(self):
        self.asked = []

    def __call__(self, layer, w):
        self.asked.append((layer, w))
        return 0.6 if w is None else 0.5 + w / 10


def test_what_is_shown_first_and_what_is_on_the_screen(runs):
    shown = medmerge.explore(runs)
    weights = runs[0].kernel_weights
    strongest = max(weights, key=lambda name: np.abs(weights[name] - 0.5).max())
    assert shown.selection == {
        **{"run": FIRST, "layer": strongest, "kernel": None, "epoch": None, "compare": "shuffled"},
        **{"view": "w", "order": "number"},
    }
    data = shown.data()
    assert list(data) == ["layer", "kernel", "w", "other", "difference"]
    assert data["kernel"].tolist() == list(range(LAYERS[strongest])) and np.array_equal(data["w"], weights[strongest])
    assert not np.array_equal(data["other"], data["w"]) and sorted(data["other"]) == sorted(data["w"])
    everything = shown.data(all_layers=True)
    assert everything.groupby("layer", sort=False).size().to_dict() == LAYERS
    shown.selection = {"compare": "start"}
    assert (shown.data()["other"] == 0.5).all()
    shown.selection = {"compare": ""}
    assert list(shown.data()) == ["layer", "kernel", "w"]


def test_a_selection_is_set_in_part_and_what_it_excludes_falls_back(runs):
    shown = medmerge.explore(runs, layer="features.transition1.conv", kernel=4, compare=SECOND, view="difference")
    data = shown.data()
    other = runs[1].kernel_weights["features.transition1.conv"]
    assert np.array_equal(data["other"], other) and np.array_equal(data["difference"], data["w"] - other)
    shown.selection = {"epoch": 2}
    assert shown.selection["layer"] == "features.transition1.conv" and shown.selection["kernel"] == 4
    epochs, history = runs[0].kernel_history
    assert np.array_equal(shown.data()["w"], history["features.transition1.conv"][list(epochs).index(2)])
    shown.selection = {"layer": "features.conv0"}
    assert shown.selection["kernel"] is None and shown.selection["compare"] == SECOND
    shown.selection = {"run": SECOND}
    assert (shown.selection["compare"], shown.selection["epoch"]) == ("shuffled", 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer": "conv9"}, "there is no layer 'conv9'; there are: features.conv0, "),
        ({"layer": "features.conv0", "kernel": 6}, "there is no kernel 6; there are: 0 to 5"),
        ({"epoch": 9}, "there is no epoch 9; there are: 1, 2, 3, 4"),
        ({"compare": FIRST}, "there is no compare 'moles/.*seed0'; there are: shuffled, start, moles/.*1$"),
        ({"view": "difference", "compare": ""}, "there is no view 'difference'"),
        ({"layers": "x"}, "there is no 'layers'; there are run, layer"),
    ],
)
def test_a_selection_that_is_not_there_is_refused(runs, wrong, message):
    with pytest.raises(ValueError, match=message):
        medmerge.explore(runs, **wrong)
    shown = medmerge.explore(runs)
    before = dict(shown.selection)
    with pytest.raises(ValueError, match=message):
        shown.selection = wrong
    assert shown.selection == before


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ({}, ValueError, "there are no layers"),
        ([], ValueError, "no run here has merging weights"),
        ("nowhere", FileNotFoundError, "no finished run in nowhere or below it; give a folder such as results"),
        (3, TypeError, "a folder of results, records, .* not int"),
        ({"a": [0.5, float("nan")]}, ValueError, "w of a is .*nan.* finite numbers"),
        ({"a": [[0.5]]}, ValueError, r"w of a is .* of shape \[1, 1\]"),
    ],
)
def test_what_cannot_be_shown_is_refused(what, error, message):
    with pytest.raises(error, match=message):
        medmerge.explore(what)


def test_a_folder_at_any_depth_is_its_finished_runs(runs, tmp_path):
    records.write(tmp_path / "open/a/b/ft-x/seed0", RUN, HISTORY, predictions(), {})
    three = {**runs[0].run, "row": {**runs[0].run["row"], "sources": ["a", "b", "c"]}}
    weights = {name: np.stack([w, w, 1 - 2 * w]) for name, w in drawn().items()}
    records.write(tmp_path / "open/a/b/medmerge-three/seed0", three, HISTORY, predictions(), weights)
    for folder in (tmp_path, tmp_path / "open", runs[0].folder.parent, str(tmp_path / "open/moles")):
        assert list(medmerge.explore(folder).runs) == [FIRST, SECOND]
    assert list(medmerge.explore(runs[1].folder).runs) == [SECOND]
    assert [one.folder for one in medmerge.records.gather(runs[1].folder)] == [runs[1].folder]


def test_other_things_that_are_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="give the names of two"):
        medmerge.explore({"a": [0.5]}, sources=["imagenet"])
    with pytest.raises(ValueError, match="trials: no run 'x'"):
        medmerge.explore(runs, trials={"x": Counted()})
    plain = records.write(tmp_path / "open/a/b/ft-x/seed0", RUN, HISTORY, predictions(), {})
    with pytest.raises(ValueError, match="no run here has merging weights of two sources"):
        medmerge.explore(plain)
    assert list(medmerge.explore([plain, *runs]).runs) == [FIRST, SECOND], "others are left out"
    three = medmerge.KernelMerge([torch.nn.Conv2d(3, 4, 3) for _ in range(3)])
    with pytest.raises(ValueError, match="this merge has 3"):
        medmerge.explore(three)


@pytest.mark.parametrize("granularity", ["kernel", "parameter", "layer", "model"])
def test_a_merge_is_shown_with_its_layers_shapes(granularity):
    def network():
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, (1, 3)), torch.nn.Conv2d(4, 4, 3, groups=4), torch.nn.Linear(4, 2)
        )

    merge = medmerge.KernelMerge([network(), network()], granularity=granularity)
    merge.set_kernel_weights(0.25)
    shown = medmerge.explore(merge, sources=["a", "b"])
    described = {name: (kernels, shape, kind) for name, kernels, shape, kind, _ in shown._packed["networks"][0]}
    assert described["0"] == (4, "4 × 3 × 1 × 3", "1×3 convolution")
    assert described["1"] == (4, "4 × 1 × 3 × 3", "3×3 depthwise convolution")
    assert described["2"] == (2, "2 × 4", "linear")
    assert (shown.data(all_layers=True)["w"] == 0.25).all() and shown.runs["merge"].sources == ("a", "b")
    several = medmerge.explore({"one": merge, "other": {k: w for k, w in shown.runs["merge"].weights.items()}})
    assert list(several.runs) == ["one", "other"]


def test_one_source_merged_with_zeros_has_these_at_its_other_end(tmp_path):
    shown = explorer_data.collect([record(tmp_path), zeros(tmp_path)])
    assert [run.sources for run in shown] == [("ImageNet", "clinic"), ("clinic", "zeros")]


@pytest.mark.parametrize(("backbone", "layers", "kernels"), [("densenet121", 120, 10_240), ("resnet50", 53, 26_560)])
def test_layers_of_the_papers_networks_are_named(backbone, layers, kernels):
    sizes = {name: shape[0] for name, (_, shape) in architecture(backbone).items()}
    described = study_layers({name: np.full(n, 0.5) for name, n in sizes.items()}, backbone)
    assert len(described) == layers and sum(layer.kernels for layer in described) == kernels
    first, last = described[0], described[-1]
    assert (first.shape, first.kind, first.block) == ("64 × 3 × 7 × 7", "7×7 convolution", "stem")
    assert {layer.kind for layer in described} == {"7×7 convolution", "1×1 convolution", "3×3 convolution"}
    assert last.block == {"densenet121": "dense block 4", "resnet50": "layer 4"}[backbone]


def unpacked(packed: dict) -> np.ndarray:
    whole = np.frombuffer(base64.b64decode(packed["base64"]), f"<i{packed['bits'] // 8}")
    return 0.5 + whole * packed["step"]


@pytest.mark.parametrize("bits", [16, 8])
def test_the_page_holds_every_weight_and_a_history_within_its_budget(runs, monkeypatch, bits):
    monkeypatch.setattr(explorer_data, "WEIGHT_BYTES", 60 if bits == 16 else 59)
    monkeypatch.setattr(explorer_data, "HISTORY_BYTES", 2 * sum(LAYERS.values()) * bits // 8)
    monkeypatch.setattr(explorer_data, "EPOCHS", 2)
    page = medmerge.explore(runs, compare=SECOND).html()
    content = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])
    assert content["selection"]["compare"] == SECOND and "history" not in content["runs"][1], "one study, one history"
    for packed, run in zip(content["runs"], runs, strict=True):
        everything = np.concatenate(list(run.kernel_weights.values()))
        most = np.abs(everything - 0.5).max()
        np.testing.assert_allclose(unpacked(packed["w"]), everything, atol=0.51 * most / (2 ** (bits - 1) - 1))
        assert 0.5 * most < content["half"] < 2 * max(0.01, most)
    assert content["runs"][0]["epochs"] == [2, 4], "the last and every second before it"
    kept = np.concatenate([w[[1, 3]] for w in runs[0].kernel_history[1].values()], axis=1)
    stored = unpacked(content["runs"][0]["history"]).reshape(2, -1)
    np.testing.assert_allclose(stored, kept, atol=2e-3 if bits == 8 else 1e-5)
    with pytest.raises(ValueError, match="there is no epoch 3; there are: 2, 4"):
        medmerge.explore(runs, epoch=3)
    monkeypatch.setattr(explorer_data, "BYTES", 3 * sum(LAYERS.values()) * bits // 8)
    assert not any("history" in run for run in explorer_data.payload(explorer_data.collect(runs))["runs"])


def test_a_run_knows_its_budget_and_what_its_weights_are_worth(runs):
    run = medmerge.explore(runs).runs[FIRST]
    assert f"record open/{FIRST}" in run.facts and "kept: epoch 2" in run.facts
    assert run.budget == pytest.approx(1e-3 * 2 * 3), "the rate times three steps an epoch up to the second"
    assert run.controls[0] == ("learnt", [0.6], pytest.approx(0.55)) and run.metric == "macro F1"
    assert dict((name, scores) for name, scores, _ in run.controls)["shuffled"] == [0.61, 0.57]
    assert explorer_data.collect({"a": [0.5, 0.6]})[0].budget == 0


def test_the_page_is_whole_the_same_each_time_and_asks_nobody(runs):
    one, other = medmerge.explore(runs).html(), medmerge.explore(runs).html()
    assert one == other
    assert not re.search(
        r"(?:src|href)=[\"']?(?:https?:)?//|@import|fetch\(|import\s*\(|url\(", one.replace("data:", "")
    )
    assert one.count('<script type="module">') == 1 and "export " not in one
    assert "<table" in one, "for readers without scripts"
    weights = np.concatenate(list(runs[0].kernel_weights.values()))
    assert f"<td>{weights.mean():.3f}</td>" in one


def test_names_cannot_break_out_of_the_page():
    strange = "</script><img src=x onerror=alert(1)>"
    page = medmerge.explore({strange: {"a&<b>": [0.4, 0.6]}}, sources=(strange, "b")).html()
    assert strange not in page and page.count("</script>") == 2
    content = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])
    assert content["runs"][0]["name"] == strange and content["runs"][0]["sources"] == [strange, "b"]


def test_a_notebook_gets_both_forms(runs):
    data, _ = medmerge.explore(runs)._repr_mimebundle_()
    assert set(data) == {"text/plain", "text/html", "application/vnd.jupyter.widget-view+json"}
    assert data["text/plain"].startswith(f"Explorer of 2 runs: {FIRST}") and " at 0x" not in data["text/plain"]


def test_what_if_is_answered_once_noted_and_never_hidden(runs, caplog):
    trial = Counted()
    shown = medmerge.explore(runs, trials={runs[0].folder: trial}, layer="features.conv0")
    assert shown.try_weights(None) == 0.6 and shown.try_weights(1.0) == 0.6 and shown.try_weights(0.0) == 0.5
    assert trial.asked == [("features.conv0", None), ("features.conv0", 1.0), ("features.conv0", 0.0)]
    assert [(one["w"], one["score"]) for one in shown._tried] == [(None, 0.6), (1.0, 0.6), (0.0, 0.5)]
    shown._asked = {"run": FIRST, "layer": "features.transition1.conv", "w": 0.5, "number": 1}
    assert shown._tried[-1] == {**shown._asked, "score": 0.55}
    trial.__class__ = type("Broken", (Counted,), {"__call__": lambda *a: 1 / 0})
    shown._asked = {"run": FIRST, "layer": "features.conv0", "w": 0.5, "number": 2}
    assert "division by zero" in shown._tried[-1]["error"] and "what if" in caplog.text
    with pytest.raises(ValueError, match="nothing can try weights of moles.*seed1"):
        shown.selection = {"run": SECOND}
        shown.try_weights(1.0)


def test_agreement_of_runs(tmp_path):
    base = drawn(0)
    runs = [
        record(tmp_path, 0, weights=base),
        record(tmp_path, 1, weights={k: 1 - w for k, w in base.items()}),
        record(tmp_path, 0, study="eyes", weights=base),
        record(tmp_path, 2, weights={"a": np.float32([0.1, 0.2])}, backbone="other"),
    ]
    runs[2].run["sources"] = {"b": "5", "c": "6"}
    seed, study = run_agreement(runs).itertuples()
    assert (seed.network, seed.apart, seed.pairs) == ("a small DenseNet", "seed", 1)
    assert seed.correlation == pytest.approx(-1, abs=1e-5)
    assert (study.apart, study.pairs) == ("study or settings, and networks merged", 2)
    assert (study.least, study.most) == pytest.approx((-1, 1), abs=1e-5)
    weights = np.concatenate(list(base.values()))
    row = run_agreement(runs[:2]).iloc[0]
    assert row["same side"] == 0 and row["mean |difference|"] == pytest.approx(np.abs(2 * weights - 1).mean(), abs=1e-6)
    assert run_agreement(runs[2:]).empty


def test_the_published_page_shows_every_recorded_study_under_a_name_of_its_own():
    page = json.loads((ROOT / "results/open/weights.ipynb").read_text())
    (html,) = (
        "".join(o["data"]["text/html"]) for c in page["cells"] for o in c.get("outputs", []) if "mm-page" in str(o)
    )
    content = re.search(r'<script type="application/json">(.*?)</script>', html, re.S)[1]
    shown, recorded = json.loads(content)["runs"], records.merged(ROOT / "results/open", ["*"])
    studies = {"/".join(r.folder.parts[-4:]) for r in recorded if r.num_merged == 2}
    assert {run["name"] for run in shown} == {name for name in studies if not name.startswith("skin-premise/")}
    assert len(content.encode()) < 1_500_000 and {run["study"] for run in shown} <= set(names.PAIRS.values())
    assert len({(run["study"], run["backbone"], run["label"], run["seed"]) for run in shown}) == len(shown)


def test_merged_runs_of_studies(tmp_path):
    made = [record(tmp_path, 0), record(tmp_path, 1), record(tmp_path, 0, study="eyes")]
    found = records.merged(tmp_path / "open", ["eyes", "moles/densenet_small"])
    assert [r.folder for r in found] == [made[2].folder, made[0].folder, made[1].folder]
    with pytest.raises(
        RecordError, match="no merged run of hearts .*there are: eyes/densenet_small, moles/densenet_small"
    ):
        records.merged(tmp_path / "open", ["hearts"])
    assert [r.folder for r in records.merged(tmp_path / "open", ["mo*", "*"])] == [r.folder for r in made]
    with pytest.raises(RecordError, match="for the second time"):
        records.merged(tmp_path / "open", ["moles", "moles/densenet_small"])
