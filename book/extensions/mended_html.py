"""Small faults of the theme's and Sphinx's HTML, mended: none that a template or a setting reaches.

``MENDED`` holds what a screen reader or a keyboard stumbles over; tests/test_pages.py says when one comes back.
"""

import html
import re
import subprocess
from pathlib import Path

from sphinx.application import Sphinx

from medmerge.pages.figures.style import inline

MENDED = (
    # The same icons come from a style sheet and fonts, a tenth of this script's size.
    (r'<script src="[^"]*/fontawesome/[^"]*\.js[^"]*"></script>\s*', ""),
    # A toggle's name is the text that it shows ("Show code cell source"), not another one.
    (r'<summary aria-label="Toggle hidden content">', "<summary>"),
    (r'(<button class="btn search-button-field[^>]*?) aria-label="Search"', r"\1"),
    # The arrow beside a chapter with sections has no text.
    (r'<summary>(<span class="toctree-toggle")', r'<summary aria-label="Sections of this chapter">\1'),
    # A list holds list items, and the role that Sphinx gives an entry is no longer one.
    (r'role="doc-biblioentry"', 'role="listitem"'),
    # A word of code needs no element of its own: half of an API page would be these.
    (r'<span class="pre">([^<]*)</span>', r"\1"),
    # Arguments on a line each are no list of definitions.
    (r"<dl>\s*((?:<dd><em class=\"sig-param\">.*?</dd>\s*)+)</dl>", lambda match: _lines(match[1])),
    # What can scroll, by whatever font, takes the focus.
    (
        r'(<div class="pst-scrollable-table-container">)?(<table\b.*?</table>)',
        lambda match: _reachable(*match.groups()),
    ),
    (
        r'<div class="(?:amsmath )?math notranslate nohighlight"',
        r'\g<0> tabindex="0" role="group" aria-label="Formula"',
    ),
    # The page of search results has the theme's search field and Sphinx's, both of one id.
    (r'(id="search-input".*?)id="search-input"', r'\1id="search-input-page"'),
)


def _lines(arguments: str) -> str:
    lines = arguments.replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")
    return f'<span class="sig-lines">{lines}</span>'


def _reachable(box: str | None, table: str) -> str:
    """The table in a box that the keyboard reaches, named as the table is."""
    caption = re.search(r"<caption\b.*?>(.*?)(?:<a class=\"headerlink\"|</caption>)", table, re.DOTALL)
    name = "Table" if caption is None else f"Table: {html.escape(re.sub('<.*?>', '', caption[1]).strip())}"
    box_and_table = f'<div class="pst-scrollable-table-container" tabindex="0" role="group" aria-label="{name}">{table}'
    return box_and_table if box else f"{box_and_table}</div>"


def mend(page: str) -> str:
    for pattern, replacement in MENDED:
        page = re.sub(pattern, replacement, page, flags=re.DOTALL)
    return page


def with_figures(page: str, folder: Path) -> str:
    """The page with its SVG pictures as elements of its own, which the theme colours and a phone has a drawing of."""

    def drawn(image: re.Match) -> str:
        alt = re.search(r'alt="([^"]*)"', image[0])
        return inline((folder / image[1]).read_text(encoding="utf-8"), html.unescape(alt[1]) if alt else "")

    link = r'<a class="reference internal image-reference"[^>]*>\s*'
    return re.sub(rf'(?:{link})?<img\b[^>]*\bsrc="([^"]*_images/[^"/]+\.svg)"[^>]*>(?:\s*</a>)?', drawn, page)


def mend_pages(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        for path in Path(app.outdir).rglob("*.html"):
            page = with_figures(path.read_text(encoding="utf-8"), path.parent)
            path.write_text(mend(page), encoding="utf-8")


def drop_the_useless(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """Scripts of cells that run on a page, which none here do; MathJax without a formula; links to no file of git."""
    useless = "thebe" if 'class="math' in context.get("body", "") else "thebe|mathjax|tex-svg"
    scripts = ((script, f"{script.filename} {script.attributes.get('body')}") for script in context["script_files"])
    context["script_files"] = [script for script, text in scripts if not re.search(useless, text, re.IGNORECASE)]
    if f"{page}.ipynb" in app.not_in_git:
        context["header_buttons"] = _without(context["header_buttons"], "launch-buttons", "source-edit-button")


def _without(buttons: list[dict], *labels: str) -> list[dict]:
    kept = [one for one in buttons if one["label"] not in labels]
    return [one | {"buttons": _without(one["buttons"], *labels)} if "buttons" in one else one for one in kept]


def find_what_is_not_in_git(app: Sphinx) -> None:
    command = ["git", "-C", app.srcdir, "ls-files", "--others", "results"]
    app.not_in_git = set(subprocess.run(command, capture_output=True, text=True).stdout.splitlines())


def setup(app: Sphinx) -> dict[str, object]:
    app.connect("builder-inited", find_what_is_not_in_git)
    app.connect("html-page-context", drop_the_useless, priority=900)  # after the theme and MathJax
    app.connect("build-finished", mend_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
