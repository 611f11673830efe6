"""The merged runs that a page of ``studies`` shows."""

from pathlib import Path

from medmerge.study import records
from medmerge.study.params import ParameterError, Parameters
from medmerge.study.places import home
from medmerge.study.records import Record, RecordError


def check(p: Parameters) -> list[Record]:
    """The merged runs of the page's studies.

    Raises:
        ParameterError: it names no study.
        RecordError: one of its studies has no such run.
    """
    if not p.studies:
        raise ParameterError("studies: name the studies that the page shows, such as [skin, chest/mobilenet_v2]")
    return records.merged(home() / p.results / p.track, p.studies)


def state(p: Parameters) -> dict[str, Path | None]:
    """The same by name, each with its folder; a study that has none by its own name."""
    found: dict[str, Path | None] = {}
    for study in p.studies:
        try:
            runs = check(p.model_copy(update={"studies": [study]}))
        except RecordError:
            runs = []
        found |= {"/".join(run.folder.parts[-4:]): run.folder for run in runs} or {study: None}
    return found
