"""``medmerge check``, ``train`` and ``rerun``: what a parameter file would run, and runs without a notebook."""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from medmerge.approaches import APPROACHES
from medmerge.cli import about, expected
from medmerge.study import definitions, notebooks, places
from medmerge.study.params import ParameterError, Parameters, meant

Chosen = list[tuple[definitions.Row, int]]


def add(parser: argparse.ArgumentParser, name: str) -> None:
    """Add a command's options to its parser."""
    if name == "check":
        parser.add_argument("params", type=Path, nargs="+", metavar="PARAMS.yaml")
        parser.set_defaults(command=_check)
        return
    parser.add_argument("params", type=Path, metavar="PARAMS.yaml")
    parser.add_argument("--row", help="this row only, by its folder's name, such as lp_ft-ham10k")
    parser.add_argument("--seed", type=int, help="this seed only")
    parser.set_defaults(command={"train": _train, "rerun": _rerun}[name])


@contextlib.contextmanager
def project(params: Path) -> Iterator[Path]:
    """Work in the project of a parameter file, from where its relative paths count; yields the file's whole path."""
    whole = params.absolute()
    place = places.home(whole.parent)
    if "MEDMERGE_DATA" in os.environ:  # counts from where the command was given
        os.environ["MEDMERGE_DATA"] = os.path.abspath(os.environ["MEDMERGE_DATA"])
    try:
        with contextlib.chdir(place) if place.is_dir() else contextlib.nullcontext():
            yield whole
    except ParameterError as error:  # names the file as it was given
        raise ParameterError(str(error).replace(str(whole), str(params))) from error


def left(p: Parameters) -> tuple[str, list[str]]:
    """What a parameter file asks for in words, and a line for each thing of it that is left to do; all is checked."""
    kind = notebooks.kind(p)
    measured = kind.measured(p)
    if None in measured.values():
        kind.check(p)
    lines = [f"to measure: {name}" for name, place in measured.items() if place is None]
    count = len(measured)
    asked = [f"{count} record{'s' * (count > 1)} to show, {count - len(lines)} here"] * bool(measured)
    if kind.runs:
        todo, count = to_run(p), len(definitions.rows(p)) * len(p.seeds)
        asked.insert(0, f"{count} runs, {count - len(todo)} finished")
        lines = [f"to run: {row.label}, seed {seed}" for row, seed in todo] + lines
    return "; ".join(asked), lines


def to_run(p: Parameters) -> Chosen:
    """What is left to run, after all checks that take seconds; warnings are shown."""
    known = APPROACHES.keys() >= set(p.approaches)
    if known and all(definitions.finished(p, row, seed) for row in definitions.rows(p) for seed in p.seeds):
        return []
    from medmerge.study import run as study  # PyTorch, which takes seconds to load

    todo = study.check(p)
    for warning in study.check_inputs(p, todo) if todo else ():
        print(f"medmerge: WARNING: {warning}", file=sys.stderr)
    return todo


def _check(options: argparse.Namespace) -> int:
    status = 0
    for path in options.params:
        try:
            with project(path) as whole:
                asked, lines = left(notebooks.parameters(whole))
            print("\n  ".join([f"{path}: {asked}", *lines]))
        except expected() as error:
            print(f"medmerge: {about(path, error)}", file=sys.stderr)
            status = 2
    return status


def _train(options: argparse.Namespace) -> int:
    from medmerge.study import run as study

    with _asked(options) as (p, chosen):
        study.run(p, chosen)
        for row, seed in chosen:
            print(definitions.folder(p, row, seed))
    return 0


def _rerun(options: argparse.Namespace) -> int:
    from medmerge.study import revisits

    with _asked(options) as (p, chosen):
        for row, seed in chosen:
            print(revisits.rerun(p, row, seed).sentence())
    return 0


@contextlib.contextmanager
def _asked(options: argparse.Namespace) -> Iterator[tuple[Parameters, Chosen]]:
    """The parameters of a file, and those of its rows and seeds that the options name, in the file's project.

    What the package logs is printed.

    Raises:
        ParameterError: the file has no such row or seed, or asks for no runs.
    """
    from medmerge.study import run as study

    with project(options.params) as whole:
        p, wanted, seed = notebooks.parameters(whole), options.row, options.seed
        if not notebooks.kind(p).runs:
            raise ParameterError(f"{options.params} asks for a page, not for runs: medmerge run {options.params}")
        if problems := study.impossible(p):
            raise ParameterError("\n".join(problems))
        rows = {one.name: one for one in definitions.rows(p)}
        if wanted is not None and wanted not in rows:
            raise ParameterError(f"--row {wanted}: {meant(wanted, rows)}")
        if seed is not None and seed not in p.seeds:
            raise ParameterError(f"--seed {seed}: the file's seeds are {', '.join(map(str, p.seeds))}; add it there")
        logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
        yield (
            p,
            [(row, k) for k in p.seeds for row in rows.values() if wanted in (None, row.name) and seed in (None, k)],
        )
