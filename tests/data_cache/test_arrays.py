"""The one table of arrays: the page describes it, and shards consist of its fields."""

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from caches import LAYOUT

from data_cache.arrays import ARRAYS, SHARD_FIELDS
from data_cache.content import Shard

PAGE = Path(__file__).parents[2] / "docs/cache-format.md"


def test_the_page_on_the_cache_format_lists_every_array_as_the_table_declares_it():
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


def test_the_fields_of_a_shard_are_those_that_the_table_declares_and_dense_tokens():
    assert {field.name for field in fields(Shard)} == {*SHARD_FIELDS, "dense"}


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_cleared_row_holds_fill_values_in_every_array_of_its_views_and_keeps_its_reason(dtype):
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
