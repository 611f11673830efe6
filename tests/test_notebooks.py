"""The notebooks beyond the demo: several labels an image, a source that has seen the target, the page on datasets."""

import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from data_fixtures import write_aptos2019, write_csv, write_ham10k, write_image
from PIL import Image
from test_explorer import record
from test_stopping import alive, wait_for

from medmerge import backbone, save_backbone
from medmerge.cli import main as cli
from medmerge.cli import notebook_kernels
from medmerge.cli.jobs import Companion

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with two sources; the working folder is in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDMERGE_DATA", raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / ".ipython"))
    (tmp_path / "_config.yml").touch()
    for seed, name in enumerate(("objects", "lesions")):
        torch.manual_seed(seed)
        save_backbone(backbone("densenet_small", "random"), tmp_path / f"w/{name}.safetensors", "densenet_small")
    return tmp_path


def shown(notebook) -> str:
    """All that the executed cells show, as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(str(output.get("data", output.get("text", ""))) for output in outputs)


@pytest.mark.slow
def test_the_pair_page_of_several_labels_an_image_that_a_source_has_seen(project, capsys):
    names = ("Effusion", "Edema", "Mass")
    rows = []
    for number in range(60):
        pixels = np.random.default_rng(number).integers(0, 120, (32, 32, 3))
        present = [k for k in range(3) if number >> k & 1]
        pixels[..., present] += 90
        write_image(project / "images" / f"{number}.png", number)
        Image.fromarray(pixels.astype(np.uint8)).save(project / "images" / f"{number}.png")
        rows.append(f"{number}.png,{'|'.join(names[k] for k in present)},patient{number // 2}")
    write_csv(project / "images", "image,labels,group\n" + "\n".join(rows) + "\n")
    shutil.copy("w/lesions.safetensors", "w/seen.safetensors")
    seen = [f"csv,{number}.png,patient{number // 2},,train" for number in range(0, 60, 4)]
    Path("w/seen.images.csv").write_text("dataset,id,group,sha256,split\n" + "\n".join(seen) + "\n")
    Path("several.yaml").write_text(
        "track: own\npair: several\ntitle: Several labels\nbase_data: objects\nbase_weights: w/objects.safetensors\n"
        "source_data: seen\nsource_weights: w/seen.safetensors\nbackbone: densenet_small\nimage_size: 32\ndevice: cpu\n"
        "target_data: csv\ntarget_root: images\ntarget_labels: images/labels.csv\nlp_epochs: 2\nft_epochs: 2\n"
        "lp_lr: 0.01\nft_lr: 0.001\n"
    )
    assert cli.main(["run", str(ROOT / "notebooks/pair.ipynb"), "several.yaml"]) == 0
    assert "WARNING: seen: the target shares images" in capsys.readouterr().err
    text = shown(nbformat.read("results/own/several.ipynb", 4))
    assert "**Warning" in text and "average precision" in text and "of the 4 baselines" in text
    assert all(name in text for name in names)


@pytest.mark.slow
def test_the_page_on_datasets_is_drawn_again_from_its_records(project, capsys):
    write_ham10k(project / "ham", count=140)
    Path("data.yaml").write_text(
        "track: own\ntitle: My data\ndatasets: [ham10k=ham]\nseeds: [0, 1]\nimage_size: 32\nbackbone: densenet_small\n"
        "base_data: objects\nbase_weights: w/objects.safetensors\ndevice: cpu\n"
    )
    notebook = str(ROOT / "notebooks/data.ipynb")
    assert cli.main(["check", "data.yaml"]) == 0
    assert capsys.readouterr().out == "data.yaml: 1 datasets, 0 measured\n  to measure: ham10k\n"
    assert cli.main(["run", notebook, "data.yaml"]) == 0
    first = nbformat.read("results/own/data.ipynb", 4)
    assert first.cells[0].source.startswith("# My data") and "same patient or lesion" in shown(first)
    shutil.rmtree(project / "ham")
    shutil.rmtree(project / "w")
    assert cli.main(["check", "data.yaml"]) == 0
    assert cli.main(["run", notebook, "data.yaml"]) == 0
    again = nbformat.read("results/own/data.ipynb", 4)
    logged = [k for k, cell in enumerate(first.cells) if "datasheets.run" in cell.source]
    assert len(logged) == 1
    for number, (one, other) in enumerate(zip(first.cells, again.cells, strict=True)):
        assert number in logged or one == other, one.source


@pytest.mark.slow
def test_the_page_on_datasets_without_images_or_leaks(project):
    """Labels without images and without groups: nothing to probe and nothing that leaks."""
    write_aptos2019(project / "aptos", {f"{number:012x}": number % 5 for number in range(100)})
    shutil.rmtree(project / "aptos/train_images")
    Path("data.yaml").write_text(
        "track: own\ndatasets: [aptos2019=aptos]\nseeds: [0]\nbackbone: densenet_small\nbase_data: objects\n"
        "base_weights: w/objects.safetensors\ndevice: cpu\n"
    )
    assert cli.main(["run", str(ROOT / "notebooks/data.ipynb"), "data.yaml"]) == 0
    text = shown(nbformat.read("results/own/data.ipynb", 4))
    assert "No split leaks 0.5 %" in text and "None was run: no images are here" in text


@pytest.mark.slow
def test_the_page_of_weights_shows_the_merged_runs_of_its_studies(project, capsys):
    record(project / "results", 0), record(project / "results", 1)
    Path("weights.yaml").write_text("track: open\ntitle: Weights\nstudies: [moles]\n")
    notebook = str(ROOT / "notebooks/weights.ipynb")
    assert cli.main(["check", "weights.yaml"]) == 0
    assert capsys.readouterr().out == "weights.yaml: 1 studies, 2 merged runs to show\n"
    assert cli.main(["run", notebook, "weights.yaml"]) == 0
    page = nbformat.read("results/open/weights.ipynb", 4)
    text = shown(page)
    assert page.cells[0].source.startswith("# Weights") and "mm-explorer" in text and "same side of 0.5" in text
    assert "widget-view" not in nbformat.writes(page) and "widgets" not in page.metadata
    assert cli.main(["run", notebook, "weights.yaml"]) == 0
    assert nbformat.read("results/open/weights.ipynb", 4) == page, "the same each time"
    Path("weights.yaml").write_text("track: open\nstudies: [hearts]\n")
    assert cli.main(["run", notebook, "weights.yaml"]) == 2
    assert "no merged run of hearts" in capsys.readouterr().err


def ending_with(path: Path, code: str) -> None:
    """Write the notebook of weights with other code in its last cell."""
    cells = nbformat.read(ROOT / "notebooks/weights.ipynb", 4)
    cells.cells[-1] = nbformat.v4.new_code_cell(code)
    nbformat.write(cells, path)


def weights_page(name: str, study: str, notebook: Path) -> Path:
    """Write a parameter file of a page of weights."""
    path = Path(f"{name}.yaml")
    path.write_text(f"#   medmerge run {notebook} {path}\ntrack: open\ntitle: {name}\nstudies: [{study}]\n")
    return path


@pytest.mark.slow
def test_report_draws_side_by_side_what_there_are_records_for(project, start, capsys):
    """The same pages as one by one; one whose notebook fails stops no other, one without records is left alone."""
    record(project / "results", 0), record(project / "results", 1)
    notebook, failing = ROOT / "notebooks/weights.ipynb", project / "failing.ipynb"
    ended = project / "ended.ipynb"
    ending_with(failing, "raise ValueError('this cell')")
    ending_with(ended, "import os; os.kill(os.getpid(), 9)")
    pages = {"a": ("moles", notebook), "b": ("moles", failing), "c": ("hearts", notebook), "d": ("moles", ended)}
    files = [weights_page(name, *page) for name, page in pages.items()]
    process = start("report", "--jobs", "2", *map(str, files))
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in printed, printed
    assert "medmerge: ValueError: this cell" in printed and "c.yaml" not in printed
    assert "medmerge: the notebook's kernel was killed" in printed
    drawn = Path("results/open/a.ipynb")
    assert sorted(path.name for path in drawn.parent.glob("*.ipynb")) == ["a.ipynb", "b.failed.ipynb", "d.failed.ipynb"]
    found = drawn.read_bytes()
    drawn.unlink()
    assert cli.main(["run", str(notebook), "a.yaml"]) == 0 and drawn.read_bytes() == found
    assert cli.main(["report", "c.yaml"]) == 2
    assert "no page's records are all here" in capsys.readouterr().err
    assert cli.main(["report", "--jobs", "0", "a.yaml"]) == 2
    assert "--jobs 0: at least 1" in capsys.readouterr().err


def test_a_kernel_that_has_ended_is_sent_no_signal(monkeypatch):
    """nbclient may ask for its end at any time; its number can be another process's by then."""
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    kernel = notebook_kernels._Process(Companion(process, None))
    assert kernel.wait() == 0 and kernel.poll() == 0
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("sent"))
    kernel.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("name", notebook_kernels.LOADED)
def test_what_a_kernel_finds_loaded_is_there(name):
    """The server of forks says nothing of a module that it cannot import."""
    assert importlib.util.find_spec(name)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_report_that_is_stopped_leaves_no_kernel_behind(project, start, number, status):
    record(project / "results", 0), record(project / "results", 1)
    ending_with(
        project / "n.ipynb", "import os, pathlib, time\npathlib.Path(f'{os.getpid()}.pid').touch()\ntime.sleep(600)"
    )
    files = [str(weights_page(name, "moles", project / "n.ipynb")) for name in "ab"]
    process = start("report", "--jobs", "2", *files)
    kernels = wait_for(lambda: len(found := list(project.glob("*.pid"))) == 2 and found, process, 300)
    assert all(alive(int(path.stem)) for path in kernels)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == status and "Traceback" not in printed, printed
    end = time.monotonic() + 60
    while (left := [path.stem for path in kernels if alive(int(path.stem))]) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left
    assert not list(project.glob("results/open/*.ipynb")), "no half page"


def test_the_page_on_datasets_needs_what_it_names(project, capsys):
    Path("data.yaml").write_text("datasets: [ham10k=nowhere]\nbase_weights: w/objects.safetensors\n")
    assert cli.main(["run", str(ROOT / "notebooks/data.ipynb"), "data.yaml"]) == 2
    assert "datasets: no folder nowhere for ham10k" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_on_costs_is_drawn_again_from_its_record(project, capsys):
    Path("cost.yaml").write_text(
        "track: own\ntitle: My costs\nnote: A small network.\nbackbone: densenet_small\nimage_size: 32\nbatch_size: 4\n"
        "cost_repeats: 3\ndevice: cpu\nprecision: fp32\n"
    )
    notebook = str(ROOT / "notebooks/cost.ipynb")
    assert cli.main(["check", "cost.yaml"]) == 0
    assert capsys.readouterr().out == "cost.yaml: densenet_small at 32 px, not yet measured\n"
    assert cli.main(["run", notebook, "cost.yaml"]) == 0
    first = nbformat.read("results/own/cost.ipynb", 4)
    text = shown(first)
    assert first.cells[0].source.startswith("# My costs") and "A small network." in text
    assert "FT with 100 epochs" in text and "w a parameter" in text and "image/png" in text
    record = Path("results/own/cost/densenet_small-32px.json").read_bytes()
    assert cli.main(["check", "cost.yaml"]) == 0
    assert capsys.readouterr().out.endswith("cost.yaml: densenet_small at 32 px, measured\n")
    assert cli.main(["run", notebook, "cost.yaml"]) == 0
    assert Path("results/own/cost/densenet_small-32px.json").read_bytes() == record
    again = nbformat.read("results/own/cost.ipynb", 4)
    (logged,) = [k for k, cell in enumerate(first.cells) if "costsheets.run" in cell.source]
    assert all(one == other for k, (one, other) in enumerate(zip(first.cells, again.cells, strict=True)) if k != logged)


@pytest.mark.slow
def test_the_page_on_the_premise_is_drawn_again_from_its_records(project, capsys):
    """Sources of unrelated random weights, merged as they are and aligned."""
    Path("premise.yaml").write_text(
        "track: own\ntitle: My premise\nnote: Random sources.\npair: mine\nbase_data: objects\n"
        "base_weights: w/objects.safetensors\nsource_data: lesions\nsource_weights: w/lesions.safetensors\n"
        "premise: true\nbackbone: densenet_small\nimage_size: 32\nfractions: [0.2, 0.2, 0.6]\nlp_epochs: 1\n"
        "lp_lr: 0.03\nft_epochs: 0\nscore_controls: false\ndevice: cpu\nprecision: fp32\napproaches: [medmerge]\n"
        "vary: {align: [none, weights]}\n"
    )
    notebook = str(ROOT / "notebooks/premise.ipynb")
    assert cli.main(["check", "premise.yaml"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("premise.yaml: 2 runs, 0 finished") and out.endswith(
        "to measure: what lies between the sources\n"
    )
    assert cli.main(["run", notebook, "premise.yaml"]) == 0
    first = nbformat.read("results/own/premise.ipynb", 4)
    text = shown(first)
    assert first.cells[0].source.startswith("# My premise") and "Random sources." in text
    assert "have nothing in common" in text and "Alignment of lesions to objects changes" in text
    assert text.count("image/png") == 3 and "align weights" in text
    folder = Path("results/own/mine/premise")
    kept = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert sorted(kept) == ["distances.csv", "line.csv", "premise.json"]
    capsys.readouterr()
    assert cli.main(["check", "premise.yaml"]) == 0
    assert capsys.readouterr().out == "premise.yaml: 2 runs, 2 finished\n"
    shutil.rmtree(project / "w")
    assert cli.main(["run", notebook, "premise.yaml"]) == 0
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == kept
    again = nbformat.read("results/own/premise.ipynb", 4)
    logged = [k for k, cell in enumerate(first.cells) if ".run(p)" in cell.source]
    assert all(
        one == other for k, (one, other) in enumerate(zip(first.cells, again.cells, strict=True)) if k not in logged
    )
    content = (folder / "premise.json").read_text()
    digest = json.loads(content)["sources"]["lesions"]
    (folder / "premise.json").write_text(content.replace(digest, "0" * 64))
    assert cli.main(["check", "premise.yaml"]) == 2
    assert "measured on other weights or images (lesions) than" in capsys.readouterr().err
