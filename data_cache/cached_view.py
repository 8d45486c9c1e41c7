"""One view of one image of a cache: its arrays as numpy, and its pixels and labels from the source dataset."""

import operator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Float16, Shaped, UInt8

from data_cache.content import OK
from data_cache.datasets.base import VOID, Sample
from data_cache.errors import UsageError, UserError
from data_cache.layout import DEFAULT_MASKS, reserved_label
from data_cache.mask_set import MaskSet
from data_cache.sample import crop_image, crop_label, read_unchanged
from data_cache.views import View


@dataclass(frozen=True, repr=False)
class CachedView:
    """View `number` of image `index`; view 0 is the whole image.

    The cached arrays raise UserError if the image failed or is not done, or if `dense` is not stored. `image`,
    `clip_input` and `seen_label` are None if the image, or its label map, is missing or has changed.
    """

    mask_set: MaskSet
    index: int
    number: int = 0

    def view(self, number: int) -> Self:
        """Another view of this image. Raises UsageError if it has no view of this number."""
        number = operator.index(number)
        if number not in range(self.mask_set.views):
            raise UsageError(f"view {number}: {self.mask_set.cache.path} has views 0 to {self.mask_set.views - 1}")
        return replace(self, number=number)

    @property
    def id(self) -> str:
        """The image's id: its path below the dataset's root."""
        return self.mask_set.statuses[self.index][0]

    @property
    def status(self) -> str:
        """`ok`, the reason of the failure, or "" while the image is not done."""
        return self.mask_set.statuses[self.index][1]

    @property
    def ok(self) -> bool:
        """Whether the image is done and did not fail."""
        return self.status == OK

    # -- cached arrays -----------------------------------------------------------------------------------------

    @property
    def masks(self) -> Shaped[np.ndarray, "y x"]:
        """Fused pseudo labels of the tokens, 0 to `count` - 1; `reserved` where a token is not ignored."""
        return self._stored("label").copy()

    @property
    def reserved(self) -> int:
        """The label of tokens that are not ignored in `masks`."""
        return reserved_label(self.mask_set.settings["dtype"])

    @property
    def count(self) -> int:
        """Number of pseudo labels in `masks`."""
        return int(self._stored("count"))

    @property
    def cls(self) -> Float16[np.ndarray, "channel"]:
        """CLIP's projected image embedding of this view, not normalized."""
        return self._stored("cls").copy()

    @property
    def dense(self) -> Float[np.ndarray, "y x channel"]:
        """The dense tokens that `masks` are clustered from, not normalized: CLIP's, or those of the mask set's model.

        float16, or float32 if they are stored as int8.
        """
        cache, masks = self.mask_set.cache, self.mask_set.masks
        cache.check_dense(masks)
        self._stored("label")  # raises if the shard is unfinished or lacks files, which would read as zeros
        if owner := cache.tokens_owner(masks):
            self.mask_set.loaded(self.index, owner)
        return cache.dense(self.index, masks)[self.number]

    @property
    def geometry(self) -> View:
        """The box of this view in the image's own pixels, and whether it is mirrored."""
        return View.stored(self._stored("box"), bool(self._stored("flip")))

    def _stored(self, name: str) -> Any:
        if not self.ok:
            unfinished = "not done; rerun the same `precompute` command"
            problem = f"failed when it was cached ({self.status})" if self.status else unfinished
            raise UserError(f"image {self.index}, {self.id}: {problem}")
        return getattr(self.mask_set.loaded(self.index), name)[self._row, self.number]

    @property
    def _row(self) -> int:
        return self.index % self.mask_set.cache.layout.shard

    # -- source dataset ----------------------------------------------------------------------------------------

    @property
    def sample(self) -> Sample:
        """The whole image and its label map. Raises UserError if one is missing, unreadable or has changed."""
        if isinstance(self._read, UserError):
            raise self._read
        return self._read

    @property
    def crop(self) -> UInt8[np.ndarray, "height width 3"]:
        """The pixels of this view, not resized. Raises UserError as `sample` does."""
        return self.geometry.crop(self.sample.image)

    @property
    def label(self) -> UInt8[np.ndarray, "height width"]:
        """Class ids of `crop`, unseen classes included; all 255 without a label map. Raises as `sample` does."""
        image, label = self.sample.image, self.sample.label
        return self.geometry.crop(np.full(image.shape[:2], VOID, np.uint8) if label is None else label)

    @property
    def missing(self) -> str:
        """Why the image cannot be read; "" if it can."""
        return str(self._read) if isinstance(self._read, UserError) else ""

    @property
    def image(self) -> UInt8[np.ndarray, "height width 3"] | None:
        """The whole upright RGB image at its original size."""
        return None if self.missing else self.sample.image

    @property
    def has_label(self) -> bool:
        """Whether the image can be read and has a label map."""
        return not self.missing and self.sample.label is not None

    @property
    def clip_input(self) -> UInt8[np.ndarray, "size size 3"] | None:
        """The pixels that CLIP encoded: the view at CLIP's input size."""
        return None if self.missing else crop_image(self.sample.image, self.geometry, self.mask_set.clip_size)

    @property
    def seen_label(self) -> UInt8[np.ndarray, "size size"] | None:
        """Class ids of `clip_input`; 255 for void and unseen classes."""
        return self._seen_label(self.mask_set.clip_size)

    @property
    def tokens_label(self) -> UInt8[np.ndarray, "size size"] | None:
        """The same at the input size of the model whose tokens are clustered: it decides which tokens are ignored."""
        return self._seen_label(self.mask_set.tokens_size)

    def _seen_label(self, size: int) -> UInt8[np.ndarray, "size size"] | None:
        if not self.has_label:
            return None
        return self.mask_set.split.hide_unseen(crop_label(self.sample.label, self.geometry, size))

    @cached_property
    def _read(self) -> Sample | UserError:
        try:
            # stage 1's own mask set is done whenever the image is; others may not be
            digest = self.mask_set.loaded(self.index, DEFAULT_MASKS).digest[self._row] if self.ok else None
            return read_unchanged(self.mask_set.source.dataset, self.index, digest)
        except UserError as error:
            return error
