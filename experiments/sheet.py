"""The demo's picture: what goes in, what the cache holds, where GLM looks, what comes out, and the truth."""

from pathlib import Path

import numpy as np

from data_cache.colours import heat, laid_over, paint
from data_cache.datasets.base import VOID
from data_cache.show import fitted, scaled
from experiments.attention import attention
from experiments.cached_views import CachedViews
from experiments.centres import COLOURS, NONE, pseudo
from experiments.figures import IGNORED, Figure, Row, seen_only, vocabulary
from trainer.evaluate import GAMMA, Predictor, labelled

ROWS, PANEL = 6, 160
TITLES = ("image", "seen labels", "fused masks", "GLM attention", "prediction", "ground truth")


def demo_figure(predictor: Predictor, cache: Path, rows: int = ROWS) -> Figure:
    """Those images of a cache in which unseen classes cover most, with everything there is about them."""
    views, split = CachedViews.open(cache, None), predictor.words.split
    scenes = [labelled(views.images, index) for index in range(len(views.images))]
    by_share = sorted(range(len(scenes)), key=lambda i: -np.isin(scenes[i][1], split.unseen_index).mean())
    drawn, maps = [], []
    for index in sorted(by_share[:rows]):
        geometry, image, _, label = views.look(index)
        size, found = fitted(*label.shape, PANEL), predictor(image).at(GAMMA)
        photograph, masks = scaled(image, size), pseudo(views.fused(index)[0], len(split.classes) % COLOURS)
        weights = attention(predictor.checkpoint, views.cls(index), image, geometry)
        maps += [label, found]
        panels = (
            photograph,
            paint(seen_only(label, split), VOID, size),
            laid_over(masks, NONE, photograph),
            heat(photograph, weights),
            paint(found, VOID, size),
            paint(label, VOID, size),
        )
        drawn.append(Row(views.images.ids[index], panels))
    return Figure(TITLES, drawn, *vocabulary(split, maps), IGNORED)
