"""The command line: ``medmerge check``, ``run``, ``report``, ``plan``, ``train``, ``rerun``, ``data`` and ``learn``."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from medmerge.cli import data as cli_data
from medmerge.cli import endings
from medmerge.cli import many as cli_plan
from medmerge.cli import run as cli_run
from medmerge.cli.endings import EXPECTED
from medmerge.pages import report
from medmerge.study import costsheets, datasheets, definitions, learn, premisesheets
from medmerge.study import notebooks as pages
from medmerge.study.params import ParameterError, Parameters


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
    own = commands.add_parser("learn", help="merge two checkpoints for your own images, without a notebook")
    own.add_argument(
        "--source", action="append", default=[], metavar="[NAME=]WEIGHTS", help="twice: a file or imagenet"
    )
    own.add_argument("--images", type=Path, required=True, metavar="DIR", help="images, or a folder of them each class")
    own.add_argument("--labels", type=Path, metavar="FILE.csv", help="image,label[,group][,split]; labels for several")
    own.add_argument("--out", type=Path, required=True, metavar="DIR", help="network, model card, split and records")
    own.add_argument("--compare", action="store_true", help="run FT and LP-FT from each source too: five times longer")
    own.add_argument("--licence", default="", help="the network's licence, for its card")
    own.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any parameter, as in a file")
    own.set_defaults(command=_learn)
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


def _learn(options: argparse.Namespace) -> int:
    settings = {}
    for setting in options.set:
        name, given, value = setting.partition("=")
        if not given:
            raise ParameterError(f"--set {setting}: write NAME=VALUE, such as --set image_size=128")
        try:
            settings[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ParameterError(f"--set {setting}: not a value that YAML reads ({error})") from error
    p = learn.parameters(
        options.source, options.images, options.labels, options.out, compare=options.compare, settings=settings
    )
    cli_run.to_run(p)
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
    record = learn.learn(p, options.out, options.licence)
    scores = report.scores([record]).iloc[0]
    interval = f"95 % interval {scores['low']:.3f} to {scores['high']:.3f}"
    print(f"macro F1 {scores['mean']:.3f} on {record.images['test']:,} test images ({interval})")
    print(f"{options.out / 'README.md'} says what it is and how to load it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
