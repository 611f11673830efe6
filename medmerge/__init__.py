"""MedMerge: learn, kernel by kernel, how to merge pre-trained CNNs into one (Almakky et al., 2024)."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medmerge.backbones import Classifier, backbone
    from medmerge.explorer.widget import explore
    from medmerge.merge import KernelMerge, zeros_like
    from medmerge.saving import load, save, save_backbone
    from medmerge.study import records
    from medmerge.study.params import ParameterError, Parameters
    from medmerge.training import Protocol, Task, fine_tune, linear_probe

__all__ = [
    "Classifier",
    "KernelMerge",
    "ParameterError",
    "Parameters",
    "Protocol",
    "Task",
    "backbone",
    "explore",
    "fine_tune",
    "linear_probe",
    "load",
    "records",
    "save",
    "save_backbone",
    "zeros_like",
]
__version__ = "0.1.0"

_HOMES = {
    "backbones": ("Classifier", "backbone"),
    "explorer.widget": ("explore",),
    "merge": ("KernelMerge", "zeros_like"),
    "study.params": ("ParameterError", "Parameters"),
    "saving": ("load", "save", "save_backbone"),
    "training": ("Protocol", "Task", "fine_tune", "linear_probe"),
}


def __getattr__(name: str) -> object:
    """A public name, whose module is imported when it is first asked for: ``import medmerge`` takes no time."""
    if name == "records":
        return importlib.import_module("medmerge.study.records")
    for home, names in _HOMES.items():
        if name in names:
            globals()[name] = getattr(importlib.import_module(f"medmerge.{home}"), name)
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return __all__
