"""A mask set reports only finished images, keeps few shards in memory, and reads its own mask set."""

from pathlib import Path

import numpy as np
import pytest
from caches import LAYOUT, MASKS, complete, create, shard
from refusals import refused

from data_cache.errors import UsageError
from data_cache.mask_set import SHARDS_IN_MEMORY, MaskSet
from data_cache.reader import Cache
from data_cache.source_dataset import SourceDataset
from data_cache.writer import CacheWriter


def mask_set(path, masks="default"):
    cache = Cache(path)
    return MaskSet(cache, masks, SourceDataset(cache, Path("nowhere")))


@pytest.fixture
def path(tmp_path):
    complete(tmp_path / "c.zarr")
    return tmp_path / "c.zarr"


def test_statuses_of_unfinished_shards_are_empty(tmp_path):
    cache = create(tmp_path / "c.zarr")
    for number in range(LAYOUT.shards):
        cache.write_shard(number, shard(number), "default")
    cache.invalidate_shard(0)
    masks = mask_set(cache.path)
    assert [status for _, status in masks.statuses] == ["", "", "images/2.jpg: truncated", "ok", "ok"]
    assert masks.first_ok(5) == [3, 4]
    assert masks.first_ok(1) == [3]


def test_classes_split_and_sizes_are_those_of_the_cache(path):
    masks = mask_set(path)
    assert len(masks) == len(masks.ids) == LAYOUT.images
    assert masks.classes == ("cow", "sea", "sky über")
    assert (masks.split.seen, masks.split.unseen) == (("sea", "sky über"), ("cow",))
    assert (masks.views, masks.clip_size, masks.settings) == (LAYOUT.views, 32, MASKS)


def test_another_mask_set_has_its_own_labels_and_settings(path):
    CacheWriter(path).add_masks("fine", MASKS | {"unseen": ["sea"]})
    writer = CacheWriter(path)
    for number in range(LAYOUT.shards):
        content = shard(number)
        writer.write_masks(number, content.label, content.count + 1, "fine")
    fine = mask_set(path).using("fine")
    assert fine.split.unseen == ("sea",)
    np.testing.assert_array_equal(fine.counts, mask_set(path).counts + 1)
    np.testing.assert_array_equal(fine.loaded(4).count, fine.loaded(4, "default").count + 1)
    refused(lambda: fine.using("coarse"), "no mask set named 'coarse'", kind=UsageError)


def test_each_shard_is_read_once(path, monkeypatch):
    calls, load = [], Cache.load
    monkeypatch.setattr(Cache, "load", lambda self, *arguments: calls.append(arguments) or load(self, *arguments))
    masks = mask_set(path)
    assert LAYOUT.shards <= SHARDS_IN_MEMORY
    for index in (0, 1, 4, 0, 2):
        masks.loaded(index)
    assert calls == [("default", 0), ("default", 2), ("default", 1)]
