"""Views: the one place that says which pixels of an image a cached feature describes (DESIGN, section 3)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

RESIZE_FILTER = "bicubic-antialias"
"""Part of the fingerprint: another filter gives CLIP other pixels."""


@dataclass(frozen=True)
class View:
    """A crop of an image in its own pixels, (top, left, bottom, right), and whether it is mirrored."""

    box: tuple[int, int, int, int]
    flip: bool = False


def whole(height: int, width: int) -> View:
    """View 0 of every image: all of it, unmirrored."""
    return View((0, 0, height, width))


def replay_image(image: UInt8[np.ndarray, "height width 3"], view: View, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Cut a view out of an RGB image and resample it to size x size pixels (bicubic, antialiased)."""
    return _replay(Image.fromarray(image), view, size, Image.Resampling.BICUBIC)


def replay_label(label: UInt8[np.ndarray, "height width"], view: View, size: int) -> UInt8[np.ndarray, "size size"]:
    """Cut the same view out of a label map; every output pixel copies its nearest input pixel."""
    return _replay(Image.fromarray(label), view, size, Image.Resampling.NEAREST)


def _replay(picture: Image.Image, view: View, size: int, resample: Image.Resampling) -> np.ndarray:
    top, left, bottom, right = view.box
    pixels = np.array(picture.resize((size, size), resample, box=(left, top, right, bottom)))
    return np.ascontiguousarray(pixels[:, ::-1]) if view.flip else pixels
