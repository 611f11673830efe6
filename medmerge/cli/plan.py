"""The graph of a study: every run and page that parameter files ask for, and what must be finished before each.

Nothing is listed twice. Where one file's ``save_weights`` is another's ``base_weights``, ``source_weights`` or one of
its ``more_weights``, the runs that start from these weights come after the run that makes them. A row that combines the
networks of other rows comes after those. A page comes after the runs that it shows: those of its own file, or, with
``studies``, those of every file of these studies.
"""

import functools
import graphlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from medmerge import backbones
from medmerge.cli import about
from medmerge.study import definitions, inputs, notebooks
from medmerge.study import run as study
from medmerge.study.params import ParameterError, Parameters, of_seed
from medmerge.study.places import home


@dataclass(frozen=True)
class Run:
    """A run: one row and seed of a parameter file.

    Attributes:
        file: the parameter file; where several ask for the same run, the first of those that vary nothing.
        needs: folders of the runs that must be finished before.
    """

    file: Path
    p: Parameters = field(repr=False)
    row: definitions.Row
    seed: int
    needs: tuple[Path, ...] = ()

    @property
    def folder(self) -> Path:
        """Where its record is, or will be."""
        return definitions.folder(self.p, self.row, self.seed)

    @functools.cached_property
    def finished(self) -> bool:
        """Whether its record is there, as far as it was when first asked.

        Raises:
            RecordError: as :func:`medmerge.study.run.finished`.
        """
        return study.finished(self.p, self.row, self.seed) is not None


@dataclass(frozen=True)
class Page:
    """The executed notebook of a parameter file.

    Attributes:
        path: where it goes.
        needs: folders of the runs that must be finished before.
    """

    file: Path
    p: Parameters = field(repr=False)
    notebook: Path
    path: Path
    needs: tuple[Path, ...] = ()

    @functools.cached_property
    def current(self) -> bool:
        """Whether it is there and shows what it should, as far as it did when first asked."""
        return notebooks.current(self.file, self.notebook, self.p) and not self.measures

    @functools.cached_property
    def measures(self) -> bool:
        """Whether its notebook has more to do than to draw, such as to time steps or to measure datasets."""
        return None in notebooks.kind(self.p).measured(self.p).values()


@dataclass(frozen=True)
class Plan:
    """Runs and pages, each after what it needs.

    Attributes:
        files: parameters by file, each after those that it needs.
        runs: by folder.
        pages: by where they go.
        unread: what is wrong with files that nobody asked for, by file.
    """

    files: Mapping[Path, Parameters]
    runs: Mapping[Path, Run]
    pages: Mapping[Path, Page]
    unread: Mapping[Path, str] = field(default_factory=dict)

    def drawable(self) -> list[Page]:
        """The pages that can be drawn from the records that are here, whether they were drawn before or not."""
        finished = {folder for folder, run in self.runs.items() if run.finished}
        return [
            page
            for page in self.pages.values()
            if (page.p.studies or finished.issuperset(page.needs)) and not page.measures
        ]

    def missing(self, file: Path) -> list[str]:
        """A line for each thing that what is left of a file's own runs and page needs, and that nothing here will make.

        Raises:
            RecordError: the record of one of its runs is damaged, or of another definition.
        """
        p, makers = self.files[file], _makers(self.files)
        todo = [(run.row, run.seed) for run in self.runs.values() if run.file == file and not run.finished]
        given = [(name, _place(place)) for seed in p.seeds for name, place in inputs.weights(p, seed).items()]
        coming = {name for name, place in given if place in makers and not makers[place].finished}
        try:
            if todo:
                study.check(p, todo, coming)
            for page in self.pages.values():
                if page.file == file and page.measures and not coming and not p.studies:
                    notebooks.kind(p).check(p)
        except ParameterError as error:
            return str(error).split("\n")
        return []


def command(run: Run) -> list[str]:
    """The words of the command that computes a run."""
    return ["medmerge", "train", str(run.file), "--row", run.row.name, "--seed", str(run.seed)]


def load(more: Sequence[Path] = ()) -> Plan:
    """The plan of all parameter files of the project, ``params/<track>/<name>.yaml``.

    Args:
        more: further files, or some of these: what is wrong with them is an error, and noted of the others.

    Raises:
        ParameterError: files that no run could start from, need each other, save the same weights, or ask for different
            runs in one folder.
    """
    asked = {path.resolve(): path for path in more}
    paths = [asked.pop(path.resolve(), path) for path in map(_short, sorted(home().glob("params/*/*.yaml")))]
    given, read, unread = {path.resolve() for path in more}, {}, {}
    for path in [*paths, *asked.values()]:
        try:
            p = notebooks.parameters(path)
            if p.notebook:
                notebooks.defaults(notebooks.notebook(p))
            if notebooks.kind(p).runs and (problems := study.impossible(p)):
                raise ParameterError(f"{path}: " + "\n".join(problems))
            read[path] = p
        except ParameterError as error:
            unread[path] = about(path, error)
    if problems := [problem for path, problem in unread.items() if path.resolve() in given]:
        raise ParameterError("\n".join(problems))
    files = _sorted(read)
    runs = _runs(files)
    pages: dict[Path, Page] = {}
    for path, p in files.items():
        if p.notebook:
            page = Page(path, p, notebooks.notebook(p), notebooks.output(p, path), _shown(path, files))
            if (other := pages.setdefault(page.path, page)) is not page:
                raise ParameterError(f"{other.file} and {path} are both drawn as {page.path}; rename one of them")
    return Plan(files, runs, pages, unread)


def _short(path: Path) -> Path:
    """A path from the working folder where it lies in it: for people, and the same on every machine."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _asked(p: Parameters) -> list[tuple[definitions.Row, int]]:
    """The rows and seeds of the runs that a file asks for."""
    return [(row, seed) for row in definitions.rows(p) for seed in p.seeds] if notebooks.kind(p).runs else []


def _place(weights: str) -> Path | None:
    """The file that a ``save_weights`` or ``base_weights`` names, whether it is there or not; None for a name."""
    if not backbones.is_path(weights):
        return None
    return (home() / Path(os.path.expandvars(weights)).expanduser()).resolve()


def _makers(files: Mapping[Path, Parameters]) -> dict[Path, Run]:
    """The run that saves each weights."""
    makers: dict[Path, Run] = {}
    for path, p in files.items():
        for row, seed in _asked(p) if p.save_weights else ():
            run, place = Run(path, p, row, seed), _place(of_seed(p.save_weights, seed))
            if (other := makers.setdefault(place, run).file) != path:
                raise ParameterError(f"save_weights: {other} and {path} both save {p.save_weights}; name another")
    return makers


def _sorted(files: Mapping[Path, Parameters]) -> dict[Path, Parameters]:
    """The files, each after those whose weights or studies it needs, and those that vary something last."""
    makers = _makers(files)
    graph = graphlib.TopologicalSorter()
    for path, p in sorted(files.items(), key=lambda item: (bool(item[1].vary), item[0])):
        weights = [_place(given) for seed in p.seeds for given in inputs.weights(p, seed).values()]
        graph.add(path, *(makers[place].file for place in weights if place in makers), *_studied(p, files))
    try:
        return {path: files[path] for path in graph.static_order()}
    except graphlib.CycleError as error:
        raise ParameterError(f"each needs the weights of the next: {', '.join(map(str, error.args[1]))}") from None


def _studied(p: Parameters, files: Mapping[Path, Parameters]) -> list[Path]:
    """The files whose runs belong to the studies that a page shows."""
    wanted = [(p.results, p.track, *one.split("/")) for one in p.studies]
    ids = {path: (q.results, q.track, q.pair, q.backbone) for path, q in files.items() if _asked(q)}
    return [path for path, one in ids.items() if any(all(map(fnmatchcase, one, study)) for study in wanted)]


def _runs(files: Mapping[Path, Parameters]) -> dict[Path, Run]:
    """Every run once, each after those that it needs."""
    makers, runs, needs = _makers(files), {}, {}
    for path, p in files.items():
        for row, seed in _asked(p):
            run = Run(path, p, row, seed)
            _same(runs.setdefault(run.folder, run), run)
    for folder, run in runs.items():
        weights = [_place(inputs.weights(run.p, run.seed)[name]) for name in run.row.sources]
        parts = [definitions.folder(run.p, part, run.seed) for part in definitions.parts(run.row)]
        before = [makers[place].folder for place in weights if place in makers] + [one for one in parts if one in runs]
        needs[folder] = tuple(dict.fromkeys(before))
    order = graphlib.TopologicalSorter(needs).static_order()
    return {folder: replace(runs[folder], needs=needs[folder]) for folder in order}


def _same(first: Run, other: Run) -> None:
    """Raise ParameterError if two files ask for different runs in one folder."""
    one, two = (definitions.definition(run.p, run.row, run.seed) for run in (first, other))
    if definitions.definition_hash(one) != definitions.definition_hash(two):
        raise ParameterError(
            f"{first.file} and {other.file} ask for different runs in {first.folder.relative_to(home())}: "
            f"{definitions.difference(one, two)}. Give one of them another `pair` name"
        )


def _shown(path: Path, files: Mapping[Path, Parameters]) -> tuple[Path, ...]:
    """Folders of the runs that a file's page needs."""
    p = files[path]
    if p.datasets:
        maker = _makers(files).get(_place(p.base_weights))
        return (maker.folder,) if maker else ()
    of = [files[file] for file in _studied(p, files)] if p.studies else [p]
    return tuple(dict.fromkeys(definitions.folder(q, *one) for q in of for one in _asked(q)))
