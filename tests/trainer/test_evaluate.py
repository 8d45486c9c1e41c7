"""Evaluation: sizes, sliding windows, gamma, and the metrics of students with known predictions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import bilinear
from PIL import Image
from refusals import refused
from torch import nn
from training_scenes import CLASSES, UNSEEN, draw_scenes

from data_cache.datasets import open_dataset
from data_cache.errors import UserError
from data_cache.splits import make_split
from trainer.checkpoint import Checkpoint
from trainer.config import GAMMA, TrainConfig
from trainer.evaluate import evaluate
from trainer.predictor import Predictor, window_starts
from trainer.students.network import StudentNetwork

CHANNELS, SIDE = 16, 64
SPLIT = make_split("folder", CLASSES, UNSEEN)


class Paletted(nn.Module):
    """A student that reads the class from the red value: 10 for class 0, 20 for class 1, and so on."""

    multiple = 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        distance = (images[:, :1] - 10 * (1 + torch.arange(len(CLASSES), device=images.device)).view(1, -1, 1, 1)).abs()
        return torch.nn.functional.pad(1 - distance / 10, (0, 0, 0, 0, 0, CHANNELS - len(CLASSES)))


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    segmenter = StudentNetwork("fpn", "resnet18", "none", CHANNELS).eval()
    text = torch.nn.functional.normalize(torch.randn(len(CLASSES), CHANNELS), dim=1)
    return Checkpoint(TrainConfig(), segmenter, SPLIT, text, SIDE, 1, {})


@pytest.fixture(scope="module")
def perfect(checkpoint) -> Checkpoint:
    config = TrainConfig(logits="dot")
    return replace(checkpoint, config=config, network=Paletted(), text=torch.eye(len(CLASSES), CHANNELS))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (37, 91), (101, 67), (1, 3), (200, 130)])
def test_a_prediction_has_the_size_of_the_image(checkpoint, size, sliding):
    predicted = Predictor(checkpoint, sliding)(noise(*size)).at(GAMMA)
    assert predicted.shape == size
    assert set(np.unique(predicted)) <= set(range(len(CLASSES)))


def test_the_short_side_is_resized_to_the_training_size_and_the_aspect_ratio_kept(checkpoint):
    assert Predictor(checkpoint).logits(noise(32, 80)).shape == (len(CLASSES), 64, 160)
    assert Predictor(checkpoint).logits(noise(301, 128)).shape == (len(CLASSES), 150, 64)


def test_logits_compare_student_features_with_all_text_features(checkpoint):
    image = noise(SIDE, SIDE)
    with torch.no_grad():
        features = checkpoint.network(torch.tensor(image).permute(2, 0, 1)[None])[0].double().numpy()
    cells = features / np.linalg.norm(features, axis=0)
    expected = np.einsum("kc,cyx->kyx", checkpoint.text.double().numpy(), cells) / 0.07
    logits = Predictor(checkpoint).logits(image)[:].numpy()
    np.testing.assert_allclose(logits, bilinear(expected, (SIDE, SIDE)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("side", [32, 64, 512])
def test_windows_cover_the_image_and_the_last_ends_at_the_border(side):
    for length in range(side, 4 * side + 1, max(1, side // 32)):
        starts = window_starts(length, side)
        covered = np.zeros(length, int)
        for start in starts:
            assert 0 <= start <= length - side
            covered[start : start + side] += 1
        assert (covered > 0).all()
        assert (starts[0], starts[-1]) == (0, length - side)
        assert len(set(starts)) == len(starts)


def test_windows_of_512_pixels_have_stride_426():
    assert window_starts(512, 512) == [0]
    assert window_starts(513, 512) == [0, 1]
    assert window_starts(1400, 512) == [0, 426, 852, 888]


def test_sliding_with_a_single_window_equals_whole_image_prediction(checkpoint):
    image = noise(SIDE, SIDE)
    whole, sliding = (Predictor(checkpoint, s).logits(image)[:] for s in (False, True))
    assert torch.equal(whole, sliding)


def test_sliding_averages_overlapping_windows(checkpoint):
    image = noise(64, 96)
    logits = Predictor(checkpoint, sliding=True).logits(image)[:].numpy()
    total, count = np.zeros(logits.shape), np.zeros(96)
    for left in (0, 32):
        crop = np.ascontiguousarray(image[:, left : left + 64])
        total[:, :, left : left + 64] += Predictor(checkpoint).logits(crop)[:].numpy()
        count[left : left + 64] += 1
    assert window_starts(96, 64) == [0, 32]
    np.testing.assert_allclose(logits, total / count, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.7, 2.5, -3.0])
def test_a_prediction_is_the_argmax_after_adding_gamma_to_unseen_logits_only(checkpoint, sliding, gamma):
    image, predict = noise(70, 90), Predictor(checkpoint, sliding)
    full = bilinear(predict.logits(image)[:].double().numpy(), (70, 90))
    full += np.array([gamma if name in ("cow", "house") else 0.0 for name in CLASSES])[:, None, None]
    first, second = np.sort(full, axis=0)[-1], np.sort(full, axis=0)[-2]
    decisive = first - second > 1e-3
    assert decisive.mean() > 0.9
    np.testing.assert_array_equal(predict(image).at(gamma)[decisive], full.argmax(axis=0)[decisive])


def test_sliding_windows_leave_no_seams(perfect):
    image = np.repeat(np.repeat(np.arange(5, dtype=np.uint8) * 10 + 10, 40)[None, :, None], SIDE, axis=0).repeat(3, 2)
    whole, sliding = (Predictor(perfect, s).logits(image)[:] for s in (False, True))
    assert len(window_starts(200, SIDE)) > 2
    torch.testing.assert_close(sliding, whole)


def test_extreme_gammas_predict_only_unseen_or_only_seen_classes(checkpoint):
    prediction = Predictor(checkpoint)(noise(64, 80))
    assert np.isin(prediction.at(1e4), SPLIT.unseen_index).all()
    assert np.isin(prediction.at(-1e4), SPLIT.seen_index).all()


def test_gamma_defaults_to_the_paper_value(perfect):
    assert list(evaluate(Predictor(perfect), Drawn([striped(0)])).counts) == [GAMMA] == [1.5]


def test_a_gamma_sweep_in_one_pass_equals_one_pass_per_gamma(perfect):
    dataset, gammas = Drawn([striped(0, 1, 2, 255), striped(3, 4), striped(255)]), (0.0, 1.5, 1e4)
    sweep = evaluate(Predictor(perfect), dataset, gammas)
    for gamma in gammas:
        single = evaluate(Predictor(perfect), dataset, [gamma])
        np.testing.assert_array_equal(sweep.counts[gamma], single.counts[gamma])
    output = sweep.as_json()
    assert [entry["gamma"] for entry in output["sweep"]] == list(gammas)
    assert {name: output[name] for name in output["sweep"][0]} == output["sweep"][0]
    assert "sweep" not in evaluate(Predictor(perfect), dataset).as_json()


class Drawn:
    """A dataset in memory. The red value of a pixel encodes its class; void pixels look like class 0."""

    root, classes = "memory", CLASSES

    def __init__(self, labels: list[np.ndarray | None]) -> None:
        self.labels = labels
        self.broken: set[int] = set()
        self.read: list[int] = []
        self.ids = [f"{i}.png" for i in range(len(labels))]

    def has_label(self, i: int) -> bool:
        return self.labels[i] is not None

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, i: int) -> str:
        return f"memory/{i}.png"

    def load(self, i: int):
        self.read.append(i)
        if i in self.broken:
            raise UserError(f"cannot read the image memory/{i}.png: truncated")
        label = self.labels[i]
        ids = np.zeros((SIDE, SIDE), int) if label is None else np.where(label == 255, 0, label.astype(int))
        return np.repeat((10 * (1 + ids))[..., None], 3, axis=2).astype(np.uint8), label


def striped(*values: int) -> np.ndarray:
    return np.repeat(np.array(values, np.uint8), SIDE // len(values))[:, None].repeat(SIDE, axis=1)


def test_a_perfect_student_scores_1_regardless_of_void_pixels(perfect):
    progress: list[int] = []
    dataset = Drawn([striped(0, 1, 2, 255), striped(3, 4), striped(255)])
    metrics = evaluate(Predictor(perfect), dataset, [0.0], progress.append).at(0.0)
    assert (metrics.pixel_accuracy, metrics.miou_seen, metrics.miou_unseen, metrics.hiou) == (1, 1, 1, 1)
    assert metrics.iou.tolist() == [1] * 5
    assert sum(progress) == 3


def test_predicting_only_unseen_classes_scores_0_on_seen(perfect):
    metrics = evaluate(Predictor(perfect), Drawn([striped(0, 3), striped(1, 4)]), [1e4]).at(1e4)
    assert metrics.miou_seen == metrics.hiou == 0
    assert metrics.miou_unseen > 0
    assert metrics.pixel_accuracy == pytest.approx(0.5)


def test_a_dataset_with_other_classes_is_refused(checkpoint, tmp_path):
    root = draw_scenes(tmp_path / "dataset")
    (root / "classes.txt").write_text("\n".join([*CLASSES[:-1], "barn"]) + "\n")
    with pytest.raises(UserError, match="classes") as error:
        evaluate(Predictor(checkpoint), open_dataset("folder", root, "train"))
    assert "\n" not in str(error.value)


def test_a_missing_label_map_is_reported_before_any_image_is_read(perfect):
    dataset = Drawn([striped(0), None])
    with pytest.raises(UserError, match=r"label map.*memory/1\.png") as error:
        evaluate(Predictor(perfect), dataset)
    assert "\n" not in str(error.value)
    assert "1 of 2 images" in str(error.value)
    assert not dataset.read


def test_broken_images_are_reported_and_the_others_evaluated(perfect):
    dataset, progress = Drawn([striped(0, 3), striped(1, 4), striped(2)]), []
    dataset.broken = {1}
    evaluation = evaluate(Predictor(perfect), dataset, [0.0, 1.5], progress.append)
    assert evaluation.failures == {"1.png": "cannot read the image memory/1.png: truncated"}
    assert evaluation.as_json()["failures"] == evaluation.failures
    assert evaluation.images == 2
    assert sum(progress) == 3
    expected = evaluate(Predictor(perfect), Drawn([striped(0, 3), striped(2)]), [0.0, 1.5])
    for gamma in (0.0, 1.5):
        np.testing.assert_array_equal(evaluation.counts[gamma], expected.counts[gamma])
    refused(evaluation.check, "1 of 3 images could not be evaluated")
    expected.check()


def test_a_dataset_of_only_broken_images_is_refused(perfect):
    dataset = Drawn([striped(0), striped(1)])
    dataset.broken = {0, 1}
    refused(lambda: evaluate(Predictor(perfect), dataset), "none of the 2 images", "truncated")


def test_a_long_strip_is_reported_as_a_failure(checkpoint, tmp_path):
    root = draw_scenes(tmp_path / "dataset")
    Image.fromarray(noise(1, 6000)).save(root / "images/0.png")
    Image.fromarray(np.zeros((1, 6000), np.uint8)).save(root / "labels/0.png")
    evaluation = evaluate(Predictor(checkpoint), open_dataset("folder", root, "train"))
    assert list(evaluation.failures) == ["images/0.png"]
    assert "6000 x 1 pixels are too long a strip" in evaluation.failures["images/0.png"]
    refused(lambda: Predictor(checkpoint)(noise(6000, 1)), "too long a strip", "16:1")


def test_classes_without_any_labelled_pixel_are_reported(perfect):
    (warning,) = evaluate(Predictor(perfect), Drawn([striped(0, 1), striped(2)])).warnings
    assert "2 of 5 classes have no pixel in the 2 label maps read: cow, house" in warning
    assert evaluate(Predictor(perfect), Drawn([striped(0, 1, 2, 3), striped(4)])).warnings == []
