"""What the tests of the book share: its files, and its pages as built."""

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
HTML = ROOT / "_build" / "html"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def toc_files() -> list[str]:
    """The chapters, in the order of the contents, without their suffix."""
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


def pages() -> list[str]:
    """Every page that the build makes, whether it is built yet or not."""
    return [*(f"{entry}.html" for entry in toc_files()), "search.html"]


def stale(html: Path = HTML) -> str:
    """Why the built book cannot be looked at, or nothing."""
    index = html / "book" / "index.html"
    if not index.is_file():
        return "the book is not built: make book"
    patterns = ["_*.yml", "book/**/*", "medmerge/**/*.py", "params/**/*.yaml", "results/**/*.json"]
    patterns += [f"{entry}.ipynb" for entry in toc_files()]
    sources = [path for pattern in patterns for path in ROOT.glob(pattern) if path.suffix != ".pyc" and path.is_file()]
    newest = max(sources, key=lambda path: path.stat().st_mtime)
    if newest.stat().st_mtime > (html / "searchindex.js").stat().st_mtime:
        return f"the built book is older than {name_of(newest)}: make book"
    return ""
