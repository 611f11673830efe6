"""The page on features, kernels and feature maps (the paper's Fig. 3), from :class:`medmerge.study.features.Found`."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from numpy.typing import NDArray

from medmerge.pages.figures.style import KERNELS, BookFigure, book_style, canvas, on_phone, w_scale
from medmerge.pages.typeset import fill, number
from medmerge.study.features import MERGED, Found
from medmerge.study.names import title

_TEXT = {"fontsize": 8.5, "linespacing": 1.1}
_SIGNED = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1, "interpolation": "none"}


def agreement(found: Found) -> pd.DataFrame:
    """How alike the feature maps of two networks are, a row a level and pair.

    Columns: level, layer, channels, positions (such as "16 × 16"), one, other, correlation (of the sample, over all
    channels), low, median, high (quartiles over the images). NaN where maps do not vary over positions.
    """
    rows = []
    for level in ("low", "high"):
        layer, values = getattr(found.about, level), found.arrays[f"correlation/{level}"].astype(np.float64)
        at = {"level": level, "layer": layer.layer, "channels": layer.kernels, "positions": _size(layer)}
        for (one, other), column in zip(found.pairs, values.T, strict=True):
            known = column[~np.isnan(column)]
            low, median, high = np.quantile(known, [0.25, 0.5, 0.75]) if len(known) else [np.nan] * 3
            line = {**at, "one": one, "other": other, "correlation": column[0]}
            rows.append(line | {"low": low, "median": median, "high": high})
    return pd.DataFrame(rows)


def _size(layer: object) -> str:
    return f"{layer.size[0]} × {layer.size[1]}"


def summary(found: Found) -> str:
    """The paper's words on its Fig. 3 held against what was measured, a point each, in Markdown."""
    table, medians, levels = agreement(found), {}, []
    for level, word in (("low", "first"), ("high", "last")):
        part = table[table["level"] == level]
        of_merged = part[(part["one"] == MERGED) | (part["other"] == MERGED)]
        medians[level] = of_merged["median"].mean()
        sources = of_merged["one"].where(of_merged["other"] == MERGED, of_merged["other"])
        lines = of_merged.assign(source=sources).to_dict("records")
        levels.append({**part.iloc[0].to_dict(), "word": word, "rows": lines})
    one, _, other = found.about.networks[:3]
    own = table[(table["one"] == one) & (table["other"] == other)].set_index("level")["median"]
    apart = [own[level] for level in ("low", "high")]
    return fill("features", levels=levels, images=found.about.images, apart=apart, **medians)


@book_style
def feature_maps(found: Found) -> BookFigure:
    """Low- and high-level feature maps of one image through every network: a row a network, a column a channel.

    A channel has one scale, symmetric around zero, over all networks, so that its column can be compared. Channels are
    those with the highest and lowest w of the layer. Of drawn images the image itself stands on the left.
    """
    about, picture = found.about, found.arrays.get("image")
    columns = {level: len(getattr(about, level).shown) for level in ("low", "high")}
    sizes = ([1.6] if picture is not None else []) + list(columns.values())
    tall = 0.95 + 0.62 * len(about.networks)
    figure = canvas(tall * (len(sizes) if on_phone() else 1))
    parts = figure.subfigures(len(sizes), 1) if on_phone() else figure.subfigures(1, len(sizes), width_ratios=sizes)
    if picture is not None:
        axes = _bare(parts[0].subplots())
        axes.imshow(picture, gid="image")
        axes.set_title(about.image, **_TEXT)
    for part, (level, word) in zip(parts[-2:], (("low", "first"), ("high", "last")), strict=True):
        maps, layer = found.arrays[f"maps/{level}"], getattr(about, level)
        w = found.kernels(level)["w"]
        grid = part.subplots(*maps.shape[:2], squeeze=False)
        for (i, j), axes in np.ndenumerate(grid):
            _bare(axes).imshow(maps[i, j], gid=f"{level}/{i}/{j}", **_SIGNED)
            if i == 0:
                axes.set_title(f"{layer.shown[j]}\nw {w[layer.shown[j]]:.2f}", loc="center", **_TEXT)
            if j == 0 and (level == "low" or on_phone()):
                axes.set_ylabel(textwrap.fill(title(about.networks[i]), 10))
        size = f"{layer.kernels} channels of {_size(layer)}"
        part.suptitle(f"{level}-level: {word} convolution,\n{size}", **_TEXT)
    figure.alt = f"Feature maps of one image, {about.image}, a row each for {_listed(about.networks)}. {_alike(found)}"
    return figure


@book_style
def first_filters(found: Found) -> BookFigure:
    """The first convolution's kernels in every network as pictures, and w of each at the same place.

    Kernels are in the order of w, from the highest, at the upper left. All pictures have one scale; grey is zero.
    """
    about, pictures = found.about, found.arrays["filters"].astype(np.float64)
    w = found.kernels("first")["w"].to_numpy()[about.first.shown]
    side = int(np.ceil(np.sqrt(len(w))))
    across = 2 if on_phone() else len(pictures) + 1
    down = -(-(len(pictures) + 1) // across)
    figure = canvas(down * (0.5 + 0.95 * rcParams["figure.figsize"][0] / across))
    *grids, weights = figure.subplots(down, across, squeeze=False).flatten()[: len(pictures) + 1]
    for name, kernels, axes in zip(about.networks, pictures, grids, strict=True):
        _bare(axes).imshow(_mosaic(kernels, side), interpolation="none", gid=f"filters/{name}")
        axes.set_title(title(name))
    rows = -(-len(w) // side)
    square = np.pad(w, (0, rows * side - len(w)), constant_values=np.nan).reshape(rows, side)
    scale = {"vmin": 0.5 - KERNELS, "vmax": 0.5 + KERNELS}
    image = _bare(weights).imshow(square, "PuOr", interpolation="none", gid="w", **scale)
    weights.set_title("w")
    first, last = title(about.networks[0]), title(about.networks[-1])
    w_scale(figure, image, KERNELS, 0.5, f"\n{first}", last, ax=weights, shrink=0.9)  # narrow: its label has two lines
    cosine = found.kernels("first").filter(like="cosine ").median()
    named = {" and ".join(map(title, name.removeprefix("cosine ").split(" "))): c for name, c in cosine.items()}
    alike = "; ".join(f"{name} {number(c, '.2f')}" for name, c in named.items())
    figure.alt = (
        f"The {len(w)} kernels of {about.first.layer} as small pictures in {_listed(about.networks)}, and their w, "
        f"{w.min():.2f} to {w.max():.2f}. Median cosine of a kernel between networks: {alike}."
    )
    return figure


@book_style
def deeper_kernels(found: Found) -> BookFigure:
    """A few kernels of a deeper layer: a column a kernel, a row a network, its strongest input channels side by side.

    One scale for all. Above each column its w and the two sources' cosine; below each kernel its norm and, of sources,
    the cosine with the merged kernel.
    """
    about, slices = found.about, found.arrays["slices"]
    table = found.kernels("deeper")
    first, merged, *others = about.networks
    figure = canvas(1.0 + (0.95 if on_phone() else 1.0) * len(slices))
    grid = figure.subplots(*slices.shape[:2], squeeze=False)
    said = []
    for (i, j), axes in np.ndenumerate(grid):
        row, name = table.loc[about.deeper.shown[j]], about.networks[i]
        kernel = slices[i, j].astype(np.float64)
        _bare(axes).imshow(_mosaic(kernel, -(-len(kernel) // 2)), gid=f"kernel/{i}/{j}", **_SIGNED)
        cosine = "" if name == merged else f"\ncos to merged {number(_cosine(row, name, merged), '.2f')}"
        below = f"norm {number(row[f'norm {name}'], '.2g')}{cosine}"
        axes.set_xlabel(below.replace("to merged ", "") if on_phone() else below, labelpad=2, **_TEXT)
        if i == 0:
            apart = f"cos of sources {number(_cosine(row, first, others[0]), '.2f')}"
            named = f"kernel {about.deeper.shown[j]}, w {row['w']:.2f}"
            said.append(f"{named}, {apart}")
            above = f"{named}\n{apart}"
            above = above.replace(", ", "\n").replace("of ", "of\n") if on_phone() else above
            axes.set_title(above, loc="center", **_TEXT)
        if j == 0:
            axes.set_ylabel(title(name))
    figure.alt = (
        f"{slices.shape[2]} input channels each of {slices.shape[1]} kernels of {about.deeper.layer} in "
        f"{_listed(about.networks)}: {'; '.join(said)}."
    )
    return figure


def _mosaic(pictures: NDArray, columns: int) -> NDArray:
    """Pictures ``[n, h, w]`` or ``[n, h, w, 3]`` in rows of ``columns``, a gap of a pixel between them (white)."""
    pictures = np.pad(pictures, [(0, -len(pictures) % columns), (0, 1), (0, 1), *[(0, 0)] * (pictures.ndim - 3)],
                      constant_values=np.nan)  # fmt: skip
    n, height, width, *colours = pictures.shape
    rows = pictures.reshape(n // columns, columns, height, width, *colours).swapaxes(1, 2)
    whole = rows.reshape(n // columns * height, columns * width, *colours)[:-1, :-1]
    return np.nan_to_num(whole, nan=1.0) if colours else whole


def _bare(axes: Axes) -> Axes:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def _cosine(row, one: str, other: str) -> float:
    return row.get(f"cosine {one} {other}", row.get(f"cosine {other} {one}"))


def _listed(names: list[str]) -> str:
    *first, last = map(title, names)
    return f"{', '.join(first)} and {last}"


def _alike(found: Found) -> str:
    rows = agreement(found).itertuples()
    return "Correlation over all channels: " + "; ".join(
        f"{row.level}-level {row.one} and {row.other} {number(row.correlation, '.2f')}" for row in rows
    ) + "."  # fmt: skip
