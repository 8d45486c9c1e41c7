"""What `attention` prints: shares of area and attention, entropy, the scale of the scores, and what CLS tokens know."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from data_cache.messages import count
from experiments.attention import Attention
from experiments.quality_report import markdown_table, percent
from experiments.ranking import auc, average_precision, mean_of

SIZES = {"below 1 %": (0, 0.01), "1 to 5 %": (0.01, 0.05), "5 to 20 %": (0.05, 0.2), "above 20 %": (0.2, math.inf)}
"""Shares of the image: the groups of regions (all pixels of a class in an image)."""
LISTED = 5
"""Classes listed with the most and with the least attention for their area."""
UNSEEN = "unseen: measured with the labels of unseen classes, for analysis only"


@dataclass(frozen=True)
class AttentionReport:
    """The measurements of one cache."""

    found: Attention

    @property
    def kinds(self) -> dict[str, dict[str, float | None]]:
        """Shares of seen classes, of unseen classes, and of what has no label."""
        split = self.found.split
        columns = {"seen": split.seen_index, "unseen": split.unseen_index, "unlabeled": [len(split.classes)]}
        return {kind: self._shares(np.isin(np.arange(self.found.area.shape[1]), ids)) for kind, ids in columns.items()}

    @property
    def sizes(self) -> dict[str, dict[str, float | None]]:
        """Shares of the regions of labeled classes by the share of the image that a region has."""
        labeled = np.arange(self.found.area.shape[1]) < len(self.found.split.classes)
        groups = {
            size: (self.found.area > 0) & (self.found.area >= low) & (self.found.area < high) & labeled
            for size, (low, high) in SIZES.items()
        }
        return {size: self._shares(chosen) | {"regions": int(chosen.sum())} for size, chosen in groups.items()}

    @property
    def classes(self) -> dict[str, dict[str, float | None]]:
        """Shares of each class that occurs."""
        columns = range(len(self.found.split.classes))
        return {
            self.found.split.classes[column]: self._shares(np.arange(self.found.area.shape[1]) == column)
            for column in columns
            if self.found.area[:, column].any()
        }

    @property
    def agreement(self) -> dict[str, dict[str, float | None]]:
        """How CLS tokens rank the classes present in an image above absent ones, among seen and among unseen classes.

        `auc` ranks the classes of an image and is averaged over images; `map` ranks the images of a class and is
        averaged over classes. `chance` is the `map` of random scores.
        """
        split = self.found.split
        return {"seen": self._agreement(split.seen_index), "unseen": self._agreement(split.unseen_index)}

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints. Shares are of all images together; entropies are in nats."""
        found, cells = self.found, math.prod(self.found.grid)
        return {
            "cache": str(found.cache),
            "run": str(found.run) if found.run else None,
            "images": len(found.area),
            "cells": cells,
            "channels": found.channels,
            "shares": self.kinds,
            "shares_by_size": self.sizes,
            "shares_by_class": self.classes,
            "entropy": float(found.entropy.mean()),
            "log_cells": math.log(cells),
            "scale": self._scale,
            "cls_and_labels": self.agreement,
        }

    @property
    def lines(self) -> list[str]:
        """A Markdown table of shares, and a line for each other measurement."""
        found, cells = self.found, math.prod(self.found.grid)
        features = f"features of {found.run}" if found.run else "dense tokens"
        rows = [("", "area", "attention", "attention / area")]
        rows += [
            _row(f"{kind} classes" if kind != "unlabeled" else kind, shares) for kind, shares in self.kinds.items()
        ]
        rows += [_row(f"{shares['regions']} regions {size}", shares) for size, shares in self.sizes.items()]
        ratios = {name: shares["ratio"] or 0.0 for name, shares in self.classes.items()}
        ordered = sorted(ratios, key=lambda name: -ratios[name])
        entropy = found.entropy.mean()
        return [
            f"{found.cache}: {count(len(found.area), 'image')}; {features}, {cells} cells, {found.channels} channels",
            *markdown_table(rows),
            f"most attention for their area: {_listed(ordered[:LISTED], ratios)}",
            f"least: {_listed(ordered[LISTED:][-LISTED:][::-1], ratios)}",
            f"entropy {entropy:.2f} of at most log({cells}) = {math.log(cells):.2f} nats: as if it were spread evenly "
            f"over {100 * math.exp(entropy) / cells:.0f} % of the cells",
            f"|s| / sqrt(C) {self._scale:.2f}",
            *(
                f"CLS tokens and {kind} classes: AUC {_number(one['auc'])} (chance 0.50), mAP {percent(one['map'])} % "
                f"(chance {percent(one['chance'])} %)"
                for kind, one in self.agreement.items()
            ),
            UNSEEN,
        ]

    @property
    def _scale(self) -> float:
        return float(self.found.norm.mean() / math.sqrt(self.found.channels))

    def _shares(self, chosen: Bool[np.ndarray, "..."]) -> dict[str, float | None]:
        """The share of area and attention of some columns, or of some columns of each image, and their ratio."""
        area, mass = (float((shares * chosen).sum() / len(shares)) for shares in (self.found.area, self.found.mass))
        return {"area": area, "attention": mass, "ratio": mass / area if area else None}

    def _agreement(self, ids: Int[np.ndarray, "class"]) -> dict[str, float | None]:
        cosine, present = self.found.cosine[:, ids], self.found.area[:, ids] > 0
        mixed = [column for column in range(len(ids)) if 0 < present[:, column].sum() < len(present)]
        return {
            "auc": mean_of([auc(*image) for image in zip(cosine, present, strict=True)]),
            "map": mean_of([average_precision(cosine[:, column], present[:, column]) for column in mixed]),
            "chance": mean_of([float(present[:, column].mean()) for column in mixed]),
        }


def _row(name: str, shares: dict[str, float | None]) -> tuple[str, ...]:
    return (name, percent(shares["area"]), percent(shares["attention"]), _number(shares["ratio"]))


def _listed(names: Sequence[str], ratios: dict[str, float]) -> str:
    return ", ".join(f"{name} {ratios[name]:.2f}" for name in names) or "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
