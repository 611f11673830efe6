"""How every figure of the book looks: one style, one colour for each approach, a figure that a notebook shows."""

import base64
import io
import math
import zlib
from collections.abc import Callable
from functools import wraps
from html import escape

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

APPROACH_NAMES = {
    **{"ft": "FT", "lp_ft": "LP-FT", "medmerge": "MedMerge"},
    **{"lp_norms_ft": "LP-FT, norms free", "medmerge_zeros": "MedMerge with zeros", "fixed_w": "MedMerge, w fixed"},
    **{"average": "Average", "fisher": "Fisher average", "interpolation": "Interpolation of FT", "wise_ft": "WiSE-FT"},
    **{"soup": "Greedy soup", "ensemble": "Ensemble of FT"},
}
APPROACH_COLOURS = {
    **{"ft": "#0173B2", "lp_ft": "#DE8F05", "medmerge": "#029E73"},
    **{"lp_norms_ft": "#8C5109", "medmerge_zeros": "#117733", "fixed_w": "#7FCDBB"},
    **{"average": "#56B4E9", "fisher": "#CC78BC", "interpolation": "#D55E00", "wise_ft": "#E3C000"},
    **{"soup": "#882255", "ensemble": "#7A7A7A"},
}
"""Of the paper's three, of controls (shades of what they control), of rivals."""

LOOKS = [("#0173B2", "o"), ("#DE8F05", "s"), ("#029E73", "D"), ("#CC78BC", "^"), ("#7A7A7A", "v"), ("#882255", "P")]
"""Colour and marker of levels that are no approaches, in their order."""

_FURTHER_COLOURS = "#332288 #CA9161 #999933 #FF9DA7 #44AA99 #4D4D4D".split()
_STYLE = {
    **{"figure.facecolor": "white", "figure.dpi": 150, "savefig.dpi": "figure", "savefig.facecolor": "auto"},
    **{"font.size": 8, "axes.labelsize": 9.5, "axes.titlesize": 9.5, "axes.titlelocation": "left"},
    **{"xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "legend.fontsize": 8, "legend.frameon": False},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "grid.color": "0.9"},
}


def book_style(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the book's style whatever the reader's own settings are."""

    @wraps(draw)
    def drawn(*args: object, **kwargs: object) -> Figure:
        with matplotlib.style.context(["default", _STYLE]):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()
        return figure

    return drawn


def approach_colour(approach: str) -> str:
    """Hex colour of an approach, the same everywhere; those without an entry above take one by their name."""
    further = _FURTHER_COLOURS[zlib.crc32(approach.encode()) % len(_FURTHER_COLOURS)]
    return APPROACH_COLOURS.get(approach, further)


def half_range(values: ArrayLike, neutral: float = 0.5) -> float:
    """Half the width of a scale around ``neutral``: the largest deviation, rounded up to half a unit of its first
    digit, at least 0.01.
    """
    deviation = max(float(np.abs(np.asarray(values) - neutral).max()), 0.01)
    step = 10 ** math.floor(math.log10(deviation)) / 2
    return math.ceil(round(deviation / step, 6)) * step


class BookFigure(Figure):
    """A figure that a notebook shows although pyplot, and so its display hook, is never used.

    Attributes:
        alt: what it shows and says, for who cannot see it; empty where the page's own words are all there is.
    """

    alt: str = ""

    def _repr_png_(self) -> tuple[bytes, dict[str, int | str]]:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", facecolor="white")
        width, height = (96 * self.get_size_inches()).astype(int).tolist()
        return buffer.getvalue(), {"width": width, "height": height} | ({"alt": self.alt} if self.alt else {})

    def html(self, alt: str, caption: str) -> str:
        """The figure as one HTML element, picture included, for where no script runs."""
        png, _ = self._repr_png_()
        picture = f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{escape(alt)}"/>'
        return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"
