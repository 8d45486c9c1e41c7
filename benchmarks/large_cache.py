"""A cache as large as COCO's: the time to open it, to load it for training, and to serve pairs from memory.

118,287 images of 4 views without dense tokens (CLS tokens of 512 channels, masks of 32 x 32), of random content, are
written into a temporary folder (about 1 GB) and read with the trainer's code in another process. Prints the figures
with their targets, and the ratio of pairs served per second to the target last (`--json`: an object with
"ratio"). The page cache is warm: the files have just been written.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_cache.content import OK, Shard, Texts
from data_cache.layout import DEFAULT_MASKS, Layout
from data_cache.reader import Cache
from data_cache.splits import Split
from data_cache.writer import CacheWriter
from pipeline.masks.masker import Masker
from trainer.memory import peak_memory
from trainer.sampler import Stream
from trainer.teacher import CachedTeacher

IMAGES, VIEWS, CHANNELS, GRID, SHARD = 118_287, 4, 512, (32, 32), 64
BATCH, SERVED = 16, 200_000
TARGETS = {"open_seconds": 2.0, "load_seconds": 20.0, "load_gb": 2.0, "pairs_per_second": 50_000.0}


def main() -> None:
    """Make the cache, measure in another process, remove it."""
    arguments = parse_arguments(__doc__)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        free = shutil.disk_usage(folder).free
        if free < 3 * arguments.images * VIEWS * 2048:
            sys.exit(f"{folder}: {free / 1e9:.1f} GB free is too little; pass another --folder")
        path, start = Path(folder) / "large.zarr", time.perf_counter()
        make(path, arguments.images)
        made = time.perf_counter() - start
        # memory allocated to make the cache must neither be counted for reading it nor be reused by it
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measure, (path,))
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    found |= {"images": arguments.images, "make_seconds": made, "bytes": size, "cores": os.cpu_count()}
    found["ratio"] = found["pairs_per_second"] / TARGETS["pairs_per_second"]
    if arguments.json:
        print(json.dumps(found))
        return
    for name, target in TARGETS.items():
        print(f"{name}: {found[name]:,.2f} (target {target:,.0f})")
    print(f"ratio {found['ratio']:.2f}")


def parse_arguments(description: str | None) -> argparse.Namespace:
    """The options of a benchmark of many images."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--folder", type=Path, help="Parent of the temporary folder.")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def write_shards(cache: CacheWriter, content: Callable[[int], Shard]) -> None:
    """Finish a cache shard by shard, as stage 1 does; `content` returns a shard of so many images."""
    for shard in range(cache.layout.shards):
        cache.write_shard(shard, content(cache.layout.images_in([shard])), DEFAULT_MASKS)


def make(path: Path, images: int) -> None:
    """Write a finished cache of random content."""
    rng = np.random.default_rng(0)
    layout = Layout(images, VIEWS, CHANNELS, GRID, SHARD, "none")
    texts = Texts("single", ("thing", "stuff"), ("{}",), np.eye(2, CHANNELS, dtype=np.float32))
    split = Split(texts.classes, ("stuff",))
    clip = {"model": "none", "weights_sha256": "", "image_size": 512, "precision": "fp32"}
    about = {"fingerprint": {"clip": clip, "dataset": {"name": "none"}}, "recorded": {}}
    ids = [f"images/train2017/{number:012d}.jpg" for number in range(images)]
    cache = CacheWriter.create(path, layout, about, ids, (DEFAULT_MASKS, Masker(split, GRID).attributes()), texts)

    def random_shard(count: int) -> Shard:
        # regions instead of noise: masks of real images compress to about a tenth
        regions = rng.integers(0, 12, (count, VIEWS, 4, 4), dtype=np.uint8)
        return Shard(
            size=np.tile(np.array([480, 640], np.int32), (count, 1)),
            content_hash=[rng.bytes(32).hex() for _ in range(count)],
            label_hash=[rng.bytes(32).hex() for _ in range(count)],
            status=[OK] * count,
            box=np.tile(np.array([0, 0, 480, 640], np.int32), (count, VIEWS, 1)),
            flip=rng.random((count, VIEWS)) < 0.5,
            cls=rng.standard_normal((count, VIEWS, CHANNELS), np.float32).astype(np.float16),
            dense=None,
            label=np.kron(regions, np.ones((1, 1, 8, 8), np.uint8)),
            count=np.full((count, VIEWS), 12, np.int32),
        )

    write_shards(cache, random_shard)


def measure(path: Path) -> dict[str, float]:
    """Seconds to open and to load, growth of the peak memory, and pairs served per second."""
    start = time.perf_counter()
    cache = Cache(path)
    opened = time.perf_counter()
    before = psutil.Process().memory_info().rss
    loaded = cache.load(DEFAULT_MASKS)
    done, grown = time.perf_counter(), peak_memory(torch.device("cpu")) - before
    teacher, stream = CachedTeacher(loaded), Stream(len(loaded.ids), VIEWS, BATCH, 0)
    begun = time.perf_counter()
    for step in range(SERVED // BATCH):
        draws = np.array(stream.batch(step))
        teacher(draws[:, 0], draws[:, 1])
    served = time.perf_counter() - begun
    return {
        "open_seconds": opened - start,
        "load_seconds": done - opened,
        "load_gb": grown / 1e9,
        "pairs_per_second": SERVED / served,
    }


if __name__ == "__main__":
    main()
