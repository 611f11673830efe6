"""From a path to pixels: rows of npz files, and pixels that must never change."""

import hashlib

import numpy as np
import pytest
from data_fixtures import real, write_csv, write_image
from PIL import Image

from medmerge.data import DataError, Table, load_images, load_table
from medmerge.data.decode import open_arrays, read_image
from medmerge.data.images import FILL

RANDOM = np.random.default_rng(0)


# Rows of npz files.


@pytest.mark.parametrize("shape", [(6, 9, 7), (6, 9, 7, 3)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_of_an_npz_file(tmp_path, shape, save, order):
    arrays = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    save(tmp_path / "set.npz", train_images=np.asarray(arrays, order=order), train=np.zeros(3), test_images=arrays[:1])
    (tmp_path / "cache").mkdir()
    opened = open_arrays([f"{tmp_path}/set.npz#train/0"], tmp_path / "cache")
    for row in (5, 0, 3):
        found = read_image(f"{tmp_path}/set.npz#train/{row}", opened)
        expected = arrays[row] if len(shape) == 4 else np.repeat(arrays[row][..., None], 3, axis=2)
        assert (np.asarray(found.image) == expected).all()
        assert found.digest == hashlib.sha256(arrays[row].tobytes()).hexdigest()
    assert list((tmp_path / "cache").iterdir()) == []


# What must never change: recorded results rest on these pixels and fingerprints.


def test_pixels_and_fingerprints_of_drawings_are_as_ever():
    images = load_images(load_table("synthetic:moles"), 16)
    assert hashlib.sha256(images.pixels.tobytes()).hexdigest() == (
        "694d75280a211f8a3015ea33a7544f9204fbfa08d3d3bb7431dff6e3b9f2d9d3"
    )
    assert images.fingerprint == "f453425a7aa9ec41f48187cecf992694433ed5d71a6a7129df187cb98485849a"


def test_pixels_and_fingerprints_of_ham10k_are_as_ever(tmp_path):
    table = load_table("ham10k", real("ham10000"))
    first = Table(table.name, table.frame.iloc[:300].reset_index(drop=True), table.classes)
    images = load_images(first, 32, cache=tmp_path)
    assert hashlib.sha256(images.pixels.tobytes()).hexdigest() == (
        "aee7d415e829b655f1d44348b9eeb70271c9d41e3a92be4e18bce5705fccd933"
    )
    assert images.fingerprint == "cdfca2e5859ab404ad601c18832e58823288763c26d9728b088c2f615c141bfa"


# ---------------------------------------------------------------- padding


@pytest.mark.parametrize(("width", "height"), [(20, 15), (32, 32), (31, 1), (64, 48), (9, 300), (1, 400)])
def test_a_padded_image_keeps_its_proportions_and_is_never_enlarged(tmp_path, width, height):
    path = write_image(tmp_path / "a.png", 3, (width, height))
    table = load_table("csv", tmp_path, labels=write_csv(tmp_path, "image,label\na.png,x\nb.png,y\n", ("b.png",)))
    found = load_images(table, 32, resize="pad", cache=tmp_path / "cache").pixels[0]
    sides = [max(1, round(side * min(1, 32 / max(width, height)))) for side in (width, height)]
    left, top = ((32 - side) // 2 for side in sides)
    inner = found[top : top + sides[1], left : left + sides[0]]
    assert np.array_equal(inner, np.asarray(Image.open(path).resize(sides, Image.Resampling.BILINEAR)))
    outside = np.ones((32, 32), bool)
    outside[top : top + sides[1], left : left + sides[0]] = False
    assert (found[outside] == FILL).all() and outside.sum() == 32 * 32 - sides[0] * sides[1]


def test_padded_and_stretched_images_are_kept_apart(tmp_path):
    write_image(tmp_path / "a.png", 3, (20, 10))
    table = load_table("csv", tmp_path, labels=write_csv(tmp_path, "image,label\na.png,x\nb.png,y\n", ("b.png",)))
    ways = [load_images(table, 16, resize=way, cache=tmp_path / "cache") for way in ("stretch", "pad", "stretch")]
    assert np.array_equal(ways[0].pixels, ways[2].pixels) and not np.array_equal(ways[0].pixels, ways[1].pixels)
    assert ways[0].fingerprint == ways[1].fingerprint, "of the files"
    with pytest.raises(DataError, match="resize is 'crop'; it is stretch or pad"):
        load_images(table, 16, resize="crop", cache=tmp_path / "cache")


def test_padding_is_that_of_the_published_benchmark(tmp_path):
    """Doerrich et al. (2025) normalise the 28 px and then pad with zeros; half a grey level is the difference."""
    table = load_table("medmnist:retinamnist", real("medmnist"))
    few = Table(table.name, table.frame.iloc[:5].reset_index(drop=True), table.classes)
    ours, small = (load_images(few, size, resize="pad", cache=tmp_path).pixels / 255 for size in (224, 28))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    theirs = np.pad((small - mean) / std, ((0, 0), (98, 98), (98, 98), (0, 0)))
    assert np.abs((ours - mean) / std - theirs).max() < 0.5 / 255 / 0.224
    assert np.array_equal(ours[:, 98:126, 98:126], small)
