"""What `push` publishes: the files of a run or of a cache, and their page."""

from pathlib import Path
from typing import Protocol

from data_cache.callbacks import ProgressBar
from experiments.sharing.config import PushConfig
from experiments.sharing.manifest import Content, Kind, Manifest
from experiments.sharing.terms import Terms


class Bundle(Protocol):
    """A run or a cache that can be published."""

    def files(self, folder: Path, progress_bar: ProgressBar) -> dict[str, Content]:
        """The files by name; those that must be made are written to `folder`. Raises UserError for a damaged one."""

    def check(self, manifest: Manifest) -> None:
        """Raise UserError if a hash in the manifest shows that a file is damaged."""

    def page(self, name: str, url: str, terms: Terms) -> str:
        """The content of README.md."""


def open_bundle(config: PushConfig, kind: Kind) -> Bundle:
    """Open what is to be published. Raises UserError if there is no checkpoint, or no finished cache."""
    if kind == "cache":  # which needs neither torch nor the student's packages
        from experiments.sharing.cache_bundle import CacheBundle

        return CacheBundle(config.source)
    from experiments.sharing.run_bundle import RunBundle

    return RunBundle(config)
