"""MedMerge: learn, kernel by kernel, how to merge pre-trained CNNs into one (Almakky et al., 2024)."""

from typing import TYPE_CHECKING

from medmerge.backbones import Classifier, backbone, save_backbone
from medmerge.merge import KernelMerge, zeros_like
from medmerge.study.params import ParameterError, Parameters

__all__ = [
    "Classifier",
    "KernelMerge",
    "ParameterError",
    "Parameters",
    "backbone",
    "explore",
    "save_backbone",
    "zeros_like",
]
__version__ = "0.1.0"

if TYPE_CHECKING:
    from medmerge.explorer.widget import explore


def __getattr__(name: str) -> object:
    """The explorer, when it is asked for: whoever merges needs neither its widgets nor matplotlib."""
    if name == "explore":
        from medmerge.explorer.widget import explore

        return explore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
