"""The paper's Figures 5 to 7, the demo's sheet and the figure of `quality`, drawn from given views and results."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer, Shaped, UInt8

from data_cache.cached_view import CachedView
from data_cache.datasets.base import VOID, void_of
from data_cache.splits import Split
from viewer.class_colors import class_colors
from viewer.figure import Figure, FigureRow, Panel
from viewer.legend import legend_of
from viewer.palette import outline_masks, overlay_heat, paint_labels
from viewer.render import fit_size, resize_image
from viewer.view_figure import NOT_IGNORED, ScaleMap

SIDE = 192
"""Longer side of a panel in pixels."""
DEMO_SIDE = 160
IGNORED = "ignored area: no seen label"

Attention = Float[np.ndarray, "y x"]
LabelMap = Integer[np.ndarray, "height width"]


class Prediction(NamedTuple):
    """An image with its id, label map and predicted label map."""

    id: str
    image: UInt8[np.ndarray, "height width 3"]
    label: LabelMap
    predicted: LabelMap


class MaskPanel(NamedTuple):
    """Masks that were computed without labels of some classes (ids)."""

    title: str
    classes: Int[np.ndarray, "class"]
    masks: Shaped[np.ndarray, "y x"]
    reserved: int


def attention_figure(
    views: Sequence[CachedView],
    attention: Sequence[Attention],
    split: Split,
    warnings: Sequence[str] = (),
    side: int = SIDE,
) -> Figure:
    """Image, seen labels and GLM attention (eq. 1; Figure 5). Raises UserError if an image failed or has changed."""
    rows, seen = [], []
    for view, weights in zip(views, attention, strict=True):
        image, label = _image(view, side), split.hide_unseen(view.label)
        seen.append(label)
        caption = f"{view.id}: largest weight {weights.max() * weights.size:.1f} times the mean"
        rows.append(FigureRow([image, _labels("seen labels", label, split, side), _attention(image, weights)], caption))
    notes = ("GLM attention: the more orange, the larger a cell's weight; full orange at the maximum of each image",)
    return Figure(rows, "", legend_of(seen, split), IGNORED, notes, warnings, side)


def masks_figure(
    views: Sequence[CachedView], scales: Sequence[Sequence[ScaleMap]], warnings: Sequence[str] = (), side: int = SIDE
) -> Figure:
    """Image, seen labels, the masks of single centers per window size, and the fused masks (Figure 6).

    `scales` has the masks of single centers for each view (empty without dense tokens). Raises UserError if an image
    failed or has changed.
    """
    rows, seen, split = [], [], views[0].mask_set.split
    for view, centers in zip(views, scales, strict=True):
        image, label = _image(view, side), split.hide_unseen(view.label)
        seen.append(label)
        panels = [image, _labels("seen labels", label, split, side)]
        panels += [_masks(f"centers, windows of {s.window}", view, image, s.label, NOT_IGNORED) for s in centers]
        panels.append(_masks("fused masks", view, image, view.masks, view.reserved))
        counts = " + ".join(str(scale.centers) for scale in centers) + " centers, " if centers else ""
        rows.append(FigureRow(panels, f"{view.id}: {counts}{view.count} fused mask{'' if view.count == 1 else 's'}"))
    notes = ("colors of centers and masks are arbitrary; tokens that are not ignored have none",)
    return Figure(rows, "", legend_of(seen, split), IGNORED, notes, warnings, side)


def predictions_figure(
    predictions: Iterable[Prediction], split: Split, gamma: float, side: int = SIDE, hidden: bool = False
) -> Figure:
    """Image, ground truth and prediction at `gamma` (Figure 7). If `hidden`, labels are those seen in training."""
    rows, maps = [], []
    for name, image, label, predicted in predictions:
        size = fit_size(*label.shape, side)
        panels = [
            Panel("image", resize_image(image, size), continuous=True),
            _labels("seen labels" if hidden else "ground truth", label, split, side),
            _labels("prediction", predicted, split, side),
        ]
        rows.append(FigureRow(panels, name))
        maps += [label, predicted]
    notes = (f"gamma {gamma:g} is added to the logits of classes without labels in training",)
    return Figure(rows, "", legend_of(maps, split), IGNORED if hidden else "no annotation", notes, side=side)


def demo_figure(
    views: Sequence[CachedView], attention: Sequence[Attention], predicted: Sequence[LabelMap], split: Split
) -> Figure:
    """All figures of some views: image, seen labels, fused masks, GLM attention, prediction and ground truth."""
    rows = []
    for view, weights, prediction in zip(views, attention, predicted, strict=True):
        image = _image(view, DEMO_SIDE)
        panels = [
            image,
            _labels("seen labels", split.hide_unseen(view.label), split, DEMO_SIDE),
            _masks("fused masks", view, image, view.masks, view.reserved),
            _attention(image, weights),
            _labels("prediction", prediction, split, DEMO_SIDE),
            _labels("ground truth", view.label, split, DEMO_SIDE),
        ]
        rows.append(FigureRow(panels, view.id))
    legend = legend_of([*(view.label for view in views), *predicted], split)
    return Figure(rows, "", legend, IGNORED, side=DEMO_SIDE)


def quality_figure(rows: Sequence[tuple[CachedView, str, Sequence[MaskPanel]]], note: str, side: int = SIDE) -> Figure:
    """Views with captions: the image, and for each of their panels the regions of its classes, and the masks.

    Raises UserError if an image failed or has changed.
    """
    split, drawn, regions = rows[0][0].mask_set.split, [], []
    for view, caption, panels in rows:
        image = _image(view, side)
        shown = [image]
        for title, classes, masks, reserved in panels:
            regions.append(np.where(np.isin(view.label, classes), view.label, VOID))
            shown.append(_labels(f"{title}: regions", regions[-1], split, side))
            shown.append(_masks(f"{title}: masks", view, image, masks, reserved))
        drawn.append(FigureRow(shown, caption))
    notes = (note, "colors of masks are arbitrary; tokens that are not ignored have none")
    return Figure(drawn, "", legend_of(regions, split), "not measured", notes, side=side)


def _image(view: CachedView, side: int) -> Panel:
    image = view.crop
    return Panel("image", resize_image(image, fit_size(*image.shape[:2], side)), continuous=True)


def _labels(title: str, label: LabelMap, split: Split, side: int) -> Panel:
    return Panel(title, paint_labels(label, void_of(label), class_colors(split.classes), fit_size(*label.shape, side)))


def _masks(title: str, view: CachedView, image: Panel, label: LabelMap, unlabelled: int) -> Panel:
    drawn = outline_masks(image.pixels, label, unlabelled, class_colors(view.mask_set.classes))
    return Panel(title, drawn, continuous=True)


def _attention(image: Panel, weights: Attention) -> Panel:
    return Panel("GLM attention", overlay_heat(image.pixels, weights), continuous=True)
