"""Images drawn by code, for a demonstration that needs no download.

Three sets take the parts of a real study: `objects` for natural images, `lesions` for a medical
source, `moles` for the target, which is smaller, long-tailed, and seen through another camera. They
resemble dermoscopy and are not data: no conclusion about medicine rests on them.

A path such as "synthetic:moles/globular/0012-1" says all that is needed to draw the image: the
set, the class, the number of the lesion and that of its photograph. The same path gives the same
pixels on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medmerge.data import scenes
from medmerge.data.base import DataError, Listing, listing_frame

VERSION = 1
"""Of the drawings; to be raised with every change of a pixel, or caches go stale."""

PREFIX = "synthetic:"
MAX_SHOTS = 3


@dataclass(frozen=True)
class DrawnSet:
    """A set of drawn images.

    Attributes:
        things: For each class, in order, the number of lesions or objects.
        shots: Whether each is photographed 1 to `MAX_SHOTS` times, or once.
    """

    things: Mapping[str, int]
    shots: bool


SETS: dict[str, DrawnSet] = {
    "synthetic:objects": DrawnSet(dict.fromkeys(scenes.OBJECTS, 150), shots=False),
    "synthetic:lesions": DrawnSet({"nevus": 130, "melanoma": 100, "keratosis": 90, "vascular": 80}, shots=True),
    "synthetic:moles": DrawnSet({"common": 165, "atypical": 82, "globular": 42, "melanoma": 21}, shots=True),
}


def listing(name: str, root: Path | None = None, labels: str | None = None) -> Listing:
    """Lists a drawn set: 900 objects, about 800 photographs of lesions, about 600 of moles.

    The group is the lesion, photographed one to three times.

    Args:
        name: A key of `SETS`.
        root: Not used: there are no files.
        labels: Not used.
    """
    drawn_set = SETS[name]
    rng = _generator(name, "table")
    kinds = np.repeat(list(drawn_set.things), list(drawn_set.things.values()))
    rng.shuffle(kinds)
    shots = rng.integers(1, MAX_SHOTS + 1, len(kinds)) if drawn_set.shots else np.ones_like(kinds, int)
    short = name.removeprefix(PREFIX)
    ids, paths, classes, groups = [], [], [], []
    for number, (kind, count) in enumerate(zip(kinds.tolist(), shots.tolist(), strict=True)):
        for shot in range(count):
            ids.append(f"{short}-{number:04d}-{shot}")
            paths.append(f"{name}/{kind}/{number:04d}-{shot}")
            classes.append(kind)
            groups.append(f"{short}-{number:04d}")
    frame = listing_frame(ids, paths, classes, groups)
    return Listing(frame=frame, classes=tuple(drawn_set.things))


def is_drawn(path: str) -> bool:
    """Says whether a path names a drawn image."""
    return path.startswith(PREFIX)


def draw(path: str) -> np.ndarray:
    """Draws the image that a path names.

    Returns:
        uint8 [64, 64, 3], RGB.

    Raises:
        DataError: The path names no image.
    """
    name, _, rest = path.partition("/")
    kind, _, numbers = rest.partition("/")
    number, _, shot = numbers.partition("-")
    if name not in SETS or kind not in SETS[name].things or not (number.isdecimal() and shot.isdecimal()):
        raise DataError(
            f"{path!r} names no drawn image; one is {PREFIX}lesions/nevus/0000-0, and the sets are {', '.join(SETS)}"
        )
    identity = _generator(name, kind, int(number))
    photograph = _generator(name, kind, int(number), int(shot))
    if name == "synthetic:objects":
        return scenes.thing(identity, kind)
    if name == "synthetic:lesions":
        return scenes.lesion(identity, photograph, scenes.LESIONS[kind])
    return scenes.mole(identity, photograph, scenes.MOLES[kind])


def _generator(*key: str | int) -> np.random.Generator:
    """Returns the generator of a key; Python's salted `hash` has no part in it."""
    entropy = [int.from_bytes(part.encode(), "big") if isinstance(part, str) else part for part in key]
    # The length keeps a key apart from the same key with zeros behind it.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([len(key), *entropy])))
