"""The two phases on decoded images: what learns, what is kept, and that a phase ends with the same numbers."""

import copy
import dataclasses
import hashlib
import io
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from medmerge import Classifier, KernelMerge, backbone, checkpoints, training
from medmerge.approaches import APPROACHES
from medmerge.approaches.paper import classifier, ft, lp_ft, medmerge
from medmerge.data import Samples
from medmerge.training import Protocol, Task, TrainingError, fine_tune, linear_probe, parameter_groups, predict

FAST = Protocol(lp_epochs=3, lp_lr=1e-2, ft_epochs=2, ft_lr=1e-3, batch_size=16, precision="fp32", device="cpu")


def samples(count: int, seed: int) -> Samples:
    """Images whose class is the brightest colour channel, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 120, (count, 3, 32, 32), generator=generator)
    images[torch.arange(count), labels] += 60
    ids = tuple(f"{seed}-{i}" for i in range(count))
    return Samples(images.to(torch.uint8), torch.arange(count), labels, ids)


def task(**changes) -> Task:
    fields = {name: changes.pop(name) for name in ("seed", "checkpoints", "key", "on_epoch") if name in changes}
    return Task(samples(49, 0), samples(24, 1), 3, protocol=dataclasses.replace(FAST, **changes), **fields)


def source(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return backbone("densenet_small", "random")


def state(module: nn.Module) -> dict:
    return copy.deepcopy(module.state_dict())


def changed(module: nn.Module, before: dict) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("run", [ft, lp_ft, lambda s, t: medmerge([s, source(1)], t)], ids=["ft", "lp_ft", "medmerge"])
def test_approaches_learn_and_end_as_ordinary_networks(run):
    one = task(lp_epochs=4, ft_epochs=4)
    outcome = run(source(0), one)
    assert max(row["val_macro_f1"] for row in one.history) > 0.9
    assert one.history[-1]["train_loss"] < one.history[0]["train_loss"]
    backbone("densenet_small", "random").load_state_dict(outcome.model.backbone.state_dict(), strict=True)
    probabilities = predict(outcome.model, one.val, one)
    assert probabilities.shape == (24, 3) and abs(probabilities.sum(1) - 1).max() < 1e-5


@pytest.mark.parametrize(("mode", "moves"), [("eval", set()), ("train", {"mean", "var", "tracked"})])
def test_a_probe_changes_the_head_and_statistics_where_they_are_to_drift(mode, moves):
    model = Classifier(source(0), 3)
    before = state(model)
    linear_probe(model, task(lp_batchnorm=mode))
    names = changed(model, before)
    assert {"head.weight", "head.bias"} <= names
    assert {name.rpartition("_")[2] for name in names if not name.startswith("head.")} == moves


def test_probe_from_stored_features_is_the_probe_that_recomputes_them():
    model, slow = Classifier(source(0), 3), Classifier(source(0), 3)
    slow.head.load_state_dict(model.head.state_dict())
    one, other = task(), task()
    linear_probe(model, one)

    class Frozen(nn.Module):
        """The backbone recomputed in every step, in eval mode."""

        def __init__(self):
            super().__init__()
            self.head = slow.head

        def forward(self, x):
            with torch.no_grad():
                features = slow.backbone.eval()(x)
            return self.head(features)

    training.fit(Frozen(), other.train, other.val, "linear_probe", other)
    torch.testing.assert_close(model.head.weight, slow.head.weight, rtol=1e-5, atol=1e-6)
    assert [row["val_macro_f1"] for row in one.history] == [row["val_macro_f1"] for row in other.history]


def test_probe_of_a_merge_learns_w_norms_and_head():
    merge = KernelMerge([source(0), source(1)])
    model = Classifier(merge, 3)
    before = state(model)
    one = task(select="last")
    linear_probe(model, one)
    names = changed(model, before)
    assert {f"backbone.merged.{name}.parametrizations.weight.0.w" for name, _ in merge.layers()} <= names
    assert not [name for name in names if "source_" in name or "original" in name]
    kinds = {name.rpartition(".")[2] for name in names}
    assert kinds == {"w", "weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    furthest = max((w - 0.5).abs().max().item() for w in merge.kernel_weights().values())
    assert 0 < furthest <= 1.01 * one.protocol.lp_lr * 3 * 3, "Adam's budget: the rate a step"


def test_fine_tuning_changes_every_parameter():
    model = Classifier(source(0), 3)
    model.backbone.requires_grad_(False)
    before = state(model)
    fine_tune(model, task(select="last"))
    assert set(dict(model.named_parameters())) <= changed(model, before)


def test_only_kernels_decay():
    model = Classifier(KernelMerge([source(0), source(1)]), 3)
    kernels, rest, merging = parameter_groups(model, Protocol(weight_decay=0.3))
    assert [id(p) for p in kernels["params"]] == [id(model.head.weight)] and kernels["weight_decay"] == 0.3
    assert rest["weight_decay"] == merging["weight_decay"] == 0 and "lr" not in merging
    assert [id(p) for p in merging["params"]] == [id(p) for p in model.backbone.merging_parameters()]
    *_, merging = parameter_groups(model, Protocol(w_lr=0.02, w_decay=0.1))
    assert (merging["lr"], merging["weight_decay"]) == (0.02, 0.1)
    plain = Classifier(source(0), 3)
    kernels, rest = parameter_groups(plain, Protocol(weight_decay=0.3))
    assert all(p.dim() in (2, 4) for p in kernels["params"]) and all(p.dim() == 1 for p in rest["params"])
    assert len(kernels["params"]) + len(rest["params"]) == len(list(plain.parameters()))
    plain.backbone.requires_grad_(False)
    assert sum(len(group["params"]) for group in parameter_groups(plain, Protocol(weight_decay=0.3))) == 2


def test_every_image_is_used_once_an_epoch_and_no_batch_holds_one():
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(1, 3)

        def forward(self, x):
            if self.training:
                seen.append(x[:, 0].tolist())
            return self.head(x)

    numbers = torch.arange(49.0)[:, None]
    one = task()
    features = Samples(numbers, torch.arange(49), torch.arange(49) % 3, one.train.ids)
    training.fit(Watching(), features, features, "linear_probe", one)
    assert [len(batch) for batch in seen] == [16, 16, 17] * 3
    epochs = [sum(seen[3 * i : 3 * i + 3], []) for i in range(3)]
    assert all(sorted(epoch) == list(range(49)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_same_seed_gives_the_same_numbers_and_leaves_the_global_random_state():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    runs = []
    for seed in (3, 3, 4):
        sources = [source(0), source(1)]
        torch.set_rng_state(before)
        one = task(seed=seed)
        outcome = medmerge(sources, one)
        assert torch.equal(torch.get_rng_state(), before)
        runs.append((one.history, outcome.model.state_dict()))
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert all(torch.equal(value, runs[1][1][key]) for key, value in runs[0][1].items())


def test_rows_of_a_seed_start_from_the_same_head():
    heads = [classifier(source(i), task(seed=5)).head.weight for i in range(2)]
    heads.append(classifier(KernelMerge([source(0), source(1)]), task(seed=5)).head.weight)
    assert torch.equal(heads[0], heads[1]) and torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], classifier(source(0), task(seed=6)).head.weight)


@pytest.mark.parametrize(("select", "kept"), [("best", 1), ("last", 3)])
def test_a_phase_hands_on_the_selected_epoch(monkeypatch, select, kept):
    scores, states = [0.2, 0.9, 0.4, 0.9], []

    def scripted(model, val, one):
        states.append(state(model))
        return {"val_loss": 1.0, "val_accuracy": 0.5, "val_macro_f1": scores[len(states) - 1]}

    monkeypatch.setattr(training, "validate", scripted)
    one = task(select=select, ft_epochs=4)
    model = classifier(source(0), one)
    fine_tune(model, one)
    same = [not changed(model, epoch) for epoch in states]
    assert same == [epoch == kept for epoch in range(4)]


@pytest.mark.parametrize(("phase", "merges"), [("linear_probe", True), ("linear_probe", False), ("fine_tune", True)])
def test_an_interrupted_phase_goes_on_with_the_same_numbers(tmp_path, monkeypatch, phase, merges):
    def run(one):
        sources = [source(0), source(1)]
        return (medmerge if merges else lp_ft)(sources if merges else sources[0], one)

    rows, whole = [], task()
    expected = run(whole)
    validate, calls = training.validate, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == (2 if phase == "linear_probe" else FAST.lp_epochs + 2):
            raise KeyboardInterrupt
        return validate(*arguments)

    monkeypatch.setattr(training, "validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(task(checkpoints=tmp_path, key="k"))
    again = task(checkpoints=tmp_path, key="k", on_epoch=lambda row: rows.append(list(again.history)))
    outcome = run(again)
    assert again.history == whole.history
    done = 1 if phase == "linear_probe" else FAST.lp_epochs + 1
    assert rows == [whole.history[: i + 1] for i in range(done, len(whole.history))], "the history while it goes on"
    assert len(calls) == FAST.lp_epochs + FAST.ft_epochs + 1, "finished epochs are not repeated"
    states = outcome.model.state_dict(), expected.model.state_dict()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_writing_checkpoints_takes_a_share_of_the_time(tmp_path, monkeypatch):
    """Epochs of 1 s and a write of 0.25 s, by a clock of the test's own: a twentieth of the time is a write in 5 s."""
    monkeypatch.setattr(checkpoints, "SHARE", 0.05)
    now, written, write, trained = [0.0], [], checkpoints.write, training.validate

    def costly(state, path):
        written.append(len(state["history"]))
        now[0] += 0.25
        write(state, path)

    def slow(*arguments):
        now[0] += 1
        return trained(*arguments)

    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(checkpoints, "write", costly)
    monkeypatch.setattr(training, "validate", slow)
    one = task(checkpoints=tmp_path, key="k", ft_epochs=14)
    fine_tune(classifier(Pooled(), one), one)
    assert written == [1, 6, 11, 14], "the first, the last, and one where it is due"
    assert len(checkpoints.read(tmp_path / "fine_tune.pt")["history"]) == 14


@pytest.mark.parametrize("damage", ["truncated", "a bit", "empty", "unsealed", "code", "key", "network", "incomplete"])
def test_a_checkpoint_that_does_not_serve_is_not_used(tmp_path, caplog, damage):
    def run(key="k", folder=tmp_path):
        one = task(checkpoints=folder, key=key, ft_epochs=1)
        fine_tune(classifier(Pooled(), one), one)
        return one.history

    run(key="other" if damage == "key" else "k")
    path = tmp_path / "fine_tune.pt"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    if damage == "a bit":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    if damage == "empty":
        path.write_bytes(b"")
    if damage == "unsealed":
        torch.save(checkpoints.read(path), path)
    if damage == "code":
        content = io.BytesIO()
        torch.save({"key": "k", "model": Creates(tmp_path / "canary")}, content)
        path.write_bytes(hashlib.sha256(content.getvalue()).hexdigest().encode() + content.getvalue())
    if damage == "incomplete":
        checkpoints.write({k: v for k, v in checkpoints.read(path).items() if k != "seconds"}, path)
    if damage == "network":
        checkpoints.write({**checkpoints.read(path), "model": {"x": torch.zeros(1)}}, path)
    with caplog.at_level(logging.INFO):
        history = run()
    assert "starting" in caplog.text and not (tmp_path / "canary").exists()
    assert history == run(folder=None)


class Pooled(nn.Module):
    """A backbone without parameters: an image's mean colour."""

    num_features = 3

    def forward(self, x):
        return x.mean((2, 3))


class Creates:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_loss_that_is_not_finite_names_epoch_and_step():
    one = task(ft_lr=1e-3)
    model = classifier(source(0), one)
    forward, calls = model.head.forward, []

    def poisoned(x):
        calls.append(model.training)
        return forward(x) * (float("nan") if sum(calls) == 5 else 1)

    model.head.forward = poisoned
    with pytest.raises(TrainingError, match=r"nan in fine_tune, epoch 2, step 2"):
        fine_tune(model, one)


def test_one_image_is_too_few_and_a_network_of_other_classes_does_not_learn():
    one = dataclasses.replace(task(), train=samples(1, 0))
    with pytest.raises(TrainingError, match="at least two"):
        fine_tune(classifier(source(0), one), one)
    model = Classifier(source(0), 5)
    before = state(model.head)
    with pytest.raises(TrainingError, match=r"of 16 images the network gives \[16, 5\], not one .* 3 classes"):
        fine_tune(model, task())
    assert not changed(model.head, before)


def test_bf16_is_near_fp32():
    scores = []
    for precision in ("fp32", "bf16"):
        one = task(precision=precision, ft_epochs=1)
        ft(source(0), one)
        scores.append(one.history[0]["train_loss"])
    assert scores[0] != scores[1] and abs(scores[0] - scores[1]) < 0.05


def test_cost_of_every_phase_is_noted():
    one = task()
    lp_ft(source(0), one)
    assert set(one.cost) == {"features", "linear_probe", "fine_tune"}
    assert all(value > 0 for cost in one.cost.values() for value in cost.values())
    assert [(row["phase"], row["epoch"]) for row in one.history] == [
        *(("linear_probe", i) for i in (1, 2, 3)),
        *(("fine_tune", i) for i in (1, 2)),
    ]


def test_uint8_is_normalised_as_imagenet_and_floats_are_taken_as_they_are():
    images = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(training.prepare(images)[0, :, 0, 0], expected)
    assert training.prepare(images).is_contiguous(memory_format=torch.channels_last)
    volume = torch.rand(2, 1, 4, 5, 6, dtype=torch.float64)
    assert torch.equal(training.prepare(volume), volume.float())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_same_seed_gives_the_same_numbers():
    histories = []
    for _ in range(2):
        one = task(device="cuda", precision="bf16")
        medmerge([source(0), source(1)], one)
        histories.append(one.history)
    assert histories[0] == histories[1]


def test_every_approach_says_what_it_reads():
    for approach in APPROACHES.values():
        assert set(approach.settings) - {"score_controls"} <= approach.reads  # this only adds a table
        assert approach.title


def findings(count: int, seed: int) -> Samples:
    """Images with any number of three findings, each a brighter colour channel; some labels are not known."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count, 3), generator=generator).float()
    images = torch.randint(0, 120, (count, 3, 32, 32), generator=generator) + 90 * labels[..., None, None].long()
    labels[torch.rand(count, 3, generator=generator) < 0.2] = float("nan")
    return Samples(images.to(torch.uint8), torch.arange(count), labels, tuple(f"{seed}-{i}" for i in range(count)))


def test_several_labels_an_image_are_learnt():
    protocol = dataclasses.replace(FAST, lp_epochs=4, ft_epochs=6)
    one = Task(findings(96, 0), findings(40, 1), 3, protocol=protocol)
    outcome = medmerge([source(0), source(1)], one)
    assert one.multilabel and max(row["val_macro_auroc"] for row in one.history) > 0.9
    probabilities = predict(outcome.model, one.val, one)
    assert probabilities.shape == (40, 3) and probabilities.sum(1).std() > 0.1, "each class by itself"
    kept = max(row["val_macro_auroc"] for row in one.history if row["phase"] == "fine_tune")
    known = ~one.val.labels.isnan().numpy()
    labels = [(one.val.labels.numpy()[known[:, k], k], probabilities[known[:, k], k]) for k in range(3)]
    assert sum(roc_auc_score(truth, scores) for truth, scores in labels) / 3 == pytest.approx(kept)


def test_unknown_labels_have_no_part_in_loss_or_gradient():
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.randint(0, 2, (8, 3), generator=torch.Generator().manual_seed(1)).float()
    labels[2] = labels[5, 1] = float("nan")
    known = ~labels.isnan()
    value = training.loss(logits, labels)
    expected = nn.functional.binary_cross_entropy_with_logits(logits[known], labels[known])
    assert torch.allclose(value, expected)
    value.backward()
    assert (logits.grad[~known] == 0).all() and (logits.grad[known] != 0).all()
    assert training.loss(logits, torch.full((8, 3), float("nan"))) == 0


def test_validation_images_that_cannot_rank_are_refused():
    val = findings(6, 1)
    val.labels[:] = 1
    with pytest.raises(TrainingError, match="no class is both present and absent in the validation images"):
        ft(source(0), Task(findings(32, 0), val, 3, protocol=FAST))


NONE, ZERO = "is none of", "is not 0 or more"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("select", "bset", NONE), ("precision", "fp16", NONE), ("batchnorm_free", "all", NONE), ("ft_epochs", -1, ZERO)]
    + [("lp_lr", float("nan"), ZERO), ("w_decay", -0.1, ZERO), ("batch_size", 1, "is not 2 or more")],
)
def test_a_protocol_that_cannot_be_followed_is_refused(name, value, said):
    with pytest.raises(ValueError, match=f"{name}: {value!r} {said}"):
        Protocol(**{name: value})


class Strict(TorchDispatchMode):
    """Fails where the host would need a value that the device computes, or a size that depends on one."""

    WAITS = ("local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "repeat_interleave")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").partition(".")[0].strip("_")
        assert not name.startswith(self.WAITS), f"{name} waits"
        if name.startswith("index"):
            assert all(i is None or i.dtype != torch.bool for i in args[1] if isinstance(args[1], (list, tuple)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("several", [False, True])
def test_no_step_waits_for_the_device(several):
    data = (findings if several else samples)(33, 0)
    one = Task(data, data, 3, protocol=FAST)
    model = Classifier(KernelMerge([source(0), source(1)]), 3)
    optimizer = torch.optim.AdamW(parameter_groups(model, FAST), fused=True)
    with Strict():
        for batch in data.shuffled(16):
            training.step(model, optimizer, batch, one)
    with pytest.raises(AssertionError, match="waits"), Strict():
        torch.arange(3.0).sum().item()
