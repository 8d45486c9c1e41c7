"""A segmented image: the class of each pixel, with scores and areas, as an overlay or a notebook figure."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from data_cache.messages import printable
from experiments.areas import ClassArea, SegmentedImage
from trainer.segmenter import Vocabulary
from viewer.figure import Figure, Panel
from viewer.palette import overlay, paint_labels
from viewer.render import render_overlay

SIDE = 400
"""Longer side in pixels of the panels in a notebook: two of them fit into its width."""


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """A segmented image. Notebooks show it next to its overlay.

    Args:
        file: name of the image.
        image: the upright image in RGB.
        label_map: for each pixel, the index of its class in `classes`.
        scores: for each pixel, the probability of that class: the softmax of the logits with gamma added.
        vocabulary: the classes.

    """

    file: str
    image: UInt8[np.ndarray, "height width 3"]
    label_map: Int[np.ndarray, "height width"]
    scores: Float[np.ndarray, "height width"]
    vocabulary: Vocabulary

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the indices in `label_map`."""
        return self.vocabulary.split.classes

    @property
    def areas(self) -> dict[str, ClassArea]:
        """Area and mean score of each class that is present, the largest first."""
        return self.measured.present

    @cached_property
    def measured(self) -> SegmentedImage:
        """The measurements alone, which need little memory."""
        count = len(self.classes)
        pixels = np.bincount(self.label_map.ravel(), minlength=count)
        sums = np.bincount(self.label_map.ravel(), self.scores.ravel(), minlength=count)
        height, width = self.label_map.shape
        return SegmentedImage(self.file, height, width, self.vocabulary, pixels, sums / np.maximum(pixels, 1))

    def overlay(self) -> Image.Image:
        """The label map over the image in gray, above a legend of the classes present with their shares."""
        return render_overlay(self.image, self.label_map, self.measured.colors, self.measured.legend())

    def _repr_html_(self) -> str:
        painted = overlay(self.image, paint_labels(self.label_map, -1, self.measured.colors, self.label_map.shape))
        panels = [Panel("image", self.image, continuous=True), Panel("prediction", painted, continuous=True)]
        legend = self.measured.legend(ascii_only=False)
        heading = f"{self.file}, {self.image.shape[1]} x {self.image.shape[0]} px"
        return Figure.of(panels, heading=heading, legend=legend, side=SIDE)._repr_html_()

    def __repr__(self) -> str:
        return printable(str(self.measured))
