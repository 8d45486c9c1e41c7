"""The Python door: `import clipteacher` and open a cache. Nothing heavy is imported before it is used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from viewer.reader import open_cache

__all__ = ["open_cache"]


def __getattr__(name: str) -> Any:
    """Import `open_cache` when it is first used, so that importing this module is instant."""
    if name == "open_cache":
        from viewer.reader import open_cache

        return open_cache
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
