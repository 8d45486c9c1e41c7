"""Publish a run or a cache, and fetch one: whole or not at all, and trusted only as far as it has been checked.

Packages that take seconds to import are imported once the other side has answered: a refusal comes at once.
"""

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_cache.callbacks import ProgressBar
from data_cache.errors import UsageError, UserError, disk_errors
from data_cache.paths import RUNS, cache_folder
from data_cache.system.files import check_free_space, is_file
from data_cache.system.lock import writer_lock
from experiments.sharing.config import PullConfig, PushConfig
from experiments.sharing.manifest import MANIFEST, MAX_BYTES, Kind, Manifest, manifest_of, parse_manifest
from experiments.sharing.remote import Remote, open_remote
from experiments.sharing.terms import Terms, stated_license

PAGE = "README.md"
OWN_FILES = re.compile(rf"\..*|LICENSE.*|{re.escape(PAGE)}", re.IGNORECASE)
"""Files that a repository may have before the first push: its owner's page and license, and Git's settings."""
BLOCK = 1 << 20


@dataclass(frozen=True)
class Shared:
    """What was published or fetched: its kind, where it is now, and the bytes of its files."""

    kind: Kind
    where: str
    bytes: int

    def __str__(self) -> str:
        return f"{self.where}: a {self.kind}, {self.bytes / 2**20:.2f} MiB"


def push(config: PushConfig, progress_bar: ProgressBar) -> Shared:
    """Publish a checkpoint of a run, or a cache without its dense tokens, with a generated README.md.

    The manifest is published last, so that an interrupted push is never taken for a complete one. Rerun it to
    complete it.

    Raises:
        UsageError: the URL is not one, or of a place for another kind.
        UserError: there is no run or finished cache, it is damaged, or the place cannot be written or is in use.

    """
    if not config.source.exists():
        raise UserError(f"{config.source}: no such run or cache; pass the path of either")
    kind: Kind = "cache" if is_file(config.source / "zarr.json") else "run"
    remote = open_remote(config.url, kind)
    remote.prepare(config.private)
    old = _files_to_replace(remote, config.overwrite)
    license = {"license": config.license} if config.license else _stated_license(remote)
    from experiments.sharing.bundle import open_bundle

    bundle = open_bundle(config, kind)
    with tempfile.TemporaryDirectory() as folder:
        files = bundle.files(Path(folder), progress_bar)
        manifest = manifest_of(kind, files)
        bundle.check(manifest)
        page = bundle.page(_name(config.url) or kind, config.url, Terms(license, config.hub_dataset))
        remote.publish(manifest, {**files, PAGE: page.encode()}, old - files.keys(), progress_bar)
    return Shared(kind, config.url, manifest.bytes)


def pull(config: PullConfig, progress_bar: ProgressBar) -> Shared:
    """Fetch a published run or cache. It appears at its path only once every file has been checked.

    Raises:
        UsageError: the URL is not one, or has no name and `config.out` is missing.
        UserError: nothing is published there, it is damaged or not trusted, the disk is too small, or something else
            is at the path.

    """
    remote = open_remote(config.url)
    manifest = _manifest(remote)
    if manifest is None:
        raise UserError(f"{config.url}: holds nothing that `push` published; check the URL")
    if not manifest.complete:
        raise UserError(f"{config.url}: its push was interrupted; ask its author to rerun it")
    _check_sizes(remote, manifest)
    out = Path(os.path.realpath(config.out or _default_path(config.url, manifest.kind)))
    from experiments.sharing import received

    received.check_target(out, manifest.kind, config.overwrite)
    with disk_errors(out, "choose another --out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        copies = 2 if manifest.kind == "cache" else 1  # the archive and what is unpacked from it
        check_free_space(out, f"the {manifest.kind}", copies * manifest.bytes, "choose another --out")
        with writer_lock(out, "another command", "--out"), received.draft_of(out) as draft:
            with progress_bar("downloading", len(manifest.files), "files") as advance:
                for name, (size, digest) in manifest.files.items():
                    _download(remote, name, draft / name, size, digest)
                    advance(1)
            received.check_received(draft, manifest.kind, config.url, progress_bar)
            os.sync()  # the rename must not reach the disk before the files
            received.move_into_place(draft, out, manifest.kind, config.overwrite)
    return Shared(manifest.kind, str(out), manifest.bytes)


def _manifest(remote: Remote) -> Manifest | None:
    """The manifest; None if there is none. Raises UserError if it is damaged."""
    data = _read(remote, MANIFEST)
    return None if data is None else parse_manifest(data, remote.url)


def _read(remote: Remote, name: str) -> bytes | None:
    """A small file; None if it is missing or too large."""
    size = remote.size(name)
    if size is None or size > MAX_BYTES:
        return None
    with remote.open(name) as file:
        return file.read(MAX_BYTES)


def _stated_license(remote: Remote) -> dict[str, str]:
    """The license in the README.md that is already there."""
    return stated_license((_read(remote, PAGE) or b"").decode(errors="replace"))


def _files_to_replace(remote: Remote, overwrite: bool) -> set[str]:
    """The files of an earlier push. Raises UserError if it is complete and not to be replaced, or others are there."""
    manifest = _manifest(remote)
    if manifest is None:
        if foreign := [name for name in remote.names() if not OWN_FILES.fullmatch(name)]:
            raise UserError(f"{remote.url}: contains other files ({foreign[0]}); pass the URL of an empty place")
        return set()
    if manifest.complete and not overwrite:
        raise UserError(f"{remote.url}: a {manifest.kind} has been pushed there; pass --overwrite, or another URL")
    return set(manifest.files)


def _check_sizes(remote: Remote, manifest: Manifest) -> None:
    """Raise UserError if a published file is missing, not a regular file, or has another size than in the manifest."""
    for name, (size, _) in manifest.files.items():
        if (actual := remote.size(name)) != size:
            problem = "is missing" if actual is None else f"has {actual} bytes instead of {size}"
            raise UserError(f"{remote.url}: {name} {problem}; ask its author to push it again")


def _download(remote: Remote, name: str, target: Path, size: int, expected: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), size
    with remote.open(name) as source, target.open("xb") as copy:
        while left and (block := source.read(min(BLOCK, left))):
            copy.write(block)
            digest.update(block)
            left -= len(block)
    if left or digest.hexdigest() != expected:
        raise UserError(f"{remote.url}: {name} does not match its hash; rerun the command, or ask its author")


def _default_path(url: str, kind: Kind) -> Path:
    name = _name(url)
    if name is None:
        raise UsageError(f"{url}: does not end with a name that a folder can have; pass --out")
    return cache_folder() / f"{name}.zarr" if kind == "cache" else RUNS / name


def _name(url: str) -> str | None:
    """The last name in a URL; None if it is not suitable for a file."""
    path = re.sub(r"@[^@]*$", "", url) if url.startswith("hf://") else url
    name = PurePosixPath(path.partition("://")[2]).name.removesuffix(".zarr")
    return name if re.fullmatch(r"\w[\w.-]{0,99}", name) else None
