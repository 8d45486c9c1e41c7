"""A cache that the real pipeline makes once with a tiny untrained CLIP."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from displays import CACHE, CLASSES, FAILED, IMAGES, UNLABELLED, cache_hostile, name
from folders import CachedDataset, draw_folder
from shapes import draw_shape_image

from pipeline.config import ClusterConfig
from pipeline.recluster import recluster


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> CachedDataset:
    """Six images with names that look like HTML: one is damaged, one has no label map."""
    folder = tmp_path_factory.mktemp("reader")
    generator, pictures = np.random.default_rng(0), {}
    for number in range(IMAGES):
        image, label = (pixels[: 96 + 4 * number] for pixels in draw_shape_image(generator))
        stem = name(number).removeprefix("images/").removesuffix(".png")
        pictures[stem] = (image, None if number == UNLABELLED else label)
    root = draw_folder(folder / "dataset", CLASSES, pictures)
    failed = root / name(FAILED)
    failed.write_bytes(failed.read_bytes()[:300])
    cache = cache_hostile(root, folder / CACHE)
    recluster(ClusterConfig(cache, "fine", threshold=0.99, unseen="grass & sand"))
    return CachedDataset(root, cache)


@pytest.fixture
def cache_copy(made, tmp_path) -> CachedDataset:
    """A copy that a test may damage; the cache still names the original folder of the images."""
    return CachedDataset(made.root, Path(shutil.copytree(made.cache, tmp_path / CACHE)))


@pytest.fixture
def elsewhere(made, tmp_path, monkeypatch) -> CachedDataset:
    """The images have moved."""
    moved = shutil.copytree(made.root, tmp_path / "moved")
    monkeypatch.setattr("data_cache.source_dataset.recorded_root", lambda _: tmp_path / "gone")
    return CachedDataset(moved, made.cache)
