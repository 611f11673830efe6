"""What has been run and what has not: every record with its origin, every parameter file with its state."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from medmerge.study import definitions, names, notebooks
from medmerge.study.measured import provenance
from medmerge.study.params import Parameters, load_yaml
from medmerge.study.places import home
from medmerge.study.records import Record, RecordError
from medmerge.study.run import finished

NOT_COMMITTED = "not committed"
"""Stands for the date of a record that git does not know, or of which it no longer has the history."""


def runs(found: Sequence[Record]) -> pd.DataFrame:
    """A row a run: where it lies, what defines it, which code and machine made it, how long that took, and when.

    Columns: track, pair, backbone, run, seed, seconds, device, precision, definition and commit (the first ten digits),
    recorded (date of the commit that last wrote the record, or :data:`NOT_COMMITTED`), folder.
    """
    dates = _dates({record.folder for record in found})
    rows = []
    for record in found:
        track, pair, backbone = record.folder.parts[-5:-2]
        run = record.run
        rows.append(
            {"track": track, "pair": pair, "backbone": backbone, "run": record.label, "seed": run["seed"]}
            | {"seconds": sum(phase["seconds"] for phase in run["cost"].values()), "device": run["device"]}
            | {"precision": run["precision"], "definition": run["hash"][:10]}
            | {"commit": run["provenance"]["commit"][:10], "recorded": dates[record.folder], "folder": record.folder}
        )
    columns = ["track", "pair", "backbone", "run", "seed", "seconds", "device", "precision", "definition", "commit"]
    return pd.DataFrame(rows, columns=[*columns, "recorded", "folder"])


def source_table(records: Sequence[Record]) -> pd.DataFrame:
    """Networks trained to be merged, a line each: what they learnt from, from which weights, and how well.

    Returns:
        ``trained on``, ``network``, ``from``, ``study`` (its folder), ``seed``, ``images`` (training), ``classes``,
        ``macro F1`` (test).
    """
    lines = []
    for record in records:
        run, data = record.run, record.run["data"]
        line = {"trained on": names.title(data.get("name", run["parameters"]["target_data"]))}
        line |= {
            "network": names.title(record.folder.parts[-3]),
            "from": ", ".join(map(names.title, run["row"]["sources"])),
        }
        line |= {"study": record.folder.parts[-4], "seed": run["seed"], "images": sum(data["counts"]["train"].values())}
        lines.append(line | {"classes": len(data["classes"]), "macro F1": run["metrics"]["macro_f1"]})
    return pd.DataFrame(lines)


def parameter_files(params: Path) -> pd.DataFrame:
    """A row for each ``<track>/<name>.yaml`` below ``params``: what it asks for and how much of that is recorded.

    Columns: file (relative to ``params``), track, title, asked and recorded (runs; of a page on datasets these, of one
    on weights the merged runs that it shows, of one on costs its measurement, of one on the premise that and runs),
    folders (of the records that are there), page (the executed notebook, or None).

    Raises:
        ParameterError: a file that no run could start from.
        RecordError: a record is damaged, was made with other parameters, or is missing although the executed notebook
            shows its numbers.
    """
    rows = []
    for path in sorted(params.glob("*/*.yaml")):
        p = Parameters.parse(load_yaml(path), str(path))
        state = _state(p)
        there = [name for name, folder in state.items() if folder is not None]
        page = home() / p.results / p.track / f"{path.stem}.ipynb"
        if page.is_file() and len(there) < len(state):
            lacking = ", ".join(name for name in state if name not in there)
            raise RecordError(
                f"{page.relative_to(home())} shows runs whose records are missing: {lacking}. Restore them, or run "
                f"{path.relative_to(params.parent)} again"
            )
        rows.append(
            {"file": path.relative_to(params).as_posix(), "track": p.track, "title": p.title, "asked": len(state)}
            | {"recorded": len(there), "folders": [state[name] for name in there]}
            | {"page": page if page.is_file() else None}
        )
    return pd.DataFrame(rows, columns=["file", "track", "title", "asked", "recorded", "folders", "page"])


def unasked(found: Sequence[Record], files: pd.DataFrame) -> list[Record]:
    """Records that no parameter file asks for: of a file that is gone, or of another definition's folder.

    Args:
        files: as :func:`parameter_files` makes it.
    """
    asked = {folder for folders in files["folders"] for folder in folders}
    return [record for record in found if record.folder not in asked]


def _state(p: Parameters) -> Mapping[str, Path | None]:
    """What a file asks for by name, each with its record's folder or file, or None where there is no record."""
    kind = notebooks.kind(p)
    state = dict(kind.measured(p))
    for row in definitions.rows(p) if kind.runs else ():
        for seed in p.seeds:
            record = finished(p, row, seed)
            state[f"{row.name}, seed {seed}"] = record.folder if record else None
    return state


def _dates(folders: set[Path]) -> dict[Path, str]:
    """For each record's folder the date of the last commit that wrote its ``run.json``."""
    dates = dict.fromkeys(folders, NOT_COMMITTED)
    if not folders:
        return dates

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(home()), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    try:
        if git("rev-parse", "--is-shallow-repository").strip() == "true":
            return dates
        top = Path(git("rev-parse", "--show-toplevel").strip())
        log = git("log", "--format=%x00%cs", "--name-only", "--", "*/run.json", "run.json")
    except (OSError, subprocess.SubprocessError):
        return dates
    for commit in log.split("\0")[1:]:  # newest first
        date, *names = commit.split("\n")
        for name in filter(None, names):
            folder = (top / name).parent
            if dates.get(folder) == NOT_COMMITTED:
                dates[folder] = date
    return dates


def history() -> set[str]:
    """The first ten digits of every commit of this history: the link to another could not be followed."""
    listed = subprocess.run(["git", "-C", str(home()), "rev-list", "HEAD"], capture_output=True, text=True)
    return {commit[:10] for commit in listed.stdout.split()}


def built() -> dict[str, str]:
    """What this process runs on: the commit of the package, versions of Python and the libraries, the system."""
    origin = provenance()
    return {"commit": origin["commit"], **origin["versions"], "system": origin["system"]}
