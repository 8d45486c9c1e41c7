"""Flipped bits and missing or truncated files: found by verify, and never read as other numbers."""

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


def read_all(cache):
    """Everything that training, clustering and evaluation read."""
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


def has_problems(path):
    """Whether verify reports a problem."""
    try:
        return bool(verify_files(Cache(path))[1])
    except UserError:
        return True


@pytest.fixture
def cache(tmp_path):
    path = tmp_path / "c.zarr"
    complete(path)
    CacheWriter(path).add_masks("fine", {**MASKS, "threshold": 0.9})
    writer = CacheWriter(path)
    for shard in range(LAYOUT.shards):
        span = LAYOUT.span(shard)
        n = span.stop - span.start
        label = np.full((n, LAYOUT.views, *LAYOUT.grid), reserved_label("uint8"), np.uint8)
        label[:, 0] = shard
        writer.write_masks(shard, label, np.full((n, LAYOUT.views), 1), "fine")
    return path


def test_verify_finds_every_flipped_bit_that_matters(cache):
    good, files, rng = read_all(Cache(cache)), contents(cache), np.random.default_rng(0)
    assert not has_problems(cache)
    names = sorted(files)
    assert {"zarr.json", "journal/c/0", "cls/zarr.json"} <= set(names)
    outcomes = {"found": 0, "harmless": 0, "rejected on read": 0}
    # each file at least once, then files at random, weighted by size
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
        is_found = has_problems(cache)
        try:
            read = read_all(Cache(cache))
        except UserError:
            outcomes["rejected on read"] += 1
        else:
            assert equal(read, good), f"{name}, bit {bit}: read as other numbers"
        if not is_found:
            # harmless: the same JSON with other whitespace
            assert json.loads(bytes(bad)) == json.loads(files[name]), f"{name}, bit {bit}: not found"
        outcomes["found" if is_found else "harmless"] += 1
        (cache / name).write_bytes(files[name])
    assert outcomes["found"] + outcomes["harmless"] == FLIPS
    assert outcomes["found"] >= 0.95 * FLIPS
    assert equal(read_all(Cache(cache)), good)
    print(outcomes)


@pytest.mark.parametrize("damage", ["deleted", "emptied", "cut"])
def test_verify_finds_every_deleted_or_truncated_file(cache, damage):
    good, files = read_all(Cache(cache)), contents(cache)
    for name, content in files.items():
        file = cache / name
        file.unlink() if damage == "deleted" else file.write_bytes(b"" if damage == "emptied" else content[:-1])
        assert has_problems(cache), name
        with suppress(UserError):
            assert equal(read_all(Cache(cache)), good), name
        file.write_bytes(content)
    assert len(files) > 40
