"""From parameters to records: what has run, what can run, and running what is left."""

import contextlib
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from medmerge import backbones, data, devices, files
from medmerge.approaches import APPROACHES, FINE_TUNED
from medmerge.data import split_files
from medmerge.study import inputs
from medmerge.study.definitions import MODEL, Row, epochs, finished, folder, needed, reads, rows, split_path
from medmerge.study.params import ParameterError, Parameters, meant, of_role, of_seed
from medmerge.study.places import home
from medmerge.study.records import Record
from medmerge.study.row import clear, run_row, seconds_an_image
from medmerge.task import Progress, duration

log = logging.getLogger(__name__)

LOCK = ".lock"
"""File in a run's folder while a process computes it."""


def check(
    p: Parameters, only: Collection[tuple[Row, int]] | None = None, coming: Collection[str] = ()
) -> list[tuple[Row, int]]:
    """What is left to run, after a check that it can: names are known, files are there, so is the device.

    Args:
        only: rows and seeds to look at; all by default.
        coming: names of sources whose weights need not be there yet.

    Raises:
        ParameterError: with a line for each thing that is wrong or missing.
    """
    if problems := impossible(p):
        raise ParameterError("\n".join(problems))
    asked = [(row, seed) for seed in p.seeds for row in rows(p)]
    todo = [one for one in asked if (only is None or one in only) and not finished(p, *one)]
    if todo and (problems := inputs.missing(_left(p, todo), needed(todo).difference(coming))):
        raise ParameterError("\n".join(problems))
    return todo


def _left(p: Parameters, todo: Collection[tuple[Row, int]]) -> Parameters:
    """The parameters with the seeds of what is left to run: sources of other seeds are not needed."""
    return p.model_copy(update={"seeds": [seed for seed in p.seeds if seed in {one for _, one in todo}]})


def impossible(p: Parameters) -> list[str]:
    """A line for each thing for which no run could start, wherever it is tried: unknown names, rows that cannot be."""
    problems = [f"approaches: unknown {n!r}; {meant(n, APPROACHES)}" for n in p.approaches if n not in APPROACHES]
    problems += _architecture(p)
    for name in ("target_data", "exclude_data") if p.exclude_data else ("target_data",):
        if (given := getattr(p, name)) not in data.DATASETS:
            problems.append(f"{name}: unknown {given!r}; {meant(given, data.DATASETS)}")
    merging = [name for name in p.approaches if name in APPROACHES and APPROACHES[name].merges]
    if merging and not p.source_data:
        problems.append(f"approaches: {merging[0]} merges two sources; give source_data and source_weights")
    tuned = [name for name in p.approaches if name in FINE_TUNED]
    if tuned and 0 in (p.ft_epochs, *p.vary.get("ft_epochs", [])):
        problems.append(f"ft_epochs: 0 leaves nothing of the approach {tuned[0]}; take it out of approaches")
    if not problems:
        read, shared = set().union(*map(reads, p.approaches)), of_role("data")
        problems = [f"vary: {n} is read by none of {', '.join(p.approaches)}" for n in p.vary if n not in read]
        problems += [f"vary: {name} is shared by all runs of a study" for name in p.vary if name in shared]
    return problems


def _architecture(p: Parameters) -> list[str]:
    """A line if the backbone is not known, or does not take images of this size."""
    try:
        parameter = "backbone"
        backbones.check_name(p.backbone)
        parameter = "image_size"
        backbones.check_image_size(p.backbone, p.image_size)
    except ValueError as error:
        return [f"{parameter}: {error}"]
    return []


def check_inputs(p: Parameters, todo: list[tuple[Row, int]]) -> list[str]:
    """Everything that can be checked about the inputs of ``todo`` in seconds; returns warnings.

    See :func:`medmerge.study.inputs.check_inputs`.
    """
    return inputs.check_inputs(_left(p, todo), needed(todo), done(p))


def load_data(p: Parameters) -> data.Dataset:
    """The target dataset, split and decoded, if it is the one that finished runs of this study saw."""
    return inputs.load_data(p, done(p))


def run(p: Parameters, only: Collection[tuple[Row, int]] | None = None) -> list[Record]:
    """Run what is not finished, and return the records of all rows and seeds that ``p`` asks for, in that order.

    With everything finished neither images nor weights are needed.

    Args:
        only: rows and seeds to run and to return; all by default.

    Raises:
        ParameterError, DataError, CheckpointError: before any training starts.
        RecordError: finished runs of this study were computed from other images or weights.
    """
    todo = check(p, only)
    if todo:
        dataset = load_data(p)
        inputs.check_sources(_left(p, todo), needed(todo), done(p))
        overlap = inputs.overlap(_left(p, todo), dataset.images, needed(todo))
        inputs.warn_of_overlap(overlap)
        drawn = {"method": p.split, "fractions": tuple(p.fractions), "seed": p.split_seed}
        with files.locked(split_path(p).with_name(".split.lock"), str(split_path(p))) as alone:
            if alone:
                files.remove_leftovers(split_path(p).parent)
            split_files.write(split_path(p), dataset.table, dataset.parts, **drawn)
        _train(p, todo, dataset, overlap)
    for seed in p.seeds if p.save_weights else ():
        if only is None or any(one == seed for _, one in only):
            _share(p, seed, replace=any(one == seed for _, one in todo))
    asked = [(row, seed) for row in rows(p) for seed in p.seeds if only is None or (row, seed) in only]
    for row, seed in asked:
        if (folder(p, row, seed) / LOCK).exists():  # who finished it died before it had cleared up
            with _alone(p, row, seed):
                pass
    return [finished(p, *one) for one in asked]


def _train(p: Parameters, todo: list[tuple[Row, int]], dataset: data.Dataset, overlap: Mapping[str, Mapping]) -> None:
    """Compute what is left, one run after the other; says before how long it will take, and on the way."""
    images = {one: len(dataset.train) * epochs(p, one[0]) for one in todo}
    rate = seconds_an_image(p, *todo[0], dataset) if sum(images.values()) else None
    progress = Progress(sum(images.values()), rate=rate)
    log.info(
        "%d run%s to do, %s training images x %s epochs in all%s, on %s",
        *(len(todo), "s" * (len(todo) > 1), f"{len(dataset.train):,}", f"{sum(epochs(p, row) for row, _ in todo):,}"),
        "" if rate is None else f", about {duration(progress.left)} by a few timed steps",
        devices.describe(devices.choose_device(p.device)),
    )
    for number, (row, seed) in enumerate(todo, 1):
        with _alone(p, row, seed) as unfinished, devices.memory_kept():
            progress.run(f"run {number} of {len(todo)}: {row.label}, seed {seed}")
            if unfinished:
                shared = {name: overlap[name] for name in row.sources if name in overlap}
                run_row(p, row, seed, dataset, shared, progress)
            else:
                progress.advance(images[row, seed])
    progress.close()


@contextlib.contextmanager
def _alone(p: Parameters, row: Row, seed: int) -> Iterator[bool]:
    """Wait for another process that computes this run, if there is one; yield whether it is left to do."""
    where, what = folder(p, row, seed), f"{row.label}, seed {seed}"
    with files.locked(where / LOCK, what) as alone:
        unfinished = not finished(p, row, seed)
        if not unfinished:
            log.info("%s: finished by another process", what)
        if alone:
            files.remove_leftovers(where)
            files.remove_leftovers(where / MODEL.parent)
        if alone and not unfinished:
            clear(where)
        yield unfinished


def done(p: Parameters) -> list[Record]:
    """The finished runs of those that the parameters ask for."""
    return [record for row in rows(p) for seed in p.seeds if (record := finished(p, row, seed))]


def _share(p: Parameters, seed: int, replace: bool) -> None:
    """Copy the trained network, which lies beside the record of a seed's only run, to where ``save_weights`` says."""
    path = folder(p, rows(p)[0], seed) / MODEL
    target = home() / Path(of_seed(p.save_weights, seed)).expanduser()
    if path.is_file() and (replace or not target.is_file()):
        for origin, copy in ((inputs.images_list(path), inputs.images_list(target)), (path, target)):
            with files.replacing(copy) as temporary:
                shutil.copyfile(origin, temporary)
    elif not target.is_file():
        log.warning("save_weights: this finished run's network is not here; to train again, move its record away")
