"""From a path to pixels: rows of npz files, and pixels that must never change."""

import base64
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


def npz_table(path, rows: int, folder=None) -> Table:
    """The rows of an npz file's array "train" as a table of two classes."""
    folder = folder or path.parent
    lines = "".join(f"{row:04d},{'ab'[row % 2]}\n" for row in range(rows))
    labels = write_csv(folder, "image,label\n" + lines)
    frame = load_table("csv", folder, labels=labels, missing="keep").frame
    return Table("rows", frame.assign(path=[f"{path}#train/{row}" for row in range(rows)]), ("a", "b"))


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


def test_real_npz_file(tmp_path):
    path = real("medmnist", "retinamnist.npz")
    with np.load(path) as data:
        expected = data["train_images"][:40]
    table = npz_table(path, 40, folder=tmp_path)
    images = load_images(table, 28, cache=tmp_path / "cache")
    assert (images.pixels == expected).all()
    assert images.digests[17] == hashlib.sha256(expected[17].tobytes()).hexdigest()


# What must never change: recorded results rest on these pixels and fingerprints.

JPEG = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQ"
    "YEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wAARCAASABgD"
    "ASIAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKB"
    "kaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZ"
    "mqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/8QAHwEAAwEBAQEBAQEBAQAAAAAAAAECAwQF"
    "BgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAECAxEEBSExBhJBUQdhcRMiMoEIFEKRobHBCSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5"
    "OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyMnK0tPU1dbX"
    "2Nna4uPk5ebn6Onq8vP09fb3+Pn6/9oADAMBAAIRAxEAPwDo7XWobl9qMCag1i6WHG49a4XQrl4roEsa2dcuTcBea6JUo08Qo0NWcuKwMvYtSNq0"
    "PnoGWiqmjXHlwAGivJr5JVqVHJ7s8yOY+xXJ2OO03/j4Fa970FFFevhP9+ifV5h8Boad/qhRRRXuVPiZ+eYj+Iz/2Q=="
)
PNG16 = (
    "iVBORw0KGgoAAAANSUhEUgAAAAcAAAAFEAAAAAD8YXVHAAAAQ0lEQVR4nGNgYGBv5+cXmyYnp7pUV5fFZAtHBzscs5huhXE4trDbsJhuYbfhgOCt"
    "HO0Mly7dinz48GXGhw8/yv//BwAJcht2nIm/YAAAAABJRU5ErkJggg=="
)


def test_pixels_and_fingerprints_of_files_are_as_ever(tmp_path):
    (tmp_path / "a.jpg").write_bytes(base64.b64decode(JPEG))
    (tmp_path / "b.png").write_bytes(base64.b64decode(PNG16))
    table = load_table("csv", tmp_path, labels=write_csv(tmp_path, "image,label\na.jpg,x\nb.png,y\n"))
    images = load_images(table, 10, cache=tmp_path / "cache")
    assert [hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in images.pixels] == [
        "87bb423a3a10a22dcb9938faf3544a1232e14d425452df494a7a6434180875fc",
        "aa3f71ccea80b523ef278362c25fedfbae50b1d48660cfb0ac49259d97002b3f",
    ]
    assert images.fingerprint == "c52fd21ecea50f4775d0643910a7ff7f2b94cb2ac3d1a4885451ed0ae70ae40c"


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
