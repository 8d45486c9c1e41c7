"""A cache to look into, made once by the real pipeline with a tiny untrained CLIP."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from looking import CACHE, CLASSES, FAILED, IMAGES, UNLABELLED, World, name, precompute
from pictures import draw
from PIL import Image

from pipeline.recluster import Clustering, recluster


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> World:
    """Six pictures with names that look like HTML: one is damaged, one has no label map."""
    folder = tmp_path_factory.mktemp("reader")
    root, generator = folder / "photographs", np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for number in range(IMAGES):
        image, label = draw(generator)
        file = root / name(number)
        Image.fromarray(image[: 96 + 4 * number]).save(file)
        if number == FAILED:
            file.write_bytes(file.read_bytes()[:300])
        if number != UNLABELLED:
            Image.fromarray(label[: 96 + 4 * number]).save(root / "labels" / file.name)
    precompute(root, folder / CACHE)
    recluster(Clustering(folder / CACHE, "fine", threshold=0.99, unseen="grass & sand"))
    return World(root, folder / CACHE)


@pytest.fixture
def world(made, tmp_path) -> World:
    """A copy to spoil; the cache still says that the photographs are where they were."""
    return World(made.root, Path(shutil.copytree(made.path, tmp_path / CACHE)))


@pytest.fixture
def elsewhere(made, tmp_path, monkeypatch) -> World:
    """The photographs have moved."""
    moved = shutil.copytree(made.root, tmp_path / "moved")
    monkeypatch.setattr("data_cache.photographs.recorded_root", lambda _: tmp_path / "gone")
    return World(moved, made.path)
