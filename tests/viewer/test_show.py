"""`show`: figures of a cache or a run match their titles, and no text is cut off."""

import shutil

import numpy as np
import pytest
import torch
from cards import change_card
from command_line import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont
from refusals import refused
from shapes import CLASSES
from small_run import VIEWS, cache_shapes, small_run

from data_cache.errors import UsageError
from data_cache.reader import Cache
from data_cache.sample import crop_image
from data_cache.views import View
from experiments.figures import attention, attention_figure, attention_of, predictions_figure
from experiments.image_choice import choose_images
from experiments.scales import clusters_of, masks_figure, scale_maps
from pipeline.masks.fusion import NOT_IGNORED, fuse
from trainer.checkpoint import load
from trainer.predictor import Predictor
from viewer import render as drawing
from viewer.class_colors import class_colors
from viewer.figure import Figure, Panel
from viewer.legend import LegendEntry
from viewer.palette import BLANK, HATCH, ORANGE, OUTLINE, overlay_heat
from viewer.reader import open_finished_cache
from viewer.render import FONT_SIZE, GAP, LEGEND, add_legend, fit_size, resize_image

DISC = 3
COLORS = class_colors(CLASSES)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("show"))


@pytest.fixture(scope="module")
def cache(made):
    return open_finished_cache(made.cache, made.root)


@pytest.fixture(scope="module")
def student(made):
    return load(made.run, torch.device("cpu"))


def painted(panel: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(c) for c in panel.reshape(-1, 3).tolist()}


# -- Figure 6: a cache ---------------------------------------------------------------------------------------------


def test_masks_figure_shows_the_requested_images(clipteacher, made, tmp_path):
    out = tmp_path / "new/masks.png"
    result = clipteacher.good("show", made.cache, "--image", "5,002", "--image", 0, "--out", out, "--json").json
    assert result["out"] == str(out)
    assert [caption.split(":")[0] for caption in result["images"]] == [
        f"images/train/{number:03}.png" for number in (5, 2, 0)
    ]
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert picture.width > 5 * 192
        assert picture.height > 3 * 192


@pytest.mark.parametrize("view", range(VIEWS))
def test_scale_maps_fuse_to_the_stored_masks(made, cache, view):
    views = [record.view(view) for record in cache]
    for record in views:
        clusters = clusters_of(record)
        fused = fuse(clusters, record.dense, cache.settings["threshold"])
        stored = Cache(made.cache).group["masks/default/label"][record.index, view]
        np.testing.assert_array_equal(np.where(fused == NOT_IGNORED, 255, fused), stored)
        maps = scale_maps(record)
        assert len(maps) == 2
        for scale, (_, centers, label) in enumerate(maps):
            np.testing.assert_array_equal(label == NOT_IGNORED, stored == 255)
            assert len(np.unique(label[label != NOT_IGNORED])) == (clusters.scale == scale).sum() == centers
    assert not masks_figure(views).warnings


def test_masks_color_exactly_the_ignored_area(cache):
    row = masks_figure([cache[1]]).rows[0]
    image, _, *masks = [panel.pixels for panel in row.panels]
    assert row.titles == ["image", "seen labels", "centers, windows of 3", "centers, windows of 7", "fused masks"]
    stored, count = cache[1].masks, cache[1].count
    side = image.shape[0] // stored.shape[0]
    centers = slice(side // 2, None, side)
    for panel in masks:
        is_gray = np.ptp(panel[centers, centers].astype(int), axis=2) == 0
        np.testing.assert_array_equal(is_gray, stored == 255)
        assert tuple(OUTLINE) in painted(panel)
    assert count > 1
    assert row.caption.endswith(f"{count} fused masks")


def test_ignored_area_is_hatched_and_unseen_labels_are_hidden(cache):
    for record in cache:
        label = record.sample.label
        figure = masks_figure([record])
        panel = figure.panels[1].pixels
        large = label[np.arange(192) * 128 // 192][:, np.arange(192) * 128 // 192]
        ignored = np.isin(large, (255, DISC))
        hatched = (panel == BLANK).all(axis=2) | (panel == HATCH).all(axis=2)
        # nearest-neighbor resizing may differ at pixel borders
        assert (hatched == ignored).mean() > 0.97
        assert tuple(COLORS[DISC]) not in painted(panel)
        assert [entry.text for entry in figure.legend] == [CLASSES[i] for i in np.unique(label) if i not in (255, DISC)]
        assert not any(entry.unseen for entry in figure.legend)


def test_views_are_shown_cropped_and_flipped(made, cache):
    for view in range(VIEWS):
        for index in range(3):
            panel = masks_figure([cache[index].view(view)]).panels[0].pixels
            box, flip = (Cache(made.cache).group[f"view/{name}"][index, view] for name in ("box", "flip"))
            top, left, bottom, right = box
            assert panel.shape[:2] == fit_size(bottom - top, right - left, 192)
            whole = np.asarray(Image.open(made.root / f"images/train/{index:03}.png"))
            crop = whole[top:bottom, left:right].astype(float)
            crop = crop[:, ::-1] if flip else crop
            small = np.asarray(Image.fromarray(panel).resize((8, 8), Image.Resampling.BOX)).astype(float)
            expected = np.asarray(Image.fromarray(crop.astype(np.uint8)).resize((8, 8), Image.Resampling.BOX))
            assert abs(small - expected).mean() < 6
            assert abs(small - expected[:, ::-1]).mean() > abs(small - expected).mean()


def test_masks_figure_without_dense_tokens_warns(clipteacher, made, tmp_path):
    path = cache_shapes(made.root, tmp_path / "none.zarr", dense="none")
    result = clipteacher.good("show", path, "--root", made.root, "--images", 1, "--out", tmp_path / "x.png")
    assert result.err.count("dense tokens are not stored") == 1
    figure = masks_figure([open_finished_cache(path, made.root)[0]])
    assert figure.rows[0].titles == ["image", "seen labels", "fused masks"]


def test_int8_tokens_that_change_the_masks_cause_a_warning(made, tmp_path):
    path = cache_shapes(made.root, tmp_path / "int8.zarr", dense="int8")
    record = open_finished_cache(path, made.root)[0]
    assert masks_figure([record]).rows[0].titles[2] == "centers, windows of 3"
    labels = record.mask_set.loaded(0).label[0, 0]
    labels[labels != 255] = np.arange((labels != 255).sum()) % 2
    (warning,) = masks_figure([record]).warnings
    assert "8 bits" in warning


def test_image_without_a_label_map_is_all_ignored(made, tmp_path):
    root = tmp_path / "bare"
    shutil.copytree(made.root, root)
    (root / "labels/train/001.png").unlink()
    figure = masks_figure([open_finished_cache(cache_shapes(root, tmp_path / "bare.zarr"), root)[1]])
    assert painted(figure.panels[1].pixels) == {tuple(BLANK), tuple(HATCH)}
    assert not figure.legend
    assert figure.to_image().height > 192


# -- Figure 5: attention -------------------------------------------------------------------------------------------


def test_attention_matches_equation_1(student, cache):
    whole, cls, image = View((0, 0, 128, 128)), cache[2].cls, cache[2].sample.image
    found = attention(student, cls, image, whole)
    pixels = torch.from_numpy(crop_image(image, whole, 64)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        cells = student.network(pixels)[0].numpy().astype(np.float64)
    scores = np.array(
        [[np.dot(cls.astype(np.float64), cells[:, y, x]) / cells.shape[0] ** 0.5 for x in range(16)] for y in range(16)]
    )
    expected = np.exp(scores - scores.max())
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-4)


def test_heat_is_orange_at_the_peak_and_gray_at_zero():
    weights = np.zeros((4, 4))
    weights[2, 1] = 1
    drawn = overlay_heat(np.full((64, 64, 3), 120, np.uint8), weights).astype(int)
    assert abs(drawn[40, 24] - ORANGE).max() <= 3
    assert np.ptp(drawn[:16, 48:], axis=2).max() <= 1


def test_attention_figure_is_saved_in_the_run(clipteacher, made, cache, student):
    result = clipteacher.good("show", made.run, "--attention", "--images", 2, "--side", 64)
    file = made.run / "figures/attention.png"
    assert result.out.strip() == str(file)
    assert not result.err
    with Image.open(file) as picture:
        assert picture.height < 4 * 96 + 100
    row = attention_figure(student, [cache[4]]).rows[0]
    weights = attention_of(student, cache[4])
    assert row.caption == f"images/train/004.png: largest weight {weights.max() * weights.size:.1f} times the mean"
    np.testing.assert_array_equal(row.panels[0].pixels, resize_image(cache[4].sample.image, (192, 192)))


def test_untrained_attention_causes_a_warning(clipteacher, made, tmp_path):
    run = tmp_path / "mean"
    shutil.copytree(made.run, run)
    change_card(run, lambda card: card["config"].update(glm="off"))
    assert "trained with --glm off" in clipteacher.good("show", run, "--attention").err


def test_attention_requires_a_cache_of_the_same_clip(clipteacher, made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made.run, run)
    change_card(run, lambda card: card["config"].update(cache=str(tmp_path / "gone.zarr")))
    assert "pass --cache PATH" in clipteacher("show", run, "--attention").error
    clipteacher.good("show", run, "--attention", "--cache", made.cache)
    clip = {"clip": str(REPOSITORY / "tests/helpers/tiny-vit.json"), "clip_weights": "random", "image_size": 64}
    other = cache_shapes(made.root, tmp_path / "other.zarr", **clip)
    assert "another CLIP" in clipteacher("show", run, "--attention", "--cache", other).error


# -- Figure 7: predictions -----------------------------------------------------------------------------------------


def test_predictions_and_ground_truth_share_colors(student, made):
    from data_cache.datasets import open_dataset

    images = open_dataset("folder", made.root, "val")
    figure = predictions_figure(Predictor(student), images, [0, 2], 1.5, side=128)
    shown = set()
    for row, index in zip(figure.rows, (0, 2), strict=True):
        image, truth, prediction = [panel.pixels for panel in row.panels]
        found, label = Predictor(student)(images.image(index)).at(1.5), images.label(index)
        np.testing.assert_array_equal(image, images.image(index))
        for panel, expected in ((truth, label), (prediction, found)):
            for value in set(np.unique(expected)) - {255}:
                assert (panel[expected == value] == COLORS[value]).all()
                shown.add(int(value))
    assert [entry.text for entry in figure.legend] == [CLASSES[label] for label in sorted(shown)]
    for entry, label in zip(figure.legend, sorted(shown), strict=True):
        np.testing.assert_array_equal(entry.color, COLORS[label])
        assert entry.unseen == (label == DISC)


def test_run_shows_predictions_by_default(clipteacher, made):
    assert clipteacher.good("show", made.run, "--image", 1).out.strip() == str(made.run / "figures/predictions.png")
    checkpoint = next(made.run.glob("step_*/model.safetensors"))
    named = clipteacher.good("show", checkpoint, "--predictions", "--image", "images/val/001.png")
    assert named.out.strip() == str(made.run / "figures/predictions.png")


def test_gamma_changes_predictions(clipteacher, made, tmp_path):
    pictures = []
    for gamma in (-1000, 1000):
        clipteacher.good("show", made.run, "--gamma", gamma, "--image", 0, "--out", tmp_path / "x.png")
        pictures.append(np.asarray(Image.open(tmp_path / "x.png")))
    disc = [(picture == COLORS[DISC]).all(axis=2).sum() for picture in pictures]
    assert disc[1] > disc[0] + 192 * 192 / 2


# -- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cache", "--attention"), "is a cache"),
        (("cache", "--view", 3), "has views 0 to 2"),
        (("cache", "--image", 6), "there are 6 images, 0 to 5"),
        (("cache", "--image", "unknown"), "no such image"),
        (("cache", "--image", 1, "--images", 2), "pass a number of images, or the images"),
        (("cache", "--images", 0), "at least 1"),
        (("cache", "--masks", "fine"), "no mask set named 'fine'"),
        (("cache", "--gamma", 2), "--gamma: does not apply to masks"),
        (("cache", "--side", 4), "at least 32"),
        (("cache", "--out", "x.jpg"), "must end in .png"),
        (("run", "--masks", "default"), "--masks: does not apply to predictions"),
        (("run", "--attention", "--predictions"), "pass only one of them"),
        (("run", "--attention", "--gamma", 2), "--gamma: does not apply to attention"),
        (("run", "--gamma", "inf"), "--gamma inf"),
        (("run", "--dataset", "cocoa"), "--dataset cocoa: choose"),
    ],
)
def test_invalid_options_are_usage_errors(clipteacher, made, arguments, words):
    result = clipteacher("show", getattr(made, arguments[0]), *arguments[1:])
    assert result.status == 2
    assert words in result.error


def test_targets_that_are_neither_cache_nor_run_are_refused(clipteacher, made, tmp_path):
    assert "no such cache or run" in clipteacher("show", tmp_path / "nothing").error
    assert "not a run" in clipteacher("show", tmp_path).error
    assert "no such folder" in clipteacher("show", made.run, "--root", tmp_path / "nothing").error


def test_failed_and_changed_images_are_refused(clipteacher, made, tmp_path):
    root = tmp_path / "drawn"
    shutil.copytree(made.root, root)
    (root / "images/train/000.png").write_bytes(b"not an image")
    path = cache_shapes(root, tmp_path / "c.zarr")
    out = ("--out", tmp_path / "x.png")
    assert "failed when it was cached" in clipteacher("show", path, "--image", 0, *out).error
    result = clipteacher.good("show", path, "--images", 1, *out, "--json").json
    assert result["images"][0].startswith("images/train/001.png")
    shutil.copy(root / "labels/train/002.png", root / "labels/train/001.png")
    assert "changed since the cache was made" in clipteacher("show", path, "--image", 1, *out).error
    assert not list(tmp_path.glob("*.jpg"))


def test_images_are_chosen_by_index_id_or_end_of_id():
    ids = ["images/train/000000000007.jpg", "images/train/a,b.jpg", "images/other/x.jpg", "images/train/x.png", "7"]
    assert choose_images(ids, ["2,0"]) == [2, 0]
    assert choose_images(ids, ["7"]) == [4]
    assert choose_images(ids, ["000000000007", "images/train/a,b.jpg", "train/x", "0"]) == [0, 1, 3]
    for unknown in ("x", "", "5", "0007", "rain/x.png"):
        refused(lambda unknown=unknown: choose_images(ids, [unknown]), f"--image {unknown}", kind=UsageError)


# -- drawing -------------------------------------------------------------------------------------------------------


def test_images_are_antialiased_and_keep_their_aspect_ratio():
    grid = (np.indices((80, 160)).sum(axis=0) % 2 * 255).astype(np.uint8)
    drawn = np.asarray(Figure.of([Panel("image", np.stack([grid] * 3, axis=2), continuous=True)], side=40).to_image())
    panel = drawn[-20 - GAP : -GAP, GAP : GAP + 40]
    assert abs(panel[2:-2, 2:-2].astype(int) - 128).max() < 40
    assert (drawn[-20 - GAP :, GAP + 40 :] == 255).all()
    assert fit_size(2000, 3, 192) == (192, 1)


def test_panel_at_native_size_is_unchanged():
    panel = np.random.default_rng(0).integers(0, 256, (48, 30, 3), np.uint8)
    drawn = np.asarray(Figure.of([Panel("labels", panel)], side=48).to_image())
    np.testing.assert_array_equal(drawn[-48 - GAP : -GAP, GAP : GAP + 30], panel)


WORDS = st.text(st.characters(codec="latin-1", exclude_categories=["Cc", "Zs"]), min_size=1, max_size=60)
NAMES = st.lists(st.lists(WORDS, min_size=1, max_size=6).map(" ".join), min_size=1, max_size=40)


@settings(deadline=None, max_examples=40)
@given(NAMES, st.integers(1, 900), st.integers(0, 40), st.integers(FONT_SIZE, 4 * FONT_SIZE))
def test_legends_of_any_length_are_not_cut_off(names, width, unseen, font_size):
    written = []
    write = drawing._write

    def checked(draw, corner, lines, font, fill, line_height):
        assert line_height >= font.size
        for number, line in enumerate(lines):
            box = draw.textbbox((corner[0], corner[1] + line_height * number), line, font=font)
            # letters may reach a little beyond their advance
            assert box[2] <= draw.im.size[0]
            assert box[3] <= draw.im.size[1] + 1
            written.append(line)
        write(draw, corner, lines, font, fill, line_height)

    drawing._write = checked
    try:
        panel, notes = Image.new("RGB", (width, 10)), ["a note " * 30]
        legend = [LegendEntry(name, COLORS[0], index < unseen) for index, name in enumerate(names)]
        picture = add_legend(panel, legend, "nothing at all", notes, font_size)
    finally:
        drawing._write = write
    assert picture.width == max(width, LEGEND)
    result = "".join(written).replace(" ", "")
    for name in names:
        assert "".join(name.split()) in result


def test_only_unseen_classes_are_framed_in_the_legend():
    sky, disc = LegendEntry("sky", COLORS[0]), LegendEntry("disc", COLORS[DISC])
    plain = np.asarray(add_legend(Image.new("RGB", (400, 1), "white"), [sky, disc]))
    framed = np.asarray(add_legend(Image.new("RGB", (400, 1), "white"), [sky, disc._replace(unseen=True)]))
    for picture, whole in ((plain, True), (framed, False)):
        side = drawing.FONT_SIZE + 1
        assert (picture == COLORS[0]).all(axis=2).sum() == side**2
        assert ((picture == COLORS[DISC]).all(axis=2).sum() == side**2) == whole
    assert framed.shape[0] > plain.shape[0]


def test_long_titles_are_wrapped():
    font = ImageFont.load_default(14)
    panel = np.zeros((40, 40, 3), np.uint8)
    title = "a title of many words that does not fit a column of forty pixels"
    drawn = Figure.of([Panel(title, panel), Panel("b", panel)], side=40).to_image()
    lines = drawing._wrap(title, drawing.NARROWEST, font)
    assert " ".join(lines) == title
    assert max(map(font.getlength, lines)) <= drawing.NARROWEST
    assert drawn.height >= len(lines) * drawing.LINE_HEIGHT + 40
