"""Checkpoints: safetensors and JSON in one folder a step, complete or absent, evaluable without any cache."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_cache.errors import UserError, one_line
from data_cache.limits import read_json
from data_cache.splits import Split
from trainer.config import TrainConfig
from trainer.segmenter import Segmenter
from trainer.words import Words

FORMAT, VERSION = "clipteacher-checkpoint", 2
MODEL, CARD, RESUME, ONLINE = "model.safetensors", "model.json", "resume.safetensors", "online"
STEP, FAILED = "step", "failed"


@dataclass(frozen=True)
class Checkpoint:
    """A trained student and the words it knows."""

    config: TrainConfig
    segmenter: Segmenter
    split: Split
    text: Float[Tensor, "class channel"]
    size: int
    step: int
    card: Mapping[str, Any]

    @property
    def words(self) -> Words:
        """The classes of its training."""
        return Words(self.split, self.text, self.split.is_seen)


def save(
    run: Path,
    step: int,
    segmenter: nn.Module,
    text: Float[Tensor, "class channel"],
    card: Mapping[str, Any],
    resume: Mapping[str, Tensor],
    kind: str = STEP,
) -> Path:
    """Write `run`/step_N and remove older ones; a run killed in between keeps the previous checkpoint.

    Of another `kind` than step it is nothing that a run goes on from.
    """
    final = run / f"{kind}_{step:08d}"
    draft = run / f"draft_{step:08d}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    weights = {f"segmenter.{name}": value for name, value in segmenter.state_dict().items()}
    save_file({name: v.detach().contiguous().cpu() for name, v in (weights | {"text": text}).items()}, draft / MODEL)
    save_file({name: value.detach().contiguous().cpu().clone() for name, value in resume.items()}, draft / RESUME)
    header = {"format": FORMAT, "version": VERSION, "step": step}
    (draft / CARD).write_text(json.dumps(header | dict(card), indent=2) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    for old in run.glob(f"{kind}_*"):
        if old != final:
            shutil.rmtree(old)
    return final


def latest(path: Path) -> Path:
    """The newest checkpoint folder of a run: `path` is the run's folder, a checkpoint's, or a file in either."""
    folder = path if path.is_dir() else path.parent
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; pass the folder that `train --out` wrote")
    if (folder / CARD).is_file():
        return folder
    steps = sorted(step for step in folder.glob("step_*") if (step / CARD).is_file())
    if not steps:
        raise UserError(f"{path}: no checkpoint in this folder; pass the folder that `train --out` wrote")
    return steps[-1]


def load(path: Path, device: torch.device) -> Checkpoint:
    """The newest checkpoint at `path`, ready to predict. Raises UserError for a damaged or foreign one."""
    folder = latest(path)
    try:
        card = read_json(folder / CARD)
        check_version(card, folder)
        if "failed" in card:
            raise UserError(
                f"{folder}: is what a loss that was not finite left behind, and no checkpoint; pass the run"
            )
        config = TrainConfig(**card["config"])
        tensors = load_file(folder / MODEL)
        text = tensors.pop("text")
        segmenter = Segmenter(config.arch, config.encoder, "none", text.shape[1])
        segmenter.load_state_dict({name.removeprefix("segmenter."): value for name, value in tensors.items()})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: damaged or foreign checkpoint ({one_line(error)})") from None
    split = Split(tuple(card["classes"]), tuple(card["unseen"]))
    return Checkpoint(config, segmenter.to(device).eval(), split, text.to(device), card["size"], card["step"], card)


def check_version(card: Mapping[str, Any], folder: Path) -> None:
    """Raise UserError for a checkpoint of another version."""
    if (card["format"], card["version"]) != (FORMAT, VERSION):
        raise UserError(f"{folder}: a checkpoint of another version; train again")


def card_of(config: TrainConfig, split: Split, size: int, about: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON beside the weights: settings, vocabulary, and where the text features come from.

    What `recorded` holds tells where things were; unlike all else a resumed run need not share it.
    """
    return {
        "config": asdict(config),
        "classes": list(split.classes),
        "unseen": list(split.unseen),
        "size": size,
        **about,
    }
