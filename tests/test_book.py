"""The book's files: its configuration, its contents, its notebooks, its API reference."""

import importlib
import inspect
import json
import re
import runpy

import jupyter_book.config as jb
import pytest
import yaml
from book_fixtures import CONFIG, ROOT, name_of, toc_files

import medmerge

SOURCES = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = sorted(p for p in (ROOT / "results").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


# ---------------------------------------------------------------- configuration


def unknown_keys(config: dict) -> list[str]:
    """Jupyter Book ignores what it does not know, so a misspelt or misplaced key would go unseen."""
    known = yaml.safe_load(jb.PATH_YAML_DEFAULT.read_text(encoding="utf8"))
    known |= {"bibtex_bibfiles": [], "project": ""}  # read by yaml_to_sphinx, absent from the defaults
    unknown = [key for key in config if key not in known]
    for section, values in config.items():
        if isinstance(values, dict) and section != "sphinx":
            unknown += [f"{section}.{key}" for key in values if key not in known.get(section, {})]
    unknown += [f"sphinx.{key}" for key in config["sphinx"] if key not in known["sphinx"]]
    return unknown


def test_configuration_keys_are_known():
    unknown = unknown_keys(CONFIG)
    assert not unknown, f"_config.yml: Jupyter Book knows no {', '.join(unknown)}, and would ignore it"
    jb.validate_yaml(CONFIG, raise_on_errors=True)


def test_an_unknown_key_is_named():
    wrong = {"titel": "", "html": {"favicon": "", "favicn": ""}, "sphinx": {"confg": {}}, "only_build_toc_files": True}
    assert unknown_keys(wrong) == ["titel", "html.favicn", "sphinx.confg"]


def test_configuration_that_silence_would_break():
    assert CONFIG["only_build_toc_files"] is True
    assert CONFIG["execute"]["execute_notebooks"] == "off"  # quoted: a bare off is the boolean
    assert CONFIG["sphinx"]["recursive_update"] is True  # else our theme options wipe the launch buttons
    assert not (ROOT / "_static").exists()  # everything in it would load on every page
    static = ROOT / CONFIG["sphinx"]["config"]["html_static_path"][0]
    assert (static / CONFIG["sphinx"]["config"]["mathjax_path"]).stat().st_size > 1_000_000
    for style in CONFIG["sphinx"]["config"]["html_css_files"]:
        assert (static / style).is_file()
    for file in (CONFIG["logo"], CONFIG["html"]["favicon"], *CONFIG["bibtex_bibfiles"]):
        assert (ROOT / file).is_file()


@pytest.mark.parametrize("entry", toc_files())
def test_contents_exist(entry):
    if entry.startswith("results/demo/"):
        return  # `make book` runs the demo before it builds
    assert any((ROOT / f"{entry}{suffix}").is_file() for suffix in (".md", ".ipynb")), entry


# ---------------------------------------------------------------- notebooks


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_source_notebook(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    prose = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    assert len(re.findall("^# ", "\n".join(prose), re.M)) == 1, "a second title hides the pages below it"
    # Without the tag papermill injects its values first and the defaults then overwrite them.
    assert sum("parameters" in tags(cell) for cell in notebook["cells"]) == 1
    assert not any("injected-parameters" in tags(cell) for cell in notebook["cells"])
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert "papermill" not in notebook["metadata"] and "widgets" not in notebook["metadata"]


@pytest.mark.parametrize("path", EXECUTED, ids=name_of)
def test_executed_notebook(path):
    assert not faults(json.loads(path.read_text()))


def faults(notebook: dict) -> list[str]:
    """What is wrong with an executed notebook: with execution off the build would not say so."""
    found = []
    if notebook["metadata"].get("papermill", {}).get("exception"):
        found.append("papermill stopped in it")
    for number, cell in enumerate(notebook["cells"]):
        if any(tag.startswith("papermill-error-cell") for tag in tags(cell)):
            found.append(f"cell {number} is papermill's note of an error")
        if cell["metadata"].get("papermill", {}).get("status") not in (None, "completed"):
            found.append(f"cell {number} was not completed")
        shown = cell["metadata"].get("mystnb", {})
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if output["output_type"] == "error":
                found.append(f"cell {number} failed: {output['ename']}: {output['evalue']}")
            if "application/vnd.jupyter.widget-view+json" in data and "text/html" not in data:
                found.append(f"cell {number} shows a widget with no HTML form: the page would show nothing")
            if "image/png" in data and not (
                len(shown.get("figure", {}).get("caption", "")) > 20 and len(shown.get("image", {}).get("alt", "")) > 20
            ):
                found.append(f"cell {number} shows a figure without a caption, or without words for who cannot see it")
    return found


def test_a_failed_notebook_is_told_from_a_good_one():
    failed = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
    picture = {"output_type": "display_data", "data": {"image/png": "iVBOR"}}
    widget = {"output_type": "display_data", "data": {"application/vnd.jupyter.widget-view+json": {}}}
    cells = [{"metadata": {}, "outputs": [output]} for output in (failed, picture, widget)]
    cells += [{"metadata": {"tags": ["papermill-error-cell-tag"]}}, {"metadata": {"papermill": {"status": "pending"}}}]
    notebook = {"metadata": {"papermill": {"exception": True}}, "cells": cells}
    found = faults(notebook)
    assert len(found) == 6 and "cell 0 failed: ValueError: no" in found


# ---------------------------------------------------------------- chapters


def test_the_chapter_on_datasets_lists_the_catalogue():
    from medmerge.data import CATALOGUE

    page = (ROOT / "book" / "datasets.md").read_text(encoding="utf-8")
    for known in (known for known in CATALOGUE if known.url):
        role = f" The paper's {known.paper}." if known.paper else ""
        assert f"{known.title}.{role} Licence: {known.licence}. <{known.url.split(' or ')[0]}>" in page
        assert f"```text\n{known.tree}\n```" in page


def test_the_chapter_on_parameters_lists_the_schema():
    from medmerge.study.params import markdown

    assert markdown() in (ROOT / "book" / "parameters.md").read_text(encoding="utf-8")


def test_the_chapter_on_approaches_lists_the_registry():
    from medmerge.approaches import APPROACHES

    page = (ROOT / "book" / "approaches.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| .+ \|$", page, re.MULTILINE)
    assert {name: title for name, title, _ in listed} == {name: one.title for name, one in APPROACHES.items()}
    assert len(listed) == len(APPROACHES)
    assert {name for name, _, origin in listed if origin == "each source"} == {
        name for name, one in APPROACHES.items() if not one.merges
    }


# ---------------------------------------------------------------- the API reference


def shown() -> list[str]:
    """The modules on the pages of the API reference, as often as they are shown."""
    modules = runpy.run_path(str(ROOT / "book" / "extensions" / "medmerge_book.py"))["modules"]
    texts = [page.read_text(encoding="utf-8") for page in (ROOT / "book" / "api").glob("*.md")]
    return [name for text in texts for words in re.findall(r"```{api} (.+)", text) for name in modules(words)]


def test_the_api_reference_shows_each_module_once_and_every_name_that_the_package_exports():
    assert len(shown()) == len(set(shown()))
    exported = {getattr(medmerge, name) for name in medmerge.__all__}
    homes = {thing.__module__ for thing in exported if inspect.isroutine(thing) or inspect.isclass(thing)}
    assert homes and homes <= set(shown())


@pytest.mark.parametrize("name", shown())
def test_every_public_name_has_a_docstring(name):
    """What has none would be missing in the API reference without a word."""
    module = importlib.import_module(name)
    own = [thing for thing in vars(module).values() if getattr(thing, "__module__", None) == name]
    assert module.__doc__
    assert not [thing for thing in own if getattr(thing, "__name__", "_")[0] != "_" and not inspect.getdoc(thing)]
