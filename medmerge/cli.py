"""The command line: ``medmerge check``, ``run``, ``plan``, ``train``, ``data`` and ``learn``."""

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
import papermill
import yaml
from papermill.exceptions import PapermillExecutionError

from medmerge import cli_data, cli_plan, costsheets, datasheets, learn, pages, premisesheets, records, report, study
from medmerge.backbones import CheckpointError
from medmerge.data import DataError
from medmerge.params import ParameterError, Parameters, load_yaml
from medmerge.records import RecordError
from medmerge.training import TrainingError

EXPECTED = (ParameterError, DataError, CheckpointError, RecordError, TrainingError, ConnectionError)
"""Errors that a user can mend: shown as a message, without a traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 where a notebook failed, 2 where the input was refused."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except BrokenPipeError:  # whoever read the output, such as `head`, has had enough
        sys.stdout = open(os.devnull, "w")
        return 0
    except EXPECTED as error:
        print(f"medmerge: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="medmerge", description="Rerun the study, or parts of it.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="check parameter files, and say what they would run")
    check.add_argument("params", type=Path, nargs="+", metavar="PARAMS.yaml")
    check.set_defaults(command=_check)
    run = commands.add_parser("run", help="check a parameter file, then run a notebook with it")
    run.add_argument("notebook", type=Path, metavar="NOTEBOOK.ipynb")
    run.add_argument("params", type=Path, metavar="PARAMS.yaml")
    run.add_argument("--output", type=Path, help="the executed notebook (results/TRACK/PARAMS.ipynb)")
    run.set_defaults(command=_run)
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
                print(f"{path}: {len(p.studies)} studies, {len(_merged(p))} merged runs to show")
                continue
            if p.cost_repeats:
                print(f"{path}: {p.backbone} at {p.image_size} px, {'' if costsheets.check(p) else 'not yet '}measured")
                continue
            unmeasured = p.premise and not premisesheets.check(p)
            todo, all_rows = _to_run(p), [(row, seed) for row in study.rows(p) for seed in p.seeds]
        except EXPECTED as error:
            print(f"medmerge: {path}: {error}", file=sys.stderr)
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


def _merged(p: Parameters) -> list[records.Record]:
    return records.merged(study.home() / p.results / p.track, p.studies)


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
    _to_run(p)
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
    record = learn.learn(p, options.out, options.licence)
    scores = report.scores([record]).iloc[0]
    interval = f"95 % interval {scores['low']:.3f} to {scores['high']:.3f}"
    print(f"macro F1 {scores['mean']:.3f} on {record.images['test']:,} test images ({interval})")
    print(f"{options.out / 'README.md'} says what it is and how to load it")
    return 0


def _run(options: argparse.Namespace) -> int:
    p = pages.parameters(options.params, options.notebook)
    if p.premise:
        premisesheets.check(p)
    checks = ((p.datasets, datasheets.check), (p.studies, _merged), (p.cost_repeats, costsheets.check))
    next((check for asked, check in checks if asked), _to_run)(p)
    output = options.output or pages.output(p, options.params)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.stem}.partial.ipynb")
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    try:
        papermill.execute_notebook(
            options.notebook,
            partial,
            load_yaml(options.params),
            kernel_name="python3",
            language="python",
            cwd=str(study.home()),
            log_output=False,
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            shutdown_kernel="immediate",  # everything is written by then; asking politely interrupts it, loudly
        )
    except PapermillExecutionError as error:
        partial.replace(failed)
        print(f"medmerge: {error.ename}: {error.evalue}\nIt stopped in {failed}", file=sys.stderr)
        return 1
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _publish(partial, output, pages.origin(options.params, options.notebook, p), p.title)
    failed.unlink(missing_ok=True)
    print(output)
    return 0


def _to_run(p: Parameters) -> list[tuple[study.Row, int]]:
    """What is left to run, after all checks that take seconds; warnings are shown."""
    todo = study.check(p)
    for warning in study.check_inputs(p, todo) if todo else ():
        print(f"medmerge: WARNING: {warning}", file=sys.stderr)
    return todo


def _publish(partial: Path, output: Path, origin: dict[str, str], title: str) -> None:
    """Move the executed notebook into place under its title, without times and durations; note what it came from."""
    notebook = nbformat.read(partial, 4)
    del notebook.metadata["papermill"]
    _without_widgets(notebook)
    if title:
        first = notebook.cells[0]
        if first.cell_type == "markdown" and first.source.startswith("# "):
            first.source = "\n".join([f"# {title}", *first.source.split("\n")[1:]])
        else:
            notebook.cells.insert(0, nbformat.v4.new_markdown_cell(f"# {title}"))
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata.tags.append("hide-input")
        if figure := cell.metadata.get("mystnb", {}).get("figure"):
            figure["name"] += f"-{output.parent.name}-{output.stem}"  # the book has a page a track and file
        for shown in cell.get("outputs", []):
            _settle(shown.get("data", {}), number)
    notebook.metadata["medmerge"] = origin
    nbformat.write(notebook, partial)
    partial.replace(output)


def _without_widgets(notebook: nbformat.NotebookNode) -> None:
    """Keep the HTML of what is shown live as a widget: a page has no kernel, and a widget's ids are random."""
    view = "application/vnd.jupyter.widget-view+json"
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    for data in shown:
        if "text/html" in data:
            data.pop(view, None)
    if not any(view in data for data in shown):
        notebook.metadata.pop("widgets", None)


def _settle(data: dict, number: int) -> None:
    """Take memory addresses out of an output, and give a styled table's random id the cell's number."""
    if "text/plain" in data:
        data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", data["text/plain"])
    if "text/html" in data:
        data["text/html"] = re.sub(r"\bT_[0-9a-f]{5}(?=[_ \"])", f"T_{number}", data["text/html"])


if __name__ == "__main__":
    sys.exit(main())
