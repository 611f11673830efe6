"""Figures of learnt merging weights: the paper's Fig. 2 and Fig. 4, and how far w went."""

from collections.abc import Mapping, Sequence

from numpy.typing import ArrayLike

from medmerge.pages.figures.depth import along_depth, depth_heatmap
from medmerge.pages.figures.style import BookFigure, book_style
from medmerge.pages.weights import alternation, layer_kinds, mean_weights, merged_rows
from medmerge.study.records import Record


@book_style
def target_heatmap(records: Sequence[Record]) -> BookFigure:
    """Mean w of each convolution over depth, a row a target, averaged over seeds (the paper's Fig. 2).

    Args:
        records: of one backbone, any number of studies; those that merged nothing are left out. Rows with one target
            are told apart by study and row.

    Raises:
        RecordError: no merged run.
        ValueError: several backbones.
    """
    rows = list(merged_rows(records).items())
    names = [runs[0].run["data"]["name"] for _, runs in rows]
    if len(set(names)) < len(names):
        names = ["/".join((folder.parts[-3], folder.parts[-1])) for folder, _ in rows]
    counts = [f"{len(runs)} seed{'s' * (len(runs) > 1)}" for _, runs in rows]
    weights = {f"{n} ({c})": mean_weights(runs) for n, c, (_, runs) in zip(names, counts, rows, strict=True)}
    sources = [runs[0].ends for _, runs in rows]
    if len(set(sources)) == 1:
        return depth_heatmap(weights, *sources[0])
    figure = depth_heatmap(weights, "the row's source 1", "the row's source 0")
    axes = figure.axes[0]
    for y, (first, second) in enumerate(sources):
        axes.annotate(f"0: {second}\n1: {first}", (1.01, y), xycoords=axes.get_yaxis_transform(), va="center")
    return figure


def kinds_along_depth(weights: Mapping[str, ArrayLike], backbone: str, first: str, second: str) -> BookFigure:
    """Mean w of each convolution over depth, as dots by kind of layer (the paper's Fig. 4).

    The title gives the difference of 1×1 and 3×3 convolutions and the autocorrelation of
    :func:`~medmerge.pages.weights.alternation`, where the architecture has both.

    Args:
        weights: w by layer, ``[kernels]``, in forward order; w is the share of first.
        backbone: the architecture's name.
        first, second: names of what w = 1 and w = 0 take, such as "APTOS" and "zeros".

    Raises:
        ValueError: as for :func:`~medmerge.pages.weights.layer_kinds`.
    """
    table = layer_kinds(weights, backbone)
    try:
        a = alternation(weights, backbone)
        title = (
            "1×1 minus 3×3: {difference:+.4f} [{low:+.4f}, {high:+.4f}], {units} units; autocorrelation {whole:+.2f} "
            "(p = {p_whole:.2g}), in blocks {within:+.2f} (p = {p_within:.2g})"
        ).format(**a)
    except ValueError:  # as in a ResNet-18
        title = "no pairs of 1×1 and 3×3 convolutions to compare"
    label = f"mean w\n← {second}          {first} →"
    return along_depth(
        table, {"mean": label}, hue="kind", lines={"mean": 0.5}, joined=False, title=title, what="convolution"
    )
