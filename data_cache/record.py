"""One view of one image of a cache: its arrays as numpy, its photograph, and itself as a picture."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float16, Int, Shaped, UInt8
from PIL import Image

from data_cache.content import OK
from data_cache.datasets.base import VOID
from data_cache.errors import UsageError, UserError
from data_cache.portrait import heading, portrait
from data_cache.schema import reserved_label
from data_cache.store import MASKS
from data_cache.views import View, replay_image, replay_label

if TYPE_CHECKING:
    from data_cache.reader import Reader

Panels = Callable[["ImageRecord"], Mapping[str, Int[np.ndarray, "y x"]]]
"""What else to draw of a view: label maps of its tokens by title, -1 where a token has no label."""


@dataclass(frozen=True, repr=False)
class ImageRecord:
    """One view of an image. `cache[12]` is view 0, `cache[12].view(2)` another.

    What is cached raises UserError with the reason where the image failed or is not done, and `dense` does so too in
    a cache without dense tokens. What comes from the photograph is None where that, or its label map, is missing.
    """

    reader: "Reader"
    index: int
    number: int = 0

    def view(self, number: int) -> "ImageRecord":
        """Another view of this image. Raises UsageError if there is none of this number."""
        number = operator.index(number)
        if number not in range(self.reader.views):
            raise UsageError(f"view {number}: {self.reader.cache.path} has views 0 to {self.reader.views - 1}")
        return replace(self, number=number)

    @property
    def id(self) -> str:
        """The image's name: its path below the dataset's root."""
        return self.reader.statuses[self.index][0]

    @property
    def status(self) -> str:
        """`ok`, the reason of the failure, or "" while the image is not done."""
        return self.reader.statuses[self.index][1]

    @property
    def ok(self) -> bool:
        """Whether it did not fail, and is done."""
        return self.status == OK

    # -- what the cache holds ----------------------------------------------------------------------------------

    @property
    def masks(self) -> Shaped[np.ndarray, "y x"]:
        """Fused pseudo labels of the tokens, 0 .. `count` - 1; `nothing` where a token is not ignored."""
        return self._stored("label").copy()

    @property
    def nothing(self) -> int:
        """The reserved label of `masks`."""
        return reserved_label(self.reader.about["dtype"])

    @property
    def count(self) -> int:
        """How many pseudo labels `masks` has."""
        return int(self._stored("count"))

    @property
    def cls(self) -> Float16[np.ndarray, "channel"]:
        """CLIP's image embedding of this view, projected, not normalised."""
        return self._stored("cls").copy()

    @property
    def dense(self) -> Float[np.ndarray, "y x channel"]:
        """CLIP's dense tokens of this view, not normalised: float16, or float32 where they were stored as int8."""
        cache = self.reader.cache
        if cache.layout.dense == "none":
            raise UserError(f"{cache.path}: holds no dense tokens; run `precompute` with --dense float16 or int8")
        self._stored("label")  # a shard that is not done, or has lost a file, must not read as zeros
        return cache.dense(self.index)[self.number]

    @property
    def geometry(self) -> View:
        """The box this view is cut out of, in the image's own pixels, and whether it is mirrored."""
        return View.stored(self._stored("box"), bool(self._stored("flip")))

    def _stored(self, name: str) -> Any:
        if not self.ok:
            why = f"failed: {self.status}" if self.status else "not done; run the same `precompute` command again"
            raise UserError(f"image {self.index}, {self.id}: {why}")
        return getattr(self.reader.loaded(self.index), name)[self._row, self.number]

    @property
    def _row(self) -> int:
        return self.index % self.reader.cache.layout.shard

    # -- what the photograph shows -----------------------------------------------------------------------------

    @property
    def photo(self) -> UInt8[np.ndarray, "height width 3"] | None:
        """The whole photograph in its own size, upright, RGB."""
        return None if isinstance(self._pair, UserError) else self._pair[0]

    @property
    def labelled(self) -> bool:
        """Whether the photograph is there and has a label map."""
        return not isinstance(self._pair, UserError) and self._pair[1] is not None

    @property
    def missing(self) -> str:
        """Why there is no photograph; "" if there is one."""
        return str(self._pair) if isinstance(self._pair, UserError) else ""

    @property
    def shown(self) -> UInt8[np.ndarray, "size size 3"] | None:
        """What CLIP saw: this view of the photograph at CLIP's size."""
        return None if self.photo is None else replay_image(self.photo, self.geometry, self.reader.clip_size)

    @property
    def seen(self) -> UInt8[np.ndarray, "size size"] | None:
        """Class ids of this view at CLIP's size; 255 where nothing is annotated, or an unseen class."""
        if isinstance(self._pair, UserError) or self._pair[1] is None:
            return None
        label = replay_label(self._pair[1], self.geometry, self.reader.clip_size)
        return np.where(self.reader.split.seen_rank()[label] == VOID, np.uint8(VOID), label)

    @cached_property
    def _pair(self) -> tuple[np.ndarray, np.ndarray | None] | UserError:
        try:
            # of stage 1's own masks, which are done when the image is
            digest = self.reader.loaded(self.index, MASKS).digest[self._row] if self.ok else None
            return self.reader.photographs.load(self.index, digest)
        except UserError as error:
            return error

    # -- drawn -------------------------------------------------------------------------------------------------

    def drawn(self) -> Image.Image:
        """All panels and the legend as one picture, to be saved."""
        return portrait(self).drawn()

    def __repr__(self) -> str:
        return heading(self)

    def _repr_html_(self) -> str:
        return portrait(self)._repr_html_()
