"""PASCAL VOC 2012 with SBD's additional label maps: 20 classes; background is void."""

from pathlib import Path

from data_cache.class_list import class_lists
from data_cache.datasets.base import VOID, DatasetSpec
from data_cache.datasets.paired_files import PairedFiles, label_table
from data_cache.datasets.pairing import pairs_of_list

BACKGROUND = 0
LISTS, LABELS = "ImageSets/Segmentation", ("SegmentationClass", "SegmentationClassAug")


def open_voc(root: Path, split: str) -> PairedFiles:
    """Open `train`, which is trainaug.txt (train.txt if that is missing), or `val`.

    VOC's own label maps (SegmentationClass/) take precedence over those made from SBD (SegmentationClassAug/), which
    label some of VOC's images differently.

    Raises UserError if the list or files that it names are missing.
    """
    root = year_folder(root, "VOC2012")
    augmented = root / LISTS / "trainaug.txt"
    names = augmented if split == "train" and augmented.is_file() else root / LISTS / f"{split}.txt"
    pairs = pairs_of_list(root, names, "JPEGImages/{}.jpg", [f"{folder}/{{}}.png" for folder in LABELS])
    classes = class_lists()["voc"].classes
    table = label_table(range(1, len(classes) + 1), void=(BACKGROUND, VOID))
    return PairedFiles("voc", root, split, classes, pairs, table)


def year_folder(root: Path, year: str) -> Path:
    """The folder of a year's data: `root`, or where the published archive puts it below `root`."""
    candidates = (root, root / year, root / "VOCdevkit" / year)
    return next((folder for folder in candidates if (folder / "JPEGImages").is_dir()), root)


SPEC = DatasetSpec(
    open_voc,
    splits=("train", "val"),
    source=(
        "VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012, SegmentationClassAug and "
        "trainaug.txt made from SBD, http://home.bharathh.info/pubs/codes/SBD"
    ),
    layout=(
        "JPEGImages/*.jpg, SegmentationClass/*.png, SegmentationClassAug/*.png, "
        "ImageSets/Segmentation/{trainaug,train,val}.txt"
    ),
    sizes={"train": (10582,), "val": (1449,)},
)
