"""Text features of a vocabulary, asked of CLIP once and kept beside the caches."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from data_cache.drafts import draft_of
from pipeline.clip import FrozenCLIP
from pipeline.prompts import Prompts

FEATURES, CHECKSUM = "features", "sha256"


def text_features(
    teacher: Mapping[str, Any],
    prompts: Prompts,
    words: tuple[str, ...],
    load: Callable[[], FrozenCLIP],
    folder: Path,
) -> Float[np.ndarray, "class channel"]:
    """One L2-normalised feature a class: those kept for the same weights, words and templates, else CLIP's.

    Args:
        teacher: the teacher's fingerprint.
        prompts: the templates.
        words: what stands in them for each class.
        load: gives the teacher itself; called only if the features are not there.
        folder: where caches lie; the features go to text/ in it.

    """
    about = [teacher["model"], teacher["weights_sha256"], teacher["quick_gelu"], words, prompts.templates]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    file = folder / "text" / f"{key}.safetensors"
    if (kept := _read(file)) is not None:
        return kept
    features = load().encode_text(words, prompts.templates)
    _write(file, features)
    return features


def _read(file: Path) -> Float[np.ndarray, "class channel"] | None:
    """The kept features; None if there are none, or if the file is damaged: it is then made again."""
    try:
        with safe_open(file, "numpy") as stored:
            features, checksum = stored.get_tensor(FEATURES), (stored.metadata() or {}).get(CHECKSUM)
    except (OSError, SafetensorError):
        return None
    return features if checksum == hashlib.sha256(features.tobytes()).hexdigest() else None


def _write(file: Path, features: Float[np.ndarray, "class channel"]) -> None:
    draft = draft_of(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({FEATURES: features}, draft, metadata={CHECKSUM: hashlib.sha256(features.tobytes()).hexdigest()})
        draft.replace(file)
    except (OSError, SafetensorError):
        # a read-only or full disk costs the next run some seconds, no more
        draft.unlink(missing_ok=True)
