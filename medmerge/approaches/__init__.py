"""Every approach by its name in parameter files: the rows of the paper, their controls and rivals.

What an approach is called and reads stands here, without PyTorch; its function is loaded when it is run.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Approach:
    """An entry of :data:`APPROACHES`.

    Attributes:
        title: its name in tables.
        function: where its function is, such as ``"paper.ft"``.
        merges: whether it takes all sources at once; otherwise it is run from each source alone.
        settings: the merging options that its function takes by keyword.
        reads: parameters that its numbers depend on, beyond those that all approaches share.
        combines: approaches whose finished networks, from each of its sources alone, it takes.
    """

    title: str
    function: str
    merges: bool = False
    settings: tuple[str, ...] = ()
    reads: frozenset[str] = frozenset()
    combines: tuple[str, ...] = ()

    @property
    def run(self) -> Callable:
        """Its function, from sources, a task and settings to an ``Outcome``."""
        module, name = self.function.split(".")
        return getattr(importlib.import_module(f"medmerge.approaches.{module}"), name)


_PROBE = frozenset({"lp_epochs", "lp_lr"})
_LP_FT = _PROBE | {"lp_batchnorm"}
_OPTIONS = ("granularity", "batchnorm", "normalisation", "align")
_FIXED = _PROBE | {"batchnorm_free", *_OPTIONS}
_LEARNT = _FIXED | {"w_lr", "w_decay"}

CORE = {
    "ft": Approach("FT", "paper.ft"),
    "lp_ft": Approach("LP-FT", "paper.lp_ft", reads=_LP_FT),
    "lp_norms_ft": Approach("LP-FT, norms free", "paper.lp_norms_ft", reads=_PROBE | {"batchnorm_free"}),
    "medmerge": Approach("MedMerge", "paper.medmerge", True, (*_OPTIONS, "score_controls"), _LEARNT),
    "medmerge_zeros": Approach(
        "MedMerge with zeros",
        "paper.medmerge_zeros",
        settings=("granularity", "batchnorm", "normalisation", "score_controls"),
        reads=_LEARNT - {"align"},
    ),
    "fixed_w": Approach("MedMerge, w fixed", "paper.fixed_w", True, (*_OPTIONS, "score_controls"), _FIXED),
}
"""The paper's rows, ablations and controls."""

_FISHER = ("batchnorm", "fisher_images")
RIVALS = {
    "average": Approach("Average", "rivals.average", True, ("batchnorm",), _LP_FT | {"batchnorm"}),
    "fisher": Approach("Fisher average", "rivals.fisher", True, _FISHER, _LP_FT | {*_FISHER}),
    "interpolation": Approach("Interpolation of FT", "rivals.interpolation", merges=True, combines=("ft",)),
    "wise_ft": Approach("WiSE-FT", "rivals.wise_ft", reads=_LP_FT, combines=("lp_ft",)),
    "soup": Approach("Greedy soup", "rivals.soup", merges=True, reads=_LP_FT, combines=("ft", "lp_ft")),
    "ensemble": Approach("Ensemble of FT", "rivals.ensemble", merges=True, combines=("ft",)),
}
"""Other ways to use several pre-trained networks."""

APPROACHES = {**CORE, **RIVALS}
"""What ``approaches`` of a parameter file may name, in the order of the book's list."""

FINE_TUNED = ("ft", "interpolation", "soup", "ensemble")
"""Those of which nothing is left without fine-tuning: their heads learn in no linear probe."""
