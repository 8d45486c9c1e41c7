"""Draws small dataset trees in the layouts of the supported datasets."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from data_cache.datasets import open_dataset

HEIGHT, WIDTH = 6, 8


def draw_image(path: Path, size=(WIDTH, HEIGHT), **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path))).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)


def draw_label(path: Path, values, size=(WIDTH, HEIGHT), dtype=np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, dtype=dtype), (size[1], size[0]))).save(path)


def coco_tree(root: Path) -> None:
    for split, stems in {"train2017": ["000000000009", "000000000025"], "val2017": ["000000000139"]}.items():
        for stem in stems:
            draw_image(root / f"images/{split}/{stem}.jpg")
            draw_label(root / f"stuffthingmaps_trainval2017/{split}/{stem}.png", [0, 10, 12, 181, 255])


def camvid_tree(root: Path) -> None:
    for split in ("train", "val"):
        for stem in ("0001TP_006690", "0016E5_00390"):
            draw_image(root / f"{split}/{stem}.png")
            draw_label(root / f"{split}annot/{stem}.png", [0, 10, 11])


def ade_tree(root: Path) -> None:
    for folder, prefix in {"training": "ADE_train", "validation": "ADE_val"}.items():
        for number in (1, 2):
            draw_image(root / f"images/{folder}/{prefix}_{number:08}.jpg")
            draw_label(root / f"annotations/{folder}/{prefix}_{number:08}.png", [0, 1, 150])


def folder_tree(root: Path, labelled: bool = True) -> None:
    for name in ("b.jpg", "a.PNG", "trip/c.webp"):
        draw_image(root / "images" / name)
        if labelled:
            draw_label((root / "labels" / name).with_suffix(".png"), [0, 2, 255])
    (root / "classes.txt").write_text("sky\nroad\ngarden gnome\n", encoding="utf-8")


def one_image_tree(root: Path) -> Path:
    draw_image(root / "images/a.png")
    draw_label(root / "labels/a.png", [0, 1])
    (root / "classes.txt").write_text("sky\nroad\n")
    return root


def load_only_sample(root: Path):
    return open_dataset("folder", root, "train").load(0)


def gray_png(samples: np.ndarray, bits: int) -> bytes:
    """A grayscale PNG of fewer than eight bits, which Pillow does not write; rows must fill whole bytes."""
    each = 8 // bits
    shifts = np.arange(each)[::-1] * bits
    packed = (samples.reshape(len(samples), -1, each) << shifts).sum(axis=2).astype(np.uint8)
    return png(packed.tobytes(), samples.shape[1], bits, 0)


def png(rows: bytes, width: int, bits: int, color: int) -> bytes:
    """An unfiltered PNG of `HEIGHT` rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">II5B", width, HEIGHT, bits, color, 0, 0, 0)
    step = len(rows) // HEIGHT
    data = zlib.compress(b"".join(b"\0" + rows[i * step : (i + 1) * step] for i in range(HEIGHT)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def twelve_bit_tiff(gray: int) -> bytes:
    """A TIFF of two pixels whose header declares 12 bits per sample."""
    entries = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
    pixels = (gray << 12 | gray).to_bytes(3, "big")
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return b"II*\0" + struct.pack("<I", 12) + pixels + b"\0" + struct.pack("<H", len(entries)) + directory + bytes(4)
