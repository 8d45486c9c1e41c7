"""A Hugging Face repository as a place to publish to and to fetch from. A push is one commit: all of it or nothing."""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from data_cache.callbacks import ProgressBar
from data_cache.errors import UsageError, UserError, one_line
from data_cache.system.process_state import quiet_logging, quiet_warnings
from experiments.sharing.manifest import MANIFEST, Content, Kind, Manifest

URL = re.compile(r"hf://(?P<datasets>datasets/)?(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?/?")
SECONDS = 5.0
"""How long the first answer may take."""
LOGIN = "set HF_TOKEN, or run `hf auth login`"


class HubRepository:
    """A model repository (for a run) or a dataset repository (for a cache)."""

    def __init__(self, url: str, kind: Kind | None = None) -> None:
        if not (match := URL.fullmatch(url)):
            raise UsageError(f"{url}: must be hf://USER/NAME or hf://datasets/USER/NAME, optionally with @REVISION")
        wanted = {"run": "", "cache": "datasets/"}.get(kind or "", match["datasets"] or "")
        if wanted != (match["datasets"] or ""):
            raise UsageError(f"{url}: a {kind} belongs in another kind of repository; pass hf://{wanted}{match['id']}")
        self.url, self._id, self._revision = url, match["id"], match["revision"]
        self._type = "dataset" if match["datasets"] else "model"
        self._api = HfApi(library_name="clipteacher")

    @cached_property
    def _info(self) -> Any:
        with hub_errors(self.url):
            return self._api.repo_info(
                self._id, repo_type=self._type, revision=self._revision, timeout=SECONDS, files_metadata=True
            )

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {file.rfilename: int(file.size or 0) for file in self._info.siblings or ()}

    def size(self, name: str) -> int | None:
        """The size of a file; None if there is none of this name."""
        return self._sizes.get(name)

    def names(self) -> list[str]:
        """The names of all files and folders at the top level."""
        return sorted({name.partition("/")[0] for name in self._sizes})

    def open(self, name: str) -> BinaryIO:
        """Download a file into the Hugging Face cache, which resumes interrupted downloads, and open it."""
        with hub_errors(self.url):
            file = hf_hub_download(self._id, name, repo_type=self._type, revision=self._info.sha)
        return Path(file).open("rb")

    def prepare(self, private: bool) -> None:
        """Create the repository if it is missing. Raises UserError without a token or permission."""
        if get_token() is None:
            raise UserError(f"{self.url}: no Hugging Face token; {LOGIN}")
        try:
            found = self._info
        except _MissingRepositoryError:
            if self._revision:
                raise
            with hub_errors(self.url):
                self._api.create_repo(self._id, repo_type=self._type, private=private or None)
            found = self._info
        if private and not found.private:
            raise UserError(f"{self.url}: exists and is public; omit --private, or change that on its settings page")

    def publish(
        self, manifest: Manifest, files: Mapping[str, Content], old: Collection[str], progress_bar: ProgressBar
    ) -> None:
        """Upload everything in one commit. Content that an interrupted push has uploaded is not uploaded again.

        The Hub's own progress bars are shown.
        """
        added: dict[str, Content] = {**files, MANIFEST: manifest.encoded()}
        operations = [CommitOperationAdd(name, content) for name, content in added.items()]
        operations += [CommitOperationDelete(name) for name in old if name in self._sizes]
        with hub_errors(self.url), quiet_warnings():  # about metadata that the user may add later
            self._api.create_commit(
                self._id,
                operations,
                commit_message=f"Upload a {manifest.kind} with clipteacher",
                repo_type=self._type,
                revision=self._revision,
                parent_commit=self._info.sha,
            )


class _MissingRepositoryError(UserError):
    """The repository does not exist, or cannot be seen."""


@contextmanager
def hub_errors(url: str) -> Iterator[None]:
    """Turn the errors of the Hub and of the connection to it into a UserError, in one line.

    The Hub's own lines about retries, which would bury ours, are silenced.
    """
    try:
        with quiet_logging():
            yield
    except RuntimeError as error:  # raised for the upload of each file
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise _explained(url, cause) from None
    except (HTTPError, EntryNotFoundError, ValueError, OSError) as error:
        raise _explained(url, error) from None


def _explained(url: str, error: Exception) -> UserError:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, HFValidationError):
        return UsageError(f"{url}: not a valid repository name ({one_line(error)})")
    if isinstance(error, OfflineModeIsEnabled):
        return UserError(f"{url}: HF_HUB_OFFLINE is set; unset it, or pass the URL of a folder")
    if isinstance(error, GatedRepoError):
        return UserError(f"{url}: its authors grant access individually; request it on its page, then {LOGIN}")
    if isinstance(error, RepositoryNotFoundError):
        hint = "" if "://datasets/" in url else " (a cache is at hf://datasets/USER/NAME)"
        return _MissingRepositoryError(f"{url}: no such repository{hint}, or a private one; check the name, or {LOGIN}")
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{url}: no such revision; check what follows the @")
    if status == 401:
        return UserError(f"{url}: the Hugging Face token is not valid; {LOGIN}")
    if status == 403:
        return UserError(f"{url}: no permission; use a token with write access to it: {LOGIN}")
    if status == 412:
        return UserError(f"{url}: was changed by someone else meanwhile; rerun the command")
    if isinstance(error, (HTTPError, ConnectionError)) and not isinstance(error, HfHubHTTPError):
        return UserError(
            f"{url}: {constants.ENDPOINT} cannot be reached ({one_line(error)}); check the network connection, then "
            "rerun the command"
        )
    return UserError(f"{url}: {one_line(error)}")
