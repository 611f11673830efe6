"""How every figure of the book looks: one style, one colour for each approach, a figure that a notebook shows."""

import hashlib
import io
import math
import re
import zlib
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike
from PIL import Image

APPROACH_COLOURS = {
    **{"ft": "#0173B2", "lp_ft": "#DE8F05", "medmerge": "#029E73"},
    **{"lp_norms_ft": "#8C5109", "medmerge_zeros": "#117733", "fixed_w": "#7FCDBB"},
    **{"average": "#56B4E9", "fisher": "#CC78BC", "interpolation": "#D55E00", "wise_ft": "#E3C000"},
    **{"soup": "#882255", "ensemble": "#7A7A7A"},
}
"""Of the paper's three, of controls (shades of what they control), of rivals."""

LOOKS = [("#0173B2", "o"), ("#DE8F05", "s"), ("#029E73", "D"), ("#CC78BC", "^"), ("#7A7A7A", "v"), ("#882255", "P")]
"""Colour and marker of levels that are no approaches, in their order."""

INK, MUTED, GRID, BAND, GROUND = "#1f2328", "#57606a", "#dfe3e8", "#edeff2", "#ffffff"
"""Colours that say nothing, which `custom.css` changes in the dark."""

PALE, DARK = "#fdfdfd", "#262626"
"""Of text on cells that have their colour in the dark too."""

WIDE, NARROW = 7.0, 3.5
"""Inches: as wide as the text of a page, and as a phone. Text of 8.5 points is 11 pixels on either."""

LAYERS, KERNELS = 0.02, 0.1
"""Half the width of the scales of w around its start, on every page: of the mean of a layer, and of a kernel."""

_FURTHER_COLOURS = "#332288 #CA9161 #999933 #FF9DA7 #44AA99 #4D4D4D".split()
_STYLE = {
    **{"figure.facecolor": GROUND, "savefig.facecolor": "auto", "axes.facecolor": GROUND, "grid.color": GRID},
    **{"text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "axes.edgecolor": MUTED},
    **{"xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK},
    **{"font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"], "font.size": 8.5, "axes.labelsize": 8.5},
    **{"axes.titlesize": 9, "axes.titlelocation": "left", "legend.fontsize": 8.5, "legend.frameon": False},
    **{"xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "axes.unicode_minus": True, "axes.axisbelow": True},
    **{"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True},
}


_REFERENCE = r'(?<=url\(#)\w+|(?<=href="#)\w+'
_THINNER = (
    (r"<defs>\s*<style.*?</style>\s*</defs>", ""),  # for all of a page; the same for this figure alone:
    (r"(?<=<svg) ", " style=\"font-family: 'DejaVu Sans', Verdana, Arial, sans-serif; stroke-linejoin: round\" "),
    (r" font-family: [^;]*;", ""),
    (r' transform="rotate\(-0 [^"]*\)"', ""),
    (r' (?:d|x|y)="[^"]*"', lambda numbers: re.sub(r"(\.\d\d)\d+", r"\1", numbers[0])),
    (r"\s*\n\s*", " "),
    (r"<g/> ?", ""),
)
"""What matplotlib writes at length, by pattern."""


def book_style(draw: Callable[..., "BookFigure"]) -> Callable[..., "BookFigure"]:
    """Draw in the book's style whatever the reader's own settings are, once for a page and once for a phone."""

    @wraps(draw)
    def drawn(*args: object, **kwargs: object) -> BookFigure:
        figures = []
        for width in (WIDE, NARROW):
            with matplotlib.style.context(["default", _STYLE, {"figure.figsize": (width, 1)}]):
                figures.append(draw(*args, **kwargs))
                for _ in range(2):  # other ticks fit what the first layout leaves
                    figures[-1].draw_without_rendering()
                figures[-1].set_layout_engine("none")
        figures[0].narrow = figures[1]
        return figures[0]

    return drawn


def canvas(height: float) -> "BookFigure":
    """A figure of this height in inches, as wide as it is drawn for."""
    return BookFigure(figsize=(rcParams["figure.figsize"][0], height))


def on_phone() -> bool:
    """Whether the figure is drawn for a phone."""
    return rcParams["figure.figsize"][0] == NARROW


def legend(figure: "BookFigure", axes: Axes, most: int) -> None:
    """The legend of the axes above the figure, so many names a line, or two on a phone."""
    handles, names = axes.get_legend_handles_labels()
    ncols = min(2 if on_phone() else most, len(names))
    figure.legend(handles, names, loc="outside upper left", ncols=ncols, columnspacing=1)


def required(table: pd.DataFrame, numbers: Sequence[str]) -> pd.DataFrame:
    """The table itself, which has lines, and finite values in the columns that hold numbers.

    Raises:
        ValueError: it is empty, or holds others.
    """
    if table.empty or not np.isfinite(table[list(numbers)].to_numpy(float)).all():
        raise ValueError(f"the table has {len(table)} lines: give at least one, and finite values of {list(numbers)}")
    return table


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


def w_scale(
    figure: "BookFigure", image: AxesImage, half: float, neutral: float, first: str, second: str, **where: object
) -> None:
    """Add the colour bar of a picture of w, with a point at an end where values go beyond it.

    Args:
        half, neutral: the picture's scale.
        first, second: names of the sources that w = 1 and w = 0 take.
        where: as matplotlib's ``colorbar`` takes it.
    """
    away = np.ma.masked_invalid(image.get_array()) - neutral
    beyond = ("neither", "max", "min", "both")[int(away.max() > half) + 2 * int(away.min() < -half)]
    bar = figure.colorbar(image, orientation="horizontal", extend=beyond, **where)
    bar.set_ticks([neutral - half, neutral, neutral + half], labels=[f"{neutral + d:.4g}" for d in (-half, 0, half)])
    bar.set_label(f"← {second} \u2003 w \u2003 {first} →")
    bar.outline.set_visible(False)


class BookFigure(Figure):
    """A figure that a notebook shows although pyplot, and so its display hook, is never used.

    Attributes:
        alt: what it shows and says, for who cannot see it; empty where the page's own words are all there is.
        narrow: the same for a phone.
    """

    alt: str = ""
    narrow: "BookFigure | None" = None

    def _repr_svg_(self) -> str:
        """The wide figure, which hides the narrow one for :func:`inline` to take out."""
        hidden = f"<defs>{self.narrow.svg()}</defs>" if self.narrow else ""
        return self.svg().removesuffix("</svg>") + f"{hidden}</svg>"

    def _repr_png_(self) -> tuple[bytes, dict[str, int | str]]:
        """A small picture for what shows no vectors, such as a notebook that nobody has trusted yet."""
        buffer, small = io.BytesIO(), io.BytesIO()
        with matplotlib.style.context(["default", _STYLE]):
            self.savefig(buffer, format="png", dpi=96)
        Image.open(buffer).convert("RGB").quantize(64).save(small, "png", optimize=True)
        width, height = (96 * self.get_size_inches()).astype(int).tolist()
        return small.getvalue(), {"width": width, "height": height} | ({"alt": self.alt} if self.alt else {})

    def svg(self) -> str:
        """The figure alone as an SVG element that says ``alt``, the same each time, with ids of its own."""
        buffer = io.StringIO()
        with matplotlib.style.context(["default", _STYLE, {"svg.fonttype": "none", "svg.hashsalt": "medmerge"}]):
            self.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        text = buffer.getvalue()
        text = text[text.index("<svg") :].strip()
        for pattern, replacement in _THINNER:
            text = re.sub(pattern, replacement, text, flags=re.DOTALL)
        salt, used = hashlib.sha256(text.encode()).hexdigest()[:6], set(re.findall(_REFERENCE, text))
        text = re.sub(_REFERENCE, rf"\g<0>-{salt}", text)
        text = re.sub(r' id="([^"]*)"', lambda one: f' id="{one[1]}-{salt}"' if one[1] in used else "", text)
        return text.replace(">", f"><desc>{escape(self.alt)}</desc>", 1) if self.alt else text


def inline(svg: str, alt: str) -> str:
    """What a :class:`BookFigure` gives a notebook, as HTML, whose colours ``--figure-<hex>`` may change.

    The wide figure and the narrow one are siblings, of which a style sheet shows one.
    """
    found = re.fullmatch(r"(.*)<defs>(<svg.*</svg>)</defs>(</svg>\s*)", svg, re.DOTALL)
    pictures = {"wide": found[1] + found[3], "narrow": found[2]} if found else {"": svg}
    named = f'role="img" aria-label="{escape(alt)}"'
    shown = (text.replace("<svg", f'<svg class="figure {name}" {named}', 1) for name, text in pictures.items())
    return re.sub(r"#([0-9a-f]{6})\b(?!-)", r"var(--figure-\1, #\1)", "".join(shown))
