"""Annotations of label tools, read and drawn into label maps."""

import base64
import json
from contextlib import nullcontext
from io import BytesIO

import numpy as np
import pytest
from drawing import draw_image, draw_label
from PIL import Image
from pycocotools import mask as coco_mask
from refusals import refused

from data_cache.annotations.coco_json import parse_counts
from data_cache.annotations.colors import read_color_table
from data_cache.annotations.convert import convert
from data_cache.annotations.export import open_annotations
from data_cache.annotations.regions import decode_runs, fill
from data_cache.datasets import open_dataset
from data_cache.errors import UsageError

HEIGHT, WIDTH = 30, 40
PALETTE = np.stack([np.arange(256), np.zeros(256), np.full(256, 9)], axis=1).astype(np.uint8)
SQUARE = [10, 5, 20, 5, 20, 15, 10, 15]
"""The corners of the pixels with x from 10 to 19 and y from 5 to 14."""


def points(flat):
    return np.reshape(flat, (-1, 2)).tolist()


def pixels(left, top, right, bottom):
    covered = np.zeros((HEIGHT, WIDTH), bool)
    covered[top:bottom, left:right] = True
    return covered


INSIDE = pixels(10, 5, 20, 15)


def drawn(path, colors=None, height=HEIGHT, width=WIDTH):
    """The classes of an export, and the label map and problems of its first image."""
    annotations = open_annotations(path, colors)
    ids = {name: value for value, name in enumerate(annotations.classes)}
    return annotations.classes, *annotations.images[0].draw(height, width, ids)


def labelme(folder, *shapes, name="a", **more):
    content = {"imagePath": f"{name}.jpg", "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": list(shapes), **more}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def shape(label, flat, kind="polygon", **more):
    return {"label": label, "points": points(flat), "shape_type": kind, **more}


def coco(path, *objects, categories=("sky", "car"), **more):
    annotations = [{"id": i, "image_id": 7, "iscrowd": 0, **one} for i, one in enumerate(objects)]
    images = [{"id": 7, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}]
    named = [{"id": 3 * i + 2, "name": name} for i, name in reversed(list(enumerate(categories)))]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": named, **more}))
    return path


def cvat(path, shapes, labels=("sky", "car"), head=""):
    named = "".join(f"<label><name>{name}</name></label>" for name in labels)
    path.write_text(
        f'<?xml version="1.0"?><annotations>{head}<meta><job><labels>{named}</labels></job></meta>'
        f'<image id="0" name="a.jpg" width="{WIDTH}" height="{HEIGHT}">{shapes}</image></annotations>'
    )
    return path


# Drawing


def test_a_polygon_covers_the_pixels_whose_centers_are_inside():
    patch = fill(np.array(points(SQUARE), float), HEIGHT, WIDTH)
    assert (patch.left, patch.top, patch.mask.shape, patch.mask.all()) == (10, 5, (10, 10), True)
    assert not fill(np.array(points(SQUARE)) + 100.0, HEIGHT, WIDTH).mask.size
    assert fill(np.array(points(SQUARE)) - 15.0, HEIGHT, WIDTH).mask.sum() == 0
    half = fill(np.array([(0, 0), (WIDTH, 0), (0, HEIGHT)], float), HEIGHT, WIDTH)
    assert half.mask.sum() == pytest.approx(HEIGHT * WIDTH / 2, rel=0.01)


def test_polygons_and_run_lengths_agree_with_pycocotools():
    rng, overlaps = np.random.default_rng(0), []
    for _ in range(100):
        height, width, corners = *rng.integers(20, 200, 2).tolist(), rng.integers(3, 12)
        angle, radius = np.sort(rng.uniform(0, 2 * np.pi, corners)), rng.uniform(5, 60, (corners, 1))
        polygon = rng.uniform(0.2, 0.8, 2) * (width, height) + radius * np.stack([np.cos(angle), np.sin(angle)], 1)
        polygon = polygon.clip(0, (width, height))
        theirs = coco_mask.decode(coco_mask.frPyObjects([polygon.ravel().tolist()], height, width))[..., 0] > 0
        ours = np.zeros_like(theirs)
        left, top, mask = fill(polygon, height, width)
        ours[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
        if theirs.sum() > 50:
            overlaps.append((ours & theirs).sum() / (ours | theirs).sum())
        compressed = coco_mask.encode(np.asfortranarray(theirs.astype(np.uint8)))["counts"].decode()
        assert (decode_runs(parse_counts(compressed), height, width, by_column=True) == theirs).all()
    assert len(overlaps) > 50
    assert np.mean(overlaps) > 0.98


def test_regions_that_cannot_be_drawn_are_named_and_the_others_drawn(tmp_path):
    folder = labelme(
        tmp_path,
        shape("car", SQUARE),
        shape("car", np.add(SQUARE, 100)),
        shape("car", [1, 1, 2, 2]),
        shape("car", [0, 0, float("nan"), 1, 1, 1]),
        shape("lane", [0, 0, 9, 9], "line"),
        shape("car", [3, 3], "hologram"),
    )
    classes, label, problems = drawn(folder)
    assert classes == ("car",)
    np.testing.assert_array_equal(label == 0, INSIDE)
    assert problems == (
        "a shape of 'lane' is skipped: a line has no area",
        "a shape of 'car' is skipped: a hologram has no area",
        "a region of 'car' is skipped: it covers no pixel of the image",
        "a region of 'car' is skipped: a polygon of 2 points has no area",
        "a region of 'car' is skipped: its coordinates are not finite",
    )


# labelme


def test_labelme_shapes_are_drawn_in_the_order_of_the_file(tmp_path):
    covered = shape("__ignore__", [12, 7, 18, 13], "rectangle")
    classes, label, problems = drawn(labelme(tmp_path, shape("tree", SQUARE), shape("bird", SQUARE), covered))
    assert (classes, problems) == (("bird", "tree"), ())
    ignored = pixels(12, 7, 18, 13)
    assert (label[INSIDE & ~ignored] == 0).all()
    assert (label[ignored | ~INSIDE] == 255).all()


def test_labelme_circles_and_masks_are_drawn(tmp_path):
    stored = BytesIO()
    Image.fromarray(np.full((4, 6), 255, np.uint8)).convert("1").save(stored, "PNG")
    mask = shape("car", [30, 20, 35, 23], "mask", mask=base64.b64encode(stored.getvalue()).decode())
    broken = shape("car", [0, 0, 1, 1], "mask", mask="AAAA")
    _, label, problems = drawn(labelme(tmp_path, shape("sky", [15, 10, 15, 15], "circle"), mask, broken))
    assert (label == 1).sum() == pytest.approx(np.pi * 25, rel=0.05)
    np.testing.assert_array_equal(label == 0, pixels(30, 20, 36, 24))
    assert problems[0].startswith("a region of 'car' is skipped: its mask is no PNG image")


# COCO


def test_coco_polygons_and_run_lengths_become_label_maps(tmp_path):
    column_major = np.zeros((HEIGHT, WIDTH), np.uint8)
    column_major[2:4, 30:33] = 1
    compressed = coco_mask.encode(np.asfortranarray(column_major))["counts"].decode()
    runs = np.diff(np.flatnonzero(np.diff(np.r_[2, column_major.T.ravel(), 2])))
    for counts in (compressed, runs.tolist()):
        rle = {"size": [HEIGHT, WIDTH], "counts": counts}
        first = {"category_id": 5, "segmentation": [SQUARE, [0, 0, 3, 0, 3, 2, 0, 2]]}
        file = coco(tmp_path / "a.json", first, {"category_id": 2, "segmentation": rle})
        classes, label, problems = drawn(file)
        assert (classes, problems) == (("sky", "car"), ())
        np.testing.assert_array_equal(label == 1, INSIDE | pixels(0, 0, 3, 2))
        np.testing.assert_array_equal(label == 0, column_major == 1)


def test_coco_draws_crowds_first_and_small_objects_last(tmp_path):
    whole = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    small, large = {"category_id": 5, "segmentation": [SQUARE]}, {"category_id": 8, "segmentation": whole}
    crowd = {"category_id": 2, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}, "iscrowd": 1}
    for objects in ((small, large, crowd), (crowd, large, small)):
        _, label, _ = drawn(coco(tmp_path / "a.json", *objects, categories=("people", "car", "road")))
        np.testing.assert_array_equal(label, np.where(INSIDE, 1, 2))


def test_coco_boxes_without_outline_are_named(tmp_path):
    objects = (
        {"category_id": 2, "segmentation": [], "bbox": [1, 2, 3, 4]},
        {"category_id": 2, "segmentation": [SQUARE]},
    )
    _, label, problems = drawn(coco(tmp_path / "a.json", *objects))
    assert (label == 0).sum() == 100
    assert problems == ("an object of 'sky' is skipped: it has a box, but no outline",)


@pytest.mark.parametrize("counts", ["~~", "P", [5], [-1, 1201], [0, HEIGHT * WIDTH + 1], "0" * 60])
def test_damaged_run_lengths_are_named(tmp_path, counts):
    rle = {"size": [HEIGHT, WIDTH], "counts": counts}
    file = coco(tmp_path / "a.json", {"category_id": 2, "segmentation": rle})
    _, label, problems = drawn(file)
    assert (label == 255).all()
    assert "run-length encoding" in problems[0]


# CVAT


def test_cvat_shapes_are_drawn_by_z_order(tmp_path):
    file = cvat(
        tmp_path / "annotations.xml",
        '<polygon label="car" z_order="1" points="10,5;20,5;20,15;10,15"/>'
        '<box label="sky" z_order="0" xtl="0" ytl="0" xbr="40" ybr="30"/>'
        '<mask label="tree" z_order="2" rle="1, 2, 3" left="30" top="20" width="3" height="2"/>'
        '<polyline label="car" z_order="0" points="1,1;9,9"/>',
        ("sky", "car", "tree"),
    )
    classes, label, problems = drawn(file)
    assert classes == ("sky", "car", "tree")
    expected = np.where(INSIDE, 1, 0)
    expected[20, 31:33] = 2
    np.testing.assert_array_equal(label, expected)
    assert problems == ("a shape of 'car' is skipped: a polyline has no area",)


def test_cvat_ellipses_and_rotated_boxes_are_drawn(tmp_path):
    box = '<box label="car" xtl="10" ytl="14" xbr="30" ybr="16" rotation="90.0" z_order="0"/>'
    ellipse = '<ellipse label="sky" cx="8" cy="20" rx="6" ry="3" z_order="0"/>'
    _, label, problems = drawn(cvat(tmp_path / "a.xml", box + ellipse))
    assert problems == ()
    np.testing.assert_array_equal(label == 1, pixels(19, 5, 21, 25))
    assert (label == 0).sum() == pytest.approx(np.pi * 18, rel=0.06)


# Color-coded


@pytest.mark.parametrize(
    "text",
    [
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\ntraffic light:0,255,0::\n",
        "name,r,g,b\nroad,128,64,128\ntraffic light, 0, 255, 0\nvoid,0,0,0\n",
        "0 0 0 void\n128 64 128\troad\n0 255 0 traffic light\n",
    ],
    ids=["CVAT", "CSV", "CamVid"],
)
def test_color_coded_labels_are_translated(tmp_path, text):
    table = tmp_path / "export/labelmap.txt"
    (tmp_path / "export/SegmentationClass").mkdir(parents=True)
    table.write_text(text)
    colors = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colors[INSIDE] = (128, 64, 128)
    colors[0] = (0, 255, 0)
    for picture in (Image.fromarray(colors), Image.fromarray(colors).quantize(8)):
        picture.save(tmp_path / "export/SegmentationClass/a.png")
        for options in ((tmp_path / "export",), (tmp_path / "export/SegmentationClass", table)):
            classes, label, problems = drawn(*options)
            assert (classes, problems) == (("road", "traffic light"), ())
            np.testing.assert_array_equal(label == 0, INSIDE)
            assert (label[0] == 1).all()
            assert (label == 255).sum() == HEIGHT * WIDTH - 100 - WIDTH


def test_unknown_colors_and_other_sizes_are_refused(tmp_path):
    table = tmp_path / "labelmap.txt"
    table.write_text("road:128,64,128::\n")
    Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 3)).save(tmp_path / "a.png")
    refused(lambda: drawn(tmp_path), "the color 1,2,3 (1200 pixels)", tmp_path / "a.png")
    Image.new("RGB", (WIDTH, HEIGHT), (128, 64, 128)).save(tmp_path / "a.png")
    refused(lambda: drawn(tmp_path, height=WIDTH, width=HEIGHT), "30 x 40", "40 x 30")


@pytest.mark.parametrize("text", ["", "road\n", "road:1,2\n", "road:1,2,300\n", "a:1,2,3\nb:1,2,3\n"])
def test_bad_color_tables_are_refused(tmp_path, text):
    (tmp_path / "colors.txt").write_text(text)
    refused(lambda: read_color_table(tmp_path / "colors.txt"), tmp_path / "colors.txt")


# Formats


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.zip", "", ["is an archive; unpack it"]),
        ("a.json", "{", ["cannot be read as JSON"]),
        ("a.json", "[1]", ["neither a COCO nor a labelme file"]),
        (
            "a.json",
            '{"images": [], "annotations": [{"category_id": 1}], "categories": []}',
            ["is malformed (no 'image_id')", "is malformed"],
        ),
        ("a.json", '{"shapes": [{"points": []}]}', ["is malformed (no 'label')"]),
        ("a.json", '{"images": 3, "annotations": [], "categories": []}', ["is malformed"]),
        ("a.json", '{"images": [], "annotations": [{"segments_info": []}], "categories": []}', ["panoptic format"]),
        ("a.xml", "<a>", ["is not valid XML"]),
        ("a.xml", "<a/>", ["is not an XML file of CVAT"]),
        ("a.xml", "<annotations><track/></annotations>", ["CVAT for video"]),
        ("a.xml", "<annotations><image name='a' width='x' height='1'/></annotations>", ["is malformed"]),
        ("missing.json", None, ["no such file"]),
        ("missing.xml", None, ["No such file"]),
    ],
)
def test_files_of_other_formats_are_refused(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    refused(lambda: open_annotations(tmp_path / name, None), tmp_path / name, words[-1])


def test_folders_without_annotations_are_refused(tmp_path):
    refused(lambda: open_annotations(tmp_path, None), "no annotations of labelme, COCO or CVAT", "--colors")
    coco(tmp_path / "instances_train.json")
    cvat(tmp_path / "annotations.xml", "")
    refused(lambda: open_annotations(tmp_path, None), "has 2 files of annotations", "name one of them")
    file = tmp_path / "instances_train.json"
    refused(lambda: open_annotations(file, tmp_path / "colors.txt"), "--colors", kind=UsageError)


# Conversion


def bar(*_):
    return nullcontext(lambda _: None)


def converted(path, root, overwrite=False, colors=None):
    return convert(open_annotations(path, colors), root, overwrite, lambda _: PALETTE, bar)


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "own"
    for name in ("train/a.jpg", "train/b.jpg", "val/c.jpg"):
        draw_image(root / "images" / name, (WIDTH, HEIGHT))
    return root


def test_converted_folders_open_as_a_dataset(tmp_path, photos):
    export = labelme(tmp_path / "export", shape("car", SQUARE), shape("sky", np.add(SQUARE, 10)))
    labelme(tmp_path / "export", name="b")
    assert converted(export, photos).written == 1
    dataset = open_dataset("folder", photos, "train")
    assert dataset.classes == ("car", "sky")
    assert [dataset.has_label(i) for i in range(2)] == [True, False]
    np.testing.assert_array_equal(dataset.label(0) == 0, INSIDE & ~pixels(20, 15, 30, 25))
    with Image.open(photos / "labels/train/a.png") as picture:
        assert picture.mode == "P"
        assert picture.getpalette()[3 * 255 :] == [255, 0, 9]


@pytest.mark.parametrize(
    "path", ["a.jpg", "train/a.jpg", "images/train/a.png", "../images/train/a.jpg", "own\\\\images\\\\train\\\\a.jpg"]
)
def test_images_are_found_by_any_part_of_their_path(tmp_path, photos, path):
    export = labelme(tmp_path / "export", shape("car", SQUARE), imagePath=path)
    assert converted(export, photos).written == 1
    assert (photos / "labels/train/a.png").is_file()


def test_images_that_match_none_or_several_are_named(tmp_path, photos):
    draw_image(photos / "images/val/a.jpg", (WIDTH, HEIGHT))
    export = labelme(tmp_path / "export", shape("car", SQUARE), name="c")
    labelme(export, shape("car", SQUARE), name="a")
    labelme(export, shape("car", SQUARE), name="lost")
    labelme(export, shape("car", SQUARE), name="d", imagePath="test/c.jpg")
    result = converted(export, photos)
    assert result.written == 1
    assert result.problems == {
        "a.jpg": ("skipped: images/train/a.jpg and images/val/a.jpg both have this name",),
        "lost.jpg": (f"skipped: is not in {photos / 'images'}",),
        "test/c.jpg": (f"skipped: is not in {photos / 'images'}",),
    }
    (export / "a.json").unlink()
    (export / "c.json").unlink()
    refused(lambda: converted(export, photos), "no image of the annotations", "test/c.jpg")


def test_images_of_another_size_are_named(tmp_path, photos):
    draw_image(photos / "images/train/a.jpg", (HEIGHT, WIDTH))
    export = labelme(tmp_path / "export", shape("car", SQUARE))
    (problem,) = converted(export, photos).problems["a.jpg"]
    assert problem.startswith("skipped: the image is 30 x 40, but 40 x 30 in the annotations, as if its EXIF")


def test_a_rerun_changes_nothing_and_new_annotations_are_added(tmp_path, photos):
    export = labelme(tmp_path / "export", shape("car", SQUARE))
    converted(export, photos)
    labelme(export, shape("car", SQUARE), name="c")
    result = converted(export, photos)
    assert (result.written, result.unchanged, result.classes, result.problems) == (1, 1, 0, {})


def test_differing_labels_are_replaced_only_with_overwrite(tmp_path, photos):
    export = labelme(tmp_path / "export", shape("car", SQUARE))
    converted(export, photos)
    before = (photos / "labels/train/a.png").read_bytes()
    labelme(export, shape("car", np.add(SQUARE, 3)))
    (problem,) = converted(export, photos).problems["a.jpg"]
    assert "exists and differs; pass --overwrite" in problem
    assert (photos / "labels/train/a.png").read_bytes() == before
    assert converted(export, photos, overwrite=True).written == 1
    assert (photos / "labels/train/a.png").read_bytes() != before


def test_existing_classes_keep_their_numbers(tmp_path, photos):
    (photos / "classes.txt").write_text("tree\ncar\n")
    export = labelme(tmp_path / "export", shape("car", SQUARE))
    assert converted(export, photos).classes == 0
    assert (photos / "classes.txt").read_text() == "tree\ncar\n"
    assert open_dataset("folder", photos, "train").label(0)[10, 15] == 1
    labelme(export, shape("Car", SQUARE), name="b")
    refused(lambda: converted(export, photos), "has no class 'Car'", "did you mean 'car'?", "--overwrite")


def test_label_maps_without_classes_are_never_mixed_with_converted_ones(tmp_path, photos):
    draw_label(photos / "labels/train/a.png", [0], (WIDTH, HEIGHT))
    export = labelme(tmp_path / "export", shape("car", SQUARE))
    refused(lambda: converted(export, photos), "no classes.txt that names their values", "--overwrite")
    assert not (photos / "classes.txt").exists()
    assert converted(export, photos, overwrite=True).written == 1
