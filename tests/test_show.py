"""show: the paper's figures, from a cache or a run, hold what they say and are never cut off."""

import json
import shutil

import numpy as np
import pytest
import torch
from command_line import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont
from refusals import refused
from small_run import VIEWS, cache_at, small_run

from data_cache import show as drawing
from data_cache.colours import LINE, NOTHING, ORANGE, OUTLINE, colour_of, heat
from data_cache.errors import UsageError
from data_cache.show import GAP, LEGEND, LETTERS, fitted, legend, scaled, sheet
from data_cache.store import Cache
from data_cache.views import View, replay_image
from experiments.attention import attention
from experiments.cached_views import CachedViews, chosen
from experiments.centres import NONE, clustered, masks_figure, single
from experiments.figures import attention_figure, predictions_figure
from pipeline.live import masker_of
from pipeline.weights import CLIPSource
from trainer.checkpoint import load
from trainer.evaluate import Predictor

DISC = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("show"))


@pytest.fixture(scope="module")
def views(made):
    return CachedViews.open(made.cache, made.root)


@pytest.fixture(scope="module")
def student(made):
    return load(made.run, torch.device("cpu"))


def painted(panel: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(c) for c in panel.reshape(-1, 3).tolist()}


# -- Figure 6: a cache ---------------------------------------------------------------------------------------------


def test_a_cache_becomes_a_picture_of_the_named_images(clipteacher, made, tmp_path):
    out = tmp_path / "new/masks.png"
    told = clipteacher.good("show", made.cache, "--image", "5,002", "--image", 0, "--out", out, "--json").json
    assert told["out"] == str(out)
    assert [caption.split(":")[0] for caption in told["images"]] == [
        f"images/train/{number:03}.png" for number in (5, 2, 0)
    ]
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert picture.width > 5 * 192
        assert picture.height > 3 * 192


def test_a_picture_of_a_cache_goes_into_the_working_directory(clipteacher, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert clipteacher.good("show", made.cache, "--images", 1).out.strip() == "drawn_masks.png"
    assert (tmp_path / "drawn_masks.png").is_file()


@pytest.mark.parametrize("view", range(VIEWS))
def test_single_centres_are_those_the_stored_masks_were_fused_from(made, view):
    views = CachedViews.open(made.cache, made.root, view=view)
    masker = masker_of(views.cache, views.cache.mask_attributes("default"), views.images.classes)
    for index in range(len(views.images)):
        clusters, fused = clustered(views, masker, index, views.look(index).geometry)
        stored = Cache(made.cache).group["masks/default/label"][index, view]
        np.testing.assert_array_equal(fused, stored)
        maps = single(clusters, masker.windows, 100)
        assert len(maps) == 2
        for scale, one in enumerate(maps):
            np.testing.assert_array_equal(one == NONE, stored == 255)
            assert len(np.unique(one[one != NONE])) == (clusters.scale == scale).sum()
    assert not masks_figure(views, [0]).warnings


def test_each_centre_and_each_mask_is_one_area_in_a_colour_of_its_own_within_the_ignored_area(views):
    figure = masks_figure(views, [1])
    image, _, *masks = figure.rows[0].panels
    assert figure.titles == ("image", "seen labels", "centres, windows of 3", "centres, windows of 7", "fused masks")
    stored, count = views.fused(1)
    side = image.shape[0] // stored.shape[0]
    middles = slice(side // 2, None, side)
    for panel in masks:
        colourless = np.ptp(panel[middles, middles].astype(int), axis=2) == 0
        np.testing.assert_array_equal(colourless, stored == 255)
        assert tuple(OUTLINE) in painted(panel)
    assert count > 1
    assert figure.rows[0].caption.endswith(f"{count} fused masks")


def test_the_ignored_area_is_hatched_and_no_hidden_label_is_painted(views):
    for index in range(len(views.images)):
        label = views.images.label(index)
        figure = masks_figure(views, [index])
        panel = figure.rows[0].panels[1]
        large = label[np.arange(192) * 128 // 192][:, np.arange(192) * 128 // 192]
        known = np.isin(large, (255, DISC))
        grey = (panel == NOTHING).all(axis=2) | (panel == LINE).all(axis=2)
        # the corner of a pixel may be painted as its neighbour
        assert (grey == known).mean() > 0.97
        assert tuple(colour_of(DISC)) not in painted(panel)
        assert set(figure.names) == set(np.unique(label)) - {255, DISC}
        assert not figure.unseen


def test_a_view_is_shown_as_it_was_cut_and_mirrored(made):
    for view in range(VIEWS):
        views = CachedViews.open(made.cache, made.root, view=view)
        for index in range(3):
            panel = masks_figure(views, [index]).rows[0].panels[0]
            box, flip = (Cache(made.cache).group[f"view/{name}"][index, view] for name in ("box", "flip"))
            top, left, bottom, right = box
            assert panel.shape[:2] == fitted(bottom - top, right - left, 192)
            whole = np.asarray(Image.open(made.root / f"images/train/{index:03}.png"))
            crop = whole[top:bottom, left:right].astype(float)
            crop = crop[:, ::-1] if flip else crop
            small = np.asarray(Image.fromarray(panel).resize((8, 8), Image.Resampling.BOX)).astype(float)
            wanted = np.asarray(Image.fromarray(crop.astype(np.uint8)).resize((8, 8), Image.Resampling.BOX))
            assert abs(small - wanted).mean() < 6
            assert abs(small - wanted[:, ::-1]).mean() > abs(small - wanted).mean()


def test_without_dense_tokens_there_are_no_single_centres_and_it_is_said(clipteacher, made, tmp_path):
    path = cache_at(tmp_path / "none.zarr", made.root, dense="none")
    told = clipteacher.good("show", path, "--root", made.root, "--images", 1, "--out", tmp_path / "x.png")
    assert told.err.count("holds no dense tokens") == 1
    figure = masks_figure(CachedViews.open(path, made.root), [0])
    assert figure.titles == ("image", "seen labels", "fused masks")


def test_masks_that_8_bit_tokens_do_not_give_again_are_told(made, tmp_path):
    path = cache_at(tmp_path / "int8.zarr", made.root, dense="int8")
    views = CachedViews.open(path, made.root)
    group = Cache(path, mode="r+").group["masks/default/label"]
    assert masks_figure(views, [0]).titles[2] == "centres, windows of 3"
    labels = views.loaded.label[0, 0]
    labels[labels != 255] = np.arange((labels != 255).sum()) % 2
    assert group.shape[0] == 6
    (warning,) = masks_figure(views, [0]).warnings
    assert "8 bits" in warning


def test_an_image_without_labels_is_all_ignored(made, tmp_path):
    root = tmp_path / "bare"
    shutil.copytree(made.root, root)
    (root / "labels/train/001.png").unlink()
    views = CachedViews.open(cache_at(tmp_path / "bare.zarr", root), root)
    figure = masks_figure(views, [1])
    assert painted(figure.rows[0].panels[1]) == {tuple(NOTHING), tuple(LINE)}
    assert not figure.names
    assert figure.draw().height > 192


# -- Figure 5: attention -------------------------------------------------------------------------------------------


def test_attention_is_eq_1_over_the_student_s_cells(student, views):
    whole = View((0, 0, 128, 128))
    found = attention(student, views.cls(2), views.images.image(2), whole)
    pixels = torch.from_numpy(replay_image(views.images.image(2), whole, 64)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        cells = student.segmenter(pixels)[0].numpy().astype(np.float64)
    scores = np.array(
        [
            [np.dot(views.cls(2).astype(np.float64), cells[:, y, x]) / cells.shape[0] ** 0.5 for x in range(16)]
            for y in range(16)
        ]
    )
    wanted = np.exp(scores - scores.max())
    np.testing.assert_allclose(found, wanted / wanted.sum(), rtol=1e-4)


def test_heat_is_orange_where_the_weight_is_greatest_and_grey_without_any():
    weights = np.zeros((4, 4))
    weights[2, 1] = 1
    drawn = heat(np.full((64, 64, 3), 120, np.uint8), weights).astype(int)
    assert abs(drawn[40, 24] - ORANGE).max() <= 3
    assert np.ptp(drawn[:16, 48:], axis=2).max() <= 1


def test_attention_is_drawn_beside_the_photograph_and_goes_into_the_run(clipteacher, made, views, student):
    told = clipteacher.good("show", made.run, "--attention", "--images", 2, "--side", 64)
    file = made.run / "attention.png"
    assert told.out.strip() == str(file)
    assert not told.err
    with Image.open(file) as picture:
        assert picture.height < 4 * 96 + 100
    row = attention_figure(student, views, [4]).rows[0]
    weights = attention(student, views.cls(4), views.images.image(4), View((0, 0, 128, 128)))
    assert row.caption == f"images/train/004.png: greatest weight {weights.max() * weights.size:.1f} times the mean"
    np.testing.assert_array_equal(row.panels[0], scaled(views.images.image(4), (192, 192)))


def test_attention_that_was_not_trained_is_told(clipteacher, made, tmp_path):
    run = tmp_path / "mean"
    shutil.copytree(made.run, run)
    card = next(run.glob("step_*/model.json"))
    told = json.loads(card.read_text())
    told["config"]["glm"] = "off"
    card.write_text(json.dumps(told))
    assert "trained with --glm off" in clipteacher.good("show", run, "--attention").err


def test_attention_needs_the_cache_of_its_clip(clipteacher, made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made.run, run)
    card = next(run.glob("step_*/model.json"))
    told = json.loads(card.read_text())
    told["config"]["cache"] = str(tmp_path / "gone.zarr")
    card.write_text(json.dumps(told))
    assert "pass --cache PATH" in clipteacher("show", run, "--attention").error
    clipteacher.good("show", run, "--attention", "--cache", made.cache)
    source = CLIPSource(str(REPOSITORY / "tests/tiny-vit.json"), "random", 64)
    other = cache_at(tmp_path / "other.zarr", made.root, clip=source)
    assert "another CLIP" in clipteacher("show", run, "--attention", "--cache", other).error


# -- Figure 7: predictions -----------------------------------------------------------------------------------------


def test_predictions_are_the_student_s_in_the_colours_of_the_truth(student, made):
    from data_cache.datasets import open_dataset

    images = open_dataset("folder", made.root, "val")
    figure = predictions_figure(Predictor(student), images, [0, 2], 1.5, side=128)
    shown = set()
    for row, index in zip(figure.rows, (0, 2), strict=True):
        image, truth, prediction = row.panels
        found, label = Predictor(student)(images.image(index)).at(1.5), images.label(index)
        np.testing.assert_array_equal(image, images.image(index))
        for panel, wanted in ((truth, label), (prediction, found)):
            for value in set(np.unique(wanted)) - {255}:
                assert (panel[wanted == value] == colour_of(value)).all()
                shown.add(int(value))
    assert set(figure.names) == shown
    assert figure.unseen == {DISC} & shown


def test_a_run_shows_predictions_unless_told_otherwise(clipteacher, made):
    assert clipteacher.good("show", made.run, "--image", 1).out.strip() == str(made.run / "predictions.png")
    checkpoint = next(made.run.glob("step_*/model.safetensors"))
    named = clipteacher.good("show", checkpoint, "--predictions", "--image", "images/val/001.png")
    assert named.out.strip() == str(made.run / "predictions.png")


def test_gamma_is_what_predictions_are_made_at(clipteacher, made, tmp_path):
    pictures = []
    for gamma in (-1000, 1000):
        clipteacher.good("show", made.run, "--gamma", gamma, "--image", 0, "--out", tmp_path / "x.png")
        pictures.append(np.asarray(Image.open(tmp_path / "x.png")))
    disc = [(picture == colour_of(DISC)).all(axis=2).sum() for picture in pictures]
    assert disc[1] > disc[0] + 192 * 192 / 2


# -- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cache", "--attention"), "is a cache"),
        (("cache", "--view", 3), "has 3 of an image, 0 to 2"),
        (("cache", "--image", 6), "there are 6 images, 0 to 5"),
        (("cache", "--image", "nobody"), "no such image"),
        (("cache", "--image", 1, "--images", 2), "pass a number of images, or the images"),
        (("cache", "--images", 0), "at least one"),
        (("cache", "--masks", "fine"), "no mask set named 'fine'"),
        (("cache", "--gamma", 2), "--gamma: of no use for masks"),
        (("cache", "--side", 4), "at least 32"),
        (("cache", "--out", "x.jpg"), "must end in .png"),
        (("run", "--masks", "default"), "--masks: of no use for predictions"),
        (("run", "--attention", "--predictions"), "one figure at a time"),
        (("run", "--attention", "--gamma", 2), "--gamma: of no use for attention"),
        (("run", "--gamma", "inf"), "--gamma inf"),
        (("run", "--dataset", "cocoa"), "no dataset named 'cocoa'"),
    ],
)
def test_what_cannot_be_shown_is_a_usage_error_of_one_line(clipteacher, made, arguments, words):
    told = clipteacher("show", getattr(made, arguments[0]), *arguments[1:])
    assert told.status == 2
    assert words in told.error


def test_a_target_that_is_neither_cache_nor_run_is_refused(clipteacher, made, tmp_path):
    assert "no such cache, and no such run" in clipteacher("show", tmp_path / "nothing").error
    assert "no run" in clipteacher("show", tmp_path).error
    assert "no such folder" in clipteacher("show", made.run, "--root", tmp_path / "nothing").error


def test_an_image_that_failed_or_changed_is_refused_and_not_among_the_first(clipteacher, made, tmp_path):
    root = tmp_path / "drawn"
    shutil.copytree(made.root, root)
    (root / "images/train/000.png").write_bytes(b"no picture")
    path = cache_at(tmp_path / "c.zarr", root)
    out = ("--out", tmp_path / "x.png")
    assert "failed when it was cached" in clipteacher("show", path, "--image", 0, *out).error
    told = clipteacher.good("show", path, "--images", 1, *out, "--json").json
    assert told["images"][0].startswith("images/train/001.png")
    shutil.copy(root / "labels/train/002.png", root / "labels/train/001.png")
    assert "changed since it was cached" in clipteacher("show", path, "--image", 1, *out).error
    assert not list(tmp_path.glob("*.jpg"))


def test_an_image_is_named_by_its_place_its_id_or_the_end_of_it():
    ids = ["images/train/000000000007.jpg", "images/train/a,b.jpg", "images/other/x.jpg", "images/train/x.png", "7"]
    assert chosen(ids, ["2,0"]) == [2, 0]
    assert chosen(ids, ["7"]) == [4]
    assert chosen(ids, ["000000000007", "images/train/a,b.jpg", "train/x", "0"]) == [0, 1, 3]
    for wrong in ("x", "", "5", "0007", "rain/x.png"):
        refused(lambda wrong=wrong: chosen(ids, [wrong]), f"--image {wrong}", kind=UsageError)


# -- the sheet -----------------------------------------------------------------------------------------------------


def test_photographs_are_filtered_and_keep_their_aspect_ratio():
    grid = (np.indices((80, 160)).sum(axis=0) % 2 * 255).astype(np.uint8)
    drawn = np.asarray(sheet([[np.stack([grid] * 3, axis=2)]], ["image"], 40))
    panel = drawn[-20 - GAP : -GAP, GAP : GAP + 40]
    assert abs(panel[2:-2, 2:-2].astype(int) - 128).max() < 40
    assert (drawn[-20 - GAP :, GAP + 40 :] == 255).all()
    assert fitted(2000, 3, 192) == (192, 1)


def test_a_panel_at_its_size_is_drawn_as_it_is():
    panel = np.random.default_rng(0).integers(0, 256, (48, 30, 3), np.uint8)
    drawn = np.asarray(sheet([[panel]], ["labels"], 48))
    np.testing.assert_array_equal(drawn[-48 - GAP : -GAP, GAP : GAP + 30], panel)


WORDS = st.text(st.characters(codec="latin-1", exclude_categories=["Cc", "Zs"]), min_size=1, max_size=60)
NAMES = st.lists(st.lists(WORDS, min_size=1, max_size=6).map(" ".join), min_size=1, max_size=40)


@settings(deadline=None, max_examples=40)
@given(NAMES, st.integers(1, 900), st.integers(0, 40), st.integers(LETTERS, 4 * LETTERS))
def test_no_legend_is_cut_off_however_many_and_long_its_names(names, width, unseen, letters):
    written = []
    write = drawing._write

    def watched(draw, corner, lines, font, fill, leading):
        assert leading >= font.size
        for number, line in enumerate(lines):
            box = draw.textbbox((corner[0], corner[1] + leading * number), line, font=font)
            # within the picture that it is drawn on; letters may reach a little beyond their advance
            assert box[2] <= draw.im.size[0]
            assert box[3] <= draw.im.size[1] + 1
            written.append(line)
        write(draw, corner, lines, font, fill, leading)

    drawing._write = watched
    try:
        panel, notes = Image.new("RGB", (width, 10)), ["a note " * 30]
        picture = legend(panel, dict(enumerate(names)), range(unseen), "nothing at all", notes, letters)
    finally:
        drawing._write = write
    assert picture.width == max(width, LEGEND)
    told = "".join(written).replace(" ", "")
    for name in names:
        assert "".join(name.split()) in told


def test_unseen_classes_come_apart_and_framed_and_nothing_else_does():
    plain = np.asarray(legend(Image.new("RGB", (400, 1), "white"), {0: "sky", 3: "disc"}))
    framed = np.asarray(legend(Image.new("RGB", (400, 1), "white"), {0: "sky", 3: "disc"}, {3}))
    for picture, whole in ((plain, True), (framed, False)):
        side = drawing.LETTERS + 1
        assert (picture == colour_of(0)).all(axis=2).sum() == side**2
        assert ((picture == colour_of(3)).all(axis=2).sum() == side**2) == whole
    assert framed.shape[0] > plain.shape[0]


def test_a_title_longer_than_its_column_goes_on_below():
    font = ImageFont.load_default(14)
    panel = np.zeros((40, 40, 3), np.uint8)
    title = "a title of many words which no column of forty pixels holds"
    drawn = sheet([[panel, panel]], [title, "b"], 40)
    lines = drawing._wrapped(title, drawing.NARROWEST, font)
    assert " ".join(lines) == title
    assert max(map(font.getlength, lines)) <= drawing.NARROWEST
    assert drawn.height >= len(lines) * drawing.LEADING + 40
