"""How a page came about: its parameters, costs, code and data; and what was run at all: every record with its origin,
every parameter file with its state."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from medmerge.pages import typeset
from medmerge.study import definitions, names, notebooks
from medmerge.study.measured import provenance
from medmerge.study.params import Parameters, load_yaml
from medmerge.study.places import home
from medmerge.study.records import Record, RecordError
from medmerge.study.run import finished


def folded(p: Parameters, records: Sequence[Record] = ()) -> object:
    """All that follows as folded tables, for the end of a page; parameters alone where there are no runs."""
    from IPython.display import HTML  # comes with a notebook, not with this package

    set_here = pd.DataFrame(p.model_dump(exclude_defaults=True).items(), columns=["parameter", "value"])
    tables = {"Parameters of this page": set_here}
    if records:
        tables |= {"Seconds and memory": costs(records), "Commits, versions and hashes": sources(records)}
    return HTML("\n".join(typeset.table(one, title=title, folded=True).data for title, one in tables.items()))


def costs(records: Sequence[Record]) -> pd.DataFrame:
    """A row a run: seconds by phase and in all, and peak memory in MiB.

    *Ingredients* are the networks that an approach combines, at their price, recalled or not.
    """
    table = []
    for record in records:
        cost = record.run["cost"]
        seconds = {f"{phase.replace('_', ' ')}, s": values["seconds"] for phase, values in cost.items()}
        memory = max((values.get("peak_memory_mib", 0) for values in cost.values()), default=0)
        last = {"total, s": sum(seconds.values()), "peak memory, MiB": memory}
        table.append({"run": record.label, "seed": record.run["seed"], **seconds, **last})
    frame = pd.DataFrame(table)
    return frame[[*(column for column in frame if column not in last), *last]]


def sources(records: Sequence[Record]) -> pd.DataFrame:
    """A row a run: package version, commit, libraries, and the start of its definition's hash."""
    lines = []
    for record in records:
        origin, line = record.run["provenance"], {"run": record.label, "seed": record.run["seed"]}
        line |= {"commit": origin["commit"][:10]}
        line |= {name: origin["versions"][name] for name in ("medmerge", "torch", "torchvision")}
        line |= {"definition": record.run["hash"][:10], "images": record.run["data"]["fingerprint"][:10]}
        lines.append(line)
    return pd.DataFrame(lines)


def runs(found: Sequence[Record]) -> pd.DataFrame:
    """A row a run: where it lies, what defines it, which code and machine made it, and how long that took.

    Columns: track, pair, backbone, run, seed, seconds, device, precision, definition and commit (the first ten digits).
    """
    lines = []
    for record in found:
        run, seconds = record.run, sum(phase["seconds"] for phase in record.run["cost"].values())
        line = dict(zip(("track", "pair", "backbone"), record.folder.parts[-5:-2], strict=True))
        line |= {"run": record.label, "seed": run["seed"], "seconds": seconds, "device": run["device"]}
        line |= {"precision": run["precision"], "definition": run["hash"][:10]}
        lines.append(line | {"commit": run["provenance"]["commit"][:10]})
    columns = ["track", "pair", "backbone", "run", "seed", "seconds", "device", "precision", "definition", "commit"]
    return pd.DataFrame(lines, columns=columns)


def source_table(records: Sequence[Record]) -> pd.DataFrame:
    """Networks trained to be merged, a line each: what they learnt from, from which weights, and how well.

    Returns:
        ``trained on``, ``network``, ``from``, ``study``, ``seed``, ``images`` (training), ``classes``,
        ``macro F1`` (test).
    """
    lines = []
    for record in records:
        run, data, (study, network) = record.run, record.run["data"], record.folder.parts[-4:-2]
        line = {"trained on": names.title(data.get("name", run["parameters"]["target_data"]))}
        line |= {"network": names.title(network), "from": ", ".join(map(names.title, run["row"]["sources"]))}
        line |= {"study": names.pair(study).removeprefix("Source "), "seed": run["seed"]}
        line |= {"images": sum(data["counts"]["train"].values())}
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
    lines = []
    for path in sorted(params.glob("*/*.yaml")):
        p = Parameters.parse(load_yaml(path), str(path))
        state, page = _state(p), home() / p.results / p.track / f"{path.stem}.ipynb"
        lacking, there = [name for name in state if not state[name]], [*filter(None, state.values())]
        if page.is_file() and lacking:
            shown, file = page.relative_to(home()), path.relative_to(params.parent)
            raise RecordError(
                f"{shown} shows runs whose records are missing: {', '.join(lacking)}. Restore them, or run {file} again"
            )
        line = {"file": path.relative_to(params).as_posix(), "track": p.track, "title": p.title, "asked": len(state)}
        lines.append(line | {"recorded": len(there), "folders": there, "page": page if page.is_file() else None})
    return pd.DataFrame(lines)


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
            state[f"{row.name}, seed {seed}"] = (record := finished(p, row, seed)) and record.folder
    return state


def history() -> set[str]:
    """The first ten digits of every commit of this history: the link to another could not be followed."""
    listed = subprocess.run(["git", "-C", str(home()), "rev-list", "HEAD"], capture_output=True, text=True)
    return {commit[:10] for commit in listed.stdout.split()}


def built() -> dict[str, str]:
    """What this process runs on: the commit of the package, versions of Python and the libraries, the system."""
    origin = provenance()
    return {"commit": origin["commit"], **origin["versions"], "system": origin["system"]}
