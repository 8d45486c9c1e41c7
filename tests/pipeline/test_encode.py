"""A shard: every image is ok or failed with a reason, in the order of the dataset."""

import hashlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier, Event, Semaphore
from unittest.mock import Mock

import numpy as np
import oracle_masks as oracle
import pytest
import torch
from PIL import Image
from tiny_inputs import CLASSES, draw_blocks, tiny_clip

from data_cache.datasets import open_dataset
from data_cache.layout import Layout
from data_cache.sample import crop_image
from data_cache.splits import Split
from data_cache.views import Cropping, whole
from pipeline.encode import Encoder
from pipeline.masks.masker import Masker
from pipeline.shard_job import StageTimes
from pipeline.teacher.clip import BATCH
from pipeline.teacher.protocol import DeviceFeatures

IMAGES, SHARD = 9, 7
TRUNCATED, MISMATCHED, UNLABELLED = 2, 4, 5
GOOD = [0, 1, 3, 5, 6]
SPLIT, GRID = Split(CLASSES, ("tree",)), (8, 8)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return draw_blocks(tmp_path_factory.mktemp("own"), IMAGES, {TRUNCATED}, {MISMATCHED}, {UNLABELLED})


@pytest.fixture(scope="module")
def encoder(root):
    layout = Layout(IMAGES, 1, 64, GRID, SHARD, "float16")
    return Encoder(tiny_clip(), open_dataset("folder", root, "train"), Masker(SPLIT, GRID), layout)


@pytest.fixture(scope="module")
def progress():
    return []


@pytest.fixture(scope="module")
def shard(encoder, progress):
    return encoded(encoder, 0, progress=progress.append)


def pixels(root, index):
    image = np.array(Image.open(root / f"images/{index:02}.png"))
    return crop_image(image, whole(*image.shape[:2]), 128)


def nearest_label(root, index):
    """Each output pixel copies the input pixel under its center."""
    label = np.array(Image.open(root / f"labels/{index:02}.png"))
    rows, columns = (((np.arange(128) + 0.5) * side / 128).astype(int) for side in label.shape)
    return label[rows][:, columns]


def encoded(encoder, number, **options):
    with encoder.shard(number, **options) as shard:
        return shard


def is_blank(shard, row):
    empty = (shard.label[row] == 255).all() and not shard.count[row].any()
    return empty and not shard.cls[row].any() and not shard.dense[row].any()


# -- good images ---------------------------------------------------------------------------------------------------


def test_statuses_are_in_dataset_order(shard):
    assert [index for index, status in enumerate(shard.status) if status == "ok"] == GOOD
    assert all(shard.status)


@pytest.mark.parametrize("index", GOOD)
def test_features_equal_those_of_the_single_image(encoder, root, shard, index):
    alone = encoder.clip.encode(pixels(root, index)[None])
    np.testing.assert_allclose(shard.cls[index].astype(float), alone.cls.astype(float), atol=4e-3)
    np.testing.assert_allclose(shard.dense[index].astype(float), alone.dense.astype(float), atol=8e-3)


@pytest.mark.parametrize("index", GOOD)
def test_masks_equal_the_reference_on_stored_tokens(root, shard, index):
    ignored = np.ones(GRID, bool)
    if index != UNLABELLED:
        ignored = oracle.ignored_tokens(nearest_label(root, index), {CLASSES.index("tree")}, GRID)
    dense = shard.dense[index, 0]
    expected = np.full(GRID, -1)
    if ignored.any():
        expected = oracle.fused(*oracle.clusters(dense, ignored), dense)
    np.testing.assert_array_equal(shard.label[index, 0], np.where(expected < 0, 255, expected))
    assert shard.count[index, 0] == expected.max() + 1


def test_test_images_are_partly_ignored(root):
    shares = [
        oracle.ignored_tokens(nearest_label(root, index), {2}, GRID).mean() for index in GOOD if index != UNLABELLED
    ]
    assert any(0 < share < 1 for share in shares)


def test_image_without_a_label_map_is_all_ignored(shard):
    assert (shard.label[UNLABELLED] < 255).all()
    assert shard.label_hash[UNLABELLED] == ""


def test_size_view_and_hashes_match_the_files(root, shard):
    for index in GOOD:
        assert shard.size[index].tolist() == [90, 120]
        assert shard.box[index].tolist() == [[0, 0, 90, 120]]
        assert not shard.flip[index].any()
        image = (root / f"images/{index:02}.png").read_bytes()
        assert shard.content_hash[index] == hashlib.sha256(image).hexdigest()
        if index != UNLABELLED:
            label = (root / f"labels/{index:02}.png").read_bytes()
            assert shard.label_hash[index] == hashlib.sha256(label).hexdigest()


def test_last_shard_holds_the_remaining_images(encoder, shard):
    last = encoded(encoder, 1)
    assert last.status == ["ok", "ok"]
    assert last.cls.shape == (2, 1, 64)
    alone = encoder.clip.encode(np.stack([pixels(encoder.dataset.root, index) for index in (7, 8)]))
    np.testing.assert_allclose(last.cls[:, 0].astype(float), alone.cls.astype(float), atol=4e-3)


# -- bad images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "words"), [(TRUNCATED, ["02.png"]), (MISMATCHED, ["04.png", "120 x 90", "120 x 40"])]
)
def test_bad_image_fails_with_a_reason_and_blank_arrays(shard, index, words):
    assert all(word in shard.status[index] for word in words)
    assert "\n" not in shard.status[index]
    assert is_blank(shard, index)


def test_batch_of_bad_images_does_not_stop_the_shard(tmp_path, encoder):
    count = BATCH["cpu"] + 1
    draw_blocks(tmp_path, count, truncated=range(BATCH["cpu"]))
    dataset = open_dataset("folder", tmp_path, "train")
    shard = encoded(replace(encoder, dataset=dataset, layout=replace(encoder.layout, images=count)), 0)
    assert [status == "ok" for status in shard.status] == [False] * BATCH["cpu"] + [True]
    assert shard.cls[-1].any()


@pytest.mark.parametrize("part", ["cls", "dense"])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_features_beyond_float16_fail_only_their_image(encoder, root, shard, monkeypatch, part, value):
    overflowing, forward = pixels(root, 3), encoder.clip.forward

    def overflow(images):
        features = forward(images)
        bad = (images.numpy() == overflowing).all(axis=(1, 2, 3))
        changed = getattr(features, part).clone()
        changed[torch.from_numpy(bad), ..., -1] = value
        return DeviceFeatures(**{"cls": features.cls, "dense": features.dense, part: changed})

    monkeypatch.setattr(encoder.clip, "forward", overflow)
    other = encoded(encoder, 0)
    assert "finite" in other.status[3]
    assert is_blank(other, 3)
    rest = [index for index in range(SHARD) if index != 3]
    for name in ("cls", "dense", "label", "count", "size", "box"):
        np.testing.assert_array_equal(getattr(other, name)[rest], getattr(shard, name)[rest])
    assert [other.status[index] for index in rest] == [shard.status[index] for index in rest]


def test_unreadable_image_does_not_change_its_neighbors(tmp_path, encoder, shard):
    draw_blocks(tmp_path, IMAGES, unlabelled={UNLABELLED})
    whole = encoded(replace(encoder, dataset=open_dataset("folder", tmp_path, "train")), 0)
    assert whole.status == ["ok"] * SHARD
    for name in ("cls", "dense", "label"):
        np.testing.assert_array_equal(getattr(whole, name)[GOOD], getattr(shard, name)[GOOD])


def test_all_batches_have_the_same_size(encoder, monkeypatch):
    sizes, forward = [], encoder.clip.forward

    def watched(images):
        sizes.append(len(images))
        return forward(images)

    monkeypatch.setattr(encoder.clip, "forward", watched)
    for number in (0, 1):
        encoded(encoder, number)
    assert len(sizes) == 3
    assert set(sizes) == {BATCH["cpu"]}


def test_concurrent_batches_share_the_cpu_threads(encoder, shard, monkeypatch):
    clip, forward, before = encoder.clip, encoder.clip.forward, torch.get_num_threads()
    together, threads = Barrier(2), []

    def watched(images):
        threads.append(torch.get_num_threads())
        together.wait(timeout=60)  # for the other batch, or the test fails
        return forward(images)

    for name, value in {
        "forward": watched,
        "max_concurrent_batches": 2,
        "threads": 4,
        "_compute_slots": Semaphore(2),
    }.items():
        monkeypatch.setattr(clip, name, value)
    try:
        again = encoded(encoder, 0)
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)  # or later threads would start with four
    assert threads == [2, 2]
    for name in ("cls", "dense", "label", "count", "status"):
        np.testing.assert_array_equal(getattr(again, name), getattr(shard, name))


def test_canceled_shard_stops_encoding(encoder, monkeypatch):
    views, calls, gone, forward = 3, [], Event(), encoder.clip.forward

    def watched(images):
        calls.append(len(images))
        if len(calls) > views:  # first view of the second batch: only now has the first one been reported
            assert gone.wait(60)
            time.sleep(0.3)
        return forward(images)

    def stop(done):
        if done:
            gone.set()
            raise RuntimeError("stopped")

    for name, value in {"forward": watched, "max_concurrent_batches": 1, "_compute_slots": Semaphore(1)}.items():
        monkeypatch.setattr(encoder.clip, name, value)
    several = replace(encoder, layout=replace(encoder.layout, views=views), cropping=Cropping(views))
    with pytest.raises(RuntimeError, match="stopped"):
        encoded(several, 0, progress=stop)
    assert views <= len(calls) <= views + 1


def test_a_shard_canceled_while_it_waits_encodes_nothing(encoder, monkeypatch):
    monkeypatch.setattr(encoder.clip, "forward", Mock(side_effect=AssertionError("encoded")))
    with pytest.raises(RuntimeError, match="stopped"):
        encoded(encoder, 0, progress=Mock(side_effect=RuntimeError("stopped")))
    for lock in (encoder.decode_lock, encoder.encode_lock, encoder.write_lock):
        assert not lock.locked()


def test_shards_that_wait_are_encoded_in_the_order_in_which_they_are_decoded(encoder, monkeypatch):
    decoded, began = [], []
    sample = type(encoder.dataset).sample

    def recorded(dataset, index):
        decoded.append(index)
        return sample(dataset, index)

    monkeypatch.setattr(type(encoder.dataset), "sample", recorded)
    single = replace(encoder, layout=replace(encoder.layout, shard=1))
    with ThreadPoolExecutor(1) as decoding, ThreadPoolExecutor(3) as pool:
        vars(single)["_decoding"] = decoding
        for number in range(IMAGES):
            pool.submit(encoded, single, number, progress=lambda done, number=number: done or began.append(number))
    assert sorted(began) == [*range(IMAGES)]
    assert began == decoded


# -- progress, options, timing -------------------------------------------------------------------------------------


def test_progress_counts_good_and_bad_images(shard, progress):
    assert sum(progress) == SHARD
    assert len(progress) > 1


def test_dense_none_does_not_change_other_arrays(encoder, shard):
    bare = encoded(replace(encoder, layout=replace(encoder.layout, dense="none")), 0)
    assert bare.dense is None
    np.testing.assert_array_equal(bare.cls, shard.cls)
    np.testing.assert_array_equal(bare.label, shard.label)


@pytest.mark.parametrize("dense", ["none", "float16"])
def test_clustering_on_the_device_gives_the_same_shard(encoder, shard, monkeypatch, dense):
    masker = replace(encoder.masker, kmeans="torch")
    by_torch = replace(encoder, masker=masker, layout=replace(encoder.layout, dense=dense))
    separate = encoded(by_torch, 0)
    monkeypatch.setattr(Masker, "asynchronous", True)
    on_device = encoded(by_torch, 0)
    for name in ("cls", "label", "count", "status"):
        np.testing.assert_array_equal(getattr(on_device, name), getattr(separate, name))
        np.testing.assert_array_equal(getattr(on_device, name), getattr(shard, name))


def test_shard_is_deterministic_and_reports_seconds_per_stage(encoder, shard, caplog):
    times = StageTimes()
    with caplog.at_level(logging.WARNING):
        again = encoded(encoder, 0, times=times)
    for name in ("cls", "dense", "label", "count"):
        np.testing.assert_array_equal(getattr(again, name), getattr(shard, name))
    assert list(times.seconds) == ["decode", "encode", "cluster", "wait"]
    assert all(value > 0 for value in times.seconds.values())
    assert not caplog.records
