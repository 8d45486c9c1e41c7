"""A cache of images with hostile names, and readers for the HTML of display objects."""

import base64
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from folders import make_cache
from PIL import Image

from viewer.figure import SIDE
from viewer.palette import BLANK, HATCH

CLASSES = ("<script>alert(1)</script>", "grass & sand", 'a "b" class', "disc", "square", "stripe")
UNSEEN = "disc,square"
FAILED, UNLABELLED, CROP = 3, 4, 1
SHARD, IMAGES = 2, 6
CACHE = "own <i>&.zarr"


def name(number: int) -> str:
    return f"images/{number} <b>&amp; 'it'.png"


def cache_hostile(root: Path, cache: Path, **given: object) -> Path:
    """Precompute the images with hostile names."""
    return make_cache(root, cache, **({"unseen": UNSEEN, "shard": SHARD, "views": 2} | given))


def parsed(html: str) -> ElementTree.Element:
    """Parse the HTML of a display object; it must be well-formed, without scripts or external resources."""
    tree = ElementTree.fromstring(html)
    assert {e.tag for e in tree.iter()} <= {
        *("div", "span", "strong", "img", "table", "thead", "tbody", "tr", "th", "td")
    }
    for element in tree.iter():
        assert set(element.attrib) <= {"style", "src", "alt", "width", "height"}
        assert element.get("src", "data:image/").startswith("data:image/")
        # text must inherit the colors of the theme
        assert not re.search(r"(^|;)\s*(color|background)\s*:", element.get("style", ""))
    return tree


def rendered(thing: object) -> ElementTree.Element:
    return parsed(thing._repr_html_())


def visible_text(tree: ElementTree.Element) -> str:
    return " ".join(tree.itertext())


def images_by_title(tree: ElementTree.Element) -> dict[str, np.ndarray]:
    """All images, by alt text."""
    found = {}
    for image in tree.iter("img"):
        data = base64.b64decode(image.get("src").split(",")[1])
        assert image.get("alt") not in found
        found[image.get("alt")] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return found


def hatched(image: np.ndarray) -> bool:
    """Whether an image is nothing but the hatching of missing panels."""
    return {tuple(color) for color in image.reshape(-1, 3)} == {tuple(BLANK), tuple(HATCH)}


def nearly_equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two images are equal up to lossy compression and resampling, in means of 8 x 8 pixels."""
    means = [image.reshape(SIDE // 8, 8, SIDE // 8, 8, 3).mean(axis=(1, 3)) for image in (one, other)]
    return np.abs(means[0] - means[1]).mean() < 3
