"""Text features of a vocabulary, encoded by CLIP once and kept beside the caches."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from data_cache.system.atomic import atomic_write
from data_cache.system.files import is_file
from pipeline.teacher.clip import FrozenCLIP
from pipeline.teacher.prompts import Prompts

FEATURES, CHECKSUM = "features", "sha256"


def text_features(
    teacher: Mapping[str, Any],
    prompts: Prompts,
    words: tuple[str, ...],
    channels: int,
    load: Callable[[], FrozenCLIP],
    folder: Path,
) -> Float[np.ndarray, "class channel"]:
    """One L2-normalised feature a class: those kept for the same weights, words and templates, else CLIP's.

    Args:
        teacher: the teacher's fingerprint.
        prompts: the templates.
        words: what stands in them for each class.
        channels: numbers of a feature.
        load: gives the teacher itself; called only if the features are not there.
        folder: where caches lie; the features go to text/ in it.

    """
    about = [teacher["model"], teacher["weights_sha256"], teacher["quick_gelu"], words, prompts.templates]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    file = folder / "text" / f"{key}.safetensors"
    if (kept := _read(file, (len(words), channels))) is not None:
        return kept
    features = load().encode_text(words, prompts.templates)
    _write(file, features)
    return features


def _read(file: Path, shape: tuple[int, int]) -> Float[np.ndarray, "class channel"] | None:
    """The kept features; None if there are none, or if the file is not what was kept: it is then made again."""
    try:
        if not is_file(file):  # to open a named pipe is to wait for ever
            return None
        with safe_open(file, "numpy") as stored:
            features, checksum = stored.get_tensor(FEATURES), (stored.metadata() or {}).get(CHECKSUM)
    except Exception:  # whatever a header says that is not so, the library has an error of another class for it
        return None
    sound = features.shape == shape and features.dtype == np.float32 and bool(np.isfinite(features).all())
    return features if sound and checksum == hashlib.sha256(features.tobytes()).hexdigest() else None


def _write(file: Path, features: Float[np.ndarray, "class channel"]) -> None:
    checksum = hashlib.sha256(features.tobytes()).hexdigest()
    # a read-only or full disk costs the next run some seconds, no more
    with suppress(OSError, SafetensorError):
        if file.is_fifo():  # nobody's file is replaced by another kind of thing, but this folder is ours
            file.unlink()
    with suppress(OSError, SafetensorError), atomic_write(file) as draft:
        save_file({FEATURES: features}, draft, metadata={CHECKSUM: checksum})
