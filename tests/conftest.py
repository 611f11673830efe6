"""What all tests share: one thread, the real data where it is, and the rule that CI skips nothing."""

import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.forkserver import ensure_running
from pathlib import Path

import hypothesis  # noqa: F401  pytest would import it at the end, where a warning of its plugins is an error
import pytest
import torch
from data_fixtures import real

from medmerge import checkpoints
from medmerge.data import CATALOGUE

LONGEST = "pages rivals notebooks workflow paper_params interrupted benchmarks stopping matching study cli".split()


def pytest_configure():
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """The longest files first: of several processes none is left alone with one at the end."""
    place = {f"test_{name}": k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish():
    """Modules stay: statsmodels would look through them all at every correction by Holm."""
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images, labels and weights."""
    return real()


@pytest.fixture(scope="session")
def processes():
    """Starts processes, as a context of multiprocessing: forks of a fresh one that has imported medmerge.data alone.

    Its strings have other hashes than in any run, and its locale is C.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["medmerge.data"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONHASHSEED", "12345")
        patch.setenv("LC_ALL", "C")
        ensure_running()
    return context


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    """Decoded images of tests never meet the user's."""
    monkeypatch.setenv("MEDMERGE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def official_rows(monkeypatch):
    """Small datasets that a test writes count as the official ones in that test alone."""
    for known in CATALOGUE:
        for what, count in known.rows.items():
            monkeypatch.setitem(known.rows, what, count)


@pytest.fixture(autouse=True)
def every_epoch_on_disk(monkeypatch):
    """Checkpoints are written whatever that takes: where a test interrupts a run does not depend on the machine."""
    monkeypatch.setattr(checkpoints, "SHARE", 1.0)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty project; the working folder is in it, and what is started there knows nothing of this machine's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDMERGE_DATA", raising=False)
    for name, value in {"IPYTHONDIR": ".ipython", "XDG_CACHE_HOME": ".cache"}.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "_config.yml").touch()
    return tmp_path


@pytest.fixture
def start():
    """Starts a command in a session of its own, which ends with the test."""
    processes = []

    def start(*arguments: str, **more) -> subprocess.Popen:
        # A shell starts what runs in its background deaf to Ctrl-C, and so would be all that is started from there.
        heard = signal.signal(signal.SIGINT, signal.default_int_handler)
        command = [sys.executable, "-m", "medmerge.cli.main", *arguments]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        try:
            processes.append(subprocess.Popen(command, **options, **more))
        finally:
            signal.signal(signal.SIGINT, heard)
        return processes[-1]

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
