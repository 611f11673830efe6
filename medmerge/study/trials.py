"""What if: a merged network as its linear probe left it, with other merging weights, on the validation images.

Needs what git does not keep: both sources, the target's images, and what the probe learnt (beside the record). Test
images are never read.
"""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import safetensors.torch

from medmerge import data, files
from medmerge.backbones import Classifier
from medmerge.merge import KernelMerge
from medmerge.stats import evaluation
from medmerge.training import Protocol, Task, predict

_OF_A_SOURCE = re.compile(r"\.(?:source_\d+|original)$")
_WEIGHTS = re.compile(r"\.parametrizations\.(?:(in_proj)_)?(weight|bias)\.0\.w$")


def save(merging: Classifier, path: Path) -> None:
    """Write what a merge learnt: merging weights, normalisation and head, without the sources' kernels."""
    learnt = _learnt(merging)
    state = {learnt[name]: t.cpu().contiguous() for name, t in merging.state_dict().items() if name in learnt}
    files.write(path, safetensors.torch.save(state))


def load(merging: Classifier, path: Path) -> None:
    """Put what :func:`save` wrote into a classifier with a merge of the same sources.

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


class Trial:
    """Validation scores of one merge with the merging weights of a layer replaced. Called by the explorer.

    Args:
        merging: the classifier, whose backbone is a :class:`~medmerge.merge.KernelMerge`. Its weights are put back
            after every trial.
        val: the validation images.
        protocol: batch size, device and precision.

    Attributes:
        metric: what the scores are, in words.
    """

    def __init__(self, merging: Classifier, val: data.Samples, protocol: Protocol):
        if not isinstance(merging.backbone, KernelMerge):
            raise TypeError(f"the backbone is a {type(merging.backbone).__name__}, not a KernelMerge")
        self.merging, self.val = merging, val
        self.task = Task(val, val, merging.head.out_features, protocol=protocol)
        self.metric = "macro AUROC" if self.task.multilabel else "macro F1"
        self._scores: dict[tuple[str, float | None], float] = {}

    @property
    def images(self) -> int:
        """Number of validation images."""
        return len(self.val)

    def __call__(self, layer: str, w: float | None) -> float:
        """The score with ``w`` in all kernels of ``layer``, or as learnt (None); computed once.

        Raises:
            KeyError: there is no such layer.
        """
        if w is None:
            layer = ""
        if (layer, w) not in self._scores:
            merge = self.merging.backbone
            learnt = copy.deepcopy([parameter.data for parameter in merge.parameters()])
            try:
                if w is not None:
                    merge.set_kernel_weights({layer: w})
                self._scores[layer, w] = self._score()
            finally:
                for parameter, value in zip(merge.parameters(), learnt, strict=True):
                    parameter.data.copy_(value)
        return self._scores[layer, w]

    def _score(self) -> float:
        probabilities = predict(self.merging, self.val, self.task)
        classes = [str(k) for k in range(self.task.num_classes)]
        scores = evaluation.metrics(self.val.labels.numpy(), probabilities, classes)
        return scores["macro_auroc" if self.task.multilabel else "macro_f1"]


class Later:
    """A :class:`Trial` that is loaded when it is first asked, since its images and sources take seconds.

    Args:
        prepare: gives the trial.
        metric, images: as the trial's.
    """

    def __init__(self, prepare: Callable[[], Trial], metric: str, images: int):
        self.prepare, self.metric, self.images = prepare, metric, images
        self._trial: Trial | None = None

    def __call__(self, layer: str, w: float | None) -> float:
        """As :class:`Trial`'s; raises what ``prepare`` raises."""
        self._trial = self._trial or self.prepare()
        return self._trial(layer, w)
