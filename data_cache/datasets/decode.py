"""Turns picture files into arrays. Whatever is wrong with a file becomes one line that names it."""

import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from data_cache.errors import UserError

# What Pillow raises on damaged files: no common base class, and most of these are accidents of parsing.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def decode_image(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a picture to RGB, turned upright as its EXIF orientation says; transparency is dropped.

    Raises:
        UserError: The file is missing, damaged, cut short, or too large to be a photograph.

    """
    if path.exists() and not path.is_file():
        raise UserError(f"cannot read the image {path}: is no file")  # to open a named pipe is to wait for ever
    try:
        with Image.open(path) as picture:
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
            return np.array(_eight_bit(picture).convert("RGB"))
    except DAMAGED as error:
        raise UserError(f"cannot read the image {path}: {_reason(error)}") from error


def _eight_bit(picture: Image.Image) -> Image.Image:
    # Pillow clips 16-bit greys at 255, which would turn nearly every such picture white.
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture).clip(0, 65535) >> 8).astype(np.uint8))


def decode_label(path: Path) -> Integer[np.ndarray, "height width"]:
    """Decode an index map to its raw values; of a palette picture these are the indices, not the colours.

    A `.mat` file is one of PASCAL-Context: a MATLAB array named LabelMap.

    Returns:
        8-bit values, or wider ones where the file is wider.

    Raises:
        UserError: The file is missing, damaged, or has more than one channel.

    """
    if path.suffix == ".mat":
        return _decode_matlab(path)
    try:
        with Image.open(path) as picture:
            picture.load()
            if picture.mode == "1":  # a one-bit file is an 8-bit one of only 0 and 255, made smaller
                return np.array(picture.convert("L"))
            if picture.mode in ("L", "P") or picture.mode.startswith("I"):
                return np.array(picture)
            mode = picture.mode
    except DAMAGED as error:
        raise UserError(f"cannot read the label map {path}: {_reason(error)}") from error
    raise UserError(f"{path} is a picture of mode {mode}: label maps must be index maps, one class id a pixel")


def _decode_matlab(path: Path) -> Integer[np.ndarray, "height width"]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        labels = loadmat(path, variable_names=["LabelMap"]).get("LabelMap")
    except (*DAMAGED, MatReadError) as error:
        raise UserError(f"cannot read the label map {path}: {_reason(error)}") from error
    if labels is None or labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{path}: holds no two-dimensional array of integers named LabelMap")
    return labels


def read_bytes(path: Path) -> bytes:
    """Return the content of a file; raise UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a picture in a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
