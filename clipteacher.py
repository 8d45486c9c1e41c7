"""The Python interface: `clipteacher.open_cache`. Heavy packages are imported on first use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from viewer.reader import open_cache

__all__ = ["open_cache"]


def __getattr__(name: str) -> Any:
    """Import `open_cache` on first use, so that importing this module is fast."""
    if name == "open_cache":
        from viewer.reader import open_cache

        return open_cache
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
