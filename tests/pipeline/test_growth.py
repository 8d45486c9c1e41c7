"""Work grows linearly with the number of images; operations are counted, not timed."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_cache import journal
from data_cache.content import Texts
from data_cache.layout import DEFAULT_MASKS, Layout
from data_cache.source_dataset import select_ids
from data_cache.splits import Split
from data_cache.writer import CacheWriter
from pipeline.masks.masker import Masker
from pipeline.reopen import match_images

FEW, MANY = 100, 400


class Name(str):
    """An image name that counts how often any name is hashed or compared."""

    __slots__ = ()
    comparisons = 0

    def __hash__(self):
        Name.comparisons += 1
        return super().__hash__()

    def __eq__(self, other):
        Name.comparisons += 1
        return super().__eq__(other)


class NamesOnly:
    """A dataset without files."""

    def __init__(self, ids):
        self.ids = ids

    def subset(self, indices):
        return NamesOnly([self.ids[i] for i in indices])


def count_comparisons(action, images):
    names = [Name(f"images/{number}.jpg") for number in range(images)]
    Name.comparisons = 0
    action(names)
    return Name.comparisons


def extend(names):
    cache = SimpleNamespace(ids=lambda: names[:-1], path=Path("c.zarr"))
    dataset, added = match_images(cache, NamesOnly(names), extend=True)
    assert (list(added), dataset.ids) == (names[-1:], names)


@pytest.mark.parametrize("action", [extend, lambda names: select_ids(NamesOnly(names), names[::-1])])
def test_name_comparisons_grow_linearly(action):
    assert count_comparisons(action, MANY) < 1.2 * MANY / FEW * count_comparisons(action, FEW)


def cache_of(path, images):
    layout = Layout(images, 1, 4, (2, 2), 2, "none")
    texts = Texts("single", ("thing", "stuff"), ("{}",), np.eye(2, 4, dtype=np.float32))
    clip = {"model": "none", "weights_sha256": "", "image_size": 32, "precision": "fp32"}
    about = {"fingerprint": {"clip": clip, "dataset": {"name": "none"}}, "recorded": {}}
    masks = (DEFAULT_MASKS, Masker(Split(texts.classes, ("stuff",)), (2, 2)).attributes())
    return CacheWriter.create(path, layout, about, [f"{number}" for number in range(images)], masks, texts)


def test_reading_ids_shard_by_shard_checks_each_file_once(tmp_path, monkeypatch):
    calls = {}
    for images in (FEW, MANY):
        cache, seen = cache_of(tmp_path / f"{images}.zarr", images), []
        with monkeypatch.context() as patch:
            patch.setattr(journal, "stat_or_none", lambda path, seen=seen: seen.append(path) or path.stat())
            names = [name for shard in range(cache.layout.shards) for name in cache.ids(cache.layout.span(shard))]
        assert names == [f"{number}" for number in range(images)]
        calls[images] = len(seen)
    assert calls == {images: images // 2 for images in (FEW, MANY)}


def test_missing_id_chunk_is_reported_when_read(tmp_path):
    from refusals import refused

    cache = cache_of(tmp_path / "c.zarr", 6)
    (tmp_path / "c.zarr/image/id/c/1").unlink()
    assert cache.ids(slice(0, 2)) == ["0", "1"]
    for span in (slice(2, 4), slice(None), slice(1, 3)):
        refused(lambda span=span: cache.ids(span), "image/id/c/1: missing")
