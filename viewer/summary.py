"""The summary card of a cache: contents, progress, failures, bytes on disk."""

from typing import Any

from data_cache.mask_set import MaskSet
from data_cache.reader import Cache
from viewer.cards import card, failures, progress, size, table


def summary(mask_set: MaskSet) -> str:
    """HTML of what `describe` reports, and of the settings behind the numbers."""
    cache = mask_set.cache
    about, layout = cache.describe(), cache.layout
    texts = mask_set.texts
    down, across = layout.grid
    rows = [
        ("images", f"{about['dataset']}: {progress(about)}"),
        ("views", _views(layout.views, cache.fingerprint.get("views", {}))),
        ("CLIP", f"{about['clip']}, weights {about['weights_sha256'][:12]}"),
        ("tokens", f"{down} x {across} per view, {layout.channels} channels, dense: {layout.dense}"),
        ("classes", f"{len(texts.classes)}, prompts {texts.name} ({len(texts.templates)} per class)"),
        ("bytes", ", ".join(f"{part} {size(count)}" for part, count in about["bytes"].items())),
        ("photographs", mask_set.source.location),
    ]
    head = ["mask set", "lambda", "windows", "updates", "unseen"]
    sets = [_mask_set(cache, name, name == mask_set.masks) for name in cache.masks]
    return card(str(cache.path), table(rows), table(sets, head), failures(about["failures"]))


def _views(count: int, about: dict[str, Any]) -> str:
    if count == 1:
        return "1: the whole image"
    drawn = f", seed {about['seed']}" if "seed" in about else ""
    return f"{count}: the whole image and {count - 1} crop{'s' * (count > 2)}{drawn}"


def _mask_set(cache: Cache, name: str, here: bool) -> list[str]:
    about = cache.mask_attributes(name)
    pending = len(cache.pending_shards(name))
    state = f" ({pending} shards not done)" if pending else ""
    windows = ", ".join(map(str, about["windows"]))
    shown = f"{name}{' (shown)' * here}{state}"
    return [shown, f"{about['threshold']:g}", windows, str(about["updates"]), ", ".join(about["unseen"]) or "none"]
