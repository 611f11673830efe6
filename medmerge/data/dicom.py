"""The pixels of a DICOM file as a viewer first shows them."""

from __future__ import annotations

import io
import struct

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import apply_modality_lut, apply_voi, get_decoder, pixel_array
from pydicom.uid import UID

_BROKEN = (
    InvalidDicomError,
    BytesLengthException,
    AttributeError,
    KeyError,
    IndexError,
    TypeError,
    EOFError,
    NotImplementedError,
    OverflowError,
    struct.error,
)
_DECODERS = {
    "JPEG-LS": "pyjpegls",
    "JPEG 2000": "pylibjpeg[openjpeg]",
    "High-Throughput": "pylibjpeg[openjpeg]",
    "JPEG": "pylibjpeg[libjpeg]",
}
"""A package that decodes the transfer syntaxes whose names begin so; the first that fits."""


def read_dicom(content: bytes) -> np.ndarray:
    """Reads the pixels of a DICOM file of one frame, as a viewer first shows them.

    Stored values go through the rescale slope and intercept (or the modality's table) and then
    through the first VOI table, else the first window, to 0..255. Without either, the whole range
    of the stored bits goes to 0..255: the same grey means the same value in each image, and
    8-bit files such as RSNA's are taken as they are. MONOCHROME1, where low values are bright, is
    inverted. Colour is converted to RGB.

    Args:
        content: The bytes of the file.

    Returns:
        uint8 [H, W], 255 white, or [H, W, 3], RGB.

    Raises:
        ValueError: It is no DICOM file, has several frames or none, is cut short, has another
            kind of pixels, or is compressed in a way that takes a decoder that is not installed.
    """
    try:
        dataset = dcmread(io.BytesIO(content))
        _check_readable(dataset)
        return _shown(dataset, _stored_values(dataset))
    except _BROKEN as error:
        raise ValueError(f"the DICOM file is damaged, or lacks what its pixels need: {error}") from error


def _check_readable(dataset: Dataset) -> None:
    if "PixelData" not in dataset:
        raise ValueError("the DICOM file has no pixels, or is cut short before their end")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ValueError(f"the DICOM file has {frames} frames; save the one that is meant as a file of its own")
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        _check_decoder(dataset.file_meta.TransferSyntaxUID)


def _stored_values(dataset: Dataset) -> np.ndarray:
    """Returns the pixels as stored, colours as RGB."""
    try:
        return pixel_array(dataset)
    except RuntimeError as error:
        package = _decoder_package(dataset.file_meta.TransferSyntaxUID)
        raise ValueError(
            f"the pixels are damaged, or of a kind that the decoders here do not read: {error}. "
            f"Another decoder: pip install '{package}'"
        ) from error


def _check_decoder(syntax: UID) -> None:
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        raise ValueError(f"pydicom has no decoder for the transfer syntax {syntax.name} ({syntax})") from None
    if not available:
        raise ValueError(
            f"pixels compressed as {syntax.name} ({syntax}) take a decoder that is not installed; "
            f"install it with: pip install '{_decoder_package(syntax)}'"
        )


def _decoder_package(syntax: UID) -> str:
    return next((package for start, package in _DECODERS.items() if syntax.name.startswith(start)), "pylibjpeg[rle]")


def _shown(dataset: Dataset, values: np.ndarray) -> np.ndarray:
    """Returns stored values as 8-bit grey or RGB."""
    bits, kind = int(dataset.BitsStored), dataset.PhotometricInterpretation
    if not 1 <= bits <= 16:
        raise ValueError(f"the DICOM file stores {bits} bits for each value; up to 16 are read")
    if kind in ("MONOCHROME1", "MONOCHROME2"):
        low = -(2 ** (bits - 1)) if dataset.get("PixelRepresentation") else 0
        stored = np.arange(low, low + 2**bits)
        greys = _to_bytes(_unit_range(dataset, stored))
        if kind == "MONOCHROME1":
            greys = 255 - greys
        return greys[np.clip(values.astype(np.int32), stored[0], stored[-1]) - low]
    if kind != "RGB" and not kind.startswith("YBR"):
        raise ValueError(f"pixels of the kind {kind!r} are not read; MONOCHROME1, MONOCHROME2, RGB and YBR are")
    return _to_bytes(values / (2**bits - 1))


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Takes 0..1 to 0..255, to the nearest."""
    return np.floor(np.clip(values, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def _unit_range(dataset: Dataset, stored: np.ndarray) -> np.ndarray:
    """Returns for each value that can be stored, from least to greatest, what a viewer shows: 0 black, 1 white."""
    modality = apply_modality_lut(stored, dataset)
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return apply_voi(np.rint(modality).astype(np.int64), dataset) / (2**bits - 1)
    if dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        return _window(dataset, modality.astype(np.float64))
    low, high = modality.min(), modality.max()
    if dataset.get("ModalityLUTSequence"):
        low, high = 0, 2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    if low == high:
        raise ValueError("the DICOM file's rescale slope is 0: all its values are one")
    return (modality - low) / (high - low)


def _window(dataset: Dataset, values: np.ndarray) -> np.ndarray:
    """Applies the first window of a file, as in DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3."""
    center, width = (float(np.atleast_1d(dataset[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if not width >= 1 and not (function != "LINEAR" and width > 0):
        raise ValueError(f"the DICOM file's window has the width {width:g}; it must be 1 or more")
    if function == "SIGMOID":
        return 1.0 / (1.0 + np.exp(-4.0 * (values - center) / width))
    if function == "LINEAR_EXACT":
        return (values - center) / width + 0.5
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return (values - (center - 0.5)) / (width - 1) + 0.5
