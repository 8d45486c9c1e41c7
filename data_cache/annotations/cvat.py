"""Reads CVAT's own XML format, "CVAT for images"."""

from functools import partial
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from data_cache.annotations.regions import (
    Patch,
    Polygon,
    Region,
    RegionImage,
    decode_runs,
    ellipse,
    rectangle,
    rotated,
)
from data_cache.errors import UserError


def read_cvat(text: bytes) -> tuple[tuple[str, ...], list[RegionImage]]:
    """The class names in the order of the task or project, and the images; regions are drawn by z order.

    Raises KeyError, TypeError, ValueError if the file is malformed; UserError if it is of another kind.
    """
    try:
        tree = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(f"is not valid XML ({error})") from None
    if tree.tag != "annotations":
        raise UserError("is not an XML file of CVAT; export 'CVAT for images'")
    if tree.find("track") is not None:
        raise UserError("is in the format 'CVAT for video'; export 'CVAT for images', which names each frame")
    names = [entry.text.strip() for entry in tree.iterfind("meta//labels/label/name") if entry.text]
    return tuple(dict.fromkeys(names)), [_image(element) for element in tree.iterfind("image")]


def _image(element: Element) -> RegionImage:
    regions, skipped = [], []
    for shape in sorted(element, key=lambda one: int(one.get("z_order", "0"))):
        label = shape.attrib["label"].strip()
        if shape.tag == "mask":
            regions.append(Region(label, partial(_mask, dict(shape.attrib))))
        elif (polygon := _polygon(shape)) is not None:
            regions.append(Region(label, [polygon]))
        else:
            skipped.append(f"a shape of '{label}' is skipped: a {shape.tag} has no area")
    size = int(element.attrib["width"]), int(element.attrib["height"])
    return RegionImage(element.attrib["name"].replace("\\", "/"), size, tuple(regions), tuple(skipped))


def _polygon(shape: Element) -> Polygon | None:
    """The outline of a shape; None if its kind has no area."""
    if shape.tag == "polygon":
        return np.array([[float(number) for number in point.split(",")] for point in shape.attrib["points"].split(";")])
    if shape.tag == "box":
        outline = rectangle(*(float(shape.attrib[side]) for side in ("xtl", "ytl", "xbr", "ybr")))
    elif shape.tag == "ellipse":
        outline = ellipse(*(float(shape.attrib[part]) for part in ("cx", "cy", "rx", "ry")))
    else:
        return None
    return rotated(outline, float(shape.get("rotation", "0")))


def _mask(shape: dict[str, str]) -> Patch:
    left, top, width, height = (int(float(shape[part])) for part in ("left", "top", "width", "height"))
    return Patch(left, top, decode_runs([int(run) for run in shape["rle"].split(",")], height, width))
