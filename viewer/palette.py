"""Paints label maps, pseudo labels, overlays and heat. Colors of classes are given (`viewer.class_colors`)."""

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from PIL import Image, ImageDraw

from viewer.color_vision import distance, oklab

BLANK = np.array([232, 232, 232], np.uint8)
HATCH = np.array([176, 176, 176], np.uint8)
ORANGE = np.array([255, 140, 0])
OUTLINE = np.array([24, 24, 24], np.uint8)
PERIOD, WIDTH = 8, 2

# Each color is the one of a grid with the largest distance (`color_vision`) to its predecessors.
_MASK_COLORS = np.frombuffer(
    bytes.fromhex(
        "006db6ffdb496d0000ff000049dbff002492ff92929292ff92496db624ffb60000492449b6b6002492b60024dbb66d6d"
        "49b6dbb6dbb692006dffb66d6d00b6926ddbdb0092b6926d6d6d496dff924992006d4949b624b6920000ff49b66d49db"
        "24499292b6ffdb6d9292b66d92dbdbdb92b66d006ddb4992ffb6ff0024ff6ddb6dff49ff92924992db00004949db9249"
        "b6494949496d006d6dff49496d92db00926d6d2424920092ff6d92006dffdbdb6d926d24496ddbb6b6db0092ff00dbb6"
    ),
    np.uint8,
).reshape(-1, 3)
_LIKE_A_CLASS = 0.05


def label_to_rgb(
    label: Integer[np.ndarray, "height width"], unlabelled: int, colors: UInt8[np.ndarray, "class 3"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Color a label map pixel by pixel; the label `unlabelled` is light gray."""
    blank = label == unlabelled
    painted = colors[np.where(blank, 0, label)]
    painted[blank] = BLANK
    return painted


def paint_labels(
    label: Integer[np.ndarray, "y x"], unlabelled: int, colors: UInt8[np.ndarray, "class 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """Color a label map at `size` (height, width), without blending; the label `unlabelled` is hatched."""
    label = resize_labels(label, size)
    return hatch(label_to_rgb(label, unlabelled, colors), label == unlabelled)


def resize_labels(label: Integer[np.ndarray, "y x"], size: tuple[int, int]) -> Integer[np.ndarray, "height width"]:
    """Resize a label map to `size` (height, width) by nearest neighbor."""
    return np.asarray(Image.fromarray(label.astype(np.int32)).resize(size[::-1], Image.Resampling.NEAREST))


def mask_colors(classes: UInt8[np.ndarray, "class 3"]) -> UInt8[np.ndarray, "mask 3"]:
    """The colors of pseudo labels: distinct ones, and last those that resemble the color of a class."""
    apart = distance(oklab(_MASK_COLORS)[:, None], oklab(np.concatenate([classes, BLANK[None]])))
    return _MASK_COLORS[np.argsort(apart.min(axis=1) < _LIKE_A_CLASS, kind="stable")]


def paint_masks(
    label: Integer[np.ndarray, "y x"], unlabelled: int, classes: UInt8[np.ndarray, "class 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """Color pseudo labels as `paint_labels` does, unlike classes of the given colors."""
    return paint_labels(_numbered(label, unlabelled), -1, mask_colors(classes), size)


def outline_masks(
    image: UInt8[np.ndarray, "height width 3"],
    label: Integer[np.ndarray, "y x"],
    unlabelled: int,
    classes: UInt8[np.ndarray, "class 3"],
) -> UInt8[np.ndarray, "height width 3"]:
    """Outlined pseudo labels over the image in gray, which is paler where there is no pseudo label."""
    label = resize_labels(_numbered(label, unlabelled), image.shape[:2])
    pale = overlay(image, np.full_like(image, 255), 0.6)
    painted = label_to_rgb(label, -1, mask_colors(classes))
    drawn = np.where((label == -1)[..., None], pale, overlay(image, painted, 0.8))
    edge = np.zeros(label.shape, bool)
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    edge[1:] |= label[1:] != label[:-1]
    drawn[edge] = OUTLINE
    return drawn


def _numbered(label: Integer[np.ndarray, "y x"], unlabelled: int) -> Integer[np.ndarray, "y x"]:
    """The index of each pseudo label's color, which repeat; -1 if unlabelled."""
    return np.where(label == unlabelled, -1, label.astype(np.int32) % len(_MASK_COLORS))


def hatched_panel(side: int) -> UInt8[np.ndarray, "side side 3"]:
    """A hatched square in place of a missing image."""
    return hatch(np.full((side, side, 3), BLANK), np.ones((side, side), bool))


def draw_box(
    image: UInt8[np.ndarray, "height width 3"], box: tuple[int, int, int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the outline of a box (top, left, bottom, right; bottom and right exclusive) in white with black edges."""
    canvas = Image.fromarray(image)
    top, left, bottom, right = box
    bottom, right = max(bottom, top + 5), max(right, left + 5)  # space for the outline of a thin box
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((left, top, right - 1, bottom - 1), outline="black", width=3)
    draw.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline="white", width=1)
    return np.array(canvas)


def hatch(
    image: UInt8[np.ndarray, "height width 3"], where: Bool[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw gray diagonal lines over part of an image."""
    y, x = np.indices(where.shape)
    return np.where((where & ((x + y) % PERIOD < WIDTH))[..., None], HATCH, image)


def overlay(
    image: UInt8[np.ndarray, "height width 3"],
    painted: UInt8[np.ndarray, "height width 3"],
    strength: float = 0.55,
) -> UInt8[np.ndarray, "height width 3"]:
    """A painted label map over the image in gray, so that all colors are those of labels."""
    gray = image.mean(axis=2, keepdims=True)
    return ((1 - strength) * gray + strength * painted).round().astype(np.uint8)


def overlay_heat(
    image: UInt8[np.ndarray, "height width 3"], weights: Float[np.ndarray, "y x"]
) -> UInt8[np.ndarray, "height width 3"]:
    """The image in dark gray, blended to orange in proportion to the weight."""
    height, width = image.shape[:2]
    scaled = Image.fromarray((weights / weights.max()).astype(np.float32)).resize((width, height))
    strength = np.asarray(scaled).clip(0, 1)[..., None]
    gray = 0.45 * image.mean(axis=2, keepdims=True)
    return ((1 - strength) * gray + strength * ORANGE).astype(np.uint8)
