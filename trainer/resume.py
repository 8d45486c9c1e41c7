"""Going on with a run: what beside the weights must be kept, and how it is put back, bit for bit on CPU."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from data_cache.errors import UsageError, UserError, one_line
from data_cache.limits import read_json
from trainer.checkpoint import CARD, MODEL, ONLINE, RESUME, check_version, latest
from trainer.config import TrainConfig
from trainer.ranks import gathered, rank

FREE_TO_CHANGE = {"device", "devices", "workers", "log_every", "checkpoint_every", "root", "cache", "masks"}
"""Settings that a resumed run may change; of the cache and its masks, the content is compared."""


def resume_state(learner: Any, optimizer: Any) -> dict[str, Tensor]:
    """The state of loss (bank, adapter), optimiser and random numbers, as named tensors: no pickle.

    Of random numbers it holds the states of all processes, one after the other; all else they have in common.
    """
    state = {f"loss.{name}": value for name, value in learner.loss.state_dict().items()}
    for index, entry in _inner(optimizer).state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in entry.items()}
    state["rng.cpu"] = gathered(torch.get_rng_state())
    if torch.cuda.is_available():
        state["rng.cuda"] = gathered(torch.cuda.get_rng_state())
    return state


def draw_apart(seed: int) -> None:
    """Give each process but the first random numbers of its own, once all have built the same student."""
    if rank():
        torch.manual_seed(int(np.random.SeedSequence((seed, rank())).generate_state(1, np.uint64)[0]))


def restore(run: Path, learner: Any, optimizer: Any, card: Mapping[str, Any]) -> int:
    """Put the newest checkpoint's state back; returns its step.

    Raises:
        UsageError: the settings, the vocabulary or the cache's content differ from the run's.
        UserError: there is no checkpoint, or it is damaged.

    """
    folder = latest(run)
    try:
        stored = read_json(folder / CARD)
        check_version(stored, folder)
        _check_same(stored, card, run)
        tensors, weights = load_file(folder / RESUME), load_file(folder / MODEL)
        learner.segmenter.load_state_dict(_below("segmenter.", weights))
        learner.loss.load_state_dict(_below("loss.", tensors))
        inner = _inner(optimizer)
        inner.load_state_dict(
            {"state": _optimizer_entries(tensors), "param_groups": inner.state_dict()["param_groups"]}
        )
        _restore_chance(tensors)
        return int(stored["step"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: damaged or foreign checkpoint ({one_line(error)})") from None


def reopen_log(path: Path, step: int) -> TextIO:
    """Open the log to append to, without lines of updates that will be made again or were cut off in writing."""
    kept = []
    for text in path.read_text().splitlines() if step and path.exists() else ():
        try:
            if json.loads(text)["step"] <= step:
                kept.append(text)
        except ValueError:
            break
    path.write_text("".join(text + "\n" for text in kept))
    return path.open("a")


def _check_same(stored: Mapping[str, Any], card: Mapping[str, Any], run: Path) -> None:
    # a setting that is younger than the run had its default then
    was, config = asdict(TrainConfig()) | stored["config"], card["config"]
    changed = [
        f"--{name.replace('_', '-')}"
        for name, value in was.items()
        if name not in FREE_TO_CHANGE and config.get(name) != value
    ]
    others = card.keys() - {"config", "recorded"}
    changed += [
        "--online" if name == ONLINE else f"the cache's {name}"
        for name in sorted(others)
        if card[name] != stored.get(name)
    ]
    if changed:
        raise UsageError(f"--resume: {changed[0]} differs from the run in {run}; keep it, or pass another --out")


def _restore_chance(tensors: Mapping[str, Tensor]) -> None:
    # one of more processes than there were keeps the random numbers it began with
    states = tensors["rng.cpu"].split(len(torch.get_rng_state()))
    if rank() < len(states):
        torch.set_rng_state(states[rank()].clone())  # torch would read past the end of a view
    if torch.cuda.is_available() and "rng.cuda" in tensors:
        states = tensors["rng.cuda"].split(len(torch.cuda.get_rng_state()))
        if rank() < len(states):
            torch.cuda.set_rng_state(states[rank()].clone())


def _optimizer_entries(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in _below("optimizer.", tensors).items():
        index, name = key.split(".", 1)
        entries.setdefault(int(index), {})[name] = value
    return entries


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _inner(optimizer: Any) -> Any:
    # Fabric wraps the optimiser
    return getattr(optimizer, "optimizer", optimizer)
