"""A headless Chromium that reaches nothing but this machine, and what it must be asked in tests."""

import contextlib
import http.server
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
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)


def start(size: tuple[int, int] = (1200, 1000)):
    """A selenium driver, or a skip where there is no browser (a failure under MEDMERGE_CI=1)."""
    from selenium import webdriver

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser, driver = next(filter(None, map(shutil.which, names)), None), shutil.which("chromedriver")
    if not browser or not driver:
        reason = f"no {'chromedriver' if browser else 'Chromium'} here to look at the page with"
        pytest.fail(reason) if os.environ.get("MEDMERGE_CI") == "1" else pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--window-size={size[0]},{size[1]}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


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


def complaints(driver) -> list[str]:
    """Errors in the console, and requests that were blocked or not answered with success; the log is emptied.

    Every page of the theme says that THEBE_JS_URL is declared twice: harmless, and left out.
    """
    import json

    found = [e["message"] for e in driver.get_log("browser") if e["level"] == "SEVERE" and "THEBE" not in e["message"]]
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.loadingFailed" and not message["params"].get("canceled"):
            found.append(message["params"]["errorText"])
        if message["method"] == "Network.responseReceived" and message["params"]["response"]["status"] >= 400:
            found.append(message["params"]["response"]["url"])
    return [text for text in found if "favicon.ico" not in text]
