"""Every approach by its name in parameter files: the rows of the paper, their controls and rivals."""

from medmerge.approaches.paper import CORE
from medmerge.approaches.rivals import RIVALS

APPROACHES = {**CORE, **RIVALS}
"""What ``approaches`` of a parameter file may name, in the order of the book's list."""

FINE_TUNED = ("ft", "interpolation", "soup", "ensemble")
"""Those of which nothing is left without fine-tuning: their heads learn in no linear probe."""
