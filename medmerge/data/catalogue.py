"""The datasets by name: what they are, where they come from, on which terms, and how a folder of one looks.

The texts are in `catalogue.yaml`, beside this module.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Entry:
    """A dataset.

    Attributes:
        name: As in `loaders.DATASETS`; one entry may stand for several, such as "medmnist:<name>".
        title: One line that says what it holds.
        licence: The terms of use of the images and labels, as their publisher states them.
        url: Where to get it; "" where there is nothing to get.
        tree: The folder as unpacked, "" where no folder is needed.
        paper: Its part in the paper's experiments: "source", "target", or "" if it has none.
        stated: Number of images in the paper (section 3), 0 for a dataset that it does not have.
        files: The number that the official files give when they are read as described.
        why: Sentences that explain the number, and the difference where there is one.
        expected: Sentences for those whose folder is another: what it must hold, and where to get it.
        rows: Rows of the official labels files, by their names without suffix, or images of official folders.
        origins: For datasets that this entry stands for, the archive that they were drawn from.
    """

    name: str
    title: str
    licence: str
    url: str = ""
    tree: str = ""
    paper: str = ""
    stated: int = 0
    files: int = 0
    why: str = ""
    expected: str = ""
    rows: dict[str, int] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


CATALOGUE = tuple(
    Entry(**values) for values in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
)
"""All datasets, the paper's six first."""

PAPER_NUMBERS = {known.name: known for known in CATALOGUE if known.paper}
"""The paper's six datasets, whose numbers of images it states."""


def entry(name: str) -> Entry | None:
    """Returns what is known about a dataset, such as "ham10k" or "medmnist:retinamnist_64", or None."""
    return next((known for known in CATALOGUE if re.fullmatch(known.name.replace("<name>", ".+"), name)), None)
