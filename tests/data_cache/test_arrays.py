"""The table of arrays: the cache format page lists it, and shards consist of its fields."""

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from caches import LAYOUT

from data_cache.arrays import ARRAYS, SHARD_FIELDS
from data_cache.content import Shard

PAGE = Path(__file__).parents[2] / "docs/cache-format.md"


def test_cache_format_page_lists_every_declared_array():
    rows = re.findall(
        r"^\| `([^`]+)`[^|]* \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(), re.M
    )
    declared = []
    for spec in ARRAYS:
        chunk = ", ".join(spec.chunk_symbols)
        if spec.shard_file:
            chunk += f" in shard files of {', '.join(spec.shard_file)}"
        columns = (", ".join(spec.shape_symbols), ", ".join(spec.dimensions), chunk, spec.owner)
        declared.append((spec.name, spec.dtype, *columns))
    assert rows == declared


def test_shard_fields_match_the_array_table():
    assert {field.name for field in fields(Shard)} == {*SHARD_FIELDS, "dense"}


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_clearing_an_image_resets_its_view_arrays_and_keeps_its_status(dtype):
    blank, shard = Shard.blank(LAYOUT, 3, dtype), Shard.blank(LAYOUT, 3, dtype)
    for name in ("box", "flip", "cls", "dense", "label", "count"):
        getattr(shard, name)[:] = 1
    shard.status[1] = "truncated"
    shard.clear(1)
    for name in ("box", "flip", "cls", "dense", "label", "count"):
        values, empty = getattr(shard, name), getattr(blank, name)
        np.testing.assert_array_equal(values[1], empty[1], err_msg=name)
        assert (values[[0, 2]] == 1).all(), name
    assert shard.status == ["", "truncated", ""]
    assert (shard.label[1] == np.iinfo(dtype).max).all()
    assert shard.dense is not None
    assert shard.dense.dtype == np.float16
