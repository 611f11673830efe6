"""The whole method on one's own two checkpoints and images: ``medmerge learn``."""

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medmerge import backbones, devices
from medmerge.backbones import state_sha256
from medmerge.study import definitions, inputs, records
from medmerge.study import run as study
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.records import Record, RecordError

BASELINES = ["ft", "lp_ft", "medmerge"]

_OPTIONS = {
    **dict.fromkeys(("base_weights", "source_weights", "base_data", "source_data"), "--source"),
    **dict.fromkeys(("exclude_data", "exclude_root"), "--exclude"),
    **{"target_root": "--images", "target_labels": "--labels", "results": "--out"},
    "allow_overlap: true": "--set allow_overlap=true",
}
"""What this command calls the parameters that it sets."""


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
        ParameterError: not two different sources of one architecture, places that are not there, ``out`` in ``images``,
            or parameters that no run can start from.
        CheckpointError: a source cannot be read.
    """
    if len(sources) != 2:
        raise ParameterError(f"--source: {len(sources)} given; MedMerge merges two, so give it twice")
    (base, base_weights), (other, other_weights) = (_named(source) for source in sources)
    if base_weights == other_weights and base_weights != "random":
        raise ParameterError(f"--source: both are {base_weights}; MedMerge merges two different networks")
    images = images.expanduser().absolute()
    if not images.is_dir():
        raise ParameterError(f"--images: no folder {images}")
    if out.resolve().is_relative_to(images.resolve()):
        raise ParameterError(f"--out: {out} is in {images}, which is only read; name a place outside of it")
    if exclude is not None and not exclude.expanduser().is_file():
        raise ParameterError(f"--exclude: no file {exclude}; it lists ids of images, one a line")
    found, settings = _labels(labels, images), settings or {}
    values = {
        **{"track": "own", "pair": _name(out.resolve().name), "results": str(out.resolve() / "records")},
        **{"base_data": base, "base_weights": base_weights, "source_weights": other_weights},
        "source_data": other if other != base else f"{other}-2",
        **{"target_data": "csv" if found else "folder", "target_root": str(images)},
        **({"target_labels": str(found)} if found else {}),
        **({"exclude_data": "csv", "exclude_root": str(exclude.expanduser().absolute())} if exclude else {}),
        "approaches": BASELINES if compare else ["medmerge"],
        **({} if "backbone" in settings else _architecture(base_weights, other_weights)),
    }
    with own_words(out):
        return Parameters.parse({**values, **settings}, "medmerge learn")


def check(p: Parameters, out: Path) -> tuple[str, list[str]]:
    """What is about to be computed, in a sentence, and warnings; after all checks that take seconds.

    Raises:
        ParameterError, DataError, CheckpointError, RecordError: what a run would end with.
    """
    with own_words(out):
        todo = study.check(p)
        warnings = study.check_inputs(p, todo) if todo else []
    if not todo:
        return f"{out}: all runs are finished; the results are written again", []
    sources = [inputs.load_source(p, name, p.seeds[0]) for name in inputs.weights(p)]
    if len({state_sha256(source) for source in sources}) == 1:
        raise ParameterError(f"--source: {p.base_weights} and {p.source_weights} hold the same weights")
    each = f"{p.lp_epochs} epochs of linear probe and {p.ft_epochs} of fine-tuning"
    place = devices.describe(devices.choose_device(p.device))
    plan = (
        f"{p.backbone}, {p.image_size} px, {p.target_labels or 'a folder for each class'}: "
        f"{'FT, LP-FT and MedMerge, ' if len(p.approaches) > 1 else ''}{each}, {len(todo)} run{'s' * (len(todo) > 1)}, "
        f"on {place}"
    )
    return plan, [in_own_words(warning) for warning in warnings]


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
    with own_words(out):
        finished = not study.check(p)
        found = study.run(p)
        if finished:
            inputs.load_data(p, found)
            inputs.check_sources(p, {name for record in found for name in record.run["row"]["sources"]}, found)
    merged = [record for record in found if record.approach == "medmerge"]
    chosen = max(merged, key=lambda record: record.history[records.score_column(record.history)].max())
    out.mkdir(parents=True, exist_ok=True)
    trained = chosen.folder / definitions.MODEL
    if not (trained.is_file() and inputs.images_list(trained).is_file()):
        raise RecordError(
            f"the network of {chosen.folder} or its list of images is gone; move its record away to train again"
        )
    shutil.copyfile(trained, out / "model.safetensors")
    shutil.copyfile(inputs.images_list(trained), inputs.images_list(out / "model.safetensors"))
    shutil.copyfile(definitions.split_path(p), out / "split.csv")
    return found, chosen


@contextlib.contextmanager
def own_words(out: Path) -> Iterator[None]:
    """Errors that name this command's options, where a study's name parameters of a file."""
    try:
        yield
    except ParameterError as error:
        raise ParameterError(in_own_words(str(error))) from error
    except RecordError as error:
        what = str(error).partition("; give this")[0]
        raise RecordError(f"--out: {out} holds results of other images or sources; name another. {what}") from error


def in_own_words(text: str) -> str:
    """``text`` with this command's options for the parameters that it sets."""
    return re.sub("|".join(_OPTIONS), lambda found: _OPTIONS[found[0]], text)


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
    if not path.is_file():
        raise ParameterError(f"--source: no file {weights}; give a checkpoint, or imagenet to download")
    return name or _name(path.stem), str(path)


def _name(text: str) -> str:
    """``text`` with whatever a name may not hold replaced."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-._") or "merged"


def _architecture(*weights: str) -> dict[str, str]:
    """The architecture of the checkpoints, where they say it or it shows in their names and shapes."""
    found = {path: backbones.architecture(path) for path in weights if backbones.is_path(path)}
    known = {path: name for path, name in found.items() if name}
    if len(set(known.values())) > 1:
        each = " and ".join(f"{path} is {name}" for path, name in known.items())
        raise ParameterError(f"--source: {each}; MedMerge merges networks of one architecture")
    return {"backbone": next(iter(known.values()))} if known else {}
