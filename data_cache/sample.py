"""One image of a source dataset with its label map: read, compared with the cache, and cropped to a view's pixels."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NoReturn, overload

import numpy as np
from jaxtyping import Int, UInt8

from data_cache.datasets.base import Dataset, Sample
from data_cache.errors import UnreadableError, UserError
from data_cache.messages import first_names
from data_cache.views import View

READERS = 8
"""Threads that hash the files of a dataset."""


def read_unchanged(dataset: Dataset, index: int, cached: tuple[str, str] | None) -> Sample:
    """Read an image and its label map once each, and compare them with the cache.

    `cached` holds their hashes as the cache has them; None compares nothing.

    Raises UserError if one of them is missing, unreadable or changed.
    """
    sample = dataset.sample(index)
    if cached and sample.digest != cached:
        _refuse_changed(f"{dataset.path(index)}: the image or its label map")
    return sample


def read_label_unchanged(dataset: Dataset, index: int, cached: str) -> UInt8[np.ndarray, "height width"] | None:
    """Read a label map, and compare it alone with the cache. Raises UserError as `read_unchanged` does."""
    if dataset.digest(index)[1] != cached:
        _refuse_changed(f"{dataset.path(index)}: its label map")
    return dataset.label(index)


def check_unchanged(dataset: Dataset, index: int, cached: tuple[str, str]) -> None:
    """Compare the files of an image with the cache, without decoding. Raises UserError as `read_unchanged` does."""
    if dataset.digest(index) != cached:
        _refuse_changed(f"{dataset.path(index)}: the image or its label map")


def check_all_unchanged(dataset: Dataset, cached: Mapping[int, tuple[str, str]]) -> None:
    """Compare the files of many images with the cache, in threads; a drawn dataset has none to compare.

    Raises:
        UserError: naming the first images that changed or are missing.
        UnreadableError: a file exists and cannot be read, so it may be unchanged.

    """
    if dataset.root is None:
        return
    with ThreadPoolExecutor(READERS) as pool:
        differ = pool.map(lambda index: _differs(dataset, index, cached[index]), cached)
        changed = [index for index, other in zip(cached, differ, strict=True) if other]
    if len(changed) == 1:
        _refuse_changed(f"{dataset.path(changed[0])}: the image or its label map")
    if changed:
        names = first_names([dataset.ids[index] for index in changed])
        _refuse_changed(f"{dataset.root}: {len(changed)} images or their label maps ({names})")


def _differs(dataset: Dataset, index: int, cached: tuple[str, str]) -> bool:
    try:
        return dataset.digest(index) != cached
    except UnreadableError:
        raise
    except UserError:
        return True


def _refuse_changed(what: str) -> NoReturn:
    raise UserError(
        f"{what} changed since the cache was made; restore the files, or run `precompute` again with --overwrite or "
        "another --cache PATH"
    )


def crop_image(image: UInt8[np.ndarray, "height width 3"], view: View, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Crop a view out of an RGB image and resample it to size x size pixels (bicubic, antialiased).

    By torch in 8 bits: several times as fast as Pillow, and other threads run meanwhile. Only pixels of the view
    contribute. `views.RESIZE_FILTER` names this resampling in the cache's fingerprint.
    """
    import torch  # here, so that data_cache can be imported without it

    top, left, bottom, right = view.box
    crop = image[top:bottom, left:right]
    crop = crop if crop.flags.writeable else crop.copy()  # torch warns of read-only arrays
    # one image in channels-last order: torch then keeps that order, and takes a third of the time
    pixels = torch.from_numpy(crop)[None].permute(0, 3, 1, 2)
    if crop.shape[:2] != (size, size):
        pixels = torch.nn.functional.interpolate(pixels, (size, size), mode="bicubic", antialias=True)
    resized = pixels[0].permute(1, 2, 0).numpy()
    return np.ascontiguousarray(resized[:, ::-1] if view.flip else resized)


@overload
def crop_label(label: UInt8[np.ndarray, "height width"], view: View, size: int) -> UInt8[np.ndarray, "size size"]: ...
@overload
def crop_label(label: None, view: View, size: int) -> None: ...
def crop_label(
    label: UInt8[np.ndarray, "height width"] | None, view: View, size: int
) -> UInt8[np.ndarray, "size size"] | None:
    """Crop the same view out of a label map; every output pixel copies its nearest input pixel. None stays None."""
    if label is None:
        return None
    top, left, bottom, right = view.box
    columns = _nearest(left, right, size)
    return label.take(_nearest(top, bottom, size), axis=0).take(columns[::-1] if view.flip else columns, axis=1)


@lru_cache(256)
def _nearest(start: int, stop: int, size: int) -> Int[np.ndarray, "size"]:
    """The nearest of the pixels start..stop to each of `size` output pixels, as Pillow rounds it.

    With it, other threads run meanwhile, and nothing is copied from and to Pillow.
    """
    step = (stop - start) / size
    return np.add.accumulate([start + step / 2, *[step] * (size - 1)]).astype(np.intp)
