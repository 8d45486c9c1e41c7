"""How a view of an image is drawn: photograph, seen labels, masks. What is missing is hatched, or a sentence."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from data_cache.colours import empty, outline, overlay_masks, paint, paint_masks
from data_cache.datasets.base import VOID
from data_cache.errors import UserError
from data_cache.figure import SIDE, Figure, Panel
from data_cache.views import replay_image, whole

if TYPE_CHECKING:
    from data_cache.record import ImageRecord

SIDES = (SIDE, SIDE)


def portrait(record: "ImageRecord") -> Figure:
    """Photograph, seen labels, whatever `open_cache(panels=...)` adds, and the fused masks, as far as they exist."""
    panels, notes, names = _photograph(record), [], {}
    if record.photo is None:
        notes.append(f"no photograph: {record.missing}")
    elif record.ok and not record.labelled:
        notes.append("no label map: all of the image is ignored area")
    try:
        fused = Panel(f"fused masks: {record.count}", _masks(record, record.masks, record.nothing))
        if (seen := record.seen) is not None:
            panels.append(Panel("seen labels", paint(seen, VOID, SIDES)))
            names = {int(i): record.reader.classes[i] for i in np.unique(seen) if i != VOID}
        further = _further(record, notes)
        panels += [*(Panel(title, _masks(record, label, -1)) for title, label in further.items()), fused]
    except UserError as error:
        notes.append(str(error))
    return Figure(panels, heading(record), notes, names)


def thumbnail(record: "ImageRecord") -> Panel:
    """The fused masks over the photograph, or as much of this as there is."""
    try:
        painted = _masks(record, record.masks, record.nothing)
    except UserError:
        return Panel(f"{record.index}: {'failed' if record.status else 'not done'}", empty(SIDE))
    if record.photo is None:
        return Panel(str(record.index), painted)
    view = replay_image(record.photo, record.geometry, SIDE)
    tinted = overlay_masks(view, record.masks, record.nothing, len(record.reader.classes))
    return Panel(str(record.index), tinted, photograph=True)


def heading(record: "ImageRecord") -> str:
    """Number, name and view, and what share of it is ignored."""
    name = f"{record.index}: {record.id}, view {record.number}"
    try:
        masks, geometry = record.masks, record.geometry
    except UserError:
        return name
    top, left, bottom, right = geometry.box
    mirrored = ", mirrored" if geometry.flip else ""
    where = f", {right - left} x {bottom - top} px at ({left}, {top}){mirrored}" if record.number else ""
    return f"{name}{where}; {(masks != record.nothing).sum()} of {masks.size} tokens ignored"


def _photograph(record: "ImageRecord") -> list[Panel]:
    if record.photo is None:
        return [Panel("photograph", empty(SIDE))]
    height, width = record.photo.shape[:2]
    everything = replay_image(record.photo, whole(height, width), SIDE)
    if not record.number or not record.ok:
        return [Panel("photograph", everything, photograph=True)]
    top, left, bottom, right = record.geometry.box
    down, across = SIDE / height, SIDE / width
    box = (round(top * down), round(left * across), round(bottom * down), round(right * across))
    view = replay_image(record.photo, record.geometry, SIDE)
    return [
        Panel("photograph", outline(everything, box), photograph=True),
        Panel(f"view {record.number}", view, photograph=True),
    ]


def _further(record: "ImageRecord", notes: list[str]) -> Mapping[str, Int[np.ndarray, "y x"]]:
    try:
        return record.reader.panels(record) if record.reader.panels else {}
    except UserError as error:
        notes.append(str(error))
        return {}


def _masks(
    record: "ImageRecord", label: Shaped[np.ndarray, "y x"], nothing: int
) -> UInt8[np.ndarray, "height width 3"]:
    return paint_masks(label, nothing, len(record.reader.classes), SIDES)
