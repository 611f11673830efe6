"""``medmerge learn``: two checkpoints and a folder of images to a network, in a folder that a model hub takes."""

import argparse
import logging
import re
import sys
from pathlib import Path

import yaml

from medmerge import files
from medmerge.pages import card, report
from medmerge.study import learn
from medmerge.study.params import ParameterError

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def add(own: argparse.ArgumentParser, name: str) -> None:
    """Add the command's options to its parser."""
    own.add_argument(
        "--source", action="append", default=[], metavar="[NAME=]WEIGHTS", help="twice: a file or imagenet"
    )
    own.add_argument("--images", type=Path, required=True, metavar="DIR", help="images, or a folder of them each class")
    own.add_argument(
        "--labels",
        type=Path,
        metavar="FILE.csv",
        help="image,label[,group][,split], labels for several; labels.csv among the images, if it is there",
    )
    own.add_argument("--out", type=Path, required=True, metavar="DIR", help="network, model card, split and records")
    own.add_argument("--exclude", type=Path, metavar="FILE", help="ids of images to leave out, one a line")
    own.add_argument("--compare", action="store_true", help="run FT and LP-FT from each source too: five times longer")
    own.add_argument("--licence", default="", help="the network's licence, for its card")
    own.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any parameter of a study")
    own.set_defaults(command=_learn)


class _Words(logging.Formatter):
    """Lines of the log that name this command's options."""

    def format(self, record: logging.LogRecord) -> str:
        return learn.in_own_words(super().format(record))


def _learn(options: argparse.Namespace) -> int:
    p = learn.parameters(
        options.source,
        options.images,
        options.labels,
        options.out,
        exclude=options.exclude,
        compare=options.compare,
        settings=dict(map(_setting, options.set)),
    )
    plan, warnings = learn.check(p, options.out)
    print(plan)
    for warning in warnings:
        print(f"medmerge: WARNING: {warning}", file=sys.stderr)
    shown = logging.StreamHandler(sys.stdout)
    shown.setFormatter(_Words("%(message)s"))
    logging.basicConfig(level="INFO", handlers=[shown])
    found, chosen = learn.learn(p, options.out)
    files.write(options.out / "config.json", card.config(chosen))
    files.write(options.out / "README.md", card.card(found, chosen, p.pair, options.licence))
    scores = report.scores([chosen]).iloc[0]
    interval = f"95 % interval {scores['low']:.3f} to {scores['high']:.3f}"
    print(f"macro F1 {scores['mean']:.3f} on {chosen.images['test']:,} test images ({interval})")
    print(f"{options.out / 'README.md'} says what it is and how to load it")
    print(f'medmerge.explore("{options.out}") shows in JupyterLab what was taken from which source')
    return 0


def _setting(text: str) -> tuple[str, object]:
    """A parameter's name and value; numbers as people write them, such as 1e-3, which YAML takes for text."""
    name, given, value = text.partition("=")
    if not given:
        raise ParameterError(f"--set {text}: write NAME=VALUE, such as --set image_size=128")
    try:
        return name, float(value) if _EXPONENT.fullmatch(value.strip()) else yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ParameterError(f"--set {text}: not a value that YAML reads ({error})") from error
