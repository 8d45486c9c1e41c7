"""Colours of label maps: the same label has the same colour in every picture, whoever looks at it."""

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from PIL import Image, ImageDraw

NOTHING = np.array([232, 232, 232], np.uint8)
LINE = np.array([176, 176, 176], np.uint8)
ORANGE = np.array([255, 140, 0])
OUTLINE = np.array([24, 24, 24], np.uint8)
PERIOD, WIDTH = 8, 2

# Each colour is, of all on a grid, the one farthest in OKLab from those before it, in normal sight and in simulated
# protanopia, deuteranopia and tritanopia (Machado, Oliveira and Fernandes 2009), whichever confuses it most.
_PALETTE = np.frombuffer(
    bytes.fromhex(
        "006db6ffdb496d0000ff000049dbff002492ff92929292ff92496db624ffb60000492449b6b6002492b60024dbb66d6d"
        "49b6dbb6dbb692006dffb66d6d00b6926ddbdb0092b6926d6d6d496dff924992006d4949b624b6920000ff49b66d49db"
        "24499292b6ffdb6d9292b66d92dbdbdb92b66d006ddb4992ffb6ff0024ff6ddb6dff49ff92924992db00004949db9249"
        "b6494949496d006d6dff49496d92db00926d6d2424920092ff6d92006dffdbdb6d926d24496ddbb6b6db0092ff00dbb6"
    ),
    np.uint8,
).reshape(-1, 3)


def colour_of(label: int) -> UInt8[np.ndarray, "3"]:
    """The colour of a label from 0 on; from 64 on they come again, paler with each turn."""
    turn, place = divmod(label, len(_PALETTE))
    pale = 1 - 0.57**turn
    return ((1 - pale) * _PALETTE[place] + pale * 255).round().astype(np.uint8)


def colour(label: Integer[np.ndarray, "height width"], nothing: int) -> UInt8[np.ndarray, "height width 3"]:
    """Colour a label map, pixel by pixel; `nothing` is light grey."""
    values = np.unique(label)
    palette = np.stack([NOTHING if value == nothing else colour_of(int(value)) for value in values])
    return palette[np.searchsorted(values, label)]


def paint(
    label: Integer[np.ndarray, "y x"], nothing: int, size: tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """Colour a label map at `size` (height, width), without blending; what is `nothing` is hatched."""
    label = enlarged(label, size)
    return hatch(colour(label, nothing), label == nothing)


def enlarged(label: Integer[np.ndarray, "y x"], size: tuple[int, int]) -> Integer[np.ndarray, "height width"]:
    """A label map at `size` (height, width): every pixel copies its nearest one."""
    return np.asarray(Image.fromarray(label.astype(np.int32)).resize(size[::-1], Image.Resampling.NEAREST))


def laid_over(
    label: Integer[np.ndarray, "y x"], nothing: int, image: UInt8[np.ndarray, "height width 3"]
) -> UInt8[np.ndarray, "height width 3"]:
    """A label map with outlines over its photograph, which alone is seen, in pale grey, where there is `nothing`."""
    label = enlarged(label, image.shape[:2])
    pale = overlay(image, np.full_like(image, 255), 0.6)
    drawn = np.where((label == nothing)[..., None], pale, overlay(image, colour(label, nothing), 0.8))
    edge = np.zeros(label.shape, bool)
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    edge[1:] |= label[1:] != label[:-1]
    drawn[edge] = OUTLINE
    return drawn


def paint_masks(
    label: Integer[np.ndarray, "y x"], nothing: int, classes: int, size: tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """Colour pseudo labels as `paint` does. They are no classes: their colours begin where those of the classes end."""
    first = classes % len(_PALETTE)
    return paint(np.where(label == nothing, -1, label.astype(np.int32) + first), -1, size)


def empty(side: int) -> UInt8[np.ndarray, "side side 3"]:
    """A hatched panel: there is nothing to show."""
    return hatch(np.full((side, side, 3), NOTHING), np.ones((side, side), bool))


def outline(
    picture: UInt8[np.ndarray, "height width 3"], box: tuple[int, int, int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the border of a box (top, left, bottom, right; bottom and right exclusive), white in black."""
    canvas = Image.fromarray(picture)
    top, left, bottom, right = box
    bottom, right = max(bottom, top + 5), max(right, left + 5)  # a sliver still has an inside
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((left, top, right - 1, bottom - 1), outline="black", width=3)
    draw.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline="white", width=1)
    return np.array(canvas)


def hatch(
    picture: UInt8[np.ndarray, "height width 3"], where: Bool[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw grey diagonal lines over part of a picture: there is no label."""
    y, x = np.indices(where.shape)
    return np.where((where & ((x + y) % PERIOD < WIDTH))[..., None], LINE, picture)


def overlay(
    image: UInt8[np.ndarray, "height width 3"],
    painted: UInt8[np.ndarray, "height width 3"],
    strength: float = 0.55,
) -> UInt8[np.ndarray, "height width 3"]:
    """A photograph, in grey so that colours keep their meaning, seen through a painted label map."""
    grey = image.mean(axis=2, keepdims=True)
    return ((1 - strength) * grey + strength * painted).round().astype(np.uint8)


def overlay_masks(
    image: UInt8[np.ndarray, "height width 3"], label: Integer[np.ndarray, "y x"], nothing: int, classes: int
) -> UInt8[np.ndarray, "height width 3"]:
    """A photograph in grey, tinted where it has pseudo labels and dark elsewhere."""
    size = image.shape[:2]
    tinted = overlay(image, paint_masks(label, nothing, classes, size))
    dark = overlay(image, np.zeros_like(image))
    return np.where(enlarged(label != nothing, size)[..., None] > 0, tinted, dark)


def heat(
    image: UInt8[np.ndarray, "height width 3"], weights: Float[np.ndarray, "y x"]
) -> UInt8[np.ndarray, "height width 3"]:
    """The image in grey and dark, the more orange the greater the weight."""
    height, width = image.shape[:2]
    scaled = Image.fromarray((weights / weights.max()).astype(np.float32)).resize((width, height))
    strength = np.asarray(scaled).clip(0, 1)[..., None]
    grey = 0.45 * image.mean(axis=2, keepdims=True)
    return ((1 - strength) * grey + strength * ORANGE).astype(np.uint8)
