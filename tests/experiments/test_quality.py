"""`quality`: masks and dense tokens of a cache measured where labels exist."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from caches import contents
from command_line import TINY, folder_options
from folders import make_cache
from PIL import Image
from refusals import refused
from shapes import CLASSES, draw_shapes

from data_cache.errors import UsageError
from data_cache.splits import Split
from data_cache.writer import CacheWriter
from experiments.config import QualityConfig
from experiments.quality import folds_of, quality
from pipeline.config import ClusterConfig
from pipeline.recluster import recluster
from viewer.reader import open_cache

MEASURES = {"purity", "best_iou", "boundary_recall", "clusters", "regions"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cache with two mask sets, and one without dense tokens; an image has no label map."""
    folder = tmp_path_factory.mktemp("quality")
    root = draw_shapes(folder / "drawn", {"train": 5})
    (root / "labels/train/002.png").unlink()
    settings = {"unseen": "disc,stripe"}
    cache = make_cache(root, folder / "c.zarr", **settings)
    recluster(ClusterConfig(cache, "coarse", threshold=-1.0))
    make_cache(root, folder / "bare.zarr", dense="none", **settings)
    return folder


@pytest.fixture(scope="module")
def measured(made):
    return quality(QualityConfig((made / "c.zarr",)))


def test_json_has_each_measure_of_each_mask_set_on_seen_and_unseen_classes(measured):
    result = measured.as_json()
    assert result["images"] == 4
    assert result["masks"].keys() == {"coarse", "default"}
    for masks in result["masks"].values():
        assert masks.keys() == {"model", "threshold", *MEASURES}
        for name in MEASURES:
            assert masks[name].keys() == {"seen", "unseen"}
        assert all(0 < masks[name][kind] <= 1 for name in ("purity", "best_iou") for kind in ("seen", "unseen"))
        assert masks["regions"]["unseen"] > 0
    assert all(0 <= value <= 1 for value in result["tokens"].values())


def test_one_mask_per_image_is_less_pure_and_covers_several_regions(measured):
    masks = measured.as_json()["masks"]
    for kind in ("seen", "unseen"):
        assert masks["coarse"]["purity"][kind] < masks["default"]["purity"][kind]
        assert masks["coarse"]["clusters"][kind] < min(1, masks["default"]["clusters"][kind])
        assert masks["coarse"]["regions"] == masks["default"]["regions"]
    # a fold has one mask per image, and an image without any boundary between masks
    assert masks["coarse"]["boundary_recall"]["seen"] == 0


def test_each_seen_class_is_hidden_in_exactly_one_fold(made):
    cache = open_cache(made / "c.zarr")
    for count, expected in (1, 1), (2, 2), (99, 4):
        folds = folds_of(cache, count)
        assert len(folds) == expected
        assert sorted(int(i) for fold in folds for i in fold.classes) == cache.split.seen_index.tolist()
        for fold in folds:
            hidden = {CLASSES[i] for i in fold.classes}
            assert {*fold.masker.split.unseen} == hidden | {"disc", "stripe"}


def test_without_hidden_classes_the_clustering_in_memory_gives_the_stored_masks(made):
    for name in "default", "coarse":
        cache = open_cache(made / "c.zarr", masks=name)
        fold = folds_of(cache, 1)[0]
        stored = replace(fold, masker=replace(fold.masker, split=Split(CLASSES, ("disc", "stripe"))))
        view = cache[0]
        np.testing.assert_array_equal(stored.masks(view.dense, view.seen_label), view.masks)


def test_measuring_changes_nothing_in_the_cache(made):
    before = contents(made / "c.zarr")
    quality(QualityConfig((made / "c.zarr",), limit=1))
    assert contents(made / "c.zarr") == before


def test_a_cache_without_dense_tokens_is_measured_on_unseen_classes_only_and_says_so(made, measured):
    bare = quality(QualityConfig((made / "bare.zarr",)))
    masks = bare.as_json()["masks"]["default"]
    ours = measured.as_json()["masks"]["default"]
    assert {name: masks[name]["unseen"] for name in MEASURES} == {name: ours[name]["unseen"] for name in MEASURES}
    assert masks["purity"]["seen"] is masks["best_iou"]["seen"] is None
    assert bare.as_json()["tokens"] == {"seen": None, "unseen": None}
    assert any("holds no dense tokens" in line for line in bare.lines)


def test_numbers_of_unseen_classes_are_marked_as_analysis(measured):
    assert any(line.startswith("unseen: ") and "for analysis only" in line for line in measured.lines)
    assert any("for analysis only" in note for note in measured.as_json()["notes"])


def test_a_picture_of_unseen_classes_is_marked_as_analysis(made, measured):
    bare = quality(QualityConfig((made / "bare.zarr",), pictures=1)).caches[0].figure
    assert any("for analysis only" in note for note in bare.notes)
    assert not any("for analysis only" in note for note in measured.caches[0].figure.notes)
    assert not any(entry.unseen for entry in measured.caches[0].figure.legend)


def test_command_prints_one_table_over_caches_and_writes_a_picture_for_each(clipteacher, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = clipteacher.good("quality", made / "c.zarr", made / "bare.zarr", "--pictures", 1).out.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 2 * 2 + 2
    assert len({line.count("|") for line in table}) == len({len(line) for line in table}) == 1
    pictures = ["runs/c/figures/quality.png", "runs/bare/figures/quality.png"]
    assert lines[-2:] == pictures
    files = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file())
    assert files == sorted(pictures)
    assert Image.open(pictures[0]).width > Image.open(pictures[1]).width  # two folds; unseen classes only


def test_json_of_one_cache_and_of_several(clipteacher, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--json", "--limit", 1, "--pictures", 0)
    one = clipteacher.good("quality", made / "c.zarr", *options).json
    assert (one["images"], one["figures"]) == (1, [])
    both = clipteacher.good("quality", made / "c.zarr", made / "bare.zarr", *options).json
    assert both["caches"][0]["masks"] == one["masks"]
    assert len(both["caches"]) == 2
    assert not list(tmp_path.iterdir())


def test_images_without_any_label_map_are_refused(clipteacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = draw_shapes(tmp_path / "drawn", {"train": 1})
    (root / "labels/train/000.png").unlink()
    clipteacher.good("precompute", *folder_options(root), *TINY)
    assert "no image has a label map" in clipteacher("quality", "data_cache/folder.zarr").error


def test_an_unfinished_mask_set_is_refused_by_name(made, tmp_path):
    cache = CacheWriter(Path(shutil.copytree(made / "c.zarr", tmp_path / "c.zarr")))
    cache.add_masks("fine", cache.mask_attributes("default") | {"threshold": 0.9})
    refused(lambda: quality(QualityConfig((cache.path,))), "rerun `cluster` with --name fine")


def test_images_that_have_changed_are_refused_by_name(made, tmp_path):
    moved = Path(shutil.copytree(made / "drawn", tmp_path / "moved"))
    (moved / "labels/train/001.png").write_bytes((moved / "labels/train/000.png").read_bytes())
    refused(lambda: quality(QualityConfig((made / "c.zarr",), root=moved)), "001", "changed since the cache was made")


def test_two_caches_of_one_name_are_refused_unless_no_picture_is_drawn(made):
    caches = (made / "c.zarr", made / "elsewhere/c.zarr")
    refused(lambda: QualityConfig(caches), "several caches are named c", "--pictures 0", kind=UsageError)
    assert QualityConfig(caches, pictures=0).caches == caches
    assert QualityConfig((made / "c.zarr", made / "c.zarr")).caches == (made / "c.zarr",)
