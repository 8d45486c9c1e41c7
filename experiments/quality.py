"""What masks and dense tokens are worth, measured where labels exist (`docs/quality.md` defines each measure).

Seen classes are measured without any label of an unseen class: the seen classes are divided into folds, and each fold
is clustered as if it had no labels. Unseen classes are measured with their labels, for analysis only. No other command
reads labels of unseen classes but `attention` and `evaluate`, and those that draw ground truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from data_cache.cached_view import CachedView
from data_cache.callbacks import ProgressBar
from data_cache.layout import reserved_label
from data_cache.mask_set import MaskSet
from data_cache.sample import crop_label
from data_cache.splits import Split
from experiments.config import QualityConfig
from experiments.quality_report import UNSEEN, CacheQuality, MaskQuality, QualityReport
from experiments.region_scores import (
    RegionScores,
    TokenScores,
    class_counts,
    nearest_text,
    region_scores,
    token_classes,
    token_scores,
)
from experiments.stages import silent
from pipeline.masks.masker import Masker
from viewer.figure import Figure
from viewer.paper_figures import MaskPanel, quality_figure
from viewer.reader import CacheReader, open_finished_cache

FOLD = "a fold: some seen classes, clustered as if they had no labels"
ClassIds = Int[np.ndarray, "class"]


@dataclass(frozen=True)
class Fold:
    """Some seen classes (ids), and the clustering that would result if they had no labels."""

    classes: ClassIds
    masker: Masker

    @property
    def reserved(self) -> int:
        """The label of tokens that are not ignored."""
        return reserved_label(self.masker.dtype)

    def masks(
        self, dense: Float[np.ndarray, "y x channel"], label: UInt8[np.ndarray, "size size"]
    ) -> Shaped[np.ndarray, "y x"]:
        """The pseudo labels of one image."""
        return self.masker(dense[None], [label])[0][0]


def folds_of(mask_set: MaskSet, count: int) -> list[Fold]:
    """Divide the seen classes of a mask set, in class order, by turns into `count` folds; empty ones are left out."""
    split = mask_set.split
    masker = Masker.of_masks(mask_set.cache, mask_set.masks, kmeans="auto")
    parts = [split.seen_index[first::count] for first in range(min(count, len(split.seen)))]
    return [
        Fold(ids, replace(masker, split=Split(split.classes, (*split.unseen, *(split.classes[i] for i in ids)))))
        for ids in parts
    ]


@dataclass
class _MaskSetScores:
    """One mask set and its scores so far. Without stored tokens it has no folds."""

    mask_set: MaskSet
    folds: list[Fold]
    tolerance: int
    seen: RegionScores = field(default_factory=RegionScores)
    unseen: RegionScores = field(default_factory=RegionScores)

    def add(self, truth: "_Truth") -> float | None:
        """Add an image. Returns its best-overlap IoU on seen classes, or on unseen ones if those are not measured."""
        view, split = replace(truth.view, mask_set=self.mask_set), self.mask_set.split
        label, counts = truth.of(self.mask_set)
        patch = _patch(label, counts)

        def scores(masks: Shaped[np.ndarray, "y x"], reserved: int, used: Split, measured: ClassIds) -> RegionScores:
            carried = patch - _only(counts, used.seen_index).sum(axis=2)
            return region_scores(masks, reserved, _only(counts, measured), carried, patch, self.tolerance)

        seen, seen_label, dense = RegionScores(), split.hide_unseen(label), view.dense if self.folds else None
        for fold in self.folds:
            masks = fold.masks(dense, seen_label)
            seen += scores(masks, fold.reserved, fold.masker.split, fold.classes)
        unseen = scores(view.masks, view.reserved, split, split.unseen_index)
        self.seen, self.unseen = self.seen + seen, self.unseen + unseen
        return (seen if self.folds else unseen).measures["best_iou"]


class _Truth:
    """The label map of a view, and the pixels of each class in each token: at most once per grid of tokens."""

    def __init__(self, view: CachedView) -> None:
        self.view = view
        self._found: dict[Any, tuple[np.ndarray, np.ndarray]] = {}

    def of(self, mask_set: MaskSet) -> tuple[UInt8[np.ndarray, "size size"], Int[np.ndarray, "y x class"]]:
        """Both for the masks of a set."""
        key = mask_set.tokens_size, mask_set.mask_grid
        if key not in self._found:
            label = crop_label(self.view.sample.label, self.view.geometry, mask_set.tokens_size)
            self._found[key] = label, class_counts(label, mask_set.mask_grid, len(mask_set.classes))
        return self._found[key]


def quality(config: QualityConfig, progress_bar: ProgressBar = silent) -> QualityReport:
    """Measure every mask set and the dense tokens of some caches, on view 0 of each image that has a label map.

    Raises UserError if a cache or a mask set is not finished, images are missing or have changed, or none has a label.
    """
    return QualityReport([_measure(path, config, progress_bar) for path in config.caches])


def _measure(path: Path, config: QualityConfig, progress_bar: ProgressBar) -> CacheQuality:
    cache = open_finished_cache(path, config.root)
    for name in cache.cache.masks:
        cache.cache.check_done(name)
    stored = {name: cache.cache.dense_stored(name) != "none" for name in cache.cache.masks}
    sets = {}
    for name, has_tokens in stored.items():
        mask_set = cache.using(name)
        sets[name] = _MaskSetScores(mask_set, folds_of(mask_set, config.folds) if has_tokens else [], config.tolerance)
    images = cache.first_labelled(config.limit)
    tokens, scores = [TokenScores(), TokenScores()], []
    with progress_bar(f"measuring {path.name}", len(images), "images") as advance:
        for index in images:
            truth = _Truth(cache[index])
            if stored[cache.masks]:
                label, counts = truth.of(cache)
                found = _tokens(truth.view.dense, counts, _patch(label, counts), cache)
                tokens = [a + b for a, b in zip(tokens, found, strict=True)]
            best_iou = {name: one.add(truth) for name, one in sets.items()}[cache.masks]
            if best_iou is not None:
                scores.append((best_iou, index))
            advance(1)
    fingerprint = cache.cache.fingerprint
    return CacheQuality(
        path=path,
        dataset=f"{fingerprint['dataset']['name']} {fingerprint['dataset']['split']}",
        recipe=fingerprint["clip"]["dense_recipe"],
        images=len(images),
        folds=config.folds if any(stored.values()) else 0,
        masks=[
            MaskQuality(
                name,
                cache.cache.tokens_model(name).get("name"),
                one.mask_set.settings["threshold"],
                stored[name],
                one.seen,
                one.unseen,
            )
            for name, one in sets.items()
        ],
        seen_tokens=tokens[0],
        unseen_tokens=tokens[1],
        figure=_figure(cache, sets[cache.masks].folds, scores, config.pictures),
    )


def _tokens(
    dense: Float[np.ndarray, "y x channel"], counts: Int[np.ndarray, "y x class"], patch: int, cache: MaskSet
) -> list[TokenScores]:
    """Training-free classification of the tokens of seen and of unseen classes."""
    split, predicted = cache.split, nearest_text(dense, cache.texts.features)
    return [
        token_scores(predicted, token_classes(_only(counts, ids), patch), ids)
        for ids in (split.seen_index, split.unseen_index)
    ]


def _patch(label: UInt8[np.ndarray, "size size"], counts: Int[np.ndarray, "y x class"]) -> int:
    """Pixels of a token."""
    return label.size // (counts.shape[0] * counts.shape[1])


def _only(counts: Int[np.ndarray, "y x class"], classes: ClassIds) -> Int[np.ndarray, "y x class"]:
    """The counts of some classes, with zeros for the others."""
    return np.where(np.isin(np.arange(counts.shape[2]), classes), counts, 0)


def _figure(
    cache: CacheReader, folds: Sequence[Fold], scores: Sequence[tuple[float, int]], count: int
) -> Figure | None:
    """The best and the worst `count` images by best-overlap IoU; None if there is nothing to draw."""
    ordered = sorted(scores, key=lambda score: (-score[0], score[1]))
    best, worst = ordered[:count], ordered[count:][-count:] if count else []
    if not best:
        return None
    rows = []
    for kind, chosen in ("best", best), ("worst", worst):
        for iou, index in chosen:
            view = cache[index]
            rows.append((view, f"{kind}: {view.id}, mean best IoU {iou:.2f}", _panels(view, folds)))
    return quality_figure(rows, FOLD if folds else UNSEEN)


def _panels(view: CachedView, folds: Sequence[Fold]) -> list[MaskPanel]:
    """Classes and masks of each fold; without folds, those of the unseen classes."""
    split = view.mask_set.split
    if not folds:
        return [MaskPanel("unseen classes", split.unseen_index, view.masks, view.reserved)]
    label = view.tokens_label
    return [
        MaskPanel(f"fold {number}", fold.classes, fold.masks(view.dense, label), fold.reserved)
        for number, fold in enumerate(folds, 1)
    ]
