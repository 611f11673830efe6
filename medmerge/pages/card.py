"""The model card of a merged network: what was merged, on which images, how well it does, and how to load it."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath

import numpy as np
import pandas as pd

from medmerge.backbones import SMALL, has_plain_head, patch_size
from medmerge.data.images import FILL
from medmerge.pages import report
from medmerge.pages.contrast import against, by_row
from medmerge.pages.template import render
from medmerge.study.params import of_seed
from medmerge.study.records import Record


def card(found: Sequence[Record], chosen: Record, name: str, licence: str = "") -> str:
    """A model card in Markdown, with the header that the Hugging Face Hub reads.

    Args:
        found: records of all runs on these images: MedMerge's seeds and, where they were run, the baselines'.
        chosen: the one whose network the card is of.
        name: the network's.
        licence: its licence, as whoever publishes it states it.
    """
    run, p, classes = chosen.run, chosen.run["parameters"], chosen.run["data"]["classes"]
    w = np.concatenate([values.ravel() for values in chosen.kernel_weights.values()])
    several = len(by_row(found)) > 1
    tables = {
        "merged": _markdown(_merged(p, chosen)),
        "counts": _markdown(pd.DataFrame(run["data"]["counts"]).rename_axis("class").reset_index()),
        "scores": _markdown(report.score_table(found)),
        "comparisons": _markdown(report.difference_table(against(found)).data) if several else "",
        "recalls": _markdown(report.recall_table(found)),
    }
    return render(
        "card",
        name=name,
        licence=licence,
        run=run,
        p=p,
        data=run["data"],
        classes=classes,
        classes_json=json.dumps(classes, ensure_ascii=False),
        imports_medmerge=not has_plain_head(p["backbone"]),
        build=_build(p, len(classes)),
        fill=FILL,
        activation="sigmoid()" if chosen.multilabel else "softmax(1)",
        w=w,
        quantiles=np.quantile(w, [0.05, 0.5, 0.95]),
        neutral=chosen.neutral,
        start=f"{chosen.neutral:.3g}",
        layers=len(chosen.kernel_weights),
        first=run["row"]["sources"][0],
        images=chosen.images,
        overlap=report.overlap_note([chosen]),
        seeds=len({record.run["seed"] for record in found}),
        seconds=sum(cost["seconds"] for record in found for cost in record.run["cost"].values()),
        verdict=report.verdict(found) if several else "",
        **tables,
    )


def _build(p: Mapping, classes: int) -> str:
    """The expression that makes the network, without weights."""
    size = {"image_size": p["image_size"]} if patch_size(p["backbone"]) else {}
    if not has_plain_head(p["backbone"]):
        return f'medmerge.Classifier(medmerge.backbone("{p["backbone"]}", "random"), num_classes={classes})'
    if p["backbone"] in SMALL:
        kind, options = SMALL[p["backbone"]]
        options = ", ".join(f"{key}={value}" for key, value in (options | size).items())
        return f"torchvision.models.{kind.__name__}({options}, num_classes={classes})"
    options = "".join(f", {key}={value}" for key, value in size.items())
    return f'torchvision.models.get_model("{p["backbone"]}"{options}, num_classes={classes})'


def _merged(p: Mapping, chosen: Record) -> pd.DataFrame:
    names, given = chosen.run["row"]["sources"], [p["base_weights"], p["source_weights"], *p.get("more_weights", ())]
    files = [PurePath(of_seed(weights, chosen.run["seed"])).name for weights in given]
    prints = [f"`{chosen.run['sources'][name][:16]}`" for name in names]
    return pd.DataFrame({"source": names, "weights": files, "SHA-256 of its values": prints})


def _markdown(table: pd.DataFrame) -> str:
    """A frame as a Markdown table, numbers with three decimals."""
    body = [[_cell(value) for value in row] for row in table.astype(object).to_numpy().tolist()]
    rows = [map(_cell, table.columns), ["---"] * table.shape[1], *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(value: object) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    return re.sub(r"([\\|<*])", r"\\\1", " ".join(str(value).split()))
