"""The summary card of a cache: what it holds, how far it is, what failed, what it weighs."""

from typing import TYPE_CHECKING, Any

from data_cache.card import card, failures, progress, size, table
from data_cache.info import describe
from data_cache.store import Cache

if TYPE_CHECKING:
    from data_cache.reader import Reader


def summary(reader: "Reader") -> str:
    """HTML of all that `describe` tells and of how the numbers came about."""
    cache = reader.cache
    about, layout = describe(cache), cache.layout
    texts = reader.texts
    down, across = layout.grid
    rows = [
        ("images", f"{about['dataset']}: {progress(about)}"),
        ("views", _views(layout.views, cache.fingerprint.get("views", {}))),
        ("CLIP", f"{about['clip']}, weights {about['weights_sha256'][:12]}"),
        ("tokens", f"{down} x {across} a view, {layout.channels} channels, dense: {layout.dense}"),
        ("classes", f"{len(texts.classes)}, prompts {texts.name} ({len(texts.templates)} a class)"),
        ("bytes", ", ".join(f"{part} {size(count)}" for part, count in about["bytes"].items())),
        ("photographs", reader.photographs.where),
    ]
    head = ["mask set", "lambda", "windows", "updates", "unseen"]
    sets = [_mask_set(cache, name, name == reader.masks) for name in cache.masks]
    return card(str(cache.path), table(rows), table(sets, head), failures(about["failures"]))


def _views(count: int, about: dict[str, Any]) -> str:
    if count == 1:
        return "1: the whole image"
    drawn = f", seed {about['seed']}" if "seed" in about else ""
    return f"{count}: the whole image and {count - 1} crop{'s' * (count > 2)}{drawn}"


def _mask_set(cache: Cache, name: str, here: bool) -> list[str]:
    about = cache.mask_attributes(name)
    pending = len(cache.pending(name))
    state = f" ({pending} shards not done)" if pending else ""
    windows = ", ".join(map(str, about["windows"]))
    shown = f"{name}{' (shown)' * here}{state}"
    return [shown, f"{about['threshold']:g}", windows, str(about["updates"]), ", ".join(about["unseen"]) or "none"]
