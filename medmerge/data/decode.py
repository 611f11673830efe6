"""From an image's path to its pixels: files of any kind that Pillow reads, DICOM, rows of npz files, drawings."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydicom import Dataset, dcmread
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array

from medmerge.data import synthetic
from medmerge.data.reading import DICOM_SUFFIXES, is_dicom
from medmerge.data.table import DataError

_ROW = re.compile(r"(?P<file>.+\.npz)#(?P<array>[^#]+)/(?P<row>\d+)")

Arrays = dict[tuple[str, str], np.ndarray]


class Decoded(NamedTuple):
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
        Exception: Of any kind: the image is broken, or no image.
    """
    row = _ROW.fullmatch(path)
    if row or synthetic.is_drawn(path):
        pixels = arrays[row["file"], row["array"]][int(row["row"])] if row else synthetic.draw(path)
        return Decoded(Image.fromarray(pixels).convert("RGB"), hashlib.sha256(pixels.tobytes()).hexdigest())
    content = Path(path).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if path.lower().endswith(DICOM_SUFFIXES) or is_dicom(content):
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

    Args:
        paths: Paths of images, of any kind. The array "train" is the file's `train_images`, as MedMNIST has it.
        folder: Where there is room to unpack.

    Returns:
        By file and array uint8 [N, H, W], grey, or [N, H, W, 3], RGB.

    Raises:
        DataError: A file is damaged, or does not fit.
    """
    opened: Arrays = {}
    for file, name in sorted({(row["file"], row["array"]) for row in map(_ROW.fullmatch, paths) if row}):
        try:
            with zipfile.ZipFile(file) as archive, tempfile.TemporaryDirectory(dir=folder) as unpacked:
                # The mapping outlives the file.
                opened[file, name] = np.load(archive.extract(f"{name}_images.npy", unpacked), mmap_mode="r")
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{file} is damaged, or does not fit in {folder}: {error}") from error
    return opened


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
        ValueError: It has several frames or none, or another kind of pixels.
        Exception: Of another kind: it is no DICOM file, is damaged or cut short, or is compressed in a way that takes a
            decoder that is not installed, which pydicom names.
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
    values = pixel_array(dataset)
    if kind in ("MONOCHROME1", "MONOCHROME2"):
        low = -(2 ** (bits - 1)) if dataset.get("PixelRepresentation") else 0
        greys = _to_bytes(_shown(dataset, np.arange(low, low + 2**bits)))
        greys = 255 - greys if kind == "MONOCHROME1" else greys
        return greys[np.clip(values.astype(np.int32), low, low + 2**bits - 1) - low]
    if kind != "RGB" and not kind.startswith("YBR"):
        raise ValueError(f"pixels of the kind {kind!r} are not read; MONOCHROME1, MONOCHROME2, RGB and YBR are")
    return _to_bytes(values / (2**bits - 1))


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
