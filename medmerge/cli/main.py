"""The command line: ``medmerge check``, ``run``, ``report``, ``plan``, ``train``, ``rerun``, ``data`` and ``learn``."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from medmerge.cli import data as cli_data
from medmerge.cli import endings
from medmerge.cli import learn as cli_learn
from medmerge.cli import many as cli_plan
from medmerge.cli import run as cli_run
from medmerge.cli.endings import EXPECTED
from medmerge.study import costsheets, datasheets, definitions, premisesheets
from medmerge.study import notebooks as pages
from medmerge.study.params import Parameters


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0; 1 where a notebook failed; 2 where the input was refused or training cannot go on; 130 after Ctrl-C and 143 after
    SIGTERM. Whatever it was, what is finished is kept.
    """
    options = _parser().parse_args(arguments)
    try:
        return endings.status(lambda: options.command(options))
    except BrokenPipeError:  # whoever read the output, such as `head`, has had enough
        sys.stdout = open(os.devnull, "w")
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="medmerge", description="Rerun the study, or parts of it.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="check parameter files, and say what they would run")
    check.add_argument("params", type=Path, nargs="+", metavar="PARAMS.yaml")
    check.set_defaults(command=_check)
    cli_run.add(commands)
    cli_plan.add(commands)
    cli_data.add(commands)
    cli_learn.add(commands)
    return parser


def _check(options: argparse.Namespace) -> int:
    status = 0
    for path in options.params:
        try:
            p = pages.parameters(path)
            if p.datasets:
                _print_datasets(path, p)
                continue
            if p.studies:
                print(f"{path}: {len(p.studies)} studies, {len(cli_run.merged(p))} merged runs to show")
                continue
            if p.cost_repeats:
                print(f"{path}: {p.backbone} at {p.image_size} px, {'' if costsheets.check(p) else 'not yet '}measured")
                continue
            unmeasured = p.premise and not premisesheets.check(p)
            todo, all_rows = cli_run.to_run(p), [(row, seed) for row in definitions.rows(p) for seed in p.seeds]
        except EXPECTED as error:
            print(f"medmerge: {endings.about(path, error)}", file=sys.stderr)
            status = 2
            continue
        print(f"{path}: {len(all_rows)} runs, {len(all_rows) - len(todo)} finished")
        for row, seed in todo:
            print(f"  to run: {row.label}, seed {seed}")
        if unmeasured:
            print("  to measure: what lies between the sources")
    return status


def _print_datasets(path: Path, p: Parameters) -> None:
    todo = datasheets.check(p)
    print(f"{path}: {len(p.datasets)} datasets, {len(p.datasets) - len(todo)} measured")
    for name in todo:
        print(f"  to measure: {name}")


if __name__ == "__main__":
    sys.exit(main())
