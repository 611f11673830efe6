"""The page of a parameter file: which notebook makes it, what it shows, where it goes, whether it is current.

A parameter file names its notebook: ``notebook: pair`` is ``notebooks/pair.ipynb`` of its project. What sets a kind of
page apart stands in :data:`KINDS` alone.
"""

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from medmerge.study import definitions, records
from medmerge.study.params import FROM_RECORDS, ParameterError, Parameters, assigned_values, load_yaml
from medmerge.study.places import home, short

State = Mapping[str, Path | None]
"""What a page asks for by name, each with where its record lies, or None where there is none."""


@dataclass(frozen=True)
class Kind:
    """A kind of page.

    Attributes:
        module: of ``medmerge.study``, which measures what the page shows beside runs: ``state(p)`` gives its
            :data:`State`, ``check(p)`` raises where something is missing that it needs; empty where there are runs
            alone.
        shown: from parameters to further files that the page is drawn from.
        runs: whether it asks for the runs of its rows and seeds.
        takes: names of the parameters that mean something to it; None for all.
    """

    module: str = ""
    shown: Callable[[Parameters], list[Path]] = lambda p: []
    runs: bool = True
    takes: tuple[str, ...] | None = None

    def measured(self, p: Parameters) -> State:
        """What the page shows beside runs.

        Raises:
            RecordError: a record is damaged, or was measured with other parameters.
        """
        return self._module().state(p) if self.module else {}

    def check(self, p: Parameters) -> None:
        """Refuse what cannot be measured here.

        Raises:
            ParameterError, RecordError: with what is missing or in the way.
        """
        if self.module:
            self._module().check(p)

    def _module(self):
        return importlib.import_module(f"medmerge.study.{self.module}")  # when asked: most of them load PyTorch


def _sheets(p: Parameters) -> list[Path]:
    return sorted((home() / p.results / p.track / "data").glob("*.json"))


def _timings(p: Parameters) -> list[Path]:
    return sorted([*(home() / "benchmarks").glob("*.json"), *(home() / "params" / "paper").glob("*.yaml")])


def _of_studies(p: Parameters) -> list[Path]:
    """The files of every run of the page's studies."""
    track = home() / p.results / p.track
    return [file for one in p.studies for run in sorted(track.glob(records.pattern(one))) for file in _files(run)]


_ALL = ("notebook", "track", "title", "note", "results")
_NETWORK = ("backbone", "image_size", "device", "precision")
KINDS = {
    "data": Kind(
        "datasheet", _sheets, False, (*_ALL, *_NETWORK, "datasets", "digests", "seeds", "base_data", "base_weights")
    ),
    "weights": Kind("definitions", _of_studies, False, (*_ALL, "studies")),
    "features": Kind("features", _of_studies, False, (*_ALL, "studies")),
    **dict.fromkeys(FROM_RECORDS, Kind("", _of_studies, False, (*_ALL, "studies"))),
    "status": Kind(runs=False, takes=_ALL),
    "speed": Kind(shown=_timings, runs=False, takes=_ALL),
    "cost": Kind("cost", runs=False, takes=(*_ALL, *_NETWORK, "cost_repeats", "batch_size", "lp_epochs", "ft_epochs")),
    "premise": Kind("premise"),
}
"""By notebook those that differ from a page of runs, which all others are."""


def kind(p: Parameters) -> Kind:
    """What the page of a parameter file asks for."""
    return KINDS.get(p.notebook, Kind())


def notebook(p: Parameters) -> Path | None:
    """The notebook of a parameter file; None where it names none."""
    return home() / "notebooks" / f"{p.notebook}.ipynb" if p.notebook else None


def defaults(notebook: Path) -> dict[str, object]:
    """The names that a notebook's parameters cell sets, and their values.

    Raises:
        ParameterError: no such notebook, or none that takes parameters.
    """
    if not notebook.is_file():
        there = ", ".join(sorted(path.name for path in (home() / "notebooks").glob("*.ipynb")))
        raise ParameterError(f"no notebook at {notebook}; in {home() / 'notebooks'} there are {there or 'none'}")
    tagged = [cell for cell in _cells(notebook) if "parameters" in cell["metadata"].get("tags", [])]
    try:
        (cell,) = tagged
        return assigned_values(cell["source"])
    except (ValueError, SyntaxError) as error:
        needed = "papermill needs one cell tagged `parameters`, of `name = value` lines"
        raise ParameterError(f"{notebook}: {needed} ({error})") from error


def parameters(params: Path, notebook: Path | None = None) -> Parameters:
    """The parameters in a file, over the defaults of the notebook that takes them.

    Args:
        notebook: any; by default the one that the file names, if it is there.

    Raises:
        ParameterError: with a line for each problem, or the file is for another notebook.
    """
    given = load_yaml(params)
    named = str(given.get("notebook", ""))
    if named and notebook and named != notebook.stem:
        raise ParameterError(f"{params} is for the notebook {named}, not for {notebook.stem}")
    place = notebook or home() / "notebooks" / f"{named}.ipynb"
    own = defaults(place) if notebook or place.is_file() else {}
    name = notebook.stem if notebook else named
    return Parameters.parse({**own, "notebook": name, **given}, str(params), KINDS.get(name, Kind()).takes)


def output(p: Parameters, params: Path) -> Path:
    """Where the page goes: ``results/<track>/<name of the file>.ipynb``."""
    return home() / p.results / p.track / f"{params.stem}.ipynb"


def shown(p: Parameters) -> list[Path]:
    """The files of records that a page is drawn from, as far as they are there."""
    one = kind(p)
    found = one.shown(p)
    if one.runs:
        runs = [definitions.folder(p, row, seed) for row in definitions.rows(p) for seed in p.seeds]
        found = [file for run in runs for file in _files(run)]
    found += [path for path in one.measured(p).values() if path]
    return [path for path in dict.fromkeys(found) if path.is_file()]


def _files(run: Path) -> list[Path]:
    """The files of a finished run's record, which its networks are no part of."""
    kinds = (".json", ".csv", ".gz", ".safetensors")
    return sorted(path for path in run.glob("[!.]*") if path.suffix in kinds) if (run / "run.json").is_file() else []


def origin(params: Path, notebook: Path, p: Parameters) -> dict[str, str]:
    """What a page notes of where it comes from: parameter file, its study, its SHA-256, SHA-256 of all that it shows.

    Nothing of when and where it was drawn: drawn again from the same records, it is the same file.
    """
    return {
        **whose(params, p),
        "sha256": hashlib.sha256(params.read_bytes()).hexdigest(),
        "inputs": _digest(notebook, p),
    }


def whose(params: Path, p: Parameters) -> dict[str, str]:
    """Which parameter file and study a page belongs to: no other may write it."""
    return {"parameters": short(params), "study": p.pair if kind(p).runs else ""}


def noted(page: Path) -> dict[str, str]:
    """What a page notes of its origin; nothing where there is no page, or another's notebook."""
    try:
        return json.loads(page.read_bytes())["metadata"]["medmerge"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def current(params: Path, notebook: Path, p: Parameters) -> bool:
    """Whether the page is there and was drawn from this very file, notebook and records."""
    return noted(output(p, params)) == origin(params, notebook, p)


def _cells(notebook: Path) -> list[dict]:
    """Cells of a notebook of format 4, sources as one text. nbformat would take seconds to import for it.

    Raises:
        ParameterError: it is none.
    """
    try:
        content = json.loads(notebook.read_text(encoding="utf-8"))
        return [{**cell, "source": "".join(cell["source"]), "metadata": cell["metadata"]} for cell in content["cells"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ParameterError(f"{notebook} is not a notebook of format 4: {error!r}") from error


def _digest(notebook: Path, p: Parameters) -> str:
    """SHA-256 over a notebook's cells, whatever their ids, and the bytes of the records that it shows."""
    cells = [[cell["cell_type"], cell["source"], cell["metadata"]] for cell in _cells(notebook)]
    total = hashlib.sha256(json.dumps(cells, sort_keys=True).encode())
    for path in shown(p):
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def glue(name: str, value: object) -> None:
    """Keep a value in this notebook for the book's prose, which asks for it by name; nothing is shown.

    In the form of ``myst_nb.glue``, whose package comes with the book's and not with this one.
    """
    from IPython.display import display

    kept = {"mime_prefix": "application/papermill.record/", "name": name}
    display({f"{kept['mime_prefix']}text/plain": repr(value)}, raw=True, metadata={"scrapbook": kept})
