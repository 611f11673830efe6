"""The model card of a merged network and its configuration, as model hubs read them."""

import json
import re
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
import pandas as pd
import yaml

from medmerge.backbones import SMALL, has_plain_head, patch_size
from medmerge.data.images import FILL
from medmerge.pages import report
from medmerge.pages.contrast import against, by_row
from medmerge.pages.typeset import render
from medmerge.samples import IMAGENET_MEAN, IMAGENET_STD
from medmerge.study.params import of_seed
from medmerge.study.records import Record

_METRICS = {
    "macro_f1": ("f1", "macro F1"),
    "accuracy": ("accuracy", "accuracy"),
    "macro_auroc": ("roc_auc", "macro AUROC"),
}
"""Of the scores those that model hubs list: their names there, and ours."""


def card(found: Sequence[Record], chosen: Record, name: str, licence: str = "") -> str:
    """A model card in Markdown, with the header that the Hugging Face Hub reads.

    Args:
        found: records of all runs on these images: MedMerge's seeds and, where they were run, the baselines'.
        chosen: the one whose network the card is of.
        name: the network's.
        licence: its licence, as whoever publishes it states it.
    """
    run, p = chosen.run, chosen.run["parameters"]
    w = np.concatenate([values.ravel() for values in chosen.kernel_weights.values()])
    compared = len(by_row(found)) > 1
    return render(
        "card",
        **{"name": name, "licence": licence, "run": run, "p": p, "data": run["data"], "w": w, "fill": FILL},
        **{"classes": run["data"]["classes"], "multilabel": chosen.multilabel, "images": chosen.images},
        **{"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), "neutral": chosen.neutral},
        header=yaml.safe_dump(_header(chosen, name, licence), sort_keys=False, allow_unicode=True),
        plain=has_plain_head(p["backbone"]),
        build=_build(p, len(run["data"]["classes"])),
        sources=_sources(chosen),
        layers=len(chosen.kernel_weights),
        quantiles=np.quantile(w, [0.05, 0.5, 0.95]),
        counts=pd.DataFrame(run["data"]["counts"]).rename_axis("class").reset_index(),
        overlap=report.overlap_note([chosen]),
        scores=report.score_table(found),
        seeds=len({record.run["seed"] for record in found}),
        verdict=report.verdict(found) if compared else "",
        comparison=report.difference_table(against(found)) if compared else None,
        recall=report.recall_table(found),
        seconds=sum(cost["seconds"] for record in found for cost in record.run["cost"].values()),
    )


def config(chosen: Record) -> str:
    """What whoever loads the network needs to know, as JSON: architecture, classes, and how images are prepared."""
    p, data = chosen.run["parameters"], chosen.run["data"]
    values = {
        **{"architecture": p["backbone"], "num_classes": len(data["classes"]), "label_names": data["classes"]},
        **{"multilabel": chosen.multilabel, "library_name": "torchvision", "image_size": p["image_size"]},
        **{"resize": p.get("resize", "stretch"), "interpolation": "bilinear", "fill": list(FILL)},
        **{"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)},
        "medmerge_version": chosen.run["provenance"]["versions"]["medmerge"],
    }
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def _header(chosen: Record, name: str, licence: str) -> dict:
    known = re.fullmatch(r"[A-Za-z0-9.+-]+", licence)
    metrics = [
        {"type": kind, "name": title, "value": round(chosen.run["metrics"][key], 4)}
        for key, (kind, title) in _METRICS.items()
        if chosen.run["metrics"].get(key) is not None
    ]
    task = {"type": "image-classification", "name": "Image classification"}
    dataset = {"type": chosen.run["data"]["name"], "name": f"{chosen.images['test']:,} test images of {name}"}
    return {
        "license": licence.lower() if known else "other",
        **({"license_name": licence} if licence and not known else {}),
        **{"library_name": "torchvision", "pipeline_tag": "image-classification"},
        "tags": ["medmerge", "model-merging", "medical-imaging", "image-classification"],
        "metrics": [metric["type"] for metric in metrics],
        "model-index": [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}],
    }


def _build(p: dict, classes: int) -> str:
    """The expression that makes the network, whose state dict is the file."""
    name, size = p["backbone"], {"image_size": p["image_size"]} if patch_size(p["backbone"]) else {}
    if not has_plain_head(name):
        return f'medmerge.Classifier(medmerge.backbone("{name}", "random"), num_classes={classes})'
    kind, options = SMALL.get(name, (None, {}))
    given = "".join(f"{key}={value}, " for key, value in (options | size).items()) + f"num_classes={classes}"
    return f'torchvision.models.{f"{kind.__name__}(" if kind else f"""get_model("{name}", """}{given})'


def _sources(chosen: Record) -> pd.DataFrame:
    p, names = chosen.run["parameters"], chosen.run["row"]["sources"]
    given = [p["base_weights"], p["source_weights"], *p.get("more_weights", ())]
    prints = [f"`{chosen.run['sources'][name][:16]}`" for name in names]
    files = [PurePath(of_seed(weights, chosen.run["seed"])).name for weights in given]
    return pd.DataFrame({"source": names, "weights": files, "SHA-256 of its values": prints})
