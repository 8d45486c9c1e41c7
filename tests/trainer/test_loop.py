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
from torch._dynamo.exc import BackendCompilerFailed
from training_scenes import cache_scenes, draw_scenes

from data_cache.datasets import open_dataset
from data_cache.errors import UsageError, UserError
from data_cache.reader import Cache
from trainer import checkpoint, loop
from trainer.card import CARD
from trainer.config import GAMMA, TrainConfig
from trainer.evaluate import evaluate
from trainer.loop import schedule, train
from trainer.losses.total import TeacherLoss
from trainer.monitor import TIMINGS
from trainer.predictor import Predictor
from trainer.sampler import Stream
from trainer.students.network import StudentNetwork

STEPS = 20


class KilledError(Exception):
    """Raised by the tests to end a run between two updates."""


def kill_after(step: int):
    def on_update(line: dict[str, float]) -> None:
        if line["step"] == step:
            raise KilledError

    return on_update


def read_lines(out) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def without_time(lines: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


@pytest.fixture(scope="module")
def config(tiny_config) -> TrainConfig:
    return tiny_config(iterations=STEPS, checkpoint_every=10, lr=1e-3, bank=3, warmup=2)


@pytest.fixture(scope="module")
def complete(config, tmp_path_factory):
    """A run that was never interrupted."""
    out = tmp_path_factory.mktemp("complete")
    train(config, out)
    return out


@pytest.fixture(scope="module")
def killed(config, tmp_path_factory):
    """A run that died at update 13, three updates after its checkpoint."""
    out = tmp_path_factory.mktemp("killed")
    with pytest.raises(KilledError):
        train(config, out, on_update=kill_after(13))
    return out


@pytest.fixture(scope="module")
def resumed(config, killed, tmp_path_factory):
    out = tmp_path_factory.mktemp("resumed") / "run"
    shutil.copytree(killed, out)
    # the state of the global generator must not matter
    torch.manual_seed(12345)
    train(config, out, resume=True)
    return out


@pytest.mark.parametrize("file", [checkpoint.MODEL, checkpoint.RESUME])
def test_10_updates_and_10_resumed_ones_equal_20_bit_for_bit(complete, resumed, file):
    expected, tensors = (load_file(checkpoint.latest(out) / file) for out in (complete, resumed))
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(tensors[name], value), name


def test_a_checkpoint_holds_weights_text_bank_adapter_and_optimizer_state(complete):
    model = load_file(checkpoint.latest(complete) / checkpoint.MODEL)
    resume = load_file(checkpoint.latest(complete) / checkpoint.RESUME)
    assert model["text"].shape == (5, 64)
    assert resume["loss.bank.cls"].shape == (12, 64)
    assert (resume["loss.bank.image"] >= 0).all()
    assert any(name.startswith("loss.adapter.") for name in resume)
    assert any(name.endswith(".exp_avg_sq") for name in resume)
    assert "rng.cpu" in resume


def test_training_updates_all_weights(complete, killed):
    early, late = (load_file(checkpoint.latest(out) / checkpoint.MODEL) for out in (killed, complete))
    unchanged = {name for name, value in early.items() if torch.equal(value, late[name])}
    assert unchanged == {"text", "segmenter.mean", "segmenter.std"}


def test_a_resumed_log_has_each_update_once_and_the_same_losses(complete, killed, resumed):
    assert [line["step"] for line in read_lines(killed)] == list(range(1, 13))
    assert [line["step"] for line in read_lines(resumed)] == list(range(1, STEPS + 1))
    assert without_time(read_lines(resumed)) == without_time(read_lines(complete))


def test_first_losses_depend_only_on_the_seed(config, killed, tmp_path, tiny_config):
    other = tiny_config(iterations=STEPS, lr=1e-3, bank=3, warmup=2, seed=1)
    with pytest.raises(KilledError):
        train(config, tmp_path / "same", on_update=kill_after(2))
    with pytest.raises(KilledError):
        train(other, tmp_path / "other", on_update=kill_after(2))
    first = [without_time(read_lines(out))[0] for out in (killed, tmp_path / "same", tmp_path / "other")]
    assert first[0] == first[1] != first[2]


def test_mixed_precision_keeps_cls_tokens_in_float32(tiny_config, tmp_path, monkeypatch):
    calls, forward = [], TeacherLoss.forward

    def spy(self, features, targets):
        calls.append((features.dtype, targets.cls))
        return forward(self, features, targets)

    monkeypatch.setattr(TeacherLoss, "forward", spy)
    config = tiny_config(iterations=2, precision="bf16-mixed")
    assert np.isfinite(train(config, tmp_path / "run")["total"])
    stored = Cache(Path(config.cache)).load("default").cls
    rows = {row.astype(np.float32).tobytes() for row in stored.reshape(-1, stored.shape[-1])}
    assert len(calls) == 2
    for dtype, cls in calls:
        assert dtype == torch.float32
        assert {row.numpy().tobytes() for row in cls} <= rows


def test_sync_batchnorm_keeps_the_activation_of_timm_norm_layers():
    synced = convert_sync_batchnorm(torch.nn.Sequential(BatchNormAct2d(4), torch.nn.BatchNorm2d(4)))
    assert isinstance(synced[0], torch.nn.SyncBatchNorm)
    assert isinstance(synced[0].act, torch.nn.ReLU)
    assert isinstance(synced[1], torch.nn.SyncBatchNorm)


def test_only_the_newest_checkpoint_is_kept_and_no_partial_files(complete, killed):
    for out, step in ((complete, 20), (killed, 10)):
        assert sorted(p.name for p in out.iterdir()) == ["config.json", "log.jsonl", f"step_{step:08d}"]
        names = [CARD, checkpoint.MODEL, checkpoint.RESUME]
        assert sorted(p.name for p in checkpoint.latest(out).iterdir()) == sorted(names)


def test_a_failed_save_keeps_the_previous_checkpoint(killed, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(killed, out)
    previous = checkpoint.load(out, torch.device("cpu"))

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint.json, "dumps", full_disk)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(out, 20, previous.network, previous.text, {}, {})
    monkeypatch.undo()
    assert checkpoint.load(out, torch.device("cpu")).step == 10
    checkpoint.save(out, 20, previous.network, previous.text, previous.card, {})
    assert [p.name for p in out.glob("step_*")] == ["step_00000020"]


@pytest.mark.parametrize(
    ("name", "value"), [("lr", 2e-3), ("seed", 1), ("glm", "max"), ("iterations", 30), ("size", 96)]
)
def test_resuming_with_changed_settings_is_refused(config, killed, name, value):
    changed = TrainConfig(**(vars(config) | {name: value}))
    refused(lambda: train(changed, killed, resume=True), "--resume", f"--{name}", kind=UsageError)


def test_a_folder_with_a_run_is_refused_without_resume(config, complete):
    refused(lambda: train(config, complete), "--out", "--resume", kind=UsageError)


def test_resuming_without_a_checkpoint_is_refused(config, tmp_path):
    refused(lambda: train(config, tmp_path, resume=True), "no checkpoint", "omit --resume")


def test_a_size_not_divisible_by_the_encoder_stride_is_refused(tiny_config, tmp_path):
    refused(lambda: train(tiny_config(size=72), tmp_path), "--size 72", "32", kind=UsageError)


def test_images_of_another_dataset_are_refused(tiny_config, tmp_path):
    root = draw_scenes(tmp_path / "dataset")
    for folder in ("images", "labels"):
        (root / folder / "7.png").rename(root / folder / "9.png")
    refused(lambda: train(tiny_config(root=str(root)), tmp_path / "run"), str(root), "--root")


def test_a_nonfinite_loss_ends_the_run_with_a_one_line_error(tiny_config, tmp_path):
    config = tiny_config(iterations=STEPS, lr=1e30, warmup=0)
    refused(lambda: train(config, tmp_path), "not finite", "--lr")


def test_a_nonfinite_loss_keeps_weights_batch_and_the_last_good_checkpoint(tiny_config, tmp_path, monkeypatch):
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
    weights = load_file(folder / "model.safetensors")
    assert len(weights) > 10
    assert all(value.isfinite().all() for value in weights.values())
    assert checkpoint.latest(tmp_path / "run").name == "step_00000002"
    # without the cause, the resumed run ends like one that never failed
    train(config, tmp_path / "run", resume=True)
    train(config, tmp_path / "complete")
    resumed, expected = (
        checkpoint.load(tmp_path / name, torch.device("cpu")).network.state_dict() for name in ("run", "complete")
    )
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_weights_that_are_not_finite_never_replace_a_checkpoint(tiny_config, tmp_path, monkeypatch):
    config, forward, updates = tiny_config(iterations=2, checkpoint_every=1), TeacherLoss.forward, []

    def poisoned(self, features, targets):
        updates.append(targets)
        if len(updates) == 2:
            features.register_hook(lambda gradient: gradient * torch.inf)
        return forward(self, features, targets)

    monkeypatch.setattr(TeacherLoss, "forward", poisoned)
    refused(lambda: train(config, tmp_path / "run"), "update 2", "weights are not finite")
    weights = checkpoint.load(tmp_path / "run", torch.device("cpu")).network.state_dict()
    assert checkpoint.latest(tmp_path / "run").name == "step_00000001"
    assert all(value.isfinite().all() for value in weights.values())


def first_gradient(config, out, monkeypatch) -> torch.Tensor:
    """All gradients of the first update as one vector, as the optimizer receives them."""
    gradients, step = [], torch.optim.AdamW.step

    def spy(optimizer, *args, **kwargs):
        grads = [p.grad.flatten().clone() for group in optimizer.param_groups for p in group["params"]]
        gradients.append(torch.cat(grads))
        return step(optimizer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy)
        train(replace(config, iterations=1), out)
    return gradients[0]


def test_gradient_clipping_limits_the_norm_and_keeps_the_direction(config, tmp_path, monkeypatch):
    gradient = first_gradient(config, tmp_path / "unclipped", monkeypatch)
    for factor in (0.3, 3.0):
        clipping = replace(config, max_grad_norm=factor * float(gradient.norm()))
        clipped = first_gradient(clipping, tmp_path / str(factor), monkeypatch)
        assert (clipped - gradient * min(factor, 1)).norm() < 1e-3 * gradient.norm()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a compiler")
def test_a_compiled_student_has_the_same_losses_and_the_same_weight_names(config, complete, tmp_path):
    train(replace(config, compile=True, iterations=3, warmup=0), tmp_path / "compiled")
    train(replace(config, iterations=3, warmup=0), tmp_path / "eager")
    compiled, eager = (without_time(read_lines(tmp_path / name)) for name in ("compiled", "eager"))
    assert compiled[0]["total"] == pytest.approx(eager[0]["total"], rel=1e-4)
    names = [set(load_file(checkpoint.latest(out) / checkpoint.MODEL)) for out in (tmp_path / "compiled", complete)]
    assert names[0] == names[1]


def test_a_failed_compilation_names_the_option(config, tmp_path, monkeypatch):
    def broken(*_: object, **__: object):
        raise BackendCompilerFailed(train, RuntimeError("no compiler\nand more"), None)

    monkeypatch.setattr(StudentNetwork, "compile", lambda self, **_: setattr(self, "_compiled_call_impl", broken))
    with pytest.raises(UserError, match=r"--compile: the student cannot be compiled here .*; leave it out"):
        train(replace(config, compile=True), tmp_path / "run")


def test_schedule_is_linear_warmup_times_polynomial_decay():
    config = TrainConfig(iterations=100, warmup=5, poly_power=0.9)
    for step in range(100):
        decay = (1 - step / 100) ** 0.9
        assert schedule(step, config) == pytest.approx(decay * min(1.0, (step + 1) / 5))


def test_warmup_is_at_most_a_tenth_of_the_run_and_may_be_zero():
    assert TrainConfig(iterations=100, warmup=1500).warmup_updates == 10
    assert TrainConfig(iterations=20000).warmup_updates == 1500
    assert schedule(0, TrainConfig(iterations=100, warmup=0)) == 1.0
    assert schedule(0, TrainConfig(iterations=5)) == 1.0


def test_the_logged_learning_rate_follows_the_schedule(complete):
    for line in read_lines(complete):
        step = line["step"] - 1
        assert line["lr"] == pytest.approx(1e-3 * (1 - step / STEPS) * min(1, (step + 1) / 2))


def test_a_checkpoint_can_be_evaluated_without_cache_or_config(config, tmp_path):
    root, cache, out = draw_scenes(tmp_path / "dataset"), tmp_path / "gone.zarr", tmp_path / "run"
    cache_scenes(root, cache)
    short = TrainConfig(**(vars(config) | {"cache": str(cache), "iterations": 2}))
    train(short, out)
    shutil.rmtree(cache)
    (out / "config.json").unlink()
    loaded = checkpoint.load(out, torch.device("cpu"))
    assert (loaded.step, loaded.size, loaded.config) == (2, 64, short)
    assert loaded.split.unseen == ("cow", "house")
    assert not loaded.network.training
    metrics = evaluate(Predictor(loaded), open_dataset("folder", root, "train")).at(GAMMA)
    assert 0 <= metrics.pixel_accuracy <= 1


@pytest.mark.parametrize("damage", [checkpoint.MODEL, CARD])
def test_a_damaged_checkpoint_is_reported_in_one_line(killed, tmp_path, damage):
    out = tmp_path / "run"
    shutil.copytree(killed, out)
    file = checkpoint.latest(out) / damage
    file.write_bytes(file.read_bytes()[:100])
    refused(lambda: checkpoint.load(out, torch.device("cpu")), "damaged")


def test_strict_compares_every_image_before_the_first_update(tiny_config, tmp_path, monkeypatch):
    root, cache = draw_scenes(tmp_path / "dataset"), tmp_path / "c.zarr"
    cache_scenes(root, cache)
    monkeypatch.setattr(loop, "NUM_CHECKED", 1)
    config = tiny_config(cache=str(cache), iterations=1, batch_size=1)
    drawn = Stream(8, 1, 1, config.seed).batch(0)[0].item
    changed = next(item for item in (5, 6) if item != drawn)
    (root / f"images/{changed}.png").write_bytes((root / "images/1.png").read_bytes())
    train(config, tmp_path / "sampled")
    refused(
        lambda: train(config, tmp_path / "strict", strict=True), f"{changed}.png", "changed since the cache was made"
    )
    assert not (tmp_path / "strict").exists()
    (root / "images/0.png").write_bytes((root / "images/1.png").read_bytes())
    refused(lambda: train(config, tmp_path / "again"), "0.png", "changed since the cache was made")
    assert not (tmp_path / "again").exists()
