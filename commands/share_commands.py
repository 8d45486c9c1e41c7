"""The commands that publish and fetch: push and pull."""

from dataclasses import asdict

from commands.console import bar, show
from commands.options import Given, Json, options
from experiments.sharing.config import PullConfig, PushConfig


@options(PushConfig)
def push(given: Given, as_json: Json = False) -> None:
    """Publish a run, or a cache without dense tokens, on Hugging Face or in a folder, with a generated page."""
    config = PushConfig(**given)
    from experiments.sharing import push_pull

    pushed = push_pull.push(config, bar("rerun the same command to complete it"))
    show(asdict(pushed) if as_json else str(pushed))


@options(PullConfig)
def pull(given: Given, as_json: Json = False) -> None:
    """Fetch a published run or cache, and check every file of it."""
    config = PullConfig(**given)
    from experiments.sharing import push_pull

    pulled = push_pull.pull(config, bar("rerun the same command"))
    show(asdict(pulled) if as_json else str(pulled))
