"""A dataset with as many images as COCO: the time of listing, planning, extending, opening, `info` and `verify`.

118,287 copies of one tiny image, and a quarter as many, each with a cache without dense tokens (4 views, the tiny CLIP
at 64 px) in a temporary folder. Only the one image that extends the cache is encoded.
Prints each figure as it is measured, and the ratio last: a quarter of the total seconds over those at a quarter of the
images, so that 1 is linear (`--json`: an object with "ratio"). The page cache is warm.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.large_cache import VIEWS, parse_arguments, write_shards
from data_cache.content import OK, Shard
from data_cache.datasets import open_dataset
from data_cache.description import describe
from data_cache.integrity import verify_files
from data_cache.layout import DEFAULT_MASKS
from data_cache.reader import Cache
from data_cache.source_dataset import open_source_dataset
from data_cache.writer import CacheWriter
from pipeline.config import PrecomputeConfig
from pipeline.encode_job import load_clip
from pipeline.plan import Plan, plan
from pipeline.precompute import create_or_open, execute
from pipeline.teacher.weights import CLIPSource

PARTS = 4
CLIP = CLIPSource("tiny", image_size=64)


def main() -> None:
    """Measure with a quarter of the images and with all of them."""
    arguments = parse_arguments(__doc__)
    counts = (arguments.images // PARTS, arguments.images)
    load_clip(CLIP, "fp32", "cpu")  # once per process, however many images
    found = {}
    for images in counts:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            found[images] = measure(Path(folder), images, sys.stderr if arguments.json else sys.stdout)
    few, many = (sum(found[images].values()) for images in counts)
    result = {"seconds": found[counts[1]], "seconds_of_a_quarter": found[counts[0]], "images": arguments.images}
    result |= {"cores": os.cpu_count(), "ratio": many / few / PARTS}
    print(json.dumps(result) if arguments.json else f"ratio {result['ratio']:.2f}")


def measure(folder: Path, images: int, stream: Any) -> dict[str, float]:
    """Seconds of each step."""
    seconds: dict[str, float] = {}

    def timed(step: str, action: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = action()
        seconds[step] = time.perf_counter() - start
        print(f"{images} images: {step} {seconds[step]:.2f} s", file=stream, flush=True)
        return result

    root = write_images(folder / "own", images)
    common = {"clip": CLIP.clip, "image_size": CLIP.image_size}
    common |= {"precision": "fp32", "dense": "none", "device": "cpu", "unseen": "stuff"}
    settings = PrecomputeConfig("folder", folder / "c.zarr", root, views=VIEWS, **common)
    timed("list", lambda: open_dataset("folder", root, "train"))
    work: Plan = timed("plan", lambda: plan(settings))
    fill(
        timed("create", lambda: create_or_open(work)), hashlib.sha256((root / "images/0.png").read_bytes()).hexdigest()
    )
    (root / f"images/{images}.png").write_bytes((root / "images/0.png").read_bytes())
    timed("extend by one", lambda: execute(plan(replace(settings, extend=True))))
    cache: Cache = timed("open", lambda: Cache(settings.cache))
    timed("info", lambda: describe(cache))
    assert not timed("verify", lambda: verify_files(cache))[1]
    timed("load for training", lambda: (open_source_dataset(cache, None), cache.load(DEFAULT_MASKS)))
    return seconds


def write_images(root: Path, images: int) -> Path:
    """Write copies of one image, without label maps."""
    (root / "images").mkdir(parents=True)
    (root / "classes.txt").write_text("thing\nstuff\n")
    Image.new("RGB", (8, 8)).save(root / "images/0.png")
    content = (root / "images/0.png").read_bytes()
    for number in range(1, images):
        (root / f"images/{number}.png").write_bytes(content)
    return root


def fill(cache: CacheWriter, digest: str) -> None:
    """Finish a cache with meaningless content."""
    layout = cache.layout

    def shard(count: int) -> Shard:
        return Shard(
            size=np.full((count, 2), 8, np.int32),
            content_hash=[digest] * count,
            label_hash=[""] * count,
            status=[OK] * count,
            box=np.tile(np.array([0, 0, 8, 8], np.int32), (count, layout.views, 1)),
            flip=np.zeros((count, layout.views), bool),
            cls=np.ones((count, layout.views, layout.channels), np.float16),
            dense=None,
            label=np.zeros((count, layout.views, *layout.grid), np.uint8),
            count=np.ones((count, layout.views), np.int32),
        )

    write_shards(cache, shard)


if __name__ == "__main__":
    main()
