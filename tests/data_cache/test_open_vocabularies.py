"""Datasets without a zero-shot split: their layouts, their names, and label maps of more than 254 classes."""

from dataclasses import replace

import numpy as np
import pytest
from dataset_contract import DatasetContract
from drawing import HEIGHT, WIDTH, ade_tree, coco_tree
from pascal_trees import STEMS, context_tree, draw_list, draw_matlab, voc_tree
from refusals import refused

from data_cache.class_list import class_lists, known_lists, open_vocabularies
from data_cache.datasets import DATASETS, open_dataset
from data_cache.datasets.base import void_of
from data_cache.errors import UsageError, UserError
from data_cache.splits import labelled_in_training, make_split
from data_cache.survey import absent_classes
from pipeline.config import PrecomputeConfig
from pipeline.plan import plan
from pipeline.teacher.prompts import Prompts
from trainer.metrics import ConfusionMatrix, metrics

COUNTS = {"ade150": 150, "context459": 459, "context59": 59, "voc20": 20, "coco171": 171}
TREES = {
    "ade150": ade_tree,
    "context459": lambda root: context_tree(root, converted=False),
    "context59": context_tree,
    "voc20": voc_tree,
    "coco171": coco_tree,
}


class TestADE150(DatasetContract):
    name, values = "ade150", {0, 149, 255}

    def draw(self, root):
        ade_tree(root)


class TestContext459(DatasetContract):
    name, values = "context459", {0, 1, 457, 458, 65535}

    def draw(self, root):
        context_tree(root, converted=False)


class TestContext59(DatasetContract):
    name, values = "context59", {0, 58, 255}

    def draw(self, root):
        context_tree(root)


class TestContext59AsPublished(DatasetContract):
    name, values = "context59", {0, 58, 255}

    def draw(self, root):
        context_tree(root, converted=False)


class TestVOC20(DatasetContract):
    name, values = "voc20", {0, 19, 255}

    def draw(self, root):
        voc_tree(root)


class TestCOCO171(DatasetContract):
    name, values = "coco171", {0, 10, 11, 170, 255}

    def draw(self, root):
        coco_tree(root)


@pytest.mark.parametrize("name", COUNTS)
def test_open_vocabularies_have_the_published_number_of_classes(name):
    classes = known_lists()[name].classes
    assert len(set(classes)) == len(classes) == COUNTS[name]
    assert all("," not in known and known == known.strip() for known in classes)
    assert set(open_vocabularies()[name].clean) <= set(classes)
    assert COUNTS.keys() == open_vocabularies().keys()


@pytest.mark.parametrize("name", COUNTS)
def test_open_vocabularies_need_unseen_names_for_a_split_of_their_own(name):
    classes = open_vocabularies()[name].classes
    refused(lambda: make_split(name, classes, None), "no published split", kind=UsageError)
    assert make_split(name, classes, classes[0]).unseen == classes[:1]


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("missing", ["images", "labels"])
def test_wrong_layout_error_shows_the_expected_tree(tmp_path, name, missing):
    TREES[name](tmp_path)
    images = set(tmp_path.rglob("*.jpg"))
    labels = {file for ending in ("*.png", "*.mat") for file in tmp_path.rglob(ending)}
    for file in images if missing == "images" else labels:
        file.unlink()
    refused(lambda: open_dataset(name, tmp_path, "train"), tmp_path, DATASETS[name].layout)


def test_ade_may_lie_in_the_folder_of_the_archive(tmp_path):
    ade_tree(tmp_path / "ADEChallengeData2016")
    dataset = open_dataset("ade150", tmp_path, "val")
    assert dataset.ids == [f"images/validation/ADE_val_{number:08}.jpg" for number in (1, 2)]
    assert dataset.notes == ("val has 2 images; the published list has 2,000",)


def test_ade_label_zero_is_void_and_one_the_first_class(tmp_path):
    ade_tree(tmp_path)
    dataset = open_dataset("ade150", tmp_path, "train")
    np.testing.assert_array_equal(dataset.label(0).flat[:3], [255, 0, 149])
    assert (dataset.classes[0], dataset.classes[149]) == ("wall", "flag")


def test_variants_are_searched_in_the_folder_of_their_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLIPTEACHER_DATA", raising=False)
    voc_tree(tmp_path / "data/voc")
    assert open_dataset("voc20", None, "train").ids == open_dataset("voc", None, "train").ids
    with pytest.raises(UserError, match=r"put it at: data/context, or at .CLIPTEACHER_DATA/context,"):
        open_dataset("context459", None, "val")


def test_the_ids_of_459_and_59_classes_have_the_same_names(tmp_path):
    context_tree(tmp_path, converted=False)
    all_classes, frequent = (open_dataset(name, tmp_path, "train") for name in ("context459", "context59"))
    label, few = all_classes.label(0), frequent.label(0)
    assert np.array_equal(few == 255, ~np.isin(label, [raw - 1 for raw in class_lists()["context"].raw_ids]))
    for row, column in np.argwhere(few != 255):
        assert all_classes.classes[label[row, column]] == frequent.classes[few[row, column]]


def test_class_255_of_459_is_a_class_and_not_void(tmp_path):
    context_tree(tmp_path, converted=False)
    draw_matlab(tmp_path / f"trainval/{min(STEMS)}.mat", [256, 0])
    label = open_dataset("context459", tmp_path, "train").label(0)
    assert (void_of(label), set(np.unique(label))) == (65535, {255, 65535})
    confusion = ConfusionMatrix(459)
    confusion.update(label, np.full(label.shape, 255))
    assert confusion.counts.sum() == confusion.counts[255, 255] == HEIGHT * WIDTH // 2
    assert metrics(confusion.counts, np.array([], int)).miou == 1


def test_classes_above_255_are_not_taken_for_the_white_of_a_mask():
    pixels = np.zeros(459, int)
    pixels[300] = 7
    warning = absent_classes(pixels, open_vocabularies()["context459"].classes, 1)
    assert warning.startswith("458 of 459 classes have no pixel")
    assert "255" not in warning


def test_context459_cannot_be_trained_on(tmp_path):
    context_tree(tmp_path, converted=False)
    config = PrecomputeConfig(dataset="context459", root=tmp_path, unseen="", clip="tiny", cache=tmp_path / "c.zarr")
    refused(lambda: plan(config), "459 classes", "evaluate", kind=UsageError)
    small = replace(config, dataset="context59")
    assert plan(small).images == 2


def test_names_are_cleaned_in_prompts_by_default():
    prompts = Prompts.default_for("context459")
    assert prompts.name == "zegclip15-clean"
    classes = open_vocabularies()["context459"].classes
    words = prompts.class_names("context459", classes)
    assert (classes[2], words[2]) == ("airconditioner", "air conditioner")
    assert Prompts.default_for("voc20").class_names("voc20", ("aeroplane", "sofa")) == ("airplane", "sofa")


@pytest.mark.parametrize(
    ("target", "seen", "unseen"),
    [
        (
            "ade150",
            {"windowpane", "blind", "stairway", "television", "earth", "minibike", "sofa", "desk"},
            {"road", "tree", "sconce", "bag"},
        ),
        (
            "context459",
            {"cellphone", "fridge", "ski", "windowblinds", "wall"},
            {"cow", "grass", "accordion", "unknown"},
        ),
        ("voc20", {"tvmonitor", "diningtable"}, {"cow"}),
    ],
)
def test_names_that_mean_the_same_count_as_trained_on_coco(target, seen, unseen):
    coco = class_lists()["coco"]
    classes = open_vocabularies()[target].classes
    known = labelled_in_training(classes, [name for name in coco.classes if name not in coco.unseen])
    labelled = {name for name, has_labels in zip(classes, known, strict=True) if has_labels}
    assert seen <= labelled
    assert not unseen & labelled
    assert {*seen, *unseen} <= {*classes}


def test_context459_needs_the_published_maps(tmp_path):
    context_tree(tmp_path)
    refused(lambda: open_dataset("context459", tmp_path, "train"), "label maps", ".mat")
    draw_list(tmp_path / "ImageSets/Main/train.txt")
    assert len(open_dataset("context59", tmp_path, "train")) == 2
