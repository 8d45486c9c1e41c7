"""Reads object annotations in COCO's JSON format."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from data_cache.annotations.regions import Patch, Region, RegionImage, area_of, decode_runs
from data_cache.errors import UserError


class _Object(NamedTuple):
    """The region of an object. Crowds are drawn first, then large objects: small ones stay visible."""

    region: Region
    order: tuple[bool, float]


def read_coco(content: Mapping[str, Any]) -> tuple[tuple[str, ...], list[RegionImage]]:
    """The class names by ascending category id, and the images.

    Raises KeyError, TypeError, ValueError if the file is malformed; UserError if it is COCO's panoptic format.
    """
    categories = {entry["id"]: str(entry["name"]).strip() for entry in content["categories"]}
    objects: dict[Any, list[_Object]] = defaultdict(list)
    skipped: dict[Any, list[str]] = defaultdict(list)
    for entry in content["annotations"]:
        if "segments_info" in entry:
            raise UserError("is in COCO's panoptic format; export object instances, or the panoptic PNGs as index maps")
        name, segmentation = categories[entry["category_id"]], entry.get("segmentation")
        try:
            objects[entry["image_id"]].append(_object(name, segmentation, bool(entry.get("iscrowd"))))
        except ValueError as error:
            skipped[entry["image_id"]].append(f"an object of '{name}' is skipped: {error}")
    images = []
    for image in content["images"]:
        size = (int(image["width"]), int(image["height"])) if image.get("width") and image.get("height") else None
        ordered = sorted(objects[image["id"]], key=lambda one: one.order)
        regions = tuple(one.region for one in ordered)
        images.append(RegionImage(str(image["file_name"]), size, regions, tuple(skipped[image["id"]])))
    return tuple(categories[key] for key in sorted(categories)), images


def _object(name: str, segmentation: Any, crowd: bool) -> _Object:
    if not segmentation:
        raise ValueError("it has a box, but no outline")
    if isinstance(segmentation, Mapping):
        height, width = map(int, segmentation["size"])
        counts = segmentation["counts"]
        runs = parse_counts(counts) if isinstance(counts, str) else [int(count) for count in counts]
        return _Object(Region(name, partial(_decode, runs, height, width)), (not crowd, -float(sum(runs[1::2]))))
    polygons = [np.array(flat, float).reshape(-1, 2) for flat in segmentation]
    return _Object(Region(name, polygons), (not crowd, -sum(map(area_of, polygons))))


def _decode(runs: Sequence[int], height: int, width: int) -> Patch:
    return Patch(0, 0, decode_runs(runs, height, width, by_column=True))


def parse_counts(text: str) -> list[int]:
    """The run lengths in COCO's compressed string.

    Each number is a sequence of characters with five bits each, lowest first; bit 5 says that more follow, and bit 4
    of the last one is the sign. From the fourth number on, each is a difference to the last but one.

    Raises ValueError for other strings.
    """
    runs: list[int] = []
    value = shift = 0
    for code in (ord(letter) - 48 for letter in text):
        if not 0 <= code < 64 or shift > 60:
            raise ValueError("its run-length encoding is damaged")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("its run-length encoding is cut off")
    return runs
