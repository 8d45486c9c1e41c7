"""The summary card of a cache: contents, progress, failures and bytes on disk."""

from collections.abc import Mapping
from typing import Any

from data_cache.description import describe
from data_cache.mask_set import MaskSet
from data_cache.messages import count
from data_cache.reader import Cache
from viewer.cards import card, failures, progress, size, table


def summary(mask_set: MaskSet) -> str:
    """The content of a cache (`Cache.describe`) and its settings as HTML."""
    cache = mask_set.cache
    content, layout = describe(cache), cache.layout
    texts = mask_set.texts
    down, across = layout.grid
    rows = [
        ("images", f"{content['dataset']}: {progress(content)}"),
        ("views", _views(layout.views, cache.fingerprint.get("views", {}))),
        ("CLIP", f"{content['clip']}, weights {content['weights_sha256'][:12]}"),
        ("tokens", f"{down} x {across} per view, {layout.channels} channels, dense: {layout.dense}"),
        ("classes", f"{len(texts.classes)}, prompts {texts.name} ({len(texts.templates)} per class)"),
        ("bytes", ", ".join(f"{part} {size(amount)}" for part, amount in content["bytes"].items())),
        ("image folder", mask_set.source.location),
    ]
    head = ["mask set", "tokens", "lambda", "windows", "updates", "unseen"]
    sets = [_mask_set(cache, name, one, name == mask_set.masks) for name, one in content["mask_sets"].items()]
    return card(str(cache.path), table(rows), table(sets, head), failures(content["failures"]))


def _views(number: int, settings: dict[str, Any]) -> str:
    if number == 1:
        return "1: the whole image"
    seed = f", seed {settings['seed']}" if "seed" in settings else ""
    return f"{number}: the whole image and {count(number - 1, 'crop')}{seed}"


def _mask_set(cache: Cache, name: str, content: Mapping[str, Any], shown: bool) -> list[str]:
    about = cache.mask_attributes(name)
    pending = content["shards_pending"]
    state = f" ({count(pending, 'shard')} not done)" if pending else ""
    windows = ", ".join(map(str, about["windows"]))
    title = f"{name}{' (shown)' * shown}{state}"
    down, across = content["grid"]
    tokens = f"{content['model']}, {down} x {across}, dense: {content['dense']}"
    return [
        title,
        tokens,
        f"{about['threshold']:g}",
        windows,
        str(about["updates"]),
        ", ".join(about["unseen"]) or "none",
    ]
