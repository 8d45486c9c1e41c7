"""Text-to-image retrieval on synthetic scenes: the test of the tiny CLIP."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from data_cache.datasets.scenes import Scenes, visible_classes
from data_cache.sample import crop_image
from data_cache.views import whole
from pipeline.teacher.prompts import Prompts
from pipeline.teacher.protocol import Teacher

BATCH = 50


def retrieval(clip: Teacher, scenes: Scenes) -> dict[str, float]:
    """Average precision per class: scenes ranked by the cosine similarity of CLS token and text feature.

    A scene is relevant if the class is visible in it (`visible_classes`).
    """
    text = clip.encode_text(scenes.classes, Prompts.default_for(scenes.name).templates)
    scores, relevant = [], []
    for start in range(0, len(scenes), BATCH):
        batch = [scenes.load(i) for i in range(start, min(start + BATCH, len(scenes)))]
        images = [crop_image(image, whole(*image.shape[:2]), clip.image_size) for image, _ in batch]
        cls = clip.encode(np.stack(images)).cls.astype(np.float64)
        scores.append(cls / np.linalg.norm(cls, axis=1, keepdims=True) @ text.T)
        relevant += [visible_classes(label) for _, label in batch]
    all_scores, all_relevant = np.concatenate(scores), np.stack(relevant)
    return {name: average_precision(all_scores[:, k], all_relevant[:, k]) for k, name in enumerate(scenes.classes)}


def average_precision(scores: Float[np.ndarray, "item"], relevant: Bool[np.ndarray, "item"]) -> float:
    """Mean precision at the ranks of the relevant items; nan if no item is relevant."""
    hits = relevant[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean()) if hits.any() else float("nan")


def mean_average_precision(by_class: Mapping[str, float]) -> float:
    """Mean over the classes that occur."""
    return float(np.nanmean([*by_class.values()]))
