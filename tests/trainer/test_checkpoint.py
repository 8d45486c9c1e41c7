"""Checkpoints: whole or absent, never read as other numbers, and nothing beside them is touched."""

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
from trainer.checkpoint import MODEL, RESUME, latest, load, read_tensors
from trainer.loop import train

CPU = torch.device("cpu")


def saved(run, step, kind=checkpoint.STEP):
    """A checkpoint of next to nothing."""
    return checkpoint.save(run, step, torch.nn.Linear(2, 2), torch.zeros(3, 2), {}, {"rng": torch.zeros(2)}, kind)


def names(run):
    return sorted(path.name for path in run.iterdir())


@pytest.fixture(scope="module")
def made(tiny_config, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "run"
    train(tiny_config(iterations=2), out)
    return out


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


# -- what is read is what was written ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [MODEL, RESUME, CARD])
def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_refused_or_changes_nothing(run, name):
    folder = latest(run)
    card, whole = read_card(folder), (folder / name).read_bytes()
    found = 0
    for place in np.random.default_rng(0).integers(len(whole), size=12):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        (folder / name).write_bytes(damaged)
        with suppress(UserError):
            again = read_card(folder)
            read_tensors(folder, MODEL, again)
            read_tensors(folder, RESUME, again)
            assert again == card
            continue
        found += 1
    assert found == 12 or (name == CARD and found >= 6)


def test_weights_with_a_flipped_bit_are_not_evaluated(run):
    file = latest(run) / MODEL
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    refused(lambda: load(run, CPU), latest(run), "damaged or foreign checkpoint", MODEL, "from a copy")


@pytest.mark.parametrize("name", [MODEL, CARD])
def test_a_file_that_cannot_be_read_just_now_is_not_called_damaged(run, name, monkeypatch):
    opened = io.open

    def refuse(file, *given, **named):
        if str(file).endswith(name):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return opened(file, *given, **named)

    monkeypatch.setattr(io, "open", refuse)
    message = refused(lambda: load(run, CPU), name, "Permission denied", "try again", kind=UnreadableError)
    assert "train again" not in message


def test_a_named_pipe_in_place_of_the_weights_is_not_waited_for(run):
    file = latest(run) / MODEL
    file.unlink()
    os.mkfifo(file)
    refused(lambda: load(run, CPU), MODEL, "is not a file")


def test_a_number_changed_in_the_card_is_not_believed(run):
    file = latest(run) / CARD
    file.write_text(file.read_text().replace('"size": 64', '"size": 96'))
    refused(lambda: load(run, CPU), "damaged or foreign checkpoint", CARD)


@pytest.mark.parametrize("name", [MODEL, RESUME])
def test_files_of_two_runs_are_no_checkpoint(run, tiny_config, tmp_path, name):
    config = tiny_config(iterations=2)
    train(tiny_config(iterations=2, seed=1), tmp_path / "other")
    shutil.copy(latest(tmp_path / "other") / name, latest(run) / name)
    refused(lambda: train(config, run, resume=True), f"{name} was modified, or belongs to another checkpoint")
    if name == MODEL:
        refused(lambda: load(run, CPU), f"{name} was modified, or belongs to another checkpoint")


def test_a_checkpoint_from_before_there_were_hashes_is_refused_and_not_half_checked(run):
    change_card(run, lambda card: [card.pop(HASHES), card.update(version=2)])
    refused(lambda: load(run, CPU), "checkpoint of version 2", "reads 3", "train again")


@pytest.mark.parametrize(
    ("content", "words"),
    [("{}", "it has no 'format'"), ("[]", "list"), ('{"format": "x"}', "its format is 'x'"), ("", "")],
)
def test_a_foreign_card_is_told_in_words(run, content, words):
    (latest(run) / CARD).write_text(content)
    refused(lambda: load(run, CPU), "damaged or foreign checkpoint", words)


def test_a_setting_that_cannot_be_had_is_the_checkpoint_s_fault_and_no_usage_error(run):
    change_card(run, lambda card: card["config"].update(size=1))
    refused(lambda: load(run, CPU), "damaged or foreign checkpoint", "--size 1")


# -- what is written is whole, and nothing else is touched ---------------------------------------------------------


def test_a_checkpoint_is_on_the_disk_before_the_older_one_goes(tmp_path, monkeypatch):
    saved(tmp_path, 1)
    done = []
    fsync, remove = checkpoint.fsync, checkpoint.remove
    monkeypatch.setattr(checkpoint, "fsync", lambda path: [done.append(f"flush {path.name}"), fsync(path)])
    monkeypatch.setattr(
        checkpoint, "remove", lambda path: [path.exists() and done.append(f"remove {path.name}"), remove(path)]
    )
    saved(tmp_path, 2)
    assert done[:3] == [f"flush {name}" for name in (MODEL, RESUME, CARD)]
    assert done[3].endswith(".partial")
    assert done[4:] == [f"flush {tmp_path.name}", "remove step_00000001"]


STRANGERS = ("step_00000006.bak", "step_notes", "step_6", "step_000000061", "step_0000000x", "my_step_00000006")


def test_saving_removes_no_folder_that_only_looks_like_a_checkpoint_and_none_is_the_newest(tmp_path):
    for name in STRANGERS:
        shutil.copytree(saved(tmp_path, 1), tmp_path / name)
    (tmp_path / "failed_00000001x").mkdir()
    saved(tmp_path, 3)
    saved(tmp_path, 4)
    saved(tmp_path, 5, checkpoint.FAILED)
    assert names(tmp_path) == sorted([*STRANGERS, "failed_00000001x", "failed_00000005", "step_00000004"])
    assert latest(tmp_path).name == "step_00000004"


def test_a_checkpoint_of_the_same_update_takes_the_other_s_place(tmp_path):
    saved(tmp_path, 3)
    (tmp_path / "step_00000003" / "note").write_text("older")
    saved(tmp_path, 3)
    assert names(tmp_path) == ["step_00000003"]
    assert names(tmp_path / "step_00000003") == sorted([CARD, MODEL, RESUME])


def test_a_link_to_a_checkpoint_elsewhere_goes_and_what_it_leads_to_stays(tmp_path):
    there = saved(tmp_path / "elsewhere", 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/step_00000001").symlink_to(there)
    assert latest(tmp_path / "run").name == "step_00000001"
    saved(tmp_path / "run", 2)
    assert names(tmp_path / "run") == ["step_00000002"]
    assert (there / CARD).is_file()


def test_a_file_with_the_name_of_a_checkpoint_is_told_before_training(run, tiny_config):
    (run / "step_00000004").write_text("notes")
    words = ("step_00000004", "is not a checkpoint", "rename")
    refused(lambda: train(tiny_config(iterations=2), run, resume=True), *words)
    assert (run / "step_00000004").read_text() == "notes"


def test_what_a_killed_run_was_writing_is_swept_by_the_next_and_nothing_else(run, tiny_config):
    for name in ("step", "failed", "log.jsonl", "config.json"):
        draft_path(run / name).mkdir()
    (run / "draft_00000003").mkdir()
    (run / "mine.partial").write_text("mine")
    train(tiny_config(iterations=2), run, resume=True)
    assert names(run) == sorted(["config.json", "draft_00000003", "log.jsonl", "mine.partial", "step_00000002"])


# -- a full disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(made, tmp_path):
    """A file system with room for one checkpoint and a half."""
    place, size = tmp_path / "disk", sum(file.stat().st_size for file in latest(made).iterdir())
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size * 3 // 2}", "none", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_while_a_checkpoint_is_saved_keeps_the_older_one_and_nothing_half_written(
    disk, tiny_config
):
    config, run = tiny_config(iterations=4, checkpoint_every=2), disk / "run"
    refused(lambda: train(config, run), f"{run}: the disk is full", "make room", "--resume")
    assert names(run) == ["config.json", "log.jsonl", "step_00000002"]
    assert load(run, CPU).step == 2
    subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
    train(config, run, resume=True)
    assert load(run, CPU).step == 4
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
