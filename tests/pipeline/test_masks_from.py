"""`precompute --masks-from`: a mask set from the tokens of another vision model, next to CLIP's own."""

import json
import shutil
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import xarray
import zarr
from caches import contents
from command_line import in_a_process
from folders import precompute_config
from refusals import refused
from tiny_inputs import CLASSES, draw_blocks
from token_models import ARCHITECTURE, CHANNELS, GRID, MEAN, SIZE, STD, write_model

from data_cache.description import bytes_on_disk
from data_cache.errors import UsageError
from data_cache.integrity import verify_files
from data_cache.metadata import finalize_metadata
from data_cache.reader import Cache
from data_cache.sample import crop_image, crop_label
from data_cache.source_dataset import open_source_dataset
from data_cache.splits import Split
from data_cache.views import View
from data_cache.writer import CacheWriter
from pipeline.config import ClusterConfig
from pipeline.live import live_teacher
from pipeline.masks.masker import Masker
from pipeline.masks.model import TokenModel
from pipeline.masks.source import ModelSource
from pipeline.plan import plan
from pipeline.precompute import execute
from pipeline.recluster import recluster
from pipeline.repair import repair
from trainer.card import read_card
from trainer.checkpoint_folders import latest

IMAGES, VIEWS, FAILED = 7, 2, 2
SET = "other"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset whose third image is damaged and whose sixth has no label map, and a model."""
    folder = tmp_path_factory.mktemp("masks_from")
    draw_blocks(folder / "own", IMAGES, {FAILED}, set(), {5})
    write_model(folder / "model")
    return folder


def settings(folder, cache, **given):
    common = {"shard": 3, "unseen": "tree", "views": VIEWS}
    return precompute_config(folder / "own", cache, **(common | given))


def with_model(folder, cache, **given):
    model = {"masks_from": str(folder / "model"), "masks_name": SET, "masks_dense": "float16"}
    return settings(folder, cache, **(model | given))


@pytest.fixture(scope="module")
def made(folder):
    """A cache with masks of both models."""
    execute(plan(with_model(folder, folder / "made.zarr")))
    return folder / "made.zarr"


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copy.zarr")


def views_of(cache):
    """Index, view, image and label map of each view of each image that did not fail."""
    dataset, loaded = open_source_dataset(cache, None), cache.load("default")
    for index in np.flatnonzero(loaded.ok):
        image, label = dataset.load(int(index))
        for view in range(VIEWS):
            yield int(index), view, image, label, View.stored(loaded.box[index, view], loaded.flip[index, view])


def test_clip_features_and_masks_stay_what_they_are_byte_for_byte(folder, made, tmp_path):
    execute(plan(settings(folder, tmp_path / "alone.zarr")))
    alone, both = contents(tmp_path / "alone.zarr"), contents(made)
    assert {name for name in both if not name.startswith(f"masks/{SET}/")} == alone.keys()
    for name, data in alone.items():
        assert name == "zarr.json" or both[name] == data, name


def test_the_same_command_adds_the_masks_to_a_finished_cache(folder, made, tmp_path):
    cache = tmp_path / "later.zarr"
    execute(plan(settings(folder, cache)))
    summary = execute(plan(with_model(folder, cache)))
    assert (summary.encoded, summary.masked) == (0, IMAGES)
    assert contents(cache) == contents(made)
    assert plan(with_model(folder, cache)).work == 0


def test_tokens_are_those_of_timm_for_the_same_crops(folder, made):
    cache = Cache(made)
    model = timm.create_model(f"local-dir:{folder / 'model'}", pretrained=True, img_size=SIZE).eval()
    for index, view, image, _, crop in views_of(cache):
        pixels = torch.from_numpy(crop_image(image, crop, SIZE)).permute(2, 0, 1) / 255
        pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        with torch.inference_mode():
            (expected,) = model.forward_intermediates(
                pixels[None].float(), indices=1, norm=True, intermediates_only=True
            )
        found = cache.dense(index, SET)[view].astype(np.float32)
        assert found.shape == (*GRID, CHANNELS)
        np.testing.assert_allclose(found, expected[0].permute(1, 2, 0), atol=0.01)
    assert not cache.dense(FAILED, SET).any()


def test_masks_are_clustered_from_the_tokens_on_their_own_grid(made):
    cache = Cache(made)
    masker, loaded = Masker(Split(CLASSES, ("tree",)), GRID), cache.load(SET)
    assert loaded.label.shape == (IMAGES, VIEWS, *GRID)
    for index, view, _, label, crop in views_of(cache):
        labels, counts = masker(cache.dense(index, SET)[view : view + 1], [crop_label(label, crop, SIZE)])
        np.testing.assert_array_equal(loaded.label[index, view], labels[0])
        assert loaded.count[index, view] == counts[0] > 0
    assert (loaded.label[FAILED] == 255).all()


def test_the_mask_set_records_its_model(made):
    attributes = Cache(made).mask_attributes(SET)
    model = attributes["tokens"]["model"]
    assert (model["name"], model["image_size"]) == (f"{ARCHITECTURE}.tiny", SIZE)
    assert (model["mean"], model["std"], model["precision"]) == (MEAN, STD, "fp32")
    assert attributes["tokens"]["grid"] == list(GRID)
    assert "tokens" not in Cache(made).mask_attributes("default")


KILL = """
import os, signal
from data_cache.journal import Journal
commit, records = Journal.commit, []
def dying(self, shard, *a):
    own = self._array.path == "masks/other/journal"
    if own and records:
        os.kill(os.getpid(), signal.SIGKILL)
    record = commit(self, shard, *a)
    records.extend([shard] * own)
    return record
Journal.commit = dying
"""


def test_a_killed_run_resumes_with_the_unfinished_shards_and_ends_identical(folder, made, tmp_path):
    cache = tmp_path / "killed.zarr"
    options = {"--cache": cache, "--root": folder / "own", "--shard": 3, "--unseen": "tree", "--views": VIEWS}
    options |= {"--masks-from": folder / "model", "--masks-name": SET, "--masks-dense": "float16"}
    config = settings(folder, cache)
    options |= {"--clip": config.clip, "--clip-weights": "random", "--device": "cpu", "--precision": "fp32"}
    command = [str(part) for option in options.items() for part in option]
    assert in_a_process("precompute", "--dataset", "folder", *command, prelude=KILL).returncode == -9
    pending = Cache(cache).pending_shards(SET)
    assert 0 < len(pending) < 3, "killed neither before the first shard nor after the last"
    summary = execute(plan(with_model(folder, cache)))
    assert (summary.encoded, summary.masked) == (0, Cache(cache).layout.images_in(pending))
    assert contents(cache) == contents(made)


@pytest.mark.slow
def test_worker_processes_write_the_same_cache(folder, made, tmp_path):
    execute(plan(with_model(folder, tmp_path / "workers.zarr", workers=2)))
    assert contents(tmp_path / "workers.zarr") == contents(made)


def test_new_images_get_masks_of_both_models(folder, made, tmp_path):
    root = shutil.copytree(folder / "own", tmp_path / "own")
    config = replace(with_model(folder, tmp_path / "grown.zarr"), root=root)
    hidden = [root / kind / "06.png" for kind in ("images", "labels")]
    for file in hidden:
        file.rename(tmp_path / f"{file.parent.name}.png")
    execute(plan(config))
    for file in hidden:
        (tmp_path / f"{file.parent.name}.png").rename(file)
    extended = plan(replace(config, extend=True))
    assert (extended.images, extended.masks_images) == (1, 1)
    execute(extended)
    for name in ("default", SET):
        np.testing.assert_array_equal(Cache(config.cache).load(name).label, Cache(made).load(name).label)


def test_stored_tokens_can_be_clustered_again(copy):
    recluster(ClusterConfig(copy, "again", masks=SET))
    recluster(ClusterConfig(copy, "coarse", masks=SET, threshold=-1.0))
    cache = Cache(copy)
    np.testing.assert_array_equal(cache.load("again").label, cache.load(SET).label)
    assert cache.load("coarse").count.max() == 1
    assert cache.mask_attributes("coarse")["tokens"]["masks"] == SET
    recluster(ClusterConfig(copy, "fine", masks="coarse", threshold=0.9))  # the same tokens, one set further
    assert Cache(copy).mask_attributes("fine")["tokens"]["masks"] == SET
    assert verify_files(Cache(copy))[1] == []


def test_without_stored_tokens_masks_are_the_same_and_cannot_be_clustered_again(folder, made, tmp_path):
    cache = tmp_path / "bare.zarr"
    execute(plan(with_model(folder, cache, masks_dense="none")))
    np.testing.assert_array_equal(Cache(cache).load(SET).label, Cache(made).load(SET).label)
    refused(lambda: recluster(ClusterConfig(cache, "again", masks=SET)), SET, "--masks-dense float16")
    recluster(ClusterConfig(cache, "again"))  # CLIP's


def test_int8_tokens_keep_masks_and_directions(folder, made, tmp_path):
    execute(plan(with_model(folder, tmp_path / "int8.zarr", masks_dense="int8")))
    rough, exact = Cache(tmp_path / "int8.zarr"), Cache(made)
    np.testing.assert_array_equal(rough.load(SET).label, exact.load(SET).label)
    np.testing.assert_allclose(rough.dense(0, SET), exact.dense(0, SET), atol=0.05)
    assert bytes_on_disk(rough)["dense"] < bytes_on_disk(exact)["dense"]


def test_damaged_shards_are_repaired_by_the_model_of_the_fingerprint(clipteacher, copy):
    before = contents(copy)
    recluster(ClusterConfig(copy, "again", masks=SET))
    whole = contents(copy)
    for part in (f"masks/{SET}/label/c/1/0/0/0", f"masks/{SET}/dense/c/0/1/0/0/0", "masks/again/label/c/2/0/0/0"):
        (copy / part).write_bytes(b"damaged")
    assert clipteacher("verify", copy).status == 1
    repaired = clipteacher.good("verify", copy, "--repair", "--device", "cpu", "--json").json["repaired"]
    assert repaired["masks"] == {SET: [0, 1], "again": [2]}
    assert repaired["same"] == 3
    after = contents(copy)
    assert after == whole
    assert all(after[name] == data for name, data in before.items() if name != "zarr.json")


def test_the_live_teacher_computes_tokens_and_masks_with_the_model_of_the_fingerprint(clipteacher, copy):
    options = ("--live", 8, "--device", "cpu", "--json")
    live = clipteacher.good("verify", copy, *options, "--masks", SET).json["live"]
    assert live["cls_cosine_min"] > 0.9999
    assert live["dense_cosine_min"] > 0.9999
    assert (live["ignored_equal"], live["masks_rand_index"]) == (1, 1)
    recluster(ClusterConfig(copy, "coarse", masks=SET, threshold=0.3))
    assert clipteacher.good("verify", copy, *options, "--masks", "coarse").json["live"]["masks_rand_index"] == 1


def test_another_model_in_its_place_is_refused(clipteacher, folder, tmp_path):
    write_model(tmp_path / "model")
    config = replace(with_model(folder, tmp_path / "c.zarr"), masks_from=str(tmp_path / "model"))
    execute(plan(config))
    shutil.rmtree(tmp_path / "model")
    gone = clipteacher("verify", config.cache, "--live", 1, "--masks", SET, "--device", "cpu").error
    assert "config.json cannot be read" in gone
    write_model(tmp_path / "model", seed=1)
    other = clipteacher("verify", config.cache, "--live", 1, "--masks", SET, "--device", "cpu").error
    assert "weights_sha256" in other
    refused(lambda: plan(config), f"--masks-name {SET}", "weights_sha256", kind=UsageError)


def test_a_model_that_has_moved_is_named_for_verify(clipteacher, folder, copy, tmp_path):
    moved = shutil.copytree(folder / "model", tmp_path / "moved")
    group = zarr.open_group(copy, mode="r+", use_consolidated=False)
    group[f"masks/{SET}"].attrs["origin"] = str(tmp_path / "gone")
    finalize_metadata(copy)
    whole = contents(copy)
    (copy / f"masks/{SET}/label/c/1/0/0/0").write_bytes(b"damaged")
    command = ("verify", copy, "--repair", "--live", 2, "--masks", SET, "--device", "cpu")
    assert "gone" in clipteacher(*command).error
    result = clipteacher.good(*command, "--masks-from", moved, "--json").json
    assert (result["repaired"]["same"], result["live"]["masks_rand_index"]) == (1, 1)
    assert contents(copy) == whole


def test_info_names_the_model_of_a_mask_set_and_what_finishes_it(clipteacher, copy):
    assert f"other ({ARCHITECTURE}.tiny, 9 x 9 tokens)" in clipteacher.good("info", copy).out
    CacheWriter(copy).journal(f"masks/{SET}").clear(1)
    assert f"{ARCHITECTURE}.tiny, 9 x 9 tokens; 1 shard not done)" in clipteacher.good("info", copy).out
    refused(lambda: Cache(copy).load(SET), f"rerun `precompute` with --masks-from and --masks-name {SET}")


def test_masks_are_never_clustered_from_unfinished_tokens(copy):
    recluster(ClusterConfig(copy, "again", masks=SET))
    CacheWriter(copy).journal(f"masks/{SET}").clear(0)  # as a killed repair does
    (copy / "masks/again/label/c/0/0/0/0").write_bytes(b"damaged")
    refused(lambda: repair(copy, None, CPU), "shard 0 is not done", f"--masks-name {SET}")
    assert Cache(copy).pending_shards("again") == []  # it can still be repaired


@pytest.fixture
def overflow(monkeypatch):
    """Makes the model's tokens infinite for the views that a function chooses by their pixels."""
    encode = TokenModel._batch

    def overflow(chosen):
        def batch(self, images, size):
            found = encode(self, images, size)
            found[[index for index, image in enumerate(images) if chosen(image)], 3, 4, 5] = np.inf
            return found

        monkeypatch.setattr(TokenModel, "_batch", batch)

    return overflow


def pixels_of(cache, image, view):
    """The model's input for a view of a cache."""
    (pixels,) = (
        crop_image(pixels, crop, SIZE)
        for index, number, pixels, _, crop in views_of(Cache(cache))
        if (index, number) == (image, view)
    )
    return pixels


@pytest.mark.parametrize(("dense", "kmeans"), [("float16", "auto"), ("int8", "auto"), ("float16", "torch")])
def test_a_view_whose_tokens_overflow_has_no_pseudo_labels_and_stops_no_other(
    folder, tmp_path, overflow, dense, kmeans
):
    intact, cache = tmp_path / "intact.zarr", tmp_path / "c.zarr"
    execute(plan(with_model(folder, intact, masks_dense=dense, kmeans=kmeans)))
    bad = pixels_of(intact, 3, 1)
    overflow(lambda image: np.array_equal(image, bad))
    notes = []
    summary = execute(plan(with_model(folder, cache, masks_dense=dense, kmeans=kmeans)), log=notes.append)
    assert summary.overflowed == ["images/03.png"]
    assert notes == [
        f"warning: --masks-from {folder / 'model'}: 1 image without pseudo labels in {SET}, in views whose tokens are "
        "not finite in float16: images/03.png"
    ]
    recluster(ClusterConfig(intact, "again", masks=SET))
    recluster(ClusterConfig(cache, "again", masks=SET))
    for masks in (SET, "again"):
        found, expected = Cache(cache).load(masks), Cache(intact).load(masks)
        assert expected.count[3, 1] > 0
        expected.label[3, 1], expected.count[3, 1] = 255, 0
        np.testing.assert_array_equal(found.label, expected.label)
        np.testing.assert_array_equal(found.count, expected.count)
        live = live_teacher(Cache(cache), masks, None, CPU).features(np.array([3, 3]), np.array([0, 1]))
        np.testing.assert_array_equal(live.label, found.label[3])
    assert not Cache(cache).dense(3, SET)[1].any()
    assert verify_files(Cache(cache))[1] == []
    before = contents(cache)
    (cache / f"masks/{SET}/label/c/1/0/0/0").write_bytes(b"damaged")
    repair(cache, None, CPU)
    assert contents(cache) == before


def test_verify_compares_a_view_whose_tokens_overflow(clipteacher, folder, made, tmp_path, overflow):
    bad, cache = pixels_of(made, 3, 1), tmp_path / "c.zarr"
    command = ("verify", cache, "--masks", SET, "--live", 99, "--device", "cpu", "--json")
    overflow(lambda image: np.array_equal(image, bad))
    execute(plan(with_model(folder, cache)))
    live = clipteacher.good(*command).json["live"]
    assert (live["views"], live["ignored_equal"], live["masks_rand_index"]) == (12, 1, 1)
    assert live["dense_cosine_min"] > 0.999
    overflow(lambda _: False)
    live = clipteacher.good(*command).json["live"]
    assert live["dense_cosine_min"] == 0
    assert live["ignored_equal"] < 1


def test_more_overflows_than_accepted_failures_are_an_error_at_the_end(folder, made, tmp_path, overflow):
    bad = pixels_of(made, 3, 1)
    overflow(lambda image: np.array_equal(image, bad))
    summary = execute(plan(with_model(folder, tmp_path / "c.zarr")))
    summary.check(0.15)
    without_failures = replace(summary, failures=[])
    refused(lambda: without_failures.check(0.1), "--masks-from", "1 of 7 images, more than --max-failures 0.1")
    assert Cache(tmp_path / "c.zarr").pending_shards(SET) == []


def test_a_model_whose_tokens_always_overflow_is_refused_at_its_first_large_shard(folder, tmp_path, overflow):
    overflow(lambda _: True)
    config = with_model(folder, tmp_path / "c.zarr", shard=7)
    refused(lambda: execute(plan(config)), "--masks-from", "00.png", "every other image", "choose another model")
    assert Cache(tmp_path / "c.zarr").pending_shards(SET) == [0]
    few = execute(plan(with_model(folder, tmp_path / "few.zarr", limit=2)))
    assert len(few.overflowed) == 2  # these images may be unusual


def test_a_full_disk_is_refused_with_the_options_that_store_less(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    config = with_model(folder, tmp_path / "c.zarr", dense="none", masks_dense="float16")
    refused(lambda: plan(config), "pass --masks-dense int8, --masks-dense none, or --cache")


def test_training_from_masks_of_another_grid_equals_training_with_both_models_in_the_loop(
    clipteacher, folder, copy, tmp_path
):
    run = ("--cache", copy, "--iterations", 2, "--batch-size", 2, "--size", 64, "--masks", SET, "--log-every", 1)
    student = ("--arch", "fpn", "--encoder", "resnet18", "--encoder-weights", "none", "--workers", 0, "--device", "cpu")
    losses = []
    for name, way in ("cached", ()), ("online", ("--online",)):
        clipteacher.good("train", *run, *student, *way, "--out", tmp_path / name)
        updates = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        losses.append([[line[term] for term in ("ce", "generate", "global")] for line in updates])
    np.testing.assert_allclose(*losses, rtol=1e-4, atol=1e-5)
    assert np.shape(losses) == (2, 2, 3)
    recorded = read_card(latest(tmp_path / "cached"))["masks"]
    assert recorded["tokens"]["model"]["name"] == f"{ARCHITECTURE}.tiny"
    assert str(folder) not in json.dumps(recorded), "a checkpoint may be published"


def test_arrays_open_in_xarray_without_a_warning(copy):
    from viewer.reader import open_cache

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xarray.open_datatree(copy, engine="zarr")
    assert tree[f"masks/{SET}/label"].dims == ("image", "view", "mask_y", "mask_x")
    found = open_cache(copy, masks=SET).xarray()
    assert found["masks"].shape == (IMAGES, VIEWS, *GRID)
    assert found["dense"].shape[2:4] == (8, 8)


def test_views_figures_and_statistics_have_the_grid_of_the_masks(made):
    from experiments.scales import clusters_of, scales_figure
    from viewer.reader import open_cache

    cache = open_cache(made, masks=SET)
    view = cache[0].view(1)
    assert view.masks.shape == view.dense.shape[:2] == GRID
    assert view.tokens_label.shape == (SIZE, SIZE)
    assert view.seen_label.shape == view.clip_input.shape[:2] == (128, 128)
    assert clusters_of(view).masks.shape[1:] == GRID
    assert "holds no dense tokens" not in scales_figure(view)._repr_html_()
    assert cache.stats().tokens == GRID[0] * GRID[1]
    assert (cache.stats().ignored <= cache.stats().tokens).all()
    assert f"{ARCHITECTURE}.tiny, 9 x 9, dense: float16" in cache._repr_html_()
    assert cache.grid(range(3)).to_image()


def test_quality_measures_masks_on_their_own_grid_with_their_own_tokens(clipteacher, copy):
    recluster(ClusterConfig(copy, "again", masks=SET))
    result = clipteacher.good("quality", copy, "--pictures", 0, "--json").json
    assert result["masks"].keys() == {"default", SET, "again"}
    assert result["masks"][SET] == result["masks"]["again"] != result["masks"]["default"]
    assert all(result["masks"][SET]["purity"][kind] for kind in ("seen", "unseen"))
    models = {name: masks["model"] for name, masks in result["masks"].items()}
    assert models == {"default": None, SET: f"{ARCHITECTURE}.tiny", "again": f"{ARCHITECTURE}.tiny"}


def test_a_packed_cache_has_no_tokens_and_no_path_of_this_machine(made, tmp_path):
    from data_cache.archive import pack, unpack
    from experiments.sharing.model_card import cache_card
    from experiments.sharing.terms import Terms

    pack(Cache(made), tmp_path / "c.zip")
    (tmp_path / "c.zarr").mkdir()
    with (tmp_path / "c.zip").open("rb") as file:
        unpack(file, tmp_path / "c.zarr")
    cache = Cache(tmp_path / "c.zarr")
    assert verify_files(cache)[1] == []
    assert (cache.dense_stored(), cache.dense_stored(SET)) == ("none", "none")
    assert cache.mask_attributes(SET)["origin"] is None
    assert f"from the tokens of timm's {ARCHITECTURE}" in cache_card(cache, "c", "file:///c", Terms())
    assert str(made.parent).encode() not in b"".join(contents(tmp_path / "c.zarr").values())
    np.testing.assert_array_equal(cache.load(SET).label, Cache(made).load(SET).label)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"masks_from": "nowhere"}, ("--masks-from nowhere", "config.json")),
        ({"masks_from": "timm:"}, ("names no model",)),
        ({"masks_from": f"timm:{ARCHITECTURE}@gone.safetensors"}, ("no file gone.safetensors",)),
        ({"masks_from": f"timm:{ARCHITECTURE}@"}, ("names no weights after @",)),
        ({"masks_name": "default"}, ("--masks-name default",)),
        ({"masks_name": "../x"}, ("--masks-name",)),
        ({"masks_from": None, "masks_name": None}, ("--masks-dense", "--masks-from")),
        ({"masks_from": None, "masks_dense": "none"}, ("--masks-name", "--masks-from")),
    ],
)
def test_mistakes_are_refused_before_anything_is_loaded(folder, tmp_path, given, words):
    refused(lambda: with_model(folder, tmp_path / "c.zarr", **given), *words, kind=UsageError)


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("timm:vit_small_patch14_dinov9@random", "vit_small_patch14_dinov2"),
        ("timm:resnet18@random", "timm implements it as ResNet"),
        (f"timm:{ARCHITECTURE}.lvd143m", "choose lvd142m"),
        ("timm:vit_giant_patch14_224", "pass timm:vit_giant_patch14_224@FILE"),
    ],
)
def test_models_without_a_grid_of_tokens_or_without_weights_are_refused(folder, tmp_path, spec, word):
    refused(lambda: plan(with_model(folder, tmp_path / "c.zarr", masks_from=spec)), spec, word, kind=UsageError)
    assert not (tmp_path / "c.zarr").exists()


def test_weights_that_cannot_be_downloaded_are_refused_in_one_line(folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    config = with_model(folder, tmp_path / "c.zarr", masks_from=f"timm:{ARCHITECTURE}.lvd142m")
    refused(lambda: plan(config), f"https://huggingface.co/timm/{ARCHITECTURE}.lvd142m", "FOLDER")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_small_patch14_dinov2", 126),
        pytest.param("vit_small_patch16_dinov3", 128, marks=pytest.mark.slow),
        pytest.param("vit_pe_spatial_tiny_patch16_512", 128, marks=pytest.mark.slow),
        pytest.param("vit_small_patch14_reg4_dinov2", 126, marks=pytest.mark.slow),
    ],
)
def test_published_architectures_are_sources_of_masks(folder, tmp_path, name, size):
    config = with_model(
        folder, tmp_path / "c.zarr", masks_from=f"timm:{name}@random", masks_name=None, limit=2, views=1
    )
    execute(plan(config)).check(0)
    cache = Cache(config.cache)
    assert cache.tokens_model(name)["image_size"] == size
    assert np.isfinite(cache.dense(0, name)).all()
    assert cache.dense(0, name).any(axis=-1).all()
    assert (cache.load(name).count > 0).all()


def test_weights_without_a_tag_are_recorded_with_the_tag_of_today():
    assert ModelSource(f"timm:{ARCHITECTURE}").resolved() == ModelSource(f"timm:{ARCHITECTURE}.lvd142m")
    for complete in f"timm:{ARCHITECTURE}.lvd142m", f"timm:{ARCHITECTURE}@random":
        assert ModelSource(complete).resolved() == ModelSource(complete)


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", ARCHITECTURE])
def test_tokens_have_the_final_norm_even_if_it_follows_an_average(name):
    source = ModelSource(f"timm:{name}@random")
    tokens = TokenModel(source, 28, "fp32", CPU).tokens(np.full((1, 28, 28, 3), 99, np.uint8)).astype(np.float32)
    np.testing.assert_allclose(tokens.mean(axis=-1), 0, atol=1e-3)
    np.testing.assert_allclose(tokens.std(axis=-1), 1, atol=1e-2)


def test_weights_of_a_file_are_loaded(folder, made, tmp_path):
    model = timm.create_model(ARCHITECTURE, num_classes=0).state_dict()
    torch.save(model, tmp_path / "weights.pth")
    spec = f"timm:{ARCHITECTURE}@{tmp_path / 'weights.pth'}"
    config = with_model(folder, tmp_path / "c.zarr", masks_from=spec, limit=1)
    tokens = plan(config).masks
    found = tokens.model.load()._model.state_dict()
    np.testing.assert_array_equal(found["norm.weight"], model["norm.weight"])
    np.testing.assert_array_equal(found["blocks.3.attn.qkv.weight"], model["blocks.3.attn.qkv.weight"])
    assert tokens.attributes["origin"] == spec
