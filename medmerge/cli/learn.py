"""``medmerge learn``: two checkpoints and a folder of images to a network, in a folder that a model hub takes."""

import argparse
import contextlib
import logging
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from medmerge import backbones, files
from medmerge.cli import runs
from medmerge.pages import card, report
from medmerge.study import definitions, inputs, records
from medmerge.study import run as study
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.records import Record, RecordError

_OPTIONS = {
    **dict.fromkeys(("base_weights", "source_weights", "base_data", "source_data"), "--source"),
    **dict.fromkeys(("exclude_data", "exclude_root"), "--exclude"),
    **{"target_root": "--images", "target_labels": "--labels", "results:": "--out:"},
}
"""What this command calls the parameters that it sets."""


def add(own: argparse.ArgumentParser, name: str) -> None:
    """Add the command's options to its parser."""
    add_one = own.add_argument
    add_one("--source", action="append", default=[], metavar="[NAME=]WEIGHTS", help="twice: a file or imagenet")
    add_one("--images", type=Path, required=True, metavar="DIR", help="images, or a folder of them each class")
    labels = "image,label[,group][,split], labels for several; labels.csv among the images, if it is there"
    add_one("--labels", type=Path, metavar="FILE.csv", help=labels)
    add_one("--out", type=Path, required=True, metavar="DIR", help="network, model card, split and records")
    add_one("--exclude", type=Path, metavar="FILE", help="ids of images to leave out, one a line")
    add_one("--compare", action="store_true", help="run FT and LP-FT from each source too: five times longer")
    add_one("--licence", default="", help="the network's licence, for its card")
    add_one("--set", action="append", default=[], metavar="NAME=VALUE", help="any parameter of a study")
    own.set_defaults(command=_learn)


def _learn(options: argparse.Namespace) -> int:
    with _own_words(options.out):
        settings = dict(map(_setting, options.set))
        chosen = {"exclude": options.exclude, "compare": options.compare, "settings": settings}
        p = parameters(options.source, options.images, options.labels, options.out, **chosen)
        todo = len(runs.to_run(p))
        what = f"{p.backbone}, {p.image_size} px, {p.target_labels or 'a folder for each class'}"
        epochs = f"{p.lp_epochs} epochs of linear probe and {p.ft_epochs} of fine-tuning"
        print(f"{what}: {epochs}, {todo} run{'s' * (todo != 1)} to do")
        logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
        found, record = learn(p, options.out)
    files.write(options.out / "config.json", card.config(record))
    files.write(options.out / "README.md", card.card(found, record, p.pair, options.licence))
    scores = report.scores([record]).iloc[0]
    interval = f"95 % interval {scores['low']:.3f} to {scores['high']:.3f}"
    print(f"macro F1 {scores['mean']:.3f} on {record.images['test']:,} test images ({interval})")
    print(f"{options.out / 'README.md'} says what it is and how to load it")
    print(f'medmerge.explore("{options.out}") shows in JupyterLab what was taken from which source')
    return 0


def parameters(
    sources: Sequence[str],
    images: Path,
    labels: Path | None,
    out: Path,
    *,
    exclude: Path | None = None,
    compare: bool = False,
    settings: Mapping[str, object] | None = None,
) -> Parameters:
    """The parameters of a run on one's own data.

    Args:
        sources: two of ``"weights"`` or ``"name=weights"``: checkpoints, or a weights name such as ``"imagenet"``.
        images: folder of the images.
        labels: CSV of labels, here or in ``images``; None takes ``labels.csv`` of ``images``, and where there is none,
            each class has a folder of its own.
        out: where the results go.
        exclude: file with the ids of images to leave out, one a line.
        compare: whether FT and LP-FT from each source are run too.
        settings: any parameter by its name; these win. Without ``backbone`` it is what the checkpoints hold.

    Raises:
        ParameterError: not two sources of one architecture, no such labels, or parameters that no run can start from.
        CheckpointError: a source cannot be read.
    """
    if len(sources) != 2:
        raise ParameterError(f"--source: {len(sources)} given; MedMerge merges two, so give it twice")
    (base, base_weights), (other, other_weights) = (_named(source) for source in sources)
    images, settings = images.expanduser().absolute(), settings or {}
    found = _labels(labels, images)
    values = {
        **{"track": "own", "pair": _name(out.resolve().name), "results": str(out.resolve() / "records")},
        **{"base_data": base, "base_weights": base_weights, "source_weights": other_weights},
        "source_data": other if other != base else f"{other}-2",
        **{"target_data": "csv" if found else "folder", "target_root": str(images)},
        **({"target_labels": str(found)} if found else {}),
        **({"exclude_data": "csv", "exclude_root": str(exclude.expanduser().absolute())} if exclude else {}),
        "approaches": ["ft", "lp_ft", "medmerge"] if compare else ["medmerge"],
        **({} if "backbone" in settings else _architecture(base_weights, other_weights)),
    }
    return Parameters.parse({**values, **settings}, "medmerge learn")


def learn(p: Parameters, out: Path) -> tuple[list[Record], Record]:
    """Run what the parameters ask for, and copy what is worth keeping into ``out``.

    ``model.safetensors`` (torchvision's names, strict-loadable) with the list of the images that it or its sources
    were trained on, ``split.csv``, and ``records/``. With several seeds the network is that of the best validation
    score.

    Returns:
        The records of all runs, and that of the network.

    Raises:
        RecordError: ``out`` holds the results of other images, sources or settings.
    """
    finished = not study.check(p)
    found = study.run(p)
    if finished:
        inputs.load_data(p, found)
        inputs.check_sources(p, {name for record in found for name in record.run["row"]["sources"]}, found)
    merged = [record for record in found if record.approach == "medmerge"]
    chosen = max(merged, key=lambda record: record.history[records.score_column(record.history)].max())
    out.mkdir(parents=True, exist_ok=True)
    trained, model = chosen.folder / definitions.MODEL, out / "model.safetensors"
    shutil.copyfile(trained, model)
    shutil.copyfile(inputs.images_list(trained), inputs.images_list(model))
    shutil.copyfile(definitions.split_path(p), out / "split.csv")
    return found, chosen


@contextlib.contextmanager
def _own_words(out: Path) -> Iterator[None]:
    """Errors that name this command's options, where a study's name parameters of a file."""
    try:
        yield
    except ParameterError as error:
        text = re.sub("|".join(_OPTIONS), lambda found: _OPTIONS[found[0]], str(error))
        raise ParameterError(text) from error
    except RecordError as error:
        what = str(error).partition("; give this")[0]
        raise RecordError(f"--out: {out} holds results of other images or sources; name another. {what}") from error


def _labels(labels: Path | None, images: Path) -> Path | None:
    if labels is None:
        return images / "labels.csv" if (images / "labels.csv").is_file() else None
    for place in (labels.expanduser().absolute(), images / labels):
        if place.is_file():
            return place
    raise ParameterError(f"--labels: no file {labels} here or in {images}")


def _named(source: str) -> tuple[str, str]:
    """A source's name and its weights, as an absolute path where they are a file."""
    name, given, weights = source.partition("=")
    if not given or Path(source).expanduser().is_file():
        name, weights = "", source
    if not backbones.is_path(weights):
        return name or weights, weights
    path = Path(weights).expanduser().absolute()
    return name or _name(path.stem), str(path)


def _name(text: str) -> str:
    """``text`` with whatever a name may not hold replaced."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-._") or "merged"


def _architecture(*weights: str) -> dict[str, str]:
    """The architecture of the checkpoints, where they say it or it shows in their names and shapes."""
    found = {path: backbones.architecture(path) for path in weights if Path(path).is_file()}
    known = {path: name for path, name in found.items() if name}
    if len(set(known.values())) > 1:
        each = " and ".join(f"{path} is {name}" for path, name in known.items())
        raise ParameterError(f"--source: {each}; MedMerge merges networks of one architecture")
    return {"backbone": next(iter(known.values()))} if known else {}


def _setting(text: str) -> tuple[str, object]:
    """A parameter's name and value."""
    name, given, value = text.partition("=")
    try:
        if given:
            return name, yaml.safe_load(value)
    except yaml.YAMLError:
        pass
    raise ParameterError(f"--set {text}: write NAME=VALUE as in YAML, such as --set image_size=128")
