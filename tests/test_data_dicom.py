"""DICOM of every kind that radiographs come in: what is shown, and what is refused."""

import hashlib
import io

import numpy as np
import pytest
from data_fixtures import write_csv, write_image
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
)
from xray_fixtures import dicom, jpeg, to_bytes

from medmerge.data import DataError, load_images, load_table
from medmerge.data.decode import read_dicom

RANDOM = np.random.default_rng(0)


def read(pixels, **header):
    return read_dicom(to_bytes(dicom(pixels, **header)))


def ramp(bits: int, dtype=np.uint16) -> np.ndarray:
    """All values of so many bits, or 4,096 of them, least to greatest."""
    return np.linspace(0, 2**bits - 1, min(2**bits, 4096)).round().astype(dtype).reshape(-1, 16)


# Grey.


@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian])
def test_eight_bits_are_taken_as_they_are(syntax):
    pixels = RANDOM.integers(0, 256, (13, 11), dtype=np.uint8)
    assert (read(pixels, **({"syntax": syntax} if syntax else {})) == pixels).all()


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_stored_range_becomes_black_to_white(bits, kind):
    values = ramp(bits)
    shown = read(values, bits=bits, kind=kind)
    expected = np.floor(values / (2**bits - 1) * 255 + 0.5).astype(np.uint8)
    assert shown.dtype == np.uint8 and shown.shape == values.shape
    assert (shown == (255 - expected if kind == "MONOCHROME1" else expected)).all()


def test_signed_values_start_below_zero():
    values = np.array([[-2048, -1, 0, 2047]], dtype=np.int16)
    assert read(values, bits=12, signed=True).tolist() == [[0, 127, 128, 255]]


def test_rescaling_alone_changes_no_grey():
    values = ramp(12)
    plain = read(values, bits=12)
    assert (read(values, bits=12, RescaleSlope="2.5", RescaleIntercept="-1024") == plain).all()
    falling = read(values, bits=12, RescaleSlope="-1", RescaleIntercept="4095")
    assert (falling == plain[::-1, ::-1]).all()
    with pytest.raises(ValueError, match="slope is 0"):
        read(values, bits=12, RescaleSlope="0", RescaleIntercept="5")


def test_window_is_that_of_the_standard():
    """PS3.3 C.11.2.1.2.1: at most c - 0.5 - (w - 1) / 2 is black, above c - 0.5 + (w - 1) / 2 is white."""
    values = np.array([[0, 1023, 1024, 2047, 2048, 3071, 3072, 4095]], dtype=np.uint16)
    shown = read(values, bits=12, WindowCenter="2048", WindowWidth="2048")
    assert shown.tolist() == [[0, 0, 0, 127, 128, 255, 255, 255]]
    first = read(values, bits=12, WindowCenter=["2048", "40"], WindowWidth=["2048", "400"])
    assert (first == shown).all()
    inverted = read(values, bits=12, kind="MONOCHROME1", WindowCenter="2048", WindowWidth="2048")
    assert (inverted == 255 - shown).all()
    assert read(values, bits=12, WindowCenter="1024", WindowWidth="1").tolist() == [[0] * 2 + [255] * 6]


def test_bits_beyond_the_stored_ones_are_no_part_of_a_value():
    """They may hold an overlay."""
    assert read(np.array([[4095, 4096, 65535]], dtype=np.uint16), bits=12).tolist() == [[255, 0, 255]]
    assert read(np.array([[0x07FF, 0x1800]], dtype=np.int16), bits=12, signed=True).tolist() == [[255, 0]]
    with pytest.raises(ValueError, match="stores 32 bits for each value; up to 16 are read"):
        read(np.zeros((4, 4), np.uint32), bits=32)


def table(values, first: int, bits: int) -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item.LUTData = np.asarray(values, dtype=np.uint16).tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    return Sequence([item])


def test_tables_of_values():
    values = np.array([[0, 1, 2, 3, 9]], dtype=np.uint16)
    squares = table([0, 100, 400, 1023], 0, 10)
    assert read(values, bits=12, VOILUTSequence=squares).tolist() == [[0, 25, 100, 255, 255]]
    rescaled = read(values, bits=12, VOILUTSequence=squares, RescaleSlope="1", RescaleIntercept="1")
    assert rescaled.tolist() == [[25, 100, 255, 255, 255]]
    assert read(values, bits=12, ModalityLUTSequence=table([0, 0, 32768, 65535], 0, 16)).tolist() == [
        [0, 0, 128, 255, 255]
    ]


# Compressed, and colour.


def test_jpeg_as_in_rsna_is_the_jpeg_itself():
    smooth = np.add.outer(np.arange(24), np.arange(32)).astype(np.uint8) * 3
    shown = read(smooth, syntax=JPEGBaseline8Bit)
    from_jpeg = np.asarray(Image.open(io.BytesIO(jpeg(smooth))))
    assert (shown == from_jpeg).all() and np.abs(shown.astype(int) - smooth).max() < 8
    assert (read(smooth, syntax=JPEGBaseline8Bit, kind="MONOCHROME1") == 255 - from_jpeg).all()


def test_colours():
    pixels = RANDOM.integers(0, 256, (8, 6, 3), dtype=np.uint8)
    assert (read(pixels, kind="RGB") == pixels).all()
    smooth = np.stack(np.broadcast_arrays(np.arange(16)[:, None] * 10, np.arange(16) * 10, 90), axis=2).astype(np.uint8)
    assert np.abs(read(smooth, kind="YBR_FULL_422", syntax=JPEGBaseline8Bit).astype(int) - smooth).max() < 16
    grey = np.full((4, 4, 3), 128, np.uint8)
    grey[..., 0] = 200
    assert (read(grey, kind="YBR_FULL") == 200).all()
    deep = np.array([[[0, 2048, 4095]]], dtype=np.uint16)
    assert read(deep, kind="RGB", bits=12).tolist() == [[[0, 128, 255]]]


# What cannot be read.


def test_several_frames_are_refused():
    dataset = dicom(np.zeros((8, 4), np.uint8), NumberOfFrames=2)
    dataset.Rows = 4
    with pytest.raises(ValueError, match="has 2 frames; save the one"):
        read_dicom(to_bytes(dataset))


@pytest.mark.parametrize(
    ("syntax", "package"),
    [(JPEGLSLossless, "pyjpegls"), (JPEGLosslessSV1, "pylibjpeg-libjpeg"), (HTJ2KLossless, "pylibjpeg-openjpeg")],
)
def test_missing_decoders_are_named(syntax, package):
    dataset = dicom(np.zeros((8, 8), np.uint8), syntax=JPEGBaseline8Bit)
    dataset.file_meta.TransferSyntaxUID = syntax
    with pytest.raises(RuntimeError, match=package):
        read_dicom(to_bytes(dataset))


def test_dicom_among_other_images(tmp_path):
    """By suffix, or by what the file begins with; a file that is not what its suffix says is named."""
    pixels = RANDOM.integers(0, 256, (12, 12), dtype=np.uint8)
    for name in ("a.dcm", "b.DCM", "c"):
        (tmp_path / name).write_bytes(to_bytes(dicom(pixels)))
    write_image(tmp_path / "d.png")
    rows = "image,label\na.dcm,x\nb.DCM,x\nc,x\nd.png,y\n"
    images = load_images(load_table("csv", tmp_path, labels=write_csv(tmp_path, rows)), 12)
    assert (images.pixels[:3] == pixels[..., None]).all()
    assert images.digests[0] == hashlib.sha256((tmp_path / "a.dcm").read_bytes()).hexdigest()
    (tmp_path / "b.DCM").write_bytes((tmp_path / "d.png").read_bytes())
    with pytest.raises(DataError, match=r"(?s)1 of 4 images cannot be decoded.*b\.DCM \("):
        load_images(load_table("csv", tmp_path, labels="labels.csv"), 12)
