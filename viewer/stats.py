"""Statistics of a cache over all its views."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Real

from data_cache.mask_set import MaskSet
from data_cache.messages import count
from viewer.cards import card, table

COLUMNS = {"min": 0, "5 %": 5, "median": 50, "95 %": 95, "max": 100}


@dataclass(frozen=True)
class Stats:
    """Statistics of all views of all images that are done and did not fail.

    Args:
        title: name of the cache and the mask set.
        tokens: tokens per view.
        count: pseudo labels per view.
        ignored: ignored tokens per view.
        norm: L2 norm of the CLS token, which decides how sharp GLM's attention is (eq. 1).

    """

    title: str
    tokens: int
    count: Int[np.ndarray, "pair"]
    ignored: Int[np.ndarray, "pair"]
    norm: Float[np.ndarray, "pair"]

    @property
    def values(self) -> dict[str, Real[np.ndarray, "value"]]:
        """The values of each statistic by name. Tokens per pseudo label exclude views without pseudo labels."""
        labelled = self.count > 0
        return {
            "pseudo labels per view": self.count,
            "ignored tokens, %": 100 * self.ignored / self.tokens,
            "tokens per pseudo label": self.ignored[labelled] / self.count[labelled],
            "norm of CLS": self.norm,
        }

    def rows(self) -> list[list[str]]:
        """One row per statistic: name, mean, and the columns of `COLUMNS`."""
        return [[name, *_summary(values)] for name, values in self.values.items()]

    def __repr__(self) -> str:
        lines = [["", "mean", *COLUMNS], *self.rows()]
        return "\n".join(
            [self._heading, *(f"{name:24}" + "".join(f"{cell:>10}" for cell in cells) for name, *cells in lines)]
        )

    def _repr_html_(self) -> str:
        return card(self._heading, table(self.rows(), ["", "mean", *COLUMNS]))

    @property
    def _heading(self) -> str:
        return f"{self.title}: {count(len(self.count), 'view')} of {self.tokens} tokens"


def stats(mask_set: MaskSet) -> Stats:
    """The statistics of a mask set and the CLS tokens. Raises UserError if a file is missing or damaged."""
    from data_cache.as_dataframe import dataframe  # pandas takes a second

    down, across = mask_set.mask_grid
    tokens = down * across
    views = dataframe(mask_set).dropna(subset="pseudo_labels")
    ignored = (views["ignored"] * tokens).round().to_numpy(int)
    return Stats(
        f"{mask_set.cache.path.name}, masks {mask_set.masks}",
        tokens,
        views["pseudo_labels"].to_numpy(int),
        ignored,
        views["cls_norm"].to_numpy(float),
    )


def _summary(values: Real[np.ndarray, "value"]) -> list[str]:
    if not len(values):
        return ["-"] * (1 + len(COLUMNS))
    return [f"{value:.4g}" for value in (values.mean(), *np.percentile(values, list(COLUMNS.values())))]
