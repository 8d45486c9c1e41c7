"""All kinds of bad images and label maps at once: each ends as ok or failed with a reason, and none affects another."""

import struct
import zlib

import numpy as np
import pytest
from command_line import TINY
from PIL import Image
from shapes import CLASSES, draw_shape_image

from data_cache.reader import Cache


def good(seed=0):
    return draw_shape_image(np.random.default_rng(seed))


def bomb(width=40000, height=40000):
    """A PNG whose header declares 1.6 gigapixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def saved(array, mode=None, **options):
    def save(file):
        picture = Image.fromarray(array)
        (picture.convert(mode) if mode else picture).save(file, **options)

    return save


def rotated(file):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(good()[0][:, :96]).save(file, exif=exif)


IMAGE, LABEL = good()
KINDS = {
    # file name: (how to write the image, label map or None, part of the failure reason or None for success)
    "plain.png": (saved(IMAGE), LABEL, None),
    "cmyk.jpg": (saved(IMAGE, "CMYK"), LABEL, None),
    "alpha.png": (saved(IMAGE, "RGBA"), LABEL, None),
    "palette.png": (saved(IMAGE, "P"), LABEL, None),
    "gray.png": (saved(IMAGE, "L"), LABEL, None),
    "sixteen.png": (saved(IMAGE[..., 0].astype(np.uint16) * 256), LABEL, None),
    "exif.jpg": (rotated, np.ascontiguousarray(LABEL[:96]), None),
    "one.png": (saved(IMAGE[:1, :1]), LABEL[:1, :1], None),
    "wide.png": (saved(np.tile(IMAGE[:4], (1, 40, 1))), np.tile(LABEL[:4], (1, 40)), None),
    "with spaces and ünïcödé 照片.png": (saved(IMAGE), LABEL, None),
    "unlabelled.png": (saved(IMAGE), None, None),
    "truncated.jpg": (lambda f: (saved(IMAGE)(f), f.write_bytes(f.read_bytes()[:900])), LABEL, "truncated"),
    "empty.jpg": (lambda f: f.write_bytes(b""), LABEL, "empty.jpg"),
    "text.png": (lambda f: f.write_text("not an image"), LABEL, "text.png"),
    "folder.png": (lambda f: f.mkdir(), LABEL, None),
    "bomb.png": (lambda f: f.write_bytes(bomb()), LABEL, "bomb.png"),
    "colors.png": (saved(IMAGE), IMAGE, "colors.png"),
    "values.png": (saved(IMAGE), np.full_like(LABEL, 77), "label value 77"),
    "size.png": (saved(IMAGE), LABEL[:50], "differ in size"),
    "broken-label.png": (saved(IMAGE), b"rubbish", "broken-label.png"),
}
LEFT_OUT = {"folder.png"}
"""Not a file, therefore not an image of the dataset."""


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "own"
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    for name, (write, label, _) in KINDS.items():
        write(root / "images" / name)
        path = (root / "labels" / name).with_suffix(".png")
        if name in LEFT_OUT or label is None:
            continue
        path.write_bytes(label) if isinstance(label, bytes) else Image.fromarray(label).save(path)
    return root


def test_bad_images_fail_with_a_reason_and_indices_stay_aligned(clipteacher, root, tmp_path):
    command = ("precompute", "--dataset", "folder", "--root", root, "--unseen", "disc", *TINY, "--shard", 4)
    result = clipteacher(*command, "--cache", tmp_path / "c.zarr", "--json")
    assert result.status == 1
    assert "images failed, more than --max-failures 0.01" in result.error
    assert "--retry-failed" in result.error
    expected = {f"images/{name}": reason for name, (_, _, reason) in KINDS.items() if name not in LEFT_OUT}
    found = dict(Cache(tmp_path / "c.zarr").statuses())
    assert found.keys() == expected.keys()
    for name, reason in expected.items():
        assert found[name] == "ok" if reason is None else reason in found[name], (name, found[name])
        assert "\n" not in found[name]
    # good images have the same features in a dataset without the bad ones
    alone = tmp_path / "alone"
    for kind in ("images", "labels"):
        (alone / kind).mkdir(parents=True)
    (alone / "classes.txt").write_text("\n".join(CLASSES))
    for name in (name for name, (_, _, reason) in KINDS.items() if reason is None and name not in LEFT_OUT):
        for path in (f"images/{name}", f"labels/{name.rsplit('.', 1)[0]}.png"):
            if (root / path).exists():
                (alone / path).write_bytes((root / path).read_bytes())
    clipteacher.good(*command[:4], alone, *command[5:], "--cache", tmp_path / "a.zarr")
    mixed, good_only = Cache(tmp_path / "c.zarr").load("default"), Cache(tmp_path / "a.zarr").load("default")
    for index, name in enumerate(good_only.ids):
        same = mixed.ids.index(name)
        assert mixed.digest[same] == good_only.digest[index]
        np.testing.assert_array_equal(mixed.box[same], good_only.box[index])
        np.testing.assert_allclose(mixed.cls[same].astype(float), good_only.cls[index].astype(float), atol=0.02)
    accepted = clipteacher.good(*command, "--cache", tmp_path / "c.zarr", "--max-failures", 0.5, "--json").json
    assert accepted["failed"] == sum(reason is not None for reason in expected.values())


def test_retry_failed_encodes_only_failed_images(clipteacher, root, tmp_path):
    command = ("precompute", "--dataset", "folder", "--root", root, "--unseen", "disc", *TINY, "--shard", 4)
    cache = ("--cache", tmp_path / "c.zarr", "--max-failures", 1, "--json")
    before = clipteacher.good(*command, *cache).json
    for name in ("truncated.jpg", "empty.jpg", "text.png", "bomb.png"):
        Image.fromarray(IMAGE).save(root / "images" / name)
    assert clipteacher.good(*command, *cache).json["encoded"] == 0
    after = clipteacher.good(*command, *cache, "--retry-failed").json
    assert after["encoded"] == before["failed"]
    assert before["failed"] - after["failed"] == 4
