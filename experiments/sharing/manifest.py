"""The manifest of a published run or cache: its kind, and size and hash of each file. It is published last."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from data_cache.errors import UserError
from trainer.card import CARD, MODEL, RESUME
from trainer.config import CONFIG, LOG

FORMAT, VERSION, MANIFEST = "clipteacher-share", 1, "clipteacher.json"
MAX_BYTES = 2**20
"""The largest manifest or README.md that is read."""
Kind = Literal["run", "cache"]
Content = Path | bytes
"""A file to publish: on the disk, or in memory."""
ARCHIVE, EVALUATION = "cache.zarr.zip", "evaluation.json"
_CHECKPOINT = rf"step_[0-9]{{8}}/({re.escape(CARD)}|{re.escape(MODEL)}|{re.escape(RESUME)})"
ALLOWED: Mapping[Kind, re.Pattern[str]] = {
    "run": re.compile(f"({'|'.join(map(re.escape, (CONFIG, LOG, EVALUATION)))}|{_CHECKPOINT})"),
    "cache": re.compile(re.escape(ARCHIVE)),
}
"""The files that each kind may have; all else is refused, so that no name leads outside of a folder."""


@dataclass(frozen=True)
class Manifest:
    """What was published.

    Args:
        kind: a run or a cache.
        files: size and SHA-256 of each file by name.
        complete: False while the files are being uploaded.

    """

    kind: Kind
    files: Mapping[str, tuple[int, str]]
    complete: bool = True

    @property
    def bytes(self) -> int:
        """The sum of the sizes of its files."""
        return sum(size for size, _ in self.files.values())

    def encoded(self) -> bytes:
        """As JSON."""
        content = {"format": FORMAT, "version": VERSION, "kind": self.kind, "complete": self.complete}
        files = {name: {"size": size, "sha256": digest} for name, (size, digest) in sorted(self.files.items())}
        return (json.dumps(content | {"files": files}, indent=2) + "\n").encode()


def manifest_of(kind: Kind, files: Mapping[str, Content]) -> Manifest:
    """The manifest of some files."""
    return Manifest(kind, {name: _stamp(content) for name, content in files.items()})


def parse_manifest(data: bytes, url: str) -> Manifest:
    """A manifest from an untrusted source. Raises UserError if it is not one, or names a file that its kind lacks."""
    try:
        content = json.loads(data)
        if content["format"] != FORMAT:
            raise ValueError("has another format")
        if content["version"] != VERSION:
            raise UserError(
                f"{url}: was pushed in version {content['version']!r} of the format, this program reads {VERSION}; use "
                "a newer version of clipteacher"
            )
        if content["kind"] not in get_args(Kind) or type(content["complete"]) is not bool:
            raise ValueError("says neither run nor cache")
        files = {name: _checked(name, entry, content["kind"]) for name, entry in content["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{url}: its {MANIFEST} is damaged or not trusted ({type(error).__name__}: {error})") from None
    required = {"cache": {ARCHIVE}, "run": {CONFIG}}[content["kind"]]
    steps = {name.partition("/")[0] for name in files if "/" in name}
    wanted = required | {f"{step}/{name}" for step in steps for name in (CARD, MODEL)}
    if not wanted <= files.keys() or len(steps) != (content["kind"] == "run"):
        raise UserError(f"{url}: its {MANIFEST} does not list the files of a {content['kind']}; it is not trusted")
    return Manifest(content["kind"], files, content["complete"])


def _checked(name: str, entry: Mapping[str, Any], kind: Kind) -> tuple[int, str]:
    if not ALLOWED[kind].fullmatch(name):
        raise ValueError(f"a {kind} has no file {name[:100]!r}")
    size, digest = entry["size"], entry["sha256"]
    if type(size) is not int or size < 0 or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(f"no valid size and hash of {name}")
    return size, digest


def _stamp(content: Content) -> tuple[int, str]:
    if isinstance(content, bytes):
        return len(content), hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest
