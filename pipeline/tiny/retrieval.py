"""Text-to-image retrieval on synthetic scenes: the test of the tiny CLIP."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from data_cache.datasets.worlds import Scenes
from data_cache.sample import crop_image
from data_cache.views import whole
from pipeline.teacher.prompts import Prompts
from pipeline.teacher.protocol import Teacher

BATCH = 50


def retrieval(clip: Teacher, scenes: Scenes) -> dict[str, float]:
    """Average precision per class: scenes ranked by the cosine similarity of CLS token and text feature.

    A scene is relevant if the class is visible in it (`World.visible_classes`).
    """
    text = clip.encode_text(scenes.classes, Prompts.default_for(scenes.name).templates)
    scores, relevant = [], []
    for start in range(0, len(scenes), BATCH):
        batch = [scenes.load(i) for i in range(start, min(start + BATCH, len(scenes)))]
        images = [crop_image(image, whole(*image.shape[:2]), clip.image_size) for image, _ in batch]
        cls = clip.encode(np.stack(images)).cls.astype(np.float64)
        scores.append(cls / np.linalg.norm(cls, axis=1, keepdims=True) @ text.T)
        relevant += [scenes.world.visible_classes(label) for _, label in batch]
    all_scores, all_relevant = np.concatenate(scores), np.stack(relevant)
    return {name: average_precision(all_scores[:, k], all_relevant[:, k]) for k, name in enumerate(scenes.classes)}


def average_precision(scores: Float[np.ndarray, "item"], relevant: Bool[np.ndarray, "item"]) -> float:
    """Mean precision at the ranks of the relevant items; items with equal scores share the last rank.

    nan if no item is relevant.
    """
    if not relevant.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked, found = scores[order], np.cumsum(relevant[order])
    last = np.searchsorted(-ranked, -ranked, "right")  # the number of items with this score or a higher one
    return float((found[last - 1] / last)[relevant[order]].mean())


def mean_average_precision(by_class: Mapping[str, float]) -> float:
    """Mean over the classes that occur."""
    return float(np.nanmean([*by_class.values()]))
