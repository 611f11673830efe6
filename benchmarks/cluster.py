"""The demo's grid of thirty runs under Snakemake: killed and resumed here, then as SLURM jobs, with the same records.

    python benchmarks/cluster.py local            killed in the middle, then finished; writes benchmarks/cluster.json
    benchmarks/slurm_node.sh start                a SLURM of one node on a Debian machine, as root
    python benchmarks/cluster.py slurm            the grid through profiles/slurm, and as a plain job array; compared

Each works in a folder of its own below --folder, with the repository's parameter files, notebooks, profiles and
Snakefile. What is compared: every file of every run, byte for byte; of run.json all but where, when and how long.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from medmerge.study import reruns

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "cluster.json"
PAGE = "results/demo/grid.ipynb"
FILES = (
    "_config.yml",
    "Snakefile",
    "profiles",
    "notebooks",
    *(f"params/demo/{n}.yaml" for n in ("base", "source", "grid")),
)
CIRCUMSTANCES = ("cost", "device", "provenance")
"""Of run.json: where it was computed, by which commit, how long it took."""

BIN = Path(sys.executable).parent
SNAKEMAKE = [str(BIN / "snakemake")]
LOCAL = [*SNAKEMAKE, "--cores", "2", PAGE]
SLURM = [*SNAKEMAKE, "--workflow-profile", "profiles/slurm", "--config", "gpu=0", "--default-resources", "mem_mb=2000"]
SLURM += ["runtime=30", "--slurm-no-account", "--slurm-status-command", "squeue"]
SLURM += ["--slurm-init-seconds-before-status-checks", "5", "--seconds-between-status-checks", "5", PAGE]
ARRAY = """
medmerge train params/demo/base.yaml
medmerge train params/demo/source.yaml
sbatch --wait --mem=2000 --array=0-5 --output=logs/%a.log \\
    --wrap 'medmerge train params/demo/grid.yaml --seed $SLURM_ARRAY_TASK_ID'
medmerge run notebooks/pair.ipynb params/demo/grid.yaml
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["local", "slurm"])
    parser.add_argument(
        "--folder", type=Path, default=Path("_build/cluster"), help="is emptied, but for `local`'s part"
    )
    options = parser.parse_args()
    found = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    if options.what == "local":
        found = {"runs": 0, "local": local(project(options.folder / "local"))}
        found["runs"] = len(runs(options.folder / "local"))
    else:
        here = options.folder / "local"
        if not runs(here):
            sys.exit(f"no runs in {here}: first `python benchmarks/cluster.py local`")
        found["slurm"] = slurm(project(options.folder / "slurm"), here, SLURM)
        RESULT.write_text(json.dumps(found, indent=1) + "\n")
        found["array"] = slurm(project(options.folder / "array"), here, ["bash", "-euo", "pipefail", "-c", ARRAY])
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(markdown(found)))


def markdown(found: dict) -> list[str]:
    """The rows of the table in book/cluster.md."""
    rows = [f"| {name} | {value} |" for name, value in found["local"].items()]
    for part, words in (("slurm", "as SLURM jobs"), ("array", "as a plain SLURM array")):
        if one := found.get(part):
            rows.append(f"| {words}: finished; seconds | {one['finished']}; {one['seconds']} |")
            same, different = one["files the same as here"], len(one["different"])
            rows.append(f"| {words}: files the same as here; different | {same}; {different} |")
    return ["| what | result |", "| --- | ---: |", f"| runs | {found['runs']} |", *rows]


def project(folder: Path) -> Path:
    """An empty project with what the grid needs."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    (folder / "logs").mkdir()
    return folder


def start(command: list[str], folder: Path) -> subprocess.Popen:
    """Start a command in a project, as the leader of a group of processes; what it prints goes to its log."""
    settings = {"OMP_NUM_THREADS": "1", "MEDMERGE_CACHE": str(folder.resolve() / "cache")}
    settings["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    with open(folder / "logs" / "output.txt", "a") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **settings},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(command: list[str], folder: Path) -> tuple[float, str]:
    """Run a command to its end: its seconds, and what it printed. Stops with that where it fails."""
    log, started = folder / "logs" / "output.txt", time.perf_counter()
    before = log.stat().st_size if log.exists() else 0
    status = start(command, folder).wait()
    printed = log.read_text()[before:]
    if status:
        sys.exit(f"{' '.join(command)} ended with {status}:\n{printed[-4000:]}")
    return time.perf_counter() - started, printed


def runs(folder: Path) -> dict[str, bytes]:
    """SHA-256 of the record of every finished run of the grid."""
    place = folder / "results/demo"
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(place.glob("*/densenet_small/*/seed*/run.json"))
    }


def local(folder: Path) -> dict:
    """Kill the grid with all its processes after a third of the runs, then finish it, then ask for it once more."""
    started = time.perf_counter()
    first = start(LOCAL, folder)
    while len(runs(folder)) < 12:
        if first.poll() is not None:
            sys.exit(f"it ended before it could be killed:\n{(folder / 'logs/output.txt').read_text()[-4000:]}")
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    killed, before = time.perf_counter() - started, runs(folder)
    begun = [path.parent.parent for path in folder.glob("results/demo/grid/*/*/seed*/checkpoint/*.pt")]
    unfinished = {str(path.relative_to(folder)) for path in begun if not (path / "run.json").is_file()}
    finish([*SNAKEMAKE, "--unlock"], folder)
    seconds, printed = finish(LOCAL, folder)
    after, again = runs(folder), finish([*LOCAL, "--dry-run"], folder)[1]
    return {
        "seconds until the kill": round(killed),
        "finished at the kill": len(before),
        "begun at the kill": len(unfinished),
        "seconds of the second call": round(seconds),
        "jobs of the second call": printed.count(": train results/"),
        "redone": sum(after[name] != digest for name, digest in before.items()),
        "finished in the end": len(after),
        "jobs of a third call": again.count(": train results/") + again.count(": draw results/"),
    }


def slurm(folder: Path, other: Path, command: list[str]) -> dict:
    """Run the grid on SLURM, and compare its records with another project's."""
    seconds, _ = finish(command, folder)
    same, different = compare(folder, other)
    return {
        "seconds": round(seconds),
        "finished": len(runs(folder)),
        "files the same as here": same,
        "different": different,
    }


def compare(one: Path, two: Path) -> tuple[int, list[str]]:
    """How many files of the records of two projects are the same, and the names of those that are not."""
    content = [files(folder / "results/demo") for folder in (one, two)]
    names = sorted(content[0].keys() | content[1].keys())
    different = [name for name in names if content[0].get(name) != content[1].get(name)]
    return len(names) - len(different), different


def files(results: Path) -> dict[str, bytes]:
    """What the runs' folders hold, without checkpoints, and without the circumstances in run.json."""
    folders = sorted(results.glob("*/densenet_small/*/seed*"))
    records = {folder.relative_to(results): reruns.content(folder, CIRCUMSTANCES) for folder in folders}
    return {str(folder / name): content for folder, record in records.items() for name, content in record.items()}


if __name__ == "__main__":
    main()
