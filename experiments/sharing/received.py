"""What `pull` has downloaded: checked and unpacked in a draft folder, and moved to its place."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from data_cache.archive import unpack
from data_cache.callbacks import ProgressBar
from data_cache.errors import UserError
from data_cache.integrity import verify_files
from data_cache.reader import Cache
from data_cache.system.atomic import draft_path, draft_paths, remove
from data_cache.system.lock import writer_lock
from experiments.sharing.manifest import ARCHIVE, Kind
from pipeline.reopen import check_replaceable


@contextmanager
def draft_of(out: Path) -> Iterator[Path]:
    """A new folder next to `out`, removed if it has not been renamed. Those of killed commands are removed, too."""
    for leftover in draft_paths(out):
        remove(leftover)
    draft = draft_path(out)
    draft.mkdir()
    try:
        yield draft
    finally:
        remove(draft)


def check_received(draft: Path, kind: Kind, url: str, progress_bar: ProgressBar) -> None:
    """Unpack a cache and read all of it, or load the student of a run. Raises UserError if it is damaged."""
    try:
        if kind == "cache":
            _open_archive(draft, progress_bar)
        else:
            _load_student(draft)
    except UserError as error:
        raise UserError(f"{url}: {str(error).replace(f'{draft}: ', '').replace(str(draft), '')}") from None


def _load_student(draft: Path) -> None:
    import torch  # here, because a cache needs neither torch nor the student's packages

    from trainer.checkpoint import load

    load(draft, torch.device("cpu"))


def _open_archive(draft: Path, progress_bar: ProgressBar) -> None:
    """Replace the archive in a draft folder by the cache that it contains. Raises UserError if that is damaged."""
    archive = draft / ARCHIVE
    with archive.open("rb") as file, progress_bar("unpacking", None, "files") as advance:
        archive.unlink()  # its name is gone, but its content stays readable here
        unpack(file, draft, advance)
    with progress_bar("verifying", None, "files") as advance:
        if problems := verify_files(Cache(draft), advance)[1]:
            raise UserError(f"the cache is damaged or unfinished ({problems[0]})")


def check_target(out: Path, kind: Kind, overwrite: bool) -> None:
    """Raise UserError if something is at the path, unless it is a run or cache that is to be replaced."""
    if not (out.exists() or out.is_symlink()):
        return
    if not overwrite:
        raise UserError(f"{out}: exists already; pass --overwrite to replace it, or another --out")
    if kind == "cache":
        check_replaceable(out)
        return
    from trainer.checkpoint_folders import run_in

    if run_in(out) != out:
        raise UserError(f"{out}: is not a run, and --overwrite replaces only those; pass another --out")


def move_into_place(draft: Path, out: Path, kind: Kind, overwrite: bool) -> None:
    """Rename a draft folder to `out`, and remove what was there. Raises UserError as `check_target` does."""
    with _training_lock(out):
        check_target(out, kind, overwrite)
        replaced = out.rename(draft_path(out)) if out.exists() else None
        draft.rename(out)
    if replaced:
        remove(replaced)


def _training_lock(out: Path) -> AbstractContextManager[None]:
    """The lock that `train` holds while it writes an existing run."""
    if not out.is_dir() or (out / "zarr.json").exists():
        return nullcontext()
    from trainer.run import LOCK

    return writer_lock(out, "a training", "--out", out / LOCK)
