"""Where things lie: the project, its data, and the weights of every source. Nothing here needs PyTorch."""

import os
from pathlib import Path

from medmerge.study.params import Parameters, of_seed


def weights(p: Parameters, seed: int | None = None) -> dict[str, str]:
    """The weights of every source by its name, in order: b, then c and further ones where they are given.

    Args:
        seed: fills in :data:`~medmerge.study.params.SEED`; None leaves it.
    """
    second = {p.source_data: p.source_weights} if p.source_data else {}
    found = {p.base_data: p.base_weights, **second, **dict(zip(p.more_data, p.more_weights, strict=True))}
    return found if seed is None else {name: of_seed(given, seed) for name, given in found.items()}


def home(start: Path | None = None) -> Path:
    """The project's folder: the nearest one upwards that holds ``_config.yml``, else the one to start from.

    Relative paths of a parameter file count from its project, whatever the working folder: commands start from the
    file's folder, and work in its project; notebooks run there.

    Args:
        start: a folder; the working folder by default.
    """
    here = Path.cwd() if start is None else start
    return next((path for path in (here, *here.parents) if (path / "_config.yml").is_file()), here)


def resolve(path: str) -> Path:
    """A path of the parameters: absolute, or from the project's folder, or from ``$MEDMERGE_DATA``."""
    places = _places(path)
    return next((place for place in places if place.exists()), places[-1])


def _places(path: str) -> list[Path]:
    """Where a path of the parameters is looked for, in this order."""
    given = Path(os.path.expandvars(path)).expanduser()
    data_folder = os.environ.get("MEDMERGE_DATA")
    return [home() / given, *([Path(data_folder) / given] if data_folder else [])]


def nothing_at(path: str, what: str = "") -> str:
    """That a path of the parameters leads nowhere, with the places that were looked at."""
    looked = " or ".join(map(str, dict.fromkeys(_places(path))))
    hint = "" if os.environ.get("MEDMERGE_DATA") else ", and $MEDMERGE_DATA is not set"
    return f"no {f'{what} ' if what else ''}{path}: there is no {looked}{hint}"


def short(path: Path) -> str:
    """A path from the project's folder, else its name: what is published names no place of the machine that drew it."""
    place, whole = home().resolve(), path.resolve()
    return whole.relative_to(place).as_posix() if whole.is_relative_to(place) else path.name
