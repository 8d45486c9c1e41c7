"""A trained student on another dataset: new names get text features from the CLIP used in training."""

import numpy as np
import pytest
from cards import change_card
from command_line import STUDENT, folder_options
from drawing import ade_tree
from pascal_trees import context_tree
from safetensors.numpy import load_file
from shapes import CLASSES

from data_cache.class_list import class_lists
from data_cache.datasets import open_dataset
from data_cache.splits import labelled_in_training
from experiments.transfer import vocabulary_for_dataset
from pipeline.teacher import rebuild
from pipeline.teacher.clip import FrozenCLIP
from pipeline.teacher.prompts import Prompts
from pipeline.teacher.weights import CLIPSource
from trainer.checkpoint import load

TINY = ("--clip", "tiny", "--image-size", "64", "--device", "cpu")
OTHER_CLASSES = ("heaven", "sand", "grass", "ball", "sky", "thing")


@pytest.fixture
def run(clipteacher, drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clipteacher.good("precompute", *folder_options(drawn), *TINY, "--cache", "caches/first.zarr")
    short = ("--iterations", 2, "--batch-size", 2, "--size", 64, "--out", "run")
    clipteacher.good("train", "--cache", "caches/first.zarr", *short, *STUDENT)
    return tmp_path / "run"


@pytest.fixture
def other(drawn, tmp_path):
    """The same images with other class names, three of which are known, in another order."""
    (drawn / "classes.txt").write_text("\n".join(OTHER_CLASSES) + "\n")
    return ("--dataset", "folder", "--root", drawn, "--unseen", "heaven,grass")


def test_new_class_names_are_encoded_once_by_the_training_clip(run, other, clipteacher, tmp_path, monkeypatch):
    result = clipteacher.good("evaluate", run, *other, "--json").json
    assert list(result["per_class"]) == list(OTHER_CLASSES)
    assert result["by_training_vocabulary"].keys() == {"mIoU", "pAcc", "mIoU_S", "mIoU_U", "hIoU", "gamma"}
    file = next((tmp_path / "data_cache/text").iterdir())
    expected = FrozenCLIP(CLIPSource("tiny", image_size=64), "fp32", load_device()).encode_text(
        OTHER_CLASSES, Prompts("zegclip15").templates
    )
    np.testing.assert_array_equal(load_file(file)["features"], expected)

    def refuse(*_):
        raise AssertionError("CLIP was loaded again")

    monkeypatch.setattr(rebuild, "FrozenCLIP", refuse)
    assert clipteacher.good("evaluate", run, *other, "--json").json == result


def load_device():
    import torch

    return torch.device("cpu")


def test_seen_follows_the_target_split_and_labelled_the_training(run, other, drawn, tmp_path):
    student = load(run, load_device())
    vocabulary = vocabulary_for_dataset(student, open_dataset("folder", drawn, "val"), "heaven,grass", tmp_path)
    assert vocabulary.split.unseen == ("heaven", "grass")
    # sand, grass and sky had labels in training under these names
    assert vocabulary.labelled.tolist() == [name in set(CLASSES) - {"disc"} for name in OTHER_CLASSES]
    assert vocabulary.transferred


@pytest.mark.parametrize("damage", ["truncated", "flipped bit"])
def test_damaged_text_features_are_recomputed(run, other, clipteacher, tmp_path, damage):
    result = clipteacher.good("evaluate", run, *other, "--json").json
    file = next((tmp_path / "data_cache/text").iterdir())
    intact = file.read_bytes()
    flipped = intact[:-5] + bytes([intact[-5] ^ 64]) + intact[-4:]
    file.write_bytes(intact[:-9] if damage == "truncated" else flipped)
    assert clipteacher.good("evaluate", run, *other, "--json").json == result
    assert file.read_bytes() == intact


def test_another_clip_is_refused(run, other, clipteacher):
    error = clipteacher("evaluate", run, *other, "--clip", "tiny", "--clip-weights", "random").error
    assert "not the CLIP of the cache" in error


def test_run_with_an_unknown_clip_requires_the_clip_option(run, other, clipteacher):
    change_card(run, lambda card: [card.pop("recorded"), card["clip"].update(model="my-own")])
    assert "--clip" in clipteacher("evaluate", run, *other).error


@pytest.mark.parametrize("sliding", [(), ("--sliding",)])
def test_an_open_vocabulary_is_split_by_the_training(run, clipteacher, tmp_path, sliding):
    ade_tree(tmp_path / "ade")
    where = ("--dataset", "ade150", "--root", tmp_path / "ade", *sliding)
    result = clipteacher.good("evaluate", run, *where, "--json").json
    assert len(result["per_class"]) == 150
    assert "by_training_vocabulary" not in result
    # the label maps have the classes 1 and 150
    assert result["mIoU"] == pytest.approx((result["per_class"]["wall"] + result["per_class"]["flag"]) / 2)
    student = load(run, load_device())
    vocabulary = vocabulary_for_dataset(student, open_dataset("ade150", tmp_path / "ade", "val"), None, tmp_path)
    # of the names with labels in training, ADE20K has these three
    assert vocabulary.split.seen == ("sky", "grass", "sand")
    assert vocabulary.labelled.sum() == 3
    assert "mIoU " in clipteacher.good("evaluate", run, *where).out
    named = vocabulary_for_dataset(student, open_dataset("ade150", tmp_path / "ade", "val"), "wall", tmp_path)
    assert named.split.unseen == ("wall",)


def test_context459_is_evaluated_with_void_beyond_its_classes(run, clipteacher, tmp_path):
    context_tree(tmp_path / "context", converted=False)
    where = ("--dataset", "context459", "--root", tmp_path / "context", "--split", "train")
    result = clipteacher.good("evaluate", run, *where, "--json").json
    assert len(result["per_class"]) == 459
    assert result["dataset"] == "context459"
    clipteacher.good("show", run, "--predictions", *where, "--device", "cpu")


def test_datasets_without_a_published_split_require_unseen(run, other, clipteacher):
    assert "--unseen" in clipteacher("evaluate", run, *other[:4]).error


def test_unseen_cannot_change_the_training_split(run, drawn, clipteacher):
    result = clipteacher("evaluate", run, "--dataset", "folder", "--root", drawn, "--unseen", "sky")
    assert result.status == 2
    assert "leave it out" in result.error


def test_picked_gamma_is_reported_with_the_fixed_one(run, drawn, clipteacher):
    where = ("--dataset", "folder", "--root", drawn, "--pick-gamma", 3)
    result = clipteacher.good("evaluate", run, *where, "--json").json
    assert result["gamma"] == 1.5
    assert 0 <= result["picked"]["gamma"] <= 5
    again = clipteacher.good("evaluate", run, *where[:4], "--gamma", result["picked"]["gamma"], "--json").json
    assert {name: again[name] for name in result["picked"]} == result["picked"]
    assert "picked on training images" in clipteacher.good("evaluate", run, *where).out


@pytest.mark.parametrize(
    ("target", "unlabelled"),
    [
        ("voc", {"cow"}),
        ("context", {"cow", "grass", "road", "tree", "computer", "bag", "bedclothes", "sign", "plate"}),
    ],
)
def test_coco_labels_cover_all_but_these_names(target, unlabelled):
    coco = class_lists()["coco"]
    trained = [name for name in coco.classes if name not in coco.unseen]
    classes = class_lists()[target].classes
    labelled = labelled_in_training(classes, trained)
    assert {name for name, known in zip(classes, labelled, strict=True) if not known} == unlabelled
