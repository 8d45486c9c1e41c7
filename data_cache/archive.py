"""A cache without dense tokens as one zip file, which Zarr's ZipStore opens: packed as a stream, unpacked safely."""

import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import zarr

from data_cache.arrays import is_dense
from data_cache.callbacks import Progress, ignore
from data_cache.errors import UserError, one_line
from data_cache.journal import Journal, Record
from data_cache.limits import read_json
from data_cache.metadata import finalize_metadata
from data_cache.reader import Cache
from data_cache.system.files import read_errors

BLOCK = 1 << 20
MEMBER = re.compile(r"(\w[\w.-]{0,99}/){0,4}(zarr\.json|c(/\d{1,9}){1,5})")
"""The names of all files that a cache can have: metadata and chunks."""


def pack(cache: Cache, file: Path, progress: Progress = ignore) -> None:
    """Write a finished cache into a zip file, without dense tokens and without paths of this machine.

    Everything else keeps its bytes, so the result is the cache that `precompute --dense none` would have made. Each
    chunk file is compared with its record while it is copied. The same cache always gives the same zip file.
    `progress` counts chunk files.

    Raises UserError if shards are unfinished, or a file is damaged, missing, or changes meanwhile.
    """
    for name in cache.masks:
        cache.check_done(name)
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(file, "w") as archive:
        frame, stamps = Path(folder), packed_files(cache)
        _write_frame(cache, frame)
        for node in sorted(path for path in frame.rglob("*") if path.is_file()):
            _add(archive, node.relative_to(frame).as_posix(), node)
        for name, stamp in sorted(stamps.items()):
            if _add(archive, name, cache.path / name) != stamp:
                raise UserError(f"{cache.path / name}: damaged, or changed meanwhile; run `verify --repair`")
            progress(1)
        if read_json(cache.path / "zarr.json")["attributes"] != cache.attributes:
            raise UserError(f"{cache.path}: was changed while it was read; rerun the command")


def packed_files(cache: Cache) -> dict[str, tuple[int, int]]:
    """Size and CRC-32 of each chunk file that `pack` copies."""
    stamps = (item for _, record in _records(cache) for item in record.files.items())
    return {name: stamp for name, stamp in stamps if stamp and _is_kept(name)}


def unpack(archive: BinaryIO, folder: Path, progress: Progress = ignore) -> None:
    """Extract a zip file of a cache from an untrusted source into an existing, empty folder.

    Nothing is written outside of `folder`, and no more bytes than the zip file has. `progress` counts files. Compare
    the extracted cache with its journal afterwards (`data_cache.integrity`).

    Raises UserError if it is not such a zip file, or has other files than a cache.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            _check_members(members, archive.seek(0, 2))
            for member in members:
                target = folder / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as source, target.open("xb") as copy:
                    while block := source.read(BLOCK):
                        copy.write(block)
                progress(1)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, UnicodeError, ValueError) as error:
        raise UserError(f"not a zip file of a cache, or damaged ({one_line(error)})") from None


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    if len({member.filename for member in members}) < len(members):
        raise UserError("its zip file has two files of the same name; it is not trusted")
    for member in members:
        # the upper half of external_attr is the mode: symlinks and devices are not regular files
        kind = member.external_attr >> 16 & 0o170000
        plain = kind in (0, 0o100000) and not member.flag_bits & 1 and member.compress_type == zipfile.ZIP_STORED
        if not (plain and MEMBER.fullmatch(member.filename)):
            raise UserError(f"its zip file has {member.filename[:100]!r}, which is not a file of a cache; not trusted")
    if sum(member.file_size for member in members) > size:
        raise UserError("its zip file claims to hold more bytes than it has; it is not trusted")


def _write_frame(cache: Cache, draft: Path) -> None:
    """Write the metadata and the journals of a cache as they are without dense tokens."""
    nodes = [name for name, _ in cache.group.members(max_depth=None) if _is_kept(name)]
    with read_errors(cache.path):
        for name in ("", *nodes):
            (draft / name).mkdir(parents=True, exist_ok=True)
            (draft / name / "zarr.json").write_bytes((cache.path / name / "zarr.json").read_bytes())
    fingerprint = {**cache.fingerprint, "dense": "none"}
    group = zarr.open_group(draft, mode="r+", use_consolidated=False)
    group.attrs.update({"fingerprint": fingerprint, "recorded": without_paths(cache.attributes["recorded"])})
    for name in cache.masks:
        group[f"masks/{name}"].attrs.update(_without_tokens(cache.mask_attributes(name)))
    for part, record in _records(cache):
        journal = Journal(draft, group[part] if part else group)
        journal.commit(record.shard, record.ok, record.failed, filter(_is_kept, record.files), record.files)
    finalize_metadata(draft)


def _records(cache: Cache) -> Iterator[tuple[str, Record]]:
    """The records of all parts of a cache, each with the name of its part."""
    for part in ("", *(f"masks/{name}" for name in cache.masks), "image", f"text/{cache.texts_name}"):
        yield from ((part, record) for record in cache.journal(part).records() if record)


def _is_kept(name: str) -> bool:
    return not is_dense(name)


def _without_tokens(masks: Mapping[str, Any]) -> dict[str, Any]:
    """What changes in the attributes of a mask set: it stores no tokens, and does not name a file of this machine."""
    if "origin" not in masks:
        return {}
    origin = None if masks["origin"] and Path(masks["origin"].rpartition("@")[2]).is_absolute() else masks["origin"]
    return {"tokens": {**masks["tokens"], "dense": "none"}, "origin": origin}


def without_paths(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """What a cache or a checkpoint records about its origin, without the folders of this machine."""
    clip = recorded.get("clip")
    local = isinstance(clip, Mapping) and any(Path(str(value)).is_absolute() for value in clip.values())
    return {**recorded, "root": None, "clip": None if local else clip}


def _add(archive: zipfile.ZipFile, name: str, file: Path) -> tuple[int, int]:
    """Copy a file into the archive, uncompressed; returns its size and CRC-32."""
    entry = zipfile.ZipInfo(name)  # a fixed date, so that the bytes depend only on the cache
    entry.external_attr = 0o100644 << 16
    with read_errors(file), file.open("rb") as source, archive.open(entry, "w", force_zip64=True) as copy:
        while block := source.read(BLOCK):
            copy.write(block)
    return entry.file_size, entry.CRC
