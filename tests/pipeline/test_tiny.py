"""The tiny CLIPs of both worlds: small, in half precision, offline, and accurate on new scenes."""

import json

import numpy as np
import pytest
import torch
import typer
from refusals import refused
from safetensors.torch import load_file
from typer.testing import CliRunner

from data_cache.datasets import WORLDS
from data_cache.datasets.worlds import Scenes
from data_cache.errors import UsageError
from data_cache.sample import crop_image
from data_cache.views import whole
from pipeline.teacher.clip import FrozenCLIP
from pipeline.teacher.weights import TINY_CONFIG, TINY_WEIGHTS, CLIPSource
from pipeline.tiny import train
from pipeline.tiny.retrieval import average_precision, mean_average_precision, retrieval

CPU = torch.device("cpu")
FRESH = {name: Scenes(world, "fresh", 150, seed=1) for name, world in WORLDS.items()}
CROWD_LEAST = 0.45
each_world = pytest.mark.parametrize("world", WORLDS)


def test_each_world_has_weights():
    assert TINY_WEIGHTS.keys() == WORLDS.keys()


@each_world
def test_tiny_clip_is_small_and_in_half_precision(world):
    assert TINY_WEIGHTS[world].stat().st_size < 25 * 2**20
    weights = load_file(TINY_WEIGHTS[world])
    assert {value.dtype for value in weights.values()} == {torch.float16}
    vision = sum(value.numel() for name, value in weights.items() if name.startswith("visual."))
    assert 2.5e6 < vision < 3.5e6


def test_tiny_clip_has_256_pixels_by_default():
    clip = FrozenCLIP(CLIPSource("tiny"), "fp32", CPU)
    assert (clip.image_size, clip.patch, clip.grid) == (256, 16, (16, 16))
    assert clip.fingerprint()["model"] == "tiny"
    smaller = FrozenCLIP(CLIPSource("tiny", image_size=128), "fp32", CPU)
    assert smaller.grid == (8, 8)


@each_world
def test_cls_tokens_have_the_norm_that_glm_needs(world):
    clip = FrozenCLIP(CLIPSource("tiny", world), "fp32", CPU)
    images = [FRESH[world].image(i) for i in range(30)]
    images = np.stack([crop_image(image, whole(*image.shape[:2]), 256) for image in images])
    norms = np.linalg.norm(clip.encode(images).cls.astype(np.float64), axis=1)
    assert 4 < norms.mean() < 6


def test_tiny_clip_has_a_tag_per_world_and_random_weights():
    assert CLIPSource("tiny").weights == "scenes"
    assert FrozenCLIP(CLIPSource("tiny", "random"), "fp32", CPU).channels == 128
    refused(CLIPSource("tiny", "openai").load, "its tags are scenes, crowd", kind=UsageError)


@pytest.mark.parametrize(("size", "least"), [(128, 0.85), (192, 0.9), pytest.param(256, 0.9, marks=pytest.mark.slow)])
def test_tiny_clip_retrieves_scenes_by_class_name(size, least):
    clip = FrozenCLIP(CLIPSource("tiny", image_size=size), "fp32", CPU)
    found = retrieval(clip, FRESH["scenes"])
    assert mean_average_precision(found) > least
    assert min(found.values()) > 0.6
    # random weights are at chance: about the share of scenes that contain a class
    untrained = retrieval(FrozenCLIP(CLIPSource("tiny", "random", size), "fp32", CPU), FRESH["scenes"])
    assert mean_average_precision(untrained) < 0.4


def test_tiny_clip_retrieves_crowded_scenes_by_class_name():
    found = retrieval(FrozenCLIP(CLIPSource("tiny", "crowd"), "fp32", CPU), FRESH["crowd"])
    # the most frequent classes are in most scenes, the rarest in a few of 150
    assert mean_average_precision(found) > CROWD_LEAST
    # the CLIP of the other world does not know most names
    assert mean_average_precision(retrieval(FrozenCLIP(CLIPSource("tiny"), "fp32", CPU), FRESH["crowd"])) < 0.4


@pytest.mark.parametrize(("world", "least", "learned"), [("scenes", 0.9, 0.15), ("crowd", CROWD_LEAST, 0.02)])
def test_card_records_seed_steps_and_score(world, least, learned):
    card = json.loads(TINY_WEIGHTS[world].with_suffix(".json").read_text())
    assert {"seed", "steps", "lr", "batch_size", "scenes", "minutes"} <= card.keys()
    assert min(card["mean_average_precision"].values()) > least
    curve = [json.loads(line) for line in TINY_WEIGHTS[world].with_suffix(".jsonl").read_text().splitlines()]
    assert curve[-1]["step"] == card["steps"]
    assert np.mean([line["name"] for line in curve[-10:]]) < np.mean([line["name"] for line in curve[:10]]) - learned


def test_average_precision_is_the_mean_precision_at_relevant_items():
    rng = np.random.default_rng(0)
    scores, relevant = rng.normal(size=40), rng.random(40) < 0.3
    precisions = []
    for i in np.flatnonzero(relevant):
        above = scores >= scores[i]
        precisions.append((above & relevant).sum() / above.sum())
    assert average_precision(scores, relevant) == pytest.approx(np.mean(precisions))
    assert average_precision(relevant.astype(float), relevant) == 1
    assert np.isnan(average_precision(scores, np.zeros(40, bool)))


@pytest.mark.parametrize(
    ("options", "sizes"),
    [("", {"128", "192", "256"}), (f"--world crowd --bf16 --start {TINY_WEIGHTS['scenes']}", {"192", "256"})],
    ids=WORLDS,
)
def test_training_script_saves_loadable_weights(tmp_path, options, sizes):
    app = typer.Typer()
    app.command()(train.main)
    weights = tmp_path / "small.safetensors"
    arguments = f"--steps 3 --batch-size 8 --scenes 16 --scored 10 --save-every 2 {options} --weights"
    result = CliRunner().invoke(app, [*arguments.split(), str(weights)], catch_exceptions=False)
    assert result.exit_code == 0
    clip = FrozenCLIP(CLIPSource(str(TINY_CONFIG), str(weights)), "fp32", CPU)
    assert clip.weights_hash != FrozenCLIP(CLIPSource("tiny"), "fp32", CPU).weights_hash
    card = json.loads(weights.with_suffix(".json").read_text())
    assert card["mean_average_precision"].keys() == sizes
    tokens = load_file(weights)["token_embedding.weight"]
    # only words of captions are stored: the others would be noise
    assert 0 < (tokens != 0).any(dim=1).sum() < 100


def test_tiny_clip_knows_the_words_of_scenes_and_no_others():
    clip = FrozenCLIP(CLIPSource("tiny"), "fp32", CPU)
    assert clip.unknown_names(WORLDS["scenes"].classes) == ()
    assert clip.unknown_names(("Flag", "giraffe", "flag pole", "ladybug", "parking meter")) == (
        "giraffe",
        "flag pole",
        "parking meter",
    )
    assert FrozenCLIP(CLIPSource("tiny", "crowd"), "fp32", CPU).unknown_names(WORLDS["crowd"].classes) == ()
    assert FrozenCLIP(CLIPSource("tiny", "random"), "fp32", CPU).unknown_names(("giraffe",)) == ()
