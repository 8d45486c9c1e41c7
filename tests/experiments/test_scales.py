"""Masks of each scale, reclustered from cached tokens: fused, they equal the stored masks."""

import numpy as np
import pytest
from folders import make_cache
from tiny_inputs import draw_blocks

from clipteacher import open_cache
from data_cache.errors import UserError
from experiments.scales import clusters_of, label_map, scale_maps
from pipeline.config import ClusterConfig
from pipeline.masks.fusion import NOT_IGNORED, fuse
from pipeline.recluster import recluster
from viewer.reader import CacheReader

IMAGES = 5


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Open a cache by its storage of dense tokens; one image has no label map."""
    folder = tmp_path_factory.mktemp("scales")
    root = draw_blocks(folder / "drawn", IMAGES, unlabelled=(2,))

    def opened(dense: str = "float16", masks: str | None = None) -> CacheReader:
        path = folder / f"{dense}.zarr"
        make_cache(root, path, dense=dense, unseen="tree", views=2)
        if masks:
            recluster(ClusterConfig(path, masks, windows=(2, 3, 5), threshold=0.6, updates=3))
        return open_cache(path, masks=masks)

    return opened


@pytest.mark.parametrize("masks", [None, "other"])
def test_reclustered_tokens_fuse_to_the_stored_masks(read, masks):
    cache = read(masks=masks)
    for record in (image.view(number) for image in cache for number in range(2)):
        fused = fuse(clusters_of(record), record.dense, cache.settings["threshold"])
        np.testing.assert_array_equal(np.where(fused == NOT_IGNORED, record.reserved, fused), record.masks)


@pytest.mark.parametrize("dense", ["float16", "int8"])
def test_each_scale_covers_exactly_the_ignored_tokens(read, dense):
    for record in read(dense):
        maps = scale_maps(record)
        assert [scale.window for scale in maps] == [3, 7]
        for scale in maps:
            np.testing.assert_array_equal(scale.label != NOT_IGNORED, record.masks != record.reserved)
            assert scale.label.max() + 1 == scale.centers


def test_label_map_without_masks_is_empty():
    np.testing.assert_array_equal(label_map(np.zeros((0, 2, 3), bool)), np.full((2, 3), NOT_IGNORED))


def test_clustering_without_dense_tokens_is_refused(read):
    with pytest.raises(UserError, match="holds no dense tokens"):
        scale_maps(read("none")[0])
