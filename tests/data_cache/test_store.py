import warnings
from dataclasses import replace

import numpy as np
import pytest
import xarray
import zarr
from caches import ATTRIBUTES, FINGERPRINT, LAYOUT, MASKS, complete, contents, create, shard, texts

from data_cache.arrays import bytes_per_image
from data_cache.description import describe
from data_cache.errors import UsageError, UserError
from data_cache.layout import Layout, label_dtype, reserved_label
from data_cache.reader import Cache
from data_cache.writer import CacheWriter


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder.zarr"


def test_written_shards_are_read_back_exactly(path):
    loaded = complete(path).load("default")
    shards = [shard(number) for number in range(LAYOUT.shards)]
    for name in ("box", "flip", "cls", "label", "count"):
        np.testing.assert_array_equal(getattr(loaded, name), np.concatenate([getattr(s, name) for s in shards]))
    np.testing.assert_array_equal(
        zarr.open_group(path, mode="r")["dense"][:], np.concatenate([s.dense for s in shards])
    )
    np.testing.assert_array_equal(loaded.ok, [True, True, False, True, True])
    assert loaded.ids == [f"images/{i}.jpg" for i in range(5)]


def test_text_features_keep_names_templates_and_values(path):
    stored, given = complete(path).texts(), texts()
    assert (stored.name, stored.classes, stored.templates) == (given.name, given.classes, given.templates)
    np.testing.assert_array_equal(stored.features, given.features)


@pytest.mark.parametrize("consolidated", [None, True, False])
def test_zarr_and_xarray_open_a_cache_without_warnings(path, consolidated):
    complete(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(path, mode="r", use_consolidated=consolidated)
        assert {name for name, _ in group.members(max_depth=None)} >= {"cls", "dense", "masks/default/label"}
        dataset = xarray.open_zarr(path, consolidated=consolidated).load()
        tree = xarray.open_datatree(path, engine="zarr", consolidated=consolidated).load()
    assert dataset["dense"].dims == ("image", "view", "y", "x", "channel")
    assert tree["masks/default/label"].dims == ("image", "view", "y", "x")


def test_every_array_has_dimension_names_and_a_checksum(path):
    complete(path)
    arrays = [n for _, n in zarr.open_group(path, mode="r").members(max_depth=None) if isinstance(n, zarr.Array)]
    assert len(arrays) > 12
    for array in arrays:
        assert array.metadata.dimension_names is not None, array.path
        assert all(array.metadata.dimension_names), array.path
        text = str(array.metadata.to_dict()["codecs"])
        assert "crc32c" in text or "'checksum': True" in text, array.path


def test_flipped_bits_are_errors(path):
    complete(path)
    names = ("cls", "masks/default/label", "view/box", "image/status")
    for name in names:
        file = next(f for f in sorted((path / name / "c").rglob("*")) if f.is_file())
        good = file.read_bytes()
        for bit in range(0, 8 * len(good), 5):
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            file.write_bytes(bad)
            try:
                read = zarr.open_group(path, mode="r")[name][:]
            except (ValueError, RuntimeError):
                with pytest.raises(UserError, match="damaged"):
                    Cache(path).load("default")
            else:  # a bit of the compression's framing that has no effect
                file.write_bytes(good)
                np.testing.assert_array_equal(read, zarr.open_group(path, mode="r")[name][:])
        file.write_bytes(good)


def test_flipped_bits_in_dense_tokens_are_errors(path):
    complete(path)
    file = next(f for f in sorted((path / "dense" / "c").rglob("*")) if f.is_file())
    good = file.read_bytes()
    for bit in range(3, 8 * len(good), 97):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bad)
        with pytest.raises((ValueError, RuntimeError)):
            zarr.open_group(path, mode="r")["dense"][:]


def test_altered_metadata_is_rejected(path):
    complete(path)
    for name in ("zarr.json", "cls/zarr.json", "masks/default/zarr.json"):
        file = path / name
        good = file.read_text()
        file.write_text(good.replace('"zstd"', '"blosc"').replace("0.8", "0.9").replace("fp32", "fp16"))
        assert file.read_text() != good
        with pytest.raises(UserError, match="damaged"):
            Cache(path)
        file.write_text(good)
    Cache(path)


@pytest.mark.parametrize("cut", [None, 3])
def test_missing_or_truncated_chunks_are_errors(path, cut):
    complete(path)
    file = path / "cls/c/1/0/0"
    if cut is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match="cls/c/1/0/0: missing or truncated"):
        Cache(path).load("default")


def test_missing_text_features_are_errors(path):
    cache = complete(path)
    (path / "text/single/features/c/0/0").unlink()
    with pytest.raises(UserError, match="text/single/features/c/0/0: missing or truncated"):
        cache.texts()


@pytest.mark.parametrize("array", ["image/status", "image/id"])
def test_missing_statuses_or_ids_are_errors(path, array):
    cache = complete(path)
    (path / array / "c/1").unlink()
    for read in (cache.statuses, lambda: cache.load("default")):
        with pytest.raises(UserError, match=f"{array}/c/1: missing or truncated"):
            read()


def test_chunks_of_only_fill_values_are_not_reported_missing(path):
    cache = create(path)
    for number in range(LAYOUT.shards):
        data = shard(number)
        data.flip[:], data.label[:], data.cls[:] = False, 255, 0
        cache.write_shard(number, data, "default")
    assert not list((path / "cls/c").rglob("0"))
    loaded = Cache(path).load("default")
    assert not loaded.flip.any()
    assert (loaded.label == 255).all()


def test_shard_is_done_if_and_only_if_its_record_exists(path):
    cache = create(path)
    assert cache.pending_shards("default") == [0, 1, 2]
    cache.write_shard(1, shard(1), "default")
    assert Cache(path).pending_shards("default") == [0, 2]
    (path / "masks/default/journal/c/1").unlink()
    assert Cache(path).pending_shards("default") == [0, 1, 2]


def test_unfinished_cache_cannot_be_loaded(path):
    cache = create(path)
    cache.write_shard(0, shard(0), "default")
    with pytest.raises(UserError, match=r"2 of 3 shards are not done; rerun the same `precompute`"):
        cache.load("default")


def test_bytes_do_not_depend_on_write_order_or_repetition(path, tmp_path):
    complete(path)
    other = create(tmp_path / "other.zarr")
    for number in (2, 0, 1, 0):
        other.write_shard(number, shard(number), "default")
    assert contents(path) == contents(other.path)


def test_failed_creation_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("disk on fire")

    monkeypatch.setattr("data_cache.writer.Journal.commit", fail)
    with pytest.raises(RuntimeError):
        create(tmp_path / "folder.zarr")
    assert list(tmp_path.iterdir()) == []


def test_partial_files_of_a_killed_writer_are_removed(path):
    complete(path)
    before = contents(path)
    (path / "cls/c/1/0/0.abc.partial").write_bytes(b"half")
    CacheWriter(path).remove_leftovers()
    assert contents(path) == before


def test_different_settings_are_rejected_with_a_diff(path):
    complete(path)
    cache = CacheWriter(path)
    cache.check_settings(FINGERPRINT, "default", MASKS | {"backend": "torch"}, LAYOUT.shard)
    requested = {**FINGERPRINT, "clip": {**FINGERPRINT["clip"], "image_size": 64}}
    with pytest.raises(UserError) as caught:
        cache.check_settings(requested, "default", MASKS | {"unseen": ["sea"]}, 3)
    for part in ("clip.image_size: 32 there, 64 here", "masks.unseen: ['cow'] there, ['sea'] here", "shard: 2 there"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_that_are_not_caches_are_rejected(tmp_path):
    with pytest.raises(UserError, match="no such cache"):
        Cache(tmp_path / "nothing")
    with pytest.raises(UserError, match="not a clipteacher cache"):
        Cache(tmp_path)
    zarr.create_group(tmp_path / "foreign.zarr")
    with pytest.raises(UserError, match="not a clipteacher cache"):
        Cache(tmp_path / "foreign.zarr")


def test_mask_set_defaults_to_that_of_stage_1(path):
    cache = complete(path)
    assert cache.mask_name(None) == cache.mask_name("default") == "default"
    with pytest.raises(UsageError, match="one of: default"):
        cache.mask_name("fine")


def test_info_counts_images_not_shards(path):
    cache = create(path)
    cache.write_shard(1, shard(1), "default")
    about = describe(Cache(path))
    assert (about["images"], about["views"], about["done"], about["failed"]) == (5, 2, 1, 1)
    assert about["failures"] == {"images/2.jpg": "images/2.jpg: truncated"}
    assert about["bytes"]["cls"] == sum(f.stat().st_size for f in (path / "cls").rglob("*") if f.is_file())


def test_cache_without_dense_tokens_has_no_dense_array(path):
    layout = Layout(5, 2, 8, (2, 3), 2, "none")
    cache = create(path, layout)
    cache.write_shard(0, replace(shard(0), dense=None), "default")
    assert "dense" not in cache.group
    assert describe(cache)["bytes"]["dense"] == 0


def test_estimated_size_matches_the_arrays():
    sizes = bytes_per_image(Layout(10, 4, 512, (32, 32), 64, "float16"), "uint8")
    assert sizes == {"cls": 4 * 1024, "dense": 4 * 2**20, "masks": 4 * 1024}


def test_labels_take_two_bytes_above_254():
    assert (label_dtype(254), label_dtype(255)) == ("uint8", "uint16")
    assert (reserved_label("uint8"), reserved_label("uint16")) == (255, 65535)


def test_attributes_contain_fingerprint_and_recorded_values(path):
    attributes = zarr.open_group(complete(path).path, mode="r").attrs.asdict()
    assert attributes["format"] == "clipteacher-cache"
    assert attributes["fingerprint"] == FINGERPRINT
    assert attributes["recorded"] == ATTRIBUTES["recorded"]
