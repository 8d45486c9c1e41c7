"""`predict`: any images, any class names, and bad input of every kind."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cards import change_card
from PIL import Image
from students import CLASSES, SIDE, make_student, text_of
from torch.nn import functional as F

from experiments import transfer
from pipeline.teacher import rebuild
from trainer.checkpoint import load
from trainer.predictor import Predictor
from viewer.class_colors import class_colors

pytestmark = pytest.mark.usefixtures("here")

NAMES = ("frisbee", "grass", "quilt", "sky", "melon")


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth patches of color, for which an untrained student predicts several classes."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def photo(tmp_path) -> Path:
    Image.fromarray(scene(90, 120)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def index_map(out: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(out / f"{name}.index.png"))


def areas(out: Path, name: str) -> dict:
    return json.loads((out / f"{name}.areas.json").read_text())


def resize_logits(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize each map bilinearly with Pillow, which equals torch when upsampling."""
    maps = (Image.fromarray(one.astype(np.float32)) for one in logits)
    return np.stack([np.asarray(one.resize(size[::-1], Image.Resampling.BILINEAR)) for one in maps])


def expected_logits(
    run: Path, text: torch.Tensor, unlabelled: list[bool], image: np.ndarray, gamma: float
) -> np.ndarray:
    """Logits at the image's own resolution with gamma added, resized independently of the code under test."""
    student = load(run, torch.device("cpu"))
    scale = SIDE / min(image.shape[:2])
    height, width = (round(side * scale) for side in image.shape[:2])
    pixels = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    pad = ((0, -height % 32), (0, -width % 32), (0, 0))
    padded = torch.from_numpy(np.pad(pixels, pad, mode="edge")).permute(2, 0, 1)[None]
    with torch.inference_mode():
        cells = F.normalize(student.network(padded)[0], dim=0).double().numpy()
    logits = np.einsum("kc,cyx->kyx", F.normalize(text, dim=1).double().numpy(), cells) / 0.07
    full = resize_logits(logits, padded.shape[2:])[:, :height, :width]
    return resize_logits(full, image.shape[:2]) + gamma * np.array(unlabelled)[:, None, None]


def assert_argmax(found: np.ndarray, logits: np.ndarray) -> None:
    first, second = np.sort(logits, axis=0)[-1], np.sort(logits, axis=0)[-2]
    clear = first - second > 1e-3
    assert clear.mean() > 0.9
    assert len(np.unique(found)) > 1
    np.testing.assert_array_equal(found[clear], logits.argmax(axis=0)[clear])


@pytest.mark.parametrize("gamma", [None, 0, -0.5])
def test_index_map_is_the_argmax_with_gamma_on_unseen_classes(run, photo, clipteacher, gamma):
    given = () if gamma is None else ("--gamma", gamma)
    clipteacher.good("predict", run, photo, "--out", "out", *given)
    added = 1.5 if gamma is None else gamma
    logits = expected_logits(run, text_of(CLASSES), [False, False, True, False], scene(90, 120), added)
    assert_argmax(index_map(Path("out"), "photo.png"), logits)


def test_known_names_keep_their_features_and_new_names_are_encoded(tmp_path, photo, clipteacher):
    # features that no text tower would return
    own = F.normalize(torch.randn(4, 128, generator=torch.Generator().manual_seed(1)), dim=1)
    run = make_student(tmp_path / "own", text=own)
    clipteacher.good("predict", run, photo, "--classes", ",".join(NAMES), "--out", "out", "--gamma", 0.5)
    new = text_of(("frisbee", "quilt", "melon"))
    text = torch.stack([new[0], own[1], new[1], own[0], new[2]])
    logits = expected_logits(run, text, [True, False, True, False, True], scene(90, 120), 0.5)
    assert_argmax(index_map(Path("out"), "photo.png"), logits)


def test_other_prompts_apply_to_all_names(tmp_path, photo, clipteacher):
    run = make_student(tmp_path / "own", text=torch.eye(4, 128))
    clipteacher.good("predict", run, photo, "--classes", "sky,rose", "--prompts", "zegclip15", "--out", "out")
    logits = expected_logits(run, text_of(("sky", "rose"), "zegclip15"), [False, False], scene(90, 120), 0)
    np.testing.assert_array_equal(index_map(Path("out"), "photo.png"), logits.argmax(axis=0))
    assert areas(Path("out"), "photo.png")["settings"]["prompts"] == "zegclip15"


def test_labelled_names_match_in_any_case_and_by_synonym(run, photo, clipteacher):
    clipteacher.good("predict", run, photo, "--classes", "Sky,Tiger,sky-other", "--out", "out")
    result = areas(Path("out"), "photo.png")["areas"]
    assert {name: area["unseen"] for name, area in result.items()} == {"Sky": False, "Tiger": True, "sky-other": False}


def test_areas_match_the_index_map(run, photo, clipteacher):
    result = clipteacher.good("predict", run, photo, "--classes", ",".join(NAMES), "--out", "out", "--json").json
    file, found = areas(Path("out"), "photo.png"), index_map(Path("out"), "photo.png")
    assert (file["height"], file["width"]) == found.shape == (90, 120)
    assert list(file["areas"]) == list(NAMES)
    for index, (name, area) in enumerate(file["areas"].items()):
        assert area["index"] == index
        assert area["pixels"] == (found == index).sum()
        assert area["share"] == pytest.approx((found == index).mean(), abs=1e-6)
        assert (name in result["areas"]["photo.png"]) == (area["pixels"] > 0)
    settings = {"gamma": 1.5, "sliding": False, "size": SIDE, "step": 1, "prompts": "single", "clip": "tiny"}
    assert settings.items() <= file["settings"].items()
    assert (result["photographs"], result["done"], result["failed"]) == (1, 1, 0)


def test_overlay_has_a_legend_of_the_classes_present(run, photo, clipteacher):
    clipteacher.good("predict", run, photo, "--classes", ",".join(NAMES), "--out", "out")
    found = index_map(Path("out"), "photo.png")
    drawn = np.asarray(Image.open("out/photo.png.overlay.png")).astype(int)
    colors = class_colors(NAMES)[found]
    gray = scene(90, 120).mean(axis=2, keepdims=True)
    assert abs(drawn[:90, :120] - (0.45 * gray + 0.55 * colors)).max() <= 1
    legend = {tuple(color) for color in drawn[90:].reshape(-1, 3)}
    for index, color in enumerate(class_colors(NAMES)):
        assert (tuple(color) in legend) == (index in found)


def test_class_has_its_color_at_any_place_in_the_list(run, photo, clipteacher):
    colors = {}
    for number, names in enumerate(("rose,gnome,sky", "sky,gnome,rose", "gnome,road")):
        classes = names.split(",")
        clipteacher.good("predict", run, photo, "--classes", names, "--out", f"out{number}", "--gamma", 0)
        found = index_map(Path(f"out{number}"), "photo.png")
        drawn = np.asarray(Image.open(f"out{number}/photo.png.overlay.png"))[:90, :120].astype(float)
        painted = (drawn - 0.45 * scene(90, 120).mean(axis=2, keepdims=True)) / 0.55
        for index in np.unique(found):
            color = np.median(painted[found == index], axis=0)
            np.testing.assert_allclose(colors.setdefault(classes[index], color), color, atol=1.5)
    assert len(colors) > 1


@pytest.mark.parametrize(("height", "width"), [(3, 2), (40, 30), (400, 900)])
def test_legend_is_never_cut_off(run, tmp_path, clipteacher, height, width):
    Image.fromarray(scene(height, width)).save(tmp_path / "p.png")
    clipteacher.good(
        "predict", run, tmp_path / "p.png", "--classes", "a name of many words and letters", "--out", "out"
    )
    drawn = np.asarray(Image.open("out/p.png.overlay.png"))
    assert (drawn[:, -4:][height:] == 255).all()
    assert (drawn[-2:] == 255).all()
    assert (drawn[height:] < 128).any()


def test_names_missing_from_the_font_lose_accents_or_become_an_index(run, photo, clipteacher):
    def written(names: str) -> bytes:
        clipteacher.good("predict", run, photo, "--classes", names, "--out", "out")
        return (np.asarray(Image.open("out/photo.png.overlay.png"))[90:] == 0).all(axis=2).tobytes()

    assert written("Müllère") == written("Mullere") != written("Mullera")
    assert written("椅子") == written("class 0")
    assert list(areas(Path("out"), "photo.png")["areas"]) == ["class 0"]


def test_folder_is_walked_in_order_and_equal_stems_do_not_collide(run, tmp_path, clipteacher):
    folder, names = tmp_path / "album", ["a.jpg", "a.png", "b [1]/a.JPG", "b [1]/c/a.jpg"]
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(40 + seed, 50, seed)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    result = clipteacher.good("predict", run, folder, "--out", "out", "--json")
    assert list(result.json["areas"]) == names
    assert "segmenting" in result.err
    files = {file.relative_to("out").as_posix() for file in Path("out").rglob("*") if file.is_file()}
    assert files == {f"{name}{ending}" for name in names for ending in (".overlay.png", ".index.png", ".areas.json")}
    for seed, name in enumerate(names):
        assert index_map(Path("out"), name).shape == (40 + seed, 50)


def test_unreadable_images_are_skipped_and_the_exit_status_is_1(run, tmp_path, clipteacher):
    folder = tmp_path / "album"
    folder.mkdir()
    for name in ("a.jpg", "z.jpg"):
        Image.fromarray(scene(40, 50)).save(folder / name)
    (folder / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    (folder / "empty.png").write_bytes(b"")
    Image.fromarray(scene(2, 200)).save(folder / "strip.png")
    result = clipteacher("predict", run, folder, "--out", "out", "--json")
    assert result.status == 1
    assert "3 of 5 images failed" in result.error
    assert list(result.json["areas"]) == ["a.jpg", "z.jpg"]
    assert list(result.json["failures"]) == ["cut.jpg", "empty.png", "strip.png"]
    for name in result.json["failures"]:
        assert f"failed {name}: " in result.err
        assert not list(Path("out").glob(f"{name}*"))
    assert (Path("out") / "z.jpg.areas.json").is_file()


def test_undecodable_file_names_are_reported_and_skipped(run, tmp_path, clipteacher):
    folder = tmp_path / "album"
    folder.mkdir()
    Image.fromarray(scene(40, 50)).save(folder / "a.jpg")
    try:
        (folder / "\udcff.jpg").write_bytes((folder / "a.jpg").read_bytes())
    except OSError:
        pytest.skip("this file system refuses such a name")
    result = clipteacher("predict", run, folder, "--out", "out")
    assert "1 of 2 images failed" in result.error
    assert "udcff.jpg" in result.err


def test_single_unreadable_image_is_an_error(run, tmp_path, clipteacher):
    (tmp_path / "p.jpg").write_bytes(b"not an image")
    result = clipteacher("predict", run, tmp_path / "p.jpg", "--out", "out")
    assert "cannot read the image" in result.error
    assert not Path("out").exists()


def test_exif_orientation_is_applied(run, tmp_path, clipteacher):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scene(90, 120)).save(tmp_path / "p.png", exif=exif)
    Image.fromarray(np.rot90(scene(90, 120), -1)).save(tmp_path / "q.png")
    for name in ("p.png", "q.png"):
        clipteacher.good("predict", run, tmp_path / name, "--out", "out")
    assert areas(Path("out"), "p.png")["height"] == 120
    np.testing.assert_array_equal(index_map(Path("out"), "p.png"), index_map(Path("out"), "q.png"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_every_mode_are_segmented(run, tmp_path, clipteacher, mode):
    picture = Image.fromarray(scene(40, 50))
    file = tmp_path / ("p.tif" if mode == "CMYK" else "p.png")
    gray = np.asarray(picture.convert("L"))
    (Image.fromarray(gray.astype(np.uint16) * 256) if mode == "I;16" else picture.convert(mode)).save(file)
    clipteacher.good("predict", run, file, "--out", "out")
    assert index_map(Path("out"), file.name).shape == (40, 50)


def test_sliding_option_uses_the_sliding_window(run, photo, clipteacher):
    clipteacher.good("predict", run, photo, "--out", "out", "--sliding")
    predicted = Predictor(load(run, torch.device("cpu")), sliding=True)(scene(90, 120)).at(1.5)
    np.testing.assert_array_equal(index_map(Path("out"), "photo.png"), predicted)
    assert areas(Path("out"), "photo.png")["settings"]["sliding"] is True


@pytest.mark.parametrize(("count", "mode"), [(1, "L"), (200, "L"), (255, "L"), (256, "I;16"), (300, "I;16")])
def test_index_maps_have_16_bits_above_255_classes(run, photo, clipteacher, monkeypatch, count, mode):
    features = F.normalize(torch.randn(count, 128, generator=torch.Generator().manual_seed(0)), dim=1)
    monkeypatch.setattr(transfer, "text_features", lambda *_: (features.numpy(), ()))
    (photo.parent / "names.txt").write_text("\n".join(f"thing {n}" for n in range(count)))
    clipteacher.good("predict", run, photo, "--classes", photo.parent / "names.txt", "--out", "out")
    picture = Image.open("out/photo.png.index.png")
    assert picture.mode == mode
    logits = expected_logits(run, features, [True] * count, scene(90, 120), 0)
    found = np.asarray(picture)
    assert (found == logits.argmax(axis=0)).mean() > 0.98
    assert count < 300 or found.max() > 255


def test_class_file_equals_a_list_of_names(run, photo, clipteacher):
    clipteacher.good("predict", run, photo, "--classes", "grass, a  big frisbee,sky", "--out", "list")
    (photo.parent / "names").write_bytes(b"\xef\xbb\xbfgrass\r\n a big frisbee \r\nsky\r\n\r\n")
    clipteacher.good("predict", run, photo, "--classes", photo.parent / "names", "--out", "file")
    one, two = areas(Path("list"), "photo.png"), areas(Path("file"), "photo.png")
    assert one == two
    assert list(one["areas"]) == ["grass", "a big frisbee", "sky"]


@pytest.mark.parametrize(
    ("classes", "word"),
    [
        ("", "names no class"),
        (" ", "names no class"),
        ("tree,,grass", "name 2 is blank"),
        ("tree,grass,", "name 3 is blank"),
        ("tree,grass,Tree", "'Tree' is name 1 and again name 3"),
        ("no-such-file.txt", "no such file"),
    ],
)
def test_invalid_class_lists_are_refused(run, photo, clipteacher, classes, word):
    result = clipteacher("predict", run, photo, "--classes", classes, "--out", "out")
    assert result.status == 2
    assert word in result.error
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "names no class"),
        (b"tree\n\ngrass\n", "line 2 is blank"),
        (b"a\nb\na\n", "line 3"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_invalid_class_files_are_refused(run, photo, clipteacher, content, word):
    (photo.parent / "names").write_bytes(content)
    assert word in clipteacher("predict", run, photo, "--classes", photo.parent / "names").error


def test_missing_images_are_refused(run, tmp_path, clipteacher):
    assert "no such file or folder" in clipteacher("predict", run, tmp_path / "nothing.jpg").error
    (tmp_path / "empty").mkdir()
    assert "no images" in clipteacher("predict", run, tmp_path / "empty").error


@pytest.mark.parametrize(
    "option", [("--gamma", "nan"), ("--gamma", "1e+39"), ("--gamma", "1,2"), ("--device", "tpu"), ("--prompts", "many")]
)
def test_invalid_options_are_usage_errors(run, photo, clipteacher, option):
    result = clipteacher("predict", run, photo, *option)
    assert result.status == 2
    assert option[1] in result.error


@pytest.mark.parametrize("out", ["album", "album/results", "album/../album/a"])
def test_output_inside_the_input_folder_is_refused(run, here, clipteacher, out):
    (here / "album").mkdir()
    Image.fromarray(scene(40, 50)).save(here / "album/p.png")
    result = clipteacher("predict", run, "album", "--out", out)
    assert result.status == 2
    assert "among the images" in result.error
    assert [file.name for file in (here / "album").rglob("*")] == ["p.png"]


def test_known_and_cached_names_need_no_text_tower(run, photo, clipteacher, monkeypatch):
    clipteacher.good("predict", run, photo, "--classes", "frisbee,sky", "--out", "before")

    def refuse(*_, **__):
        raise AssertionError("CLIP was loaded")

    monkeypatch.setattr(rebuild, "FrozenCLIP", refuse)
    clipteacher.good("predict", run, photo, "--out", "own")
    clipteacher.good("predict", run, photo, "--classes", "rose,tiger", "--out", "some")
    clipteacher.good("predict", run, photo, "--classes", "frisbee,rose", "--out", "kept")
    with pytest.raises(AssertionError, match="CLIP was loaded"):
        clipteacher("predict", run, photo, "--classes", "gnu", "--out", "new")


def test_new_names_without_the_training_clip_are_refused(run, photo, clipteacher):
    arguments = ("predict", run, photo, "--classes", "sky,gnu,okapi", "--out", "out")
    error = clipteacher(*arguments, "--clip", photo.parent / "none.json").error
    assert "'gnu' and 1 more must be encoded by the text tower" in error
    error = clipteacher(*arguments, "--clip", "tiny", "--clip-weights", "random").error
    assert "not the CLIP of the cache" in error
    assert not Path("out").exists()


def test_unwritable_results_of_one_image_do_not_stop_the_others(run, here, clipteacher):
    folder, long = here / "album", f"{'n' * 245}.jpg"
    folder.mkdir()
    for name in ("a.jpg", long, "z.jpg"):
        Image.fromarray(scene(40, 50)).save(folder / name)
    (here / "out/a.jpg.index.png").mkdir(parents=True)
    result = clipteacher("predict", run, folder, "--out", "out", "--json")
    assert result.status == 1
    assert list(result.json["areas"]) == ["z.jpg"]
    assert set(result.json["failures"]) == {"a.jpg", long}
    assert all("rename the file" in why for why in result.json["failures"].values())


def test_named_pipes_are_skipped_without_blocking(run, here, clipteacher):
    (here / "album").mkdir()
    os.mkfifo(here / "album/pipe.jpg")
    Image.fromarray(scene(40, 50)).save(here / "album/a.jpg")
    result = clipteacher("predict", run, "album", "--out", "out", "--json")
    assert list(result.json["areas"]) == ["a.jpg"]
    assert "is not a file" in result.json["failures"]["pipe.jpg"]


def test_indistinguishable_names_are_refused(run, photo, clipteacher):
    long = "x " * 200
    result = clipteacher("predict", run, photo, "--classes", f"{long}a,sky,{long}b", "--out", "out")
    assert result.status == 2
    assert "cannot tell these classes apart" in result.error


def test_state_saved_after_a_non_finite_loss_is_refused(run, photo, tmp_path, clipteacher):
    shutil.copytree(next(run.glob("step_*")), tmp_path / "failed_00000001")
    change_card(tmp_path / "failed_00000001", lambda card: card.update(failed="ce"))
    assert "not finite" in clipteacher("predict", tmp_path / "failed_00000001", photo, "--out", "out").error


def test_skipped_file_types_are_counted(run, photo, clipteacher, tmp_path):
    (tmp_path / "album").mkdir()
    shutil.copy(photo, tmp_path / "album/a.png")
    for name in ("b.jfif", "c.jpe"):
        (tmp_path / "album" / name).write_bytes(b"")
    result = clipteacher.good("predict", run, tmp_path / "album", "--out", tmp_path / "out", "--device", "cpu")
    assert "1 .jfif, 1 .jpe" in result.err
