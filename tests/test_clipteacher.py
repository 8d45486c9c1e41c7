"""The Python interface: fast import, the same results as the command line, and errors in one line."""

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from command_line import REPOSITORY
from folders import make_cache
from PIL import Image
from shapes import CLASSES as SHAPES
from shapes import draw_shapes
from students import CLASSES

import clipteacher as door
from clipteacher import EvaluateConfig, PrecomputeConfig, TrainConfig, UsageError, UserError

pytestmark = pytest.mark.usefixtures("here")

NAMES = ("grass", "tiger", "rose")
HEAVY = {"torch", "torchvision", "open_clip", "zarr", "dask", "timm", "pandas", "scipy", "faiss", "typer", "rich"}


@pytest.fixture
def pixels() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((120, 90), Image.Resampling.BICUBIC))


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60
    )


def test_import_loads_no_heavy_package():
    loaded = python("-c", "import clipteacher, sys; print(*{name.split('.')[0] for name in sys.modules})").stdout
    assert not HEAVY & set(loaded.split())
    assert "numpy" in loaded.split()


def test_every_public_name_exists_with_docstring_and_types():
    assert set(door.__all__) <= set(dir(door))
    for name in door.__all__:
        entry = getattr(door, name)
        assert inspect.getdoc(entry), name
        if inspect.isfunction(entry):
            signature = inspect.signature(entry)
            assert signature.return_annotation is not inspect.Signature.empty
            assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        door.nothing  # noqa: B018


def test_module_is_the_command_line():
    assert python("-m", "clipteacher", "--version").stdout == f"{door.__version__}\n"
    helped = python("-m", "clipteacher", "train", "--help").stdout.splitlines()[2:]
    assert helped == python("cli.py", "train", "--help").stdout.splitlines()[2:]


def test_version_and_types_are_packaged():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    build = project["tool"]["hatch"]
    assert build["version"]["path"] == "clipteacher/__init__.py"
    for package in build["build"]["packages"]:
        assert package.endswith(".py") or (REPOSITORY / package / "py.typed").is_file()


def test_prediction_equals_the_command(run, pixels, clipteacher):
    Image.fromarray(pixels).save("photo.png")
    clipteacher.good("predict", run, "photo.png", "--classes", ",".join(NAMES), "--gamma", 0.5, "--out", "out")
    written = np.asarray(Image.open("out/photo.png.index.png"))
    assert len(np.unique(written)) > 1
    segmenter = door.load(run)
    for image in ("photo.png", Path("photo.png"), Image.open("photo.png"), pixels):
        for classes in (NAMES, list(NAMES), ",".join(NAMES)):
            result = segmenter.predict(image, classes, gamma=0.5)
            np.testing.assert_array_equal(result.label_map, written)
            assert result.classes == NAMES
    overlay = segmenter.predict("photo.png", NAMES, 0.5).overlay()
    np.testing.assert_array_equal(np.asarray(overlay), np.asarray(Image.open("out/photo.png.overlay.png")))


def test_segmentation_has_scores_and_areas(run, pixels):
    result = door.load(run / "step_00000001").predict(pixels)
    assert result.classes == CLASSES
    assert result.scores.shape == result.label_map.shape == (90, 120)
    assert 1 / len(CLASSES) <= result.scores.min() < result.scores.max() <= 1
    shares = [area.share for area in result.areas.values()]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert shares == sorted(shares, reverse=True)
    for name, area in result.areas.items():
        where = result.label_map == CLASSES.index(name)
        assert area.pixels == where.sum() > 0
        assert area.score == pytest.approx(result.scores[where].mean(), abs=1e-4)
        assert area.unseen == (name == "tiger")


def test_notebooks_show_image_prediction_and_legend(run, pixels):
    segmenter = door.load(run)
    html = segmenter.predict(pixels, ["椅子 <b>"])._repr_html_()
    assert html.count("<img") == 2
    assert "image, 120 x 90 px" in html
    assert "椅子 &lt;b&gt; 100.0 % (unseen)" in html
    assert "tiger" in segmenter._repr_html_()
    assert repr(segmenter) == "fpn (resnet18) at 64 px after 1 update: 4 classes, unseen: tiger"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_pil_images_of_every_8_bit_mode_are_accepted(run, pixels, mode):
    result = door.load(run).predict(Image.fromarray(pixels).convert(mode))
    assert result.image.shape == (90, 120, 3)


def test_exif_orientation_of_a_pil_image_is_applied(run, pixels):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save("p.png", exif=exif)
    assert door.load(run).predict(Image.open("p.png")).label_map.shape == (120, 90)


BAD_IMAGES = [
    (np.zeros((9, 9, 3)), "float64"),
    (np.zeros((9, 9), np.uint8), r"\(9, 9\)"),
    (np.zeros((9, 9, 4), np.uint8), r"\(9, 9, 4\)"),
    (np.zeros((0, 9, 3), np.uint8), r"\(0, 9, 3\)"),
    (np.zeros((2, 99, 3), np.uint8), "too long a strip"),
    (Image.new("I;16", (9, 9)), "mode I;16"),
    ("nothing.png", "nothing.png"),
    (3, "int is not an image"),
]


@pytest.mark.parametrize(("image", "word"), BAD_IMAGES, ids=[word for _, word in BAD_IMAGES])
def test_bad_images_are_user_errors(run, image, word):
    with pytest.raises(UserError, match=word):
        door.load(run).predict(image)


BAD_CALLS = [
    (lambda run: door.load("nothing"), "no such run"),
    (lambda run: door.load(run, device="tpu"), "tpu"),
    (lambda run: door.load(run).predict("p.png", []), "names no class"),
    (lambda run: door.load(run).predict("p.png", ["sky", " Sky"]), "again name 2"),
    (lambda run: door.load(run).predict("p.png", ["sky", 3]), "3 is not a name"),
    (lambda run: door.load(run).predict("p.png", gamma=float("nan")), "--gamma nan"),
    (lambda run: door.load(run).predict("p.png", gamma="1"), "--gamma '1': must be float"),
    (lambda run: door.precompute(PrecomputeConfig(dataset="folder", root="none", unseen="a")), "no such folder"),
    (lambda run: door.precompute(PrecomputeConfig(dataset="Folder")), "did you mean 'folder'"),
    (lambda run: door.train(TrainConfig()), "no cache in"),
    (lambda run: door.evaluate(EvaluateConfig(run, dataset="folder", root="none")), "no such folder"),
    (lambda run: EvaluateConfig(run, dataset="folder", gamma="a"), "gamma"),
]


@pytest.mark.parametrize(("call", "words"), BAD_CALLS, ids=[words for _, words in BAD_CALLS])
def test_mistakes_are_user_errors(run, call, words):
    with pytest.raises(UserError, match=words):
        call(run)


def test_precompute_train_evaluate_and_predict(tmp_path, capsys):
    root = draw_shapes(tmp_path / "drawn", {"train": 6, "val": 2})
    settings = PrecomputeConfig(
        dataset="folder", root=str(root), unseen="disc", clip="tiny", image_size=64, cache="c.zarr", device="cpu"
    )
    cache = door.precompute(settings)
    assert len(cache) == 6
    config = TrainConfig(
        cache="c.zarr",
        encoder_weights="none",
        size=64,
        iterations=2,
        batch_size=2,
        loss_stride=4,
        device="cpu",
        workers=0,
    )
    segmenter = door.train(config, "run")
    assert segmenter.classes == SHAPES
    assert segmenter.unseen == ("disc",)
    with pytest.raises(UsageError, match="contains a trained run"):
        door.train(config, "run")
    assert door.train(config, "run", resume=True).checkpoint.step == 2
    report = door.evaluate(EvaluateConfig("run", dataset="folder", root=str(root), gamma=1.5))
    assert 0 <= report.metrics.miou_seen <= 1
    assert repr(report).startswith("mIoU")
    assert "<th" in report._repr_html_()
    image = next((root / "images/val").iterdir())
    assert door.load("run").predict(image).label_map.shape == (128, 128)
    printed = capsys.readouterr()
    assert printed.out == ""
    for word in ("6 of 6", "training", "evaluating"):
        assert word in printed.err


def test_open_cache_is_the_viewers(here):
    root = draw_shapes(here / "drawn", {"train": 2})
    make_cache(root, here / "c.zarr", clip="tiny", clip_weights=None, unseen="disc")
    assert isinstance(door.open_cache("c.zarr"), door.CacheReader)
