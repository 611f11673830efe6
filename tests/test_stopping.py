"""What ends a run early, and what is said then: Ctrl-C, SIGTERM, a full disk, no memory, a second process."""

import json
import resource
import signal
import subprocess
import time
from pathlib import Path

import nbformat
import pytest
from test_study import TINY, parameters, write_weights

from medmerge import checkpoints, files, training
from medmerge.cli import main as cli
from medmerge.study import definitions
from medmerge.study import run as study
from medmerge.study.records import gather

LONG = {**TINY, "approaches": ["ft", "medmerge"], "fractions": [0.1, 0.1, 0.8], "lp_epochs": 400, "ft_epochs": 400}


@pytest.fixture
def project(project):
    """A project with two sources."""
    write_weights(project)
    return project


def wait_for(happened, process: subprocess.Popen, seconds: float = 120):
    """What ``happened`` returns as soon as it is true; the process must go on until then."""
    end = time.monotonic() + seconds
    while not (result := happened()):
        assert time.monotonic() < end and process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    return result


def checkpoint_there() -> list[Path]:
    return list(Path("results").rglob("checkpoint/*.pt"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_train_that_is_stopped_says_how_to_go_on(project, start, number, status):
    Path("p.yaml").write_text(json.dumps(LONG))
    process = start("train", "p.yaml")
    wait_for(checkpoint_there, process)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == status
    assert printed.endswith(
        "medmerge: stopped. What is finished is kept; the same command goes on from the last checkpoint\n"
    )
    assert "Traceback" not in printed and not list(project.rglob(f"*{files.PARTIAL}"))
    assert checkpoints.read(checkpoint_there()[0])["history"]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_notebook_that_is_stopped_takes_its_kernel_along(project, start):
    code = "import os, pathlib, time\npathlib.Path('pid.txt').write_text(str(os.getpid()))\ntime.sleep(600)"
    values = {**LONG, "track": "own", "pair": "x"}
    defaults = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    cell = nbformat.v4.new_code_cell(defaults, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell(code)]), "n.ipynb")
    Path("p.yaml").write_text(json.dumps(values))
    process = start("run", "n.ipynb", "p.yaml")
    wait_for(lambda: Path("pid.txt").is_file() and Path("pid.txt").read_text(), process)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "medmerge: stopped." in printed and "Traceback" not in printed
    assert not alive(int(Path("pid.txt").read_text()))
    assert list((project / "results/own").iterdir()) == []


def test_a_kernel_that_is_killed_is_said_to_be(project, capsys, monkeypatch):
    values = {"track": "own", "pair": "x"}
    cell = nbformat.v4.new_code_cell("track = 'demo'\npair = 'x'", metadata={"tags": ["parameters"]})
    kill = nbformat.v4.new_code_cell("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell, kill]), "n.ipynb")
    Path("p.yaml").write_text(json.dumps(values))
    monkeypatch.setattr(study, "check", lambda p: [])
    assert cli.main(["run", "n.ipynb", "p.yaml"]) == 1
    error = capsys.readouterr().err
    assert "the notebook's kernel was killed" in error and "lower batch_size or image_size" in error


@pytest.mark.slow
def test_a_second_process_waits_and_does_nothing_twice(project, start):
    Path("p.yaml").write_text(json.dumps({**LONG, "approaches": ["ft"], "ft_epochs": 40}))
    first = start("train", "p.yaml")
    wait_for(checkpoint_there, first)
    first.send_signal(signal.SIGSTOP)
    second = start("train", "p.yaml")
    assert any("FT objects, seed 0: waiting for another process" in second.stdout.readline() for _ in range(3))
    first.send_signal(signal.SIGCONT)
    printed = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), printed
    assert "FT objects, seed 0: finished by another process" in printed[1]
    both = "".join(printed)
    assert both.count("fine_tune 40/40") == 2 and "fine_tune 1/40" not in printed[1].partition("FT lesions")[0]
    assert printed[0].splitlines()[-2:] == printed[1].splitlines()[-2:]
    assert not list(project.rglob(".lock*"))


def test_a_disk_that_fills_is_named_and_what_was_finished_stays(project, capsys):
    """The limit on the size of files stands in for a full disk: as there, a write ends in an error of the system."""
    Path("p.yaml").write_text(json.dumps({**TINY, "approaches": ["ft"]}))
    done = study.run(parameters(approaches=["ft"]), {(definitions.rows(parameters(approaches=["ft"]))[0], 0)})
    before = (done[0].folder / "run.json").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
        assert cli.main(["train", "p.yaml"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    error = capsys.readouterr().err
    assert "cannot be written: File too large." in error and "the same command goes on" in error
    assert "results/demo/demo/densenet_small/ft-lesions/seed0" in error or "split.csv" in error
    assert (done[0].folder / "run.json").read_bytes() == before
    assert not list(project.rglob(f"*{files.PARTIAL}"))
    assert cli.main(["train", "p.yaml"]) == 0 and len(gather(Path("results"))) == 2


def test_no_memory_names_what_to_lower(project, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(training, "step", full)
    with pytest.raises(
        RuntimeError, match="seed 0: out of memory on .*, with batch_size 32, image_size 32 and precision"
    ):
        study.run(parameters(approaches=["ft"]))


def test_a_loss_that_explodes_leaves_the_epochs_before_it(project, capsys):
    Path("p.yaml").write_text(json.dumps({**TINY, "approaches": ["ft"], "ft_lr": 1e30}).replace("1e+30", "1.0e+30"))
    for _ in range(2):
        assert cli.main(["train", "p.yaml"]) == 2
        assert "the loss is nan in fine_tune, epoch 1, step 2: lower ft_lr, which is 1e+30" in capsys.readouterr().err
    assert not checkpoint_there() and not list(Path("results").rglob("run.json"))
