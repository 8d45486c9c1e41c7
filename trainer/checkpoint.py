"""Checkpoints: safetensors and JSON in one folder per step, complete or absent, evaluable without any cache."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_cache.errors import UsageError, UserError, one_line
from data_cache.limits import read_json
from data_cache.splits import Split
from data_cache.system.atomic import draft_path, fsync, remove
from data_cache.system.files import is_file, unreadable_error
from trainer.config import TrainConfig
from trainer.segmenter import Vocabulary
from trainer.students.network import StudentNetwork

FORMAT, VERSION = "clipteacher-checkpoint", 3
MODEL, CARD, RESUME, ONLINE = "model.safetensors", "model.json", "resume.safetensors", "online"
HASHES, SEAL = "files_sha256", "card_sha256"
STEP, FAILED = "step", "failed"
MENDING = "restore the folder from a copy, or train again into another --out"


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
        """The classes of its training."""
        return Vocabulary(self.split, self.text, self.split.is_seen)


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

    A run resumes only from the `kind` step. All of it is on disk before anything is removed; if it cannot be written,
    nothing of it is left.
    """
    final, draft, replaced = run / f"{kind}_{step:08d}", draft_path(run / kind), draft_path(run / kind)
    weights = {f"segmenter.{name}": value for name, value in segmenter.state_dict().items()} | {"text": text}
    try:
        draft.mkdir(parents=True)
        save_file(
            {name: v.detach().contiguous().cpu() for name, v in (weights | {"text": text}).items()}, draft / MODEL
        )
        save_file({name: v.detach().contiguous().cpu().clone() for name, v in resume.items()}, draft / RESUME)
        hashes = {name: _file_hash(draft / name) for name in (MODEL, RESUME)}
        header = {"format": FORMAT, "version": VERSION, "step": step}
        (draft / CARD).write_text(json.dumps(sealed(header | dict(card) | {HASHES: hashes}), indent=2) + "\n")
        for written in (draft / MODEL, draft / RESUME, draft / CARD, draft):
            fsync(written)
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


def checkpoints(run: Path, kind: str = STEP) -> list[Path]:
    """The folders of a run that are named as its checkpoints are, the oldest first: nothing else there is ours."""
    return [path for path in _named(run, kind) if path.is_dir()]


def check_names(run: Path) -> None:
    """Raise UserError if something that is no folder has a name that a checkpoint will want."""
    for path in (*_named(run, STEP), *_named(run, FAILED)):
        if not path.is_dir():
            raise UserError(f"{path}: is not a checkpoint but is named like one; rename it, or pass another --out")


def latest(path: Path) -> Path:
    """The newest checkpoint folder of a run: `path` is the run's folder, a checkpoint's, or a file in either."""
    folder = path if path.is_dir() else path.parent
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; pass the folder that `train --out` wrote")
    if is_file(folder / CARD):
        return folder
    steps = [step for step in checkpoints(folder) if is_file(step / CARD)]
    if not steps:
        raise UserError(f"{path}: no checkpoint in this folder; pass the folder that `train --out` wrote")
    return steps[-1]


def load(path: Path, device: torch.device) -> Checkpoint:
    """The newest checkpoint at `path`, ready to predict. Raises UserError for a damaged or foreign one."""
    folder = latest(path)
    card = read_card(folder)
    if "failed" in card:
        raise UserError(f"{folder}: is what a loss that was not finite left behind, not a checkpoint; pass the run")
    tensors = read_tensors(folder, MODEL, card)
    with trusted(folder):
        config = _settings(card)
        text = tensors.pop("text")
        segmenter = StudentNetwork(config.arch, config.encoder, "none", text.shape[1])
        segmenter.load_state_dict({name.removeprefix("segmenter."): value for name, value in tensors.items()})
        split = Split(tuple(card["classes"]), tuple(card["unseen"]))
        size, step = card["size"], card["step"]
    return Checkpoint(config, segmenter.to(device).eval(), split, text.to(device), size, step, card)


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a checkpoint's folder. Raises UserError if it is not as it was written, or of another version."""
    with trusted(folder):
        card = read_json(folder / CARD)
        if card["format"] != FORMAT:
            raise ValueError(f"its format is {card['format']!r}")
        if card["version"] != VERSION:
            raise UserError(
                f"{folder}: a checkpoint of version {card['version']}, this program reads {VERSION}; train again, or "
                "use the program that wrote it"
            )
        if card[SEAL] != sealed(card)[SEAL]:
            raise ValueError(f"{CARD} is not as it was written")
        return card


def read_tensors(folder: Path, name: str, card: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint. Raises UserError unless it is the one that the card was written with."""
    with trusted(folder):
        if _file_hash(folder / name) != card[HASHES][name]:
            raise ValueError(f"{name} is not as it was written, or another checkpoint's")
        return load_file(folder / name)


@contextmanager
def trusted(folder: Path) -> Iterator[None]:
    """Turn whatever a checkpoint that is not ours, or not whole, does to a reader into a UserError.

    Of a file that merely cannot be read just now it becomes an UnreadableError: nobody knows whether it is damaged.
    """
    try:
        yield
    except OSError as error:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
            raise unreadable_error(error, folder) from None
        raise UserError(f"{folder}: damaged or foreign checkpoint ({one_line(error)}); {MENDING}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"{folder}: damaged or foreign checkpoint ({reason}); {MENDING}") from None


def sealed(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card with a hash over its own content."""
    content = {name: value for name, value in card.items() if name != SEAL}
    return content | {SEAL: hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def _settings(card: Mapping[str, Any]) -> TrainConfig:
    try:
        return TrainConfig(**card["config"])
    except UsageError as error:  # not the user's mistake: no option requested this
        raise ValueError(str(error)) from None


def _named(run: Path, kind: str) -> list[Path]:
    name = re.compile(rf"{kind}_[0-9]{{8}}")
    return sorted(path for path in run.iterdir() if name.fullmatch(path.name)) if run.is_dir() else []


def _file_hash(path: Path) -> str:
    if not is_file(path):  # to open a named pipe is to wait for ever
        raise ValueError(f"{path.name} is not a file" if path.exists() else f"{path.name} is missing")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
