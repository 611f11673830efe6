"""The Snakefile: its graph is the parameter files', nothing finished is redone, a failure costs what it hit."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_plan import SMALL, SOURCE, write

from medmerge.cli import plan

ROOT = Path(__file__).resolve().parents[1]
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
PROFILE = ["--workflow-profile", str(ROOT / "profiles" / "default")]


@pytest.fixture
def project(project):
    """An empty project with the notebooks and the benchmarks."""
    for name in ("notebooks", "benchmarks"):
        (project / name).symlink_to(ROOT / name)
    return project


def start(*words: str) -> subprocess.Popen:
    """Snakemake in the working folder."""
    command = [*SNAKEMAKE, *PROFILE, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def snakemake(*words: str) -> tuple[int, str]:
    """Exit status of Snakemake, and all that it printed."""
    process = start(*words)
    printed, _ = process.communicate(timeout=600)
    return process.returncode, printed


def jobs(printed: str) -> dict[str, set[str]]:
    """Each run and page that Snakemake has a job for, and the runs that its job waits for."""
    found = {}
    for job, reason in re.findall(r"Job \d+: (?:train|draw) (\S+)\n(?:Reason: (.*))?", printed):
        _, _, waits = reason.partition("Input files updated by another job: ")
        found[job] = {one.removesuffix("/run.json") for one in waits.split(", ") if one}
    return found


def test_the_graph_is_what_the_parameter_files_say(project):
    """All tracks at once, from a checkout without data: what is recorded in results/open is left alone."""
    for name in ("params", "results/open"):
        shutil.copytree(ROOT / name, project / name)
    status, printed = snakemake("--dry-run", "demo", "open", "paper")
    assert status == 0, printed[-3000:]
    found = plan.load()

    def name(path: Path) -> str:
        return str(path.relative_to(project))

    todo = {folder: run for folder, run in found.runs.items() if not run.finished}
    expected = {name(folder): {name(one) for one in run.needs if one in todo} for folder, run in todo.items()}
    for path, page in found.pages.items():
        if not page.current or set(page.needs) & set(todo):
            expected[name(path)] = {name(one) for one in page.needs if one in todo}
    assert jobs(printed) == expected and len(expected) > 150
    done = ("results/open/skin/densenet121/medmerge-tinyimagenet-ham10k/seed0", "results/open/skin.ipynb")
    assert not [one for one in done if one in expected] and (project / done[0] / "run.json").is_file()
    assert "params/paper/rsna.yaml cannot run here: target_root: no rsna-pneumonia" in printed
    pair = "results/demo/grid/densenet_small/medmerge-objects-lesions/seed5"
    assert expected[pair] == {
        *(
            "results/demo/base/densenet_small/ft-scratch/seed0",
            "results/demo/source-lesions/densenet_small/ft-objects/seed0",
        )
    }


@pytest.mark.slow
def test_what_cannot_be_is_said_before_anything_runs(project):
    write("pair", **SMALL, pair="p", approaches=["ft", "medmerge"])
    write("typo", **SMALL, lp_epoch=1)
    for target, message in (
        ("piar", "asks for the page results/own/piar; is it results/own/pair?"),
        ("pair", "params/own/pair.yaml cannot run here: base_weights: no file w/objects.safetens"),
    ):
        status, printed = snakemake("--cores", "1", f"results/own/{target}.ipynb")
        assert status == 1 and message in printed and not (project / "results").exists()


def wait_for(process: subprocess.Popen, there) -> None:
    """Wait until something is there, while the process still runs."""
    while not there():
        if process.poll() is not None:
            pytest.fail(process.communicate()[0][-3000:])
        time.sleep(0.05)


@pytest.mark.slow
def test_failed_stopped_and_finished(project):
    """A grid of which one run fails, which is mended, stopped and finished; `test_interrupted.py` kills runs."""
    write("grid", "source", **SOURCE | {"base_weights": "random", "ft_epochs": 20, "seeds": [0, 1]}, pair="g")
    grid, page = project / "results/own/g/densenet_small/ft-objects", "results/own/grid.ipynb"
    done, other = grid / "seed0", grid / "seed1"
    other.mkdir(parents=True)
    (other / "checkpoint").write_text("not a folder: this run will fail")
    status, printed = snakemake("--cores", "1", "--keep-going", page)
    assert status == 1 and (done / "run.json").is_file() and not (project / page).exists()
    log = project / "logs" / f"{other.relative_to(project)}.log"
    assert str(log.relative_to(project)) in printed and "cannot be written" in log.read_text()

    shutil.rmtree(other)
    record = (done / "run.json").read_bytes()
    process = start("--cores", "1", page)
    wait_for(process, lambda: list(other.glob("checkpoint/*.pt")))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert (other / "run.json").is_file(), "a polite stop waits for the run that has begun"

    status, printed = snakemake("--cores", "1", page)
    assert status == 0 and set(jobs(printed)) <= {page} and (project / page).is_file(), printed[-3000:]
    assert (done / "run.json").read_bytes() == record
