"""How fast images get to CLIP: the feeder alone, and all of `precompute` with a device that takes time but no cores.

The feeder decodes, cuts and resizes 640 x 480 JPEGs with label maps to 512 px. Its peer, in the same run, is its
predecessor: Pillow's decoder and `box=` resizing, hashes from files read a second time, ignored tokens pixel by pixel.
The stand-in device finishes each batch a fixed time after the last, as a GPU does, at a speed just below the feeder's
on all cores; it clusters in no time. The ratio is precompute's images/s, without dense tokens, over the device's.
All results, ratios included, are medians of three rounds.

    python benchmarks/feed.py [--json]
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.synthetic_images import UNSEEN, link_images
from data_cache.datasets import open_dataset
from data_cache.datasets.paired_files import PairedFiles
from data_cache.splits import make_split
from data_cache.views import Cropping
from pipeline.config import PrecomputeConfig
from pipeline.encode_job import load_clip
from pipeline.feeder import Feeder
from pipeline.masks.fusion import NOT_IGNORED
from pipeline.masks.masker import Masker
from pipeline.plan import plan
from pipeline.precompute import execute
from pipeline.shard_job import StageTimes
from pipeline.teacher.protocol import DeviceFeatures, Features, Teacher

SIZE, GRID, CHANNELS, BATCH = 512, (32, 32), 512, 32
SLOWER = 0.9
"""The device's speed as a share of the feeder's."""
ROUNDS = 3


def main() -> None:
    """Measure each in turn, print it at once, and end with the medians of all rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4096, help="Images for precompute; float16 gets half.")
    parser.add_argument("--fed", type=int, default=768, help="Images for the feeder alone.")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        root = link_images(Path(folder) / "dataset", max(arguments.images, arguments.fed))
        dataset = open_dataset("folder", root, "train", arguments.fed)
        masker = Masker(make_split("folder", dataset.classes, UNSEEN), GRID)
        rounds: dict[str, list[float]] = defaultdict(list)

        def note(name: str, value: float) -> float:
            rounds[name].append(value)
            print(f"round {len(rounds[name])}: {name} {value:.4g}", file=sys.stderr, flush=True)
            return value

        # in turns, because a shared machine is faster at some times than at others
        for _ in range(ROUNDS):
            with on_cores(cores[:1]):
                before = note("pillow_per_core", as_before(dataset, masker))
                one = note("feeder_per_core", fed(dataset, masker, 1))
            feeder = note("feeder", fed(dataset, masker, len(cores)))
            note("scaling", feeder / one)
            note("speedup", one / before)
            device = note("device", SLOWER * feeder)
            for dense, images in (("none", arguments.images), ("float16", arguments.images // 2)):
                speed = note(f"precompute_{dense}", precomputed(root, Path(folder), images, dense, device))
                note("ratio" if dense == "none" else "ratio_float16", speed / device)
            note("disk", written(Path(folder) / "disk"))
    result = {name: round(median(values), 4) for name, values in rounds.items()}
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"precompute over the device: without dense tokens {result['ratio']}, with {result['ratio_float16']}")
        print(f"ratio {result['ratio']}")


@contextmanager
def on_cores(cores: list[int]) -> Iterator[None]:
    """Restrict this process to some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def fed(dataset: PairedFiles, masker: Masker, threads: int) -> float:
    """Images per second of the feeder alone."""
    feeder = Feeder(dataset, Cropping(), masker.ignored, SIZE, BATCH)
    with ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1)) as pool:
        for count in (2 * BATCH, len(dataset)):
            start = time.perf_counter()
            with feeder.batches(pool, nullcontext(), range(count), 0, 4, StageTimes()) as batches:
                for batch in batches:
                    assert len(batch.readable) == len(batch.rows)
            seconds = time.perf_counter() - start
    return len(dataset) / seconds


def as_before(dataset: PairedFiles, masker: Masker) -> float:
    """Images per second of one thread of the feeder's predecessor."""
    hidden, half = masker.split.seen_rank() == 255, SIZE // GRID[0]
    count = len(dataset) // 2
    start = time.perf_counter()
    for index in range(count):
        with Image.open(dataset.path(index)) as picture:
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
            image = np.array(picture.convert("RGB"))
        height, width = image.shape[:2]
        box = (0, 0, width, height)
        np.ascontiguousarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))
        label = dataset.table[np.array(Image.open(dataset.label_path(index)))]
        label = np.array(Image.fromarray(label).resize((SIZE, SIZE), Image.Resampling.NEAREST, box=box))
        share = hidden[label].reshape(GRID[0], half, GRID[1], half).mean(axis=(1, 3))
        assert share.shape == GRID
        for file in (dataset.path(index), dataset.label_path(index)):
            hashlib.sha256(file.read_bytes()).hexdigest()
    return count / (time.perf_counter() - start)


class Answer(DeviceFeatures):
    """Features that are known to be finite: a GPU finds that out without a core."""

    def finite(self) -> torch.Tensor:
        """All of them."""
        return torch.ones(len(self.cls), dtype=torch.bool)


class StandIn:
    """A teacher whose features are ready a fixed time after they were requested and use no core."""

    def __init__(self, images_per_second: float) -> None:
        self.device, self.batch, self.max_concurrent_batches = torch.device("cpu"), BATCH, 2
        self.threads = len(os.sched_getaffinity(0))
        self.image_size, self.patch, self.grid, self.channels = SIZE, SIZE // GRID[0], GRID, CHANNELS
        self.mean, self.std = (0.0,) * 3, (1.0,) * 3
        self.weights_hash, self.origin = "0" * 64, {"clip": "stand-in", "weights": ""}
        self._seconds, self._free, self._lock = BATCH / images_per_second, 0.0, threading.Lock()
        generator = torch.Generator().manual_seed(0)
        self._answer = Answer(
            torch.randn(BATCH, CHANNELS, generator=generator).half(),
            torch.randn(BATCH, *GRID, CHANNELS, generator=generator).half(),
        )

    def compute_slot(self) -> Any:
        """No thread waits for a core."""
        return nullcontext()

    def forward(self, images: np.ndarray | torch.Tensor) -> DeviceFeatures:
        """The same features each time, once the device has reached the batch."""
        assert len(images) == BATCH
        with self._lock:
            self._free = max(self._free, time.perf_counter()) + self._seconds
            ready = self._free
        time.sleep(max(0.0, ready - time.perf_counter()))
        return self._answer

    def encode(self, images: np.ndarray) -> Features:
        """The same in memory."""
        features = self.forward(images)
        return Features(features.cls.numpy(), features.dense.numpy())

    def encode_text(self, classes: tuple[str, ...], _templates: tuple[str, ...]) -> np.ndarray:
        """Features that differ."""
        return np.eye(len(classes), CHANNELS, dtype=np.float32)

    def unknown_names(self, _names: tuple[str, ...]) -> tuple[str, ...]:
        """It knows all."""
        return ()

    def fingerprint(self) -> dict[str, Any]:
        """As a teacher's."""
        return {"model": "stand-in", "image_size": SIZE, "precision": "fp32", "weights_sha256": self.weights_hash}


def precomputed(root: Path, folder: Path, images: int, dense: Any, speed: float) -> float:
    """Images per second of all of `precompute` with a stand-in of the given speed."""
    cache = folder / f"{dense}.zarr"
    device: Teacher = StandIn(speed)
    clip = {"clip": str(Path(__file__).parents[1] / "tests/helpers/tiny-vit.json"), "image_size": SIZE}
    options = {"clip_weights": "random", "unseen": UNSEEN, "dense": dense, "device": "cpu", "precision": "fp32"}
    settings = PrecomputeConfig("folder", cache, root, **clip, **options)
    settings = replace(settings, shard=settings.shard_on("cuda"))
    load_clip.cache_clear()
    free = {
        "asynchronous": property(lambda _: True),
        "fuse_on_device": lambda *given: torch.full(given[2].shape, NOT_IGNORED),
    }
    with patch("pipeline.encode_job.FrozenCLIP", lambda *_: device), patch.multiple(Masker, **free):
        done = execute(plan(replace(settings, limit=images)))
    load_clip.cache_clear()
    assert not done.failures
    shutil.rmtree(cache)
    print(f"  {dense}: {', '.join(f'{k} {v:.1f} s' for k, v in done.stages.items())}", file=sys.stderr, flush=True)
    return done.encoded / done.seconds


def written(file: Path, mebibytes: int = 256) -> float:
    """Views of float16 tokens (1 MiB each) written per second by one thread, flushed every 64."""
    block = np.random.default_rng(0).bytes(2**20)
    start = time.perf_counter()
    with file.open("wb") as opened:
        for number in range(mebibytes):
            opened.write(block)
            if number % 64 == 63:
                opened.flush()
                os.fsync(opened.fileno())
    return mebibytes / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
