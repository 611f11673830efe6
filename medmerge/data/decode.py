"""From an image's path to its pixels: files of any kind that Pillow reads, DICOM, rows of npz files, drawings."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import shutil
import struct
import tempfile
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from medmerge.data import synthetic
from medmerge.data.base import DataError
from medmerge.data.cache import check_space
from medmerge.data.dicom import read_dicom

UNDECODABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What reading a broken image may raise."""

_ROW = re.compile(r"(?P<file>.+\.npz)#(?P<array>[^#]+)/(?P<row>\d+)")
_DICOM_SUFFIXES = (".dcm", ".dicom")


class Arrays:
    """The arrays of npz files, read by the row in memory that does not grow with them.

    The first row that is asked for has its array unpacked to a file without a name, which is
    mapped into memory and is gone with the process, however that ends. Safe in threads.

    Args:
        folder: Where there is room to unpack: the cache folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._arrays: dict[tuple[str, str], np.ndarray | str] = {}

    def row(self, path: str) -> np.ndarray:
        """Returns a row of an array, such as "retinamnist.npz#train/17".

        The array is the one of that name, or that name and "_images" as MedMNIST has it.

        Returns:
            uint8 [H, W], grey, or [H, W, 3], RGB.

        Raises:
            ValueError: There is no such array or row, or its rows are no such images.
            DataError: The array does not fit on the disk.
        """
        parts = _parse_row(path)
        if parts is None:
            raise ValueError("a row of an npz file is written as file.npz#array/row")
        file, name, row = parts
        array = self._array(file, name)
        if row >= len(array):
            raise ValueError(f"{name} has {len(array):,} rows, counted from 0")
        return np.array(array[row])

    def _array(self, file: str, name: str) -> np.ndarray:
        with self._lock:
            if (file, name) not in self._arrays:
                self._arrays[file, name] = self._open(file, name)
            found = self._arrays[file, name]
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def _open(self, file: str, name: str) -> np.ndarray | str:
        """Returns the array, or why it cannot be read, so that a broken file is read once."""
        try:
            return _unpack(file, name, self._folder)
        except DataError:
            raise
        except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
            return f"the npz file is damaged: {error}"
        except (OSError, ValueError) as error:
            return str(error)


def read_image(path: str, arrays: Arrays) -> tuple[Image.Image, str]:
    """Reads an image.

    Args:
        path: A file, a row of an npz file ("file.npz#train/17"), or a drawn image
            ("synthetic:...").
        arrays: The npz files that are open.

    Returns:
        The image, 8-bit RGB, in its own size; and the SHA-256 in hex of the file's bytes, or of
        the pixels of a row or a drawing.

    Raises:
        One of `UNDECODABLE`: It cannot be read.
    """
    if synthetic.is_drawn(path):
        drawn = synthetic.draw(path)
        return Image.fromarray(drawn), _digest(drawn.tobytes())
    if _parse_row(path) is not None:
        pixels = arrays.row(path)
        return to_rgb(Image.fromarray(pixels)), _digest(pixels.tobytes())
    content = Path(path).read_bytes()
    if path.lower().endswith(_DICOM_SUFFIXES) or content[128:132] == b"DICM":
        return to_rgb(Image.fromarray(read_dicom(content))), _digest(content)
    return to_rgb(Image.open(io.BytesIO(content))), _digest(content)


def state(path: str) -> list[int]:
    """Returns numbers that change when an image does: size and time of the file, or the drawings' version.

    Raises:
        OSError: The file is not there.
    """
    if synthetic.is_drawn(path):
        return [synthetic.VERSION]
    parts = _parse_row(path)
    status = os.stat(path if parts is None else parts[0])
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


def _parse_row(path: str) -> tuple[str, str, int] | None:
    """Returns file, array and row of a path such as "file.npz#train/17", or None."""
    match = _ROW.fullmatch(path)
    return None if match is None else (match["file"], match["array"], int(match["row"]))


def _unpack(file: str, name: str, folder: Path) -> np.ndarray:
    """Unpacks an array of images to a nameless file in `folder` and maps it into memory."""
    with zipfile.ZipFile(file) as archive, tempfile.TemporaryFile(dir=folder) as unpacked:
        names = archive.namelist()
        member = next((wanted for wanted in (f"{name}_images.npy", f"{name}.npy") if wanted in names), None)
        if member is None:
            raise ValueError(f"the npz file has no array {name}_images or {name}; it has {', '.join(names)}")
        check_space(folder, archive.getinfo(member).file_size, f"the images of {Path(file).name}")
        with archive.open(member) as source:
            shape, fortran, dtype = _header(source)
            if dtype != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)):
                raise ValueError(
                    f"{member} is {dtype} {list(shape)}; images are uint8, [N, H, W] for grey or [N, H, W, 3] for RGB"
                )
            shutil.copyfileobj(source, unpacked, 2**20)
        unpacked.flush()
        if unpacked.tell() != math.prod(shape):
            raise ValueError(f"{member} has {unpacked.tell():,} of the {math.prod(shape):,} bytes that it announces")
        # The mapping outlives the open file.
        return np.memmap(unpacked, dtype=np.uint8, mode="r", shape=shape, order="F" if fortran else "C")


def _header(source: io.BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(source)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(source)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(source)
    raise ValueError(f"the array is in version {version} of the npy format; 1.0 and 2.0 are read")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
