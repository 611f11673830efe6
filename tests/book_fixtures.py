"""What the tests of the book share: its files, its pages as built, and a browser without a network."""

import functools
import os
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
HTML = ROOT / "_build" / "html"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def skip_or_fail(reason: str) -> None:
    """Skip on a reader's machine; fail where everything is supposed to be there."""
    if os.environ.get("MEDMERGE_CI") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


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


def find_browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        skip_or_fail("no Chromium here to look at the page with")
    return browser


FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-dev-shm-usage", "--disable-component-update", "--hide-scrollbars",
]  # fmt: skip
NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND,EXCLUDE 127.0.0.1"


def start_driver(profile: Path):
    """A Chromium for which only this machine's loopback resolves."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    driver = shutil.which("chromedriver")
    browser = find_browser()
    if driver is None:
        skip_or_fail("no chromedriver here to steer Chromium with")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, NO_NETWORK, f"--user-data-dir={profile}", "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "SEVERE"})
    return webdriver.Chrome(options=options, service=Service(driver))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def serve(folder: Path) -> ThreadingHTTPServer:
    """Serve a folder on a free port of the loopback, until `shutdown` is called."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
