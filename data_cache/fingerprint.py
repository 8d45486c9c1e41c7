"""Fingerprints: everything that changes the numbers in a cache, and the differences between two of them."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

Fingerprint = Mapping[str, Any]


def hash_names(names: Iterable[str]) -> str:
    """SHA-256 over an ordered list of names, each preceded by its length so that no separator is ambiguous."""
    digest = hashlib.sha256()
    for name in names:
        encoded = name.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a nested mapping to dotted names and plain values; tuples become lists."""
    if not isinstance(value, Mapping):
        return {prefix: list(value) if isinstance(value, tuple) else value}
    parts = (flatten(child, f"{prefix}.{key}" if prefix else str(key)) for key, child in value.items())
    return {key: leaf for part in parts for key, leaf in part.items()}


def difference(stored: Fingerprint, requested: Fingerprint) -> list[str]:
    """One readable entry per setting that differs, e.g. `clip.image_size: 512 there, 256 here`."""
    there, here = flatten(stored), flatten(requested)
    absent = "absent"
    return [
        f"{key}: {_short(there.get(key, absent))} there, {_short(here.get(key, absent))} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key, absent) != here.get(key, absent)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 and " " not in text else text
