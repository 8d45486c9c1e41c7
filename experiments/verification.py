"""Verifies a cache: reads every file again and lets the live teacher encode random views again."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from data_cache.callbacks import Progress, ProgressBar
from data_cache.content import OK
from data_cache.errors import UserError
from data_cache.integrity import verify_files
from data_cache.layout import reserved_label
from data_cache.messages import count
from data_cache.reader import Cache
from data_cache.system.devices import resolve_device
from experiments.config import VerifyConfig
from experiments.stages import silent
from pipeline.live import LiveTeacher, live_teacher
from pipeline.masks.fusion import adjusted_rand_index
from pipeline.repair import RepairReport, repair

BATCH = 8
"""Views per call of the live teacher."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of the live teacher's features with the cache's over some views."""

    views: int
    cls_cosine_mean: float
    cls_cosine_min: float
    dense_cosine_mean: float | None
    dense_cosine_min: float | None
    ignored_equal: float
    """Share of tokens that are ignored in both or in neither."""
    masks_rand_index: float
    """Mean adjusted Rand index of the masks on tokens ignored in both: 1 for equal masks, 0 for unrelated ones."""


@dataclass(frozen=True)
class VerifyReport:
    """The number of files, one line per finding, and the results of the live comparison and the repair, if any."""

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
        """One line for the files, one per finding, and one for the live teacher."""
        lines = [str(self.repaired)] if self.repaired else []
        lines += [f"{count(self.files, 'file')} read, {len(self.bad)} bad", *self.bad]
        if self.live:
            values = ", ".join(f"{name} {value:.5g}" for name, value in asdict(self.live).items() if value is not None)
            lines.append(f"live teacher: {values}")
        return lines


def verify(config: VerifyConfig, progress_bar: ProgressBar = silent) -> VerifyReport:
    """Compare every file of a cache with its journal record, and random views with the live teacher.

    With `config.repair`, damaged shards are recomputed, and then every file is read once more.

    Raises UserError if the path is not a cache, or the CLIP or the images are not those of the cache.
    """
    cache = Cache(config.cache)
    files, bad = _read(cache, progress_bar)
    models, repaired = (config.clip, config.clip_weights, config.masks_from), None
    if bad and config.repair:
        with progress_bar("repairing", None, "images") as advance:
            repaired = repair(config.cache, config.root, resolve_device(config.device), *models, advance)
        cache = Cache(config.cache)
        files, bad = _read(cache, progress_bar)
    if not config.live or bad:
        return VerifyReport(files, bad, None, repaired)
    masks = cache.mask_name(config.masks)
    live = live_teacher(cache, masks, config.root, resolve_device(config.device), *models)
    with progress_bar("encoding", config.live, "views") as advance:
        return VerifyReport(files, bad, _agreement(cache, masks, live, config.live, config.seed, advance), repaired)


def _read(cache: Cache, progress_bar: ProgressBar) -> tuple[int, list[str]]:
    with progress_bar("reading", None, "files") as advance:
        return verify_files(cache, advance)


def _agreement(cache: Cache, masks: str, teacher: LiveTeacher, count: int, seed: int, progress: Progress) -> Agreement:
    stored = cache.load(masks)
    ok = np.flatnonzero([status == OK for _, status in cache.statuses()])
    if not len(ok):
        raise UserError(f"{cache.path}: every image failed; there is no view to compare")
    views = stored.cls.shape[1]
    chosen = np.random.default_rng(seed).permutation(len(ok) * views)[:count]
    image, view = ok[chosen // views], chosen % views
    cls, dense, ignored_equal, rand_index = [], [], [], []
    for start in range(0, len(chosen), BATCH):
        images, numbers = image[start : start + BATCH], view[start : start + BATCH]
        live = teacher.features(images, numbers)
        cls.append(_cosine(live.cls, stored.cls[images, numbers]))
        for ours, theirs in zip(live.label, stored.label[images, numbers], strict=True):
            ignored = [label != reserved_label(label.dtype.name) for label in (ours, theirs)]
            ignored_equal.append((ignored[0] == ignored[1]).mean())
            rand_index.append(adjusted_rand_index(ours[ignored[0] & ignored[1]], theirs[ignored[0] & ignored[1]]))
        if cache.dense_stored(masks) != "none":
            tokens = np.stack([cache.dense(int(i), masks)[v] for i, v in zip(images, numbers, strict=True)])
            dense.append(_cosine(live.dense, tokens).ravel())
        progress(len(live.cls))
    cls_cosine, dense_cosine = np.concatenate(cls), np.concatenate(dense) if dense else None
    return Agreement(
        len(chosen),
        float(cls_cosine.mean()),
        float(cls_cosine.min()),
        None if dense_cosine is None else float(dense_cosine.mean()),
        None if dense_cosine is None else float(dense_cosine.min()),
        float(np.mean(ignored_equal)),
        float(np.mean(rand_index)),
    )


def _cosine(a: Float[np.ndarray, "*row channel"], b: Float[np.ndarray, "*row channel"]) -> Float[np.ndarray, "*row"]:
    # tokens that were not finite are stored as zeros, which agree with zeros only
    x, y = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    return np.where(norms > 0, (x * y).sum(axis=-1) / np.maximum(norms, 1e-300), (a == b).all(axis=-1))
