"""COCO-Stuff 164k: 171 things and stuff on the images of COCO 2017."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data_cache.datasets.base import PairedFiles, Recipe, label_table
from data_cache.datasets.pairing import demand_labels, files_below, find_pairs
from data_cache.errors import UsageError
from data_cache.splits import vocabularies

YEAR = "2017"
SPLITS = ("train", "val", "train2017", "val2017")
LABEL_FOLDERS = ("stuffthingmaps_trainval2017", "annotations")
TRAIN_IDS = "_labelTrainIds"
RAW_VALUES = 182


def raw_table() -> UInt8[np.ndarray, "256"]:
    """Return the table of the published maps: raw ids 0..181, of which 11 are unused, and 255 for void."""
    vocabulary = vocabularies()["coco"]
    used = [raw for raw in range(RAW_VALUES) if raw not in vocabulary.missing_raw_ids]
    return label_table(used)


def train_id_table() -> UInt8[np.ndarray, "256"]:
    """Return the table of mmsegmentation's converted maps: class ids 0..170 and 255 for void."""
    return label_table(range(len(vocabularies()["coco"].classes)))


def open_coco(root: Path, split: str) -> PairedFiles:
    """Open `train` or `val`. Their folder names, `train2017` and `val2017`, are taken for the same splits.

    Label maps are read as published (raw ids) or as mmsegmentation converts them (`*_labelTrainIds.png`),
    from `stuffthingmaps_trainval2017/` or else from mmsegmentation's `annotations/`. Where both kinds are
    there, the published ones are read: a conversion may have been interrupted. One split is never read from
    a mixture.

    Raises:
        UsageError: There is no such split.
        UserError: There are no images, or images without a label map.

    """
    if split not in SPLITS:
        raise UsageError(f"coco has no split '{split}': choose one of {', '.join(SPLITS)}")
    split = split.removesuffix(YEAR)
    images = root / "images" / f"{split}{YEAR}"
    labels, tail = _find_labels(root, f"{split}{YEAR}")
    pairs = find_pairs(root, images, labels, {".jpg"}, tail)
    demand_labels("coco", pairs, images, labels, tail)
    table = train_id_table() if tail else raw_table()
    return PairedFiles("coco", root, split, vocabularies()["coco"].classes, pairs, table)


def _find_labels(root: Path, folder: str) -> tuple[Path, str]:
    """Return the folder of the label maps, the published one if there are none, and the tail of the names."""
    for parent in LABEL_FOLDERS:
        names = files_below(root / parent / folder, {".png"})
        if names:
            converted = all(name.endswith(f"{TRAIN_IDS}.png") for name in names)
            return root / parent / folder, TRAIN_IDS if converted else ""
    return root / LABEL_FOLDERS[0] / folder, ""


RECIPE = Recipe(
    open_coco,
    published=(
        "train2017.zip and val2017.zip from https://cocodataset.org, "
        "stuffthingmaps_trainval2017.zip from https://github.com/nightrome/cocostuff"
    ),
    tree="images/{train2017,val2017}/*.jpg, stuffthingmaps_trainval2017/{train2017,val2017}/*.png",
    sizes={"train": (118287,), "val": (5000,)},
)
