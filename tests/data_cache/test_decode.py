"""What reading a picture or a label map promises, and what it says of damaged ones."""

import numpy as np
import pytest
from drawing import HEIGHT, WIDTH, coco_tree, draw_image, draw_label, own_tree, the_only_pair
from PIL import Image, ImageFile
from refusals import refused

from data_cache.datasets import open_dataset


@pytest.fixture
def own(tmp_path):
    """A folder dataset of one image and one label map, both to be spoiled."""
    return own_tree(tmp_path)


# Label maps


def test_label_value_outside_the_class_list_names_file_and_value(own):
    draw_label(own / "labels/a.png", [0, 1, 7])
    refused(lambda: the_only_pair(own), own / "labels/a.png", "label value 7", "allowed are 0-1, 255")


def test_coco_raw_ids_that_do_not_exist_are_refused(tmp_path):
    coco_tree(tmp_path)
    file = tmp_path / "stuffthingmaps_trainval2017/val2017/000000000139.png"
    draw_label(file, [0, 11])
    refused(lambda: open_dataset("coco", tmp_path, "val").label(0), file, "label value 11", "0-10, 12-24", "255")


def test_palette_label_maps_are_read_by_index_not_by_colour(own):
    indices = Image.fromarray(np.resize(np.array([0, 1], np.uint8), (HEIGHT, WIDTH)))
    indices.putpalette([200, 10, 10, 10, 200, 10] + [0] * 762)
    indices.save(own / "labels/a.png")
    assert Image.open(own / "labels/a.png").mode == "P"
    assert set(np.unique(the_only_pair(own)[1])) == {0, 1}


def test_16_bit_label_maps_are_read_if_their_values_fit(own):
    draw_label(own / "labels/a.png", [0, 1, 255], dtype=np.uint16)
    label = the_only_pair(own)[1]
    assert label.dtype == np.uint8
    assert set(np.unique(label)) == {0, 1, 255}
    draw_label(own / "labels/a.png", [0, 1, 256], dtype=np.uint16)
    refused(lambda: the_only_pair(own), own / "labels/a.png", "label value 256")


def test_colour_label_maps_are_refused(own):
    draw_image(own / "labels/a.png")
    refused(lambda: the_only_pair(own), own / "labels/a.png", "RGB", "index maps")


def test_one_bit_label_maps_are_0_and_255(own):
    Image.fromarray(np.eye(HEIGHT, WIDTH, dtype=bool)).save(own / "labels/a.png")
    assert set(np.unique(the_only_pair(own)[1])) == {0, 255}


def test_label_of_another_size_names_both_files_and_both_sizes(own):
    draw_label(own / "labels/a.png", [0], size=(5, 4))
    refused(lambda: the_only_pair(own), own / "images/a.png", "8 x 6", own / "labels/a.png", "5 x 4")


def test_damaged_label_map_is_named(own):
    (own / "labels/a.png").write_bytes(b"not a picture")
    refused(lambda: the_only_pair(own), "cannot read the label map", own / "labels/a.png")


# Images


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_pictures_of_every_mode_become_rgb(own, mode):
    (own / "images/a.png").unlink()
    grey = Image.new("L", (WIDTH, HEIGHT), 255)
    picture = Image.new("I;16", grey.size, 65535) if mode == "I;16" else grey.convert(mode)
    picture.save(own / ("images/a.jpg" if mode == "CMYK" else "images/a.png"))
    image, _ = the_only_pair(own)
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.min() >= 250


def test_16_bit_greys_keep_their_brightness(own):
    Image.new("I;16", (WIDTH, HEIGHT), 128 * 256).save(own / "images/a.png")
    assert (the_only_pair(own)[0] == 128).all()


def test_exif_orientation_turns_the_picture_upright(own):
    (own / "images/a.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    left_half_white = np.zeros((32, 64, 3), np.uint8)
    left_half_white[:, :32] = 255
    Image.fromarray(left_half_white).save(own / "images/a.jpg", exif=exif)
    image = open_dataset("folder", own, "train").image(0)
    assert image.shape == (64, 32, 3)
    assert image[:28].min() > 200
    assert image[36:].max() < 50


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".bmp", ".tif"])
@pytest.mark.parametrize("kept", [0, 1, 20, 300, -300])
def test_truncated_pictures_are_named_and_never_half_read(own, ending, kept):
    (own / "images/a.png").unlink()
    file = own / f"images/a{ending}"
    draw_image(file, size=(64, 48))
    file.write_bytes(file.read_bytes()[:kept])
    refused(lambda: the_only_pair(own), "cannot read the image", file)


def test_huge_pictures_are_refused_before_they_are_decoded(own, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    refused(lambda: the_only_pair(own), own / "images/a.png", "decompression bomb")


def test_a_file_removed_later_is_named(own):
    dataset = open_dataset("folder", own, "train")
    (own / "images/a.png").unlink()
    refused(lambda: dataset.image(0), own / "images/a.png", "No such file")
    refused(lambda: dataset.digest(0), own / "images/a.png", "No such file")


def test_pillow_safety_limits_stay_as_they_are():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    assert Image.MAX_IMAGE_PIXELS == 89478485
