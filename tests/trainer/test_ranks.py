"""Two processes at a global batch are one process at that batch: losses, gradients, weights, bank."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from split_batches import gather_parts, train_each

from trainer import checkpoint
from trainer.distributed.launch import launch_ranks
from trainer.sampler import Stream

CPU = torch.device("cpu")
BATCH, IMAGES, UPDATES = 4, 8, 6
SETTINGS = {
    "default": {},
    "max": {"glm": "max", "vla": "mlp", "logits": "dot", "nel_ignore": "masked"},
    "mean": {"glm": "mean", "vla": "identity", "pseudo_scope": "image"},
    "image": {"pseudo_scope": "image", "loss_stride": 4, "max_grad_norm": 0.5},
    "nel alone": {"glm": "off", "ce": False, "generate": False},
    "generate alone": {"glm": "off", "ce": False, "nel": False},
}
LOST, BARE = {2: "pseudo", 3: "seen", 4: "all"}, 5
"""What the second half of the batch has none of, by update; and when the whole batch has no label."""


@pytest.fixture(scope="module")
def runs(tiny_config, tmp_path_factory):
    """Where one process and where two have trained by each of the settings."""
    stream = Stream(IMAGES, 1, BATCH, 0)
    batches = {step: [draw.item for draw in stream.batch(step - 1)] for step in range(1, UPDATES + 1)}
    hidden = {step: dict.fromkeys(batches[step][BATCH // 2 :], lost) for step, lost in LOST.items()}
    hidden[BARE] = dict.fromkeys(batches[BARE], "all")
    common = {"iterations": UPDATES, "batch_size": BATCH, "lr": 1e-4, "bank": 3, "warmup": 0, "precision": "32-true"}
    configs = {name: tiny_config(**common, **given) for name, given in SETTINGS.items()}
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    train_each(configs, one, hidden)
    configs = {name: replace(config, devices=2) for name, config in configs.items()}
    launch_ranks(CPU, 2, train_each, (configs, two, hidden), lambda _: None)
    return one, two


def logged(run) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.slow
def test_two_processes_have_the_loss_terms_of_one_at_every_update(runs, name):
    one, two = (logged(out / name) for out in runs)
    assert len(one) == len(two) == UPDATES
    for here, there in zip(one, two, strict=True):
        del here["seconds"], there["seconds"]
        assert there == pytest.approx(here, rel=1e-5, abs=1e-7, nan_ok=True), here["step"]
    assert all(line["total"] for line in one[:3])


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.slow
def test_two_processes_have_the_weights_of_one_after_some_updates(runs, name):
    for file in (checkpoint.MODEL, checkpoint.RESUME):
        one, two = (load_file(checkpoint.latest(out / name) / file) for out in runs)
        assert one.keys() == two.keys()
        for key, value in one.items():
            if not key.startswith("rng."):
                gap = float((value - two[key]).double().norm() / value.double().norm().clamp(min=1e-30))
                assert gap < 1e-5, key


@pytest.mark.slow
def test_the_bank_is_that_of_one_process_in_each(runs):
    expected = load_file(runs[0] / "default.bank0")
    assert (expected["image"] >= 0).all()
    for rank in (0, 1):
        found = load_file(runs[1] / f"default.bank{rank}")
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_rows_of_all_are_gathered_by_rank_and_their_gradients_add_up_where_they_came_from():
    cases = ([[5.0, 7.0], [3.0]], [[], [4.0, 2.0, 9.0]], [[6.0], []], [[], []])
    found = launch_ranks(CPU, 2, gather_parts, (cases,), lambda _: None)
    for case, (first, second) in enumerate(cases):
        assert found[f"rows {case}"] == first + second
        assert found[f"gradients {case}"] == [2.0, 6.0, 12.0][: len(first + second)]
