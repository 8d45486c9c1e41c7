"""A cached view as a figure: image, seen labels and masks. Missing parts are hatched or mentioned in a note."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from data_cache.cached_view import CachedView
from data_cache.datasets.base import VOID
from data_cache.errors import UserError
from data_cache.sample import crop_image
from data_cache.views import whole
from viewer.class_colors import class_colors
from viewer.figure import SIDE, Figure, Panel
from viewer.legend import legend_of
from viewer.palette import draw_box, hatched_panel, outline_masks, paint_labels, paint_masks

NOT_IGNORED = -1
"""The label of tokens that are not ignored in a `ScaleMap`."""


class ScaleMap(NamedTuple):
    """The masks of one window size before fusion, one per center; `label` is NOT_IGNORED outside of all masks."""

    window: int
    centers: int
    label: Int[np.ndarray, "y x"]


def view_figure(view: CachedView, scales: Sequence[ScaleMap] = (), notes: Sequence[str] = ()) -> Figure:
    """Image, seen labels, the masks of each scale if given, and the fused masks, as far as they exist."""
    panels, missing, legend = _image(view), [], []
    if view.missing:
        missing.append(f"no image: {view.missing}")
    elif view.ok and not view.has_label:
        missing.append("no label map: all of the image is ignored area")
    try:
        fused = Panel(f"fused masks: {view.count}", _masks(view, view.masks, view.reserved))
        if (seen := view.seen_label) is not None:
            panels.append(
                Panel("seen labels", paint_labels(seen, VOID, class_colors(view.mask_set.classes), (SIDE, SIDE)))
            )
            legend = legend_of([seen], view.mask_set.split)
        for window, centers, label in scales:
            panels.append(Panel(f"masks of {window} x {window} windows: {centers}", _masks(view, label, NOT_IGNORED)))
        panels.append(fused)
    except UserError as error:
        missing.append(str(error))
    return Figure.of(panels, heading=heading(view), notes=[*dict.fromkeys([*missing, *notes])], legend=legend)


def thumbnail(view: CachedView) -> Panel:
    """The fused masks over the image, or the parts of this that exist."""
    title = f"image {view.index}"
    try:
        painted = _masks(view, view.masks, view.reserved)
    except UserError:
        return Panel(f"{title}: {'failed' if view.status else 'not done'}", hatched_panel(SIDE))
    if view.missing:
        return Panel(title, painted)
    image = crop_image(view.sample.image, view.geometry, SIDE)
    drawn = outline_masks(image, view.masks, view.reserved, class_colors(view.mask_set.classes))
    return Panel(title, drawn, continuous=True)


def heading(view: CachedView) -> str:
    """Index, id, view, the box of a crop, and how many tokens are ignored."""
    name = f"{view.index}: {view.id}, view {view.number}"
    try:
        masks, geometry = view.masks, view.geometry
    except UserError:
        return name
    top, left, bottom, right = geometry.box
    mirrored = ", mirrored" if geometry.flip else ""
    where = f", {right - left} x {bottom - top} px at ({left}, {top}){mirrored}" if view.number else ""
    return f"{name}{where}; {(masks != view.reserved).sum()} of {masks.size} tokens ignored"


def _image(view: CachedView) -> list[Panel]:
    if view.missing:
        return [Panel("image", hatched_panel(SIDE))]
    image = view.sample.image
    height, width = image.shape[:2]
    whole_image = crop_image(image, whole(height, width), SIDE)
    if not view.number or not view.ok:
        return [Panel("image", whole_image, continuous=True)]
    top, left, bottom, right = view.geometry.box
    scale_y, scale_x = SIDE / height, SIDE / width
    box = (round(top * scale_y), round(left * scale_x), round(bottom * scale_y), round(right * scale_x))
    return [
        Panel("image", draw_box(whole_image, box), continuous=True),
        Panel(f"view {view.number}", crop_image(image, view.geometry, SIDE), continuous=True),
    ]


def _masks(view: CachedView, label: Shaped[np.ndarray, "y x"], unlabelled: int) -> UInt8[np.ndarray, "height width 3"]:
    return paint_masks(label, unlabelled, class_colors(view.mask_set.classes), (SIDE, SIDE))
