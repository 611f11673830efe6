"""From a path to pixels: modes, depths, rows of npz files, padding; fingerprints, and pixels that must never change."""

import hashlib

import numpy as np
import pytest
from data_fixtures import real, write_csv, write_ham10k, write_image
from PIL import Image

from medmerge.data import DataError, Table, load_images, load_table
from medmerge.data.decode import open_arrays, read_image, to_rgb
from medmerge.data.images import FILL

RANDOM = np.random.default_rng(0)


@pytest.fixture
def table(tmp_path):
    return load_table("ham10k", write_ham10k(tmp_path / "ham"), missing="drop")


@pytest.fixture
def pixels_of(tmp_path):
    """Decodes an image that lies in the test's folder, beside another."""

    def pixels_of(name: str, size: int, **options) -> np.ndarray:
        labels = write_csv(tmp_path, f"image,label\n{name},a\nz.png,b\n", ("z.png",))
        table = load_table("csv", tmp_path, labels=labels)
        return load_images(table, size, cache=tmp_path / "cache", **options).pixels[0]

    return pixels_of


def test_pixels_are_those_of_pillow(table):
    pixels = load_images(table, 8).pixels
    assert pixels.shape == (14, 8, 8, 3) and pixels.dtype == np.uint8
    for row, path in enumerate(table.frame["path"]):
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR))
        assert (pixels[row] == expected).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16", "I", "YCbCr"])
def test_every_mode_becomes_rgb(mode):
    grey = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    if mode in ("I;16", "I"):
        image = Image.fromarray(grey.astype(np.uint16) * 257 if mode == "I;16" else grey.astype(np.int32) * 257)
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    assert image.mode == mode
    result = np.asarray(to_rgb(image))
    assert result.shape == (8, 8, 3) and result.dtype == np.uint8
    if mode not in ("1", "P"):  # these dither
        assert np.abs(result.astype(int) - grey[..., None]).max() <= 8


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path, pixels_of):
    Image.fromarray(np.array([[0, 200, 32768, 65535]] * 4, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert pixels_of("deep.png", 4)[0].tolist() == [[value] * 3 for value in (0, 1, 128, 255)]


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


# ---------------------------------------------------------------- fingerprints


def test_fingerprint_follows_contents_ids_and_class_names_only(table, tmp_path):
    fingerprint = load_images(table, 8).fingerprint
    moved = load_table("ham10k", write_ham10k(tmp_path / "elsewhere", folder="HAM10000_images_part_1"))
    backwards = Table(table.name, table.frame[::-1], table.classes)
    for same, size in ((table, 9), (moved, 8), (backwards, 8)):
        assert load_images(same, size).fingerprint == fingerprint
    relabelled = table.frame.assign(label=table.frame["label"].where(table.frame.index != 3, 0))
    renamed = table.frame.assign(id=table.frame["id"].replace("ISIC_0000003", "ISIC_0000103"))
    others = [Table(table.name, frame, table.classes) for frame in (relabelled, renamed, table.frame[:-1])]
    for other in (*others, Table(table.name, table.frame, ("other", *table.classes[1:]))):
        assert load_images(other, 8).fingerprint != fingerprint


def test_fingerprint_of_a_multi_label_table(table):
    labels = np.array([[1, 0], [0, 1], [np.nan, 1]] * 4 + [[0, 0], [1, 1]], dtype=np.float32)

    def fingerprint(values, classes=("Edema", "Fracture")):
        columns = {f"label:{name}": column for name, column in zip(classes, values.T, strict=True)}
        frame = table.frame.drop(columns="label").assign(**columns)
        return load_images(Table(table.name, frame, classes), 8).fingerprint

    prints = [fingerprint(labels), fingerprint(labels, ("Edema", "Pneumonia")), fingerprint(labels[:, ::-1])]
    for row, column, value in ((0, 0, 0), (0, 0, np.nan), (2, 0, 0), (13, 1, 0)):
        changed = labels.copy()
        changed[row, column] = value
        prints.append(fingerprint(changed))
    assert fingerprint(labels.copy()) == prints[0] and len(set(prints)) == len(prints)


def as_ever(table: Table, size: int) -> tuple[str, str]:
    images = load_images(table, size)
    return hashlib.sha256(images.pixels.tobytes()).hexdigest(), images.fingerprint


def test_pixels_and_fingerprints_are_as_ever():
    """Recorded results rest on them."""
    assert as_ever(load_table("synthetic:moles"), 16) == (
        "694d75280a211f8a3015ea33a7544f9204fbfa08d3d3bb7431dff6e3b9f2d9d3",
        "f453425a7aa9ec41f48187cecf992694433ed5d71a6a7129df187cb98485849a",
    )
    table = load_table("ham10k", real("ham10000"))
    assert as_ever(Table(table.name, table.frame.iloc[:300].reset_index(drop=True), table.classes), 32) == (
        "aee7d415e829b655f1d44348b9eeb70271c9d41e3a92be4e18bce5705fccd933",
        "cdfca2e5859ab404ad601c18832e58823288763c26d9728b088c2f615c141bfa",
    )


# ---------------------------------------------------------------- padding


@pytest.mark.parametrize(("width", "height"), [(20, 15), (32, 32), (31, 1), (64, 48), (9, 300), (1, 400)])
def test_a_padded_image_keeps_its_proportions_and_is_never_enlarged(tmp_path, pixels_of, width, height):
    path = write_image(tmp_path / "a.png", 3, (width, height))
    found = pixels_of("a.png", 32, resize="pad")
    sides = [max(1, round(side * min(1, 32 / max(width, height)))) for side in (width, height)]
    left, top = ((32 - side) // 2 for side in sides)
    inner = found[top : top + sides[1], left : left + sides[0]]
    assert np.array_equal(inner, np.asarray(Image.open(path).resize(sides, Image.Resampling.BILINEAR)))
    outside = np.ones((32, 32), bool)
    outside[top : top + sides[1], left : left + sides[0]] = False
    assert (found[outside] == FILL).all() and outside.sum() == 32 * 32 - sides[0] * sides[1]


def test_padded_and_stretched_images_are_kept_apart(table):
    ways = [load_images(table, 16, resize=way) for way in ("stretch", "pad", "stretch")]
    assert np.array_equal(ways[0].pixels, ways[2].pixels) and not np.array_equal(ways[0].pixels, ways[1].pixels)
    assert ways[0].fingerprint == ways[1].fingerprint, "of the files"
    with pytest.raises(DataError, match="resize is 'crop'; it is stretch or pad"):
        load_images(table, 16, resize="crop")


def test_padding_is_that_of_the_published_benchmark(tmp_path):
    """Doerrich et al. (2025) normalise the 28 px and then pad with zeros; half a grey level is the difference."""
    table = load_table("medmnist:retinamnist", real("medmnist"))
    few = Table(table.name, table.frame.iloc[:5].reset_index(drop=True), table.classes)
    ours, small = (load_images(few, size, resize="pad", cache=tmp_path).pixels / 255 for size in (224, 28))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    theirs = np.pad((small - mean) / std, ((0, 0), (98, 98), (98, 98), (0, 0)))
    assert np.abs((ours - mean) / std - theirs).max() < 0.5 / 255 / 0.224
    assert np.array_equal(ours[:, 98:126, 98:126], small)
