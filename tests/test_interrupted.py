"""A process that is killed (SIGKILL) at any moment, and asked again: the record is the one of a run that was not.

Runs are started by a process that has read all modules before and forks for each (`tests/runs.py`), so that what takes
time is the run. Moments are drawn with a fixed seed over the time that the run takes; what happens in them is what the
machine was at just then, and places where a file is written are visited by count.
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

SHARE = checkpoints.SHARE
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
                ``"content"`` (with half of its bytes on the disk), or ``"after"`` it was moved into place;
                ``share`` of the time for checkpoints, by default all, which writes one after every epoch.
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
    """By approach: the files of an uninterrupted study, and its seconds."""
    found = {}
    finish(runs, project(tmp_path_factory.mktemp("first")), MERGE)  # decodes the images
    for name, approaches in {"merge": MERGE, "combined": COMBINED, "probed": PROBED}.items():
        folder = project(tmp_path_factory.mktemp(name))
        started = time.monotonic()
        runs.start(folder, approaches)
        assert runs.status()[0] == 0
        found[name] = contents(folder), time.monotonic() - started
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
    [("merge", MERGE, 5, 1.0), ("combined", COMBINED, 3, SHARE), ("probed", PROBED, 3, 1.0)],
)
def test_killed_at_any_moment(runs, whole, tmp_path, name, approaches, moments, share):
    expected, seconds = whole[name]
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
def test_killed_again_and_again(runs, whole, tmp_path):
    """In one folder, each time a write later than the time before: from whatever is there, the run goes on."""
    folder, kills = project(tmp_path / "p"), 0
    while True:
        at = ("content", "after")[kills % 2]
        runs.start(folder, MERGE, write=kills + 1, at=at)
        status, written = runs.status()
        if status == 0:
            break
        kills += 1
        assert (status, written) == (-signal.SIGKILL, kills)
        assert len(list(folder.rglob("*.partial"))) == (at == "content"), "what was left before is cleared away"
        assert all(checkpoints.read(checkpoint)["history"] for checkpoint in folder.rglob("checkpoint/*.pt"))
    assert kills > 3 and contents(folder) == whole["merge"][0]
