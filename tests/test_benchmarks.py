"""The benchmarks measure what they say: the ways are one method, the plain script learns the same, the pages follow."""

import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import chapter, photographs, plain, power, row, step, turns
from benchmarks.__main__ import PARTS, main
from benchmarks.step import WAYS
from medmerge import KernelMerge, backbone
from medmerge.backbones import Classifier
from medmerge.devices import choose_precision, seeded
from medmerge.stats import evaluation
from medmerge.study import cost

ROOT = Path(__file__).resolve().parents[1]
CASE = {"backbone": "densenet_small", "image_size": 32, "batch_size": 4, "device": "cpu"}


def steps_of(way: str, sources) -> tuple[list[float], list[torch.Tensor], int]:
    """Losses of five steps, the kernels' weights after them, and how many numbers learn."""
    task = cost.noise(32, 4, "cpu", "fp32")
    with seeded(torch.device("cpu"), 1):
        model = Classifier(WAYS[way](sources), cost.CLASSES)
    one = cost.Step(model, task.train, task, 1e-2)
    losses, merge = [one().item() for _ in range(5)], model.backbone
    weights = [*merge.kernel_weights().values()] if way == "KernelMerge" else [w.detach() for w in merge.w]
    return losses, weights, sum(p.numel() for p in merge.parameters() if p.requires_grad)


def test_every_way_takes_the_same_steps():
    with seeded(torch.device("cpu"), 0):
        sources = [backbone("densenet_small", "random") for _ in range(2)]
    (losses, weights, learning), (expected, theirs, count) = (steps_of(way, sources) for way in WAYS)
    assert losses == expected and losses[-1] < losses[0] and learning == count
    assert len(weights) == len(theirs) > 5 and all(map(torch.equal, weights, theirs))
    assert any((w - 0.5).abs().max() > 0.01 for w in weights)


def busy(times: int) -> turns.Call:
    """A case that computes so many times."""
    x = torch.rand(300, 300)

    def call() -> float:
        y = x
        for _ in range(times):
            y = torch.tanh(x @ y)
        return float(y.sum())

    return call


def killed() -> turns.Call:
    return lambda: os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_cases_take_turns_and_ratios_are_within_a_round():
    found = turns.measure({"one": (busy, {"times": 20}), "four": (busy, {"times": 80})}, 5)
    assert [len(one.seconds) for one in found.values()] == [5, 5] and len(set(found["one"].values)) == 1
    low, middle, high = found["four"].ratios(found["one"])
    assert low <= middle <= high and middle > 2


@pytest.mark.slow
def test_a_case_that_is_killed_is_named():
    with pytest.raises(RuntimeError, match="^bad: .*abruptly"):
        turns.measure({"bad": (killed, {})}, 1)


def test_the_steps_that_are_timed_are_one_method():
    """The same losses; and at its peak a merge holds no more than fine-tuning: in bf16 a copy of the kernels less."""
    losses = {way: step.make(**CASE, way=way)() for way in [*WAYS, "FT"]}
    assert len({losses[way] for way in WAYS}) == 1 and math.isfinite(losses["FT"])
    counted = {way: step.requested(**CASE, way=way) for way in [*WAYS, "FT"]}
    copies = {way: (counted[way] - counted["FT"]) / step.kernel_mib("densenet_small") for way in WAYS}
    most = -0.8 if choose_precision("auto", torch.device("cpu")) == "bf16" else 0.05  # in fp32 both peak before AdamW
    assert -1.1 < copies["KernelMerge"] < most, "two frozen copies and a merged one, against AdamW's two as well"
    assert copies["KernelMerge"] < min(copies.values()) + 0.01


@pytest.mark.slow
def test_memory_given_back_is_the_same_step():
    case = CASE | {"way": "FT"}
    found = turns.measure({"kept": (step.make, case), "given back": (step.make, case | {"keep": False})}, 2)
    assert found["kept"].values == found["given back"].values


def test_the_plain_script_is_the_same_method():
    """Its merge starts at the same function, and folds to it."""
    networks = []
    for seed in range(2):
        torch.manual_seed(seed)
        networks.append(plain.torchvision.models.mobilenet_v2(num_classes=4).eval())
    mine = plain.Merged(*networks).eval()
    for network in networks:
        network.classifier = torch.nn.Identity()
    theirs = KernelMerge(networks).eval()
    x = torch.rand(2, 3, 64, 64)
    head, mine.network.classifier = mine.network.classifier, torch.nn.Identity()
    torch.testing.assert_close(mine(x), theirs(x), rtol=1e-4, atol=1e-5)
    mine.network.classifier = head
    before = mine(x)
    torch.testing.assert_close(mine.fold()(x), before, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_row_runs_from_the_same_photographs_to_scores(tmp_path):
    """All five approaches of both, whose scores are read from what they print and record."""
    size = {**row.SMALL, "images": 20, "test": 8}
    row.prepare(tmp_path, size)
    found = photographs.dataset(tmp_path / "images", 32, tmp_path / "cache")
    assert [len(part) for part in (found.train, found.val, found.test)] == [16, 4, 8]
    for one in (row.scripted(tmp_path, size, 0, [0], "cpu"), row.trained(tmp_path, size, 0, [0], "fp32", "cpu")):
        assert 0 < one[0] <= 1 and one[1] > 0


@pytest.mark.slow
def test_the_command_writes_what_it_prints(tmp_path, capsys):
    main(["pipeline", "--small", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "pipeline.json").read_text())
    assert set(found) == {"machine", "seconds", "rows", "provenance"}
    (measured,) = found["rows"]
    assert measured["images"] == 64 and 0 < measured["of ready"][1] < 3
    assert f"{measured['epoch, images/s']}" in capsys.readouterr().out


def test_what_is_not_there_is_said(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words, message in ((["stop"], "no part 'stop'"), (["--device", "cuda"], "PyTorch sees no GPU here")):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2 and message in capsys.readouterr().err


def test_the_chapter_shows_every_measurement():
    page = (ROOT / "notebooks" / "speed.ipynb").read_text(encoding="utf-8")
    for part in PARTS:
        assert chapter.load(part)["rows"], f"python -m benchmarks {part}"
        assert f'\\"{part}\\"' in page
    older = chapter.load("step")["provenance"]["commit"].startswith("deda440")
    assert ("These numbers are older than that" in page) == older, "the page says which code was measured"
    assert len({line.count("|") for line in chapter.paper().splitlines()}) == 1


def test_a_target_that_is_missed_is_said_so(tmp_path, monkeypatch):
    for part in PARTS:
        (tmp_path / f"{part}.json").write_text(json.dumps(chapter.load(part)))
    monkeypatch.setattr(chapter, "HERE", tmp_path)
    steps = chapter.load("step")
    for one in steps["rows"]:
        one["of FT"] = [1.2, 1.3, 1.4] if one["way"] == "KernelMerge" else [1.1, 1.2, 1.3]
        one["KernelMerge of it"] = [1.05, 1.083, 1.1] if one["way"] != "KernelMerge" else [1, 1, 1]
    (tmp_path / "step.json").write_text(json.dumps(steps))
    found = chapter.targets()
    assert [*found["found"][:2]] == ["1.300 at most", "1.083 at most (1.050 to 1.100)"]
    assert [*found["met"][:2]] == ["no", "no"]
    steps["rows"][1]["KernelMerge of it"] = [0.99, 1.09, 1.2]
    (tmp_path / "step.json").write_text(json.dumps(steps))
    assert chapter.targets()["met"][1] == "within noise"
    (tmp_path / "row.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"row\.json: run python -m benchmarks row"):
        chapter.targets()


def test_the_power_in_the_book_is_the_simulations():
    kept = pd.read_csv(power.OUT).set_index(["pair", "spread", "seeds", "gain"])
    for pair, case, seeds, gain in (("skin-2", "cautious", 6, 0.03), ("retina-2", "expected", 3, 0.0)):
        found = power.power(gain, [power.spread(pair, case)], seeds)
        assert np.allclose(found, kept.loc[(pair, case, seeds, gain)], atol=0.0006)
    assert (kept.xs(0.0, level="gain")["one"] < power.ALPHA / 2).all(), "superior: one of the two sides"
    p = np.array([[0.01, 0.04, 0.02], [0.5, 0.9, 0.001]])
    assert np.allclose(power.holm(p), [evaluation.holm(one) for one in p])
