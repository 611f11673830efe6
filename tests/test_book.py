"""The book: its configuration, its notebooks, and what a browser without a network sees."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlparse

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())

SOURCES = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = sorted(p for p in (ROOT / "results").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def skip_or_fail(reason: str) -> None:
    """Skip on a reader's machine; fail where everything is supposed to be there."""
    if os.environ.get("MEDMERGE_CI") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


# ---------------------------------------------------------------- configuration


def test_configuration_keys_are_known():
    """Jupyter Book ignores what it does not know, so a misspelt or misplaced key goes unseen."""
    import jupyter_book.config as jb

    known = yaml.safe_load(jb.PATH_YAML_DEFAULT.read_text(encoding="utf8"))
    known |= {"bibtex_bibfiles": [], "project": ""}  # read by yaml_to_sphinx, absent from the defaults
    unknown = [key for key in CONFIG if key not in known]
    for section, values in CONFIG.items():
        if isinstance(values, dict) and section != "sphinx":
            unknown += [f"{section}.{key}" for key in values if key not in known.get(section, {})]
    unknown += [f"sphinx.{key}" for key in CONFIG["sphinx"] if key not in known["sphinx"]]
    assert not unknown
    jb.validate_yaml(CONFIG, raise_on_errors=True)


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


def toc_files() -> list[str]:
    entries = [TOC["root"]]

    def walk(node):
        if isinstance(node, dict):
            entries.extend(value for key, value in node.items() if key == "file")
            node = list(node.values())
        if isinstance(node, list):
            for item in node:
                walk(item)

    walk(TOC)
    return entries


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
    # Without the tag papermill injects its values first and the defaults then overwrite them.
    assert sum("parameters" in tags(cell) for cell in notebook["cells"]) == 1
    assert not any("injected-parameters" in tags(cell) for cell in notebook["cells"])
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert "papermill" not in notebook["metadata"] and "widgets" not in notebook["metadata"]


@pytest.mark.parametrize("path", EXECUTED, ids=name_of)
def test_executed_notebook(path):
    """With execution off a failed run builds without a warning, so it is looked for here."""
    notebook = json.loads(path.read_text())
    assert not notebook["metadata"].get("papermill", {}).get("exception")
    for cell in notebook["cells"]:
        assert not any(tag.startswith("papermill-error-cell") for tag in tags(cell))
        assert cell["metadata"].get("papermill", {}).get("status") in (None, "completed")
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error", "".join(output["traceback"])
            data = output.get("data", {})
            if "application/vnd.jupyter.widget-view+json" in data:
                assert "text/html" in data, "a widget with no HTML form: the page would show nothing"


# ---------------------------------------------------------------- a build

PAGE = r"""# A page

```{math}
:label: merge
\boldsymbol{\theta} = w\,\theta^{(b)} + (1 - w)\,\theta^{(c)}
```

Equation {eq}`merge` is that of {cite:t}`almakky2024medmerge`, with $w = \tfrac{1}{2}$ at the start.

| approach | macro F1 |
|----------|----------|
| FT       | 0.5      |

```{bibliography}
```
"""

NOTEBOOK = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "metadata": {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
        "widgets": {
            "application/vnd.jupyter.widget-state+json": {
                "version_major": 2,
                "version_minor": 0,
                "state": {
                    "0": {
                        "model_name": "LabelModel",
                        "model_module": "@jupyter-widgets/controls",
                        "model_module_version": "2.0.0",
                        "state": {"value": "live"},
                    }
                },
            }
        },
    },
    "cells": [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# A run"},
        {
            "cell_type": "code", "id": "b", "metadata": {"tags": ["parameters"]},
            "execution_count": 1, "source": "seeds = [0]", "outputs": [],
        },
        {
            "cell_type": "code", "id": "c", "metadata": {}, "execution_count": 2, "source": "explorer",
            "outputs": [
                {
                    "output_type": "display_data",
                    "metadata": {},
                    "data": {
                        "application/vnd.jupyter.widget-view+json": {"model_id": "0", "version_major": 2},
                        "text/html": "<p class='kernel-free'>still</p>",
                        "text/plain": "explorer",
                    },
                }
            ],
        },
    ],
}  # fmt: skip


def build(folder: Path, page: str) -> subprocess.CompletedProcess:
    """Build a two-page book with the project's own configuration, as `make book` does."""
    shutil.copytree(ROOT / "book" / "_static", folder / "book" / "_static")
    shutil.copy(ROOT / "book" / "references.bib", folder / "book")
    shutil.copy(ROOT / "_config.yml", folder)
    (folder / "_toc.yml").write_text("format: jb-book\nroot: book/index\nchapters:\n  - file: results/run\n")
    (folder / "book" / "index.md").write_text(page)
    (folder / "results").mkdir()
    (folder / "results" / "run.ipynb").write_text(json.dumps(NOTEBOOK))
    for stray in (".venv/lib", "notes", "results/.ipynb_checkpoints"):  # none of the book's business
        (folder / stray).mkdir(parents=True)
        (folder / stray / "stray.md").write_text("# Stray\n\n{ref}`nowhere`\n")
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command += ["build", str(folder), "--all", "-W", "-n", "--keep-going"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    result = build(folder, PAGE)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder / "_build" / "html"


def test_book_builds_without_a_warning(book):
    page = (book / "book" / "index.html").read_text()
    assert "Almakky" in page and "custom.css" in page and "logo.svg" in page
    assert 'http-equiv="Refresh"' in (book / "index.html").read_text()
    assert not list(book.rglob("*stray*"))
    run = (book / "results" / "run.html").read_text()
    assert "tag_parameters" in run  # what custom.css labels
    assert "kernel-free" in run and "widget-view" not in run
    assert "https://colab.research.google.com/github/" in run and "mybinder.org/v2/gh/" in run


@pytest.mark.parametrize(
    "mistake",
    ["{eq}`no-such-label`", "{cite:t}`nobody2024`", "{doc}`no-such-page`", "[text](no-such-file.md)"],
)
def test_a_broken_reference_stops_the_build(mistake, tmp_path):
    result = build(tmp_path, f"{PAGE}\n{mistake}\n")
    assert result.returncode != 0
    assert "WARNING" in result.stderr


# ---------------------------------------------------------------- a browser


class Fetched(HTMLParser):
    """The addresses that a page loads by itself; links that a reader follows are none of them."""

    def __init__(self, html: str):
        super().__init__()
        self.addresses: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in {"script", "img", "iframe", "source", "video", "audio", "embed"}:
            self.addresses += [given["src"]] if given.get("src") else []
        elif tag == "link" and not set(given.get("rel", "").split()) & {"canonical", "author", "license"}:
            self.addresses += [given["href"]] if given.get("href") else []
        elif tag == "object" and given.get("data"):
            self.addresses.append(given["data"])


def remote(html: str) -> list[str]:
    return [address for address in Fetched(html).addresses if urlparse(address, "file").netloc]


def test_remote_sees_what_a_page_loads():
    html = "<a href='https://x.org'></a><script src='//x.org/a.js'></script><img src='a.png'>"
    assert remote(html) == ["//x.org/a.js"]
    assert remote("<link rel='stylesheet' href='https://x.org/a.css'>") == ["https://x.org/a.css"]


def look(page: Path, profile: Path) -> str:
    """The page's DOM after its scripts ran, in Chromium with no name resolving."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        skip_or_fail("no Chromium here to look at the page with")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=10000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_no_page_loads_anything_from_elsewhere(book):
    pages = [page for page in sorted(book.rglob("*.html")) if "_static" not in page.parts]  # templates there
    assert len(pages) >= 4
    for page in pages:
        html = page.read_text()
        assert not remote(html), page.name
        for address in Fetched(html).addresses:
            if address.startswith(("data:", "#")):
                continue
            target = (page.parent / urlparse(address).path).resolve()
            assert target.exists(), f"{page.name} asks for {address}"


def test_mathematics_is_drawn_offline(book, tmp_path):
    dom = look(book / "book" / "index.html", tmp_path)
    formulas = re.findall(r"<mjx-container.*?</mjx-container>", dom, re.DOTALL)
    assert len(formulas) == 2
    for formula in formulas:
        assert "<svg" in formula and "merror" not in formula and "data-mjx-error" not in formula
    assert not remote(dom)  # nor did a script add anything


def test_the_chapter_on_datasets_lists_the_catalogue():
    from medmerge.data.catalogue import markdown

    page = (ROOT / "book" / "datasets.md").read_text(encoding="utf-8")
    assert f"\n{markdown(paper=True)}\n" in page and f"\n{markdown(paper=False)}\n" in page


def test_the_chapter_on_parameters_lists_the_schema():
    from medmerge.params import markdown

    assert markdown() in (ROOT / "book" / "parameters.md").read_text(encoding="utf-8")
