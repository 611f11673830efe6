"""The rivals of MedMerge: what they average, what they choose, and that a recalled network is the trained one."""

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from test_study import parameters, write_weights
from test_training import findings, samples, source
from torch import nn

from medmerge import Classifier, batchnorm, checkpoints, training
from medmerge.approaches import APPROACHES, CORE, RIVALS, rivals
from medmerge.approaches.paper import ft, lp_ft
from medmerge.approaches.rivals import (
    Ensemble,
    average,
    averaged,
    best_between,
    blend,
    diagonal_fisher,
    fisher_mean,
    score,
    soup,
)
from medmerge.pages import origin, report
from medmerge.saving import save
from medmerge.study import definitions
from medmerge.study import run as study
from medmerge.study.params import ParameterError
from medmerge.training import Protocol, Task, predict

FAST = Protocol(lp_epochs=2, lp_lr=1e-2, ft_epochs=2, ft_lr=1e-3, batch_size=16, precision="fp32", device="cpu")
BOTH = ("objects", "lesions")


def task(several: bool = False, **changes) -> Task:
    images = findings if several else samples
    protocol = dataclasses.replace(FAST, **{k: v for k, v in changes.items() if hasattr(FAST, k)})
    fields = {k: v for k, v in changes.items() if not hasattr(FAST, k)}
    return Task(images(49, 0), images(40, 1), 3, protocol=protocol, **fields)


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def trained(seed: int) -> nn.Module:
    """A source whose batch norms have statistics and affine parameters of their own."""
    model = source(seed)
    generator = torch.Generator().manual_seed(seed)
    for norm in batchnorm.layers(model).values():
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.add_(torch.rand(tensor.shape, generator=generator))
        norm.num_batches_tracked.fill_(seed + 7)
    return model


# ---------------------------------------------------------------- merging the sources, without learning how


@pytest.mark.parametrize("count", [2, 3])
def test_the_average_is_the_mean_of_every_float_and_the_firsts_counters(count):
    networks = [trained(seed) for seed in range(count)]
    states = [network.state_dict() for network in networks]
    for name, value in averaged(networks).state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, sum(state[name] for state in states) / count)
        else:
            assert value.item() == 7
    assert same(averaged([networks[0], trained(0)]), networks[0])


def test_the_average_takes_the_policies_of_batch_norm():
    b, c = trained(0), trained(1)
    network = averaged([b, c], 1)
    for name, norm in batchnorm.layers(network).items():
        assert torch.equal(norm.running_var, c.get_submodule(name).running_var)
        assert torch.equal(norm.weight, c.get_submodule(name).weight)
    torch.testing.assert_close(network.features.conv0.weight, (b.features.conv0.weight + c.features.conv0.weight) / 2)


def test_average_is_lp_ft_from_the_average():
    b, c = trained(0), trained(1)
    one, other = task(), task()
    outcome, expected = average([b, c], one), lp_ft(averaged([b, c]), other)
    assert same(outcome.model, expected.model) and one.history == other.history
    assert same(b, trained(0)) and same(c, trained(1)), "sources are left alone"


def test_average_starts_from_statistics_measured_on_training_images_if_asked(monkeypatch):
    starts = []
    monkeypatch.setattr(rivals, "lp_ft", lambda network, task: starts.append(copy.deepcopy(network)))
    b, c, one = trained(0), trained(1), task()
    for start in ("mean", "reestimated", "repair"):
        average([b, c], one, batchnorm=start)
    mean, measured, repaired = starts
    reports = [batchnorm.report(network, one.measured)["variance_ratio"] for network in starts]
    assert not np.allclose(reports[0], 1, atol=0.1) and np.allclose(reports[1:], 1, atol=0.1)
    assert torch.equal(mean.features.norm0.weight, measured.features.norm0.weight)
    assert not torch.equal(mean.features.norm0.weight, repaired.features.norm0.weight)
    assert all(torch.equal(mean.features.conv0.weight, one.features.conv0.weight) for one in starts)


class Linear(nn.Module):
    """A backbone of one linear layer on the flattened images."""

    def __init__(self, width: int, num_features: int):
        super().__init__()
        self.layer, self.num_features = nn.Linear(width, num_features), num_features

    def forward(self, x):
        return self.layer(x.flatten(1))


@pytest.mark.parametrize("several", [False, True], ids=["one class an image", "several"])
def test_the_fisher_information_is_the_analytic_one(several):
    """Of logits W2 (W1 x + b1) + b2: the covariance of the labels under the model, carried back to W1 and b1."""
    torch.manual_seed(0)
    model, one = Classifier(Linear(3 * 4 * 4, 5), 3), task(several)
    small = {
        name: dataclasses.replace(getattr(one, name), inputs=getattr(one, name).inputs[..., :4, :4])
        for name in ("train", "val")
    }
    one = dataclasses.replace(one, **small)
    found = diagonal_fisher(model, one, 10_000)
    with torch.no_grad():
        x = training.prepare(one.train.inputs[one.train.rows])
        logits = model(x)
        p = logits.sigmoid() if several else logits.softmax(1)
        covariance = torch.diag_embed(p * (1 - p) if several else p) - (0 if several else p[:, :, None] * p[:, None])
        through = torch.einsum("ki,nkl,li->ni", model.head.weight, covariance, model.head.weight)
        weight = torch.einsum("ni,nj->ij", through, x.flatten(1) ** 2) / len(x)
    torch.testing.assert_close(found["layer.weight"].float(), weight, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(found["layer.bias"].float(), through.mean(0), rtol=1e-4, atol=1e-8)
    assert set(found) == {"layer.weight", "layer.bias"}, "the head is not merged"


def test_the_fisher_information_is_of_as_many_images_as_asked_drawn_by_the_seed():
    model = Classifier(trained(0), 3)
    before = copy.deepcopy(model.state_dict())
    one, again, other = (diagonal_fisher(model, task(seed=seed), 5)["features.conv0.weight"] for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other) and (one >= 0).all()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    everything = diagonal_fisher(model, task(), 49)["features.conv0.weight"]
    assert torch.equal(everything, diagonal_fisher(model, task(), 1000)["features.conv0.weight"])


def test_fisher_weights():
    b, c = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0])}, {"w": torch.tensor([0.0, 0.0, 0.0, 0.0])}
    f_b, f_c = {"w": torch.tensor([3.0, 4.0, 0.0, 0.0])}, {"w": torch.tensor([4.0, 0.0, 3.0, 0.0])}
    mean = fisher_mean([b, c], [f_b, f_c])["w"]
    torch.testing.assert_close(mean, torch.tensor([3 / 7, 1.0, 0.0, 0.5]))
    torch.testing.assert_close(fisher_mean([b, c], [f_b, {"w": 100 * f_c["w"]}])["w"], mean)
    for equal in (torch.rand(4), torch.zeros(4)):
        torch.testing.assert_close(fisher_mean([b, c], [{"w": equal}] * 2)["w"], torch.full((4,), 0.5))
    informed = fisher_mean([b, c], [{"w": torch.rand(4) + 0.1}, {"w": torch.zeros(4)}])["w"]
    torch.testing.assert_close(informed, b["w"])
    third = {"w": torch.full((4,), 4.0)}
    torch.testing.assert_close(fisher_mean([b, c, third], [{"w": torch.ones(4)}] * 3)["w"], torch.full((4,), 5 / 3))


def test_fisher_with_equal_information_is_average(monkeypatch):
    b, c = trained(0), trained(1)
    ones = {name: torch.ones_like(value) for name, value in b.named_parameters()}
    monkeypatch.setattr(rivals, "diagonal_fisher", lambda *_: ones)
    starts = []
    monkeypatch.setattr(rivals, "lp_ft", lambda network, task: starts.append(network))
    one = task()
    rivals.fisher([b, c], one), average([b, c], one)
    for name, value in starts[0].state_dict().items():
        torch.testing.assert_close(value, starts[1].state_dict()[name], msg=name)
    nothing = {name: torch.zeros_like(value) for name, value in b.named_parameters()}
    monkeypatch.setattr(rivals, "diagonal_fisher", lambda model, *_: ones if same(model.backbone, b) else nothing)
    rivals.fisher([b, c], one, batchnorm=0)
    for name, value in starts[2].state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[name], msg=name)


@pytest.mark.parametrize(("name", "several"), [*((name, False) for name in RIVALS), ("fisher", True), ("soup", True)])
def test_every_rival_learns_and_ends_as_a_classifier_on_either_kind_of_labels(name, several):
    one = task(several, lp_epochs=3, ft_epochs=5)
    networks = [trained(0), trained(1)]
    outcome = RIVALS[name].run(networks if RIVALS[name].merges else networks[0], one)
    assert score(outcome.model, one) > 0.85
    assert predict(outcome.model, one.val, one).shape == (40, 3)
    assert same(networks[0], trained(0)) and same(networks[1], trained(1)), "sources are left alone"
    assert json.loads(json.dumps(outcome.choices)) == outcome.choices
    assert all(phase["seconds"] > 0 for phase in one.cost.values())
    assert bool(one.history) == (name in ("average", "fisher")) and len(one.history_frame().columns) > 5
    if name != "ensemble":
        source(0).load_state_dict(outcome.model.backbone.state_dict(), strict=True)


@pytest.mark.parametrize("name", ["average", "ensemble"])
def test_three_sources_go_too(name):
    outcome = RIVALS[name].run([trained(seed) for seed in range(3)], task(lp_epochs=1, ft_epochs=1))
    assert isinstance(outcome.model, Ensemble if name == "ensemble" else Classifier)


@pytest.mark.parametrize("count", [1, 3])
def test_interpolation_needs_two_sources_before_anything_is_trained(count):
    one = task()
    with pytest.raises(ValueError, match=f"a line is between two networks, and there are {count} sources"):
        rivals.interpolation([trained(seed) for seed in range(count)], one)
    assert not one.cost


# ---------------------------------------------------------------- combining finished networks


def scripted(monkeypatch, scores):
    """Give networks their validation scores by a function of the network."""
    monkeypatch.setattr(rivals, "score", lambda model, task: scores(model))


def constant(value: float) -> Classifier:
    """A small classifier all of whose floats are ``value``."""
    model = Classifier(Linear(4, 2), 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def level(model: nn.Module) -> float:
    return model.head.bias[0].item()


@pytest.mark.parametrize(("best", "chosen"), [(0.0, 0.0), (1.0, 1.0), (0.3, 0.3), (0.72, 0.7)])
def test_the_best_coefficient_is_chosen(monkeypatch, best, chosen):
    scripted(monkeypatch, lambda model: -abs(level(model) - best))
    begin, end = constant(0.0), constant(1.0)
    outcome = best_between(begin, end, task())
    assert outcome.choices["coefficient"] == chosen and level(outcome.model) == pytest.approx(chosen)
    assert list(outcome.choices["validation"]) == [f"0.{k}" for k in range(10)] + ["1.0"]
    assert (outcome.model is begin) == (chosen == 0) and (outcome.model is end) == (chosen == 1)
    scripted(monkeypatch, lambda model: 1.0)
    assert best_between(begin, end, task()).choices["coefficient"] == 0, "the first of equals"


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_the_ends_of_the_interpolation_are_the_fine_tuned_networks(monkeypatch, end):
    monkeypatch.setattr(rivals, "COEFFICIENTS", (end,) if end == 0 else (0.0, end))
    b, c = trained(0), trained(1)
    scores = iter([0.0, 1.0])
    monkeypatch.setattr(rivals, "score", lambda *_: next(scores))
    outcome = rivals.interpolation([b, c], task())
    assert outcome.choices["coefficient"] == end, "the share of the network from the first source"
    assert same(outcome.model, ft(trained(0) if end else trained(1), task()).model)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_the_ends_of_wise_ft_are_the_probe_and_lp_ft(monkeypatch, end):
    scores = iter([1 - end, *[-1.0] * 9, end])
    monkeypatch.setattr(rivals, "score", lambda *_: next(scores))
    outcome, expected = rivals.wise_ft(trained(0), task()), lp_ft(trained(0), task())
    assert outcome.choices["coefficient"] == end
    assert same(outcome.model, expected.model if end else expected.probed)


def test_between_the_ends_weights_are_mixed_and_statistics_measured(monkeypatch):
    monkeypatch.setattr(rivals, "COEFFICIENTS", (0.0, 0.3, 1.0))
    scores = iter([0.0, 1.0, 0.0])
    monkeypatch.setattr(rivals, "score", lambda *_: next(scores))
    one = task()
    mixed = rivals.interpolation([trained(0), trained(1)], one).model
    first, second = (ft(trained(seed), task()).model for seed in (0, 1))
    for name, value in mixed.named_parameters():
        torch.testing.assert_close(value, torch.lerp(second.get_parameter(name), first.get_parameter(name), 0.3))
    assert np.allclose(batchnorm.report(mixed, one.measured)["variance_ratio"], 1, atol=0.1)
    stale = batchnorm.report(blend([second, first], [0.7, 0.3]), one.measured)["variance_ratio"]
    assert not np.allclose(stale, 1, atol=0.1)


def test_the_greedy_soup_tries_from_the_best_to_the_worst_and_skips_what_does_not_help(monkeypatch):
    levels = {("ft", "b"): 4.0, ("ft", "c"): 8.0, ("lp_ft", "b"): 1.0, ("lp_ft", "c"): 6.0}
    monkeypatch.setattr(rivals, "finished", lambda approach, source, name, task: constant(levels[approach, name]))
    tried = []

    def scores(model):
        tried.append(round(level(model), 4))
        return {8: 0.5, 6: 0.7, 4: 0.6, 1: 0.4, 5: 0.65, 7: 0.7}[tried[-1]]

    scripted(monkeypatch, scores)
    outcome = soup([None, None], task(sources=("b", "c")))
    # best first: 6 (0.7); with 4 -> 5 (0.65) is worse; with 8 -> 7 (0.7) is no worse; with 1 -> 5 again is worse
    assert tried[4:] == [5, 7, 5]
    assert outcome.choices["soup"] == ["LP-FT c", "FT c"] and level(outcome.model) == 7
    assert outcome.choices["validation"] == {"FT b": 0.6, "FT c": 0.5, "LP-FT b": 0.4, "LP-FT c": 0.7, "soup": 0.7}


@pytest.mark.parametrize("several", [False, True], ids=["one class an image", "several"])
def test_the_greedy_soup_is_never_worse_on_validation_than_its_first_network(several):
    one = task(several)
    outcome = soup([trained(0), trained(1)], one)
    scores = outcome.choices["validation"]
    own = {name: value for name, value in scores.items() if name != "soup"}
    assert scores["soup"] >= max(own.values()) and outcome.choices["soup"][0] == max(own, key=own.get)
    assert score(outcome.model, one) == scores["soup"]


def test_the_ensemble_is_the_mean_of_logits():
    one = task(sources=BOTH)
    outcome = rivals.ensemble([trained(0), trained(1)], one)
    x = training.prepare(one.val.inputs[:8])
    members = [ft(trained(seed), task()).model.eval() for seed in (0, 1)]
    with torch.no_grad():
        assert torch.equal(outcome.model.eval()(x), (members[0](x) + members[1](x)) / 2)
    assert outcome.choices == {"networks at every inference": ["FT objects", "FT lesions"]}


def test_an_ensemble_is_not_saved_as_one_network(tmp_path):
    with pytest.raises(TypeError, match="Ensemble that medmerge.backbone did not make"):
        save(Ensemble([Classifier(source(0), 3)] * 2), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ParameterError, match=r"save_weights: saves one network a seed; give approaches: \[ft\]"):
        parameters(approaches=["ensemble"], save_weights="w.safetensors")


# ---------------------------------------------------------------- recalled networks


@pytest.fixture(scope="module")
def baselines(tmp_path_factory):
    """A project with FT and LP-FT from both sources finished. Only to be read."""
    folder = tmp_path_factory.mktemp("baselines")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MEDMERGE_CACHE", str(folder.parent / "cache"))
        write_weights(folder)
        study.run(parameters(approaches=["ft", "lp_ft"]))
    return folder


@pytest.fixture
def project(tmp_path, baselines, monkeypatch):
    """A copy of it of a test's own."""
    shutil.copytree(baselines, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDMERGE_DATA", raising=False)
    return tmp_path


COMBINING = [name for name in RIVALS if name not in ("average", "fisher")]


def contents(record) -> dict:
    """What a record says that does not depend on time."""
    kept = {path.name: path.read_bytes() for path in record.folder.iterdir() if path.suffix == ".csv"}
    run = {name: record.run[name] for name in ("choices", "metrics", "network", "sources", "hash", "row")}
    return kept | run


@pytest.mark.parametrize("name", COMBINING)
def test_a_recalled_network_makes_no_difference(project, name, monkeypatch):
    recalled = study.run(parameters(approaches=[name]))
    for record in recalled:
        spent = record.run["cost"]["ingredients"]
        cost = [
            study.finished(parameters(), definitions.Row(one, (s,)), 0).run["cost"] for one, s in used(name, record)
        ]
        price = sum(phase["seconds"] for one in cost for phase in one.values())
        assert spent["recalled_seconds"] == pytest.approx(price)
        assert (spent["seconds"] > price) == (name == "wise_ft"), "its probe is not kept"
    trained_here = study.run(parameters(approaches=[name], pair="alone"))
    for one, other in zip(recalled, trained_here, strict=True):
        assert contents(one) == contents(other)
        spent = other.run["cost"]["ingredients"]
        assert spent["recalled_seconds"] == 0 < spent["seconds"] and spent["peak_memory_mib"] > 0
        left = [p.name for p in (other.folder / "checkpoint").iterdir()] if name != "ensemble" else []
        assert set(left) <= {"model.safetensors", "model.images.csv"}


def used(name, record) -> list[tuple[str, str]]:
    approaches = {"soup": ("ft", "lp_ft"), "wise_ft": ("lp_ft",)}.get(name, ("ft",))
    return [(approach, one) for approach in approaches for one in record.run["row"]["sources"]]


def counted(monkeypatch) -> list[str]:
    """Phases that are trained from now on."""
    phases, fit = [], training.fit

    def noted(model, train, val, phase, *rest):
        phases.append(phase)
        return fit(model, train, val, phase, *rest)

    monkeypatch.setattr(training, "fit", noted)
    return phases


FT = "results/demo/demo/densenet_small/ft-objects/seed0"


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / definitions.MODEL).unlink(),
        lambda folder: (folder / definitions.MODEL).write_bytes(b"nothing"),
        lambda folder: shutil.copyfile(
            str(folder).replace("objects", "lesions") + f"/{definitions.MODEL}", folder / definitions.MODEL
        ),
        lambda folder: (folder / "history.csv").unlink(),
        lambda folder: (folder / "run.json").unlink(),
        lambda folder: changed(folder, lambda run: run["data"].update(fingerprint="0" * 64)),
        lambda folder: changed(folder, lambda run: run["sources"].update(objects="0" * 64)),
        lambda folder: changed(folder, lambda run: run.update(hash="0" * 64)),
    ],
    ids="no-network damaged-network anothers-network damaged-record no-record images sources definition".split(),
)
def test_what_is_not_the_wanted_network_is_trained_anew(project, damage, monkeypatch):
    expected = contents(*study.run(parameters(approaches=["ensemble"])))
    shutil.rmtree(project / "results/demo/demo/densenet_small/ensemble-objects-lesions")
    damage(project / FT)
    phases = counted(monkeypatch)
    assert contents(*study.run(parameters(approaches=["ensemble"]))) == expected
    assert phases == ["fine_tune"]


def changed(folder, change):
    run = json.loads((folder / "run.json").read_text())
    change(run)
    (folder / "run.json").write_text(json.dumps(run))


def test_a_row_of_other_settings_does_not_recall_the_studys(project, monkeypatch):
    p = parameters(approaches=["ensemble"], vary={"ft_lr": [2e-3, 1e-3]})
    phases = counted(monkeypatch)
    own, other = study.run(p)
    assert phases == ["fine_tune"] * 2 and own.run["network"] != other.run["network"]
    study.run(parameters(approaches=["ft"], vary={"ft_lr": [2e-3, 1e-3]}))
    shutil.rmtree(other.folder)
    phases.clear()
    assert study.run(p)[1].run["network"] == other.run["network"] and not phases


@pytest.mark.parametrize("name", ["average", "interpolation", "wise_ft", "soup"])
def test_an_interrupted_rival_ends_with_the_same_numbers(project, name, monkeypatch):
    p, rest = parameters(approaches=[name], pair="alone"), {"approaches": [name], "pair": "whole"}
    whole = study.run(parameters(**rest))
    write, saves = checkpoints.write, []

    def interrupted(state, path):
        write(state, path)
        saves.append(path)
        if len(saves) in (1, 4, 6):
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "write", interrupted)
    interruptions = 0
    for _ in range(4):
        try:
            study.run(p)
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions >= 2 and len(saves) == {"soup": 12, "wise_ft": 12}.get(name, 4), "no epoch twice"
    for one, other in zip(study.run(p), whole, strict=True):
        assert contents(one) == contents(other)
        assert not list(one.folder.rglob("*.pt")) and not (one.folder / "checkpoint/parts").exists()


# ---------------------------------------------------------------- in a study


def test_rivals_are_rows_and_refuse_a_single_source():
    p = parameters(approaches=list(RIVALS))
    assert [row.name for row in definitions.rows(p)] == [
        *("average-objects-lesions", "fisher-objects-lesions", "interpolation-objects-lesions"),
        *("wise_ft-objects", "wise_ft-lesions", "soup-objects-lesions", "ensemble-objects-lesions"),
    ]
    for name in RIVALS:
        if RIVALS[name].merges:
            with pytest.raises(ParameterError, match=f"approaches: {name} merges two sources; give source_data"):
                study.check(parameters(approaches=[name], source_data="", source_weights=""))


def test_rivals_read_what_their_ingredients_read():
    for name in ("soup", "wise_ft", "average", "fisher"):
        assert RIVALS[name].reads >= CORE["lp_ft"].reads
    assert {n for n in RIVALS if "fisher_images" in RIVALS[n].reads} == {"fisher"}
    assert set(APPROACHES) == {*CORE, *RIVALS} and len({a.title for a in APPROACHES.values()}) == len(APPROACHES)
    for name in ("interpolation", "soup", "ensemble"):
        with pytest.raises(ParameterError, match=f"ft_epochs: 0 leaves nothing of the approach {name}"):
            study.check(parameters(approaches=[name], ft_epochs=0))


def test_the_page_says_what_was_chosen(project):
    (record,) = study.run(parameters(approaches=["ensemble"]))
    others = study.run(parameters(approaches=["ft"]))
    table = report.choice_table([*others, record])
    assert table.to_dict("records") == [
        {
            "run": "Ensemble of FT objects + lesions",
            "seed": 0,
            "chosen": "networks at every inference: FT objects + FT lesions",
        }
    ]
    assert report.choice_table(others).empty
    assert set(report.histories([*others, record])["run"]) == {"FT objects", "FT lesions"}
    assert report.histories([record]).empty and origin.costs([record])["ingredients, s"].item() > 0
