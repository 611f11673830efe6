"""Runs side by side: what they write, what is said where one fails or all are stopped, and that none is left behind."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from test_plan import record_files
from test_stopping import LONG, alive, checkpoint_there, wait_for
from test_study import TINY, parameters, write_weights

from medmerge.cli import jobs
from medmerge.cli import main as cli
from medmerge.files import PARTIAL
from medmerge.study import records
from medmerge.study import run as study
from medmerge.study.params import ParameterError


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with two sources; the working folder is in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDMERGE_DATA", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "_config.yml").touch()
    write_weights(tmp_path)
    return tmp_path


def note(name: str, beside: str = "", ending: str = "") -> int:
    """A job: writes down when it begins and ends, and in which process; between them it waits for another to begin."""
    began = time.monotonic()
    Path(f"{name}.began").touch()
    while beside and not Path(f"{beside}.began").exists() and time.monotonic() < began + 120:
        time.sleep(0.01)
    if ending == "raise":
        raise ParameterError("not like this")
    if ending == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    Path(name).write_text(json.dumps([os.getpid(), began, time.monotonic()]))
    return 0


def noted(name: str) -> list:
    return json.loads(Path(name).read_text())


@pytest.mark.slow
def test_side_by_side_in_their_order_and_no_more_than_asked_for(project):
    first = [jobs.Job(name, note, (name, beside)) for name, beside in (("a", "b"), ("b", "a"), ("c", ""))]
    assert jobs.run([*first, jobs.Job("d", note, ("d",), after=("a", "b", "c"))], 2) == 0
    spans = {name: noted(name)[1:] for name in "abcd"}
    assert spans["c"][0] >= min(spans["a"][1], spans["b"][1]), "two at a time"
    assert spans["a"][0] < spans["b"][1] and spans["b"][0] < spans["a"][1], "at the same time"
    assert spans["d"][0] >= max(spans[name][1] for name in "abc")
    assert len({noted(name)[0] for name in "abcd"} | {os.getpid()}) == 5, "each in a process of its own"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "status", "line"),
    [
        ("raise", 2, ""),
        ("kill", 137, "medmerge: bad: its process was ended by SIGKILL; the same command goes on\n"),
    ],
)
def test_one_that_fails_stops_no_other(project, capsys, ending, status, line):
    these = [jobs.Job("bad", note, ("bad", "", ending)), jobs.Job("good", note, ("good",), after=("bad",))]
    assert jobs.run(these, 1) == status
    assert capsys.readouterr().err == line
    assert Path("good").is_file() and not Path("bad").exists()


def answer(connection) -> None:
    """A companion: says which process it is, what it was sent, and how many threads it was forked from; then waits."""
    asked = connection.recv()
    connection.send([os.getpid(), asked, threading.active_count()])
    time.sleep(600)


def converse(name: str, companion: jobs.Companion) -> int:
    """A job: asks its companion, writes down what it said, and ends it."""
    companion.connection.send(name)
    assert companion.connection.poll(60)
    Path(name).write_text(json.dumps([os.getpid(), companion.process.pid, *companion.connection.recv()]))
    companion.process.kill()
    companion.process.join()
    return 0


@pytest.mark.slow
def test_a_companion_is_a_process_of_its_jobs_own(project):
    assert jobs.run([jobs.Job(name, converse, (name,), companion=answer) for name in "ab"], 2) == 0
    found = {name: noted(name) for name in "ab"}
    for name, (job, companion, said, asked, threads) in found.items():
        assert companion == said != job and asked == name and threads == 1
        assert not alive(companion)
    assert len({pid for one in found.values() for pid in one[:2]} | {os.getpid()}) == 5


def refuse(name: str, companion: jobs.Companion) -> int:
    """A job that cannot go on, before its companion has heard of it."""
    Path(name).write_text(json.dumps([companion.process.pid]))
    raise ParameterError("not like this")


@pytest.mark.slow
def test_a_companion_that_waits_ends_with_its_job(project):
    assert jobs.run([jobs.Job("a", refuse, ("a",), companion=answer)], 1) == 2
    assert not alive(*noted("a"))


@pytest.mark.slow
def test_train_writes_what_it_writes_one_by_one(project, start):
    """All rows, one of them a soup, which takes the networks of four others."""
    values = {**TINY, "approaches": ["soup", "lp_ft", "ft", "medmerge"]}
    Path("p.yaml").write_text(json.dumps(values))
    process = start("train", "p.yaml", "--jobs", "3")
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    alone = [record_files(one) for one in study.run(parameters(**values, results="alone"))]
    found = study.run(parameters(**values))
    assert [record_files(one) for one in found] == alone and len(alone) == 6
    lines = printed.splitlines()
    assert sorted(lines[-6:]) == sorted(str(one.folder) for one in found)
    assert sum(line.startswith("soup-objects-lesions 0: recalled the network of ") for line in lines) == 4
    assert "medmerge-objects-lesions 0: MedMerge objects + lesions, seed 0" in lines


@pytest.mark.slow
def test_a_row_that_cannot_go_on_is_named_and_the_others_finish(project, start):
    Path("p.yaml").write_text(json.dumps({**TINY, "approaches": ["ft"]}))
    damaged = Path("results/demo/demo/densenet_small/ft-lesions/seed0")
    damaged.mkdir(parents=True)
    (damaged / "checkpoint").write_text("a file where a folder should be")
    process = start("train", "p.yaml", "--jobs", "2")
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in printed, printed
    assert "medmerge: ft-lesions 0: " in printed and "is a file and should not be: move it away" in printed
    assert [one.label for one in records.gather(project / "results")] == ["FT objects"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_all_end_with_one_message(project, start, number, status):
    Path("p.yaml").write_text(json.dumps(LONG))
    process = start("train", "p.yaml", "--jobs", "2")
    wait_for(lambda: len(checkpoint_there()) > 1, process)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == status and printed.count("medmerge: stopped.") == 1
    assert "Traceback" not in printed and not list(project.rglob(f"*{PARTIAL}"))
    assert not of_this_project(project)


@pytest.mark.slow
def test_none_outlives_the_process_that_was_killed(project, start):
    Path("p.yaml").write_text(json.dumps(LONG))
    process = start("train", "p.yaml", "--jobs", "2")
    wait_for(lambda: len(checkpoint_there()) > 1, process)
    assert len(of_this_project(project)) >= 3
    process.kill()
    process.wait()
    end = time.monotonic() + 60
    while of_this_project(project) and time.monotonic() < end:
        time.sleep(0.1)
    assert not of_this_project(project)


def of_this_project(project: Path) -> list[int]:
    """The processes whose working folder is the project's, but for this one."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            here = entry.name.isdigit() and os.readlink(entry / "cwd") == str(project)
        except OSError:
            continue
        if here and int(entry.name) != os.getpid() and alive(int(entry.name)):
            found.append(int(entry.name))
    return found


def test_a_number_of_jobs_that_is_none_is_refused(project, capsys):
    Path("p.yaml").write_text(json.dumps(TINY))
    assert cli.main(["train", "p.yaml", "--jobs", "0"]) == 2
    assert "--jobs 0: at least 1" in capsys.readouterr().err
