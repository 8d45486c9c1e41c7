"""Decoding images and label maps, and the errors about damaged ones."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from drawing import (
    HEIGHT,
    WIDTH,
    coco_tree,
    draw_image,
    draw_label,
    gray_png,
    load_only_sample,
    one_image_tree,
    png,
    twelve_bit_tiff,
)
from PIL import Image, ImageFile, ImageOps
from PIL.PngImagePlugin import PngInfo
from refusals import refused

from data_cache.datasets import open_dataset


@pytest.fixture
def own(tmp_path):
    """A folder dataset of one image and one label map, both to be spoiled."""
    return one_image_tree(tmp_path)


# Label maps


def test_out_of_range_labels_are_reported_with_their_file(own):
    draw_label(own / "labels/a.png", [0, 1, 7])
    refused(lambda: load_only_sample(own), own / "labels/a.png", "label value 7", "allowed are 0-1, 255")


def test_unused_coco_raw_ids_are_rejected(tmp_path):
    coco_tree(tmp_path)
    file = tmp_path / "stuffthingmaps_trainval2017/val2017/000000000139.png"
    draw_label(file, [0, 11])
    refused(lambda: open_dataset("coco", tmp_path, "val").label(0), file, "label value 11", "0-10, 12-24", "255")


def test_palette_label_maps_are_read_by_index(own):
    indices = Image.fromarray(np.resize(np.array([0, 1], np.uint8), (HEIGHT, WIDTH)))
    indices.putpalette([200, 10, 10, 10, 200, 10] + [0] * 762)
    indices.save(own / "labels/a.png")
    assert Image.open(own / "labels/a.png").mode == "P"
    assert set(np.unique(load_only_sample(own)[1])) == {0, 1}


def test_16_bit_label_maps_are_read_if_their_values_fit(own):
    draw_label(own / "labels/a.png", [0, 1, 255], dtype=np.uint16)
    label = load_only_sample(own)[1]
    assert label.dtype == np.uint8
    assert set(np.unique(label)) == {0, 1, 255}
    draw_label(own / "labels/a.png", [0, 1, 256], dtype=np.uint16)
    refused(lambda: load_only_sample(own), own / "labels/a.png", "label value 256")


def test_rgb_label_maps_are_rejected(own):
    draw_image(own / "labels/a.png")
    refused(lambda: load_only_sample(own), own / "labels/a.png", "RGB", "index maps")


def test_1_bit_label_maps_decode_to_0_and_255(own):
    Image.fromarray(np.eye(HEIGHT, WIDTH, dtype=bool)).save(own / "labels/a.png")
    assert set(np.unique(load_only_sample(own)[1])) == {0, 255}


@pytest.mark.parametrize(("bits", "ids"), [(2, [0, 1, 2, 3]), (4, [0, 1, 9, 15])])
def test_2_and_4_bit_label_maps_keep_their_stored_samples(own, bits, ids):
    (own / "classes.txt").write_text("\n".join(f"class {i}" for i in range(200)))
    expected = np.resize(np.array(ids, np.uint8), (HEIGHT, WIDTH))
    (own / "labels/a.png").write_bytes(gray_png(expected, bits))
    assert Image.open(own / "labels/a.png").mode == "L"
    np.testing.assert_array_equal(load_only_sample(own)[1], expected)


def test_gray_palettes_that_contradict_their_indices_are_rejected(own):
    # a lossless optimizer writes the gray values 1, 0 and 255 like this: same values, other indices
    indices = Image.fromarray(np.resize(np.array([0, 1, 2], np.uint8), (HEIGHT, WIDTH)))
    indices.putpalette([1, 1, 1, 0, 0, 0, 255, 255, 255])
    indices.save(own / "labels/a.png")
    assert set(np.unique(Image.open(own / "labels/a.png").convert("L"))) == {0, 1, 255}
    words = "index 0 of its palette is the gray 1", "8-bit gray values"
    refused(lambda: load_only_sample(own), own / "labels/a.png", *words)


@pytest.mark.parametrize(
    "palette",
    [
        pytest.param([k for i in range(256) for k in (i, i, i)], id="gray values that are their own index"),
        pytest.param([9, 9, 9, 128, 128, 128, 128, 0, 0], id="gray values in a palette of colors, such as VOC's car"),
    ],
)
def test_unambiguous_palettes_are_read_by_index(own, palette):
    indices = Image.fromarray(np.resize(np.array([0, 1], np.uint8), (HEIGHT, WIDTH)))
    indices.putpalette(palette)
    indices.save(own / "labels/a.png")
    assert Image.open(own / "labels/a.png").mode == "P"
    np.testing.assert_array_equal(load_only_sample(own)[1], np.array(indices))


@pytest.mark.parametrize(("orientation", "turned"), [(3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1))])
def test_label_maps_are_rotated_by_their_exif_orientation(own, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    left_half = np.tile(np.arange(WIDTH) < WIDTH // 2, (HEIGHT, 1)).astype(np.uint8)
    Image.fromarray(left_half).save(own / "labels/a.png", exif=exif)
    Image.fromarray(np.stack([255 * left_half] * 3, axis=-1)).save(own / "images/a.png", exif=exif)
    image, label = load_only_sample(own)
    np.testing.assert_array_equal(label, turned(left_half))
    np.testing.assert_array_equal(image[..., 0], 255 * turned(left_half))


def test_jpeg_label_maps_are_rejected_under_any_file_name(own):
    Image.new("L", (WIDTH, HEIGHT)).save(own / "labels/a.png", "JPEG")
    refused(lambda: load_only_sample(own), own / "labels/a.png", "JPEG", "save label maps as PNG")


@pytest.mark.parametrize("place", ["images", "labels"])
def test_named_pipes_are_rejected_without_blocking(own, place):
    (own / place / "a.png").unlink()
    os.mkfifo(own / place / "a.png")
    refused(lambda: load_only_sample(own), own / place / "a.png", "is not a file")
    refused(lambda: open_dataset("folder", own, "train").digest(0), own / place / "a.png", "is not a file")


def test_size_mismatch_error_names_both_files_and_sizes(own):
    draw_label(own / "labels/a.png", [0], size=(5, 4))
    refused(lambda: load_only_sample(own), own / "images/a.png", "8 x 6", own / "labels/a.png", "5 x 4")


@pytest.mark.parametrize("chunks", ["none", "text", "exif"])
def test_grayscale_png_label_maps_match_pillow(own, chunks):
    pnginfo, exif = PngInfo(), Image.Exif()
    pnginfo.add_text("Comment", "by hand") if chunks == "text" else None
    exif[0x0112] = 3
    values = np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint8)
    file = own / "labels/a.png"
    Image.fromarray(values).save(file, pnginfo=pnginfo, **({"exif": exif} if chunks == "exif" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    np.testing.assert_array_equal(open_dataset("folder", own, "train").label(0), expected)


@pytest.mark.parametrize(("folder", "what"), [("labels", "label map"), ("images", "image")])
def test_a_flipped_bit_anywhere_in_the_pixels_of_a_png_is_rejected(own, folder, what):
    file = own / folder / "a.png"
    whole = file.read_bytes()
    for position in range(whole.index(b"IDAT") + 4, whole.index(b"IEND") - 4):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        refused(lambda: load_only_sample(own), f"cannot read the {what}", file, "checksum")


@pytest.mark.parametrize("damage", ["cut off", "no zlib stream", "unknown filter"])
def test_a_bad_stream_behind_valid_checksums_is_rejected(own, damage):
    values = np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint8)
    rows = b"".join(bytes([9 if damage == "unknown filter" else 0]) + row.tobytes() for row in values)
    stream = {"cut off": zlib.compress(rows)[:15], "no zlib stream": b"abcd" * 9}.get(damage, zlib.compress(rows))
    header = WIDTH.to_bytes(4) + HEIGHT.to_bytes(4) + bytes([8, 0, 0, 0, 0])
    chunks = [(b"IHDR", header), (b"IDAT", stream), (b"IEND", b"")]
    data = [len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4) for kind, body in chunks]
    (own / "labels/a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(data))
    refused(lambda: load_only_sample(own), "cannot read the label map", own / "labels/a.png")


def test_a_label_png_without_its_last_chunk_is_read_as_by_pillow(own):
    file = own / "labels/a.png"
    expected = np.asarray(Image.open(file))
    file.write_bytes(file.read_bytes()[:-12])
    np.testing.assert_array_equal(load_only_sample(own)[1], expected)


def test_damaged_label_maps_are_named(own):
    (own / "labels/a.png").write_bytes(b"not an image")
    refused(lambda: load_only_sample(own), "cannot read the label map", own / "labels/a.png")


# Images


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_images_of_every_mode_decode_to_rgb(own, mode):
    (own / "images/a.png").unlink()
    gray = Image.new("L", (WIDTH, HEIGHT), 255)
    picture = Image.new("I;16", gray.size, 65535) if mode == "I;16" else gray.convert(mode)
    picture.save(own / ("images/a.jpg" if mode == "CMYK" else "images/a.png"))
    image, _ = load_only_sample(own)
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.min() >= 250


def test_16_bit_grayscale_keeps_its_brightness(own):
    Image.new("I;16", (WIDTH, HEIGHT), 128 * 256).save(own / "images/a.png")
    assert (load_only_sample(own)[0] == 128).all()


def test_float_images_are_rejected(own):
    (own / "images/a.png").unlink()
    Image.fromarray(np.random.default_rng(0).random((HEIGHT, WIDTH), np.float32)).save(own / "images/a.tif")
    refused(lambda: load_only_sample(own), own / "images/a.tif", "floats", "8 or 16 bits")


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_unscaled_grayscale_in_16_bits_is_rejected(own, bits):
    grays = np.linspace(0, 2**bits - 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    Image.fromarray(grays).save(own / "images/a.png")
    refused(
        lambda: load_only_sample(own), own / "images/a.png", f"only {2**bits - 1} of 65535", "scale them to 16 bits"
    )


def test_unscaled_rgb_in_16_bits_is_rejected(own):
    (own / "images/a.png").write_bytes(png(np.full((HEIGHT, WIDTH * 3), 4095, ">u2").tobytes(), WIDTH, 16, 2))
    refused(lambda: load_only_sample(own), own / "images/a.png", "as if they had fewer bits")
    (own / "images/a.png").write_bytes(png(np.full((HEIGHT, WIDTH * 3), 0x8000, ">u2").tobytes(), WIDTH, 16, 2))
    assert (load_only_sample(own)[0] == 128).all()


def test_grayscale_beyond_16_bits_is_rejected(own):
    (own / "images/a.png").unlink()
    Image.fromarray(np.full((HEIGHT, WIDTH), 70000, np.int32)).save(own / "images/a.tif")
    refused(lambda: load_only_sample(own), own / "images/a.tif", "from 70000 to 70000")


def test_declared_12_bit_tiffs_keep_their_brightness(own):
    (own / "images/a.png").unlink()
    (own / "images/a.tif").write_bytes(twelve_bit_tiff(0x800))
    draw_label(own / "labels/a.png", [0], size=(2, 1))
    assert (load_only_sample(own)[0] == 128).all()


def test_exif_orientation_is_applied(own):
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


def smooth_image(height=37, width=53):
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quality": 40, "subsampling": 2},
        {"quality": 95, "subsampling": 0},
        {"progressive": True},
        {"optimize": True},
        {"keep_rgb": True},
        {"restart_marker_rows": 1},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
def test_jpeg_decoding_matches_pillow(own, options, mode):
    (own / "images/a.png").unlink()
    file = own / "images/a.jpg"
    smooth_image().convert(mode).save(file, **(options if mode == "RGB" else options | {"keep_rgb": False}))
    expected = np.array(Image.open(file).convert("RGB"))
    np.testing.assert_array_equal(open_dataset("folder", own, "train").image(0), expected)


@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 9])
@pytest.mark.parametrize("where", ["exif", "xmp", "both, apart"])
def test_orientation_matches_pillow(own, orientation, where):
    (own / "images/a.png").unlink()
    file, exif = own / "images/a.jpg", Image.Exif()
    exif[0x0112] = orientation if where == "exif" else 3
    xmp = f'<rdf:Description tiff:Orientation="{orientation}"/>'.encode()
    smooth_image().save(file, **({} if where == "xmp" else {"exif": exif}), **({} if where == "exif" else {"xmp": xmp}))
    with Image.open(file) as picture:
        expected = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    np.testing.assert_array_equal(open_dataset("folder", own, "train").image(0), expected)


def test_multi_picture_jpegs_decode_to_their_first_image(own):
    (own / "images/a.png").unlink()
    first, second = smooth_image(), smooth_image(20, 30)
    first.save(own / "images/a.jpg", "MPO", save_all=True, append_images=[second])
    assert Image.open(own / "images/a.jpg").format == "MPO"
    expected = np.array(Image.open(own / "images/a.jpg").convert("RGB"))
    np.testing.assert_array_equal(open_dataset("folder", own, "train").image(0), expected)


def test_sample_reads_each_file_once(own, monkeypatch):
    read, content = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read.append(self.name) or content(self))
    dataset = open_dataset("folder", own, "train")
    read.clear()
    image, label, digest, pixels = dataset.sample(0)
    assert read == ["a.png", "a.png"]
    np.testing.assert_array_equal(image, dataset.image(0))
    np.testing.assert_array_equal(label, dataset.label(0))
    assert digest == dataset.digest(0)
    np.testing.assert_array_equal(pixels, np.bincount(label.ravel(), minlength=256))


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".bmp", ".tif"])
@pytest.mark.parametrize("kept", [0, 1, 20, 300, -300])
def test_truncated_images_are_rejected(own, ending, kept):
    (own / "images/a.png").unlink()
    file = own / f"images/a{ending}"
    draw_image(file, size=(64, 48))
    file.write_bytes(file.read_bytes()[:kept])
    refused(lambda: load_only_sample(own), "cannot read the image", file)


def test_huge_images_are_rejected_before_decoding(own, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    refused(lambda: load_only_sample(own), own / "images/a.png", "decompression bomb")


def test_files_removed_after_opening_are_named(own):
    dataset = open_dataset("folder", own, "train")
    (own / "images/a.png").unlink()
    refused(lambda: dataset.image(0), own / "images/a.png", "No such file")
    refused(lambda: dataset.digest(0), own / "images/a.png", "No such file")


def test_pillow_safety_limits_are_unchanged():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    assert Image.MAX_IMAGE_PIXELS == 89478485
