"""Checkpoints: one folder per step with safetensors and JSON, complete or absent. Evaluation needs no cache."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_cache.errors import UsageError, UserError
from data_cache.splits import Split
from data_cache.system.atomic import draft_path, fsync, remove
from data_cache.system.files import is_file
from trainer.card import CARD, FORMAT, HASHES, MODEL, RESUME, VERSION, checkpoint_errors, read_card, sealed
from trainer.checkpoint_folders import STEP, checkpoints, latest
from trainer.config import TrainConfig
from trainer.segmenter import Vocabulary
from trainer.students.network import StudentNetwork


@dataclass(frozen=True)
class Checkpoint:
    """A trained student and its vocabulary."""

    config: TrainConfig
    network: StudentNetwork
    split: Split
    text: Float[Tensor, "class channel"]
    size: int
    step: int
    card: Mapping[str, Any]

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes of its training dataset."""
        return Vocabulary(self.split, self.text, self.split.is_seen)

    def gamma(self, requested: float | None = None) -> float:
        """The requested gamma; None selects this student's default (`TrainConfig.gamma`)."""
        return self.config.gamma if requested is None else requested


def save(
    run: Path,
    step: int,
    network: nn.Module,
    text: Float[Tensor, "class channel"],
    card: Mapping[str, Any],
    resume: Mapping[str, Tensor],
    kind: str = STEP,
) -> Path:
    """Write `run`/step_N, then remove older checkpoints, so that a killed run keeps the previous one.

    Everything is flushed to disk before anything is removed. If writing fails, nothing of the new checkpoint is left.
    A run is resumed only from checkpoints of the `kind` step.
    """
    final, draft, replaced = run / f"{kind}_{step:08d}", draft_path(run / kind), draft_path(run / kind)
    weights = {f"segmenter.{name}": value for name, value in network.state_dict().items()} | {"text": text}
    try:
        draft.mkdir(parents=True)
        save_file({name: v.detach().contiguous().cpu() for name, v in weights.items()}, draft / MODEL)
        save_file({name: v.detach().contiguous().cpu().clone() for name, v in resume.items()}, draft / RESUME)
        hashes = {name: _file_hash(draft / name) for name in (MODEL, RESUME)}
        header = {"format": FORMAT, "version": VERSION, "step": step}
        (draft / CARD).write_text(json.dumps(sealed(header | dict(card) | {HASHES: hashes}), indent=2) + "\n")
        for path in (draft / MODEL, draft / RESUME, draft / CARD, draft):
            fsync(path)
        if final.is_dir():
            final.rename(replaced)
        draft.rename(final)
        fsync(run)
    finally:
        remove(draft)
    for old in (*checkpoints(run, kind), replaced):
        if old != final:
            remove(old)
    return final


def load(path: Path, device: torch.device) -> Checkpoint:
    """Load the newest checkpoint at `path` for prediction. Raises UserError if it is damaged or foreign."""
    folder = latest(path)
    card = read_card(folder)
    if "failed" in card:
        raise UserError(f"{folder}: is the state left by a loss that was not finite, not a checkpoint; pass the run")
    tensors = read_tensors(folder, MODEL, card)
    with checkpoint_errors(folder):
        config = _stored_config(card)
        text = tensors.pop("text")
        network = StudentNetwork(config.arch, config.encoder, "none", text.shape[1])
        network.load_state_dict({name.removeprefix("segmenter."): value for name, value in tensors.items()})
        split = Split(tuple(card["classes"]), tuple(card["unseen"]))
        size, step = card["size"], card["step"]
    return Checkpoint(config, network.to(device).eval(), split, text.to(device), size, step, card)


def read_tensors(folder: Path, name: str, card: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the tensors of one file of a checkpoint. Raises UserError unless its hash is the one in the card."""
    with checkpoint_errors(folder):
        if _file_hash(folder / name) != card[HASHES][name]:
            raise ValueError(f"{name} was modified, or belongs to another checkpoint")
        return load_file(folder / name)


def _stored_config(card: Mapping[str, Any]) -> TrainConfig:
    try:
        return TrainConfig(**card["config"])
    except UsageError as error:  # an invalid setting in a checkpoint is not an error in the command line
        raise ValueError(str(error)) from None


def _file_hash(path: Path) -> str:
    if not is_file(path):  # opening a named pipe would block forever
        raise ValueError(f"{path.name} is not a file" if path.exists() else f"{path.name} is missing")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
