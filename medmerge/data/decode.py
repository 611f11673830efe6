"""From an image's path to its pixels: files of any kind that Pillow reads, DICOM, rows of npz files, drawings."""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydicom import Dataset, dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array

from medmerge.data import synthetic
from medmerge.data.reading import DICOM_SUFFIXES
from medmerge.data.table import DataError

UNDECODABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError),
    *(BytesLengthException, InvalidDicomError, AttributeError, KeyError, IndexError, TypeError, NotImplementedError),
    *(OverflowError, RuntimeError),
)
"""What reading a broken image may raise."""

_ROW = re.compile(r"(?P<file>.+\.npz)#(?P<array>[^#]+)/(?P<row>\d+)")
_DECODERS = {
    "JPEG-LS": "pyjpegls",
    "JPEG 2000": "pylibjpeg[openjpeg]",
    "High-Throughput": "pylibjpeg[openjpeg]",
    "JPEG": "pylibjpeg[libjpeg]",
    "": "pylibjpeg[rle]",
}
"""A package that decodes the transfer syntaxes whose names begin so; the first that fits."""

Arrays = dict[tuple[str, str], np.ndarray]


@dataclass(frozen=True)
class Decoded:
    """An image in its own size.

    Attributes:
        image: 8-bit RGB.
        digest: SHA-256 in hex of the file's bytes, or of the pixels of a row or a drawing.
        peak: The largest value of a 16-bit grey image, None of any other.
    """

    image: Image.Image
    digest: str
    peak: int | None = None


def read_image(path: str, arrays: Arrays) -> Decoded:
    """Reads an image.

    Args:
        path: A file, a row of an npz file ("file.npz#train/17"), or a drawn image
            ("synthetic:...").
        arrays: The arrays that `open_arrays` opened.

    Raises:
        Exception: One of `UNDECODABLE`.
    """
    if synthetic.is_drawn(path) or _ROW.fullmatch(path):
        pixels = synthetic.draw(path) if synthetic.is_drawn(path) else _row(path, arrays)
        return Decoded(Image.fromarray(pixels).convert("RGB"), hashlib.sha256(pixels.tobytes()).hexdigest())
    content = Path(path).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if path.lower().endswith(DICOM_SUFFIXES) or content[128:132] == b"DICM":
        return Decoded(Image.fromarray(read_dicom(content)).convert("RGB"), digest)
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise ValueError("no kind of image that is known, or damaged at its beginning") from None
    with image:
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: more views of one photograph
        if frames != 1:
            raise ValueError(f"it has {frames} pages or frames; save the one that is meant as a file of its own")
        image.load()
        return Decoded(to_rgb(image), digest, int(np.max(image)) if image.mode.startswith("I") else None)


def state(path: str) -> list:
    """What changes when the image does: size and time of the file, or the drawings' version.

    Raises:
        OSError: The file is not there.
    """
    if synthetic.is_drawn(path):
        return [synthetic.VERSION]
    row = _ROW.fullmatch(path)
    status = os.stat(row["file"] if row else path)
    return [status.st_size, status.st_mtime_ns]


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any Pillow image of defined range to 8-bit RGB.

    16-bit grey, which Pillow calls "I;16" or "I", is divided by 257, so that 65535 becomes 255.

    Raises:
        ValueError: Floating-point values, or integers beyond 16 bits: their range is not known.
    """
    if image.mode == "F":
        raise ValueError("floating-point values have no defined range")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values from {values.min()} to {values.max()} exceed 16 bits")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def open_arrays(paths: list[str], folder: Path) -> Arrays:
    """Opens the arrays of npz files that paths name, as memory maps of files without a name.

    An array is the one of that name, or that name and "_images", as MedMNIST has it.

    Args:
        paths: Paths of images, of any kind.
        folder: Where there is room to unpack.

    Returns:
        By file and array uint8 [N, H, W], grey, or [N, H, W, 3], RGB.

    Raises:
        DataError: A file is damaged, or has no such array of images.
    """
    wanted = {(row["file"], row["array"]) for row in map(_ROW.fullmatch, paths) if row}
    return {key: _unpack(*key, folder) for key in sorted(wanted)}


def _unpack(file: str, name: str, folder: Path) -> np.ndarray:
    try:
        with zipfile.ZipFile(file) as archive, tempfile.TemporaryDirectory(dir=folder) as unpacked:
            names = archive.namelist()
            member = next((one for one in (f"{name}_images.npy", f"{name}.npy") if one in names), None)
            if member is None:
                raise DataError(f"{file} has no array {name}_images or {name}; it has {', '.join(names)}")
            # The mapping outlives the file.
            array = np.load(archive.extract(member, unpacked), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{file} is damaged, or does not fit in {folder}: {error}") from error
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[3:] not in ((), (3,)):
        raise DataError(
            f"{file}: {member} is {array.dtype} {list(array.shape)}; images are uint8, [N, H, W] for grey or "
            "[N, H, W, 3] for RGB"
        )
    return array


def _row(path: str, arrays: Arrays) -> np.ndarray:
    row = _ROW.fullmatch(path)
    array = arrays[row["file"], row["array"]]
    if int(row["row"]) >= len(array):
        raise ValueError(f"{row['array']} has {len(array):,} rows, counted from 0")
    return np.array(array[int(row["row"])])


def read_dicom(content: bytes) -> np.ndarray:
    """Reads the pixels of a DICOM file of one frame, as a viewer first shows them.

    Stored values go through the rescale slope and intercept (or the modality's table) and then
    through the first VOI table, else the first window, to 0..255; of an enhanced file these are
    those of the functional groups. Without either, the whole range of the stored bits goes to
    0..255: the same grey means the same value in each image, and 8-bit files such as RSNA's are
    taken as they are. MONOCHROME1, where low values are bright, is inverted. Colour is converted
    to RGB.

    Args:
        content: The bytes of the file.

    Returns:
        uint8 [H, W], 255 white, or [H, W, 3], RGB.

    Raises:
        ValueError: It has several frames or none, another kind of pixels, or is compressed in a way
            that takes a decoder that is not installed.
        Exception: Another of `UNDECODABLE`: it is no DICOM file, is damaged, or is cut short.
    """
    dataset = dcmread(io.BytesIO(content))
    if "PixelData" not in dataset:
        raise ValueError("the DICOM file has no pixels, or is cut short before their end")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ValueError(f"the DICOM file has {frames} frames; save the one that is meant as a file of its own")
    bits, kind = int(dataset.BitsStored), dataset.PhotometricInterpretation
    if not 1 <= bits <= 16:
        raise ValueError(f"the DICOM file stores {bits} bits for each value; up to 16 are read")
    values = _stored_values(dataset)
    if kind in ("MONOCHROME1", "MONOCHROME2"):
        low = -(2 ** (bits - 1)) if dataset.get("PixelRepresentation") else 0
        greys = _to_bytes(_shown(dataset, np.arange(low, low + 2**bits)))
        greys = 255 - greys if kind == "MONOCHROME1" else greys
        return greys[np.clip(values.astype(np.int32), low, low + 2**bits - 1) - low]
    if kind != "RGB" and not kind.startswith("YBR"):
        raise ValueError(f"pixels of the kind {kind!r} are not read; MONOCHROME1, MONOCHROME2, RGB and YBR are")
    return _to_bytes(values / (2**bits - 1))


def _stored_values(dataset: Dataset) -> np.ndarray:
    """Returns the pixels as stored, colours as RGB."""
    try:
        return pixel_array(dataset)
    except (RuntimeError, NotImplementedError) as error:
        syntax = dataset.file_meta.TransferSyntaxUID
        package = next(package for start, package in _DECODERS.items() if syntax.name.startswith(start))
        raise ValueError(
            f"pixels compressed as {syntax.name} ({syntax}) are damaged, or take a decoder that is not installed: "
            f"{error}. Try: pip install '{package}'"
        ) from error


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Takes 0..1 to 0..255, to the nearest."""
    return np.floor(np.clip(values, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def _shown(dataset: Dataset, stored: np.ndarray) -> np.ndarray:
    """Returns for each value that can be stored, from least to greatest, what a viewer shows: 0 black, 1 white."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in dataset.get(groups) or ():
            for what in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for item in group.get(what) or ():
                    dataset.update(item)
    modality = apply_modality_lut(stored, dataset)
    low, high = float(modality[0]), float(modality[-1])
    if dataset.get("ModalityLUTSequence"):
        low, high = 0, 2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    if low == high:
        raise ValueError("the DICOM file's rescale slope is 0: all its values are one")
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return apply_voi_lut(np.rint(modality).astype(np.int64), dataset) / (2**bits - 1)
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        low, high = min(low, high), max(low, high)
        return (modality - low) / (high - low)
    dataset.VOILUTFunction = dataset.get("VOILUTFunction") or "LINEAR"
    # A window ends where the values that can be stored do: pydicom's result spans these.
    return (apply_voi_lut(modality.astype(np.float64), dataset) - low) / (high - low)
