"""The notebooks beyond the demo: several labels an image, a source that has seen the target, the page on datasets."""

import json
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from data_fixtures import write_aptos2019, write_csv, write_ham10k, write_image
from PIL import Image
from test_explorer import record

from medmerge import backbone, save_backbone
from medmerge.cli import main as cli

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with two sources; the working folder is in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDMERGE_DATA", raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / ".ipython"))
    (tmp_path / "_config.yml").touch()
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
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
        "notebook: data\n"
        "track: own\ntitle: My data\ndatasets: [ham10k=ham]\nseeds: [0, 1]\nimage_size: 32\nbackbone: densenet_small\n"
        "base_data: objects\nbase_weights: w/objects.safetensors\ndevice: cpu\n"
    )
    notebook = str(ROOT / "notebooks/data.ipynb")
    assert cli.main(["check", "data.yaml"]) == 0
    assert capsys.readouterr().out == (
        "data.yaml: 2 records to show, 0 here\n  to measure: ham10k\n  to measure: overlaps\n"
    )
    assert cli.main(["run", notebook, "data.yaml"]) == 0
    first = nbformat.read("results/own/data.ipynb", 4)
    assert first.cells[0].source.startswith("# My data") and "same patient or lesion" in shown(first)
    shutil.rmtree(project / "ham")
    shutil.rmtree(project / "w")
    assert cli.main(["check", "data.yaml"]) == 0
    assert cli.main(["run", notebook, "data.yaml"]) == 0
    again = nbformat.read("results/own/data.ipynb", 4)
    logged = [k for k, cell in enumerate(first.cells) if "datasheet.run" in cell.source]
    assert len(logged) == 1
    for number, (one, other) in enumerate(zip(first.cells, again.cells, strict=True)):
        assert number in logged or one == other, one.source


@pytest.mark.slow
def test_the_page_on_datasets_without_images_or_leaks(project):
    """Labels without images and without groups: nothing to probe and nothing that leaks."""
    write_aptos2019(project / "aptos", {f"{number:012x}": number % 5 for number in range(100)})
    shutil.rmtree(project / "aptos/train_images")
    Path("data.yaml").write_text(
        "notebook: data\n"
        "track: own\ndatasets: [aptos2019=aptos]\nseeds: [0]\nbackbone: densenet_small\nbase_data: objects\n"
        "base_weights: w/objects.safetensors\ndevice: cpu\n"
    )
    assert cli.main(["run", str(ROOT / "notebooks/data.ipynb"), "data.yaml"]) == 0
    text = shown(nbformat.read("results/own/data.ipynb", 4))
    assert "No split leaks 0.5 %" in text and "None was run: no images are here" in text


@pytest.mark.slow
def test_the_page_of_weights_shows_the_merged_runs_of_its_studies(project, capsys):
    record(project / "results", 0), record(project / "results", 1)
    Path("weights.yaml").write_text("notebook: weights\ntrack: open\ntitle: Weights\nstudies: [moles]\n")
    notebook = str(ROOT / "notebooks/weights.ipynb")
    assert cli.main(["check", "weights.yaml"]) == 0
    assert capsys.readouterr().out == "weights.yaml: 2 records to show, 2 here\n"
    assert cli.main(["run", notebook, "weights.yaml"]) == 0
    page = nbformat.read("results/open/weights.ipynb", 4)
    text = shown(page)
    assert page.cells[0].source.startswith("# Weights") and "mm-explorer" in text and "same side" in text
    assert "widget-view" not in nbformat.writes(page) and "widgets" not in page.metadata
    assert cli.main(["run", notebook, "weights.yaml"]) == 0
    assert nbformat.read("results/open/weights.ipynb", 4) == page, "the same each time"
    Path("weights.yaml").write_text("notebook: weights\ntrack: open\nstudies: [hearts]\n")
    assert cli.main(["run", notebook, "weights.yaml"]) == 2
    assert "no merged run of hearts" in capsys.readouterr().err


@pytest.mark.slow
def test_report_draws_what_there_are_records_for(project, capsys):
    """The same pages as run does; one whose notebook fails stops no other, one without records is left alone."""
    record(project / "results", 0), record(project / "results", 1)
    (project / "notebooks").unlink()
    for name, code in (("weights", ""), ("features", "raise ValueError('this cell')")):
        cells = nbformat.read(ROOT / "notebooks/weights.ipynb", 4)
        cells.cells[-1] = nbformat.v4.new_code_cell(code)
        (project / "notebooks").mkdir(exist_ok=True)
        nbformat.write(cells, project / f"notebooks/{name}.ipynb")
    for name, notebook, study in (("a", "weights", "moles"), ("c", "weights", "hearts")):
        Path(f"{name}.yaml").write_text(f"notebook: {notebook}\ntrack: open\ntitle: {name}\nstudies: [{study}]\n")
    assert cli.main(["report", "a.yaml", "c.yaml"]) == 0
    drawn = Path("results/open/a.ipynb")
    assert [path.name for path in drawn.parent.glob("*.ipynb")] == ["a.ipynb"]
    found = drawn.read_bytes()
    drawn.unlink()
    assert cli.main(["run", "a.yaml"]) == 0 and drawn.read_bytes() == found
    capsys.readouterr()
    assert cli.main(["report", "c.yaml"]) == 2
    assert "no page's records are all here" in capsys.readouterr().err


def test_the_page_on_datasets_needs_what_it_names(project, capsys):
    Path("data.yaml").write_text("notebook: data\ndatasets: [ham10k=nowhere]\nbase_weights: w/objects.safetensors\n")
    assert cli.main(["run", str(ROOT / "notebooks/data.ipynb"), "data.yaml"]) == 2
    assert "datasets: no ham10k in nowhere: there is no " in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_on_costs_is_drawn_again_from_its_record(project, capsys):
    Path("cost.yaml").write_text(
        "notebook: cost\n"
        "track: own\ntitle: My costs\nnote: A small network.\nbackbone: densenet_small\nimage_size: 32\nbatch_size: 4\n"
        "cost_repeats: 3\ndevice: cpu\nprecision: fp32\n"
    )
    notebook = str(ROOT / "notebooks/cost.ipynb")
    assert cli.main(["check", "cost.yaml"]) == 0
    assert capsys.readouterr().out == ("cost.yaml: 1 record to show, 0 here\n  to measure: densenet_small-32px\n")
    assert cli.main(["run", notebook, "cost.yaml"]) == 0
    first = nbformat.read("results/own/cost.ipynb", 4)
    text = shown(first)
    assert first.cells[0].source.startswith("# My costs") and "A small network." in text
    assert "FT with 100 epochs" in text and "w a parameter" in text and "image/png" in text
    record = Path("results/own/cost/densenet_small-32px.json").read_bytes()
    assert cli.main(["check", "cost.yaml"]) == 0
    assert capsys.readouterr().out.endswith("cost.yaml: 1 record to show, 1 here\n")
    assert cli.main(["run", notebook, "cost.yaml"]) == 0
    assert Path("results/own/cost/densenet_small-32px.json").read_bytes() == record
    again = nbformat.read("results/own/cost.ipynb", 4)
    (logged,) = [k for k, cell in enumerate(first.cells) if "cost.run" in cell.source]
    assert all(one == other for k, (one, other) in enumerate(zip(first.cells, again.cells, strict=True)) if k != logged)


@pytest.mark.slow
def test_the_page_on_the_premise_is_drawn_again_from_its_records(project, capsys):
    """Sources of unrelated random weights, merged as they are and aligned."""
    Path("premise.yaml").write_text(
        "notebook: premise\n"
        "track: own\ntitle: My premise\nnote: Random sources.\npair: mine\nbase_data: objects\n"
        "base_weights: w/objects.safetensors\nsource_data: lesions\nsource_weights: w/lesions.safetensors\n"
        "premise: true\nbackbone: densenet_small\nimage_size: 32\nfractions: [0.2, 0.2, 0.6]\nlp_epochs: 1\n"
        "lp_lr: 0.03\nft_epochs: 0\nscore_controls: false\ndevice: cpu\nprecision: fp32\napproaches: [medmerge]\n"
        "vary: {align: [none, weights]}\n"
    )
    notebook = str(ROOT / "notebooks/premise.ipynb")
    assert cli.main(["check", "premise.yaml"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("premise.yaml: 2 runs, 0 finished; 1 record to show, 0 here") and out.endswith(
        "to measure: what lies between the sources\n"
    )
    assert cli.main(["run", notebook, "premise.yaml"]) == 0
    first = nbformat.read("results/own/premise.ipynb", 4)
    text = shown(first)
    assert first.cells[0].source.startswith("# My premise") and "Random sources." in text
    assert "have nothing in common" in text and "Alignment of lesions to objects changes" in text
    assert text.count("image/png") == 3 and "aligned by weights" in text
    folder = Path("results/own/mine/premise")
    kept = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert sorted(kept) == ["distances.csv", "line.csv", "premise.json"]
    capsys.readouterr()
    assert cli.main(["check", "premise.yaml"]) == 0
    assert capsys.readouterr().out == "premise.yaml: 2 runs, 2 finished; 1 record to show, 1 here\n"
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
    assert "measured on other weights or images than" in capsys.readouterr().err
