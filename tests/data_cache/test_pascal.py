"""PASCAL VOC 2012 and PASCAL-Context in their published layouts and in mmsegmentation's."""

import numpy as np
import pytest
from dataset_contract import DatasetContract
from drawing import draw_image
from pascal_trees import STEMS, context_tree, draw_list, draw_matlab, draw_palette, voc_tree
from refusals import refused

from data_cache.class_list import class_lists
from data_cache.datasets import open_dataset
from data_cache.datasets.context import raw_table


class TestVOC(DatasetContract):
    name, values = "voc", {0, 19, 255}

    def draw(self, root):
        voc_tree(root)


class TestVOCWithoutTheAugmentedMaps(DatasetContract):
    name, values = "voc", {0, 19, 255}

    def draw(self, root):
        voc_tree(root, "SegmentationClass", "train")


class TestContextConverted(DatasetContract):
    name, values = "context", {0, 58, 255}

    def draw(self, root):
        context_tree(root)


class TestContextAsPublished(DatasetContract):
    name, values = "context", {0, 58, 255}

    def draw(self, root):
        context_tree(root, converted=False)


def test_only_listed_images_belong_to_a_split(tmp_path):
    voc_tree(tmp_path)
    assert open_dataset("voc", tmp_path, "train").ids == [f"JPEGImages/{stem}.jpg" for stem in sorted(STEMS)]


@pytest.mark.parametrize("split", ["train", "val"])
def test_voc_label_maps_take_precedence_over_sbd(tmp_path, split):
    own = min(STEMS)
    for stem in STEMS:
        draw_image(tmp_path / f"JPEGImages/{stem}.jpg")
        draw_palette(tmp_path / f"SegmentationClassAug/{stem}.png", [3])
    draw_palette(tmp_path / f"SegmentationClass/{own}.png", [7])
    draw_list(tmp_path / "ImageSets/Segmentation/trainaug.txt")
    draw_list(tmp_path / "ImageSets/Segmentation/train.txt", [own])
    draw_list(tmp_path / "ImageSets/Segmentation/val.txt", [own])
    dataset = open_dataset("voc", tmp_path, split)
    assert [set(np.unique(dataset.label(i))) for i in range(len(dataset))] == [{6}, {2}][: len(dataset)]
    assert len(dataset) == (2 if split == "train" else 1)


def test_voc_background_is_void(tmp_path):
    voc_tree(tmp_path)
    dataset = open_dataset("voc", tmp_path, "train")
    np.testing.assert_array_equal(dataset.label(0).flat[:4], [255, 0, 19, 255])
    assert dataset.classes[0] == "aeroplane"


@pytest.mark.parametrize(("name", "draw", "year"), [("voc", voc_tree, "VOC2012"), ("context", context_tree, "VOC2010")])
def test_root_may_be_the_folder_of_the_extracted_archive(tmp_path, name, draw, year):
    draw(tmp_path / "VOCdevkit" / year)
    for root in (tmp_path, tmp_path / "VOCdevkit"):
        assert len(open_dataset(name, root, "train")) == 2


def test_published_context_ids_map_to_the_59_class_names():
    # ids of some classes in the published list of 459 names
    known = {2: "aeroplane", 65: "cat", 98: "cow", 144: "fence", 258: "motorbike", 368: "sofa", 427: "tvmonitor"}
    table, classes = raw_table(), class_lists()["context"].classes
    assert {classes[table[raw]] for raw in known} == set(known.values())
    assert all(classes[table[raw]] == name for raw, name in known.items())
    used = table[:460][table[:460] != 255]
    assert sorted(used) == list(range(59))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: draw_matlab(file, [460]), ("label value 460", "0-459")),
        (lambda file: draw_matlab(file, [1], other=np.ones((6, 8))), ("LabelMap",)),
        (lambda file: file.write_bytes(b"MATLAB 5.0 MAT-file, cut short"), ("cannot read the label map",)),
    ],
)
def test_bad_matlab_label_maps_are_named(tmp_path, damage, words):
    context_tree(tmp_path, converted=False)
    file = tmp_path / f"trainval/{min(STEMS)}.mat"
    damage(file)
    dataset = open_dataset("context", tmp_path, "train")
    refused(lambda: dataset.load(0), file.name, *words)


@pytest.mark.parametrize(("name", "draw"), [("voc", voc_tree), ("context", context_tree)])
@pytest.mark.parametrize("missing", ["list", "image", "label", "everything"])
def test_wrong_layout_error_shows_the_expected_tree(tmp_path, name, draw, missing):
    draw(tmp_path)
    stem, lists = min(STEMS), list(tmp_path.glob("ImageSets/*/*.txt"))
    removed = {
        "list": lists,
        "image": [tmp_path / f"JPEGImages/{stem}.jpg"],
        "label": list(tmp_path.glob(f"Segmentation*/{stem}.png")),
        "everything": [file for file in tmp_path.rglob("*") if file.is_file()],
    }[missing]
    for file in removed:
        file.unlink()
    problem = {"list": "no list of images", "image": "1 of the 2 images", "label": "1 of the 2 label maps"}
    refused(lambda: open_dataset(name, tmp_path, "train"), problem.get(missing, "no list"), "JPEGImages/*.jpg, Segment")


def test_unpublished_list_length_is_reported(tmp_path):
    voc_tree(tmp_path)
    note = "train has 2 images; the published list has 10,582"
    assert open_dataset("voc", tmp_path, "train").notes == (note,)
    assert open_dataset("voc", tmp_path, "train", limit=1).notes == (note,)
    context_tree(tmp_path / "context")
    assert "4,998 or 4,996" in open_dataset("context", tmp_path / "context", "train").notes[0]
    draw_list(tmp_path / "ImageSets/Segmentation/val.txt", [f"{i:06}" for i in range(1449)])
    for i in range(1449):
        for file in (f"JPEGImages/{i:06}.jpg", f"SegmentationClassAug/{i:06}.png"):
            (tmp_path / file).touch()
    assert open_dataset("voc", tmp_path, "val").notes == ()


def test_precompute_prints_dataset_notes(clipteacher, tmp_path):
    voc_tree(tmp_path)
    clip = ("--clip", "tiny", "--image-size", 64, "--cache", tmp_path / "voc.zarr")
    result = clipteacher.good("precompute", "--dataset", "voc", "--root", tmp_path, *clip, "--json")
    assert "voc: train has 2 images; the published list has 10,582" in result.err
    assert result.json["done"] == 2
