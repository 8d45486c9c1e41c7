"""The figures of a student: computes attention and predictions, which `viewer.paper_figures` draws."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image

from data_cache.cached_view import CachedView
from data_cache.datasets.base import Dataset
from data_cache.sample import crop_image
from data_cache.splits import Split
from data_cache.views import View
from trainer.checkpoint import Checkpoint
from trainer.evaluate import load_labelled
from trainer.losses.glm import attention_weights
from trainer.predictor import Predictor
from trainer.segmenter import Segmenter
from trainer.validation import Predicted
from viewer import paper_figures
from viewer.figure import Figure
from viewer.palette import resize_labels
from viewer.paper_figures import SIDE, Prediction
from viewer.reader import open_finished_cache

DEMO_ROWS = 6


@torch.inference_mode()
def attention(
    checkpoint: Checkpoint,
    cls: Float[np.ndarray, "channel"],
    image: UInt8[np.ndarray, "height width 3"],
    geometry: View,
) -> Float[np.ndarray, "y x"]:
    """Eq. 1 for one view of an image: the weight of each cell of the student's features. Weights sum to 1."""
    device = checkpoint.text.device
    pixels = torch.from_numpy(crop_image(image, geometry, checkpoint.size)).permute(2, 0, 1)[None].to(device)
    features = checkpoint.network(pixels).float()
    weights = attention_weights(torch.from_numpy(cls.astype(np.float32))[None].to(device), features)
    return weights.view(features.shape[2:]).cpu().numpy()


def attention_of(checkpoint: Checkpoint, view: CachedView) -> Float[np.ndarray, "y x"]:
    """`attention` for a cached view. Raises UserError if its image failed or has changed."""
    return attention(checkpoint, view.cls, view.sample.image, view.geometry)


def attention_figure(checkpoint: Checkpoint, views: Sequence[CachedView], side: int = SIDE) -> Figure:
    """The student's attention over cached views (Figure 5), with a warning if it was trained without attention.

    Raises UserError if an image failed or has changed.
    """
    glm = checkpoint.config.glm
    warnings = () if glm == "attention" else (f"this student was trained with --glm {glm}: its attention is untrained",)
    weights = [attention_of(checkpoint, view) for view in views]
    return paper_figures.attention_figure(views, weights, checkpoint.split, warnings, side)


def predictions_figure(
    segmenter: Segmenter, images: Dataset, indices: Sequence[int], gamma: float, side: int = SIDE
) -> Figure:
    """Predictions for images of a dataset (Figure 7). Raises UserError for an image without a label map."""
    predictions = []
    for index in indices:
        image, label = load_labelled(images, index)
        predictions.append(Prediction(images.ids[index], image, label, segmenter(image).at(gamma)))
    return paper_figures.predictions_figure(predictions, segmenter.vocabulary.split, gamma, side)


def training_picture(predictions: Sequence[Predicted], split: Split, gamma: float) -> Image:
    """A picture of a student's predictions while it is trained, with the labels it may see."""
    rows = [
        Prediction(name, image, label, resize_labels(predicted, image.shape[:2]))
        for name, image, label, predicted in predictions
    ]
    return paper_figures.predictions_figure(rows, split, gamma, hidden=True).to_image()


def demo_figure(predictor: Predictor, path: Path, rows: int = DEMO_ROWS) -> Figure:
    """The sheet of the demo: the images of a cache with the largest unseen area, with all their figures."""
    cache, split = open_finished_cache(path, None), predictor.vocabulary.split
    dataset = cache.source.dataset
    unseen_share = [np.isin(load_labelled(dataset, i)[1], split.unseen_index).mean() for i in range(len(dataset))]
    chosen = sorted(range(len(dataset)), key=lambda i: -unseen_share[i])[:rows]
    views = [cache[index] for index in sorted(chosen)]
    predicted = [predictor(view.sample.image).at(predictor.checkpoint.gamma()) for view in views]
    weights = [attention_of(predictor.checkpoint, view) for view in views]
    return paper_figures.demo_figure(views, weights, predicted, split)
