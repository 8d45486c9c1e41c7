"""Bits that flip, files that vanish or shrink: found by verify, and never read as numbers in training."""

import json
from contextlib import suppress

import numpy as np
import pytest
from caches import LAYOUT, MASKS, complete, contents

from data_cache.errors import UserError
from data_cache.integrity import verify_files
from data_cache.layout import reserved_label
from data_cache.reader import Cache
from data_cache.writer import CacheWriter

FLIPS = 200


def everything(cache):
    """All that training, clustering and evaluation read."""
    loaded, texts = cache.load("default"), cache.texts()
    fine = cache.load("fine")
    return (
        *(loaded.ids, loaded.digest, loaded.ok, loaded.box, loaded.flip, loaded.cls, loaded.label, loaded.count),
        *(texts.name, texts.classes, texts.templates, texts.features, fine.label, fine.count),
        *(cache.statuses(), cache.fingerprint, cache.mask_attributes("default"), cache.mask_attributes("fine")),
        *(cache.dense(i) for i in range(LAYOUT.images)),
    )


def equal(one, other):
    return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in zip(one, other, strict=True))


def found(path):
    """Whether verify has anything to say."""
    try:
        return bool(verify_files(Cache(path))[1])
    except UserError:
        return True


@pytest.fixture
def cache(tmp_path):
    path = tmp_path / "c.zarr"
    complete(path)
    writing = CacheWriter(path)
    writing.add_masks("fine", {**MASKS, "threshold": 0.9})
    writing = CacheWriter(path)
    for shard in range(LAYOUT.shards):
        span = LAYOUT.span(shard)
        n = span.stop - span.start
        label = np.full((n, LAYOUT.views, *LAYOUT.grid), reserved_label("uint8"), np.uint8)
        label[:, 0] = shard
        writing.write_masks(shard, label, np.full((n, LAYOUT.views), 1), "fine")
    return path


def test_verify_finds_every_flipped_bit_that_matters(cache):
    good, files, rng = everything(Cache(cache)), contents(cache), np.random.default_rng(0)
    assert not found(cache)
    names = sorted(files)
    assert {"zarr.json", "journal/c/0", "cls/zarr.json"} <= set(names)
    told = {"found": 0, "harmless": 0, "refused in reading": 0}
    # every file at least once, then at random among all bytes
    chosen = [
        *names,
        *rng.choice(names, FLIPS - len(names), p=[len(files[n]) / sum(map(len, files.values())) for n in names]),
    ]
    assert len(chosen) == FLIPS
    for name in chosen:
        bad = bytearray(files[name])
        bit = int(rng.integers(8 * len(bad)))
        bad[bit // 8] ^= 1 << bit % 8
        (cache / name).write_bytes(bad)
        is_found = found(cache)
        try:
            read = everything(Cache(cache))
        except UserError:
            told["refused in reading"] += 1
        else:
            assert equal(read, good), f"{name}, bit {bit}: read as other numbers"
        if not is_found:
            # harmless: the same JSON in other characters
            assert json.loads(bytes(bad)) == json.loads(files[name]), f"{name}, bit {bit}: not found"
        told["found" if is_found else "harmless"] += 1
        (cache / name).write_bytes(files[name])
    assert told["found"] + told["harmless"] == FLIPS
    assert told["found"] >= 0.95 * FLIPS
    assert equal(everything(Cache(cache)), good)
    print(told)


@pytest.mark.parametrize("damage", ["deleted", "emptied", "cut"])
def test_verify_finds_every_deleted_or_truncated_file(cache, damage):
    good, files = everything(Cache(cache)), contents(cache)
    for name, content in files.items():
        file = cache / name
        file.unlink() if damage == "deleted" else file.write_bytes(b"" if damage == "emptied" else content[:-1])
        assert found(cache), name
        with suppress(UserError):
            assert equal(everything(Cache(cache)), good), name
        file.write_bytes(content)
    assert len(files) > 40
