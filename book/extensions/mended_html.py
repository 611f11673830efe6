"""Small faults of the theme's and Sphinx's HTML, mended in the finished pages.

Each is one that a screen reader stumbles over and that neither a template nor a setting reaches; axe-core, in
tests/test_pages.py, says when one comes back.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

MENDED = (
    # A toggle's name is the text that it shows ("Show code cell source"), not another one.
    (r'<summary aria-label="Toggle hidden content">', "<summary>"),
    (r'(<button class="btn search-button-field[^>]*?) aria-label="Search"', r"\1"),
    # The arrow beside a chapter with sections has no text.
    (r'<summary>(<span class="toctree-toggle")', r'<summary aria-label="Sections of this chapter">\1'),
    # A list holds list items, and the role that Sphinx gives an entry is no longer one.
    (r'role="doc-biblioentry"', 'role="listitem"'),
    # Arguments on a line each are no list of definitions.
    (r"<dl>\s*((?:<dd><em class=\"sig-param\">.*?</dd>\s*)+)</dl>", lambda match: _lines(match[1])),
    # The page of search results has the theme's search field and Sphinx's, both of one id.
    (r'(id="search-input".*?)id="search-input"', r'\1id="search-input-page"'),
)


def _lines(arguments: str) -> str:
    lines = arguments.replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")
    return f'<span class="sig-lines">{lines}</span>'


def mend(html: str) -> str:
    for pattern, replacement in MENDED:
        html = re.sub(pattern, replacement, html, flags=re.DOTALL)
    return html


def mend_pages(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        for path in Path(app.outdir).rglob("*.html"):
            html = path.read_text(encoding="utf-8")
            if (mended := mend(html)) != html:
                path.write_text(mended, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, object]:
    app.connect("build-finished", mend_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
