"""What both stages agree on: datasets, splits, views and the cache. Imports neither stage."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_cache.reader import open_cache

__all__ = ["open_cache"]


def __getattr__(name: str) -> Any:
    """Import what a notebook asks for when it does: every module of this room comes through here first."""
    if name == "open_cache":
        from data_cache.reader import open_cache

        return open_cache
    raise AttributeError(f"module 'data_cache' has no attribute '{name}'")
