"""A dataset and a cache of it, made once by the real pipeline with a tiny untrained CLIP."""

from collections.abc import Callable, Iterator

import pytest
import torch
from folders import CachedDataset
from training_scenes import cache_scenes, draw_scenes

from trainer.config import TrainConfig


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    # tensors are tiny here: a second thread only waits, for long where others use the machine too
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> CachedDataset:
    folder = tmp_path_factory.mktemp("world")
    root = draw_scenes(folder / "photographs")
    return CachedDataset(root, cache_scenes(root, folder / "folder.zarr"))


@pytest.fixture(scope="session")
def tiny_config(world: CachedDataset) -> Callable[..., TrainConfig]:
    """A config for the drawn dataset: a small student at 64 px on the CPU; keywords override it."""

    def build(**given: object) -> TrainConfig:
        defaults = {
            "cache": str(world.cache),
            "arch": "segformer",
            "encoder": "mit_b0",
            "encoder_weights": "none",
            "size": 64,
            "photometric": False,
            "batch_size": 4,
            "device": "cpu",
            "workers": 0,
            "log_every": 1,
        }
        return TrainConfig(**(defaults | given))

    return build


@pytest.fixture(autouse=True)
def _no_seed_left_to_chance() -> None:
    torch.manual_seed(0)
