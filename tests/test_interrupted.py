"""A process that is killed (SIGKILL) at any moment, and asked again: the record is the one of a run that was not.

Runs are started by a process that has read all modules before and forks for each (`tests/runs.py`), so that what takes
time is the run. Moments are drawn with a fixed seed over the time that the run takes; what happens in them is what the
machine was at just then, and every place where a file is written is visited by count.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_study import TINY, write_weights

from medmerge import checkpoints

MOMENTS, SHARE = 20, checkpoints.SHARE
STUDY = {**TINY, "split": "random", "fractions": [0.05, 0.05, 0.9], "batch_size": 8}
MERGE, COMBINED, PROBED = ["medmerge"], ["soup"], ["lp_ft"]
CIRCUMSTANCES = ("cost", "provenance")


class Runs:
    """Starts runs in forks of one process; each is ``study.run`` with the parameters of a file, in a folder."""

    def __init__(self, cache: Path):
        self.cache = cache
        command = [sys.executable, str(Path(__file__).with_name("runs.py"))]
        pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
        self.process = subprocess.Popen(command, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)
        assert self.process.stdout.readline() == "ready\n"

    def start(self, folder: Path, approaches: list[str], **kill) -> int:
        """The process id of a run.

        Args:
            kill: where it kills itself, if anywhere: ``write``, the how manieth file it writes (from 0), and ``at``,
                ``"content"`` (with half of its bytes on the disk), or ``"after"`` it was moved into place; ``cache``
                for decoded images, where it is not that of all; ``share`` of the time for checkpoints, by default all,
                which writes one after every epoch.
        """
        order = {"folder": str(folder), "parameters": {**STUDY, "approaches": approaches}}
        order |= {"cache": str(self.cache), "share": 1.0, **kill}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def status(self) -> tuple[int, int]:
        """The exit status (negative: of which signal it died) of the run that was started, and the files it wrote."""
        status, written = self.process.stdout.readline().split()
        return int(status), int(written)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    one = Runs(tmp_path_factory.mktemp("decoded"))
    yield one
    one.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory):
    """By approach: the files of an uninterrupted study, its seconds, and how many files it writes."""
    found = {}
    finish(runs, project(tmp_path_factory.mktemp("first")), MERGE)  # decodes the images
    for name, approaches in {"merge": MERGE, "combined": COMBINED, "probed": PROBED}.items():
        folder = project(tmp_path_factory.mktemp(name))
        started = time.monotonic()
        runs.start(folder, approaches)
        status, written = runs.status()
        assert status == 0
        found[name] = contents(folder), time.monotonic() - started, written
    return found


def project(folder: Path) -> Path:
    write_weights(folder)
    (folder / "_config.yml").touch()
    return folder


def contents(folder: Path) -> dict[str, object]:
    """Every file below a study's results, hidden ones and networks included; records without seconds and provenance."""
    found = {}
    for path in sorted((folder / "results").rglob("*")):
        if path.name == "run.json":
            run = json.loads(path.read_bytes())
            found[str(path.relative_to(folder))] = {name: run[name] for name in run if name not in CIRCUMSTANCES}
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def finish(runs: Runs, folder: Path, approaches: list[str]) -> dict[str, object]:
    runs.start(folder, approaches)
    assert runs.status()[0] == 0
    return contents(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "approaches", "moments", "share"),
    [("merge", MERGE, MOMENTS, 1.0), ("merge", MERGE, 6, SHARE), ("combined", COMBINED, 6, SHARE)]
    + [("probed", PROBED, 6, 1.0)],
)
def test_killed_at_any_moment(runs, whole, tmp_path, name, approaches, moments, share):
    expected, seconds, _ = whole[name]
    draw, killed = random.Random(0), []
    for moment in range(moments):
        folder = project(tmp_path / str(moment))
        process = runs.start(folder, approaches, share=share)
        time.sleep((moment + draw.random()) / moments * seconds)
        with contextlib.suppress(ProcessLookupError):  # the run had finished
            os.kill(process, signal.SIGKILL)
        killed.append(runs.status()[0] == -signal.SIGKILL)
        assert finish(runs, folder, approaches) == expected
        shutil.rmtree(folder)
    assert sum(killed) > moments / 2, "the others had finished before their moment came"


@pytest.mark.slow
def test_killed_in_every_write(runs, whole, tmp_path):
    expected, _, writes = whole["merge"]
    for write in range(writes):
        folder = project(tmp_path / str(write))
        runs.start(folder, MERGE, write=write, at="content")
        assert runs.status() == (-signal.SIGKILL, write)
        assert len(list(folder.rglob("*.partial"))) == 1
        for checkpoint in folder.rglob("checkpoint/*.pt"):
            assert checkpoints.read(checkpoint)["history"]
        assert finish(runs, folder, MERGE) == expected
        shutil.rmtree(folder)
    assert writes > 12


@pytest.mark.slow
def test_killed_while_images_are_decoded(runs, whole, tmp_path):
    folder = project(tmp_path / "p")
    for write, at in ((0, "content"), (0, "after"), (0, "content")):
        runs.start(folder, MERGE, write=write, at=at, cache=str(tmp_path / "cache"))
        assert runs.status() == (-signal.SIGKILL, 0)
    runs.start(folder, MERGE, cache=str(tmp_path / "cache"))
    assert runs.status()[0] == 0 and contents(folder) == whole["merge"][0]
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".json", ".npy"]


@pytest.mark.slow
def test_killed_again_and_again(runs, whole, tmp_path):
    """In one folder, each time a write later than the time before: from whatever is there, the run goes on."""
    folder, kills = project(tmp_path / "p"), 0
    while True:
        runs.start(folder, MERGE, write=kills + 1, at="after")
        if runs.status()[0] == 0:
            break
        kills += 1
    assert kills > 3 and contents(folder) == whole["merge"][0]


def test_two_processes_give_the_same_record(runs, whole, tmp_path):
    folder = project(tmp_path / "p")
    assert finish(runs, folder, MERGE) == whole["merge"][0]
    (run,) = (folder / "results").rglob("run.json")
    assert json.loads(run.read_bytes())["device"].count("1 thread") == 1
