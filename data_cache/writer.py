"""Write a cache: create it, append images, write shards and mask sets."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import zarr
from jaxtyping import Float16, Int, Shaped

from data_cache.arrays import DENSE_TOKENS, OWN_TOKENS, SHARD_FIELDS, chunk_files, create_arrays, symbol_sizes
from data_cache.content import OK, Shard, Texts, quantize_int8
from data_cache.dense_file import write_dense_file
from data_cache.errors import UsageError, UserError
from data_cache.fingerprint import Fingerprint, difference
from data_cache.journal import Journal, Record, Stamp
from data_cache.layout import DEFAULT_MASKS, Layout
from data_cache.metadata import FORMAT, VERSION, finalize_metadata
from data_cache.moved import ExistingStore, make_folders
from data_cache.reader import Cache
from data_cache.system.atomic import draft_path, draft_paths, remove
from data_cache.transaction import REDO, complete_transaction


class CacheWriter(Cache):
    """A cache opened for writing, by its one writer (`data_cache.system.lock.writer_lock`).

    A shard may be written while others are, by other processes: each shard by one of them.
    """

    _mode: ClassVar[Literal["r", "r+"]] = "r+"

    @classmethod
    def create(
        cls,
        path: Path,
        layout: Layout,
        attributes: Mapping[str, Any],
        ids: Sequence[str],
        masks: tuple[str, Mapping[str, Any]],
        texts: Texts,
    ) -> Self:
        """Create an empty cache with its image ids and text features, all or nothing."""
        _build(path, _frame(layout, ids, {masks[0]: masks[1]}, texts), attributes)
        return cls(path)

    def extend(self, ids: Sequence[str], fingerprint: Fingerprint) -> None:
        """Append images, which are not done yet; reopen the cache afterwards.

        All or nothing: killed at any instant, the cache has grown or it has not (`data_cache.transaction`).
        """
        ids = [*self.ids(), *ids]
        layout = replace(self.layout, images=len(ids))
        masks = {name: self.mask_attributes(name) for name in self.masks}
        fill = _frame(layout, ids, masks, self.texts())
        _build(self.path / REDO, fill, {**self.attributes, "fingerprint": fingerprint})
        complete_transaction(self.path)

    def add_masks(self, name: str, attributes: Mapping[str, Any]) -> None:
        """Add an empty mask set. It is part of the cache once this returns, and not before."""
        # leftovers of killed calls, under any name, must not be consolidated with the new set
        for folder in (self.path / "masks").iterdir():
            if folder.is_dir() and folder.name not in self.masks:
                remove(folder)
        group = zarr.open_group(ExistingStore(self.path), mode="r+", use_consolidated=False)
        _create_masks(group, name, self.layout, attributes)
        finalize_metadata(self.path)

    def check_settings(
        self, fingerprint: Fingerprint, masks: str, attributes: Mapping[str, Any], shard: int | None = None
    ) -> None:
        """Raise UserError with the differences unless the cache was made with exactly these settings.

        `shard` is the number of images per shard; None accepts any.
        """
        there = {**self.fingerprint, "shard": self.layout.shard, "masks": _compared(self.mask_attributes(masks))}
        here = {**fingerprint, "shard": shard or self.layout.shard, "masks": _compared(attributes)}
        if differences := difference(there, here):
            raise UserError(
                f"{self.path}: this cache was made with other settings ({'; '.join(differences)}); "
                "use the same, pass another --cache PATH, or delete it"
            )

    def check_mask_settings(self, name: str, attributes: Mapping[str, Any], flag: str = "--name") -> None:
        """Raise UsageError with the differences unless a mask set was clustered with exactly these settings."""
        if differences := difference(_compared(self.mask_attributes(name)), _compared(attributes)):
            raise UsageError(
                f"{flag} {name}: {self.path} has masks of this name with other settings ({'; '.join(differences)}); "
                f"use the same, or another {flag}"
            )

    # -- shards ------------------------------------------------------------------------------------------------

    def rows_to_encode(self, shard: int, retry: bool = False) -> list[int]:
        """The rows of a shard that must be encoded.

        All rows unless the shard was done; then those appended since, and with `retry` those that failed.
        """
        span = self.layout.span(shard)
        record = self.journal("").record(shard)
        if record is None or not self.journal(f"masks/{DEFAULT_MASKS}").record(shard):
            return list(range(span.stop - span.start))
        recorded = record.ok + record.failed
        failed = np.flatnonzero(self.read("image/status", span)[:recorded] != OK) if retry else []
        return [*map(int, failed), *range(recorded, span.stop - span.start)]

    def read_shard(self, shard: int) -> Shard:
        """A shard as it is stored, without its dense tokens."""
        return Shard(**self.read_fields(shard, SHARD_FIELDS), dense=None)

    def invalidate_shard(self, shard: int) -> None:
        """Mark a shard as not done, in every mask set, before it is changed."""
        for part in ("", *(f"masks/{name}" for name in self.masks)):
            self.journal(part).clear(shard)

    def write_shard(self, shard: int, data: Shard, masks: str, rows: Sequence[int] | None = None) -> Record:
        """Write one shard and record it as done; of its dense tokens only `rows`, if given."""
        span = self.layout.span(shard)
        for spec in SHARD_FIELDS.values():
            if spec.owner == "features":
                value = getattr(data, spec.field)
                self.group[spec.name][span] = np.array(value, dtype=object) if isinstance(value, list) else value
        stamps: dict[str, Stamp] = {}
        if data.dense is not None and rows is None:
            stamps = self._write_dense(shard, data.dense)
        elif data.dense is not None:
            try:
                self._write_dense_rows(span, data.dense, rows)
            except (ValueError, RuntimeError) as error:  # of the other rows, which share a file with these
                raise UserError(f"{self.path / 'dense'}: damaged ({error}); run `verify --repair`") from None
        ok = sum(status == OK for status in data.status)
        done = (shard, ok, len(data.status) - ok)
        self.write_masks(shard, data.label, data.count, masks, done=done)
        return self.journal("").commit(*done, self._chunk_files(shard, ""), stamps)

    def write_masks(
        self,
        shard: int,
        label: Shaped[np.ndarray, "image view y x"],
        count: Int[np.ndarray, "image view"],
        masks: str,
        dense: Float16[np.ndarray, "image view y x channel"] | None = None,
        done: tuple[int, int, int] | None = None,
    ) -> Record:
        """Write one shard of a mask set and record it as done.

        `dense` are the tokens of its own model, if they are stored; `done` is (shard, ok, failed) if it is known.
        """
        span = self.layout.span(shard)
        stamps = {} if dense is None else self._write_dense(shard, dense, masks)
        self.group[f"masks/{masks}/label"][span], self.group[f"masks/{masks}/count"][span] = label, count
        if done is None:
            record = self.journal("").record(shard)
            assert record, "features are written before masks"
            done = (shard, record.ok, record.failed)
        return self.journal(f"masks/{masks}").commit(*done, self._chunk_files(shard, f"masks/{masks}"), stamps)

    def _write_dense(
        self, shard: int, dense: Float16[np.ndarray, "image view y x channel"], masks: str = ""
    ) -> dict[str, Stamp]:
        """Write all dense tokens of a shard, CLIP's or those of a mask set; returns the stamps of their files."""
        part, spec = (f"masks/{masks}", OWN_TOKENS) if masks else ("", DENSE_TOKENS)
        stored = self._stored_dense(self.layout.span(shard), dense, part)
        stamps: dict[str, Stamp] = {}
        # a file per view
        for view, key in enumerate(spec.files(symbol_sizes(self._layouts[part]), masks, shard)):
            make_folders(self.path, key)
            stamps[key] = write_dense_file(self.path / key, stored[:, view], self.layout.shard)
        return stamps

    def _write_dense_rows(
        self, span: slice, dense: Float16[np.ndarray, "image view y x channel"], rows: Sequence[int]
    ) -> None:
        for row in rows:
            images = slice(span.start + row, span.start + row + 1)
            stored = self._stored_dense(images, dense[row : row + 1], "")
            # one view at a time: zarr assembles a whole shard file in memory
            for view in range(self.layout.views):
                self.group["dense"][images, view : view + 1] = stored[:, view : view + 1]

    def _stored_dense(
        self, images: slice, dense: Float16[np.ndarray, "image view y x channel"], part: str
    ) -> Shaped[np.ndarray, "image view y x channel"]:
        """The dense tokens of some images as they are stored; in 8 bits, this writes their scales."""
        if self._layouts[part].dense != "int8":
            return dense
        group = self.group[part] if part else self.group
        values, group["dense_scale"][images] = quantize_int8(dense)
        return values

    def remove_leftovers(self) -> None:
        """Remove the partial files that killed writers left behind."""
        for path in [*self.path.rglob("*.partial"), *draft_paths(self.path)]:
            remove(path)


def _compared(attributes: Mapping[str, Any]) -> dict[str, Any]:
    # all backends give the same labels, and a model may have moved: both are recorded but may differ
    return {name: value for name, value in attributes.items() if name not in ("backend", "origin")}


def _build(path: Path, fill: Callable[[zarr.Group, Path], None], attributes: Mapping[str, Any]) -> None:
    """Create a group at `path`, all or nothing: it appears under its name only once `fill` has returned.

    `fill` is called with the group and the folder in which it is built.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_path(path)
    try:
        group = zarr.create_group(draft, attributes={"format": FORMAT, "version": VERSION, **attributes})
        fill(group, draft)
        finalize_metadata(draft)
        draft.rename(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _frame(
    layout: Layout, ids: Sequence[str], masks: Mapping[str, Mapping[str, Any]], texts: Texts
) -> Callable[[Any, Path], None]:
    """A function that creates all arrays and writes the image names, which serve as paths too, and the texts."""

    def fill(root: Any, draft: Path) -> None:
        sizes = symbol_sizes(layout, len(texts.classes), len(texts.templates))
        create_arrays(root, "features", layout, sizes)
        create_arrays(root, "names", layout, sizes)
        for name, attributes in masks.items():
            _create_masks(root, name, layout, attributes)
        create_arrays(root, "texts", layout, sizes, texts.name)
        for name in ("id", "path"):
            root[f"image/{name}"][:] = np.array(ids, dtype=object)
        Journal(draft, root["image"]).commit(0, layout.images, 0, chunk_files("names", layout, sizes))
        group = root[f"text/{texts.name}"]
        group["features"][:] = texts.features
        group["name"][:] = np.array(texts.classes, dtype=object)
        group["template"][:] = np.array(texts.templates, dtype=object)
        Journal(draft, group).commit(0, len(texts.classes), 0, chunk_files("texts", layout, sizes, texts.name))

    return fill


def _create_masks(root: zarr.Group, name: str, layout: Layout, attributes: Mapping[str, Any]) -> None:
    root.create_group(f"masks/{name}", attributes=dict(attributes))
    layout = layout.of_masks(attributes)
    create_arrays(root, "masks", layout, symbol_sizes(layout), name, attributes["dtype"], "tokens" in attributes)
