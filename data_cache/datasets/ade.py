"""ADE20K: the 150 classes of the scene parsing benchmark."""

from pathlib import Path

from data_cache.class_list import open_vocabularies
from data_cache.datasets.base import DatasetSpec
from data_cache.datasets.paired_files import PairedFiles, label_table
from data_cache.datasets.pairing import find_pairs, require_labels

ARCHIVE = "ADEChallengeData2016"
FOLDERS = {"train": "training", "val": "validation"}
OTHER = 0


def open_ade(root: Path, split: str) -> PairedFiles:
    """Open `train` or `val`. In its label maps 0 is everything else.

    Raises UserError if there are no images, or images without a label map.
    """
    root = root / ARCHIVE if (root / ARCHIVE).is_dir() else root
    images, labels = (root / kind / FOLDERS[split] for kind in ("images", "annotations"))
    pairing = find_pairs(root, images, labels, {".jpg"})
    require_labels("ade150", pairing.pairs, images, labels)
    classes = open_vocabularies()["ade150"].classes
    table = label_table(range(1, len(classes) + 1), void=[OTHER])
    return PairedFiles("ade150", root, split, classes, pairing.pairs, table, pairing.notes)


SPEC = DatasetSpec(
    open_ade,
    splits=tuple(FOLDERS),
    source="the scene parsing benchmark's ADEChallengeData2016.zip, from http://sceneparsing.csail.mit.edu",
    layout="images/{training,validation}/*.jpg, annotations/{training,validation}/*.png",
    sizes={"train": (20210,), "val": (2000,)},
)
