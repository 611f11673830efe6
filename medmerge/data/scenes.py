"""What the synthetic images show: objects, and skin lesions as two cameras see them.

A lesion is described by a few numbers (`LESIONS`, `MOLES`: ranges for each class), which have
their models in dermoscopy: irregular border, asymmetry, several colours, globules, network,
cysts. The two sets share these structures and draw the line between classes elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from medmerge.data.drawing import Array, canvas, field, hairs, mix, ramp, spots, to_pixels

Generator = np.random.Generator
Range = tuple[float, float]


@dataclass(frozen=True)
class Lesion:
    """Ranges that a class's lesions are drawn from; all but `globules` and `cysts` in [0, 1].

    Attributes:
        irregularity: How jagged and warped the border is.
        asymmetry: How much the two halves differ in extent and darkness.
        variegation: How many foreign colours there are: blue-grey, black, red, white.
        globules: Number of dark round spots.
        network: Strength of the pigment network, a grid of dark lines.
        cysts: Number of small bright spots.
        redness: From brown to the purple-red of vessels.
        darkness: Of the pigment.
        sharpness: Of the border.
        roughness: Of the texture inside.
    """

    irregularity: Range = (0.0, 0.3)
    asymmetry: Range = (0.0, 0.2)
    variegation: Range = (0.0, 0.0)
    globules: Range = (0.0, 0.0)
    network: Range = (0.0, 0.25)
    cysts: Range = (0.0, 0.0)
    redness: Range = (0.0, 0.1)
    darkness: Range = (0.3, 0.8)
    sharpness: Range = (0.2, 0.7)
    roughness: Range = (0.1, 0.4)


LESIONS = {
    "nevus": Lesion(irregularity=(0.0, 0.4), globules=(0, 6), network=(0.0, 0.9)),
    "melanoma": Lesion(
        irregularity=(0.5, 1.0),
        asymmetry=(0.4, 1.0),
        variegation=(0.5, 1.0),
        globules=(0, 10),
        roughness=(0.4, 0.9),
    ),
    "keratosis": Lesion(
        irregularity=(0.2, 0.8),
        asymmetry=(0.0, 0.5),
        globules=(0, 8),
        cysts=(5, 16),
        sharpness=(0.8, 1.0),
        roughness=(0.7, 1.0),
    ),
    "vascular": Lesion(
        irregularity=(0.1, 0.6),
        globules=(6, 16),
        redness=(0.65, 1.0),
        network=(0.0, 0.0),
        sharpness=(0.4, 0.9),
    ),
}

MOLES = {
    "common": Lesion(irregularity=(0.0, 0.3), cysts=(0, 2), redness=(0.0, 0.3)),
    "atypical": Lesion(irregularity=(0.6, 1.0), asymmetry=(0.2, 0.6), cysts=(0, 2), redness=(0.0, 0.3)),
    "globular": Lesion(irregularity=(0.0, 0.5), globules=(9, 18), redness=(0.0, 0.3)),
    "melanoma": Lesion(
        irregularity=(0.4, 1.0),
        asymmetry=(0.4, 1.0),
        variegation=(0.5, 1.0),
        globules=(0, 6),
        redness=(0.0, 0.3),
    ),
}

OBJECTS = ("disc", "ring", "square", "triangle", "star", "stripes")

_PALE, _TANNED = np.array([0.93, 0.76, 0.68]), np.array([0.80, 0.60, 0.48])
_LIGHT_BROWN, _DARK_BROWN = np.array([0.66, 0.44, 0.29]), np.array([0.20, 0.11, 0.08])
_LIGHT_RED, _DARK_RED = np.array([0.80, 0.30, 0.32]), np.array([0.36, 0.06, 0.16])
_FOREIGN = (
    np.array([0.42, 0.45, 0.50]),  # blue-grey veil
    np.array([0.09, 0.06, 0.06]),  # black blotch
    np.array([0.68, 0.34, 0.28]),  # red
    np.array([0.84, 0.72, 0.66]),  # white regression
)
_CYST = np.array([0.93, 0.84, 0.70])
_HAIR = np.array([0.16, 0.12, 0.11])


def lesion(identity: Generator, shot: Generator, ranges: Lesion) -> Array:
    """Draws a lesion as a clean contact dermatoscope shows it.

    Args:
        identity: Chance that belongs to the lesion; the same for all of its photographs.
        shot: Chance that belongs to the photograph: its angle, place, light and noise.
        ranges: The class.

    Returns:
        uint8 [SIZE, SIZE, 3], RGB.
    """
    image = _lesion_on_skin(identity, shot, ranges)
    x, y = canvas()
    light = 1.0 - 0.12 * (x * x + y * y) + shot.normal(0.0, 0.03)
    image = image * light[..., None] + shot.normal(0.0, 0.012, image.shape)
    return to_pixels(image)


def mole(identity: Generator, shot: Generator, ranges: Lesion) -> Array:
    """Draws a lesion as another camera sees it: bluish, lit from a side, with hairs and noise.

    Arguments and result are those of `lesion`.
    """
    image = _lesion_on_skin(identity, shot, ranges)
    image = mix(image, _HAIR, 0.75 * hairs(shot, int(shot.integers(0, 4))))
    x, y = canvas(shot.uniform(0.0, 2 * np.pi))
    light = 0.86 + 0.20 * x - 0.10 * y * y
    cast = np.array([0.86, 0.97, 1.12]) * (1.0 + shot.normal(0.0, 0.02, 3))
    image = np.clip(image, 0.0, 1.0) ** 1.12 * light[..., None] * cast + 0.03
    return to_pixels(image + shot.normal(0.0, 0.028, image.shape))


def _lesion_on_skin(identity: Generator, shot: Generator, ranges: Lesion) -> Array:
    drawn = {part.name: identity.uniform(*getattr(ranges, part.name)) for part in fields(ranges)}
    lesion = replace(ranges, **drawn)
    skin = _PALE + identity.uniform(0.0, 1.0) * (_TANNED - _PALE) + identity.normal(0.0, 0.012, 3)
    radius = identity.uniform(0.42, 0.62)
    turn, scale = shot.uniform(0.0, 2 * np.pi), shot.uniform(0.88, 1.12)
    x, y = canvas(turn, tuple(shot.uniform(-0.12, 0.12, 2)), scale)
    depth, side = _extent(identity, lesion, radius, x, y)
    edge = ramp(depth, 0.055 - 0.04 * lesion.sharpness)

    relief = field(identity, x, y, 3) * 0.025 + field(shot, x, y, 14) * 0.018
    image = skin + relief[..., None]
    opacity = edge * (0.72 + 0.25 * lesion.darkness)
    return mix(image, _pigment(identity, lesion, depth, side, x, y), opacity)


def _extent(rng: Generator, lesion: Lesion, radius: float, x: Array, y: Array) -> tuple[Array, Array]:
    """Returns how deep inside the border each pixel is, and on which side of the axis."""
    axis = rng.uniform(0.0, 2 * np.pi)
    side = np.cos(axis) * x + np.sin(axis) * y
    warp = 0.07 * lesion.irregularity
    x, y = x + warp * field(rng, x, y, 4, 2), y + warp * field(rng, x, y, 4, 2)
    angle = np.arctan2(y, x)
    border = 1.0 + rng.uniform(0.0, 0.16) * np.cos(2 * angle - rng.uniform(0.0, 2 * np.pi))
    for waves in (3, 5, 7):
        amplitude = lesion.irregularity * rng.uniform(0.03, 0.11)
        border += amplitude * np.cos(waves * angle - rng.uniform(0.0, 2 * np.pi))
    border += 0.25 * lesion.asymmetry * np.cos(angle - axis)
    return radius * border - np.hypot(x, y), side / radius


def _pigment(rng: Generator, lesion: Lesion, depth: Array, side: Array, x: Array, y: Array) -> Array:
    """Returns the colour of the lesion at each pixel, [SIZE, SIZE, 3]."""
    tone = 0.25 + 0.55 * lesion.darkness + 0.5 * depth
    tone = tone + 0.35 * lesion.asymmetry * side
    tone = tone + lesion.roughness * (0.13 * field(rng, x, y, 5, 2) + 0.07 * field(rng, x, y, 16))
    pitch = rng.uniform(27.0, 35.0)
    wobble = 0.5 * field(rng, x, y, 4)
    lines = np.maximum(np.cos(pitch * x + wobble), np.cos(pitch * y - wobble)) - 0.5
    tone = tone + 0.30 * lesion.network * lines
    spread = np.sqrt(rng.uniform(0.0, 0.5, 18)), rng.uniform(0.0, 2 * np.pi, 18)
    centres = 0.62 * np.stack([spread[0] * np.cos(spread[1]), spread[0] * np.sin(spread[1])], 1)
    globules, cysts = round(lesion.globules), round(lesion.cysts)
    size = 0.055 + 0.045 * lesion.redness
    tone = tone + 0.55 * spots(x, y, centres[:globules], rng.uniform(0.8, 1.25, globules) * size)
    tone = np.clip(tone, 0.0, 1.0)

    light = _LIGHT_BROWN + lesion.redness * (_LIGHT_RED - _LIGHT_BROWN)
    dark = _DARK_BROWN + lesion.redness * (_DARK_RED - _DARK_BROWN)
    image = mix(np.broadcast_to(light, (*x.shape, 3)), dark, tone)
    bright = spots(x, y, centres[::-1][:cysts], np.full(cysts, 0.04))
    image = mix(image, _CYST, 0.8 * bright)
    foreign = 1 + round(2 * lesion.variegation) if lesion.variegation else 0
    for colour in rng.permutation(len(_FOREIGN))[:foreign]:
        patch = ramp(field(rng, x, y, 3, 2) - 0.65, 0.22)
        shaded = _FOREIGN[colour] * (1.2 - 0.5 * tone)[..., None]
        image = mix(image, shaded, 0.8 * patch)
    return image


def thing(rng: Generator, kind: str) -> Array:
    """Draws an object of `OBJECTS` on a textured ground.

    Returns:
        uint8 [SIZE, SIZE, 3], RGB.
    """
    x, y = canvas()
    colours = rng.uniform(0.05, 0.95, (4, 3))
    # The object's colour keeps a distance from the ground's, so that there is something to see.
    ground = mix(np.broadcast_to(colours[0], (*x.shape, 3)), colours[1], _texture(rng, x, y))
    away = np.where(ground.mean(axis=(0, 1)) > 0.5, -0.55, 0.55) * rng.uniform(0.6, 1.0, 3)
    colour = np.clip(ground.mean(axis=(0, 1)) + away, 0.0, 1.0)

    angle, scale = rng.uniform(0.0, 2 * np.pi), rng.uniform(0.5, 0.78)
    shift = rng.uniform(-0.22, 0.22, 2)
    shadow = ramp(_inside(kind, *canvas(angle, tuple(shift + 0.07), scale)), 0.08)
    u, v = canvas(angle, tuple(shift), scale)
    body = np.clip(colour + 0.25 * (_texture(rng, u, v) - 0.5)[..., None] * colours[2], 0.0, 1.0)
    body = body * (1.0 - 0.22 * (x + y))[..., None]
    image = mix(ground, np.zeros(3), 0.45 * shadow)
    image = mix(image, body, ramp(_inside(kind, u, v), 0.012))
    return to_pixels(image + rng.normal(0.0, 0.02, image.shape))


def _texture(rng: Generator, x: Array, y: Array) -> Array:
    """Returns one of four textures in [0, 1]: clouds, grain, waves, a lattice."""
    kind, angle = int(rng.integers(4)), rng.uniform(0.0, np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    pitch = rng.uniform(12.0, 24.0)
    cloud = field(rng, x, y, 3, 3)
    if kind == 0:
        return ramp(cloud, 0.6)
    if kind == 1:
        return ramp(field(rng, x, y, 14), 0.6)
    if kind == 2:
        return 0.5 + 0.35 * np.sin(pitch * along + 1.2 * cloud)
    return 0.5 + 0.35 * np.sin(pitch * along) * np.sin(pitch * across)


def _inside(kind: str, x: Array, y: Array) -> Array:
    """Returns a value that is positive inside of a shape of about unit radius."""
    radius = np.hypot(x, y)
    if kind == "disc":
        return 0.85 - radius
    if kind == "ring":
        return 0.24 - np.abs(radius - 0.68)
    if kind == "square":
        return 0.75 - np.maximum(np.abs(x), np.abs(y))
    if kind == "triangle":
        return 0.48 - np.maximum(-y, 0.5 * y + np.sqrt(0.75) * np.abs(x))
    if kind == "star":
        return 0.66 + 0.26 * np.cos(5 * np.arctan2(y, x)) - radius
    return np.minimum(0.9 - radius, np.cos(11.0 * x) * 0.1)
