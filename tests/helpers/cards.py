"""Edits a checkpoint's card and seals it again, as `trainer.checkpoint` would."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.card import CARD, sealed
from trainer.checkpoint_folders import latest


def change_card(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the card of the newest checkpoint at `path`."""
    file = latest(path) / CARD
    card = json.loads(file.read_text())
    change(card)
    file.write_text(json.dumps(sealed(card)))
