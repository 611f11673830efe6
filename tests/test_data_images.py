"""Decoding, fingerprints and batches."""

import numpy as np
import pytest
import torch
from data_fixtures import write_csv, write_ham10k, write_image
from PIL import Image

from medmerge.data import DataError, Samples, Table, load_images, load_table
from medmerge.data.decode import to_rgb


@pytest.fixture
def table(tmp_path):
    return load_table("ham10k", write_ham10k(tmp_path / "ham"), missing="drop")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


# Pixels.


def test_pixels_are_those_of_pillow(table, cache):
    pixels = load_images(table, 8, cache=cache, workers=3).pixels
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


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path, cache):
    values = np.array([[0, 200, 32768, 65535]] * 4, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    write_image(tmp_path / "flat.png")
    table = load_table("csv", tmp_path, labels=write_csv(tmp_path, "image,label\ndeep.png,a\nflat.png,b\n"))
    pixels = load_images(table, 4, cache=cache).pixels
    assert pixels[0, 0, :, 0].tolist() == [0, 1, 128, 255]
    assert (pixels[0] == pixels[0, :, :, :1]).all()


@pytest.mark.parametrize("array", [np.full((4, 4), 70000, np.int32), np.full((4, 4), 0.5, np.float32)])
def test_values_without_a_range_are_refused(tmp_path, cache, array):
    Image.fromarray(array).save(tmp_path / "a.tiff")
    write_image(tmp_path / "b.png")
    table = load_table("csv", tmp_path, labels=write_csv(tmp_path, "image,label\na.tiff,a\nb.png,b\n"))
    with pytest.raises(DataError, match=r"(?s)1 of 2 images cannot be decoded.*a\.tiff \((values|float)"):
        load_images(table, 4, cache=cache)


def test_orientation_tag_is_ignored_and_aspect_not_kept(tmp_path, cache):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    image = Image.new("RGB", (40, 10), "red")
    image.paste("blue", (20, 0, 40, 10))
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    write_image(tmp_path / "b.png")
    table = load_table("csv", tmp_path, labels=write_csv(tmp_path, "image,label\na.jpg,a\nb.png,b\n"))
    pixels = load_images(table, 10, cache=cache).pixels
    assert (pixels[0, :, 0, 0] > 200).all() and (pixels[0, :, -1, 2] > 200).all()


# The fingerprint.


def test_fingerprint_follows_contents_ids_and_class_names_only(table, cache, tmp_path):
    fingerprint = load_images(table, 8, cache=cache).fingerprint
    assert len(fingerprint) == 64
    assert load_images(table, 9, cache=cache).fingerprint == fingerprint
    moved = load_table("ham10k", write_ham10k(tmp_path / "elsewhere", folder="HAM10000_images_part_1"))
    assert load_images(moved, 8, cache=cache).fingerprint == fingerprint
    backwards = Table(table.name, table.frame[::-1], table.classes)
    assert load_images(backwards, 8, cache=cache).fingerprint == fingerprint

    relabelled = table.frame.assign(label=table.frame["label"].where(table.frame.index != 3, 0))
    renamed = table.frame.assign(id=table.frame["id"].replace("ISIC_0000003", "ISIC_0000103"))
    for other in (
        Table(table.name, relabelled, table.classes),
        Table(table.name, renamed, table.classes),
        Table(table.name, table.frame, ("other", *table.classes[1:])),
        Table(table.name, table.frame[:-1], table.classes),
    ):
        assert load_images(other, 8, cache=cache).fingerprint != fingerprint


def test_fingerprint_of_a_multi_label_table(table, cache):
    labels = np.array([[1, 0], [0, 1], [np.nan, 1]] * 4 + [[0, 0], [1, 1]], dtype=np.float32)

    def fingerprint(values, classes=("Edema", "Fracture")):
        columns = {f"label:{name}": column for name, column in zip(classes, values.T, strict=True)}
        frame = table.frame.drop(columns="label").assign(**columns)
        return load_images(Table(table.name, frame, classes), 8, cache=cache).fingerprint

    def changed(row, column, value):
        values = labels.copy()
        values[row, column] = value
        return values

    others = [changed(0, 0, 0), changed(0, 0, np.nan), changed(2, 0, 0), changed(13, 1, 0)]
    prints = [fingerprint(values) for values in (labels, *others)]
    prints += [fingerprint(labels, ("Edema", "Pneumonia")), fingerprint(labels[:, ::-1])]
    assert fingerprint(labels.copy()) == prints[0] and len(set(prints)) == len(prints)


# Batches.


def test_batches_are_rows_of_the_shared_storage():
    inputs = torch.arange(10 * 3 * 2 * 2, dtype=torch.uint8).reshape(10, 3, 2, 2)
    rows = torch.tensor([7, 2, 9])
    samples = Samples(inputs, rows, torch.tensor([0, 1, 2]), ("g", "b", "i"))
    assert len(samples) == 3
    batch, labels = samples.batch(torch.tensor([2, 0]))
    assert torch.equal(batch, inputs[[9, 7]]) and labels.tolist() == [2, 0]
    batch.zero_()
    assert inputs[9].any()
