"""Photographs to measure with: drawn, saved as JPEG in ``PART/CLASS/*.jpg`` as a dataset of one's own.

A photograph is smooth noise, about as hard to decode as a real one, with a spot whose shade and size say its class, not
always clearly: a network that is trained for a few epochs tells most classes apart.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from medmerge import data

CLASSES = ("dark", "red", "large", "plain")
QUALITY = 90


def draw(folder: Path, count: int, width: int, height: int, test: int) -> None:
    """Fill a folder with its photographs: a fifth of ``count`` for validation, ``test`` beside."""
    rng = np.random.default_rng(0)
    for number in range(count + test):
        label = CLASSES[number % len(CLASSES)]
        part = "test" if number >= count else "val" if number % 5 == 4 else "train"
        place = folder / part / label / f"{number:06d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        _photograph(rng, label, width, height).save(place, quality=QUALITY)


def _photograph(rng: np.random.Generator, label: str, width: int, height: int) -> Image.Image:
    coarse = rng.integers(110, 220, (height // 12 + 1, width // 12 + 1, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
    y, x = np.mgrid[0:height, 0:width]
    centre = rng.uniform(0.35, 0.65, 2) * (width, height)
    radius = height * rng.normal({"large": 0.33}.get(label, 0.2), 0.04)
    shade = {"dark": (-70, -70, -70), "red": (10, -60, -60)}.get(label, (-45, -45, -35)) + rng.normal(0, 12, 3)
    spot = 1 / (1 + np.exp((np.hypot(x - centre[0], y - centre[1]) / radius - 1) * 8))
    return Image.fromarray((pixels + spot[..., None] * shade).clip(0, 255).astype(np.uint8))


def dataset(folder: Path, image_size: int, cache: Path) -> data.Dataset:
    """The photographs of a folder, decoded."""
    return data.load("folder", folder, image_size=image_size, cache=cache, split="official")
