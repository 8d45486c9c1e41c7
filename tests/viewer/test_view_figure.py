"""Figures of a cache show its content and tolerate missing, failed and hostile content."""

import re

import numpy as np
from displays import (
    CLASSES,
    CROP,
    FAILED,
    IMAGES,
    UNLABELLED,
    UNSEEN,
    hatched,
    images_by_title,
    name,
    nearly_equal,
    rendered,
    visible_text,
)
from PIL import Image
from refusals import refused

from clipteacher import open_cache
from data_cache.errors import UserError
from experiments.scales import scales_figure
from viewer.figure import SIDE, Figure, FigureRow, Panel
from viewer.legend import LegendEntry
from viewer.palette import BLANK


def test_summary_card_lists_contents_and_failures(made):
    tree = rendered(open_cache(made.cache, masks="fine"))
    text = visible_text(tree)
    for part in ("folder train", "5 of 6 done, 1 failed", "the whole image and 1 crop", "tiny-vit", "8 x 8 per view"):
        assert part in text
    for part in ("fine (shown)", "0.99", "grass & sand", UNSEEN.replace(",", ", "), str(made.root), "KiB"):
        assert part in text
    assert name(FAILED) in text
    assert "cannot read the image" in text
    assert str(made.cache) in repr(open_cache(made.cache))


def test_figure_shows_image_labels_scales_and_masks(made):
    record = open_cache(made.cache)[0]
    tree = rendered(scales_figure(record))
    found = images_by_title(tree)
    titles = [re.sub(r": \d+$", "", title) for title in found]
    assert titles == ["image", "seen labels", "masks of 3 x 3 windows", "masks of 7 x 7 windows", "fused masks"]
    assert all(picture.shape == (SIDE, SIDE, 3) for picture in found.values())
    image = Image.open(made.root / name(0)).resize((SIDE, SIDE))
    assert nearly_equal(found["image"], np.asarray(image))
    token = SIDE // 8
    fused = found[f"fused masks: {record.count}"]
    centers = fused[token // 2 :: token, token // 2 :: token]
    for label in range(record.count):
        assert len(np.unique(centers[record.masks == label], axis=0)) == 1
    assert [w for w in CLASSES if w in visible_text(tree)] == [
        CLASSES[i] for i in np.unique(record.seen_label) if i != 255
    ]
    drawn = scales_figure(record).to_image()
    assert drawn.width > 5 * SIDE
    assert drawn.height > SIDE


def test_crop_figure_shows_the_box_and_the_crop(made):
    record = open_cache(made.cache)[0].view(CROP)
    found = images_by_title(rendered(record))
    assert list(found)[:2] == ["image", f"view {CROP}"]
    expected = np.asarray(Image.fromarray(record.clip_input).resize((SIDE, SIDE)))
    assert nearly_equal(found[f"view {CROP}"], expected)
    assert not nearly_equal(found["image"], expected)
    assert "px at" in visible_text(rendered(record))


def test_missing_images_become_hatched_panels_with_a_note(elsewhere):
    cache = open_cache(elsewhere.cache)
    tree = rendered(scales_figure(cache[0]))
    found = images_by_title(tree)
    assert hatched(found["image"])
    assert "gone" in visible_text(tree)
    assert "root=DIR" in visible_text(tree)
    assert cache[0].image is cache[0].clip_input is cache[0].seen_label is None
    assert [re.sub(r"\W*\d+$", "", title) for title in found][1:] == [
        "masks of 3 x 3 windows",
        "masks of 7 x 7 windows",
        "fused masks",
    ]
    assert visible_text(rendered(cache.grid(range(3)))).count("no image") == 1
    assert "gone" in visible_text(rendered(cache))
    assert cache[0].to_image().width > 0


def test_moved_images_are_found_by_root(elsewhere):
    cache = open_cache(elsewhere.cache, root=elsewhere.root)
    assert cache[0].image.shape == (96, 128, 3)
    assert "no image" not in visible_text(rendered(cache[0]))
    (elsewhere.root / name(0)).unlink()
    refused(lambda: open_cache(elsewhere.cache, root=elsewhere.root), "not the images", kind=UserError)
    refused(lambda: open_cache(elsewhere.cache, root=elsewhere.root / "none"), "none", kind=UserError)


def test_reordered_class_names_are_refused(elsewhere):
    (elsewhere.root / "classes.txt").write_text("\n".join(reversed(CLASSES)) + "\n")
    refused(lambda: open_cache(elsewhere.cache, root=elsewhere.root), "class names or their order", kind=UserError)


def test_changed_images_are_not_shown(elsewhere):
    Image.new("RGB", (128, 96)).save(elsewhere.root / name(0))
    cache = open_cache(elsewhere.cache, root=elsewhere.root)
    assert cache[0].image is None
    assert "changed since the cache was made" in visible_text(rendered(cache[0]))
    assert cache[1].image is not None


def test_failed_images_show_the_reason_and_have_no_arrays(made):
    record = open_cache(made.cache)[FAILED]
    tree = rendered(scales_figure(record))
    assert visible_text(tree).count("failed when it was cached") == 1
    assert "cannot read the image" in visible_text(tree)
    assert list(images_by_title(tree)) == ["image"]
    assert not record.ok
    for key in ("masks", "cls", "dense", "count", "geometry"):
        refused(lambda key=key: getattr(record, key), f"image {FAILED}", kind=UserError)
    assert name(FAILED) in repr(record)
    assert record.to_image().width > 0


def test_missing_label_map_is_noted(made):
    tree = rendered(open_cache(made.cache)[UNLABELLED])
    assert "no label map" in visible_text(tree)
    assert "seen labels" not in images_by_title(tree)


def test_grid_colors_only_masks(made):
    cache = open_cache(made.cache)
    found = images_by_title(rendered(cache.grid(range(IMAGES), view=CROP)))
    assert list(found) == [f"image {i}{': failed' * (i == FAILED)}" for i in range(IMAGES)]
    assert hatched(found[f"image {FAILED}: failed"])
    record = cache[0].view(CROP)
    tokens = found["image 0"].reshape(8, SIDE // 8, 8, SIDE // 8, 3)[:, 4:-4, :, 4:-4].astype(float)
    saturation = np.ptp(tokens.mean(axis=(1, 3)), axis=2)
    unmasked = record.masks == record.reserved
    assert unmasked.any()
    assert saturation[unmasked].max() < 8
    assert np.median(saturation[~unmasked]) > 20
    assert tokens.mean(axis=(1, 3, 4))[unmasked].min() > 150  # pale
    image = np.asarray(Image.fromarray(record.clip_input).resize((SIDE, SIDE))).mean(axis=2)
    brightness = image.reshape(8, SIDE // 8, 8, SIDE // 8)[:, 4:-4, :, 4:-4].mean(axis=(1, 3))
    assert np.corrcoef(brightness[unmasked], tokens.mean(axis=(1, 3, 4))[unmasked])[0, 1] > 0.98
    assert cache.grid(range(IMAGES), columns=4).to_image().size > (4 * SIDE, 2 * SIDE)


def test_aligned_panels_stay_below_each_other_at_any_width():
    above, below = (
        [Panel(f"{kind} {i}", np.zeros((4, 4, 3), np.uint8)) for i in range(3)] for kind in ("image", "tokens")
    )
    figure = Figure([FigureRow(above), FigureRow(below)], aligned=True)
    columns = [div for div in rendered(figure).iter("div") if len(list(div.iter("img"))) == 2]
    assert [visible_text(column) for column in columns] == [f"image {i} tokens {i}" for i in range(3)]
    assert all("inline-block" in column.get("style") and len(column) == 2 for column in columns)


def test_html_in_names_is_escaped(made):
    cache = open_cache(made.cache)
    panel = Panel("<img onerror=x>", cache[0].image)
    figure = Figure.of(
        [panel], heading="<b>", notes=["<i>"], legend=[LegendEntry("<u>", BLANK)], hatched="<s>", warnings=["<p>"]
    )
    for thing in (cache, cache[0], cache[FAILED], cache[0].view(CROP), cache.grid([0]), cache.stats(), figure):
        tree = rendered(thing)
        assert "&lt;" not in visible_text(tree)
    assert CLASSES[0] in "".join(visible_text(rendered(record)) for record in cache)
    for text in ("<img onerror=x>", "<b>", "<i>", "<u>", "<s>", "<p>"):
        assert text in visible_text(rendered(figure))
