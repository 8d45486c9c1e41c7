"""Verifies a cache: every file is read again, and random views are encoded again by the live teacher."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from data_cache.callbacks import Progress, ProgressBar
from data_cache.content import OK
from data_cache.errors import UserError
from data_cache.integrity import verify_files
from data_cache.layout import reserved_label
from data_cache.reader import Cache
from data_cache.system.devices import resolve_device
from experiments.config import VerifyConfig
from experiments.stages import silent
from pipeline.live import LiveTeacher, live_teacher
from pipeline.masks.fusion import adjusted_rand_index
from pipeline.repair import RepairReport, repair

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
    repaired: RepairReport | None = None

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        parts = {name: part and asdict(part) for name, part in (("live", self.live), ("repaired", self.repaired))}
        return {"files": self.files, "bad": self.bad, **parts}

    @property
    def lines(self) -> list[str]:
        """One for the files, one for each that is bad, and one for the live teacher."""
        lines = [str(self.repaired)] if self.repaired else []
        lines += [f"{self.files} files read, {len(self.bad)} bad", *self.bad]
        if self.live:
            values = ", ".join(f"{name} {value:.5g}" for name, value in asdict(self.live).items() if value is not None)
            lines.append(f"live teacher: {values}")
        return lines


def verify(config: VerifyConfig, progress_bar: ProgressBar = silent) -> Verdict:
    """Compare every file of a cache with its journal record, and random views with the live teacher.

    With `config.repair`, damaged shards are made again, and then every file is read once more.

    Raises:
        UserError: the path is not a cache, or the CLIP or the images are not those of the cache.

    """
    cache = Cache(config.cache)
    files, bad = _read(cache, progress_bar)
    teacher, repaired = (config.clip, config.clip_weights), None
    if bad and config.repair:
        with progress_bar("repairing", None, "images") as advance:
            repaired = repair(config.cache, config.root, resolve_device(config.device), *teacher, advance)
        cache = Cache(config.cache)
        files, bad = _read(cache, progress_bar)
    if not config.live or bad:
        return Verdict(files, bad, None, repaired)
    name = cache.mask_name(config.masks)
    live = live_teacher(cache, name, config.root, resolve_device(config.device), *teacher)
    with progress_bar("encoding", config.live, "views") as advance:
        return Verdict(files, bad, _agreement(cache, name, live, config.live, config.seed, advance), repaired)


def _read(cache: Cache, progress_bar: ProgressBar) -> tuple[int, list[str]]:
    with progress_bar("reading", None, "files") as advance:
        return verify_files(cache, advance)


def _agreement(cache: Cache, masks: str, teacher: LiveTeacher, live: int, seed: int, progress: Progress) -> Agreement:
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
        answer, stored = teacher.features(image[some], view[some]), loaded.label[image[some], view[some]]
        cls.append(_cosine(answer.cls, loaded.cls[image[some], view[some]]))
        for ours, theirs in zip(answer.label, stored, strict=True):
            hidden = [labels != reserved_label(labels.dtype.name) for labels in (ours, theirs)]
            ignored.append((hidden[0] == hidden[1]).mean())
            masks_alike.append(adjusted_rand_index(ours[hidden[0] & hidden[1]], theirs[hidden[0] & hidden[1]]))
        if cache.layout.dense != "none":
            tokens = np.stack([cache.dense(int(i))[v] for i, v in zip(image[some], view[some], strict=True)])
            dense.append(_cosine(answer.dense, tokens).ravel())
        progress(len(answer.cls))
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


def _cosine(a: Float[np.ndarray, "*row channel"], b: Float[np.ndarray, "*row channel"]) -> Float[np.ndarray, "*row"]:
    x, y = a.astype(np.float64), b.astype(np.float64)
    return (x * y).sum(axis=-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))
