"""The result of `quality`: a table over caches and mask sets, and the same as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.region_scores import RegionScores, TokenScores
from viewer.figure import Figure

HEADER = (
    *("cache", "masks", "tokens", "lambda", "classes", "purity", "best IoU", "boundary recall"),
    *("clusters", "regions", "token accuracy"),
)
UNSEEN = (
    "unseen: measured with the labels of unseen classes, for analysis only; settings chosen by these numbers would no "
    "longer be zero-shot"
)


@dataclass(frozen=True)
class MaskQuality:
    """Scores of one mask set on seen and on unseen classes; on unseen ones only if its tokens are not stored.

    `model` is the model whose tokens are clustered, if it is not CLIP.
    """

    name: str
    model: str | None
    threshold: float
    has_tokens: bool
    seen: RegionScores
    unseen: RegionScores

    def as_json(self) -> dict[str, Any]:
        """Each measure on seen and on unseen classes, after the model and the threshold."""
        seen, unseen = self.seen.measures, self.unseen.measures
        return {"model": self.model, "threshold": self.threshold} | {
            name: {"seen": value, "unseen": unseen[name]} for name, value in seen.items()
        }


@dataclass(frozen=True)
class CacheQuality:
    """Scores of one cache. `folds` is 0 if no tokens are stored; then seen classes and tokens are not measured."""

    path: Path
    dataset: str
    recipe: str
    images: int
    folds: int
    masks: Sequence[MaskQuality]
    seen_tokens: TokenScores
    unseen_tokens: TokenScores
    figure: Figure | None

    @property
    def notes(self) -> list[str]:
        """How to read the numbers, and what could not be measured."""
        if not self.folds:
            missing = f"{self.path}: holds no dense tokens (`precompute --dense float16`)"
            return [f"{missing}: seen classes and tokens cannot be measured", UNSEEN]
        folds = "all at once" if self.folds == 1 else f"in {self.folds} folds"
        return [
            f"seen: each seen class is clustered as if it had no labels ({folds}); no label of an unseen class is used",
            *(
                f"{self.path}, masks {masks.name}: its tokens are not stored (`precompute --dense float16`, or "
                "`--masks-dense` for another model): seen classes cannot be measured"
                for masks in self.masks
                if not masks.has_tokens
            ),
            UNSEEN,
        ]

    def as_json(self) -> dict[str, Any]:
        """The measures of each mask set and of the tokens."""
        return {
            "cache": str(self.path),
            "dataset": self.dataset,
            "dense_recipe": self.recipe,
            "images": self.images,
            "folds": self.folds,
            "masks": {masks.name: masks.as_json() for masks in self.masks},
            "tokens": {"seen": self.seen_tokens.accuracy, "unseen": self.unseen_tokens.accuracy},
            "notes": self.notes,
        }

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The cells of the table: two rows per mask set. The accuracy is that of CLIP's tokens, by its recipe."""
        return [
            (
                self.path.name,
                masks.name,
                masks.model or self.recipe,
                f"{masks.threshold:g}",
                classes,
                *_cells(scores),
                "-" if masks.model else percent(tokens),
            )
            for masks in self.masks
            for classes, scores, tokens in (
                ("seen", masks.seen, self.seen_tokens.accuracy),
                ("unseen", masks.unseen, self.unseen_tokens.accuracy),
            )
        ]


@dataclass(frozen=True)
class QualityReport:
    """The scores of some caches."""

    caches: Sequence[CacheQuality]

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints: the scores of the cache, or a list of them under `caches` if there are several."""
        scores = [cache.as_json() for cache in self.caches]
        return scores[0] if len(scores) == 1 else {"caches": scores}

    @property
    def lines(self) -> list[str]:
        """A Markdown table, and the notes."""
        rows = [HEADER, *(row for cache in self.caches for row in cache.rows)]
        return [*markdown_table(rows), *dict.fromkeys(note for cache in self.caches for note in cache.notes)]


def _cells(scores: RegionScores) -> tuple[str, ...]:
    measures = scores.measures
    percents = [percent(measures[name]) for name in ("purity", "best_iou", "boundary_recall")]
    clusters = measures["clusters"]
    return (*percents, "-" if clusters is None else f"{clusters:.2f}", str(scores.regions))


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table whose first row is its header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *body = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows]
    return [head, f"|{'|'.join('-' * (width + 2) for width in widths)}|", *body]


def percent(value: float | None) -> str:
    """A share in percent, or - if there is none."""
    return "-" if value is None else f"{100 * value:.1f}"
