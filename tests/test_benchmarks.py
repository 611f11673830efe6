"""The benchmarks measure what they say: the ways are one method, the plain script learns the same, the pages follow."""

import json
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import chapter, photographs, plain, power, probe, row, step, turns
from benchmarks.__main__ import PARTS, main
from benchmarks.ways import WAYS
from medmerge import KernelMerge, backbone
from medmerge.backbones import Classifier
from medmerge.devices import seeded
from medmerge.stats import evaluation
from medmerge.study import cost

ROOT = Path(__file__).resolve().parents[1]
CASE = {"backbone": "densenet_small", "image_size": 32, "batch_size": 4, "device": "cpu"}


@pytest.fixture
def sources():
    with seeded(torch.device("cpu"), 0):
        return [backbone("densenet_small", "random") for _ in range(2)]


def steps_of(way: str, sources) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of five steps and the kernels' weights after them."""
    task = cost.noise(32, 4, "cpu", "fp32")
    with seeded(torch.device("cpu"), 1):
        model = Classifier(WAYS[way](sources), cost.CLASSES)
    one = cost.Step(model, task.train, task, 1e-2)
    losses = [one().item() for _ in range(5)]
    merge = model.backbone
    if way == "KernelMerge":
        return losses, merge.kernel_weights()
    named = {name: p.detach() for name, p in merge.named_parameters() if re.search(r"(^|\.)w(\.\d+)?$", name)}
    return losses, dict(zip((name for name, _ in KernelMerge(sources).layers()), named.values(), strict=True))


@pytest.mark.parametrize("way", [way for way in WAYS if way != "KernelMerge"])
def test_every_way_takes_the_same_steps(sources, way):
    losses, weights = steps_of(way, sources)
    expected, theirs = steps_of("KernelMerge", sources)
    assert losses == expected and losses[-1] < losses[0]
    assert len(weights) == len(theirs) > 5
    assert all(torch.equal(weights[name], theirs[name]) for name in theirs)
    assert any((w - 0.5).abs().max() > 0.01 for w in weights.values())


@pytest.mark.parametrize("way", WAYS)
def test_every_way_learns_as_many_numbers_and_keeps_two_copies(sources, way):
    model = WAYS[way](sources)
    merge = KernelMerge(sources)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert learning == sum(p.numel() for p in merge.parameters() if p.requires_grad)
    frozen = {t.data_ptr(): t.numel() for t in (*model.parameters(), *model.buffers()) if not t.requires_grad}
    kernels = sum(layer.source_1.numel() for _, layer in merge.layers())
    assert 2 * kernels <= sum(frozen.values()) < 2.2 * kernels


def test_a_backbone_with_biases_is_refused(sources):
    sources = [torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)) for _ in range(2)]
    for source in sources:
        source.num_features = 4
    with pytest.raises(ValueError, match="0 has a bias"):
        WAYS["functional_call with a merged dictionary"](sources)


def busy(times: int) -> turns.Call:
    """A case that computes so many times."""
    x = torch.rand(300, 300)

    def call() -> float:
        y = x
        for _ in range(times):
            y = torch.tanh(x @ y)
        return float(y.sum())

    return call


def broken() -> turns.Call:
    raise ValueError("this case cannot be built")


def hungry(mib: int) -> turns.Call:
    return lambda: float(torch.ones(mib * 2**18).sum())


def killed() -> turns.Call:
    import os
    import signal

    return lambda: os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_cases_take_turns_and_ratios_are_within_a_round():
    found = turns.measure({"one": (busy, {"times": 20}), "four": (busy, {"times": 80})}, 5)
    assert [len(one.seconds) for one in found.values()] == [5, 5]
    assert found["four"].ratio(found["one"]) > 2 and len(set(found["one"].values)) == 1
    low, middle, high = found["four"].ratios(found["one"])
    assert low <= middle <= high


@pytest.mark.slow
def test_memory_is_that_of_the_case_alone():
    cases = {"less": (hungry, {"mib": 50, "keep": False}), "more": (hungry, {"mib": 350, "keep": False})}
    found = turns.measure(cases, 2)
    assert 280 < found["more"].peak_mib - found["less"].peak_mib < 320 and found["less"].peak_mib < 120


@pytest.mark.slow
@pytest.mark.parametrize(("case", "message"), [(broken, "ValueError: this case cannot be built"), (killed, "killed")])
def test_a_case_that_fails_is_named(case, message):
    with pytest.raises(RuntimeError, match=f"^bad: .*{message}"):
        turns.measure({"bad": (case, {})}, 1)


def test_the_steps_that_are_timed_have_the_same_losses():
    losses = {way: [step.make(**CASE, way=way)() for _ in range(1)] for way in [*WAYS, "FT"]}
    assert len({tuple(losses[way]) for way in WAYS}) == 1 and all(map(math.isfinite, losses["FT"]))


def test_the_peak_of_a_merge_is_counted_a_copy_below_that_of_fine_tuning():
    counted = {way: step.requested(**CASE, way=way)() for way in [*WAYS, "FT"]}
    copies = {way: (counted[way] - counted["FT"]) / step.kernel_mib("densenet_small") for way in WAYS}
    assert -1.1 < copies["KernelMerge"] < -0.8, "two frozen copies and a merged one, against AdamW's two as well"
    assert copies["KernelMerge"] < min(copies.values()) + 0.01


@pytest.mark.slow
def test_memory_given_back_is_the_same_step():
    case = CASE | {"way": "FT"}
    found = turns.measure({"kept": (step.make, case), "given back": (step.make, case | {"keep": False})}, 2)
    assert found["kept"].values == found["given back"].values


def test_features_computed_once_give_the_same_head():
    case = {"backbone": "densenet_small", "image_size": 32, "small": True, "precision": "fp32", "device": "cpu"}
    once, again = (torch.tensor(probe.make(**case, once=flag)()) for flag in (True, False))
    assert (once - again).abs().max() <= 1e-5 and once.abs().max() > 0.05


def test_the_plain_script_is_the_same_method(sources):
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


def test_photographs_are_the_same_each_time_and_split(tmp_path):
    for name in ("a", "b"):
        photographs.draw(tmp_path / name, 20, 60, 45, test=8)
    files = [sorted(path.read_bytes() for path in (tmp_path / name).rglob("*.jpg")) for name in ("a", "b")]
    assert files[0] == files[1] and len(files[0]) == 28
    found = photographs.dataset(tmp_path / "a", 32)
    assert [len(part) for part in (found.train, found.val, found.test)] == [16, 4, 8]
    assert found.train.inputs.shape[1:] == (3, 32, 32) and set(found.classes) == set(photographs.CLASSES)


@pytest.mark.slow
def test_a_row_runs_on_one_core_and_on_several(tmp_path):
    """All five approaches of both, whose scores are read from what they print and record."""
    size = {**row.SMALL, "images": 20, "test": 8}
    photographs.draw(tmp_path, size["images"], *size["side"], test=size["test"])
    for name in ("first", "second"):
        torch.save(backbone(size["backbone"], "random").state_dict(), tmp_path / f"{name}.pth")
    theirs = row._plain(tmp_path, size, 0, [0], "cpu")
    ours = [row._ours(tmp_path, size, 0, cores, "fp32", torch.device("cpu")) for cores in ([0], [0, 1])]
    for found in (theirs, *ours):
        assert 0 < found["macro_f1"] <= 1 and 0 < found["accuracy"] <= 1 and found["seconds"] > 0 < found["processor"]
    assert {k: ours[0][k] for k in row.SCORES} == {k: ours[1][k] for k in row.SCORES}


@pytest.mark.slow
def test_the_command_writes_what_it_prints(tmp_path, capsys):
    assert main(["pipeline", "--small", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "pipeline.json").read_text())
    assert set(found) == {"machine", "seconds", "rows", "provenance"}
    (measured,) = found["rows"]
    assert measured["images"] == 64 and 0 < measured["of ready"][1] < 3
    assert f"{measured['epoch, images/s']}" in capsys.readouterr().out


def test_what_is_not_there_is_said(capsys, monkeypatch):
    for words, message in ((["stop"], "no part 'stop'"), (["--device", "cuda"], "PyTorch sees no GPU here")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2 and message in capsys.readouterr().err


def test_the_command_is_there_for_a_new_user():
    done = subprocess.run([sys.executable, "-m", "benchmarks", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and all(part in done.stdout for part in PARTS)


def test_the_chapter_shows_every_table_and_every_measurement():
    page = (ROOT / "book" / "speed.md").read_text(encoding="utf-8")
    elsewhere = (ROOT / "book" / "rerun.md").read_text(encoding="utf-8")
    assert set(re.findall(r"```{benchmark} (\w+)", page + elsewhere)) == set(chapter.TABLES)
    for part in PARTS:
        assert chapter.load(part)["rows"], f"python -m benchmarks {part}"
    for table in chapter.TABLES:
        lines = chapter.markdown(table).splitlines()
        assert len({line.count("|") for line in lines}) == 1 and len(lines) > 2


def test_a_target_that_is_missed_is_said_so(tmp_path, monkeypatch):
    for part in PARTS:
        (tmp_path / f"{part}.json").write_text(json.dumps(chapter.load(part)))
    monkeypatch.setattr(chapter, "HERE", tmp_path)
    rows = json.loads((tmp_path / "step.json").read_text())
    for one in rows["rows"]:
        one["of FT"] = [1.2, 1.3, 1.4] if one["way"] == "KernelMerge" else [1.1, 1.2, 1.3]
        one["KernelMerge of it"] = [1.05, 1.083, 1.1] if one["way"] != "KernelMerge" else [1, 1, 1]
    (tmp_path / "step.json").write_text(json.dumps(rows))
    lines = chapter.targets()[2:]
    assert "1.300 at most | **no**" in lines[0] and "1.083 at most (1.050 to 1.100) | **no**" in lines[1]
    rows["rows"][1]["KernelMerge of it"] = [0.99, 1.09, 1.2]
    (tmp_path / "step.json").write_text(json.dumps(rows))
    assert "| within noise |" in chapter.targets()[3]
    (tmp_path / "row.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"row\.json: run python -m benchmarks row"):
        chapter.markdown("row")


def test_the_script_of_the_tables_needs_nothing_of_the_package():
    """The book's extension runs it as it is."""
    assert runpy.run_path(str(ROOT / "benchmarks" / "chapter.py"))["TABLES"].keys() == chapter.TABLES.keys()


def test_the_power_in_the_book_is_the_simulations():
    kept = pd.read_csv(power.OUT).set_index(["pair", "spread", "seeds", "gain"])
    for pair, case, seeds, gain in (("skin-2", "cautious", 6, 0.03), ("retina-2", "expected", 3, 0.0)):
        found = power.power(gain, [power.spread(pair, case)], seeds)
        assert np.allclose(found, kept.loc[(pair, case, seeds, gain)], atol=0.0006)
    assert (kept.xs(0.0, level="gain")["one"] < power.ALPHA / 2).all(), "superior: one of the two sides"
    p = np.array([[0.01, 0.04, 0.02], [0.5, 0.9, 0.001]])
    assert np.allclose(power.holm(p), [evaluation.holm(one) for one in p])
