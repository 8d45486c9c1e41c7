"""The loop: resume bit for bit, logs, checkpoints, schedule, refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from training_scenes import cache_scenes, draw_scenes

from data_cache.datasets import open_dataset
from data_cache.errors import UsageError
from data_cache.reader import Cache
from trainer import checkpoint, loop
from trainer.config import GAMMA, TrainConfig
from trainer.evaluate import evaluate
from trainer.loop import schedule, train
from trainer.losses.total import TeacherLoss
from trainer.predictor import Predictor
from trainer.sampler import Stream

STEPS = 20


class KilledError(Exception):
    """What the tests raise to end a run in mid-air."""


def kill_after(step: int):
    def tell(line: dict[str, float]) -> None:
        if line["step"] == step:
            raise KilledError

    return tell


def logged(out) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def without_time(lines: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def config(tiny_config) -> TrainConfig:
    return tiny_config(iterations=STEPS, checkpoint_every=10, lr=1e-3, bank=3, warmup=2)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    train(config, out)
    return out


@pytest.fixture(scope="module")
def stopped(config, tmp_path_factory):
    """A run that died at update 13, three after its checkpoint."""
    out = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KilledError):
        train(config, out, on_update=kill_after(13))
    return out


@pytest.fixture(scope="module")
def resumed(config, stopped, tmp_path_factory):
    out = tmp_path_factory.mktemp("resumed") / "run"
    shutil.copytree(stopped, out)
    # where the global generator stands must not matter
    torch.manual_seed(12345)
    train(config, out, resume=True)
    return out


@pytest.mark.parametrize("file", [checkpoint.MODEL, checkpoint.RESUME])
def test_10_and_10_resumed_updates_are_20_bit_for_bit(whole, resumed, file):
    one, other = (load_file(checkpoint.latest(out) / file) for out in (whole, resumed))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_a_checkpoint_holds_weights_text_bank_adapter_and_optimiser_state(whole):
    model = load_file(checkpoint.latest(whole) / checkpoint.MODEL)
    resume = load_file(checkpoint.latest(whole) / checkpoint.RESUME)
    assert model["text"].shape == (5, 64)
    assert resume["loss.bank.cls"].shape == (12, 64)
    assert (resume["loss.bank.image"] >= 0).all()
    assert any(name.startswith("loss.adapter.") for name in resume)
    assert any(name.endswith(".exp_avg_sq") for name in resume)
    assert "rng.cpu" in resume


def test_training_moves_the_weights(whole, stopped):
    early, late = (load_file(checkpoint.latest(out) / checkpoint.MODEL) for out in (stopped, whole))
    unmoved = {name for name, value in early.items() if torch.equal(value, late[name])}
    assert unmoved == {"text", "segmenter.mean", "segmenter.std"}


def test_a_resumed_log_has_each_update_once_and_the_same_losses(whole, stopped, resumed):
    assert [line["step"] for line in logged(stopped)] == list(range(1, 13))
    assert [line["step"] for line in logged(resumed)] == list(range(1, STEPS + 1))
    assert without_time(logged(resumed)) == without_time(logged(whole))


def test_the_same_seed_gives_the_same_first_losses_and_another_seed_others(config, stopped, tmp_path, tiny_config):
    other = tiny_config(iterations=STEPS, lr=1e-3, bank=3, warmup=2, seed=1)
    with pytest.raises(KilledError):
        train(config, tmp_path / "same", on_update=kill_after(2))
    with pytest.raises(KilledError):
        train(other, tmp_path / "other", on_update=kill_after(2))
    first = [without_time(logged(out))[0] for out in (stopped, tmp_path / "same", tmp_path / "other")]
    assert first[0] == first[1] != first[2]


def test_in_mixed_precision_the_teacher_s_tokens_come_to_the_losses_unrounded(tiny_config, tmp_path, monkeypatch):
    told, forward = [], TeacherLoss.forward

    def watched(self, features, targets):
        told.append((features.dtype, targets.cls))
        return forward(self, features, targets)

    monkeypatch.setattr(TeacherLoss, "forward", watched)
    config = tiny_config(iterations=2, precision="bf16-mixed")
    assert np.isfinite(train(config, tmp_path / "run")["total"])
    stored = Cache(Path(config.cache)).load("default").cls
    rows = {row.astype(np.float32).tobytes() for row in stored.reshape(-1, stored.shape[-1])}
    assert len(told) == 2
    for dtype, cls in told:
        assert dtype == torch.float32
        assert {row.numpy().tobytes() for row in cls} <= rows


def test_a_normalisation_shared_by_processes_keeps_the_activation_that_timm_put_into_it():
    shared = convert_sync_batchnorm(torch.nn.Sequential(BatchNormAct2d(4), torch.nn.BatchNorm2d(4)))
    assert isinstance(shared[0], torch.nn.SyncBatchNorm)
    assert isinstance(shared[0].act, torch.nn.ReLU)
    assert isinstance(shared[1], torch.nn.SyncBatchNorm)


def test_only_the_newest_checkpoint_is_kept_and_nothing_half_written(whole, stopped):
    for out, step in ((whole, 20), (stopped, 10)):
        assert sorted(p.name for p in out.iterdir()) == ["config.json", "log.jsonl", f"step_{step:08d}"]
        names = [checkpoint.CARD, checkpoint.MODEL, checkpoint.RESUME]
        assert sorted(p.name for p in checkpoint.latest(out).iterdir()) == sorted(names)


def test_a_checkpoint_that_fails_in_writing_leaves_the_older_one(stopped, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    before = checkpoint.load(out, torch.device("cpu"))

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint.json, "dumps", full_disk)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(out, 20, before.network, before.text, {}, {})
    monkeypatch.undo()
    assert checkpoint.load(out, torch.device("cpu")).step == 10
    checkpoint.save(out, 20, before.network, before.text, before.card, {})
    assert [p.name for p in out.glob("step_*")] == ["step_00000020"]


@pytest.mark.parametrize(
    ("name", "value"), [("lr", 2e-3), ("seed", 1), ("glm", "max"), ("iterations", 30), ("size", 96)]
)
def test_resuming_with_changed_settings_is_refused(config, stopped, name, value):
    changed = TrainConfig(**(vars(config) | {name: value}))
    refused(lambda: train(changed, stopped, resume=True), "--resume", f"--{name}", kind=UsageError)


def test_a_folder_with_a_run_is_refused_without_resume(config, whole):
    refused(lambda: train(config, whole), "--out", "--resume", kind=UsageError)


def test_resuming_nothing_is_refused(config, tmp_path):
    refused(lambda: train(config, tmp_path, resume=True), "nothing was saved", "leave --resume out")


def test_a_size_the_encoder_cannot_halve_is_refused(tiny_config, tmp_path):
    refused(lambda: train(tiny_config(size=72), tmp_path), "--size 72", "32", kind=UsageError)


def test_photographs_of_another_dataset_are_refused(tiny_config, tmp_path):
    root = draw_scenes(tmp_path / "photographs")
    for folder in ("images", "labels"):
        (root / folder / "7.png").rename(root / folder / "9.png")
    refused(lambda: train(tiny_config(root=str(root)), tmp_path / "run"), str(root), "--root")


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(tiny_config, tmp_path):
    config = tiny_config(iterations=STEPS, lr=1e30, warmup=0)
    refused(lambda: train(config, tmp_path), "not finite", "--lr")


def test_a_loss_that_is_not_finite_leaves_weights_batch_and_the_last_good_checkpoint(
    tiny_config, tmp_path, monkeypatch
):
    config, forward, updates = tiny_config(iterations=6, checkpoint_every=2), TeacherLoss.forward, []

    def poisoned(self, features, targets):
        updates.append(targets.image.tolist())
        terms = forward(self, features, targets)
        if len(updates) == 4:
            terms["dice"] = terms["dice"] * torch.nan
            terms["pixel"] = terms["total"] = terms["total"] + terms["dice"]
        return terms

    with monkeypatch.context() as patch:
        patch.setattr(TeacherLoss, "forward", poisoned)
        refused(lambda: train(config, tmp_path / "run"), "update 4", "term: dice", "failed_00000004")
    folder = tmp_path / "run/failed_00000004"
    card = json.loads((folder / "model.json").read_text())
    assert card["failed"]["image"] == updates[-1]
    assert card["failed"]["losses"]["dice"] == "nan"
    kept = load_file(folder / "model.safetensors")
    assert len(kept) > 10
    assert all(value.isfinite().all() for value in kept.values())
    assert checkpoint.latest(tmp_path / "run").name == "step_00000002"
    # the cause gone, the run goes on from there and ends as if nothing had happened
    train(config, tmp_path / "run", resume=True)
    train(config, tmp_path / "whole")
    one, other = (
        checkpoint.load(tmp_path / name, torch.device("cpu")).network.state_dict() for name in ("run", "whole")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def first_gradient(config, out, monkeypatch) -> torch.Tensor:
    """All gradients of the first update as one vector, as the optimiser gets them."""
    seen, step = [], torch.optim.AdamW.step

    def spy(optimizer, *args, **kwargs):
        grads = [p.grad.flatten().clone() for group in optimizer.param_groups for p in group["params"]]
        seen.append(torch.cat(grads))
        return step(optimizer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy)
        train(replace(config, iterations=1), out)
    return seen[0]


def test_gradients_keep_their_direction_and_at_most_the_norm_allowed(config, tmp_path, monkeypatch):
    plain = first_gradient(config, tmp_path / "plain", monkeypatch)
    for share in (0.3, 3.0):
        allowed = replace(config, max_grad_norm=share * float(plain.norm()))
        found = first_gradient(allowed, tmp_path / str(share), monkeypatch)
        assert (found - plain * min(share, 1)).norm() < 1e-3 * plain.norm()


def test_schedule_is_a_linear_warm_up_times_polynomial_decay():
    config = TrainConfig(iterations=100, warmup=5, poly_power=0.9)
    for step in range(100):
        decay = (1 - step / 100) ** 0.9
        assert schedule(step, config) == pytest.approx(decay * min(1.0, (step + 1) / 5))


def test_warm_up_is_a_tenth_of_a_short_run_and_may_be_none():
    assert TrainConfig(iterations=100, warmup=1500).warmup_updates == 10
    assert TrainConfig(iterations=20000).warmup_updates == 1500
    assert schedule(0, TrainConfig(iterations=100, warmup=0)) == 1.0
    assert schedule(0, TrainConfig(iterations=5)) == 1.0


def test_the_logged_rate_is_the_schedules(whole, config):
    for line in logged(whole):
        step = line["step"] - 1
        assert line["lr"] == pytest.approx(1e-3 * (1 - step / STEPS) * min(1, (step + 1) / 2))


def test_a_checkpoint_is_evaluated_without_cache_or_config(config, tmp_path):
    root, cache, out = draw_scenes(tmp_path / "photographs"), tmp_path / "gone.zarr", tmp_path / "run"
    cache_scenes(root, cache)
    short = TrainConfig(**(vars(config) | {"cache": str(cache), "iterations": 2}))
    train(short, out)
    shutil.rmtree(cache)
    (out / "config.json").unlink()
    loaded = checkpoint.load(out, torch.device("cpu"))
    assert (loaded.step, loaded.size, loaded.config) == (2, 64, short)
    assert loaded.split.unseen == ("cow", "house")
    assert not loaded.network.training
    found = evaluate(Predictor(loaded), open_dataset("folder", root, "train")).at(GAMMA)
    assert 0 <= found.pixel_accuracy <= 1


@pytest.mark.parametrize("damage", [checkpoint.MODEL, checkpoint.CARD])
def test_a_damaged_checkpoint_is_told_in_one_line(stopped, tmp_path, damage):
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    file = checkpoint.latest(out) / damage
    file.write_bytes(file.read_bytes()[:100])
    refused(lambda: checkpoint.load(out, torch.device("cpu")), "damaged")


def test_strict_compares_every_image_before_the_first_update_else_a_sample_is(tiny_config, tmp_path, monkeypatch):
    root, cache = draw_scenes(tmp_path / "photographs"), tmp_path / "c.zarr"
    cache_scenes(root, cache)
    monkeypatch.setattr(loop, "CHECKED", 1)
    config = tiny_config(cache=str(cache), iterations=1, batch_size=1)
    drawn = Stream(8, 1, 1, config.seed).batch(0)[0].item
    victim = next(item for item in (5, 6) if item != drawn)
    (root / f"images/{victim}.png").write_bytes((root / "images/1.png").read_bytes())
    train(config, tmp_path / "sampled")
    refused(
        lambda: train(config, tmp_path / "strict", strict=True), f"{victim}.png", "changed since the cache was made"
    )
    assert not (tmp_path / "strict").exists()
    (root / "images/0.png").write_bytes((root / "images/1.png").read_bytes())
    refused(lambda: train(config, tmp_path / "again"), "0.png", "changed since the cache was made")
    assert not (tmp_path / "again").exists()
