"""Anybody's batches in place of decoded images: what learns from them, what is refused before anything starts."""

import logging

import numpy as np
import pytest
import torch
from test_training import FAST, changed, findings, samples, source, state
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms import v2

from medmerge import Classifier
from medmerge.approaches.paper import classifier, ft, lp_ft, medmerge
from medmerge.task import Progress
from medmerge.training import Task, fine_tune, linear_probe, predict, seconds_per_image

AUGMENT = v2.Compose(
    [v2.RandomHorizontalFlip(), v2.RandomResizedCrop(32, scale=(0.6, 1)), v2.ToDtype(torch.float32, scale=True)]
    + [v2.Normalize([0.5] * 3, [0.25] * 3)]
)
STILL = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)])


class Images(Dataset):
    """Somebody's own dataset, with transforms of torchvision."""

    def __init__(self, data, transform):
        self.images, self.labels, self.transform = data.inputs[data.rows], data.labels, transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(self.images[index]), self.labels[index]


def loaders(several: bool = False, workers: int = 0) -> tuple[DataLoader, DataLoader]:
    make = findings if several else samples
    train = DataLoader(Images(make(49, 0), AUGMENT), batch_size=16, shuffle=True, num_workers=workers)
    return train, DataLoader(Images(make(24, 1), STILL), batch_size=10)


def task(train=None, val=None, **more) -> Task:
    ready = loaders()
    return Task(ready[0] if train is None else train, ready[1] if val is None else val, 3, protocol=FAST, **more)


RUNS = {"ft": ft, "lp_ft": lp_ft, "medmerge": lambda s, t: medmerge([s, source(1)], t, batchnorm="reestimated")}


@pytest.mark.parametrize(("run", "several"), [("ft", True), ("lp_ft", False), ("medmerge", False)])
def test_approaches_learn_from_a_loader_with_augmentation(run, several):
    one = Task(*loaders(several), num_classes=3, protocol=FAST)
    outcome = RUNS[run](source(0), one)
    assert one.multilabel == several and len(one.train) == 49 and len(one.val) == 24
    assert one.history[-1]["train_loss"] < one.history[0]["train_loss"]
    found = predict(outcome.model, one.val.source, one)
    assert np.array_equal(found, predict(outcome.model, loaders(several)[1], one))
    assert found.shape == (24, 3) and (several or abs(found.sum(1) - 1).max() < 1e-5)


def test_predictions_of_batches_are_those_of_samples_in_their_order():
    data = samples(24, 1)
    model = Classifier(source(0), 3)
    whole = predict(model, data, task())
    batches = [(data.inputs[data.rows][i : i + 7], data.labels[i : i + 7]) for i in range(0, 24, 7)]
    np.testing.assert_allclose(predict(model, batches, task()), whole, rtol=1e-4, atol=1e-6)


def test_a_probe_of_batches_changes_the_head_alone_and_sees_augmentation_anew():
    seen = []

    class Watched(list):
        def __iter__(self):
            seen.append(torch.rand(1).item())
            return super().__iter__()

    data = samples(49, 0)
    train = Watched([(data.inputs[data.rows], data.labels)])
    model = Classifier(source(0), 3)
    before = state(model)
    linear_probe(model, task(train))
    assert changed(model, before) == {"head.weight", "head.bias"}
    assert len(seen) == 1 + FAST.lp_epochs and len(set(seen[1:])) == FAST.lp_epochs, "the check, and a pass an epoch"


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_phase_of_a_loader_goes_on_with_the_same_numbers(tmp_path, workers):
    def run(**more):
        one = task(*loaders(workers=workers), **more)
        model = classifier(source(0), one)
        torch.manual_seed(len(more))  # what others have drawn before does not matter
        before = torch.get_rng_state()
        fine_tune(model, one)
        assert torch.equal(torch.get_rng_state(), before)
        return one, model

    def stop(row):
        raise KeyboardInterrupt

    whole, expected = run()
    with pytest.raises(KeyboardInterrupt):
        run(checkpoints=tmp_path, on_epoch=stop)
    again, model = run(checkpoints=tmp_path)
    assert again.history == whole.history and not changed(model, expected.state_dict())


def test_a_last_batch_of_one_joins_the_one_before_it():
    data = samples(33, 0)
    pairs = list(TensorDataset(data.inputs[data.rows], data.labels))
    train = DataLoader(pairs, batch_size=16)
    assert [len(labels) for _, labels in task(train).train.shuffled()] == [16, 17]
    assert [len(labels) for _, labels in task(DataLoader(pairs, batch_size=1)).train.shuffled()] == [1] * 31 + [2]
    assert [len(x) for x in task(train).measured(20)] == [16, 4] and len(list(task(train).measured(17))) == 1


def pair(count=4, dtype=torch.uint8, shape=(3, 32, 32), labels=None):
    return torch.zeros(count, *shape).to(dtype), torch.arange(count) % 3 if labels is None else labels


FLOATS = torch.zeros(4, 3)
REFUSED = {
    "generator": (lambda: (pair() for _ in range(3)), "generator can be gone through once"),
    "iterator": (lambda: iter(loaders()[0]), "can be gone through once"),
    "dataset": (lambda: TensorDataset(*pair()), "a TensorDataset does not give batches .*DataLoader"),
    "path": (lambda: "images", "a str does not give batches"),
    "one pair": (pair, "batch 1: Tensor; give a pair"),
    "triple": (lambda: [(*pair(), ("a",))], r"batch 1: \['Tensor', 'Tensor', 'tuple'\]; give a pair"),
    "dictionaries": (lambda: [{"image": 1}], "batch 1: dict; give a pair"),
    "empty": (list, "no batches"),
    "no image": (lambda: [pair(0)], "one image at least"),
    "integers": (lambda: [pair(dtype=torch.int64)], "images are torch.int64 .* uint8 RGB"),
    "grey": (lambda: [pair(shape=(1, 32, 32))], r"torch.uint8 \[4, 1, 32, 32\]; give uint8 RGB"),
    "channels last": (lambda: [pair(shape=(32, 32, 3))], "give uint8 RGB"),
    "finite floats": (lambda: [(torch.full((4, 3, 8, 8), torch.inf), pair()[1])], "finite floats"),
    "channels change": (lambda: [(torch.zeros(4, c, 8, 8), pair()[1]) for c in (3, 1)], "other channels"),
    "label too large": (lambda: [pair(), pair(labels=torch.tensor([0, 1, 3, 2]))], "batch 2: a label is 3; .* 0 to 2"),
    "labels short": (lambda: [pair(labels=torch.arange(3))], "with 3 labels; give one for each"),
    "float labels": (lambda: [pair(labels=torch.zeros(4))], r"labels are torch.float32 \[4\]; give a class each"),
    "soft labels": (lambda: [pair(labels=FLOATS + 0.3)], "a label is 0.3; with 3 classes they are 1, 0 and NaN"),
    "other kind": (lambda: [pair(labels=FLOATS)], "must be of one kind"),
    "kinds change": (lambda: [pair(), pair(labels=FLOATS)], "other kinds of labels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_learnt_from_is_refused_before_anything_starts(name):
    make, said = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=said):
        Task(make(), loaders()[1], 3)


@pytest.mark.parametrize("bar", [False, True])
def test_time_left_is_that_of_all_runs(caplog, capfd, bar):
    train, before = samples(49, 0), Classifier(source(0), 3)
    kept, random = state(before), torch.get_rng_state()
    rate = seconds_per_image(before, task(train, samples(24, 1)))
    assert rate > 0 and not changed(before, kept) and torch.equal(torch.get_rng_state(), random)
    progress = Progress(2 * FAST.ft_epochs * len(train), bar=bar, rate=rate)
    assert progress.left == rate * 2 * 2 * 49
    left = []
    with caplog.at_level(logging.INFO, "medmerge"):
        for number, run in enumerate((ft, lp_ft), 1):
            progress.run(f"run {number} of 2")
            one = task(train, samples(24, 1), progress=progress, on_epoch=lambda row: left.append(progress.left))
            run(source(0), one)
        progress.close()
    assert left[0] > left[1] == left[2] == left[4] > left[5] > left[6] == 0, "features are computed once: no work"
    said = caplog.text + capfd.readouterr().err
    assert "run 2 of 2" in said and ("fine_tune 2/2" in caplog.text) != bar
