"""Text features of a vocabulary: encoded by CLIP once, then read from a file in the cache folder."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from data_cache.system.atomic import atomic_write
from data_cache.system.files import is_file
from pipeline.teacher.prompts import Prompts
from pipeline.teacher.protocol import Teacher

FEATURES, CHECKSUM, UNKNOWN = "features", "sha256", "unknown"


def text_features(
    teacher: Mapping[str, Any],
    prompts: Prompts,
    words: tuple[str, ...],
    channels: int,
    load: Callable[[], Teacher],
    folder: Path,
) -> tuple[Float[np.ndarray, "class channel"], tuple[str, ...]]:
    """One L2-normalized feature per class, and the words that CLIP does not know (`Teacher.unknown_names`).

    They are read from the file for these weights, words and templates, else computed by CLIP.

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
    clip = load()
    features, unknown = clip.encode_text(words, prompts.templates), clip.unknown_names(words)
    _write(file, features, unknown)
    return features, unknown


def _read(file: Path, shape: tuple[int, int]) -> tuple[Float[np.ndarray, "class channel"], tuple[str, ...]] | None:
    """The stored features and unknown words; None if there is no file, or if it does not hold what was written."""
    try:
        if not is_file(file):  # opening a named pipe would block forever
            return None
        with safe_open(file, "numpy") as file_content:
            features, words = file_content.get_tensor(FEATURES), file_content.get_tensor(UNKNOWN)
            checksum = (file_content.metadata() or {}).get(CHECKSUM)
        unknown = tuple(map(str, json.loads(words.tobytes())))
    except Exception:  # safetensors raises many kinds of exceptions for invalid headers
        return None
    valid = features.shape == shape and features.dtype == np.float32 and bool(np.isfinite(features).all())
    return (features, unknown) if valid and checksum == _checksum(features, words) else None


def _write(file: Path, features: Float[np.ndarray, "class channel"], unknown: tuple[str, ...]) -> None:
    words = np.frombuffer(json.dumps(unknown).encode(), np.uint8)
    # if the disk is full or read-only, the next run encodes the prompts again
    with suppress(OSError, SafetensorError):
        if file.is_fifo():  # `atomic_write` refuses to replace a pipe, but this folder is ours
            file.unlink()
    with suppress(OSError, SafetensorError), atomic_write(file) as draft:
        save_file({FEATURES: features, UNKNOWN: words}, draft, metadata={CHECKSUM: _checksum(features, words)})


def _checksum(features: Float[np.ndarray, "class channel"], words: UInt8[np.ndarray, "byte"]) -> str:
    return hashlib.sha256(features.tobytes() + words.tobytes()).hexdigest()
