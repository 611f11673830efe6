"""Figures of learnt merging weights: the paper's Fig. 2 and Fig. 4."""

from collections.abc import Mapping, Sequence

from numpy.typing import ArrayLike

from medmerge.pages.figures.depth import depth_heatmap
from medmerge.pages.figures.style import BookFigure
from medmerge.pages.weights import layer_kinds, mean_weights, merged_rows
from medmerge.study.names import pair, title
from medmerge.study.records import Record


def target_heatmap(records: Sequence[Record]) -> BookFigure:
    """Mean w of each convolution over depth, a row a study, averaged over seeds (the paper's Fig. 2).

    Args:
        records: of one backbone, any number of studies; those that merged nothing are left out. A study's rows are
            told apart by their names.

    Raises:
        RecordError: no merged run.
        ValueError: several backbones.
    """
    rows = list(merged_rows(records).items())
    titles = [pair(folder.parts[-3]) for folder, _ in rows]
    if len(set(titles)) < len(titles):
        titles = [f"{name}: {runs[0].label}" for name, (_, runs) in zip(titles, rows, strict=True)]
    counts = [f"{len(runs)} seed{'s' * (len(runs) > 1)}" for _, runs in rows]
    weights = {f"{n} ({c})": mean_weights(runs) for n, c, (_, runs) in zip(titles, counts, rows, strict=True)}
    sources = [tuple(map(title, runs[0].ends)) for _, runs in rows]
    if len(set(sources)) == 1:
        return depth_heatmap(weights, *sources[0])
    told = [f"{label}: {first} and {second}" for label, (first, second) in zip(weights, sources, strict=True)]
    return depth_heatmap(dict(zip(told, weights.values(), strict=True)), "of the first", "of the second")


def map_by_kind(weights: Mapping[str, ArrayLike], backbone: str, first: str, second: str) -> BookFigure:
    """Mean w of each convolution over depth (the paper's Fig. 4), and below, for each size of kernels, of the nearest
    convolution before that has it: so that those of a block stand below each other.

    Args:
        weights: w by layer, ``[kernels]``, in forward order; w is the share of first.
        backbone: the architecture's name.
        first, second: names of what w = 1 and w = 0 take, such as "APTOS" and "zeros".

    Raises:
        ValueError: as for :func:`~medmerge.pages.weights.layer_kinds`.
    """
    table = layer_kinds(weights, backbone).set_index("layer")
    rows = {"all layers": dict(weights)}
    for size, count in table["size"].value_counts().items():
        if 1 < count < len(table):
            nearest = table["mean"].where(table["size"] == size).ffill().bfill()
            rows[f"{size} alone"] = {name: [w] for name, w in nearest.items()}
    return depth_heatmap(rows, first, second)
