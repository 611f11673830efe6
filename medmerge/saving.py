"""Backbones, classifiers and merges as files, from which they are built again without running code."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from medmerge import files, weightfiles
from medmerge.backbones import MERGE, NAME, TRANSFORMS, Classifier, backbone, has_plain_head, patch_size
from medmerge.merge import KernelMerge, zeros_like
from medmerge.weightfiles import CheckpointError

_OPTIONS = ("granularity", "batchnorm", "normalisation")
_OF_A_SOURCE = re.compile(r"\.(?:source_\d+|original)$")
_WEIGHTS = re.compile(r"\.parametrizations\.(?:(in_proj)_)?(weight|bias)\.0\.w$")


def save_backbone(model: nn.Module, path: str | Path, name: str, **metadata: str) -> None:
    """Write the state dict of ``model`` as safetensors, in one atomic step.

    Args:
        name: the architecture, noted in the file's header and compared when the file is loaded.
        metadata: further strings to keep in the header.
    """
    _write(model, model.state_dict(), path, name, metadata)


def save(model: nn.Module, path: str | Path, **metadata: str) -> None:
    """Write a backbone, a classifier or a merge as safetensors, in one atomic step, for :func:`load`.

    A classifier's names are torchvision's: ``torchvision.models.get_model(name, num_classes=K)`` (of a ViT with its
    ``image_size``) loads the file strictly and computes the same function. Where it cannot
    (:func:`~medmerge.backbones.has_plain_head`), and of a merge, they are the module's own. A merge's file holds its
    sources.

    Args:
        model: made of :func:`~medmerge.backbones.backbone`: one, or a :class:`~medmerge.merge.KernelMerge` of several,
            or either in a :class:`~medmerge.backbones.Classifier`.
        metadata: strings to keep in the header.

    Raises:
        TypeError: it is anything else, which :func:`load` could not build again.
    """
    network: Any = model.backbone if isinstance(model, Classifier) else model
    merge = isinstance(network, KernelMerge)
    made = [one for one in (network.modules() if merge else [network]) if hasattr(one, "architecture")]
    if not made:
        raise TypeError(
            f"a {type(network).__name__} that medmerge.backbone did not make cannot be built again by load(); "
            "torch.save(model.state_dict(), path) keeps its values"
        )
    state, name = model.state_dict(), made[0].architecture
    if merge:
        options = {option: getattr(network, option) for option in _OPTIONS}
        metadata[MERGE] = json.dumps({"sources": network.num_sources, **options})
    elif network is not model and has_plain_head(name):
        own, head = "backbone.", network.head_key
        state = {key.removeprefix(own) if key.startswith(own) else f"{head}{key[4:]}": state[key] for key in state}
    _write(made[0], state, path, name, metadata)


def load(path: str | Path) -> nn.Module:
    """What :func:`save` or :func:`save_backbone` wrote, in eval mode: the same tensors. Runs no code from the file.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it is damaged, or somebody else's.
    """
    state, noted = weightfiles.read_state(path), weightfiles.header(path)
    if NAME not in noted:
        raise CheckpointError(f"{path} is not of medmerge.save: medmerge.backbone(name, weights=file) takes others'")
    try:
        model, state = _build(noted, state)
        filled = model.state_dict()  # carries the versions of its layers, without which MNASNet takes none
        if filled.keys() != state.keys():
            raise KeyError(*sorted(filled.keys() ^ state.keys())[:3])
        filled.update(state)
        model.load_state_dict(filled, assign=True)  # with the types that they were saved in
    except (AttributeError, TypeError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is not what its header says ({reason}); write it again") from error
    return model.eval()


def save_learnt(merging: Classifier, path: Path) -> None:
    """Write what a merge learnt, its merging weights, normalisation and head, without its sources' kernels."""
    learnt = _learnt(merging)
    state = {learnt[name]: t.cpu().contiguous() for name, t in merging.state_dict().items() if name in learnt}
    files.write(path, safetensors.torch.save(state))


def load_learnt(merging: Classifier, path: Path) -> None:
    """Put what :func:`save_learnt` wrote into a classifier with a merge of the same sources.

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


def _write(model: nn.Module, state: Mapping[str, Tensor], path: str | Path, name: str, metadata: dict) -> None:
    transforms = {TRANSFORMS: "true"} if getattr(model, "transform_input", False) else {}
    weightfiles.write(state, path, {NAME: name, **transforms, **metadata})


def _build(noted: Mapping[str, str], state: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    """What a header tells of, with other values, and the state under the names that it has in it."""
    name, options = noted[NAME], json.loads(noted.get(MERGE, "null"))
    with torch.random.fork_rng(devices=[]):
        network: Any = backbone(name, "random", _image_size(name, state))
        head = f"{network.head_key}."
        if hasattr(network, "transform_input"):
            network.transform_input = TRANSFORMS in noted
        if options:
            others = [zeros_like(network)] * (options.pop("sources") - 1)  # of equal ones, a merge would say so
            network = KernelMerge([network, *others], **options)
        elif has_plain_head(name) and f"{head}bias" in state:
            own = {key: f"head.{key[len(head) :]}" for key in state if key.startswith(head)}
            state = {own.get(key, f"backbone.{key}"): value for key, value in state.items()}
        return Classifier(network, len(state["head.bias"])) if "head.bias" in state else network, state


def _image_size(name: str, state: Mapping[str, Tensor]) -> int | None:
    """The side of the images that a ViT was built for, from its position embeddings."""
    patch, found = patch_size(name), [value for key, value in state.items() if "encoder.pos_embedding" in key]
    return math.isqrt(found[0].shape[1] - 1) * patch if patch and found else None
