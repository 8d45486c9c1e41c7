"""Draws small trees of PASCAL VOC and PASCAL-Context in their published layouts and in mmsegmentation's."""

import numpy as np
from drawing import HEIGHT, WIDTH, draw_image, draw_label
from PIL import Image
from scipy.io import savemat

STEMS = ("2008_000002", "2007_000032")


def draw_list(file, stems=STEMS):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{stem}\n" for stem in stems))


def draw_palette(path, values):
    """A palette image, the format of VOC's label maps, whose colors differ from its indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    label = Image.fromarray(np.resize(np.array(values, np.uint8), (HEIGHT, WIDTH)), mode="P")
    label.putpalette([(17 * i + 5) % 256 for i in range(768)])
    label.save(path)


def draw_matlab(path, values, **names):
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, names or {"LabelMap": np.resize(np.array(values, np.uint16), (HEIGHT, WIDTH))})


def voc_tree(root, labels="SegmentationClassAug", list_name="trainaug"):
    for stem in (*STEMS, "2007_999999"):
        draw_image(root / f"JPEGImages/{stem}.jpg")
        draw_palette(root / f"{labels}/{stem}.png", [0, 1, 20, 255])
    draw_list(root / f"ImageSets/Segmentation/{list_name}.txt")


def context_tree(root, converted=True):
    for stem in (*STEMS, "2007_999999"):
        draw_image(root / f"JPEGImages/{stem}.jpg")
        if converted:
            draw_label(root / f"SegmentationClassContext/{stem}.png", [0, 1, 59, 255])
        else:
            draw_matlab(root / f"trainval/{stem}.mat", [0, 1, 2, 458, 459])
    draw_list(root / f"ImageSets/{'SegmentationContext' if converted else 'Main'}/train.txt")
