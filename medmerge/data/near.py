"""Images that look nearly the same: perceptual hashes, and the pairs that are close.

A hash is imagehash's `phash` of 16 x 16: the image in grey at 64 px, its 256 lowest frequencies
(discrete cosine transform), a bit each for above or below their median. The distance of two images
is the number of bits that differ: 128 on average for unrelated ones.

The threshold was measured on images of 64 px, with 300 altered copies of each of HAM10000 (10,015
images), Kermany's chest X-rays (5,840), ISIC-2019 (the 2,745 of ISIC-2017) and an NIH list (1,000).
Within 32 of the 256 bits are

- all copies saved again as JPEG of quality 50, all of half the size, 99 % or more of those with a
  fifth more light or contrast, 92 to 99 % of those that lost 1 % on each side; but under 40 % of
  those that lost 2.5 % on each side, under 20 % of those turned by 2 degrees, and no mirrored one;
- 116 pairs of HAM10000, of which 115 are of one lesion, and the other is too by the look of it; 34
  pairs of Kermany's, all byte-identical; 15 of ISIC-2019, only one of which shares a lesion id
  although they all look like one picture; one of the NIH list, byte-identical.

With 64 bits (8 x 8), the usual size, the same copies are found within 8 bits, among 10,444 pairs of
Kermany's X-rays: they resemble each other too much for it.

Fundus photographs need a closer threshold: the bright disc on black decides most bits. Of 4,217 in
four folders, 1,238 pairs are within 32 bits, 394 of them in two folders, and many are different
eyes by the look of them, from about 12 bits on. Within 8 there are 16 pairs, which look like copies.
The same holds for images of 28 px, which have no fine detail.
"""

from __future__ import annotations

import imagehash
import numpy as np
from PIL import Image

HASH_SIZE = 16
BITS = HASH_SIZE**2
MAX_DISTANCE = 32
"""Pairs up to this distance are candidates: to be looked at, not proof. See the module's text."""

_ROWS = 256


def hashes(pixels: np.ndarray) -> np.ndarray:
    """Hashes images.

    Args:
        pixels: uint8 [N, S, S, 3], RGB. 64 px are taken as they are, others are resized.

    Returns:
        uint64 [N, 4].
    """
    bits = np.empty((len(pixels), BITS), dtype=bool)
    for row, image in enumerate(pixels):
        bits[row] = imagehash.phash(Image.fromarray(np.asarray(image)), hash_size=HASH_SIZE).hash.ravel()
    return np.packbits(bits, axis=1).view(np.uint64)


def pairs(hashed: np.ndarray, distance: int = MAX_DISTANCE) -> tuple[np.ndarray, np.ndarray]:
    """Finds all pairs of images that are close.

    All pairs are compared, in blocks: memory grows with the close ones alone.

    Args:
        hashed: uint64 [N, W].
        distance: The largest number of bits that may differ.

    Returns:
        The pairs, int64 [M, 2], each with the lower row first; and their distances, int64 [M], in
        rising order.
    """
    found = [np.empty((0, 3), dtype=np.int64)]
    for top in range(0, len(hashed), _ROWS):
        one, other = hashed[top : top + _ROWS], hashed[top:]
        # Half of the bits, those of the finer details, rule out nearly all pairs.
        partial = np.zeros((len(one), len(other)), dtype=np.uint16)
        for word in range(hashed.shape[1] // 2, hashed.shape[1]):
            partial += np.bitwise_count(one[:, word, None] ^ other[None, :, word])
        rows, columns = np.nonzero(np.triu(partial <= distance, k=1))
        bits = np.bitwise_count(one[rows] ^ other[columns]).sum(axis=1, dtype=np.int64)
        block = np.stack([bits, rows + top, columns + top], axis=1)
        found.append(block[bits <= distance])
    closest = np.concatenate(found)
    closest = closest[np.lexsort(closest.T[::-1])]
    return closest[:, 1:], closest[:, 0]
