"""Masks of each scale, made anew from a cache: fused, they are the stored ones."""

import numpy as np
import pytest
from tiny_world import CONFIG, draw_folder

from data_cache import open_cache
from data_cache.errors import UserError
from data_cache.reader import Reader
from data_cache.views import Cropping
from pipeline.fusion import NOT_IGNORED, fuse
from pipeline.precompute import Settings, execute, plan
from pipeline.recluster import Clustering, recluster
from pipeline.scales import clusters_of, label_map, scale_maps
from pipeline.weights import CLIPSource

IMAGES = 5


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Opens a cache with dense tokens stored in some way; one image has no label map."""
    folder = tmp_path_factory.mktemp("scales")
    root = draw_folder(folder / "drawn", IMAGES, unlabelled=(2,))

    def opened(dense: str = "float16", masks: str | None = None) -> Reader:
        path = folder / f"{dense}.zarr"
        source = CLIPSource(str(CONFIG), "random")
        settings = Settings(
            "folder",
            path,
            root,
            clip=source,
            device="cpu",
            precision="fp32",
            dense=dense,
            unseen="tree",
            cropping=Cropping(2),
        )
        execute(plan(settings))
        if masks:
            recluster(Clustering(path, masks, windows=(2, 3, 5), threshold=0.6, updates=3))
        return open_cache(path, masks=masks)

    return opened


@pytest.mark.parametrize("masks", [None, "other"])
def test_clusters_made_anew_and_fused_are_the_stored_masks(read, masks):
    cache = read(masks=masks)
    for record in (image.view(number) for image in cache for number in range(2)):
        fused = fuse(clusters_of(record), record.dense, cache.about["threshold"])
        np.testing.assert_array_equal(np.where(fused == NOT_IGNORED, record.nothing, fused), record.masks)


@pytest.mark.parametrize("dense", ["float16", "int8"])
def test_every_scale_covers_the_ignored_tokens_and_no_others(read, dense):
    for record in read(dense):
        maps = scale_maps(record)
        assert [title.split(":")[0] for title in maps] == ["3 x 3 windows", "7 x 7 windows"]
        for title, label in maps.items():
            np.testing.assert_array_equal(label != NOT_IGNORED, record.masks != record.nothing)
            assert label.max() + 1 == int(title.split(": ")[1])


def test_a_view_without_ignored_tokens_has_empty_maps():
    np.testing.assert_array_equal(label_map(np.zeros((0, 2, 3), bool)), np.full((2, 3), NOT_IGNORED))


def test_without_dense_tokens_there_is_nothing_to_cluster(read):
    with pytest.raises(UserError, match="holds no dense tokens"):
        scale_maps(read("none")[0])
