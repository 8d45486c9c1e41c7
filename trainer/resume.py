"""Resuming a run: the state saved besides the weights, and how it is restored, bit for bit on a CPU."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric.plugins.precision import Precision
from torch import Tensor

from data_cache.errors import UsageError, UserError
from trainer.card import HASHES, ONLINE, checkpoint_errors, read_card
from trainer.checkpoint import MODEL, RESUME, read_tensors
from trainer.checkpoint_folders import latest
from trainer.config import TrainConfig
from trainer.distributed.ranks import all_gather, rank

FREE_TO_CHANGE = {
    "device",
    "devices",
    "compile",
    "workers",
    "log_every",
    "log",
    "log_images",
    "checkpoint_every",
    "root",
    "cache",
    "masks",
}
"""Settings that a resumed run may change. Of the cache and its masks, the content is compared, not the name."""


def resume_state(learner: Any, optimizer: Any, precision: Precision) -> dict[str, Tensor]:
    """The state of the loss (bank, adapter), the optimizer, the random generators and the scaler as named tensors.

    Only precision 16-mixed has a scaler, whose scale of the loss changes during training. The random states of all
    processes are concatenated. Everything else is the same in all of them.
    """
    state = {f"loss.{name}": value for name, value in learner.loss.state_dict().items()}
    for index, entry in _unwrapped(optimizer).state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in entry.items()}
    state |= {f"scaler.{name}": torch.as_tensor(value) for name, value in precision.state_dict().items()}
    state["rng.cpu"] = all_gather(torch.get_rng_state())
    if torch.cuda.is_available():
        state["rng.cuda"] = all_gather(torch.cuda.get_rng_state())
    return state


def restore(run: Path, learner: Any, optimizer: Any, precision: Precision, card: Mapping[str, Any]) -> int:
    """Restore the newest checkpoint and return its step. The scaler keeps its own state if none was saved.

    Raises:
        UsageError: settings, vocabulary or cache content differ from those of the run.
        UserError: the checkpoint is missing or damaged.

    """
    folder = latest(run)
    stored = read_card(folder)
    with checkpoint_errors(folder):
        _check_same(stored, card, run)
        if RESUME not in stored[HASHES]:
            raise UserError(
                f"--resume: {folder} was pushed without its optimizer state; push the run with --resume-state"
            )
        tensors, weights = read_tensors(folder, RESUME, stored), read_tensors(folder, MODEL, stored)
        learner.network.load_state_dict(_with_prefix("segmenter.", weights))
        learner.loss.load_state_dict(_with_prefix("loss.", tensors))
        inner = _unwrapped(optimizer)
        inner.load_state_dict(
            {"state": _optimizer_entries(tensors), "param_groups": inner.state_dict()["param_groups"]}
        )
        if scaler := _with_prefix("scaler.", tensors):
            precision.load_state_dict({name: value.item() for name, value in scaler.items()})
        restore_rng(tensors)
        return int(stored["step"])


def seed_rank(seed: int) -> None:
    """Give every rank but 0 its own random seed. Call it after all have built the same student."""
    if rank():
        torch.manual_seed(int(np.random.SeedSequence((seed, rank())).generate_state(1, np.uint64)[0]))


def restore_rng(tensors: Mapping[str, Tensor]) -> None:
    """Restore the random states of this process. A rank that the saved run did not have keeps its own."""
    states = tensors["rng.cpu"].split(len(torch.get_rng_state()))
    if rank() < len(states):
        torch.set_rng_state(states[rank()].clone())  # of a view, torch reads past the end
    if torch.cuda.is_available() and "rng.cuda" in tensors:
        states = tensors["rng.cuda"].split(len(torch.cuda.get_rng_state()))
        if rank() < len(states):
            torch.cuda.set_rng_state(states[rank()].clone())


def _check_same(stored: Mapping[str, Any], card: Mapping[str, Any], run: Path) -> None:
    # a setting that did not exist when the run was saved had its default value
    stored_config, config = asdict(TrainConfig()) | stored["config"], card["config"]
    changed = [
        f"--{name.replace('_', '-')}"
        for name, value in stored_config.items()
        if name not in FREE_TO_CHANGE and config.get(name) != value
    ]
    changed += [
        "--online" if name == ONLINE else f"the cache's {name}"
        for name in sorted(card.keys() - {"config", "recorded"})
        if card[name] != stored.get(name)
    ]
    if changed:
        raise UsageError(f"--resume: {changed[0]} differs from the run in {run}; keep it, or pass another --out")


def _optimizer_entries(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in _with_prefix("optimizer.", tensors).items():
        index, name = key.split(".", 1)
        entries.setdefault(int(index), {})[name] = value
    return entries


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _unwrapped(optimizer: Any) -> Any:
    """The optimizer inside Fabric's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)
