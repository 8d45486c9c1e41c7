"""A reader returns the numbers that Zarr holds; missing or unfinished data raises an error and never reads as zeros."""

import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from command_line import REPOSITORY
from displays import (
    CROP,
    FAILED,
    IMAGES,
    UNLABELLED,
    cache_hostile,
    hatched,
    images_by_title,
    name,
    rendered,
    visible_text,
)
from folders import make_cache
from PIL import Image
from refusals import refused

from clipteacher import open_cache
from data_cache.errors import UsageError, UserError
from experiments.scales import scales_figure


@pytest.mark.parametrize("masks", ["default", "fine"])
@pytest.mark.parametrize("view", [0, CROP])
def test_view_arrays_match_the_zarr_group(made, masks, view):
    group, cache = zarr.open_group(made.cache, mode="r"), open_cache(made.cache, masks=masks)
    for index in (0, 1, 2, 5):
        record = cache[index].view(view)
        np.testing.assert_array_equal(record.masks, group[f"masks/{masks}/label"][index, view])
        np.testing.assert_array_equal(record.cls, group["cls"][index, view])
        np.testing.assert_array_equal(record.dense, group["dense"][index, view])
        assert record.count == group[f"masks/{masks}/count"][index, view]
        assert list(record.geometry.box) == list(group["view/box"][index, view])
        assert record.geometry.flip == group["view/flip"][index, view]


def test_arrays_have_the_documented_shapes_and_types(made):
    record = open_cache(made.cache)[0]
    arrays = {key: (getattr(record, key).shape, str(getattr(record, key).dtype)) for key in ("masks", "cls", "dense")}
    assert arrays == {"masks": ((8, 8), "uint8"), "cls": ((64,), "float16"), "dense": ((8, 8, 64), "float16")}
    assert (record.image.shape, record.clip_input.shape, record.seen_label.shape) == (
        (96, 128, 3),
        (128, 128, 3),
        (128, 128),
    )
    assert open_cache(made.cache).counts.shape == (IMAGES, 2)


def test_mask_sets_are_independent(made):
    cache = open_cache(made.cache)
    assert (cache.masks, cache.using("fine").masks) == ("default", "fine")
    assert (cache[0].masks != cache.using("fine")[0].masks).any()
    assert cache.using("fine").split.unseen == ("grass & sand",)
    np.testing.assert_array_equal(cache.using("fine").counts, zarr.open_group(made.cache)["masks/fine/count"][:])


def test_modified_arrays_do_not_affect_later_reads(made):
    cache = open_cache(made.cache)
    before = cache[0].masks.copy()
    cache[0].masks[:] = 7
    cache[0].cls[:] = 7
    np.testing.assert_array_equal(cache[0].masks, before)
    assert (cache[0].cls != 7).any()


def test_seen_labels_follow_the_crop_and_hide_unseen_classes(made):
    cache = open_cache(made.cache)
    crops = [cache[i].view(CROP) for i in (0, 1, 2, 5)]
    assert {record.geometry.flip for record in crops} == {True, False}
    for record in crops:
        label = Image.open(made.root / "labels" / Path(record.id).name)
        top, left, bottom, right = record.geometry.box
        cut = label.resize((128, 128), Image.Resampling.NEAREST, box=(left, top, right, bottom))
        cut = np.asarray(cut)[:, ::-1] if record.geometry.flip else np.asarray(cut)
        np.testing.assert_array_equal(record.seen_label, np.where(np.isin(cut, [3, 4]), 255, cut))
        crop = np.asarray(Image.open(made.root / record.id).crop((left, top, right, bottom)).resize((128, 128)))
        crop = crop[:, ::-1] if record.geometry.flip else crop
        assert np.abs(record.clip_input.astype(int) - crop).mean() < 6


def test_images_are_indexed_by_number_name_and_slice(made):
    cache = open_cache(made.cache)
    assert len(cache) == IMAGES
    assert cache[-1].index == cache[name(5)].index == cache[np.int64(5)].index == 5
    assert [r.index for r in cache[1:4]] == [1, 2, 3]
    assert [r.id for r in cache] == [name(i) for i in range(IMAGES)]
    assert len(cache.grid().panels) == IMAGES
    assert [panel.title for panel in cache.grid([name(2), -1]).panels] == ["image 2", "image 5"]
    with pytest.raises(TypeError):
        cache[1.5]
    for index in (IMAGES, -IMAGES - 1):
        with pytest.raises(IndexError, match=f"no image {index}"):
            cache[index]
    refused(lambda: cache["images/7.png"], "no image named 'images/7.png'", kind=UsageError)
    refused(lambda: cache[0].view(2), "views 0 to 1", kind=UsageError)
    refused(lambda: cache[0].view(-1), "views 0 to 1", kind=UsageError)


def test_statistics_match_the_zarr_group(made):
    group, stats = zarr.open_group(made.cache, mode="r"), open_cache(made.cache).stats()
    ok = np.arange(IMAGES) != FAILED
    label, count = group["masks/default/label"][:][ok], group["masks/default/count"][:][ok]
    figures = stats.values
    np.testing.assert_array_equal(figures["pseudo labels per view"], count.ravel())
    np.testing.assert_allclose(figures["ignored tokens, %"], 100 * (label != 255).mean(axis=(2, 3)).ravel())
    tokens = [
        n for pair in label.reshape(-1, 64) for n in [(pair != 255).sum() / len({*pair} - {255})] if pair.min() < 255
    ]
    np.testing.assert_allclose(figures["tokens per pseudo label"], tokens)
    norms = np.linalg.norm(group["cls"][:][ok].astype(float), axis=2).ravel()
    np.testing.assert_allclose(figures["norm of CLS"], norms, rtol=1e-5)
    cells = [element.text for element in rendered(stats).iter("td")]
    assert f"{count.mean():.4g}" == cells[0]
    assert f"{norms.max():.4g}" == cells[-1]
    assert f"{norms.max():.4g}" in repr(stats)


def test_xarray_has_named_dimensions_and_no_warnings(made):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arrays = open_cache(made.cache, masks="fine").xarray()
        lazily = open_cache(made.cache).xarray(chunks={})
    group = zarr.open_group(made.cache, mode="r")
    assert arrays["dense"].dims == ("image", "view", "y", "x", "channel")
    np.testing.assert_array_equal(arrays["masks"].sel(image=name(2), view=1), group["masks/fine/label"][2, 1])
    assert arrays["box"].sel(image=name(2), view=1, top_left_bottom_right="right") == group["view/box"][2, 1, 3]
    assert not arrays["seen"].sel({"class": "grass & sand"})
    assert str(arrays["status"][FAILED].values) != "ok"
    assert (arrays.attrs["masks"], arrays.attrs["reserved"], arrays.attrs["threshold"]) == ("fine", 255, 0.99)
    assert lazily["dense"].chunks is not None
    np.testing.assert_array_equal(lazily["dense"].isel(image=5).compute(), group["dense"][5])


@pytest.mark.parametrize("masks", ["default", "fine"])
def test_dataframe_has_the_numbers_of_every_view(made, masks):
    cache, group = open_cache(made.cache, masks=masks), zarr.open_group(made.cache, mode="r")
    views = cache.to_dataframe()
    assert len(views) == IMAGES * 2
    assert views.columns.tolist() == [
        *("image", "view", "id", "path", "status", "height", "width", "has_label", "top", "left", "bottom", "right"),
        *("mirrored", "pseudo_labels", "ignored", "cls_norm"),
    ]
    assert (
        views["id"].tolist() == [name(image) for image in range(IMAGES) for _ in range(2)] == [*np.repeat(cache.ids, 2)]
    )
    for row in views.itertuples():
        assert Path(row.path) == made.root / row.id
        if row.image == FAILED:
            assert row.status == cache[FAILED].status
            continue
        record = cache[row.image].view(row.view)
        assert row.status == "ok"
        assert (row.height, row.width) == record.image.shape[:2]
        assert row.has_label == record.has_label == (row.image != UNLABELLED)
        assert (row.top, row.left, row.bottom, row.right) == record.geometry.box
        assert row.mirrored == record.geometry.flip
        assert row.pseudo_labels == record.count == group[f"masks/{masks}/count"][row.image, row.view]
        assert row.ignored == (record.masks != record.reserved).mean()
        assert row.cls_norm == pytest.approx(np.linalg.norm(record.cls.astype(float)), rel=1e-5)
    numbers = views.columns[5:]
    assert views.loc[views["image"] == FAILED, numbers].isna().all(axis=None)
    assert views.loc[views["image"] != FAILED].notna().all(axis=None)


def test_dataframe_can_be_filtered_and_grouped(made):
    views = open_cache(made.cache).to_dataframe()
    assert set(views[views["status"] == "ok"]["image"]) == set(range(IMAGES)) - {FAILED}
    assert set(views.query("has_label == False")["image"]) == {UNLABELLED}
    largest = views.groupby("image")["pseudo_labels"].max()
    np.testing.assert_array_equal(largest.drop(FAILED), np.delete(open_cache(made.cache).counts.max(axis=1), FAILED))


def test_dataframe_of_an_unfinished_cache_has_a_row_for_every_view(cache_copy):
    (cache_copy.cache / "journal/c/0").unlink()
    views = open_cache(cache_copy.cache).to_dataframe()
    assert views["status"].tolist()[:5] == ["not done"] * 4 + ["ok"]
    assert views["pseudo_labels"].isna().tolist() == [True] * 4 + [False] * 2 + [True] * 2 + [False] * 4


def test_dataframe_of_scenes_has_no_paths(tmp_path):
    path = make_cache(None, tmp_path / "scenes.zarr", dataset="scenes", limit=2)
    assert open_cache(path).to_dataframe()["path"].isna().all()


def test_unfinished_cache_shows_finished_images(cache_copy):
    (cache_copy.cache / "journal/c/0").unlink()
    cache = open_cache(cache_copy.cache)
    assert "3 of 6 done, 1 failed, 2 not done yet" in visible_text(rendered(cache))
    assert "not done; rerun the same `precompute`" in visible_text(rendered(cache[0]))
    assert cache[0].image is not None
    refused(lambda: cache[0].masks, "not done", kind=UserError)
    assert list(images_by_title(rendered(cache.grid([0, 2])))) == ["image 0: not done", "image 2"]
    assert len(cache.stats().count) == 6


def test_unfinished_mask_set_error_explains_how_to_resume(cache_copy):
    (cache_copy.cache / "masks/fine/journal/c/0").unlink()
    cache = open_cache(cache_copy.cache, masks="fine")
    assert "fine (shown) (1 shard not done)" in visible_text(rendered(cache))
    tree = rendered(cache[0])
    assert "`cluster` with --name fine" in visible_text(tree)
    assert not hatched(images_by_title(tree)["image"])
    assert cache[2].masks.shape == (8, 8)


@pytest.mark.parametrize("lost", ["cls/c/1/0/0", "masks/default/label/c/1/0/0/0", "dense/c/1/0/0/0/0"])
def test_missing_chunks_raise_instead_of_reading_as_zeros(cache_copy, lost):
    (cache_copy.cache / lost).unlink()
    cache = open_cache(cache_copy.cache)
    assert cache[0].masks.shape == (8, 8)
    for key in ("masks", "cls", "dense"):
        refused(lambda key=key: getattr(cache[2], key), "missing or truncated", kind=UserError)
    with pytest.raises(UserError, match="missing or truncated"):
        cache.xarray()


def test_damaged_chunks_are_reported(cache_copy):
    file = cache_copy.cache / "masks/default/label/c/1/0/0/0"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)
    tree = rendered(open_cache(cache_copy.cache)[2])
    assert "damaged" in visible_text(tree)
    assert "fused masks" not in visible_text(tree)


def test_figure_without_dense_tokens_omits_scales(made, tmp_path):
    cache_hostile(made.root, tmp_path / "lean.zarr", dense="none")
    cache = open_cache(tmp_path / "lean.zarr")
    refused(lambda: cache[0].dense, "--dense float16", kind=UserError)
    tree = rendered(scales_figure(cache[0]))
    assert visible_text(tree).count("holds no dense tokens") == 1
    assert [re.sub(r": \d+$", "", title) for title in images_by_title(tree)] == [
        "image",
        "seen labels",
        "fused masks",
    ]
    assert "dense" not in cache.xarray()


def test_int8_tokens_are_dequantized(made, tmp_path):
    cache_hostile(made.root, tmp_path / "small.zarr", dense="int8")
    small, full = open_cache(tmp_path / "small.zarr")[0].dense, open_cache(made.cache)[0].dense
    assert small.dtype == np.float32
    np.testing.assert_allclose(small, full, atol=np.abs(full).max() / 100)


def test_open_cache_defaults_to_the_only_cache(made, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPTEACHER_CACHE", str(made.cache.parent))
    assert open_cache().cache.path == made.cache
    assert len(open_cache(str(made.cache))) == IMAGES
    refused(lambda: open_cache(tmp_path / "nothing.zarr"), "no such cache", kind=UserError)
    refused(lambda: open_cache(made.cache, masks="coarse"), "default, fine", kind=UsageError)
    monkeypatch.setenv("CLIPTEACHER_CACHE", str(tmp_path))
    refused(open_cache, "no cache in", kind=UsageError)


def test_importing_clipteacher_loads_neither_torch_nor_zarr():
    code = "import sys, clipteacher; print({'torch', 'zarr', 'pandas'} & {*sys.modules}, clipteacher.open_cache)"
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert printed.startswith("set() <function open_cache")


def test_cache_without_finished_images_has_no_statistics(cache_copy):
    shutil.rmtree(cache_copy.cache / "journal/c")
    cells = [element.text for element in rendered(open_cache(cache_copy.cache).stats()).iter("td")]
    assert set(cells) == {"-"}
