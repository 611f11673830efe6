"""The command line: ``medmerge check``, ``run``, ``report``, ``train``, ``rerun``, ``data`` and ``learn``.

A command's module is imported when it is asked for: ``--help`` and a typo need neither PyTorch nor pandas.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from medmerge import __version__
from medmerge.cli import status

COMMANDS = {
    "check": ("runs", "check parameter files, and say what they would run"),
    "run": ("pages", "check a parameter file, then run its notebook with it"),
    "report": ("pages", "draw again each page whose records are all here: the same files"),
    "train": ("runs", "run rows and seeds of a parameter file, without a notebook"),
    "rerun": ("runs", "compute finished runs again, and hold them against their records"),
    "data": ("data", "look into a dataset, its split and what that hides"),
    "learn": ("learn", "merge two checkpoints for your own images"),
}
"""By name, the module of :mod:`medmerge.cli` that adds the command, and what it does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0; 1 where a notebook failed; 2 where the input was refused or training cannot go on; 130 after Ctrl-C and 143 after
    SIGTERM. Whatever it was, what is finished is kept.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser(arguments[0] if arguments else "").parse_args(arguments)
    try:
        return status(lambda: options.command(options))
    except BrokenPipeError:  # whoever read the output, such as `head`, has had enough
        sys.stdout = open(os.devnull, "w")
        return 0


def _parser(asked: str) -> argparse.ArgumentParser:
    """The parser, with the options of the command that is asked for."""
    parser = argparse.ArgumentParser(prog="medmerge", description="Rerun the study, or parts of it.")
    parser.add_argument("--version", action="version", version=f"medmerge {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, does) in COMMANDS.items():
        command = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
        if name == asked:
            importlib.import_module(f"medmerge.cli.{module}").add(command, name)
    return parser


if __name__ == "__main__":
    sys.exit(main())
