"""Validation and pictures during training: they change nothing but what is held out, and leak nothing."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from safetensors.torch import load_file

from data_cache.errors import InterruptError, UsageError
from experiments.figures import training_picture
from trainer import checkpoint
from trainer.data import ViewDataset, held_out_images, load_training_data
from trainer.loop import train
from trainer.monitor import TIMINGS
from trainer.predictor import Predictor
from trainer.sampler import Draw
from trainer.validation import Validation


def read_lines(run):
    lines = [json.loads(text) for text in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


@pytest.fixture(scope="module")
def validated(tiny_config, tmp_path_factory):
    """A run that validates after every second update, and its settings."""
    run = tmp_path_factory.mktemp("validated")
    config = tiny_config(iterations=5, val_every=2, log_every=100, lr=1e-3)
    train(config, run)
    return run, config


def test_metrics_are_logged_when_due_and_at_the_end(validated):
    lines = read_lines(validated[0])
    assert [line["step"] for line in lines if "val_pAcc" in line] == [2, 4, 5]
    assert all(0 <= line[name] <= 1 for line in lines[1:] for name in ("val_pAcc", "val_mIoU_S"))


def test_metrics_equal_those_computed_pixel_by_pixel(validated):
    run, config = validated
    loaded, data = checkpoint.load(run, torch.device("cpu")), load_training_data(config)
    predictor, seen = Predictor(loaded), data.split.seen_index
    hits, total = 0, 0
    sizes = np.zeros((len(seen), 2))
    for index in data.held_out:
        image, _ = data.dataset.load(int(index))
        resized = np.array(Image.fromarray(image).resize((64, 64), Image.Resampling.BICUBIC))
        view = ViewDataset(data.dataset, data.split, data.loaded, 64, images=np.array([index]))
        pixels, target, _, _ = view[Draw(0, 0, 0)]
        assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - resized).max() <= 1
        logits = torch.nn.functional.interpolate(
            predictor.logits(pixels.permute(1, 2, 0).numpy())[:][None], (64, 64), mode="bilinear"
        )[0]
        best, target = logits[seen].argmax(0).numpy(), target.numpy()
        valid = target >= 0
        hits, total = hits + (best == target)[valid].sum(), total + valid.sum()
        for rank in range(len(seen)):
            both = (best == rank) & (target == rank) & valid
            either = ((best == rank) | (target == rank)) & valid
            sizes[rank] += both.sum(), either.sum()
    last = read_lines(run)[-1]
    assert last["val_pAcc"] == pytest.approx(hits / total)
    present = sizes[:, 1] > 0
    assert last["val_mIoU_S"] == pytest.approx((sizes[present, 0] / sizes[present, 1]).mean())


def test_held_out_images_are_never_trained_on(validated, monkeypatch, tmp_path):
    _, config = validated
    drawn, load = set(), ViewDataset.__getitem__

    def spy(self, draw):
        item = load(self, draw)
        if len(self) > 1:
            drawn.add(item[2])
        return item

    monkeypatch.setattr(ViewDataset, "__getitem__", spy)
    train(config, tmp_path / "run")
    held = set(load_training_data(config).held_out.tolist())
    assert len(held) == 1
    assert drawn == set(range(8)) - held


def test_held_out_images_follow_from_the_seed_and_have_a_label_map(tiny_config):
    config, loaded = tiny_config(val_every=1), load_training_data(tiny_config()).loaded
    assert held_out_images(tiny_config(), loaded).tolist() == []
    chosen = [held_out_images(tiny_config(val_every=1, seed=seed), loaded).tolist() for seed in range(20)]
    assert chosen[0] == held_out_images(config, loaded).tolist()
    assert len({*map(tuple, chosen)}) > 3
    unlabeled = [(content, "" if index < 6 else label) for index, (content, label) in enumerate(loaded.digest)]
    loaded.digest[:] = unlabeled
    assert all(held_out_images(tiny_config(val_every=1, seed=s), loaded)[0] >= 6 for s in range(5))
    loaded.digest[6] = (loaded.digest[6][0], "")
    refused(lambda: held_out_images(config, loaded), "--val-every 1", "label map", kind=UsageError)


def test_pictures_and_lines_do_not_change_the_training(tiny_config, tmp_path):
    # dropout, so that a random number drawn elsewhere would count
    plain = tiny_config(iterations=4, log_every=1)
    watched = tiny_config(iterations=4, log_every=1, log_images=1)
    train(plain, tmp_path / "plain")
    train(watched, tmp_path / "watched", draw=training_picture)
    assert read_lines(tmp_path / "plain") == read_lines(tmp_path / "watched")
    one, other = (load_file(checkpoint.latest(tmp_path / name) / checkpoint.MODEL) for name in ("plain", "watched"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    pictures = sorted((tmp_path / "watched/figures").iterdir())
    assert [picture.name for picture in pictures] == [f"step_{step:08d}.png" for step in (1, 2, 3, 4)]
    assert Image.open(pictures[0]).size[0] > 300


def test_validation_changes_the_training_only_by_hiding_images(tiny_config, validated, tmp_path, monkeypatch):
    run, config = validated
    # the same images are hidden, but never validated on
    monkeypatch.setattr("trainer.validation.Validation.metrics", lambda *_: {})
    train(config, tmp_path / "run")
    one, other = (load_file(checkpoint.latest(folder) / checkpoint.MODEL) for folder in (run, tmp_path / "run"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_resumed_run_keeps_its_held_out_images_and_metrics(validated, tiny_config, tmp_path):
    class KilledError(Exception):
        pass

    def die(line):
        if line["step"] == 4:
            raise KilledError

    run, config = validated
    every = tiny_config(**{**vars(config), "checkpoint_every": 3})
    with pytest.raises(KilledError):
        train(every, tmp_path / "run", on_update=die)
    train(every, tmp_path / "run", resume=True)
    expected = {line["step"]: line for line in read_lines(run)}
    resumed = {line["step"]: line for line in read_lines(tmp_path / "run")}
    assert resumed == expected
    refused(
        lambda: train(tiny_config(**{**vars(every), "val_every": 0}), tmp_path / "run", resume=True),
        "--val-every",
        kind=UsageError,
    )


def test_an_interrupt_ends_a_validation_without_a_result(tiny_config, tmp_path, monkeypatch):
    metrics = Validation.metrics

    def interrupted_within(self, step, interrupted):
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupted()
        return metrics(self, step, interrupted)

    monkeypatch.setattr(Validation, "metrics", interrupted_within)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(InterruptError, match="after update 1"):
            train(tiny_config(iterations=3, val_every=1), tmp_path / "run")
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert "val_pAcc" not in read_lines(tmp_path / "run")[0]
    assert checkpoint.latest(tmp_path / "run").name == "step_00000001"
