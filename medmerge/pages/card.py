"""The model card of a merged network: what was merged, on which images, how well it does, and how to load it."""

import json
import re
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
import pandas as pd

from medmerge.backbones import SMALL, has_plain_head, patch_size
from medmerge.data.images import FILL
from medmerge.pages import report
from medmerge.study.params import of_seed
from medmerge.study.records import Record

UNSTATED = "Not stated. The licences of both sources and of the images apply."

_LOAD = """\
```python
{imports}import numpy as np
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file

classes = {classes}
model = {build}
model.load_state_dict(load_file("model.safetensors"), strict=True)
model.eval()

{image}
pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
with torch.inference_mode():
    probabilities = model((pixels - mean) / std).{activation}[0]     # in the order of `classes`
```

That is for images of 8 bits. Those of 16 bits and DICOM files were brought to 8 in training, which Pillow alone does
not do alike: `medmerge.data.decode` does."""


_STRETCH = 'image = Image.open("image.png").convert("RGB").resize(({size}, {size}), Image.Resampling.BILINEAR)'
_PAD = """\
opened = Image.open("image.png").convert("RGB")
scale = min(1, {size} / max(opened.size))
opened = opened.resize([max(1, round(scale * side)) for side in opened.size], Image.Resampling.BILINEAR)
image = Image.new("RGB", ({size}, {size}), {fill})
image.paste(opened, [({size} - side) // 2 for side in opened.size])"""


def card(found: Sequence[Record], chosen: Record, name: str, licence: str = "") -> str:
    """A model card in Markdown, with the header that the Hugging Face Hub reads.

    Args:
        found: records of all runs on these images: MedMerge's seeds and, where they were run, the baselines'.
        chosen: the one whose network the card is of.
        name: the network's.
        licence: its licence, as whoever publishes it states it.
    """
    p, classes = chosen.run["parameters"], chosen.run["data"]["classes"]
    sections = {
        "": f"An ordinary torchvision `{p['backbone']}` for {len(classes)} classes, made by "
        "[MedMerge](https://arxiv.org/abs/2403.11646) from two networks of that architecture: a linear probe learnt "
        "how much to take from each, kernel by kernel; the merge was folded into one network and fine-tuned.\n\n"
        "**For research.** Not a medical device; tested on the images named below and on no others.",
        "Load it": _loading(p, chosen),
        "What was merged": _merged(p, chosen),
        "Images": _images(chosen),
        "Scores on the test images": _scores(found, chosen),
        "How it was trained": _training(p, found, chosen),
        "Licence": licence or UNSTATED,
    }
    text = "\n\n".join(f"## {title}\n\n{body}" if title else body for title, body in sections.items())
    return f"{_header(name, licence)}\n\n# {name}\n\n{text}\n"


def _header(name: str, licence: str) -> str:
    values = {
        "license": licence.lower() or "other",
        "library_name": "torchvision",
        "pipeline_tag": "image-classification",
        "model_name": name,
        "tags": ["medmerge", "model-merging", "medical-imaging"],
    }
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in values.items()), "---"])


def _loading(p: dict, chosen: Record) -> str:
    classes = chosen.run["data"]["classes"]
    imports, size = "", {"image_size": p["image_size"]} if patch_size(p["backbone"]) else {}
    if not has_plain_head(p["backbone"]):
        imports, build = "import medmerge\n", f'medmerge.backbone("{p["backbone"]}", "random")'
        build = f"medmerge.Classifier({build}, num_classes={len(classes)})"
    elif p["backbone"] in SMALL:
        kind, options = SMALL[p["backbone"]]
        options = ", ".join(f"{key}={value}" for key, value in (options | size).items())
        build = f"torchvision.models.{kind.__name__}({options}, num_classes={len(classes)})"
    else:
        options = "".join(f", {key}={value}" for key, value in size.items())
        build = f'torchvision.models.get_model("{p["backbone"]}"{options}, num_classes={len(classes)})'
    return _LOAD.format(
        imports=imports,
        classes=json.dumps(classes, ensure_ascii=False),
        build=build,
        image=(_PAD if p.get("resize") == "pad" else _STRETCH).format(size=p["image_size"], fill=FILL),
        activation="sigmoid()" if chosen.multilabel else "softmax(1)",
    )


def _merged(p: dict, chosen: Record) -> str:
    names, given = chosen.run["row"]["sources"], [p["base_weights"], p["source_weights"], *p.get("more_weights", ())]
    first, start = names[0], f"{chosen.neutral:.3g}"
    prints = chosen.run["sources"]
    table = pd.DataFrame(
        {
            "source": names,
            "weights": [PurePath(of_seed(weights, chosen.run["seed"])).name for weights in given],
            "SHA-256 of its values": [f"`{prints[name][:16]}`" for name in names],
        }
    )
    w = np.concatenate([values.ravel() for values in chosen.kernel_weights.values()])
    low, median, high = np.quantile(w, [0.05, 0.5, 0.95])
    return (
        f"{_markdown(table)}\n\nw is the share of {first} in a kernel, {start} at the start. Over {w.size:,} kernels "
        f"of {len(chosen.kernel_weights)} layers it ended at a median of {median:.3f} (5 to 95 %: {low:.3f} to "
        f"{high:.3f}); {(w > chosen.neutral).mean():.0%} of the kernels lean to {first}."
    )


def _images(chosen: Record) -> str:
    data = chosen.run["data"]
    counts = pd.DataFrame(data["counts"]).rename_axis("class").reset_index()
    total = ", ".join(f"{number:,} {part}" for part, number in chosen.images.items())
    kept = "`model.images.csv` lists the images that this network and its sources learnt from, those of `test` apart."
    notes = [
        f"Split: {data['split']['method']}, fingerprint `{data['split']['fingerprint'][:16]}`.",
        kept,
        *data["notes"],
    ]
    warning = report.overlap_note([chosen])
    lines = [f"Images: {total}.", _markdown(counts), "\n".join(f"- {' '.join(note.split())}" for note in notes)]
    return "\n\n".join([*lines, *([warning] if warning else [])])


def _scores(found: Sequence[Record], chosen: Record) -> str:
    table = report.score_table(found)
    seeds = len({record.run["seed"] for record in found})
    lines = [
        _markdown(table),
        "Macro F1 with its 95 % bootstrap interval over the test images"
        + (f"; means over {seeds} seeds, while the file is seed {chosen.run['seed']}'s." if seeds > 1 else "."),
    ]
    if len(report.by_row(found)) > 1:
        lines += [report.verdict(found), _markdown(report.comparison_table(found))]
    return "\n\n".join([*lines, _markdown(report.recall_table(found))])


def _training(p: dict, found: Sequence[Record], chosen: Record) -> str:
    run = chosen.run
    seconds = sum(cost["seconds"] for record in found for cost in record.run["cost"].values())
    return (
        f"Linear probe {p['lp_epochs']} epochs at {p['lp_lr']:g}, fine-tuning {p['ft_epochs']} at {p['ft_lr']:g}, "
        f"AdamW, batches of {p['batch_size']}, {p['image_size']} px, {run['precision']} on {run['device']}; all runs "
        f"together {seconds:,.0f} s. medmerge {run['provenance']['versions']['medmerge']}, torch "
        f"{run['provenance']['versions']['torch']}. The records in `records/` hold every parameter, the history and a "
        "probability for each test image."
    )


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
