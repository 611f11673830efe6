"""What the README and the book show as code runs, and what they name exists."""

import re
from pathlib import Path

import pytest
import torch

import medmerge

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "book/method.md", "book/rerun.md", "book/cluster.md"]


def test_the_first_page_runs_as_it_stands(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {}
    exec(blocks[0], names)
    assert sum(len(w) for w in names["w"].values()) == 4_800 and any((w != 0.5).any() for w in names["w"].values())
    loaded, state = medmerge.load("merged.safetensors"), names["model"].state_dict()
    assert type(loaded.backbone).__name__ == "ResNet" and list(loaded.state_dict()) == list(state)
    assert all(torch.equal(value, state[key].cpu()) for key, value in loaded.state_dict().items())
    pytest.importorskip("timm")
    exec(blocks[1], names)
    assert type(names["model"].backbone) is type(names["b"]) and Path("merged.pt").is_file()


def test_the_method_in_ten_lines_runs(tmp_path, monkeypatch):
    text = (ROOT / "book/method.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(import medmerge\n.*?)```", text, re.S)[1]
    monkeypatch.chdir(tmp_path)
    medmerge.save(medmerge.backbone("densenet121", "random"), Path("ham10k.safetensors"))
    names = {}
    exec(code.replace('"imagenet"', '"random"'), names)
    with torch.no_grad():
        assert names["model"].eval()(torch.randn(1, 3, 64, 64)).shape == (1, 8)
    assert sum(len(w) for w in names["w"].values()) == 10_240
    assert type(names["model"].backbone).__name__ == "DenseNet"


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_files_that_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/])(?:notebooks|params)/[\w./-]+\.(?:ipynb|yaml)", text))
    assert all((ROOT / path).is_file() for path in named), named
    targets = set(re.findall(r"^make (\w+)", text, re.M))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets), targets
    assert page in ("book/method.md", "book/cluster.md") or (named and targets)
