"""A small cache written through the public interface, for tests of the cache."""

from pathlib import Path

import numpy as np

from data_cache.content import Shard, Texts
from data_cache.layout import Layout
from data_cache.reader import Cache
from data_cache.writer import CacheWriter

LAYOUT = Layout(images=5, views=2, channels=8, grid=(2, 3), shard=2, dense="float16")
MASKS = {
    "unseen": ["cow"],
    "windows": [3, 7],
    "threshold": 0.8,
    "updates": 10,
    "backend": "faiss",
    "dtype": "uint8",
}
FINGERPRINT = {
    "clip": {"model": "ViT", "image_size": 32, "precision": "fp32", "weights_sha256": "0" * 64},
    "dataset": {"name": "folder", "split": "train"},
}
ATTRIBUTES = {"fingerprint": FINGERPRINT, "recorded": {"root": "somewhere"}}


def texts() -> Texts:
    features = np.random.default_rng(9).normal(size=(3, 8)).astype(np.float32)
    return Texts("single", ("cow", "sea", "sky über"), ("a photo of a {}",), features)


def create(path: Path, layout: Layout = LAYOUT) -> Cache:
    names = [f"images/{i}.jpg" for i in range(layout.images)]
    return CacheWriter.create(path, layout, ATTRIBUTES, names, ("default", MASKS), texts())


def shard(number: int, layout: Layout = LAYOUT) -> Shard:
    """Random content; the first image of shard 1 failed."""
    rng = np.random.default_rng(number)
    span = layout.span(number)
    n, v, c, (h, w) = span.stop - span.start, layout.views, layout.channels, layout.grid
    data = Shard(
        size=rng.integers(1, 99, (n, 2)).astype(np.int32),
        content_hash=[f"{number}{i}" * 32 for i in range(n)],
        label_hash=[""] * n,
        status=["ok"] * n,
        box=rng.integers(0, 99, (n, v, 4)).astype(np.int32),
        flip=rng.random((n, v)) < 0.5,
        cls=rng.normal(size=(n, v, c)).astype(np.float16),
        dense=rng.normal(size=(n, v, h, w, c)).astype(np.float16),
        label=rng.choice(np.array([0, 1, 255], np.uint8), (n, v, h, w)),
        count=np.full((n, v), 2, np.int32),
    )
    if number == 1:
        data.status[0] = "images/2.jpg: truncated"
        data.cls[0], data.dense[0], data.label[0], data.count[0] = 0, 0, 255, 0
    return data


def complete(path: Path) -> Cache:
    cache = create(path)
    for number in range(LAYOUT.shards):
        cache.write_shard(number, shard(number), "default")
    return Cache(path)


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a cache."""
    return {f.relative_to(path).as_posix(): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}
