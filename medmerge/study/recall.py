"""What lies beside the record of a run where it was computed: its network, and what its linear probe learnt."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch

from medmerge import files
from medmerge.backbones import CheckpointError, Classifier, state_sha256
from medmerge.saving import load
from medmerge.study import records
from medmerge.study.records import RecordError

log = logging.getLogger(__name__)

_OF_A_SOURCE = re.compile(r"\.(?:source_\d+|original)$")
_WEIGHTS = re.compile(r"\.parametrizations\.(?:(in_proj)_)?(weight|bias)\.0\.w$")


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


def save_merge(merging: Classifier, path: Path) -> None:
    """Write what a merge learnt: merging weights, normalisation and head, without the sources' kernels."""
    learnt = _learnt(merging)
    state = {learnt[name]: t.cpu().contiguous() for name, t in merging.state_dict().items() if name in learnt}
    files.write(path, safetensors.torch.save(state))


def load_merge(merging: Classifier, path: Path) -> None:
    """Put what :func:`save_merge` wrote into a classifier with a merge of the same sources.

    Raises:
        ValueError: the file is of another network.
    """
    state, learnt, own = safetensors.torch.load_file(path), _learnt(merging), merging.state_dict()
    if {kept: own[name].shape for name, kept in learnt.items()} != {kept: t.shape for kept, t in state.items()}:
        raise ValueError(f"{path} is of another network")
    merging.load_state_dict({name: state[kept] for name, kept in learnt.items()}, strict=False)


def _learnt(merging: Classifier) -> dict[str, str]:
    """Names in the state dict of what a merge learns, and in files: ``<layer>.w``, ``<layer>.w_bias``, others as is."""

    def kept(found: re.Match) -> str:
        return (".in_proj" if found[1] else "") + (".w" if found[2] == "weight" else ".w_bias")

    return {name: _WEIGHTS.sub(kept, name) for name in merging.state_dict() if not _OF_A_SOURCE.search(name)}
