"""The notebooks beyond the demo: several labels an image, a source that has seen the target, what is measured."""

import json
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
from data_fixtures import write_csv, write_ham10k
from PIL import Image
from test_explorer import record
from test_study import write_weights

from medmerge.cli import main as cli

ROOT = Path(__file__).parents[1]
SMALL = {"track": "own", "backbone": "densenet_small", "image_size": 32, "device": "cpu"}
SMALL |= {"base_data": "objects", "base_weights": "w/objects.safetensors"}


@pytest.fixture
def project(project):
    """A project with two sources; the working folder is in it."""
    (project / "notebooks").symlink_to(ROOT / "notebooks")
    write_weights(project)
    return project


def run(notebook: str, **values) -> nbformat.NotebookNode:
    """The page of a parameter file ``page.yaml``, drawn."""
    track = values["track"]
    Path("page.yaml").write_text(json.dumps({"notebook": notebook, "title": "My page", **values}))
    assert cli.main(["run", "page.yaml"]) == 0
    return nbformat.read(f"results/{track}/page.ipynb", 4)


def drawn_again(first: nbformat.NotebookNode, measures: str, notebook: str, **values) -> None:
    """Draw a page again: all but the cell that measures shows the same."""
    again = run(notebook, **values)
    for one, other in zip(first.cells, again.cells, strict=True):
        assert measures in one.source or one == other, one.source


def shown(notebook) -> str:
    """All that the executed cells show, as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(str(output.get("data", output.get("text", ""))) for output in outputs)


def checked(capsys) -> str:
    """What ``medmerge check`` says of the parameter file."""
    capsys.readouterr()
    assert cli.main(["check", "page.yaml"]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_the_pair_page_of_several_labels_an_image_that_a_source_has_seen(project, capsys):
    names, rows = ("Effusion", "Edema", "Mass"), []
    (project / "images").mkdir()
    for number in range(60):
        pixels = np.random.default_rng(number).integers(0, 120, (32, 32, 3))
        present = [k for k in range(3) if number >> k & 1]
        pixels[..., present] += 90
        Image.fromarray(pixels.astype(np.uint8)).save(project / "images" / f"{number}.png")
        rows.append(f"{number}.png,{'|'.join(names[k] for k in present)},patient{number // 2}")
    write_csv(project / "images", "image,labels,group\n" + "\n".join(rows) + "\n")
    shutil.copy("w/lesions.safetensors", "w/seen.safetensors")
    seen = [f"csv,{number}.png,patient{number // 2},,train" for number in range(0, 60, 4)]
    Path("w/seen.images.csv").write_text("dataset,id,group,sha256,split\n" + "\n".join(seen) + "\n")
    target = {"target_data": "csv", "target_root": "images", "target_labels": "images/labels.csv"}
    training = {"lp_epochs": 2, "ft_epochs": 2, "lp_lr": 0.01, "ft_lr": 0.001}
    page = run("pair", **SMALL, **target, **training, source_data="seen", source_weights="w/seen.safetensors")
    assert "WARNING: seen: the target shares images" in capsys.readouterr().err
    text = shown(page)
    assert "**Warning" in text and "average precision" in text and "of the 4 baselines" in text
    assert all(name in text for name in names)


@pytest.mark.slow
def test_the_page_on_datasets_is_drawn_again_from_its_records(project, capsys):
    write_ham10k(project / "ham", count=140)
    values = SMALL | {"datasets": ["ham10k=ham"], "seeds": [0, 1]}
    Path("page.yaml").write_text(json.dumps({"notebook": "data", **values}))
    assert checked(capsys) == "page.yaml: 2 records to show, 0 here\n  to measure: ham10k\n  to measure: overlaps\n"
    first = run("data", **values)
    assert first.cells[0].source.startswith("# My page") and "same patient or lesion" in shown(first)
    shutil.rmtree(project / "ham")
    shutil.rmtree(project / "w")
    assert checked(capsys) == "page.yaml: 2 records to show, 2 here\n"
    drawn_again(first, "datasheet.run", "data", **values)


@pytest.mark.slow
def test_the_page_of_weights_shows_the_merged_runs_of_its_studies(project, capsys):
    record(project / "results", 0), record(project / "results", 1)
    page = run("weights", track="open", studies=["moles"])
    assert checked(capsys) == "page.yaml: 2 records to show, 2 here\n"
    text = shown(page)
    assert page.cells[0].source.startswith("# My page") and "mm-explorer" in text and "same side" in text
    assert "widget-view" not in nbformat.writes(page) and "widgets" not in page.metadata
    assert run("weights", track="open", studies=["moles"]) == page, "the same each time"
    Path("page.yaml").write_text("notebook: weights\ntrack: open\nstudies: [hearts]\n")
    assert cli.main(["run", "page.yaml"]) == 2
    assert "no merged run of hearts" in capsys.readouterr().err


@pytest.mark.slow
def test_report_draws_what_there_are_records_for(project, capsys):
    """The same pages as run does; one without records is left alone."""
    record(project / "results", 0), record(project / "results", 1)
    for name, study in (("a", "moles"), ("c", "hearts")):
        Path(f"{name}.yaml").write_text(f"notebook: weights\ntrack: open\ntitle: {name}\nstudies: [{study}]\n")
    assert cli.main(["report", "a.yaml", "c.yaml"]) == 0
    drawn = Path("results/open/a.ipynb")
    assert [path.name for path in drawn.parent.glob("*.ipynb")] == ["a.ipynb"]
    found = drawn.read_bytes()
    drawn.unlink()
    assert cli.main(["run", "a.yaml"]) == 0 and drawn.read_bytes() == found
    assert cli.main(["report", "c.yaml"]) == 2
    assert "no page's records are all here" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_on_costs_is_drawn_again_from_its_record(project):
    values = SMALL | {"note": "A small network.", "batch_size": 4, "cost_repeats": 3, "precision": "fp32"}
    values = {name: value for name, value in values.items() if not name.startswith("base_")}
    first = run("cost", **values)
    text, kept = shown(first), Path("results/own/cost/densenet_small-32px.json").read_bytes()
    assert "A small network." in text and "FT with 100 epochs" in text and "image/png" in text
    drawn_again(first, "cost.run", "cost", **values)
    assert Path("results/own/cost/densenet_small-32px.json").read_bytes() == kept


@pytest.mark.slow
def test_the_page_on_the_premise_is_drawn_again_from_its_records(project, capsys):
    """Sources of unrelated random weights, merged as they are and aligned."""
    values = SMALL | {"pair": "mine", "source_data": "lesions", "source_weights": "w/lesions.safetensors"}
    values |= {"premise": True, "fractions": [0.2, 0.2, 0.6], "lp_epochs": 1, "lp_lr": 0.03, "ft_epochs": 0}
    values |= {"score_controls": False, "precision": "fp32", "approaches": ["medmerge"]}
    values |= {"vary": {"align": ["none", "weights"]}}
    first = run("premise", **values)
    text, folder = shown(first), Path("results/own/mine/premise")
    assert "have nothing in common" in text and "Alignment of lesions to objects changes" in text
    assert text.count("image/png") == 3 and "aligned by weights" in text
    assert sorted(path.name for path in folder.iterdir()) == ["distances.csv", "line.csv", "premise.json"]
    assert checked(capsys) == "page.yaml: 2 runs, 2 finished; 1 record to show, 1 here\n"
    shutil.rmtree(project / "w")
    drawn_again(first, ".run(p)", "premise", **values)
    content = (folder / "premise.json").read_text()
    (folder / "premise.json").write_text(content.replace(json.loads(content)["sources"]["lesions"], "0" * 64))
    assert cli.main(["check", "page.yaml"]) == 2
    assert "measured on other weights or images than" in capsys.readouterr().err
