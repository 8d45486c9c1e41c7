"""Checkpoints are complete or absent, damage is detected, and other files in the folder are not touched."""

import errno
import io
import json
import os
import shutil
import subprocess
from contextlib import suppress

import numpy as np
import pytest
import torch
from cards import change_card
from refusals import refused

from data_cache.errors import UnreadableError, UserError
from data_cache.system.atomic import draft_path
from trainer import checkpoint
from trainer.card import CARD, HASHES, read_card
from trainer.checkpoint import MODEL, RESUME, load, read_tensors
from trainer.checkpoint_folders import FAILED, STEP, latest
from trainer.loop import train

CPU = torch.device("cpu")


def save_minimal(run, step, kind=STEP):
    """Save a minimal checkpoint."""
    return checkpoint.save(run, step, torch.nn.Linear(2, 2), torch.zeros(3, 2), {}, {"rng": torch.zeros(2)}, kind)


def names(run):
    return sorted(path.name for path in run.iterdir())


@pytest.fixture(scope="module")
def trained(tiny_config, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    train(tiny_config(iterations=2), out)
    return out


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


# -- integrity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [MODEL, RESUME, CARD])
def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_refused_or_changes_nothing(run, name):
    folder = latest(run)
    card, content = read_card(folder), (folder / name).read_bytes()
    refusals = 0
    for position in np.random.default_rng(0).integers(len(content), size=12):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        (folder / name).write_bytes(damaged)
        with suppress(UserError):
            damaged_card = read_card(folder)
            read_tensors(folder, MODEL, damaged_card)
            read_tensors(folder, RESUME, damaged_card)
            assert damaged_card == card
            continue
        refusals += 1
    assert refusals == 12 or (name == CARD and refusals >= 6)


def test_weights_with_a_flipped_bit_are_refused(run):
    file = latest(run) / MODEL
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    refused(lambda: load(run, CPU), latest(run), "damaged or foreign checkpoint", MODEL, "from a copy")


@pytest.mark.parametrize("name", [MODEL, CARD])
def test_a_temporarily_unreadable_file_is_not_reported_as_damaged(run, name, monkeypatch):
    original = io.open

    def deny(file, *args, **kwargs):
        if str(file).endswith(name):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return original(file, *args, **kwargs)

    monkeypatch.setattr(io, "open", deny)
    message = refused(lambda: load(run, CPU), name, "Permission denied", "try again", kind=UnreadableError)
    assert "train again" not in message


def test_a_named_pipe_in_place_of_the_weights_does_not_block(run):
    file = latest(run) / MODEL
    file.unlink()
    os.mkfifo(file)
    refused(lambda: load(run, CPU), MODEL, "is not a file")


def test_a_modified_card_is_refused(run):
    file = latest(run) / CARD
    file.write_text(file.read_text().replace('"size": 64', '"size": 96'))
    refused(lambda: load(run, CPU), "damaged or foreign checkpoint", CARD)


@pytest.mark.parametrize("name", [MODEL, RESUME])
def test_mixed_files_of_two_runs_are_refused(run, tiny_config, tmp_path, name):
    config = tiny_config(iterations=2)
    train(tiny_config(iterations=2, seed=1), tmp_path / "other")
    shutil.copy(latest(tmp_path / "other") / name, latest(run) / name)
    refused(lambda: train(config, run, resume=True), f"{name} was modified, or belongs to another checkpoint")
    if name == MODEL:
        refused(lambda: load(run, CPU), f"{name} was modified, or belongs to another checkpoint")


def test_a_checkpoint_of_a_version_without_hashes_is_refused(run):
    change_card(run, lambda card: [card.pop(HASHES), card.update(version=2)])
    refused(lambda: load(run, CPU), "checkpoint of version 2", "reads 3", "train again")


@pytest.mark.parametrize(
    ("content", "words"),
    [("{}", "it has no 'format'"), ("[]", "list"), ('{"format": "x"}', "its format is 'x'"), ("", "")],
)
def test_a_foreign_card_is_refused_with_the_reason(run, content, words):
    (latest(run) / CARD).write_text(content)
    refused(lambda: load(run, CPU), "damaged or foreign checkpoint", words)


def test_an_invalid_setting_in_a_checkpoint_is_not_a_usage_error(run):
    change_card(run, lambda card: card["config"].update(size=1))
    refused(lambda: load(run, CPU), "damaged or foreign checkpoint", "--size 1")


# -- atomicity -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_flushed_before_the_older_one_is_removed(tmp_path, monkeypatch):
    save_minimal(tmp_path, 1)
    calls = []
    fsync, remove = checkpoint.fsync, checkpoint.remove
    monkeypatch.setattr(checkpoint, "fsync", lambda path: [calls.append(f"flush {path.name}"), fsync(path)])
    monkeypatch.setattr(
        checkpoint, "remove", lambda path: [path.exists() and calls.append(f"remove {path.name}"), remove(path)]
    )
    save_minimal(tmp_path, 2)
    assert calls[:3] == [f"flush {name}" for name in (MODEL, RESUME, CARD)]
    assert calls[3].endswith(".partial")
    assert calls[4:] == [f"flush {tmp_path.name}", "remove step_00000001"]


OTHER_NAMES = ("step_00000006.bak", "step_notes", "step_6", "step_000000061", "step_0000000x", "my_step_00000006")


def test_folders_that_only_look_like_checkpoints_are_neither_removed_nor_loaded(tmp_path):
    for name in OTHER_NAMES:
        shutil.copytree(save_minimal(tmp_path, 1), tmp_path / name)
    (tmp_path / "failed_00000001x").mkdir()
    save_minimal(tmp_path, 3)
    save_minimal(tmp_path, 4)
    save_minimal(tmp_path, 5, FAILED)
    assert names(tmp_path) == sorted([*OTHER_NAMES, "failed_00000001x", "failed_00000005", "step_00000004"])
    assert latest(tmp_path).name == "step_00000004"


def test_a_checkpoint_replaces_one_of_the_same_update(tmp_path):
    save_minimal(tmp_path, 3)
    (tmp_path / "step_00000003" / "note").write_text("older")
    save_minimal(tmp_path, 3)
    assert names(tmp_path) == ["step_00000003"]
    assert names(tmp_path / "step_00000003") == sorted([CARD, MODEL, RESUME])


def test_a_linked_checkpoint_is_unlinked_and_its_target_kept(tmp_path):
    target = save_minimal(tmp_path / "elsewhere", 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/step_00000001").symlink_to(target)
    assert latest(tmp_path / "run").name == "step_00000001"
    save_minimal(tmp_path / "run", 2)
    assert names(tmp_path / "run") == ["step_00000002"]
    assert (target / CARD).is_file()


def test_a_file_named_like_a_checkpoint_is_reported_before_training(run, tiny_config):
    (run / "step_00000004").write_text("notes")
    words = ("step_00000004", "is not a checkpoint", "rename")
    refused(lambda: train(tiny_config(iterations=2), run, resume=True), *words)
    assert (run / "step_00000004").read_text() == "notes"


def test_only_drafts_of_a_killed_run_are_removed_by_the_next(run, tiny_config):
    for name in ("step", "failed", "log.jsonl", "config.json"):
        draft_path(run / name).mkdir()
    (run / "draft_00000003").mkdir()
    (run / "mine.partial").write_text("mine")
    train(tiny_config(iterations=2), run, resume=True)
    assert names(run) == sorted(["config.json", "draft_00000003", "log.jsonl", "mine.partial", "step_00000002"])


# -- a full disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(trained, tmp_path):
    """A file system with room for one and a half checkpoints."""
    mount, size = tmp_path / "disk", sum(file.stat().st_size for file in latest(trained).iterdir())
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size * 3 // 2}", "none", str(mount)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_full_disk_keeps_the_previous_checkpoint_and_no_partial_files(disk, tiny_config):
    config, run = tiny_config(iterations=4, checkpoint_every=2), disk / "run"
    refused(lambda: train(config, run), f"{run}: the disk is full", "make room", "--resume")
    assert names(run) == ["config.json", "log.jsonl", "step_00000002"]
    assert load(run, CPU).step == 2
    subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
    train(config, run, resume=True)
    assert load(run, CPU).step == 4
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
