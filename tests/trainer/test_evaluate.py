"""Evaluation: sizes, sliding windows, gamma, and the metrics of predictors whose answer is known."""

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
    """A student that knows the class of each red value: 10 for class 0, 20 for class 1 and so on."""

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


def test_the_short_side_becomes_the_training_size_and_the_ratio_is_kept(checkpoint):
    assert Predictor(checkpoint).logits(noise(32, 80)).shape == (len(CLASSES), 64, 160)
    assert Predictor(checkpoint).logits(noise(301, 128)).shape == (len(CLASSES), 150, 64)


def test_logits_are_the_students_features_against_all_text_features(checkpoint):
    image = noise(SIDE, SIDE)
    with torch.no_grad():
        features = checkpoint.network(torch.tensor(image).permute(2, 0, 1)[None])[0].double().numpy()
    cells = features / np.linalg.norm(features, axis=0)
    expected = np.einsum("kc,cyx->kyx", checkpoint.text.double().numpy(), cells) / 0.07
    found = Predictor(checkpoint).logits(image).numpy()
    np.testing.assert_allclose(found, bilinear(expected, (SIDE, SIDE)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("side", [32, 64, 512])
def test_windows_cover_everything_and_the_last_is_flush(side):
    for length in range(side, 4 * side + 1, max(1, side // 32)):
        starts = window_starts(length, side)
        covered = np.zeros(length, int)
        for start in starts:
            assert 0 <= start <= length - side
            covered[start : start + side] += 1
        assert (covered > 0).all()
        assert (starts[0], starts[-1]) == (0, length - side)
        assert len(set(starts)) == len(starts)


def test_windows_of_512_stride_by_426():
    assert window_starts(512, 512) == [0]
    assert window_starts(513, 512) == [0, 1]
    assert window_starts(1400, 512) == [0, 426, 852, 888]


def test_sliding_with_a_single_window_is_the_whole_image(checkpoint):
    image = noise(SIDE, SIDE)
    whole, sliding = (Predictor(checkpoint, s).logits(image) for s in (False, True))
    assert torch.equal(whole, sliding)


def test_sliding_averages_the_windows_that_see_a_pixel(checkpoint):
    image = noise(64, 96)
    found = Predictor(checkpoint, sliding=True).logits(image).numpy()
    total, visits = np.zeros(found.shape), np.zeros(96)
    for left in (0, 32):
        crop = np.ascontiguousarray(image[:, left : left + 64])
        total[:, :, left : left + 64] += Predictor(checkpoint).logits(crop).numpy()
        visits[left : left + 64] += 1
    assert window_starts(96, 64) == [0, 32]
    np.testing.assert_allclose(found, total / visits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.7, 2.5, -3.0])
def test_a_prediction_is_the_argmax_after_gamma_was_added_to_unseen_logits_and_to_nothing_else(
    checkpoint, sliding, gamma
):
    image, predict = noise(70, 90), Predictor(checkpoint, sliding)
    full = bilinear(predict.logits(image).double().numpy(), (70, 90))
    full += np.array([gamma if name in ("cow", "house") else 0.0 for name in CLASSES])[:, None, None]
    first, second = np.sort(full, axis=0)[-1], np.sort(full, axis=0)[-2]
    clear = first - second > 1e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(predict(image).at(gamma)[clear], full.argmax(axis=0)[clear])


def test_windows_leave_no_seam_where_the_student_sees_the_same_on_both_sides(perfect):
    image = np.repeat(np.repeat(np.arange(5, dtype=np.uint8) * 10 + 10, 40)[None, :, None], SIDE, axis=0).repeat(3, 2)
    whole, sliding = (Predictor(perfect, s).logits(image) for s in (False, True))
    assert len(window_starts(200, SIDE)) > 2
    torch.testing.assert_close(sliding, whole)


def test_a_great_gamma_makes_everything_unseen_and_a_very_negative_one_nothing(checkpoint):
    found = Predictor(checkpoint)(noise(64, 80))
    assert np.isin(found.at(1e4), SPLIT.unseen_index).all()
    assert np.isin(found.at(-1e4), SPLIT.seen_index).all()


def test_gamma_is_the_papers_unless_told_otherwise(perfect):
    assert list(evaluate(Predictor(perfect), Drawn([striped(0)])).counts) == [GAMMA] == [1.5]


def test_a_sweep_in_one_pass_equals_a_pass_for_each_gamma(perfect):
    dataset, gammas = Drawn([striped(0, 1, 2, 255), striped(3, 4), striped(255)]), (0.0, 1.5, 1e4)
    together = evaluate(Predictor(perfect), dataset, gammas)
    for gamma in gammas:
        alone = evaluate(Predictor(perfect), dataset, [gamma])
        np.testing.assert_array_equal(together.counts[gamma], alone.counts[gamma])
    told = together.as_json()
    assert [one["gamma"] for one in told["sweep"]] == list(gammas)
    assert {name: told[name] for name in told["sweep"][0]} == told["sweep"][0]
    assert "sweep" not in evaluate(Predictor(perfect), dataset).as_json()


class Drawn:
    """A dataset in memory; images tell their class by their red value, void pixels look like class 0."""

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


def test_a_perfect_student_scores_1_whatever_is_void(perfect):
    done: list[int] = []
    dataset = Drawn([striped(0, 1, 2, 255), striped(3, 4), striped(255)])
    found = evaluate(Predictor(perfect), dataset, [0.0], done.append).at(0.0)
    assert (found.pixel_accuracy, found.miou_seen, found.miou_unseen, found.hiou) == (1, 1, 1, 1)
    assert found.iou.tolist() == [1] * 5
    assert sum(done) == 3


def test_a_student_that_takes_everything_for_unseen_scores_0_on_seen(perfect):
    found = evaluate(Predictor(perfect), Drawn([striped(0, 3), striped(1, 4)]), [1e4]).at(1e4)
    assert found.miou_seen == found.hiou == 0
    assert found.miou_unseen > 0
    assert found.pixel_accuracy == pytest.approx(0.5)


def test_other_classes_are_refused(checkpoint, tmp_path):
    root = draw_scenes(tmp_path / "photographs")
    (root / "classes.txt").write_text("\n".join([*CLASSES[:-1], "barn"]) + "\n")
    with pytest.raises(UserError, match="classes") as error:
        evaluate(Predictor(checkpoint), open_dataset("folder", root, "train"))
    assert "\n" not in str(error.value)


def test_an_image_without_labels_is_refused_by_name_before_any_is_read(perfect):
    dataset = Drawn([striped(0), None])
    with pytest.raises(UserError, match=r"label map.*memory/1\.png") as error:
        evaluate(Predictor(perfect), dataset)
    assert "\n" not in str(error.value)
    assert "1 of 2 images" in str(error.value)
    assert not dataset.read


def test_broken_images_are_named_and_the_others_counted(perfect):
    dataset, done = Drawn([striped(0, 3), striped(1, 4), striped(2)]), []
    dataset.broken = {1}
    found = evaluate(Predictor(perfect), dataset, [0.0, 1.5], done.append)
    assert found.failures == {"1.png": "cannot read the image memory/1.png: truncated"}
    assert found.as_json()["failures"] == found.failures
    assert found.images == 2
    assert sum(done) == 3
    alone = evaluate(Predictor(perfect), Drawn([striped(0, 3), striped(2)]), [0.0, 1.5])
    for gamma in (0.0, 1.5):
        np.testing.assert_array_equal(found.counts[gamma], alone.counts[gamma])
    refused(found.check, "1 of 3 images could not be evaluated")
    alone.check()


def test_nothing_is_evaluated_of_images_that_are_all_broken(perfect):
    dataset = Drawn([striped(0), striped(1)])
    dataset.broken = {0, 1}
    refused(lambda: evaluate(Predictor(perfect), dataset), "none of the 2 images", "truncated")


def test_a_strip_is_one_failure_and_takes_no_memory(checkpoint, tmp_path):
    root = draw_scenes(tmp_path / "photographs")
    Image.fromarray(noise(1, 6000)).save(root / "images/0.png")
    Image.fromarray(np.zeros((1, 6000), np.uint8)).save(root / "labels/0.png")
    found = evaluate(Predictor(checkpoint), open_dataset("folder", root, "train"))
    assert list(found.failures) == ["images/0.png"]
    assert "6000 x 1 pixels are too long a strip" in found.failures["images/0.png"]
    refused(lambda: Predictor(checkpoint)(noise(6000, 1)), "too long a strip", "16:1")


def test_classes_that_no_label_map_has_are_told(perfect):
    (warning,) = evaluate(Predictor(perfect), Drawn([striped(0, 1), striped(2)])).warnings
    assert "2 of 5 classes have no pixel in the 2 label maps read: cow, house" in warning
    assert evaluate(Predictor(perfect), Drawn([striped(0, 1, 2, 3), striped(4)])).warnings == []
