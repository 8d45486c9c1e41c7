"""Types of the callbacks through which long operations report to their callers."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_cache.datasets.base import Dataset

Progress = Callable[[int], None]
"""Called with the number of items (images, files, views) finished since the last call."""

Log = Callable[[str], None]
"""Called with one line of text for the user."""

OnWarnings = Callable[[Sequence[str]], None]
"""Called with warnings, one sentence each, before the work that they are about begins."""

OnUpdate = Callable[[dict[str, float]], None]
"""Called after every parameter update with its log entry: step, learning rate, losses, seconds."""

OnDataset = Callable[["Dataset"], None]
"""Called with a dataset once it is open, so that its notes can be printed."""

ProgressBar = Callable[[str, int | None, str], AbstractContextManager[Callable[..., None]]]
"""Opens a progress bar from a verb, the total (None if unknown) and a unit; yields its `Progress`."""


def ignore(_: Any) -> None:
    """Ignore the argument: the default of every callback above except `ProgressBar`."""


__all__ = ["Log", "OnDataset", "OnUpdate", "OnWarnings", "Progress", "ProgressBar", "ignore"]
