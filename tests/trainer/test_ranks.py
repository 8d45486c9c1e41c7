"""Two processes compute what one process computes with the same global batch: losses, gradients, weights, bank."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from split_batches import gather_parts, train_each

from trainer import checkpoint
from trainer.distributed.launch import launch_ranks
from trainer.monitor import TIMINGS
from trainer.sampler import Stream

CPU = torch.device("cpu")
BATCH, IMAGES, UPDATES = 4, 8, 6
SETTINGS = {
    "default": {},
    "max": {"glm": "max", "vla": "mlp", "logits": "dot", "nel_ignore": "masked"},
    "mean": {"glm": "mean", "vla": "identity", "pseudo_scope": "image"},
    "image": {"pseudo_scope": "image", "loss_stride": 4, "max_grad_norm": 0.5},
    "only nel": {"glm": "off", "ce": False, "generate": False},
    "only generate": {"glm": "off", "ce": False, "nel": False},
}
HIDDEN, UNLABELLED = {2: "pseudo", 3: "seen", 4: "all"}, 5
"""The labels that the second half of the batch lacks, by update, and the update whose whole batch lacks all labels."""


@pytest.fixture(scope="module")
def runs(tiny_config, tmp_path_factory):
    """The folders in which one process and two processes trained with each of the settings."""
    stream = Stream(IMAGES, 1, BATCH, 0)
    batches = {step: [draw.item for draw in stream.batch(step - 1)] for step in range(1, UPDATES + 1)}
    hidden = {step: dict.fromkeys(batches[step][BATCH // 2 :], kind) for step, kind in HIDDEN.items()}
    hidden[UNLABELLED] = dict.fromkeys(batches[UNLABELLED], "all")
    common = {"iterations": UPDATES, "batch_size": BATCH, "lr": 1e-4, "bank": 3, "warmup": 0, "precision": "32-true"}
    configs = {name: tiny_config(**common, **settings) for name, settings in SETTINGS.items()}
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    train_each(configs, one, hidden)
    configs = {name: replace(config, devices=2) for name, config in configs.items()}
    launch_ranks(CPU, 2, train_each, (configs, two, hidden), lambda _: None)
    return one, two


def read_lines(run) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.slow
def test_two_processes_have_the_same_losses_as_one(runs, name):
    one, two = (read_lines(out / name) for out in runs)
    assert len(one) == len(two) == UPDATES
    for expected, line in zip(one, two, strict=True):
        expected, line = (
            {name: value for name, value in each.items() if name not in TIMINGS} for each in (expected, line)
        )
        assert line == pytest.approx(expected, rel=1e-5, abs=1e-7, nan_ok=True), line["step"]
    assert all(line["total"] for line in one[:3])


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.slow
def test_two_processes_reach_the_same_weights_as_one(runs, name):
    for file in (checkpoint.MODEL, checkpoint.RESUME):
        one, two = (load_file(checkpoint.latest(out / name) / file) for out in runs)
        assert one.keys() == two.keys()
        for key, value in one.items():
            if not key.startswith("rng."):
                difference = (value - two[key]).double().norm() / value.double().norm().clamp(min=1e-30)
                assert difference < 1e-5, key


@pytest.mark.slow
def test_every_process_holds_the_same_bank_as_a_single_one(runs):
    expected = load_file(runs[0] / "default.bank0")
    assert (expected["image"] >= 0).all()
    for rank in (0, 1):
        bank = load_file(runs[1] / f"default.bank{rank}")
        assert all(torch.equal(bank[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_all_gather_orders_rows_by_rank_and_sums_their_gradients():
    cases = ([[5.0, 7.0], [3.0]], [[], [4.0, 2.0, 9.0]], [[6.0], []], [[], []])
    gathered = launch_ranks(CPU, 2, gather_parts, (cases,), lambda _: None)
    for case, (first, second) in enumerate(cases):
        assert gathered[f"rows {case}"] == first + second
        assert gathered[f"gradients {case}"] == [2.0, 6.0, 12.0][: len(first + second)]
