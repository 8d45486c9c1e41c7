"""`export`: the ONNX graph equals the student at every size it accepts, and a wrong graph is never kept."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from command_line import REPOSITORY
from PIL import Image
from students import CLASSES, MICRO_SWIN, SIDE, make_student, text_of
from torch.nn import functional as F

from experiments import export as graphs
from experiments.graph import BinMeans
from experiments.presets import STUDENTS
from trainer.checkpoint import load

SIZES = ((64, 64), (96, 160), (32, 128), (256, 64))


def session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def about(file: Path) -> dict[str, str]:
    return session(file).get_modelmeta().custom_metadata_map


def noise(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (count, 3, height, width), dtype=np.uint8)


def logits_of(run: Path, text: torch.Tensor, images: np.ndarray) -> np.ndarray:
    """Eq. 9 in float64 numpy, from the student's features image by image."""
    segmenter = load(run, torch.device("cpu")).network
    with torch.inference_mode():
        features = np.concatenate([segmenter(torch.from_numpy(one[None])).double().numpy() for one in images])
    rows = text.double().numpy() / np.linalg.norm(text.double().numpy(), axis=1, keepdims=True)
    return np.einsum("kc,bcyx->bkyx", rows / 0.07, features / np.linalg.norm(features, axis=1, keepdims=True))


def assert_matches_student(
    file: Path, run: Path, sizes: tuple[tuple[int, int], ...], counts: tuple[int, ...] = (1, 3)
) -> None:
    for height, width in sizes:
        for count in counts:
            images = noise(count, height, width)
            found = session(file).run(["logits"], {"image": images})[0]
            expected = logits_of(run, text_of(CLASSES), images)
            assert found.dtype == np.float32
            assert found.shape == expected.shape
            assert expected.std() > 0.1
            assert abs(found - expected).max() < 1e-3


@pytest.fixture(autouse=True)
def _caches_here(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPTEACHER_CACHE", str(tmp_path / "caches"))


@pytest.fixture(scope="module")
def exported(run) -> Path:
    """The graph of a convolutional student, the fastest to trace."""
    return graphs.export(graphs.ExportConfig(run, run / "graphs/student.onnx")).path


def test_convolutional_graph_matches_student_at_any_size_and_batch(run, exported):
    assert_matches_student(exported, run, SIZES)
    assert session(exported).get_inputs()[0].shape == ["batch", 3, "32*rows", "32*columns"]
    assert session(exported).get_outputs()[0].shape == ["batch", 4, "8*rows", "8*columns"]
    onnx.checker.check_model(exported)


@pytest.mark.slow
def test_segformer_graph_matches_student_at_any_size(tmp_path, clipteacher):
    run = make_student(tmp_path / "run", "segformer", "mit_b0")
    result = clipteacher.good("export", run, "--onnx", tmp_path / "s.onnx", "--json").json
    assert result["height"] == result["width"] == "any"
    assert result["difference"] < 1e-3
    assert_matches_student(tmp_path / "s.onnx", run, SIZES)


@pytest.mark.slow
def test_swin_is_exported_at_training_size_with_a_message(tmp_path, clipteacher):
    run = make_student(tmp_path / "run", "upernet", MICRO_SWIN)
    result = clipteacher.good("export", run, "--onnx", tmp_path / "s.onnx")
    assert "64 x 64 pixels only" in result.err
    assert "--size" in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert_matches_student(tmp_path / "s.onnx", run, ((SIDE, SIDE),))
    with pytest.raises(Exception, match="Got invalid dimensions"):
        session(tmp_path / "s.onnx").run(None, {"image": noise(1, 96, 96)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "encoder"), [("upernet", MICRO_SWIN), ("upernet", "resnet18"), ("segnext", "mscan_t")]
)
def test_upernet_and_segnext_graphs_match_student_at_any_size(tmp_path, clipteacher, arch, encoder):
    run = make_student(tmp_path / "run", arch, encoder)
    clipteacher.good("export", run, "--onnx", tmp_path / "s.onnx", "--size", "any")
    assert_matches_student(tmp_path / "s.onnx", run, SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin-b", "segnext-b", "segformer-b4"])
def test_graphs_of_the_papers_students_match(tmp_path, clipteacher, name):
    student = STUDENTS[name]
    run = make_student(tmp_path / "run", student["arch"], student["encoder"])
    clipteacher.good("export", run, "--onnx", tmp_path / "s.onnx", "--size", "96,128")
    assert_matches_student(tmp_path / "s.onnx", run, ((96, 128),), counts=(1, 2))


@pytest.mark.slow
def test_fixed_size_graph_matches_student(run, tmp_path, clipteacher):
    file = tmp_path / "s.onnx"
    result = clipteacher.good("export", run, "--onnx", file, "--size", "64,96")
    assert "64 x 96" in result.out
    assert "only" not in result.err
    assert_matches_student(file, run, ((64, 96),))
    assert session(file).get_inputs()[0].shape[1:] == [3, 64, 96]
    assert (about(file)["height"], about(file)["width"]) == ("64", "96")


def test_metadata_describes_the_graph(exported):
    result = about(exported)
    assert json.loads(result["classes"]) == list(CLASSES)
    assert json.loads(result["unseen"]) == ["tiger"]
    expected = {"gamma": "1.5", "gamma_added": "false", "size": "64", "multiple": "32", "stride": "4", "step": "1"}
    assert expected.items() <= result.items()
    assert (result["height"], result["width"], result["clip"], result["prompts"]) == ("any", "any", "tiny", "single")
    described = onnx.load(exported).doc_string
    for word in ("uint8", "RGB", "multiples of 32", "height/4", "1.5 is to be added"):
        assert word in described


@pytest.mark.slow
def test_custom_classes_and_gamma_are_part_of_the_graph(run, tmp_path, clipteacher):
    file, names = tmp_path / "s.onnx", ("frisbee", "sky", "tiger")
    clipteacher.good("export", run, "--onnx", file, "--classes", ",".join(names), "--gamma", 2.25)
    images = noise(2, 64, 96)
    found = session(file).run(None, {"image": images})[0]
    expected = logits_of(run, text_of(names), images) + 2.25 * np.array([1, 0, 1])[:, None, None]
    assert abs(found - expected).max() < 1e-3
    result = about(file)
    assert (result["gamma"], result["gamma_added"]) == ("2.25", "true")
    assert json.loads(result["classes"]) == list(names)
    assert json.loads(result["unseen"]) == ["frisbee", "tiger"]


@pytest.mark.slow
def test_dot_logits_are_exported(tmp_path, clipteacher):
    run = make_student(tmp_path / "run", logits="dot")
    clipteacher.good("export", run, "--onnx", tmp_path / "s.onnx", "--size", 64)
    images = noise(1, 64, 64)
    with torch.inference_mode():
        features = load(run, torch.device("cpu")).network(torch.from_numpy(images)).numpy()
    expected = np.einsum("kc,bcyx->bkyx", F.normalize(text_of(CLASSES), dim=1).numpy(), features)
    np.testing.assert_allclose(
        session(tmp_path / "s.onnx").run(None, {"image": images})[0], expected, rtol=1e-3, atol=1e-3
    )


def test_documented_example_matches_predict(run, exported, tmp_path, clipteacher, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "student.onnx").write_bytes(exported.read_bytes())
    coarse = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((192, 128), Image.Resampling.BICUBIC).save("photo.jpg")
    (example,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/export.md").read_text(), re.DOTALL)
    exec(compile(example, "docs/export.md", "exec"), {})
    clipteacher.good("predict", run, "photo.jpg", "--out", "out")
    ours, theirs = (np.asarray(Image.open(file)) for file in ("out/photo.jpg.index.png", "index.png"))
    assert len(np.unique(ours)) > 1
    assert (ours == theirs).mean() > 0.97


@pytest.mark.parametrize("bins", [(1, 3), (2, 2), (3, 3), (6, 6), (5, 4)])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (6, 6), (7, 20), (16, 11)])
def test_bin_means_match_adaptive_average_pooling(bins, size):
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(BinMeans(*bins)(x), F.adaptive_avg_pool2d(x, bins))


def test_graph_that_differs_from_the_student_is_not_kept(run, tmp_path, clipteacher, monkeypatch):
    class Wrong(graphs.Graph):
        def forward(self, image):
            return super().forward(image) + 0.01 * (image.shape[3] > 64)

    (tmp_path / "s.onnx").write_text("an older one")
    monkeypatch.setattr(graphs, "Graph", Wrong)
    result = clipteacher("export", run, "--onnx", tmp_path / "s.onnx", "--size", "64,96")
    assert result.status == 1
    assert "at 64 x 96 pixels the graph's logits are 0.01 off the student's" in result.error
    assert [file.name for file in tmp_path.iterdir()] == ["s.onnx"]
    assert (tmp_path / "s.onnx").read_text() == "an older one"


@pytest.mark.slow
def test_export_falls_back_to_a_fixed_size(run, tmp_path, clipteacher, monkeypatch):
    def trace(graph, size, original=graphs._trace):
        if size is None:
            raise RuntimeError("a symbol became a number\nin line 3")
        return original(graph, size)

    monkeypatch.setattr(graphs, "_trace", trace)
    result = clipteacher.good("export", run, "--onnx", tmp_path / "s.onnx")
    assert "64 x 64 pixels only" in result.err
    assert "a symbol became a number in line 3" in result.err
    assert_matches_student(tmp_path / "s.onnx", run, ((64, 64),), counts=(2,))


@pytest.mark.parametrize("package", graphs.PACKAGES)
def test_missing_packages_are_reported_with_the_install_command(run, tmp_path, clipteacher, monkeypatch, package):
    monkeypatch.setattr(graphs, "find_spec", lambda name: None if name == package else name)
    result = clipteacher("export", run, "--onnx", tmp_path / "s.onnx")
    assert result.status == 1
    assert f"needs the package {package}: pip install 'clipteacher[onnx]'" in result.error


@pytest.mark.parametrize("size", ["100", "0", "-32", "64,64,64", "big", "64,", ""])
def test_invalid_sizes_are_usage_errors(run, tmp_path, clipteacher, size):
    result = clipteacher("export", run, "--onnx", tmp_path / "s.onnx", f"--size={size}")
    assert result.status == 2
    assert f"--size {size}: must be any" in result.error


def test_folder_in_place_of_the_file_is_refused(run, tmp_path, clipteacher):
    assert "is a folder" in clipteacher("export", run, "--onnx", tmp_path).error


def test_missing_checkpoint_and_blank_names_are_refused(run, tmp_path, clipteacher):
    assert "no such run" in clipteacher("export", tmp_path / "none", "--onnx", tmp_path / "s.onnx").error
    assert "name 2 is blank" in clipteacher("export", run, "--onnx", tmp_path / "s.onnx", "--classes", "a,,b").error
