"""PASCAL-Context: the images of VOC 2010 with dense labels of 459 classes, or of the 59 most frequent ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data_cache.class_list import class_lists, open_vocabularies
from data_cache.datasets.base import VOID, DatasetSpec
from data_cache.datasets.paired_files import PairedFiles, label_table
from data_cache.datasets.pairing import pairs_of_list
from data_cache.datasets.voc import year_folder

PUBLISHED_CLASSES = 459
LISTS = ("ImageSets/SegmentationContext", "ImageSets/Main")


def index_table() -> UInt8[np.ndarray, "raw"]:
    """The table of mmsegmentation's maps: 0 for all other classes, then the 59 classes; 255 for void."""
    classes = class_lists()["context"].classes
    return label_table(range(1, len(classes) + 1), void=(0, VOID))


def raw_table() -> UInt8[np.ndarray, "raw"]:
    """The table of the published maps: 59 of the ids 1 to 459; the other 400 classes, and 0, are void."""
    used = class_lists()["context"].raw_ids
    return label_table(used, void=set(range(PUBLISHED_CLASSES + 1)) - set(used))


def open_context459(root: Path, split: str) -> PairedFiles:
    """Open `train` or `val` with all 459 classes, which only the published maps (trainval/*.mat) have; 0 is void.

    Raises UserError if the list or files that it names are missing.
    """
    root = year_folder(root, "VOC2010")
    pairs = pairs_of_list(root, _list(root, split), "JPEGImages/{}.jpg", ["trainval/{}.mat"])
    table = label_table(range(1, PUBLISHED_CLASSES + 1), void=[0])
    return PairedFiles("context459", root, split, open_vocabularies()["context459"].classes, pairs, table)


def open_context(root: Path, split: str) -> PairedFiles:
    """Open `train` or `val`.

    Label maps are mmsegmentation's (SegmentationClassContext/*.png), or else the published ones (trainval/*.mat).
    Lists are mmsegmentation's (SegmentationContext/), or else those of VOC 2010 (Main/).

    Raises UserError if the list or files that it names are missing.
    """
    root = year_folder(root, "VOC2010")
    converted = (root / "SegmentationClassContext").is_dir()
    labels = "SegmentationClassContext/{}.png" if converted else "trainval/{}.mat"
    pairs = pairs_of_list(root, _list(root, split), "JPEGImages/{}.jpg", [labels])
    table = index_table() if converted else raw_table()
    return PairedFiles("context", root, split, class_lists()["context"].classes, pairs, table)


def _list(root: Path, split: str) -> Path:
    lists = [root / folder / f"{split}.txt" for folder in LISTS]
    return next((file for file in lists if file.is_file()), lists[0])


SPEC = DatasetSpec(
    open_context,
    splits=("train", "val"),
    source=(
        "VOCtrainval_03-May-2010.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2010, trainval.tar.gz from "
        "https://cs.stanford.edu/~roozbeh/pascal-context"
    ),
    layout=(
        "JPEGImages/*.jpg, SegmentationClassContext/*.png (or the published trainval/*.mat), "
        "ImageSets/SegmentationContext/{train,val}.txt (or ImageSets/Main/{train,val}.txt)"
    ),
    sizes={"train": (4998, 4996), "val": (5105, 5104)},
)

SPEC_459 = replace(
    SPEC,
    open=open_context459,
    layout=(
        "JPEGImages/*.jpg, the published trainval/*.mat, "
        "ImageSets/SegmentationContext/{train,val}.txt (or ImageSets/Main/{train,val}.txt)"
    ),
    folder="context",
)
