"""COCO-Stuff 164k: 171 things and stuff on the images of COCO 2017."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data_cache.class_list import class_lists
from data_cache.datasets.base import DatasetSpec
from data_cache.datasets.paired_files import PairedFiles, label_table
from data_cache.datasets.pairing import files_below, find_pairs, require_labels

YEAR = "2017"
LABEL_FOLDERS = ("stuffthingmaps_trainval2017", "annotations")
TRAIN_IDS = "_labelTrainIds"
RAW_VALUES = 182


def raw_table() -> UInt8[np.ndarray, "256"]:
    """The table of the published maps: raw ids 0 to 181, of which 11 are unused, and 255 for void."""
    missing = class_lists()["coco"].missing_raw_ids
    return label_table(raw for raw in range(RAW_VALUES) if raw not in missing)


def train_id_table() -> UInt8[np.ndarray, "256"]:
    """The table of mmsegmentation's converted maps: class ids 0 to 170 and 255 for void."""
    return label_table(range(len(class_lists()["coco"].classes)))


def open_coco(root: Path, split: str) -> PairedFiles:
    """Open `train` or `val`, also named `train2017` and `val2017` like their folders.

    Label maps are the published ones (raw ids) or mmsegmentation's converted ones (`*_labelTrainIds.png`), in
    `stuffthingmaps_trainval2017/` or else mmsegmentation's `annotations/`. If both kinds exist, the published ones are
    read, since the conversion may have been interrupted. The two kinds are never mixed in one split.

    Raises UserError if there are no images, or images without a label map.
    """
    split = split.removesuffix(YEAR)
    images = root / "images" / f"{split}{YEAR}"
    labels, tail = _find_labels(root, f"{split}{YEAR}")
    pairing = find_pairs(root, images, labels, {".jpg"}, tail, None if tail else TRAIN_IDS)
    require_labels("coco", pairing.pairs, images, labels, tail)
    table = train_id_table() if tail else raw_table()
    return PairedFiles("coco", root, split, class_lists()["coco"].classes, pairing.pairs, table, pairing.notes)


def _find_labels(root: Path, folder: str) -> tuple[Path, str]:
    """The folder of the label maps (the published one if there are none), and what follows the stem in their names."""
    for parent in LABEL_FOLDERS:
        names = files_below(root / parent / folder, {".png"})
        if names:
            converted = all(name.endswith(f"{TRAIN_IDS}.png") for name in names)
            return root / parent / folder, TRAIN_IDS if converted else ""
    return root / LABEL_FOLDERS[0] / folder, ""


SPEC = DatasetSpec(
    open_coco,
    splits=("train", "val", "train2017", "val2017"),
    source=(
        "train2017.zip and val2017.zip from https://cocodataset.org, "
        "stuffthingmaps_trainval2017.zip from https://github.com/nightrome/cocostuff"
    ),
    layout="images/{train2017,val2017}/*.jpg, stuffthingmaps_trainval2017/{train2017,val2017}/*.png",
    sizes={"train": (118287,), "val": (5000,)},
)
