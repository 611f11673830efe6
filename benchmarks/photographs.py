"""Photographs to measure with: drawn, saved as JPEG, and listed with labels and splits as a dataset of one's own.

A photograph is smooth noise, about as hard to decode as a real one, with a spot whose shade and size say its class, not
always clearly: a network that is trained for a few epochs tells most classes apart.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from medmerge import data

CLASSES = ("dark", "red", "large", "plain")
QUALITY = 90


def draw(folder: Path, count: int, width: int, height: int | None = None, test: int = 0) -> None:
    """Fill a folder with ``images/*.jpg`` and ``labels.csv``: a fifth of ``count`` for validation, ``test`` beside."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(count + test):
        label = number % len(CLASSES)
        name = f"{number:06d}.jpg"
        _photograph(rng, CLASSES[label], width, height or width).save(folder / "images" / name, quality=QUALITY)
        part = "test" if number >= count else "val" if number % 5 == 4 else "train"
        rows.append({"image": name, "label": CLASSES[label], "split": part})
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)


def _photograph(rng: np.random.Generator, label: str, width: int, height: int) -> Image.Image:
    coarse = rng.integers(110, 220, (height // 12 + 1, width // 12 + 1, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
    y, x = np.mgrid[0:height, 0:width]
    centre = rng.uniform(0.35, 0.65, 2) * (width, height)
    radius = height * rng.normal({"large": 0.33}.get(label, 0.2), 0.04)
    shade = {"dark": (-70, -70, -70), "red": (10, -60, -60)}.get(label, (-45, -45, -35)) + rng.normal(0, 12, 3)
    spot = 1 / (1 + np.exp((np.hypot(x - centre[0], y - centre[1]) / radius - 1) * 8))
    return Image.fromarray((pixels + spot[..., None] * shade).clip(0, 255).astype(np.uint8))


def dataset(folder: Path, image_size: int) -> data.Dataset:
    """The photographs of a folder, decoded into a cache in it."""
    listed = {"labels": str(folder / "labels.csv"), "split": "official"}
    return data.load("csv", folder / "images", image_size=image_size, cache=folder / "cache", **listed)
