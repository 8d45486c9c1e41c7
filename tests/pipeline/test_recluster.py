"""New masks from cached dense tokens, also from int8 tokens."""

import numpy as np
import pytest
from command_line import in_a_process
from folders import make_cache, precompute_config
from refusals import refused
from tiny_inputs import CLASSES, draw_blocks

from commands.options import parsed
from data_cache.content import quantize_int8
from data_cache.description import bytes_on_disk
from data_cache.errors import UsageError
from data_cache.integrity import verify_files
from data_cache.reader import Cache
from data_cache.source_dataset import open_source_dataset
from pipeline import recluster as module
from pipeline.config import ClusterConfig
from pipeline.dask import run as workers
from pipeline.plan import plan
from pipeline.precompute import execute
from pipeline.recluster import recluster

IMAGES, VIEWS, SCENES = 9, 2, 100


@pytest.fixture
def root(tmp_path):
    return draw_blocks(tmp_path / "own", IMAGES, {2}, set(), {5})


def precomputed(root, dense="float16", name="c.zarr"):
    return make_cache(root, root.parent / name, shard=4, dense=dense, unseen="tree", views=VIEWS)


def labels(cache, name):
    opened = Cache(cache)
    return opened.group[f"masks/{name}/label"][:], opened.group[f"masks/{name}/count"][:]


def test_same_settings_give_identical_masks(root):
    cache = precomputed(root)
    assert recluster(ClusterConfig(cache, "again")) == IMAGES
    for one, other in zip(labels(cache, "again"), labels(cache, "default"), strict=True):
        np.testing.assert_array_equal(one, other)
    assert Cache(cache).mask_attributes("again") == Cache(cache).mask_attributes("default")


def test_additional_mask_sets_do_not_change_the_first(root):
    cache = precomputed(root)
    before = labels(cache, "default")
    recluster(ClusterConfig(cache, "coarse", threshold=0.2))
    recluster(ClusterConfig(cache, "other", unseen=CLASSES[0], windows=(2, 4)))
    opened = Cache(cache)
    assert opened.masks == ["coarse", "default", "other"]
    assert labels(cache, "coarse")[1].sum() < before[1].sum()
    assert opened.mask_attributes("other")["unseen"] == [CLASSES[0]]
    assert opened.mask_attributes("other")["windows"] == [2, 4]
    assert ((labels(cache, "other")[0] == 255) != (before[0] == 255)).any()
    for one, other in zip(labels(cache, "default"), before, strict=True):
        np.testing.assert_array_equal(one, other)
    for name in opened.masks:
        loaded = opened.load(name)
        assert (loaded.label[2] == 255).all()  # the image that failed


def test_mask_set_name_with_other_settings_is_refused(root):
    cache = precomputed(root)
    recluster(ClusterConfig(cache, "coarse", threshold=0.2))
    assert recluster(ClusterConfig(cache, "coarse", threshold=0.2)) == 0
    refused(
        lambda: recluster(ClusterConfig(cache, "coarse", threshold=0.3)), "threshold: 0.2 there, 0.3", kind=UsageError
    )
    refused(lambda: recluster(ClusterConfig(cache, "../x")), "--name", kind=UsageError)


def test_cache_without_dense_tokens_cannot_be_clustered(root):
    refused(lambda: recluster(ClusterConfig(precomputed(root, "none"), "again")), "--dense float16")


def test_changed_label_map_is_refused_by_name(root):
    cache = precomputed(root)
    file = root / "labels/00.png"
    file.write_bytes((root / "labels/01.png").read_bytes())
    refused(lambda: recluster(ClusterConfig(cache, "again")), "00", "changed since the cache was made")


KILL = """
import os, signal
from data_cache.reader import Cache
from data_cache import metadata, writer
from data_cache.writer import CacheWriter
def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    "instant",
    [
        pytest.param(KILL + "writer.finalize_metadata = die\n", marks=pytest.mark.slow),
        pytest.param(
            KILL + "shutil = metadata.shutil; copy = shutil.copyfile; metadata.metadata_hash = die\n",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            KILL + "write = CacheWriter.write_masks\n"
            "CacheWriter.write_masks = lambda s, n, *a: die() if n == 1 else write(s, n, *a)\n",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["arrays-before-finalization", "within-finalization", "second-shard"],
)
def test_killed_clustering_keeps_the_cache_and_is_resumed(root, instant):
    cache = precomputed(root)
    command = ("cluster", cache, "--name", "again")
    assert in_a_process(*command, prelude=instant).returncode == -9
    assert Cache(cache).load("default").ok.sum() == IMAGES - 1
    rerun = in_a_process(*command)
    assert rerun.returncode == 0, rerun.stderr
    for one, other in zip(labels(cache, "again"), labels(cache, "default"), strict=True):
        np.testing.assert_array_equal(one, other)
    assert verify_files(Cache(cache))[1] == []


ARRAYS = """
from zarr import Group
create = Group.create_array
def dying(self, name, *a, **k):
    if name == "{name}": die()
    return create(self, name, *a, **k)
Group.create_array = dying
"""


@pytest.mark.parametrize(
    "instant",
    [
        pytest.param(ARRAYS.format(name="masks/a/label"), marks=pytest.mark.slow),
        pytest.param(ARRAYS.format(name="masks/a/journal"), marks=pytest.mark.slow),
        "writer.finalize_metadata = die\n",
    ],
)
def test_leftovers_of_a_killed_call_do_not_affect_other_mask_sets(root, instant):
    cache = precomputed(root)
    assert in_a_process("cluster", cache, "--name", "a", prelude=KILL + instant).returncode == -9
    assert (cache / "masks/a").is_dir()
    recluster(ClusterConfig(cache, "b", threshold=0.3))
    assert Cache(cache).masks == ["b", "default"]
    recluster(ClusterConfig(cache, "a", threshold=0.2))
    assert verify_files(Cache(cache))[1] == []
    assert Cache(cache).load("a").ok.sum() == IMAGES - 1


def test_concurrent_calls_cluster_a_mask_set_once(root, monkeypatch):
    cache = precomputed(root)

    def meanwhile(*arguments):
        monkeypatch.undo()
        recluster(ClusterConfig(cache, "same"))
        return open_source_dataset(*arguments)

    monkeypatch.setattr(module, "open_source_dataset", meanwhile)
    assert recluster(ClusterConfig(cache, "same")) == 0


def test_several_gpus_are_all_used(root, monkeypatch):
    cache, used = precomputed(root), []
    monkeypatch.setattr(workers, "visible_gpus", lambda: ("0", "1"))
    monkeypatch.setattr(module, "run_shards", lambda job, shards, progress, workers, log: used.append(workers) or ())
    recluster(ClusterConfig(cache, "new"))
    assert used[0].gpus == ("0", "1")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"threshold": float("nan")}, "--threshold"),
        ({"threshold": 5.0}, "--threshold"),
        ({"updates": -1}, "--updates"),
        ({"windows": (3, 3)}, "--windows"),
    ],
)
def test_invalid_settings_are_refused_and_leave_no_mask_set(root, settings, word):
    cache = precomputed(root)
    refused(lambda: recluster(ClusterConfig(cache, "new", **settings)), word, kind=UsageError)
    assert Cache(cache).masks == ["default"]


def test_training_resumes_with_its_masks_after_others_were_added(root, clipteacher, tmp_path):
    cache = precomputed(root)
    run = ("--cache", cache, "--out", tmp_path / "run", "--iterations", 2, "--batch-size", 2, "--size", 64)
    student = ("--arch", "fpn", "--encoder", "resnet18", "--encoder-weights", "none", "--workers", 0, "--device", "cpu")
    clipteacher.good("train", *run, *student)
    recluster(ClusterConfig(cache, "fine", threshold=0.9))
    clipteacher.good("train", "--out", tmp_path / "run", "--resume")
    clipteacher.good("train", "--out", tmp_path / "run", "--resume", "--masks", "default")
    assert "masks differs" in clipteacher("train", "--out", tmp_path / "run", "--resume", "--masks", "fine").error
    assert "--online differs" in clipteacher("train", "--out", tmp_path / "run", "--resume", "--online").error


@pytest.mark.parametrize("windows", ["3,x", "0", "", "3;7", "-1"])
def test_invalid_windows_are_usage_errors(windows):
    refused(lambda: parsed(ClusterConfig, "windows", windows), "--windows", kind=UsageError)


# -- int8 -------------------------------------------------------------------------------------------------------


def test_int8_error_is_at_most_half_a_quantization_step():
    tokens = np.random.default_rng(0).normal(size=(3, 4, 64)) * np.array([1e-4, 1, 3000])[:, None, None]
    tokens[1, 2] = 0
    values, scale = quantize_int8(tokens.astype(np.float16))
    assert values.dtype == np.int8
    step = np.abs(tokens).max(axis=-1) / 127
    np.testing.assert_allclose(scale, step, rtol=2e-3, atol=1e-9)
    error = np.abs(values * scale[..., None] - tokens.astype(np.float16))
    assert (error <= 0.501 * scale[..., None]).all()
    assert not values[1, 2].any()


def rand_index(a, b):
    """The adjusted Rand index of two labellings, by its definition over pairs."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)

    def pairs(n):
        return (n * (n - 1) / 2).sum()

    total = pairs(np.array([len(a)]))
    expected = pairs(table.sum(0)) * pairs(table.sum(1)) / total
    most = (pairs(table.sum(0)) + pairs(table.sum(1))) / 2
    return 1.0 if most == expected else (pairs(table) - expected) / (most - expected)


def test_int8_tokens_keep_directions_and_masks_in_half_the_bytes(tmp_path):
    caches = {}
    for dense in ("float16", "int8"):
        clip = {"clip": "tiny", "clip_weights": None}
        cache = tmp_path / f"{dense}.zarr"
        settings = precompute_config(None, cache, dataset="scenes", **clip, limit=SCENES, dense=dense)
        execute(plan(settings)).check(0)
        recluster(ClusterConfig(settings.cache, "again"))
        caches[dense] = Cache(settings.cache)
    exact, rough = caches["float16"], caches["int8"]
    np.testing.assert_array_equal(exact.group["masks/default/label"][:], rough.group["masks/default/label"][:])
    cosines, indices = [], []
    for image in range(SCENES):
        a, b = exact.dense(image).astype(np.float64), rough.dense(image).astype(np.float64)
        cosines.append((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))
        one, other = (cache.group["masks/again/label"][image, 0].ravel() for cache in (exact, rough))
        keep = one != 255
        if keep.sum() > 1:
            indices.append(rand_index(one[keep].astype(int), other[keep].astype(int)))
    ratio = bytes_on_disk(rough)["dense"] / bytes_on_disk(exact)["dense"]
    parts = np.quantile(indices, [0, 0.05, 0.25, 0.5]).round(3)
    print(f"cosine {np.mean(cosines):.6f}, at least {np.min(cosines):.6f}; Rand index {np.mean(indices):.4f}, ")
    print(f"least, 5 %, 25 %, median {parts}; bytes {ratio:.3f}")
    assert np.mean(cosines) > 0.999
    assert np.mean(indices) > 0.95
    assert ratio < 0.52
    assert len(indices) >= 64
