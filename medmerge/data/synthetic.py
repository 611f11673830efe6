"""Images drawn by code, for a demonstration that needs no download.

Three sets take the parts of a real study: `objects` for natural images, `lesions` for a medical
source, `moles` for the target, which is smaller, long-tailed, and seen through another camera. They
resemble dermoscopy from afar and are not data: no conclusion about medicine rests on them.

A path such as "synthetic:moles/globular/0012-1" says all that is needed to draw the image: the
set, the class, the number of the lesion and that of its photograph. The same path gives the same
pixels on any machine: drawing is in float64, whose last bits, which may differ between processors,
do not reach 8-bit pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from medmerge.data.table import Listing

VERSION = 2
"""Of the drawings; to be raised with every change of a pixel, or caches go stale."""

PREFIX = "synthetic:"
SIZE = 64
MAX_SHOTS = 3

OBJECTS = ("disc", "ring", "square", "triangle", "star", "stripes")
LOOK = {
    "jagged": (0.0, 0.1),
    "spots": (0, 3),
    "patches": (0.0, 0.1),
    "red": (0.0, 0.2),
    "grain": (0.02, 0.08),
    "edge": (0.06, 0.2),
}
"""Ranges in which lesions lie: how far the border leaves a circle, in radii; the number of dark round spots; the weight
of a blue-grey patch; from brown, 0, to the red of vessels, 1; the strength of the texture; the border's width."""

SETS: dict[str, dict[str, tuple[int, dict]]] = {
    "synthetic:objects": {name: (150, {}) for name in OBJECTS},
    "synthetic:lesions": {
        "nevus": (130, {"spots": (0, 6)}),
        "melanoma": (100, {"jagged": (0.15, 0.4), "patches": (0.3, 0.9), "spots": (0, 6)}),
        "keratosis": (90, {"jagged": (0.05, 0.25), "grain": (0.12, 0.25), "edge": (0.01, 0.04)}),
        "vascular": (80, {"red": (0.65, 1.0), "spots": (2, 9)}),
    },
    "synthetic:moles": {
        "common": (165, {"red": (0.0, 0.3)}),
        "atypical": (82, {"jagged": (0.15, 0.4), "red": (0.0, 0.3)}),
        "globular": (42, {"spots": (9, 18), "red": (0.0, 0.3)}),
        "melanoma": (21, {"jagged": (0.1, 0.4), "patches": (0.3, 0.9), "red": (0.0, 0.3)}),
    },
}
"""By set and class, in order: the number of lesions or objects, and the ranges that tell its lesions from others."""


def listing(name: str, root: Path | None = None) -> Listing:
    """Lists a drawn set: 900 objects, about 800 photographs of lesions, about 600 of moles.

    The group is the lesion, photographed one to three times.

    Args:
        name: A key of `SETS`.
        root: Not used: there are no files.
    """
    rng = _generator(name, "table")
    kinds = np.repeat(list(SETS[name]), [count for count, _ in SETS[name].values()])
    rng.shuffle(kinds)
    shots = np.ones_like(kinds, int) if name == "synthetic:objects" else rng.integers(1, MAX_SHOTS + 1, len(kinds))
    short = name.removeprefix(PREFIX)
    rows = [
        (f"{short}-{number:04d}-{shot}", f"{name}/{kind}/{number:04d}-{shot}", kind, f"{short}-{number:04d}")
        for number, (kind, count) in enumerate(zip(kinds.tolist(), shots.tolist(), strict=True))
        for shot in range(count)
    ]
    frame = pd.DataFrame(rows, columns=["id", "path", "label", "group"], dtype=object).assign(split=None)
    return Listing(frame, tuple(SETS[name]))


def is_drawn(path: str) -> bool:
    """Says whether a path names a drawn image."""
    return path.startswith(PREFIX)


def draw(path: str) -> np.ndarray:
    """Draws the image that a path names.

    Args:
        path: The path of an image that `listing` lists.

    Returns:
        uint8 [64, 64, 3], RGB.
    """
    name, kind, numbers = path.split("/")
    number, shot = numbers.split("-")
    thing, photograph = _generator(name, kind, int(number)), _generator(name, kind, int(number), int(shot))
    if name == "synthetic:objects":
        image = _object(thing, kind)
    else:
        image = _lesion(thing, photograph, LOOK | SETS[name][kind][1])
    if name == "synthetic:moles":  # another camera: bluish, lit from a side
        x, _ = _canvas(photograph.uniform(0.0, 2 * np.pi))
        image = image * (0.86 + 0.2 * x[..., None]) * np.array([0.86, 0.97, 1.12])
    image = image + photograph.normal(0.0, 0.028 if name == "synthetic:moles" else 0.015, image.shape)
    return np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)


def _lesion(thing: np.random.Generator, shot: np.random.Generator, look: dict) -> np.ndarray:
    """Draws a lesion: `thing` is the chance that all of its photographs share, `shot` that of one."""
    jagged, spots, patches, red, grain, edge = (thing.uniform(*bounds) for bounds in look.values())
    radius, skin = thing.uniform(0.42, 0.62), thing.uniform([0.80, 0.60, 0.48], [0.93, 0.76, 0.68])
    brown = thing.uniform([0.32, 0.18, 0.12], [0.60, 0.40, 0.26])
    x, y = _canvas(shot.uniform(0.0, 2 * np.pi), shot.uniform(-0.12, 0.12, 2), shot.uniform(0.88, 1.12))
    angle, border = np.arctan2(y, x), np.ones_like(x)
    for waves in (2, 3, 5, 7):
        border += 0.5 * jagged * thing.uniform(0.3, 1.0) * np.cos(waves * angle - thing.uniform(0.0, 2 * np.pi))
    inside = _ramp(1.0 - np.hypot(x, y) / (radius * border), edge)
    pigment = brown + red * (np.array([0.62, 0.14, 0.22]) - brown)
    image = pigment + grain * _waves(thing, x, y, 14.0)[..., None]
    for _ in range(round(spots)):
        where, size = radius * 0.8 * np.sqrt(thing.uniform()), thing.uniform(0.045, 0.075)
        turn = thing.uniform(0.0, 2 * np.pi)
        far = np.hypot(x - where * np.cos(turn), y - where * np.sin(turn)) / size
        image = _mix(image, 0.3 * pigment, 0.8 * np.exp(-far * far))
    image = _mix(image, np.array([0.42, 0.45, 0.50]), patches * _ramp(_waves(thing, x, y, 4.0) - 0.2, 0.1))
    return _mix(skin + 0.02 * _waves(thing, x, y, 6.0)[..., None], image, 0.9 * inside)


def _object(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Draws an object of `OBJECTS` on a textured ground, from which its colour keeps a distance."""
    x, y = _canvas()
    ground = rng.uniform(0.1, 0.9, 3)
    colour = np.clip(ground + np.where(ground > 0.5, -1, 1) * rng.uniform(0.3, 0.6, 3), 0.0, 1.0)
    image = ground + 0.1 * _waves(rng, x, y, rng.uniform(4.0, 20.0))[..., None]
    x, y = _canvas(rng.uniform(0.0, 2 * np.pi), rng.uniform(-0.22, 0.22, 2), rng.uniform(0.5, 0.78))
    radius = np.hypot(x, y)
    depth = {
        "disc": 0.85 - radius,
        "ring": 0.24 - np.abs(radius - 0.68),
        "square": 0.75 - np.maximum(np.abs(x), np.abs(y)),
        "triangle": 0.48 - np.maximum(-y, 0.5 * y + np.sqrt(0.75) * np.abs(x)),
        "star": 0.66 + 0.26 * np.cos(5 * np.arctan2(y, x)) - radius,
        "stripes": np.minimum(0.9 - radius, 0.1 * np.cos(11.0 * x)),
    }[kind]
    return _mix(image, colour + 0.1 * _waves(rng, x, y, 10.0)[..., None], _ramp(depth, 0.03))


def _canvas(angle: float = 0.0, shift: np.ndarray | None = None, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y, [SIZE, SIZE] each from -1 to 1, of a frame that is turned, moved and scaled."""
    axis = (np.arange(SIZE) + 0.5) / (SIZE / 2) - 1.0
    shift = np.zeros(2) if shift is None else shift
    x, y = np.meshgrid((axis - shift[0]) / scale, (axis - shift[1]) / scale)
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _waves(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, pitch: float) -> np.ndarray:
    """Samples a smooth random field of about unit variance: six plane waves of about one pitch."""
    total = np.zeros_like(x)
    for turn, phase in rng.uniform(0.0, 2 * np.pi, (6, 2)):
        total += np.cos(pitch * (np.cos(turn) * x + np.sin(turn) * y) + phase)
    return total / np.sqrt(3.0)


def _ramp(value: np.ndarray, softness: float) -> np.ndarray:
    """Rises from 0 to 1 around 0, over about four times `softness`; the edge of a shape."""
    return 0.5 + 0.5 * np.tanh(value / (2.0 * softness))


def _mix(base: np.ndarray, colour: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """Lays a colour, [3] or [SIZE, SIZE, 3], over an image by an amount, [SIZE, SIZE] in [0, 1]."""
    return base + amount[..., None] * (colour - base)


def _generator(*key: str | int) -> np.random.Generator:
    """Returns the generator of a key; Python's salted `hash` has no part in it."""
    entropy = [int.from_bytes(part.encode(), "big") if isinstance(part, str) else part for part in key]
    # The length keeps a key apart from the same key with zeros behind it.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([len(key), *entropy])))
