"""Is a cache what it says: every file read again, and views asked of the live teacher once more."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from data_cache.content import OK
from data_cache.damage import check_files
from data_cache.devices import resolve_device
from data_cache.errors import UserError
from data_cache.schema import reserved_label
from data_cache.store import Cache
from experiments.stages import Progress, silent
from pipeline.live import LiveTeacher, live_teacher
from pipeline.repair import Repaired, repair

AT_ONCE = 8


@dataclass(frozen=True)
class Agreement:
    """How the live teacher's answers agree with the cache's, over some views."""

    views: int
    cls_cosine_mean: float
    cls_cosine_min: float
    dense_cosine_mean: float | None
    dense_cosine_min: float | None
    ignored_equal: float
    """Share of the tokens that are ignored in both, or in neither."""
    masks_rand_index: float
    """Mean adjusted Rand index of the masks on tokens ignored in both: 1 for equal masks, 0 for unrelated ones."""


@dataclass(frozen=True)
class Verdict:
    """What was found; an empty `bad` is good news."""

    files: int
    bad: list[str]
    live: Agreement | None
    repaired: Repaired | None = None

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        parts = {name: part and asdict(part) for name, part in (("live", self.live), ("repaired", self.repaired))}
        return {"files": self.files, "bad": self.bad, **parts}

    def __str__(self) -> str:
        """One line for the files and one for the live teacher."""
        lines = [str(self.repaired)] if self.repaired else []
        lines += [f"{self.files} files read, {len(self.bad)} bad", *self.bad]
        if self.live:
            told = ", ".join(f"{name} {value:.5g}" for name, value in asdict(self.live).items() if value is not None)
            lines.append(f"live teacher: {told}")
        return "\n".join(lines)


def verify(
    path: Path,
    live: int = 0,
    masks: str | None = None,
    root: Path | None = None,
    clip: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    seed: int = 0,
    mend: bool = False,
    progress: Progress = silent,
) -> Verdict:
    """Read every file of a cache against its record, and ask the live teacher about `live` views, drawn by `seed`.

    With `mend`, damaged shards are made again, and then all is read once more. `progress` hears of files read, of
    images mended, and of views asked.

    Raises:
        UserError: it is no cache, or the CLIP or the photographs are not its own.

    """
    cache = Cache(path)
    files, bad = _read(cache, progress)
    repaired = None
    if bad and mend:
        with progress("mending", None, "images") as advance:
            repaired = repair(path, root, resolve_device(device), clip, weights, advance)
        cache = Cache(path)
        files, bad = _read(cache, progress)
    if not live or bad:
        return Verdict(files, bad, None, repaired)
    name = cache.mask_name(masks)
    teacher = live_teacher(cache, name, root, resolve_device(device), clip, weights)
    with progress("asking", live, "views") as advance:
        return Verdict(files, bad, _agreement(cache, name, teacher, live, seed, advance), repaired)


def _read(cache: Cache, progress: Progress) -> tuple[int, list[str]]:
    with progress("reading", None, "files") as advance:
        return check_files(cache, advance)


def _agreement(
    cache: Cache, masks: str, teacher: LiveTeacher, live: int, seed: int, tell: Callable[[int], None]
) -> Agreement:
    loaded = cache.load(masks)
    good = np.flatnonzero([status == OK for _, status in cache.statuses()])
    if not len(good):
        raise UserError(f"{cache.path}: every image failed; there is nothing to ask about")
    views = loaded.cls.shape[1]
    places = np.random.default_rng(seed).permutation(len(good) * views)[:live]
    image, view = good[places // views], places % views
    cls, dense, ignored, masks_alike = [], [], [], []
    for start in range(0, len(places), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        answer, stored = teacher.ask(image[some], view[some]), loaded.label[image[some], view[some]]
        cls.append(_cosine(answer.cls, loaded.cls[image[some], view[some]]))
        for ours, theirs in zip(answer.label, stored, strict=True):
            hidden = [labels != reserved_label(labels.dtype.name) for labels in (ours, theirs)]
            ignored.append((hidden[0] == hidden[1]).mean())
            masks_alike.append(rand_index(ours[hidden[0] & hidden[1]], theirs[hidden[0] & hidden[1]]))
        if cache.layout.dense != "none":
            tokens = np.stack([cache.dense(int(i))[v] for i, v in zip(image[some], view[some], strict=True)])
            dense.append(_cosine(answer.dense, tokens).ravel())
        tell(len(answer.cls))
    both, of_tokens = np.concatenate(cls), np.concatenate(dense) if dense else None
    return Agreement(
        len(places),
        float(both.mean()),
        float(both.min()),
        None if of_tokens is None else float(of_tokens.mean()),
        None if of_tokens is None else float(of_tokens.min()),
        float(np.mean(ignored)),
        float(np.mean(masks_alike)),
    )


def rand_index(a: Int[np.ndarray, "token"], b: Int[np.ndarray, "token"]) -> float:
    """Adjusted Rand index of two labellings (Hubert and Arabie): pairs on which they agree, less those by chance."""
    if len(a) < 2:
        return 1.0
    table = np.zeros((int(a.max()) + 1, int(b.max()) + 1))
    np.add.at(table, (a, b), 1)
    inside, rows, columns = (float((n * (n - 1) / 2).sum()) for n in (table, table.sum(axis=1), table.sum(axis=0)))
    by_chance, most = rows * columns / (len(a) * (len(a) - 1) / 2), (rows + columns) / 2
    return 1.0 if most == by_chance else (inside - by_chance) / (most - by_chance)


def _cosine(a: Float[np.ndarray, "*row channel"], b: Float[np.ndarray, "*row channel"]) -> Float[np.ndarray, "*row"]:
    x, y = a.astype(np.float64), b.astype(np.float64)
    return (x * y).sum(axis=-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))
