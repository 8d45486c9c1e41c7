"""Is a cache what it says: every file read again, and views asked of the live teacher once more."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from data_cache.devices import resolve_device
from data_cache.errors import UserError
from data_cache.store import OK, Cache
from pipeline.live import live_teacher

SEED, AT_ONCE = 0, 8


@dataclass(frozen=True)
class Agreement:
    """How the live teacher's answers agree with the cache's, over some views."""

    views: int
    cls_cosine_mean: float
    cls_cosine_min: float
    dense_cosine_mean: float | None
    dense_cosine_min: float | None
    masks_equal: float
    """Share of the tokens whose label is the same."""


@dataclass(frozen=True)
class Verdict:
    """What was found; an empty `bad` is good news."""

    files: int
    bad: list[str]
    live: Agreement | None

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"files": self.files, "bad": self.bad, "live": asdict(self.live) if self.live else None}

    def __str__(self) -> str:
        """One line for the files and one for the live teacher."""
        lines = [f"{self.files} files read, {len(self.bad)} bad", *self.bad]
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
    tell: Callable[[int], None] = lambda _: None,
) -> Verdict:
    """Read every file of a cache against its record, and ask the live teacher about `live` random views.

    `tell` hears of views asked. Raises UserError if it is no cache, or the CLIP or the photographs are not its own.
    """
    cache = Cache(path)
    files, bad = cache.check_files()
    if not live or bad:
        return Verdict(files, bad, None)
    name = cache.mask_name(masks)
    loaded = cache.load(name)
    teacher = live_teacher(cache, name, root, resolve_device(device), clip, weights)
    good = np.flatnonzero([status == OK for _, status in cache.statuses()])
    if not len(good):
        raise UserError(f"{path}: every image failed; there is nothing to ask about")
    rng = np.random.default_rng(SEED)
    image, view = rng.choice(good, live), rng.integers(loaded.cls.shape[1], size=live)
    cls, dense, equal = [], [], []
    for start in range(0, live, AT_ONCE):
        some = slice(start, start + AT_ONCE)
        answer = teacher.ask(image[some], view[some])
        cls.append(_cosine(answer.cls, loaded.cls[image[some], view[some]]))
        equal.append((answer.label == loaded.label[image[some], view[some]]).mean(axis=(1, 2)))
        if cache.layout.dense != "none":
            stored = np.stack([cache.dense(int(i))[v] for i, v in zip(image[some], view[some], strict=True)])
            dense.append(_cosine(answer.dense, stored).ravel())
        tell(len(answer.cls))
    tokens = np.concatenate(dense) if dense else None
    both = np.concatenate(cls)
    agreement = Agreement(
        live,
        float(both.mean()),
        float(both.min()),
        None if tokens is None else float(tokens.mean()),
        None if tokens is None else float(tokens.min()),
        float(np.concatenate(equal).mean()),
    )
    return Verdict(files, bad, agreement)


def _cosine(a: Float[np.ndarray, "*row channel"], b: Float[np.ndarray, "*row channel"]) -> Float[np.ndarray, "*row"]:
    x, y = a.astype(np.float64), b.astype(np.float64)
    return (x * y).sum(axis=-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))
