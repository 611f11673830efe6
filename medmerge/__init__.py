"""MedMerge: learn, kernel by kernel, how to merge pre-trained CNNs into one (Almakky et al., 2024)."""

from medmerge.backbones import Classifier, backbone, save_backbone
from medmerge.explorer import explore
from medmerge.merge import KernelMerge, zeros_like
from medmerge.params import ParameterError, Parameters

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
