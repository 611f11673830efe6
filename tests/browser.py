"""A headless Chromium that reaches nothing but this machine, with the fonts that a test asks for."""

import contextlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FONTS = {"DejaVu": "DejaVuSans.ttf", "Liberation": "LiberationSans-Regular.ttf"}
FONTCONFIG = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig>
  <dir>{fonts}</dir>
  <cachedir>{cache}</cachedir>
  <include ignore_missing="yes">/etc/fonts/conf.d</include>
</fontconfig>
"""


SMALL = """
const size = (text) => parseFloat(getComputedStyle(text).fontSize) * text.ownerSVGElement.getScreenCTM().a;
const shown = [...document.querySelectorAll("svg.figure text")].filter((text) => text.checkVisibility());
return shown.filter((text) => size(text) < 11).map((text) => `${text.textContent}: ${size(text)} px`);
"""
"""Text of figures that is too small to read."""


def skip_or_fail(reason: str) -> None:
    """Skip on a reader's machine; fail where everything is supposed to be there."""
    pytest.fail(reason) if os.environ.get("MEDMERGE_CI") == "1" else pytest.skip(reason)


def fontconfig(family: str, folder: Path) -> Path:
    """A file for ``FONTCONFIG_FILE`` in the folder, with which a program sees one family of :data:`FONTS` alone."""
    found = next(Path("/usr/share/fonts").rglob(FONTS[family]), None)
    if found is None:
        skip_or_fail(f"no {family} fonts below /usr/share/fonts (Debian: apt-get install fonts-{family.lower()})")
    path = folder / "fonts.conf"
    path.write_text(FONTCONFIG.format(fonts=found.parent, cache=folder / "cache"), encoding="utf-8")
    return path


def start(size: tuple[int, int] = (1200, 1000), fonts: Path | None = None):
    """A selenium driver, seeing the fonts of a file of :func:`fontconfig`; a skip where there is no browser."""
    from selenium import webdriver

    browser, driver = next(filter(None, map(shutil.which, BROWSERS)), None), shutil.which("chromedriver")
    if not browser or not driver:
        skip_or_fail(f"no {'chromedriver' if browser else 'Chromium'} here to look at the page with")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--window-size={size[0]},{size[1]}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    environment = {**os.environ, **({"FONTCONFIG_FILE": str(fonts)} if fonts else {})}
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver, env=environment))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The folder's address on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def voila(notebook: Path, environment: dict[str, str]) -> Iterator[str]:
    """The address at which Voilà runs a notebook."""
    port = free_port()
    command = [sys.executable, "-m", "voila", str(notebook), "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"]
    log = notebook.with_suffix(".log").open("w")
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=notebook.parent, env={**os.environ, **environment})
    try:
        end = time.monotonic() + 120
        while True:  # the first answer takes as long as the server needs to start
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/voila/static/", timeout=5).close()
                break
            except urllib.error.HTTPError:
                break  # it answers
            except OSError:
                assert process.poll() is None and time.monotonic() < end, Path(log.name).read_text()[-2000:]
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def requests(driver) -> dict[str, str]:
    """What pages asked for since the last call, and what became of it; the log is emptied."""
    outcome, addresses = {}, {}
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        name, values = message["method"], message["params"]
        if name == "Network.requestWillBeSent":
            addresses[values["requestId"]] = values["request"]["url"]
            outcome.setdefault(values["request"]["url"], "no answer")
        elif name == "Network.responseReceived":
            outcome[values["response"]["url"]] = str(values["response"]["status"])
        elif name == "Network.loadingFailed" and values["requestId"] in addresses and not values.get("canceled"):
            outcome[addresses[values["requestId"]]] = values["errorText"]
    return {url: what for url, what in outcome.items() if not url.startswith(("data:", "blob:", "chrome"))}


def complaints(driver) -> list[str]:
    """Errors in the console, and requests that were refused or failed; both logs are emptied."""
    errors = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    failed = [f"{url}: {what}" for url, what in requests(driver).items() if what >= "400" and what != "no answer"]
    return [text for text in errors + failed if "favicon.ico" not in text]
