"""``medmerge plan``, ``train`` and ``rerun``: what is to run and in which order, and runs without a notebook."""

import argparse
import difflib
import json
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from medmerge.approaches import APPROACHES
from medmerge.cli import gpus, jobs, plan
from medmerge.study import definitions, reruns
from medmerge.study import notebooks as pages
from medmerge.study import run as study
from medmerge.study.inputs import home
from medmerge.study.params import ParameterError, Parameters


def add(commands: argparse._SubParsersAction) -> None:
    """Add both commands to the parser."""
    graph = commands.add_parser("plan", help="list runs and pages, what is finished, and what comes before what")
    graph.add_argument("params", type=Path, nargs="+", metavar="PARAMS.yaml")
    how = graph.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="the whole graph, for programs")
    how.add_argument("--ready", action="store_true", help="a command a line for each run that can start now")
    graph.set_defaults(command=_plan)
    train = commands.add_parser("train", help="run rows and seeds of a parameter file, without a notebook")
    train.add_argument("params", type=Path, metavar="PARAMS.yaml")
    train.add_argument("--row", help="this row only, by its folder's name, such as lp_ft-ham10k")
    train.add_argument("--seed", type=int, help="this seed only")
    train.add_argument("--jobs", type=int, default=1, metavar="N", help="so many runs side by side, each on its own")
    train.set_defaults(command=_train)
    again = commands.add_parser("rerun", help="compute finished runs again, and hold them against their records")
    again.add_argument("params", type=Path, metavar="PARAMS.yaml")
    again.add_argument("--row", help="this row only")
    again.add_argument("--seed", type=int, help="this seed only")
    again.set_defaults(command=_rerun)


def _train(options: argparse.Namespace) -> int:
    p, chosen = _asked(options)
    jobs.check(options.jobs)
    status, todo = 0, study.check(p, chosen) if options.jobs > 1 else []
    if len(todo) > 1:
        status = jobs.run(_jobs(p, todo), min(options.jobs, len(todo)))
        chosen = [one for one in chosen if study.finished(p, *one)]
    else:
        logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
        _compute(p, chosen)
    for row, seed in chosen:
        print(definitions.folder(p, row, seed))
    return status


def _compute(p: Parameters, chosen: Sequence[tuple[definitions.Row, int]]) -> int:
    """Runs one after the other, on a GPU that no other process has."""
    with gpus.claimed(p.device):
        study.run(p, chosen)
    return 0


def _jobs(p: Parameters, todo: Sequence[tuple[definitions.Row, int]]) -> list[jobs.Job]:
    """A job a run, those that merge first, since they take the longest; a row that combines others comes after them."""

    def name(row: definitions.Row, seed: int) -> str:
        return f"{row.name} {seed}"

    ordered = sorted(todo, key=lambda one: not APPROACHES[one[0].approach].merges)
    after = [tuple(name(part, seed) for part in definitions.parts(row)) for row, seed in ordered]
    return [jobs.Job(name(*one), _compute, (p, [one]), before) for one, before in zip(ordered, after, strict=True)]


def _rerun(options: argparse.Namespace) -> int:
    p, chosen = _asked(options)
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
    with gpus.claimed(p.device):
        for row, seed in chosen:
            found = reruns.run(p, row, seed)
            print(found.sentence())
    return 0


def _asked(options: argparse.Namespace) -> tuple[Parameters, list[tuple[definitions.Row, int]]]:
    """The parameters of a file, and those of its rows and seeds that the options name."""
    p = pages.parameters(options.params, pages.notebook(options.params))
    if not plan.has_runs(p):
        raise ParameterError(f"{options.params} asks for a page, not for runs: medmerge run NOTEBOOK.ipynb PARAMS.yaml")
    return p, _chosen(p, options.row, options.seed)


def _chosen(p: Parameters, row: str | None, seed: int | None) -> list[tuple[definitions.Row, int]]:
    """The rows and seeds that are asked for.

    Raises:
        ParameterError: the file has no such row or seed.
    """
    if problems := study.impossible(p):
        raise ParameterError("\n".join(problems))
    rows = {one.name: one for one in definitions.rows(p)}
    if row is not None and row not in rows:
        near = difflib.get_close_matches(row, rows, 1)
        raise ParameterError(f"--row {row}: " + (f"did you mean {near[0]}?" if near else f"rows: {', '.join(rows)}"))
    if seed is not None and seed not in p.seeds:
        raise ParameterError(f"--seed {seed}: the file's seeds are {', '.join(map(str, p.seeds))}; add it there")
    return [(one, k) for k in p.seeds for one in rows.values() if row in (None, one.name) and seed in (None, k)]


def _plan(options: argparse.Namespace) -> int:
    found = plan.load(options.params).of(options.params)
    missing = {file: problems for file in found.files if (problems := found.missing(file))}
    if options.json:
        print(json.dumps(_content(found, missing), indent=1, ensure_ascii=False))
    elif options.ready:
        for run in found.ready():
            if run.file not in missing:
                print(shlex.join(command(run)))
    else:
        print("\n".join(_lines(found, missing)))
    if options.ready:
        for file, problems in missing.items():
            print(f"medmerge: {file} cannot run here yet: " + "\n  ".join(problems), file=sys.stderr)
    return 0


def command(run: plan.Run) -> list[str]:
    """The words of the command that computes a run."""
    return ["medmerge", "train", str(run.file), "--row", run.row.name, "--seed", str(run.seed)]


def _lines(found: plan.Plan, missing: dict[Path, list[str]]) -> list[str]:
    """The plan in words: file by file, each after those that it needs."""
    lines = []
    for file in found.files:
        runs = [run for run in found.runs.values() if run.file == file]
        page = next((page for page in found.pages.values() if page.file == file), None)
        needs = {folder for one in [*runs, page] if one for folder in one.needs}
        before = [other for other in found.files if other != file and needs & _folders(found, other)]
        lines.append(f"{file}" + (f", after {', '.join(map(str, before))}" if before else ""))
        lines += [f"  {'finished' if run.finished else 'to run  '}  {run.row.label}, seed {run.seed}" for run in runs]
        if page:
            lines.append(f"  {'current ' if page.current else 'to draw '}  {_relative(page.path)}")
        lines += [f"  cannot run here yet: {problem}" for problem in missing.get(file, ())]
    runs, drawn = found.runs.values(), found.pages.values()
    counts = len(runs), sum(run.finished for run in runs), len(drawn), sum(page.current for page in drawn)
    return [*lines, "{} runs, {} finished; {} pages, {} current".format(*counts)]


def _folders(found: plan.Plan, file: Path) -> set[Path]:
    return {folder for folder, run in found.runs.items() if run.file == file}


def _content(found: plan.Plan, missing: dict[Path, list[str]]) -> dict:
    """The plan in JSON's types; runs and pages by where they lie."""
    runs = {
        _relative(folder): {"params": str(run.file), "row": run.row.name, "seed": run.seed}
        | {"finished": run.finished, "needs": [_relative(one) for one in run.needs]}
        for folder, run in found.runs.items()
    }
    drawn = {
        _relative(path): {"params": str(page.file), "notebook": _relative(page.notebook)}
        | {"current": page.current, "needs": [_relative(one) for one in page.needs]}
        for path, page in found.pages.items()
    }
    return {"runs": runs, "pages": drawn, "missing": {str(file): problems for file, problems in missing.items()}}


def _relative(path: Path) -> str:
    return path.relative_to(home()).as_posix() if path.is_relative_to(home()) else str(path)
