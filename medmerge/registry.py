"""Every approach by its name in parameter files."""

from medmerge.approaches import CORE
from medmerge.rivals import RIVALS

APPROACHES = {**CORE, **RIVALS}
"""What ``approaches`` of a parameter file may name, in the order of the book's list."""

FINE_TUNED = ("ft", "interpolation", "soup", "ensemble")
"""Those of which nothing is left without fine-tuning: their heads learn in no linear probe."""
