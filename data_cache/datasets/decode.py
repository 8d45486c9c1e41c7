"""Decodes image files and label maps to arrays. Whatever is wrong with a file becomes one line that names it."""

import io
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Int, Integer, UInt, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from data_cache.errors import UserError
from data_cache.system.files import unreadable_error

# What Pillow raises on damaged files: they have no common base class, and most come from its parsers by accident.
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
BRIGHTEST = 65535
DIM = 2**14
"""A 16-bit image that stays below a quarter of the range most likely has 10, 12 or 14 bits that were not scaled."""
TIFF_BITS = 258
PNG_HEADER = struct.Struct(">8s8xII2B")
"""Signature, width, height, bits per sample and color type: the first 26 bytes of any PNG file."""
PNG_GRAY = 0
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHUNK = struct.Struct(">I4s")
"""Length and kind of a PNG chunk; its content and CRC-32 follow."""


def decode_image(path: Path, data: bytes | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Decode an image to RGB, rotated as its EXIF orientation says; transparency is dropped.

    Args:
        path: The file.
        data: Its content, if it was read before.

    Raises:
        UserError: The file is missing, damaged, truncated, or too large to be a photo; or its numbers have no 8-bit
            meaning: they are floats, exceed 16 bits, or use so little of 16 bits that their scale must be another one.

    """
    with _opened(path, data, "image") as (picture, data):
        if (pixels := _decode_jpeg(picture, data)) is not None:
            return pixels
        picture.load()
        bits = _bits(picture, data)
        ImageOps.exif_transpose(picture, in_place=True)
        if picture.mode == "F":
            raise UserError(
                f"cannot read the image {path}: its pixels are floats; save it with 8 or 16 bits per sample"
            )
        if picture.mode.startswith("I"):
            return np.array(_eight_bit(picture, bits, path).convert("RGB"))
        pixels = np.array(picture.convert("RGB"))
    if bits > 8:
        _refuse_dim(int(pixels.max()) << 8, path)
    return pixels


def _decode_jpeg(picture: Image.Image, data: bytes) -> UInt8[np.ndarray, "height width 3"] | None:
    """The upright pixels of a plain JPEG by torchvision; None for everything that is left to Pillow, errors included.

    It gives the same pixels in half the time, and other threads run meanwhile.
    """
    if picture.format != "JPEG" or picture.mode not in ("RGB", "L"):
        return None
    if b"tiff:Orientation" in picture.info.get("xmp", b""):  # only Pillow obeys it
        return None
    import torch  # here, so that data_cache can be imported without it
    from torchvision.io import ImageReadMode, decode_jpeg

    stored = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        pixels = decode_jpeg(stored, ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError:
        return None
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())


def _eight_bit(picture: Image.Image, bits: int, path: Path) -> Image.Image:
    # Pillow clips 16-bit gray values at 255, which would make nearly every such image white.
    gray = np.asarray(picture)
    if 8 < bits < 16:
        gray = gray << (16 - bits)
    if gray.min() < 0 or gray.max() > BRIGHTEST:
        raise UserError(
            f"cannot read the image {path}: its gray values range from {gray.min()} to {gray.max()}; save it with 8 "
            "or 16 bits per sample"
        )
    _refuse_dim(int(gray.max()), path)
    return Image.fromarray((gray >> 8).astype(np.uint8))


def _refuse_dim(brightest: int, path: Path) -> None:
    if 0 < brightest < DIM:
        raise UserError(
            f"cannot read the image {path}: its samples reach only {brightest} of {BRIGHTEST}, as if they had "
            "fewer bits; scale them to 16 bits, or save it with 8"
        )


def decode_label(path: Path, data: bytes | None = None) -> Integer[np.ndarray, "height width"]:
    """Decode an index map to its raw values, rotated if the file has an EXIF orientation of its own.

    A palette image gives its indices, not its colors. A 2- or 4-bit gray image gives its samples as they are stored,
    although Pillow stretches them to 0..255. A 1-bit file reads as an 8-bit one of 0 and 255. A `.mat` file is
    PASCAL-Context's: a MATLAB array named LabelMap.

    Args:
        path: The file.
        data: Its content, if it was read before.

    Returns:
        8-bit values, or wider ones where the file is wider.

    Raises:
        UserError: The file is missing, damaged, has more than one channel or lossy compression, or its palette
            contradicts its indices.

    """
    if path.suffix == ".mat":
        return _decode_matlab(path, data)
    with _opened(path, data, "label map") as (picture, data):
        picture.load()
        if picture.format in ("JPEG", "MPO"):
            raise UserError(f"{path} is a JPEG image, whose compression changes class ids: save label maps as PNG")
        mode, step = picture.mode, _gray_step(picture, data)
        if mode == "P":
            _refuse_gray_palette(picture, path)
        ImageOps.exif_transpose(picture, in_place=True)
        if mode == "1":
            return np.array(picture.convert("L"))
        if mode in ("L", "P") or mode.startswith("I"):
            values = np.array(picture)
            return values if step == 1 else values // step
    raise UserError(f"{path} is an image of mode {mode}: label maps must be index maps, one class id per pixel")


def _png_pixels_intact(data: bytes) -> bool:
    """Whether the pixel chunks of a PNG match their checksums, up to its end or where it is cut off."""
    position, kind, content = len(PNG_SIGNATURE), b"", memoryview(data)
    while kind != b"IEND" and position + PNG_CHUNK.size <= len(content):
        length, kind = PNG_CHUNK.unpack_from(content, position)
        end = position + PNG_CHUNK.size + length
        if end + 4 > len(content):
            break
        stored = int.from_bytes(content[end : end + 4], "big")
        if kind == b"IDAT" and zlib.crc32(content[position + 4 : end]) != stored:
            return False
        position = end + 4
    return True


def _gray_step(picture: Image.Image, data: bytes) -> int:
    """The factor by which Pillow multiplied the samples of a 2- or 4-bit gray PNG; 1 for any other file."""
    bits, color = _png_header(picture, data)
    return 255 // (2**bits - 1) if picture.mode == "L" and color == PNG_GRAY and bits < 8 else 1


def _refuse_gray_palette(picture: Image.Image, path: Path) -> None:
    """Raise UserError for a palette of gray values that are not their own indices.

    A lossless optimizer makes such a file from a gray label map: the class ids are then the gray values, and the
    indices are in any order. The file does not tell which of the two is meant. A palette with a color in it is only
    for display, like VOC's.
    """
    declared = np.reshape(picture.getpalette("RGB") or [], (-1, 3))
    if not len(declared) or np.ptp(declared, axis=1).any():
        return
    used = np.flatnonzero(picture.histogram()[:256])
    used = used[used < len(declared)]
    if (wrong := used[declared[used, 0] != used]).size:
        raise UserError(
            f"{path}: index {wrong[0]} of its palette is the gray {declared[wrong[0], 0]}, as PNG optimizers write it, "
            "and either may be the class id; save it without a palette, as 8-bit gray values that are the class ids"
        )


def count_values(label: UInt[np.ndarray, "height width"]) -> Int[np.ndarray, "value"]:
    """Count the pixels of each value of a label map."""
    if label.dtype != np.uint8:
        return np.bincount(label.ravel(), minlength=1 + np.iinfo(label.dtype).max)
    # Pillow counts 8-bit numbers several times as fast as numpy
    return np.array(Image.fromarray(label).histogram(), np.int64)


@contextmanager
def _opened(path: Path, data: bytes | None, what: str) -> Iterator[tuple[Image.Image, bytes]]:
    """An image of which only the header is decoded yet, and the content of its file."""
    try:
        data = _content(path) if data is None else data
        with Image.open(io.BytesIO(data)) as picture:
            # Pillow reads pixels without looking at their checksum
            if picture.format == "PNG" and not _png_pixels_intact(data):
                raise UserError(f"cannot read the {what} {path}: its pixels do not match their checksum")
            yield picture, data
    except DAMAGED as error:
        raise UserError(f"cannot read the {what} {path}: {_reason(error)}") from error


def _content(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):
        raise FileNotFoundError("is not a file")  # opening a named pipe would block forever
    return path.read_bytes()


def _bits(picture: Image.Image, data: bytes) -> int:
    """Bits per sample in the file, of which Pillow may keep only eight; 8 for formats that have no more."""
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(TIFF_BITS, (8,)))  # type: ignore[attr-defined]
    return _png_header(picture, data)[0]


def _png_header(picture: Image.Image, data: bytes) -> tuple[int, int | None]:
    """Bits per sample and color type of a PNG; (8, None) for any other format."""
    if picture.format != "PNG":
        return 8, None
    *_, bits, color = PNG_HEADER.unpack_from(data)
    return bits, color


def _decode_matlab(path: Path, data: bytes | None) -> Integer[np.ndarray, "height width"]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = _content(path) if data is None else data
        labels = loadmat(io.BytesIO(content), variable_names=["LabelMap"]).get("LabelMap")
    except (*DAMAGED, MatReadError) as error:
        raise UserError(f"cannot read the label map {path}: {_reason(error)}") from error
    if labels is None or labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{path}: contains no two-dimensional array of integers named LabelMap")
    return labels


def read_bytes(path: Path) -> bytes:
    """Return the content of a file; raise UserError if it is missing, UnreadableError if it cannot be read."""
    try:
        return _content(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from error
    except OSError as error:
        raise unreadable_error(error, path) from None


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
