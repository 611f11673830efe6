"""The figure of the controls for learnt merging weights."""

import pandas as pd

from medmerge.pages.figures.style import BookFigure, book_style

_LOOKS = {"score": ("batch norm as learnt", "#0173B2", "o"), "reestimated": ("re-estimated", "#DE8F05", "s")}


@book_style
def replaced_weights(table: pd.DataFrame) -> BookFigure:
    """Validation score by what the merging weights were replaced by: a dot a draw and seed, learnt weights as a line.

    Args:
        table: columns control, score and reestimated, as :func:`medmerge.approaches.controls.evaluate` gives it;
            scores in [0, 1].

    Raises:
        ValueError: no rows, a column missing, or no row ``learnt``.
    """
    if missing := [name for name in ("control", *_LOOKS) if name not in table]:
        raise ValueError(f"the table has no column {missing[0]}; it has {list(table)}")
    controls = list(dict.fromkeys(table["control"]))
    if "learnt" not in controls:
        raise ValueError(f"the controls {controls} hold no score of the learnt weights")
    figure = BookFigure(figsize=(8, 0.8 + 0.42 * len(controls)), layout="constrained")
    axes, said = figure.subplots(), []
    for shift, (column, (label, colour, marker)) in zip((-0.14, 0.14), _LOOKS.items(), strict=True):
        at = table["control"].map(controls.index) + shift
        axes.plot(table[column], at, marker, color=colour, markersize=5, alpha=0.8, label=label, gid=f"dots/{column}")
        learnt = table.loc[table["control"] == "learnt", column].mean()
        axes.axvline(learnt, color=colour, linewidth=0.8, linestyle=":", gid=f"learnt/{column}")
        means = table.groupby("control", sort=False)[column].mean()
        said.append(f"{label}: " + ", ".join(f"{name} {value:.3f}" for name, value in means.items()))
    axes.set_yticks(range(len(controls)), controls)
    axes.invert_yaxis()
    axes.set_xlabel("validation score")
    axes.legend(loc="best")
    figure.alt = f"Validation score with merging weights replaced. {'; '.join(said)}."
    return figure
