"""A cache's metadata: written and hashed in one step, and checked before anything else is read."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import zarr

from data_cache.errors import UserError
from data_cache.limits import read_json
from data_cache.system.atomic import atomic_write
from data_cache.system.files import is_file, unreadable_error
from data_cache.system.process_state import quiet_warnings
from data_cache.transaction import check_no_transaction

FORMAT, VERSION = "clipteacher-cache", 2


def finalize_metadata(path: Path) -> None:
    """Consolidate the metadata and write its hash into the root's attributes, in one atomic step.

    A concurrent reader, or one after a kill, finds either the old metadata or the new.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for node in path.rglob("zarr.json"):
            target = copy / node.relative_to(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(node, target)
        # zarr warns that consolidated metadata is not yet part of the v3 specification; xarray warns without it
        with quiet_warnings():
            zarr.consolidate_metadata(copy)
        root = read_json(copy / "zarr.json")
        root["attributes"].pop("metadata_sha256", None)
        root["attributes"]["metadata_sha256"] = metadata_hash(copy)
    with atomic_write(path / "zarr.json") as draft:
        draft.write_text(json.dumps(root, indent=2))


def metadata_hash(path: Path) -> str:
    """SHA-256 over every zarr.json, as canonical JSON in the order of the paths, without the hash itself."""
    root = read_json(path / "zarr.json")
    root["attributes"].pop("metadata_sha256", None)
    nodes = sorted(root["consolidated_metadata"]["metadata"])
    if any(Path(node).is_absolute() or ".." in Path(node).parts for node in nodes):
        raise ValueError("a name outside the cache")
    contents = [["", root], *([node, read_json(path / node / "zarr.json")] for node in nodes)]
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def check_metadata(path: Path) -> None:
    """Raise UserError unless `path` is a cache of this version with unaltered metadata.

    Raises UnreadableError if it cannot be read at the moment: it may be intact, and must not be deleted.
    """
    not_a_cache = f"{path}: not a clipteacher cache; pass --cache with the path of one, or with a new path"
    if not is_file(path / "zarr.json"):
        raise UserError(not_a_cache)
    check_no_transaction(path)
    try:
        attributes = read_json(path / "zarr.json")["attributes"]
        if attributes.get("format") != FORMAT:
            raise UserError(not_a_cache)
        if attributes.get("version") != VERSION:
            raise UserError(
                f"{path}: cache version {attributes.get('version')}, this program reads {VERSION}; "
                "run `precompute` again into another --cache"
            )
        intact = metadata_hash(path) == attributes.get("metadata_sha256")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        intact = False
    except OSError as error:
        raise unreadable_error(error, path) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise UserError(f"{path}: the cache's metadata is damaged; delete the cache and run `precompute` again")
