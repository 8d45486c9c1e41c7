"""The paper's figures: rows of panels with what is needed to read them, to be drawn as a sheet or set on a page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from data_cache.colours import heat, paint
from data_cache.datasets.base import VOID, Dataset
from data_cache.show import fitted, legend, scaled, sheet
from data_cache.splits import Split
from experiments.attention import attention
from experiments.cached_views import CachedViews
from trainer.checkpoint import Checkpoint
from trainer.evaluate import Segments, labelled

SIDE = 192
"""Longer side of a panel in pixels."""
IGNORED = "ignored area: no seen label"


@dataclass(frozen=True)
class Row:
    """The panels of one image."""

    caption: str
    panels: tuple[UInt8[np.ndarray, "height width 3"], ...]


@dataclass(frozen=True)
class Figure:
    """Rows of panels.

    Args:
        titles: of the columns.
        rows: a panel a column.
        names: classes that occur in any panel, by label.
        unseen: those of them without labels in training.
        nothing: what hatched area is.
        notes: how to read it.
        warnings: what of it is missing or not as it should be.

    """

    titles: tuple[str, ...]
    rows: Sequence[Row]
    names: Mapping[int, str]
    unseen: frozenset[int]
    nothing: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def draw(self) -> Image.Image:
        """One picture of it, with a legend."""
        side = max(max(panel.shape[:2]) for row in self.rows for panel in row.panels)
        drawn = sheet([row.panels for row in self.rows], self.titles, side, [row.caption for row in self.rows])
        return legend(drawn, self.names, self.unseen, self.nothing, (*self.notes, *self.warnings))


def vocabulary(split: Split, maps: Iterable[Integer[np.ndarray, "y x"]]) -> tuple[dict[int, str], frozenset[int]]:
    """The classes that occur in some label maps, by label, and those of them that are unseen."""
    there = sorted({int(value) for one in maps for value in np.unique(one)} - {VOID})
    return {i: split.classes[i] for i in there}, frozenset(there) & frozenset(split.unseen_index.tolist())


def seen_only(label: UInt8[np.ndarray, "height width"], split: Split) -> UInt8[np.ndarray, "height width"]:
    """The labels that training may see; VOID for all others."""
    return np.where(np.isin(label, split.unseen_index), VOID, label).astype(np.uint8)


def predictions_figure(
    predict: Segments, images: Dataset, places: Sequence[int], gamma: float, side: int = SIDE
) -> Figure:
    """Photograph, ground truth and prediction (the paper's Figure 7). Raises UserError for an image without labels."""
    rows, maps = [], []
    for index in places:
        image, label = labelled(images, index)
        found, size = predict(image).at(gamma), fitted(*label.shape, side)
        maps += [label, found]
        rows.append(Row(images.ids[index], (scaled(image, size), paint(label, VOID, size), paint(found, VOID, size))))
    names, unseen = vocabulary(predict.words.split, maps)
    notes = (f"gamma {gamma:g} is added to the logits of classes without labels in training",)
    return Figure(("image", "ground truth", "prediction"), rows, names, unseen, "no annotation", notes)


def attention_figure(student: Checkpoint, views: CachedViews, places: Sequence[int], side: int = SIDE) -> Figure:
    """Photograph, what is labelled of it, and the student's GLM attention (eq. 1; the paper's Figure 5).

    Raises UserError for an image that failed or changed.
    """
    rows, maps = [], []
    for index in places:
        geometry, whole, image, label = views.look(index)
        weights = attention(student, views.cls(index), whole, geometry)
        size, known = fitted(*label.shape, side), seen_only(label, student.split)
        photograph = scaled(image, size)
        maps.append(known)
        caption = f"{views.images.ids[index]}: greatest weight {weights.max() * weights.size:.1f} times the mean"
        rows.append(Row(caption, (photograph, paint(known, VOID, size), heat(photograph, weights))))
    names, unseen = vocabulary(student.split, maps)
    notes = ("GLM attention: the more orange, the greater a cell's weight, full at the greatest of its image",)
    how = student.config.glm
    warnings = () if how == "attention" else (f"this student was trained with --glm {how}: its attention was not",)
    return Figure(("image", "seen labels", "GLM attention"), rows, names, unseen, IGNORED, notes, warnings)
