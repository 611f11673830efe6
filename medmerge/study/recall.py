"""The finished network of a run, for another run of its study that combines networks."""

import logging
from collections.abc import Mapping
from pathlib import Path

from medmerge.backbones import CheckpointError, Classifier, state_sha256
from medmerge.saving import load
from medmerge.study import records
from medmerge.study.records import RecordError

log = logging.getLogger(__name__)


def network(
    folder: Path, model: Path, definition: str, images: str, sources: Mapping[str, str]
) -> tuple[Classifier, dict] | None:
    """The network that a run ended with and the run's cost, if the run is finished and was what is wanted.

    Args:
        folder: the run's.
        model: its network's file, in that folder, where the run was computed.
        definition: hash of the wanted run's definition.
        images: fingerprint of its images, labels and split.
        sources: fingerprint of each of its sources.

    Returns:
        None if there is no such run or no network, if any of these differs, or if the file is damaged or of another
        run than the record: then the network must be trained.
    """
    try:
        run = records.read(folder).run
        found = run["hash"], run["data"]["fingerprint"], run["sources"]
        if found != (definition, images, dict(sources)):
            return None
        classifier = load(folder / model)
        if not isinstance(classifier, Classifier):
            raise CheckpointError(f"{folder / model} holds no head")
    except (FileNotFoundError, RecordError):
        return None
    except CheckpointError as error:
        log.warning("%s: training anew", error)
        return None
    if run.get("network", "") not in ("", state_sha256(classifier)):
        log.warning("%s is not the network that the record beside it tells of: training anew", folder / model)
        return None
    log.info("recalled the network of %s, seed %s", records.Record(folder, run).label, run["seed"])
    return classifier, run["cost"]
