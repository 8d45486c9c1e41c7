"""Reads the JSON files of labelme, one per image."""

import base64
import os
from collections.abc import Mapping
from functools import partial
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from data_cache.annotations.regions import Patch, Region, RegionImage, ellipse, rectangle
from data_cache.datasets.decode import DAMAGED


def read_labelme(name: str, content: Mapping[str, Any]) -> RegionImage:
    """The image and its shapes, in the order of the file; `name` is the path of the file in the export.

    Raises KeyError, TypeError, ValueError if it is malformed.
    """
    folder = PurePosixPath(name).parent
    image = str(content.get("imagePath") or PurePosixPath(name).name).replace("\\", "/")
    size = (content.get("imageWidth"), content.get("imageHeight"))
    regions, skipped = [], []
    for shape in content["shapes"]:
        label, kind = str(shape["label"]).strip(), shape.get("shape_type") or "polygon"
        if (region := _region(label, kind, shape)) is None:
            skipped.append(f"a shape of '{label}' is skipped: a {kind} has no area")
        else:
            regions.append(region)
    known = (int(size[0]), int(size[1])) if size[0] and size[1] else None
    return RegionImage(os.path.normpath(folder / image), known, tuple(regions), tuple(skipped))


def _region(label: str, kind: str, shape: Mapping[str, Any]) -> Region | None:
    """The region of a shape; None if its kind has no area."""
    points = np.array(shape["points"], float).reshape(-1, 2)
    if kind in ("polygon", "oriented_rectangle"):
        return Region(label, [points])
    if kind == "rectangle":
        (left, top), (right, bottom) = points.min(0), points.max(0)
        return Region(label, [rectangle(left, top, right, bottom)])
    if kind == "circle":
        (x, y), edge = points
        radius = float(np.hypot(edge[0] - x, edge[1] - y))
        return Region(label, [ellipse(x, y, radius, radius)])
    if kind == "mask":
        left, top = (round(float(one)) for one in points.min(0))
        return Region(label, partial(_decode_mask, shape["mask"], left, top))
    return None


def _decode_mask(encoded: str, left: int, top: int) -> Patch:
    try:
        with Image.open(BytesIO(base64.b64decode(encoded)), formats=["PNG"]) as picture:
            return Patch(left, top, np.array(picture.convert("L")) > 0)
    except DAMAGED as error:
        raise ValueError(f"its mask is no PNG image ({type(error).__name__})") from None
