"""The strokes that the synthetic images are drawn with.

Everything works in float64 on a square canvas with coordinates from -1 to 1, x to the right and
y down, and takes its chance from a `numpy.random.Generator`. In float64 the last bits, which may
differ between processors, do not reach the 8-bit pixels.
"""

from __future__ import annotations

from functools import cache

import numpy as np

SIZE = 64
"""Side of the canvas in pixels."""

Array = np.ndarray


@cache
def _axes() -> tuple[Array, Array]:
    axis = (np.arange(SIZE) + 0.5) / (SIZE / 2) - 1.0
    x, y = np.meshgrid(axis, axis)
    x.flags.writeable = y.flags.writeable = False
    return x, y


def canvas(angle: float = 0.0, shift: tuple[float, float] = (0.0, 0.0), scale: float = 1.0) -> tuple[Array, Array]:
    """Returns x and y, [SIZE, SIZE] each, of a frame that is turned, moved and scaled."""
    x, y = _axes()
    x, y = (x - shift[0]) / scale, (y - shift[1]) / scale
    cosine, sine = np.cos(angle), np.sin(angle)
    return cosine * x + sine * y, cosine * y - sine * x


def field(rng: np.random.Generator, x: Array, y: Array, cells: int, octaves: int = 1) -> Array:
    """Samples a smooth random field, of about zero mean and unit variance, at (x, y).

    Value noise: normal numbers on a lattice of `cells` cells over [-1, 1], smoothly interpolated;
    each further octave has twice the cells and half the weight. What lies outside of [-2, 2]
    repeats the rim.
    """
    total, weights = np.zeros_like(x), 0.0
    for octave in range(octaves):
        number, weight = 2 * cells * 2**octave, 0.5**octave
        lattice = rng.standard_normal((number + 1, number + 1)).ravel()
        column, u = _cell(x, number)
        row, v = _cell(y, number)
        corner = row * (number + 1) + column
        top = lattice[corner] * (1 - u) + lattice[corner + 1] * u
        corner += number + 1
        bottom = lattice[corner] * (1 - u) + lattice[corner + 1] * u
        total += weight * (top * (1 - v) + bottom * v)
        weights += (0.6 * weight) ** 2  # interpolation shrinks the variance
    return total / np.sqrt(weights)


def _cell(position: Array, number: int) -> tuple[Array, Array]:
    """Returns the lattice cell of each position and the smooth step within it."""
    scaled = np.clip((position + 2.0) * (number / 4.0), 0.0, number - 1e-6)
    cell = scaled.astype(np.int64)
    within = scaled - cell
    return cell, within * within * (3.0 - 2.0 * within)


def ramp(value: Array, softness: float) -> Array:
    """Rises from 0 to 1 around 0, over about four times `softness`; the edge of a shape."""
    return 0.5 + 0.5 * np.tanh(value / (2.0 * softness))


def mix(base: Array, colour: Array, amount: Array) -> Array:
    """Lays a colour, [3] or [SIZE, SIZE, 3], over an image by an amount, [SIZE, SIZE] in [0, 1]."""
    return base + amount[..., None] * (colour - base)


def spots(x: Array, y: Array, centres: Array, radii: Array) -> Array:
    """Sums round spots: centres [K, 2] and radii [K]; 1 at a lone centre, clipped at 1."""
    dx = x[None] - centres[:, 0, None, None]
    dy = y[None] - centres[:, 1, None, None]
    near = (dx * dx + dy * dy) / (radii * radii)[:, None, None]
    return np.clip(np.exp(-near).sum(axis=0), 0.0, 1.0)


def hairs(rng: np.random.Generator, number: int) -> Array:
    """Draws thin curved lines across the canvas; returns how much of each pixel they cover."""
    cover = np.zeros((SIZE, SIZE))
    for _ in range(number):
        along, across = canvas(rng.uniform(0.0, np.pi))
        curve = rng.uniform(-0.9, 0.9) + rng.uniform(-0.4, 0.4) * along * along
        width = rng.uniform(0.014, 0.026)
        cover = np.maximum(cover, np.clip(1.4 - np.abs(across - curve) / width, 0.0, 1.0))
    return cover


def to_pixels(image: Array) -> Array:
    """Rounds an image in [0, 1] to uint8, clipping what is beyond."""
    return np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
