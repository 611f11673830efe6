"""``medmerge run`` and ``report``: a notebook with a parameter file, checked before it starts; pages from records."""

import argparse
import sys
from pathlib import Path

from medmerge.cli import jobs, plan
from medmerge.study import costsheets, datasheets, definitions, premisesheets, records
from medmerge.study import notebooks as pages
from medmerge.study import run as study
from medmerge.study.params import ParameterError, Parameters


def add(commands: argparse._SubParsersAction) -> None:
    """Add both commands to the parser."""
    run = commands.add_parser("run", help="check a parameter file, then run a notebook with it")
    run.add_argument("notebook", type=Path, metavar="NOTEBOOK.ipynb")
    run.add_argument("params", type=Path, metavar="PARAMS.yaml")
    run.add_argument("--output", type=Path, help="the executed notebook (results/TRACK/PARAMS.ipynb)")
    run.set_defaults(command=_run)
    report = commands.add_parser("report", help="draw again each page whose records are all here: the same files")
    report.add_argument("params", type=Path, nargs="+", metavar="PARAMS.yaml")
    report.add_argument("--jobs", type=int, default=1, metavar="N", help="so many pages side by side")
    report.set_defaults(command=_report)


def _run(options: argparse.Namespace) -> int:
    p = pages.parameters(options.params, options.notebook)
    if p.premise:
        premisesheets.check(p)
    checks = ((p.datasets, datasheets.check), (p.studies, merged), (p.cost_repeats, costsheets.check))
    next((check for asked, check in checks if asked), to_run)(p)
    output = options.output or pages.output(p, options.params)
    from medmerge.cli import execution  # papermill takes seconds to import, which other commands need not wait for

    return execution.run(options.notebook, options.params, p, output)


def _report(options: argparse.Namespace) -> int:
    jobs.check(options.jobs)
    drawable = plan.load(options.params).of(options.params).drawable()
    if not drawable:
        raise ParameterError("no page's records are all here; `medmerge plan` with the same files lists what is to run")
    from medmerge.cli import execution, notebook_kernels

    work = [(page.notebook, page.file, page.p, page.path) for page in drawable]
    todo = [jobs.Job(str(page[1]), execution.run, page, companion=notebook_kernels.serve) for page in work]
    return jobs.run(todo, options.jobs, loaded=notebook_kernels.LOADED)


def merged(p: Parameters) -> list[records.Record]:
    """The merged runs that a page of ``studies`` shows."""
    return records.merged(study.home() / p.results / p.track, p.studies)


def to_run(p: Parameters) -> list[tuple[definitions.Row, int]]:
    """What is left to run, after all checks that take seconds; warnings are shown."""
    todo = study.check(p)
    for warning in study.check_inputs(p, todo) if todo else ():
        print(f"medmerge: WARNING: {warning}", file=sys.stderr)
    return todo
