"""The demo's picture: what goes in, what the cache holds, where GLM looks, what comes out, and the truth."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from data_cache.colours import heat, paint
from data_cache.datasets.base import VOID, Dataset
from data_cache.schema import reserved_label
from data_cache.show import legend, sheet
from data_cache.store import Cache
from data_cache.views import replay_image, whole
from trainer.evaluate import GAMMA, Predictor
from trainer.glm import attention_weights

ROWS, PANEL = 6, 160
SIDES = (PANEL, PANEL)
TITLES = ("image", "seen labels", "fused masks", "GLM attention", "prediction", "ground truth")


def draw_sheet(predictor: Predictor, cache: Path, images: Dataset) -> Image.Image:
    """Draw those images of a cache in which unseen classes cover most; `images` begins with the cache's."""
    stored = Cache(cache)
    loaded = stored.load(stored.mask_name(None))
    split = predictor.words.split
    hidden = split.unseen_index
    scenes = [images.load(i) for i in range(len(loaded.ids))]
    by_share = sorted(range(len(scenes)), key=lambda i: -np.isin(scenes[i][1], hidden).mean())
    rows = []
    for index in sorted(by_share[:ROWS]):
        image, label = scenes[index]
        assert label is not None
        fused = loaded.label[index, 0].astype(int)
        # pseudo labels are no classes: they get colours of their own
        nothing = fused == reserved_label(loaded.label.dtype.name)
        rows.append(
            (
                image,
                paint(np.where(np.isin(label, hidden), VOID, label), VOID, SIDES),
                paint(np.where(nothing, VOID, fused + len(split.classes)), VOID, SIDES),
                heat(image, attention(predictor, loaded.cls[index, 0], image)),
                paint(predictor(image).at(GAMMA), VOID, SIDES),
                paint(label, VOID, SIDES),
            )
        )
    names = {i: name if name in split.seen else f"{name} (unseen)" for i, name in enumerate(split.classes)}
    return legend(sheet(rows, TITLES, PANEL), names)


@torch.inference_mode()
def attention(
    predictor: Predictor, cls: Float[np.ndarray, "channel"], image: UInt8[np.ndarray, "height width 3"]
) -> Float[np.ndarray, "y x"]:
    """Eq. 1 for one image: how much each of the student's cells counts."""
    checkpoint = predictor.checkpoint
    view = replay_image(image, whole(*image.shape[:2]), checkpoint.size)
    features = checkpoint.segmenter(torch.from_numpy(view).permute(2, 0, 1)[None])
    weights = attention_weights(torch.from_numpy(cls.astype(np.float32))[None], features)
    return weights.view(features.shape[2:]).numpy()
