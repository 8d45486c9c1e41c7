"""Training with CLIP in the loop: the live teacher of a cache, for the trainer that may not know the pipeline."""

from pathlib import Path

from data_cache.devices import resolve_device
from data_cache.errors import UsageError
from data_cache.store import Cache
from pipeline.live import LiveTeacher, live_teacher
from trainer.config import TrainConfig


def live_for(config: TrainConfig) -> LiveTeacher:
    """The live teacher with everything the cache of a run was made with. Raises what `live_teacher` raises."""
    if config.cache is None:
        raise UsageError("--cache: a value is missing")
    cache = Cache(Path(config.cache))
    root = Path(config.root) if config.root else None
    return live_teacher(cache, cache.mask_name(config.masks), root, resolve_device(config.device))
