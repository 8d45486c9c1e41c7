"""Text features of a vocabulary: encoded by CLIP once, then read from a file in the cache folder."""

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
    """One L2-normalized feature per class: from the file for these weights, words and templates, else from CLIP.

    Args:
        teacher: the teacher's fingerprint.
        prompts: the templates.
        words: the name of each class in the prompts.
        channels: length of a feature.
        load: returns the teacher; called only if there is no valid file.
        folder: the folder of caches; features are stored in its subfolder text/.

    """
    identity = [teacher["model"], teacher["weights_sha256"], teacher["quick_gelu"], words, prompts.templates]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    file = folder / "text" / f"{key}.safetensors"
    if (stored := _read(file, (len(words), channels))) is not None:
        return stored
    features = load().encode_text(words, prompts.templates)
    _write(file, features)
    return features


def _read(file: Path, shape: tuple[int, int]) -> Float[np.ndarray, "class channel"] | None:
    """The stored features; None if there is no file, or if it does not hold what was written."""
    try:
        if not is_file(file):  # opening a named pipe would block forever
            return None
        with safe_open(file, "numpy") as file_content:
            features, checksum = file_content.get_tensor(FEATURES), (file_content.metadata() or {}).get(CHECKSUM)
    except Exception:  # safetensors raises many kinds of exceptions for invalid headers
        return None
    valid = features.shape == shape and features.dtype == np.float32 and bool(np.isfinite(features).all())
    return features if valid and checksum == hashlib.sha256(features.tobytes()).hexdigest() else None


def _write(file: Path, features: Float[np.ndarray, "class channel"]) -> None:
    checksum = hashlib.sha256(features.tobytes()).hexdigest()
    # if the disk is full or read-only, the next run encodes the prompts again
    with suppress(OSError, SafetensorError):
        if file.is_fifo():  # `atomic_write` refuses to replace a pipe, but this folder is ours
            file.unlink()
    with suppress(OSError, SafetensorError), atomic_write(file) as draft:
        save_file({FEATURES: features}, draft, metadata={CHECKSUM: checksum})
