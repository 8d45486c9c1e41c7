"""A drawn dataset and its cache, made once by the real pipeline with a tiny untrained CLIP."""

from collections.abc import Callable, Iterator

import pytest
import torch
from folders import CachedDataset
from training_scenes import cache_scenes, draw_scenes

from trainer.config import TrainConfig


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    # with tiny tensors, a second thread only waits, and for long on a busy machine
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> CachedDataset:
    folder = tmp_path_factory.mktemp("scenes")
    root = draw_scenes(folder / "dataset")
    return CachedDataset(root, cache_scenes(root, folder / "folder.zarr"))


@pytest.fixture(scope="session")
def tiny_config(scenes: CachedDataset) -> Callable[..., TrainConfig]:
    """Config for the drawn dataset: a small student at 64 px on the CPU. Keywords override it."""

    def build(**settings: object) -> TrainConfig:
        defaults = {
            "cache": str(scenes.cache),
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
        return TrainConfig(**(defaults | settings))

    return build


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
