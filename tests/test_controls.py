"""Controls: replaced merging weights, scored on validation images without training."""

import dataclasses

import pytest
import torch
from test_training import FAST, samples, source, state

from medmerge import Classifier, KernelMerge
from medmerge.approaches import paper
from medmerge.pages.weights import control_summary
from medmerge.training import Task, linear_probe, validate


@pytest.fixture(scope="module")
def probed() -> tuple[Classifier, Task]:
    task = Task(samples(49, 0), samples(30, 1), 3, protocol=dataclasses.replace(FAST, w_lr=0.05))
    model = Classifier(KernelMerge([source(0), source(1)]), 3)
    linear_probe(model, task)
    return model, task


def test_substitutes_keep_what_they_promise():
    torch.manual_seed(0)
    learnt = {"a": torch.randn(40) * 0.1 + 0.5, "b": torch.randn(7) * 0.02 + 0.4}
    found = paper.substitutes(learnt, seed=3)
    by_name = {name: weights for name, _, weights in found}
    assert [name for name, *_ in found].count("shuffled") == [n for n, *_ in found].count("random") == paper.DRAWS
    assert all(torch.equal(by_name["learnt"][layer], w) for layer, w in learnt.items())
    for value, name in ((0.5, "start"), (1, "first source"), (0, "second source")):
        assert all((w == value).all() for w in by_name[name].values())
    for layer, w in learnt.items():
        assert torch.equal(by_name["shuffled"][layer].sort().values, w.sort().values)
        torch.testing.assert_close(by_name["layer mean"][layer], w.mean().expand(len(w)))
        assert {x.shape for *_, weights in found for x in (weights[layer],)} == {w.shape}
    assert not torch.equal(by_name["shuffled"]["a"], learnt["a"])
    shuffles = [weights["a"] for name, _, weights in found if name == "shuffled"]
    assert not torch.equal(shuffles[0], shuffles[1])
    again = paper.substitutes(learnt, seed=3)
    assert all(torch.equal(x["a"], y["a"]) for (*_, x), (*_, y) in zip(found, again, strict=True))


def test_scores_are_those_of_the_replaced_network(probed):
    model, task = probed
    table = paper.replaced_weights(model, task).set_index(["control", "draw"])
    assert table.loc[("learnt", 0), "score"] == validate(model, task.val, task)["val_macro_f1"]
    only = Classifier(KernelMerge([source(0), source(1)]), 3)
    only.load_state_dict(model.state_dict())
    only.backbone.set_kernel_weights(1.0)
    assert table.loc[("first source", 0), "score"] == validate(only, task.val, task)["val_macro_f1"]


def test_a_control_leaves_the_network_as_it_was(probed):
    model, task = probed
    before = state(model)
    first, second = paper.replaced_weights(model, task), paper.replaced_weights(model, task)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert first.equals(second)


def test_test_images_are_not_at_hand(probed):
    assert {f.name for f in dataclasses.fields(probed[1])}.isdisjoint({"test", "dataset"})


def test_equal_sources_make_every_control_alike():
    twin = Classifier(KernelMerge([source(0), source(0)]), 3)
    task = Task(samples(49, 0), samples(30, 1), 3, protocol=FAST)
    table = paper.replaced_weights(twin, task)
    assert table["score"].nunique() == table["reestimated"].nunique() == 1


def test_summary_spans_draws_and_runs(probed):
    table = paper.replaced_weights(*probed)
    summary = control_summary(table).set_index("control")
    shuffled = table[table["control"] == "shuffled"]["score"]
    assert summary.loc["shuffled", "score min"] == shuffled.min() and summary.loc["shuffled", "draws"] == 3
    assert summary.loc["learnt", "score mean"] == table.iloc[0]["score"]
