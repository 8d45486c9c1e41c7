"""The card of a checkpoint (model.json): settings, vocabulary, provenance, and hashes of its files."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from data_cache.errors import UserError, one_line
from data_cache.limits import read_json
from data_cache.splits import Split
from data_cache.system.files import unreadable_error
from trainer.config import TrainConfig

FORMAT, VERSION = "clipteacher-checkpoint", 3
CARD, ONLINE = "model.json", "online"
MODEL, RESUME = "model.safetensors", "resume.safetensors"
HASHES, SEAL = "files_sha256", "card_sha256"
ADVICE = "restore the folder from a copy, or train again with another --out"


def make_card(config: TrainConfig, split: Split, size: int, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a card: settings, vocabulary, and where the text features come from.

    `recorded` in `origin` says where things were. A resumed run may differ in it, but in nothing else.
    """
    return {
        "config": asdict(config),
        "classes": list(split.classes),
        "unseen": list(split.unseen),
        "size": size,
        **origin,
    }


def sealed(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card with the hash of its own content."""
    content = {name: value for name, value in card.items() if name != SEAL}
    return content | {SEAL: hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def read_card(folder: Path) -> dict[str, Any]:
    """Read the card of a checkpoint. Raises UserError if it was modified or has another version."""
    with checkpoint_errors(folder):
        card = read_json(folder / CARD)
        if card["format"] != FORMAT:
            raise ValueError(f"its format is {card['format']!r}")
        if card["version"] != VERSION:
            raise UserError(
                f"{folder}: is a checkpoint of version {card['version']}, this program reads {VERSION}; train again, "
                "or use the program that wrote it"
            )
        if card[SEAL] != sealed(card)[SEAL]:
            raise ValueError(f"{CARD} was modified")
        return card


@contextmanager
def checkpoint_errors(folder: Path) -> Iterator[None]:
    """Turn every error that reading a damaged or foreign checkpoint can raise into a UserError.

    A file that exists but cannot be read right now raises UnreadableError: it may not be damaged at all.
    """
    try:
        yield
    except OSError as error:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
            raise unreadable_error(error, folder) from None
        raise UserError(f"{folder}: damaged or foreign checkpoint ({one_line(error)}); {ADVICE}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"{folder}: damaged or foreign checkpoint ({reason}); {ADVICE}") from None
