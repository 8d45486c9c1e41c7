"""Places to publish to and to fetch from: an fsspec folder here, a Hugging Face repository in `hub.py`."""

import errno
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import BinaryIO, Protocol

from data_cache.callbacks import ProgressBar
from data_cache.errors import FULL, UsageError, UserError, one_line
from data_cache.messages import did_you_mean
from experiments.sharing.manifest import MANIFEST, Content, Kind, Manifest

HUB = "hf://"


class Remote(Protocol):
    """A place that holds at most one published run or cache."""

    url: str

    def size(self, name: str) -> int | None:
        """The size of a regular file; None if there is none of this name."""

    def names(self) -> list[str]:
        """The names of all files and folders at the top level."""

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading from start to end."""

    def prepare(self, private: bool) -> None:
        """Raise UserError if nothing can be written here. May create an empty repository."""

    def publish(
        self, manifest: Manifest, files: Mapping[str, Content], old: Collection[str], progress_bar: ProgressBar
    ) -> None:
        """Write the files and, last, the manifest; remove `old` files. Until then, nothing here looks whole."""


def open_remote(url: str, kind: Kind | None = None) -> Remote:
    """Open the place at a URL, to publish something of this kind or to fetch. Raises UsageError or UserError."""
    if url.startswith(HUB):
        from experiments.sharing.hub import HubRepository

        return HubRepository(url, kind)
    return Folder(url)


class Folder:
    """A folder in any file system that fsspec supports."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        scheme = url.partition("://")[0].rpartition("::")[2]
        try:
            self._fs, root = fsspec.url_to_fs(url)
        except ImportError as error:
            raise UserError(f"{url}: this kind of URL needs another package ({one_line(error)})") from None
        except ValueError:
            known = did_you_mean(scheme, fsspec.available_protocols())
            raise UsageError(f"{url}: unknown kind of URL{known or '; pass hf://, s3://, gs:// or file://'}") from None
        except Exception as error:  # file systems raise exceptions of many unrelated types
            raise UserError(f"{url}: cannot be opened ({one_line(error)})") from None
        self._root = root.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def size(self, name: str) -> int | None:
        """The size of a regular file; None if there is none of this name. A symlink is not a regular file."""
        with storage_errors(self.url):
            try:
                info = self._fs.info(self._path(name))
            except (FileNotFoundError, NotADirectoryError):
                return None
        return int(info["size"] or 0) if info["type"] == "file" and not info.get("islink") else None

    def names(self) -> list[str]:
        """The names of all files and folders at the top level; none if the folder does not exist."""
        with storage_errors(self.url):
            try:
                listed = self._fs.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
        return [PurePosixPath(str(path).rstrip("/")).name for path in listed]

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""
        with storage_errors(self.url):
            return self._fs.open(self._path(name), "rb")

    def prepare(self, private: bool) -> None:
        """Raise UsageError for an option that only repositories have."""
        if private:
            raise UsageError(f"--private: {self.url} is not a Hugging Face repository; leave it out")

    def publish(
        self, manifest: Manifest, files: Mapping[str, Content], old: Collection[str], progress_bar: ProgressBar
    ) -> None:
        """Write an incomplete manifest, then the files, then the complete manifest, each file as a whole."""
        with storage_errors(self.url), progress_bar("uploading", len(files), "files") as advance:
            self._write(MANIFEST, Manifest(manifest.kind, manifest.files, complete=False).encoded())
            for name, content in files.items():
                self._write(name, content)
                advance(1)
            for name in old:
                if self.size(name) is not None:
                    self._fs.rm_file(self._path(name))
            self._write(MANIFEST, manifest.encoded())

    def _write(self, name: str, content: Content) -> None:
        path = self._path(name)
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        if isinstance(content, bytes):
            self._fs.pipe_file(path, content)
        else:
            self._fs.put_file(str(content), path)


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn the errors of a file system into a UserError, in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # file systems raise exceptions of many unrelated types
        raise UserError(f"{url}: {_explained(error)}") from None


def _explained(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number in FULL:
        return "the disk is full; free some space or choose another URL"
    if isinstance(error, PermissionError) or number in (errno.EACCES, errno.EROFS):
        return f"no permission ({one_line(error)}); check your credentials for it and its access rules"
    if type(error).__name__ in ("NoCredentialsError", "ClientError"):  # of botocore, which may not be installed
        return f"access refused ({one_line(error)}); check your credentials for it"
    return f"{one_line(error)}; check the URL and the network connection, then rerun the command"
