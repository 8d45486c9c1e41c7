"""The demo at small scale: every stage of the real pipeline."""

import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from command_line import REPOSITORY
from PIL import Image

from benchmarks import attention_share
from data_cache.datasets import open_dataset
from data_cache.datasets.scenes import STUFF
from data_cache.splits import make_split
from experiments import attention
from experiments.demo import CLIP, run
from experiments.demo_config import ALL_VARIANTS, DENSE_CLIP, STUDENT, WITHOUT_GLM, WITHOUT_PLM, DemoConfig
from experiments.dense_clip import DenseCLIP
from experiments.figures import DEMO_ROWS
from pipeline.encode_job import load_clip
from pipeline.teacher.prompts import Prompts
from trainer.metrics import Metrics
from viewer.paper_figures import DEMO_SIDE

SHORT = replace(STUDENT, iterations=12, device="cpu")
IMAGES = 48


class Bars:
    """Stands in for progress bars and records their updates."""

    def __init__(self):
        self.advanced = []

    @contextmanager
    def __call__(self, verb, total, unit):
        yield lambda amount, **_: self.advanced.append((verb, amount))

    def of(self, verb):
        return [amount for name, amount in self.advanced if name == verb]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def report(out):
    return run(DemoConfig(out, SHORT, IMAGES, variants=(WITHOUT_GLM, DENSE_CLIP)), Bars())


@pytest.mark.slow
def test_sheet_has_six_panels_per_scene_and_a_legend(report):
    with Image.open(report.picture) as picture:
        assert picture.width > 6 * DEMO_SIDE
        assert picture.height > DEMO_ROWS * DEMO_SIDE + 40


@pytest.mark.slow
def test_json_report_has_metrics_and_seconds_per_stage(report):
    result = report.as_json()
    assert result["metrics"].keys() == {*Metrics.ALL_COLUMNS, "gamma", "per_class"}
    assert result["seconds"].keys() == {"precompute", "train", "evaluate"}
    assert result["compared"].keys() == {WITHOUT_GLM, DENSE_CLIP}
    for word in ("clipteacher", "mIoU(U)", *result["compared"], str(report.picture), *report.next):
        assert word in "\n".join(report.lines)


@pytest.mark.slow
def test_rerun_reuses_cache_and_student(report, out):
    bars = Bars()
    again = run(DemoConfig(out, SHORT, IMAGES), bars)
    assert again.metrics.summary == report.metrics.summary
    assert not bars.of("training")
    assert not bars.of("encoding")
    assert len(bars.of("evaluating")) == DemoConfig.tested


@pytest.mark.slow
def test_output_folder_of_another_demo_is_refused(report, clipteacher):
    other = SHORT.iterations + 1
    error = clipteacher("demo", "--out", report.picture.parent, "--limit", IMAGES, "--iterations", other).error
    assert "delete it or pass another --out" in error


@pytest.mark.parametrize("option", ["--limit", "--iterations"])
def test_zero_images_or_iterations_are_usage_errors(clipteacher, tmp_path, option):
    result = clipteacher("demo", "--out", tmp_path / "new", "--limit", 2, option, 0)
    assert result.status == 2
    assert f"{option} 0" in result.error


@pytest.mark.slow
def test_command_prints_json_and_its_suggested_commands_work(report, clipteacher):
    short = ("--limit", IMAGES, "--iterations", SHORT.iterations)
    result = clipteacher.good("demo", "--out", report.picture.parent, *short, "--json").json
    assert result["metrics"] == report.as_json()["metrics"]
    assert f"{IMAGES} of {IMAGES} done" in clipteacher.good(*report.next[0].split()[2:]).out
    evaluated = clipteacher.good("evaluate", report.run, "--dataset", "scenes", "--json").json
    about = {"dataset": "scenes", "split": "val", "setting": "inductive", "unseen": list(report.split.unseen)}
    assert evaluated == about | result["metrics"]


def test_dense_clip_predicts_the_argmax_of_token_text_similarity():
    images = open_dataset("scenes", None, "val", 3)
    clip = load_clip(CLIP, "fp32", "cpu")
    predict = DenseCLIP(clip, make_split("scenes", images.classes, None), "scenes")
    text = clip.encode_text(images.classes, Prompts("zegclip15").templates)
    image = images.image(0)
    large = np.array(Image.fromarray(image).resize((256, 256), Image.Resampling.BICUBIC))
    dense = clip.encode(large[None]).dense[0].astype(np.float64)
    dense /= np.linalg.norm(dense, axis=2, keepdims=True)
    # a token's center lies between four of the 8 x 8 pixels it covers: compare tokens where these four agree
    expected = (dense @ text.T).argmax(axis=2)
    found = predict(image).at(0.0)
    assert found.shape == image.shape[:2]
    middle = np.stack([found[3 + i :: 8, 3 + j :: 8] for i in (0, 1) for j in (0, 1)])
    agree = (middle == middle[0]).all(axis=0)
    assert agree.mean() > 0.5
    assert (middle[0] == expected)[agree].mean() > 0.95


@pytest.mark.slow
def test_attention_share_is_1_if_uniform_and_0_if_absent(report, monkeypatch):
    def stuff_attention(student, view):
        return (view.sample.label < len(STUFF)).astype(float) / (view.sample.label < len(STUFF)).sum()

    monkeypatch.setattr(attention, "attention_of", lambda *_: np.full((24, 24), 1 / 576))
    assert attention_share.preference(report.run, 6) == pytest.approx(dict.fromkeys(attention_share.KINDS, 1.0))
    monkeypatch.setattr(attention, "attention_of", stuff_attention)
    scenes = [open_dataset("scenes", None, "train", 6).load(index) for index in range(6)]
    area = np.mean([(label < len(STUFF)).mean() for _, label in scenes])
    expected = dict.fromkeys(attention_share.KINDS, 0.0) | {"stuff": 1 / area}
    assert attention_share.preference(report.run, 6) == pytest.approx(expected)


@pytest.mark.slow
def test_readme_pictures_are_drawn_from_a_demo(report, tmp_path):
    script = [sys.executable, REPOSITORY / "docs/pictures.py"]
    subprocess.run([*script, report.picture.parent, "--out", tmp_path / "new"], check=True)
    pictures = sorted((tmp_path / "new").iterdir())
    assert [file.name for file in pictures] == ["attention.png", "demo.png", "masks.png", "predictions.png"]
    for file in pictures:
        assert file.stat().st_size <= 400_000
        with Image.open(file) as picture:
            assert picture.format == "PNG"
            assert picture.width > 2 * DEMO_SIDE
    result = subprocess.run([*script, tmp_path], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_full_demo_shows_the_papers_effects(tmp_path):
    """Takes ten minutes on two cores. The margins are at most half of those measured there."""
    report = run(DemoConfig(tmp_path, replace(STUDENT, device="cpu"), variants=ALL_VARIANTS), Bars())
    print(report)
    compared = report.compared
    assert report.metrics.hiou > 0.45
    assert report.metrics.miou_unseen > compared[WITHOUT_GLM].miou_unseen + 0.12
    assert report.metrics.hiou > compared[DENSE_CLIP].hiou + 0.15
    # the global loss learns which classes an image contains, not where they are
    assert compared[WITHOUT_PLM].hiou < 0.2
