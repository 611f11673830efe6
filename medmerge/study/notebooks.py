"""The page of a parameter file: which notebook makes it, with which parameters, where it goes, whether it is current.

A parameter file names its notebook in the comment above its parameters, as the command that runs it::

    #   medmerge run notebooks/pair.ipynb params/demo/pair.yaml
"""

import hashlib
import json
import re
from pathlib import Path

from medmerge.study import costsheets, definitions, premisesheets
from medmerge.study.inputs import home
from medmerge.study.params import ParameterError, Parameters, assigned_values, load_yaml

_COMMAND = re.compile(r"^#\s+medmerge run (\S+\.ipynb)\s+(\S+\.yaml)", re.M)


def notebook(params: Path) -> Path | None:
    """The notebook that the comment in a parameter file names for it; None where it names none.

    Raises:
        ParameterError: it names two.
    """
    try:
        commands = _COMMAND.findall(params.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):  # whoever reads its parameters says what is wrong
        return None
    named = sorted({given for given, file in commands if Path(file).name == params.name})
    if len(named) > 1:
        raise ParameterError(f"{params}: its comment names {' and '.join(named)}; a file is for one notebook")
    return home() / named[0] if named else None


def defaults(notebook: Path) -> dict[str, object]:
    """The names that a notebook's parameters cell sets, and their values.

    Raises:
        ParameterError: no such notebook, or none that takes parameters.
    """
    if not notebook.is_file():
        there = ", ".join(map(str, Path().glob("notebooks/*.ipynb")))
        raise ParameterError(f"no notebook at {notebook}; there are {there}")
    tagged = [cell for cell in _cells(notebook) if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ParameterError(f"{notebook} has {len(tagged)} cells tagged `parameters`; papermill needs exactly one")
    try:
        return assigned_values(tagged[0]["source"])
    except (ValueError, SyntaxError) as error:
        raise ParameterError(
            f"{notebook}: the cell tagged `parameters` must hold `name = value` lines: {error}"
        ) from error


def parameters(params: Path, notebook: Path | None = None) -> Parameters:
    """The parameters in a file, over the defaults of the notebook that takes them.

    Raises:
        ParameterError: with a line for each problem.
    """
    known = defaults(notebook) if notebook else None
    return Parameters.parse({**(known or {}), **load_yaml(params)}, str(params), known)


def output(p: Parameters, params: Path) -> Path:
    """Where the page goes: ``results/<track>/<name of the file>.ipynb``."""
    return home() / p.results / p.track / f"{params.stem}.ipynb"


def shown(p: Parameters) -> list[Path]:
    """The files of records that a page is drawn from, as far as they are there."""
    track = home() / p.results / p.track
    if p.datasets:
        return sorted((track / "data").glob("*.json"))
    if p.cost_repeats:
        found = [costsheets.path(p)]
    elif p.studies:
        depth = {one: "*/seed*" if "/" in one else "*/*/seed*" for one in p.studies}
        found = [file for one in p.studies for run in sorted((track / one).glob(depth[one])) for file in _files(run)]
    else:
        runs = [definitions.folder(p, row, seed) for row in definitions.rows(p) for seed in p.seeds]
        found = [file for run in runs for file in _files(run)]
        found += [premisesheets.path(p) / "premise.json"] if p.premise else []
    return [path for path in found if path.is_file()]


def _files(run: Path) -> list[Path]:
    """The files of a finished run's record, which its networks are no part of."""
    kinds = (".json", ".csv", ".gz", ".safetensors")
    return sorted(path for path in run.glob("[!.]*") if path.suffix in kinds) if (run / "run.json").is_file() else []


def origin(params: Path, notebook: Path, p: Parameters) -> dict[str, str]:
    """What a page notes of where it comes from: parameter file, its SHA-256, SHA-256 of all that it shows.

    Nothing of when and where it was drawn: drawn again from the same records, it is the same file.
    """
    return {
        "parameters": params.name,
        "sha256": hashlib.sha256(params.read_bytes()).hexdigest(),
        "inputs": _digest(notebook, p),
    }


def current(params: Path, notebook: Path, p: Parameters) -> bool:
    """Whether the page is there and was drawn from this very file, notebook and records."""
    try:
        noted = json.loads(output(p, params).read_bytes())["metadata"]["medmerge"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return noted == origin(params, notebook, p)


def _cells(notebook: Path) -> list[dict]:
    """Cells of a notebook of format 4, sources as one text. nbformat would take seconds to import for it.

    Raises:
        ParameterError: it is none.
    """
    try:
        content = json.loads(notebook.read_text(encoding="utf-8"))
        if content["nbformat"] != 4:
            raise ValueError(f"its format is {content['nbformat']!r}, not 4")
        wanted = ("cell_type", "metadata", "source")
        cells = [{name: cell[name] for name in wanted} for cell in content["cells"]]
        return [{**cell, "source": "".join(cell["source"])} for cell in cells]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ParameterError(f"{notebook} is not a notebook: {error}") from error


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
