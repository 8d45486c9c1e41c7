"""Draws small dataset trees for the tests of this room."""

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


def folder_tree(root: Path, labelled: bool = True) -> None:
    for name in ("b.jpg", "a.PNG", "trip/c.webp"):
        draw_image(root / "images" / name)
        if labelled:
            draw_label((root / "labels" / name).with_suffix(".png"), [0, 2, 255])
    (root / "classes.txt").write_text("sky\nroad\ngarden gnome\n", encoding="utf-8")


def own_tree(root: Path) -> Path:
    draw_image(root / "images/a.png")
    draw_label(root / "labels/a.png", [0, 1])
    (root / "classes.txt").write_text("sky\nroad\n")
    return root


def the_only_pair(root: Path):
    return open_dataset("folder", root, "train").load(0)
