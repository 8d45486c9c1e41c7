"""Settings of the commands that publish and fetch runs and caches: push and pull."""

import re
from dataclasses import dataclass
from pathlib import Path

from data_cache.errors import UsageError
from data_cache.options import argument, option
from experiments.config import CheckedConfig

_URLS = "hf://USER/NAME for a run, hf://datasets/USER/NAME for a cache, or a folder such as s3://BUCKET/NAME."


@dataclass(frozen=True)
class PushConfig(CheckedConfig):
    """Settings of `push`."""

    source: Path = argument("A run, one of its checkpoints, or a finished cache.")
    url: str = argument(f"Where to publish it: {_URLS}")
    overwrite: bool = option(False, "Replace what an earlier push wrote there.")
    license: str | None = option(
        None,
        "License of what you publish, such as apache-2.0 or cc-by-4.0; by default that of the README.md that is "
        "already there, else the card says that none is stated.",
        metavar="ID",
    )
    private: bool = option(False, "Create the Hugging Face repository as a private one.")
    resume_state: bool = option(False, "For a run: also the optimizer state, which `train --resume` needs.")
    result: Path | None = option(
        None,
        "For a run: saved output of `evaluate --json` or `reproduce`, for the card; by default the one in the run's "
        "folder, if any.",
        metavar="FILE",
    )
    hub_dataset: str | None = option(
        None, "For a run: the Hugging Face dataset that the card links to.", metavar="USER/NAME"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_url(self.url)
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise UsageError(
                f"--license {self.license!r}: must be an identifier such as apache-2.0, cc-by-4.0 or other "
                "(https://huggingface.co/docs/hub/repositories-licenses)"
            )
        if self.hub_dataset is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.hub_dataset):
            raise UsageError(f"--hub-dataset {self.hub_dataset!r}: must be USER/NAME")


@dataclass(frozen=True)
class PullConfig(CheckedConfig):
    """Settings of `pull`."""

    url: str = argument(f"What to fetch: {_URLS}")
    out: Path | None = option(
        None, "Folder to write; by default runs/NAME for a run, and NAME.zarr in the folder of caches for a cache."
    )
    overwrite: bool = option(False, "Replace the run or cache that is already there.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_url(self.url)


def check_url(url: str) -> None:
    """Raise UsageError for text that is not a URL with a scheme."""
    if not re.match(r"[a-z][a-z0-9+.:-]*://.", url):
        raise UsageError(f"{url}: not a URL; for a folder pass file:///PATH, for a Hugging Face repository hf://{url}")
