"""What readers see in place of the names that parameters and records use: one map for all pages, `names.yaml`."""

from pathlib import Path

import yaml

_NAMES = yaml.safe_load(Path(__file__).with_name("names.yaml").read_text(encoding="utf-8"))
DATASETS, NETWORKS, PAIRS, SETTINGS = (_NAMES[kind] for kind in ("datasets", "networks", "pairs", "settings"))


def title(name: str) -> str:
    """The words for a dataset, a source or a network; the name itself where there are none, as of a user's own."""
    return DATASETS.get(name) or NETWORKS.get(name, name)


def pair(name: str) -> str:
    """The words for a pair; its name where there are none."""
    return PAIRS.get(name, name)


def setting(name: str) -> str:
    """The words for a parameter that rows differ in; its name where there are none."""
    return SETTINGS.get(name, name)


def phrase(text: str) -> str:
    """A row that a record names, such as ``"FT ham10k"``, in readers' words."""
    return " ".join(map(title, text.split()))


def study(folder: str) -> str:
    """A study in words, such as ``"Skin lesions, DenseNet-121"``, by the folder of its records, pair and backbone."""
    name, backbone = folder.split("/")
    return f"{pair(name)}, {title(backbone)}"
