"""Building a small book with the project's configuration: what stops the build, and what a page then asks for."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlparse

import pytest
from book_fixtures import ROOT
from browser import start

PAGE = r"""# A page

```{math}
:label: merge
\boldsymbol{\theta} = w\,\theta^{(b)} + (1 - w)\,\theta^{(c)}
```

Equation {eq}`merge` is that of {cite:t}`almakky2024medmerge`, with $w = \tfrac{1}{2}$ at the start.

| approach | macro F1 |
|----------|----------|
| FT       | 0.5      |

```{glued} ../results/run.ipynb said
```

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
            "cell_type": "code", "id": "b", "metadata": {"tags": ["parameters", "remove-cell"]},
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
                },
                {
                    "output_type": "display_data",
                    "metadata": {},
                    "data": {"image/svg+xml": "<svg><path fill='#1f2328'/><defs><svg><g/></svg></defs></svg>"},
                },
                {
                    "output_type": "display_data",
                    "metadata": {"scrapbook": {"name": "said", "mime_prefix": "application/papermill.record/"}},
                    "data": {"application/papermill.record/text/plain": "'**Glued** words'"},
                },
            ],
        },
    ],
}  # fmt: skip


def build(folder: Path, page: str) -> subprocess.CompletedProcess:
    """Build a two-page book with the project's own configuration, as `make book` does."""
    shutil.copytree(ROOT / "book" / "_static", folder / "book" / "_static")
    shutil.copy(ROOT / "book" / "references.bib", folder / "book")
    shutil.copy(ROOT / "_config.yml", folder)
    shutil.copytree(ROOT / "book" / "extensions", folder / "book" / "extensions")
    (folder / "_toc.yml").write_text("format: jb-book\nroot: book/index\nchapters:\n  - file: results/run\n")
    (folder / "book" / "index.md").write_text(page)
    (folder / "results").mkdir(exist_ok=True)
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
    assert "<strong>Glued</strong> words" in page
    assert "Almakky" in page and "custom.css" in page and "logo.svg" in page
    assert 'http-equiv="Refresh"' in (book / "index.html").read_text()
    assert not list(book.rglob("*stray*"))
    run = (book / "results" / "run.html").read_text()
    assert "seeds = [0]" not in run and "kernel-free" in run and "widget-view" not in run
    wide, narrow = re.findall(r'<svg class="figure (?:wide|narrow)" role="img".*?</svg>', run)
    assert "var(--figure-1f2328, #1f2328)" in wide and "<g/>" in narrow and 'src="../_images' not in run
    assert "https://colab.research.google.com/github/" in run and "mybinder.org/v2/gh/" in run


MISTAKES = {
    "{eq}`no-such-label`": "no-such-label",
    "{cite:t}`nobody2024`": "nobody2024",
    "{doc}`no-such-page`": "no-such-page",
    "[text](no-such-file.md)": "no-such-file.md",
    "{numref}`fig-none`": "undefined label: 'fig-none'",
    "{term}`no such term`": "term not in glossary: 'no such term'",
    "{py:func}`medmerge.merge.nothing`": "reference target not found: medmerge.merge.nothing",
    "{glue:text}`../results/run.ipynb::f1:s`": "'f1' not found in doc 'results/run'",
    "{glue:text}`../results/gone.ipynb::f1:s`": "'f1' not found in doc 'results/gone'",
    "```{glued} ../results/run.ipynb nothing\n```": "has glued nothing as nothing",
}


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory) -> subprocess.CompletedProcess:
    """One build of a page with every mistake."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "params" / "open").mkdir(parents=True)
    shutil.copy(ROOT / "params" / "open" / "skin.yaml", folder / "params" / "open")
    (folder / "results" / "open").mkdir(parents=True)
    (folder / "results" / "open" / "skin.ipynb").write_text(json.dumps(NOTEBOOK))
    return build(folder, PAGE + "".join(f"\n{mistake}\n" for mistake in MISTAKES))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_stops_the_build_and_is_named(mistake, mistaken):
    said = [line for line in mistaken.stderr.splitlines() if "WARNING" in line or "ERROR" in line]
    assert mistaken.returncode != 0
    assert any(MISTAKES[mistake] in line and "index.md" in line for line in said), mistaken.stderr[-3000:]


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


def test_mathematics_is_drawn_offline(book):
    driver = start()
    try:
        driver.get((book / "book" / "index.html").as_uri())
        driver.execute_async_script("MathJax.startup.promise.then(arguments[0])")
        dom = driver.page_source
    finally:
        driver.quit()
    formulas = re.findall(r"<mjx-container.*?</mjx-container>", dom, re.DOTALL)
    assert len(formulas) == 2
    for formula in formulas:
        assert "<svg" in formula and "merror" not in formula and "data-mjx-error" not in formula
    assert not remote(dom)  # nor did a script add anything
    assert "tex-svg" not in (book / "results" / "run.html").read_text()  # two megabytes for nothing
