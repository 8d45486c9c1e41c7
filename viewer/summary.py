"""The summary card of a cache: contents, progress, failures and bytes on disk."""

from typing import Any

from data_cache.mask_set import MaskSet
from data_cache.reader import Cache
from viewer.cards import card, failures, progress, size, table


def summary(mask_set: MaskSet) -> str:
    """The content of a cache (`Cache.describe`) and its settings as HTML."""
    cache = mask_set.cache
    content, layout = cache.describe(), cache.layout
    texts = mask_set.texts
    down, across = layout.grid
    rows = [
        ("images", f"{content['dataset']}: {progress(content)}"),
        ("views", _views(layout.views, cache.fingerprint.get("views", {}))),
        ("CLIP", f"{content['clip']}, weights {content['weights_sha256'][:12]}"),
        ("tokens", f"{down} x {across} per view, {layout.channels} channels, dense: {layout.dense}"),
        ("classes", f"{len(texts.classes)}, prompts {texts.name} ({len(texts.templates)} per class)"),
        ("bytes", ", ".join(f"{part} {size(count)}" for part, count in content["bytes"].items())),
        ("image folder", mask_set.source.location),
    ]
    head = ["mask set", "lambda", "windows", "updates", "unseen"]
    sets = [_mask_set(cache, name, name == mask_set.masks) for name in cache.masks]
    return card(str(cache.path), table(rows), table(sets, head), failures(content["failures"]))


def _views(count: int, settings: dict[str, Any]) -> str:
    if count == 1:
        return "1: the whole image"
    seed = f", seed {settings['seed']}" if "seed" in settings else ""
    return f"{count}: the whole image and {count - 1} crop{'s' * (count > 2)}{seed}"


def _mask_set(cache: Cache, name: str, shown: bool) -> list[str]:
    about = cache.mask_attributes(name)
    pending = len(cache.pending_shards(name))
    state = f" ({pending} shards not done)" if pending else ""
    windows = ", ".join(map(str, about["windows"]))
    title = f"{name}{' (shown)' * shown}{state}"
    return [title, f"{about['threshold']:g}", windows, str(about["updates"]), ", ".join(about["unseen"]) or "none"]
