"""Existing caches: extended, retried, replaced, or refused because their images have changed."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from folders import precompute_config
from PIL import Image
from refusals import refused
from test_precompute import arrays, assert_same_arrays
from tiny_inputs import draw_blocks, random_image, random_label_map

from data_cache.errors import UsageError
from data_cache.integrity import verify_files
from data_cache.layout import DEFAULT_MASKS
from data_cache.reader import Cache
from data_cache.source_dataset import open_source_dataset
from data_cache.writer import CacheWriter
from pipeline.config import ClusterConfig
from pipeline.encode import Encoder
from pipeline.feeder import Feeder
from pipeline.plan import plan
from pipeline.precompute import execute
from pipeline.recluster import recluster


@pytest.fixture
def root(tmp_path):
    return draw_blocks(tmp_path / "own", 7, truncated={2})


def settings_of(root, cache, **given):
    return precompute_config(root, cache, **({"shard": 3, "unseen": "tree"} | given))


@pytest.fixture
def settings(root, tmp_path):
    made = settings_of(root, tmp_path / "c.zarr")
    execute(plan(made))
    return made


@pytest.fixture
def encoded(monkeypatch):
    """The names of the images that are encoded."""
    names, prepare = [], Feeder._prepare
    monkeypatch.setattr(Feeder, "_prepare", lambda self, *a: names.append(self.dataset.ids[a[-1]]) or prepare(self, *a))
    return names


def add(root, name, seed):
    Image.fromarray(random_image(seed)).save(root / f"images/{name}.png")
    Image.fromarray(random_label_map(seed)).save(root / f"labels/{name}.png")


def repair_image(root):
    Image.fromarray(random_image(2)).save(root / "images/02.png")


def assert_nearly_equal(cache, other):
    """All arrays are equal, up to rounding that depends on the batch."""
    one, two = arrays(cache), arrays(other)
    assert one.keys() == two.keys()
    for name in one.keys() - {"journal", "masks/default/journal", "image/journal"}:
        if one[name].dtype.kind == "f":
            np.testing.assert_allclose(one[name].astype(float), two[name].astype(float), atol=0.02, err_msg=name)
        elif one[name].dtype == np.int8:
            np.testing.assert_allclose(one[name].astype(int), two[name].astype(int), atol=1, err_msg=name)
        else:
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)


# -- extend ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dense", ["float16", "int8", "none"])
def test_extend_encodes_only_new_images(root, tmp_path, encoded, dense):
    settings = settings_of(root, tmp_path / "c.zarr", dense=dense)
    execute(plan(settings))
    before = arrays(settings.cache)
    add(root, "00a", 90)  # sorts between existing names
    add(root, "99", 91)
    refused(lambda: plan(settings), "2 new (images/00a.png, images/99.png)", "--extend")
    encoded.clear()
    work = plan(replace(settings, extend=True))
    assert work.images == 2
    assert execute(work).encoded == 2
    assert sorted(encoded) == ["images/00a.png", "images/99.png"]
    after = arrays(settings.cache)
    for name in before.keys() - {"journal", "masks/default/journal", "image/journal"}:
        kept = slice(None) if name.startswith("text") else slice(len(before[name]))
        np.testing.assert_array_equal(after[name][kept], before[name], err_msg=name)
    assert list(after["image/id"][7:]) == ["images/00a.png", "images/99.png"]
    assert list(after["image/status"][7:]) == ["ok", "ok"]
    assert verify_files(Cache(settings.cache))[1] == []


def test_extended_cache_equals_a_new_one(settings, root, tmp_path):
    for number in range(8, 13):
        add(root, f"{number:02}", number)
    execute(plan(replace(settings, extend=True)))
    fresh = replace(settings, cache=tmp_path / "fresh.zarr")
    execute(plan(fresh))
    assert_nearly_equal(settings.cache, fresh.cache)


def test_extended_cache_can_be_reopened_and_clustered(settings, root):
    add(root, "00a", 90)
    execute(plan(replace(settings, extend=True)))
    assert plan(settings).images == 0
    cache = Cache(settings.cache)
    dataset = open_source_dataset(cache, None)
    assert dataset.ids[-1] == "images/00a.png"
    stored = cache.digests()
    assert all(dataset.digest(i) == stored[i] for i in range(len(dataset)) if stored[i][0])
    recluster(ClusterConfig(settings.cache, "again"))
    np.testing.assert_array_equal(cache.load("default").label, Cache(settings.cache).load("again").label)


def test_cluster_completes_mask_sets_of_an_extended_cache(settings, root):
    recluster(ClusterConfig(settings.cache, "fine", threshold=0.9))
    before = Cache(settings.cache).load("fine").label
    add(root, "99", 91)
    execute(plan(replace(settings, extend=True)))
    refused(lambda: Cache(settings.cache).load("fine"), "rerun `cluster` with --name fine")
    assert recluster(ClusterConfig(settings.cache, "fine", threshold=0.9)) == 2  # the images of the extended shard
    after = Cache(settings.cache).load("fine").label
    np.testing.assert_array_equal(after[:7], before)
    assert (after[7] != 255).any()


@pytest.mark.parametrize("instant", ["before the renaming", "while it is carried out", "before the new images"])
def test_killed_extension_is_atomic(settings, root, monkeypatch, instant):
    from pathlib import Path

    from data_cache import transaction, writer

    before = arrays(settings.cache)
    add(root, "99", 91)
    with monkeypatch.context() as patch:
        if instant == "before the renaming":
            patch.setattr(writer, "_build", lambda path, fill, about: 1 / 0)
        elif instant == "while it is carried out":
            moved, replace_file = [], Path.replace

            def dying(self, target):
                if transaction.REDO in self.parts:
                    moved.append(1 / (4 - len(moved)))
                return replace_file(self, target)

            patch.setattr(Path, "replace", dying)
        else:
            patch.setattr(Encoder, "shard", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            execute(plan(replace(settings, extend=True)))
    if instant == "before the renaming":
        assert arrays(settings.cache).keys() == before.keys()
        assert plan_refused(settings)
    elif instant == "while it is carried out":
        assert (settings.cache / transaction.REDO).is_dir()
        refused(lambda: Cache(settings.cache), "interrupted", "precompute")
    execute(plan(replace(settings, extend=True)))
    assert not list(settings.cache.rglob("*.partial")) + list(settings.cache.glob(transaction.REDO))
    assert verify_files(Cache(settings.cache))[1] == []
    np.testing.assert_array_equal(arrays(settings.cache)["cls"][:7], before["cls"])
    assert Cache(settings.cache).statuses()[7] == ("images/99.png", "ok")


def plan_refused(settings):
    refused(lambda: plan(settings), "1 new (images/99.png)")
    return True


def test_larger_limit_extends_scenes(tmp_path):
    few = precompute_config(None, tmp_path / "s.zarr", dataset="scenes", limit=3, shard=2)
    execute(plan(few))
    more = replace(few, limit=5)
    refused(lambda: plan(more), "2 new (train/000003, train/000004)")
    assert execute(plan(replace(more, extend=True))).encoded == 2
    assert Cache(few.cache).ids() == [f"train/{i:06}" for i in range(5)]


# -- retry-failed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dense", ["float16", "int8"])
def test_retry_failed_encodes_only_failed_images(root, tmp_path, encoded, dense):
    settings = settings_of(root, tmp_path / "c.zarr", dense=dense)
    assert len(execute(plan(settings)).failures) == 1
    repair_image(root)
    encoded.clear()
    assert plan(settings).images == 0
    work = plan(replace(settings, retry_failed=True))
    assert (work.images, work.shards) == (1, 1)
    assert execute(work).failures == []
    assert encoded == ["images/02.png"]
    whole = replace(settings, cache=tmp_path / "whole.zarr")
    execute(plan(whole))
    assert_nearly_equal(settings.cache, whole.cache)
    assert verify_files(Cache(settings.cache))[1] == []


def test_image_that_fails_again_stays_failed(settings, root):
    (root / "images/02.png").write_bytes(b"not an image")
    summary = execute(plan(replace(settings, retry_failed=True)))
    assert [name for name, _ in summary.failures] == ["images/02.png"]


def test_killed_retry_is_completed_without_the_flag(settings, root, monkeypatch):
    repair_image(root)
    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "write_masks", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            execute(plan(replace(settings, retry_failed=True)))
    assert Cache(settings.cache).pending_shards(DEFAULT_MASKS) == [0]
    assert execute(plan(settings)).failures == []
    assert verify_files(Cache(settings.cache))[1] == []


# -- overwrite ------------------------------------------------------------------------------------------------------


def test_overwrite_replaces_a_cache_with_other_settings(settings, tmp_path):
    other = replace(settings, unseen="sky")
    refused(lambda: plan(other), "masks.unseen")
    assert execute(plan(replace(other, overwrite=True))).encoded == 7
    fresh = replace(other, cache=tmp_path / "fresh.zarr")
    execute(plan(fresh))
    assert_same_arrays(settings.cache, fresh.cache)
    assert not list(tmp_path.glob("*.partial"))


def test_overwrite_replaces_a_damaged_cache_but_no_other_folder(settings, tmp_path):
    (settings.cache / "zarr.json").write_text('{"attributes": {"format": "clipteacher-cache", "vers')
    assert execute(plan(replace(settings, overwrite=True))).encoded == 7
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    refused(
        lambda: plan(replace(settings, cache=mine, overwrite=True)),
        "not a clipteacher cache",
        "--overwrite replaces only those",
    )
    assert (mine / "thesis.txt").exists()


@pytest.mark.parametrize("other", ["extend", "retry_failed"])
def test_overwrite_excludes_extend_and_retry_failed(settings, other):
    refused(lambda: plan(replace(settings, overwrite=True, **{other: True})), "--overwrite", kind=UsageError)


# -- changed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_changed_image_or_label_map_is_refused_by_name(settings, root, kind):
    shutil.copy(root / kind / "04.png", root / kind / "05.png")
    refused(lambda: plan(settings), "images/05.png: the image or its label map changed", "--overwrite")
    assert execute(plan(replace(settings, overwrite=True))).encoded == 7


def test_removed_image_is_refused_by_name(settings, root):
    for kind in ("images", "labels"):
        (root / kind / "05.png").unlink()
    for changed in (settings, replace(settings, extend=True)):
        refused(lambda changed=changed: plan(changed), "1 missing (images/05.png)", "restore them")


def test_overwrite_replaces_the_target_of_a_symlink(settings, root, tmp_path):
    (tmp_path / "large").mkdir()
    settings.cache.rename(tmp_path / "large/real.zarr")
    link = tmp_path / "link.zarr"
    link.symlink_to("large/real.zarr")
    through = replace(settings, cache=link)
    assert plan(through).images == 0
    execute(plan(replace(through, overwrite=True, shard=4)))
    assert link.is_symlink()
    assert Cache(tmp_path / "large/real.zarr").layout.shard == 4
    assert [one.name for one in (tmp_path / "large").iterdir()] == ["real.zarr"]


def test_rerun_without_shard_keeps_the_shards_of_the_cache(settings):
    work = plan(replace(settings, shard=None))
    assert (work.job.layout.shard, work.images) == (settings.shard, 0)


def test_default_shard_is_larger_on_a_gpu_but_not_with_dense_tokens_of_many_views(settings):
    default = replace(settings, shard=None, views=1)
    assert [default.shard_on(device) for device in ("cpu", "cuda", "cuda:1")] == [64, 256, 256]
    assert [replace(default, views=views).shard_on("cuda") for views in (2, 3, 4, 10)] == [128, 85, 64, 64]
    bare = replace(default, dense="none", views=4)
    assert bare.shard_on("cuda") == 256
    assert replace(bare, masks_from="timm:vit_tiny_patch16_224", masks_dense="int8").shard_on("cuda") == 64
    assert settings.shard_on("cuda") == settings.shard


@pytest.mark.parametrize("shard", [0, 2**16 + 1])
def test_invalid_shard_size_is_refused(settings, tmp_path, shard):
    refused(
        lambda: plan(replace(settings, cache=tmp_path / "o.zarr", shard=shard)), f"--shard {shard}", kind=UsageError
    )


@pytest.mark.parametrize(
    ("change", "word"),
    [({"view_seed": 1}, "views.seed: 0 there, 1 here"), ({"views": 3}, "views.count: 2 there, 3 here")],
)
def test_other_crops_are_refused_with_the_difference(root, tmp_path, change, word):
    made = settings_of(root, tmp_path / "views.zarr", views=2)
    execute(plan(made))
    for extend in (False, True):
        changed = replace(made, **change, extend=extend)
        refused(lambda changed=changed: plan(changed), word)


def test_newer_library_versions_are_accepted(settings, monkeypatch):
    from pipeline import plan as module

    monkeypatch.setattr(module, "version", lambda name: "999.0")
    assert plan(settings).images == 0
