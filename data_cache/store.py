"""The cache: open it, write a shard, read what training needs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from jaxtyping import Float, Float16, Int, Shaped

from data_cache.content import OK, Loaded, Shard, Texts, quantised
from data_cache.drafts import drafts_of, remove
from data_cache.errors import UsageError, UserError
from data_cache.fingerprint import Fingerprint, difference
from data_cache.journal import Journal, Record, missing_files
from data_cache.limits import check_arrays, check_attributes
from data_cache.redo import REDO, finish
from data_cache.schema import (
    Dense,
    Layout,
    build,
    check_seal,
    create_feature_arrays,
    create_mask_arrays,
    create_text_arrays,
    seal,
)

SHARD = {
    **{name: f"image/{name}" for name in ("size", "content_hash", "label_hash", "status")},
    **{"box": "view/box", "flip": "view/flip", "cls": "cls"},
    **{name: f"masks/default/{name}" for name in ("label", "count")},
}
"""Where the fields of a shard are stored, dense tokens apart."""
FEATURES = tuple(key for key in SHARD.values() if key.startswith(("image/", "view/")))
HASHES = ("image/content_hash", "image/label_hash")
MASKS = "default"
"""The mask set that stage 1 makes."""


class Cache:
    """One cache directory, opened for reading or for writing shards.

    Raises UserError if `path` is no cache, has another version, or its metadata was altered.
    """

    def __init__(self, path: Path, mode: Literal["r", "r+"] = "r") -> None:
        if not path.is_dir():
            problem = "a file, not a cache" if path.exists() else "no such cache"
            raise UserError(f"{path}: {problem}; run `precompute` first or pass --cache PATH")
        check_seal(path)
        self.path = path
        # Any: zarr types every member as array or group
        self.group: Any = zarr.open_group(path, mode=mode)
        self.attributes: Mapping[str, Any] = self.group.attrs.asdict()
        arrays = {name: node for name, node in self.group.members(max_depth=None) if isinstance(node, zarr.Array)}
        if not {"cls", "journal", f"masks/{MASKS}/label"} <= arrays.keys():
            raise UserError(f"{path}: lacks arrays that every cache has; it is not trusted")
        check_arrays(path, arrays)
        self._ndim = {name: array.ndim for name, array in arrays.items()}
        check_attributes(path, self.attributes, {name: dict(self.group["masks"][name].attrs) for name in self.masks})

    @classmethod
    def create(
        cls,
        path: Path,
        layout: Layout,
        attributes: Mapping[str, Any],
        ids: Sequence[str],
        masks: tuple[str, Mapping[str, Any]],
        texts: Texts,
    ) -> "Cache":
        """Create an empty cache, all or nothing, with its text features and image ids."""
        build(path, _frame(layout, ids, {masks[0]: masks[1]}, texts), attributes)
        return cls(path, mode="r+")

    def grow(self, ids: Sequence[str], fingerprint: Fingerprint) -> None:
        """Append images, not done yet; open the cache anew afterwards. Only for its one writer.

        All or nothing: killed at any instant, it has grown or it has not (`data_cache.redo`).
        """
        whole = [*self.ids(), *ids]
        layout = replace(self.layout, images=len(whole))
        sets = {name: self.mask_attributes(name) for name in self.masks}
        change = self.path / REDO
        build(change, _frame(layout, whole, sets, self.texts()), {**self.attributes, "fingerprint": fingerprint})
        finish(self.path)

    @cached_property
    def layout(self) -> Layout:
        """The sizes of the arrays."""
        n, v, c = self.group["cls"].shape
        grid = self.group[f"masks/{MASKS}/label"].shape[2:]
        stored: Dense = "int8" if "dense_scale" in self.group else "float16"
        dense: Dense = stored if "dense" in self.group else "none"
        return Layout(n, v, c, grid, self.group["cls"].chunks[0], dense)

    @property
    def fingerprint(self) -> Fingerprint:
        """What the numbers in this cache depend on."""
        return self.attributes["fingerprint"]

    def require(self, fingerprint: Fingerprint, masks: str, attributes: Mapping[str, Any], shard: int) -> None:
        """Raise UserError with the differences unless the cache was made with exactly these settings."""
        there = {**self.fingerprint, "shard": self.layout.shard, "masks": _compared(self.mask_attributes(masks))}
        here = {**fingerprint, "shard": shard, "masks": _compared(attributes)}
        if differences := difference(there, here):
            raise UserError(
                f"{self.path}: this cache was made with other settings ({'; '.join(differences)}); "
                "use the same, pass another --cache PATH, or delete it"
            )

    def require_masks(self, name: str, attributes: Mapping[str, Any]) -> None:
        """Raise UsageError with the differences unless a mask set was clustered with exactly these settings."""
        if differences := difference(_compared(self.mask_attributes(name)), _compared(attributes)):
            raise UsageError(
                f"--name {name}: {self.path} has masks of this name with other settings ({'; '.join(differences)}); "
                "use the same, or another --name"
            )

    # -- masks and texts by name ------------------------------------------------------------------------------

    @property
    def masks(self) -> list[str]:
        """The names of the mask sets."""
        return sorted(name for name, _ in self.group["masks"].groups())

    def mask_name(self, name: str | None) -> str:
        """The mask set called `name`, or stage 1's own. Raises UsageError if there is no such."""
        if name is None:
            return MASKS
        if name not in self.masks:
            known = ", ".join(self.masks)
            raise UsageError(f"{self.path}: no mask set named {name!r}; pass --masks with one of: {known}")
        return name

    def mask_attributes(self, name: str) -> dict[str, Any]:
        """How a mask set was clustered: unseen classes, threshold, windows, updates, backend, dtype."""
        return self.group[f"masks/{name}"].attrs.asdict()

    def add_masks(self, name: str, attributes: Mapping[str, Any]) -> None:
        """Add an empty mask set. It is part of the cache once this returns; killed before, it never was.

        Only for whoever is the cache's one writer, and who opened it as such.
        """
        # what killed calls left behind, under any name, must not be consolidated with the new set
        for folder in (self.path / "masks").iterdir():
            if folder.is_dir() and folder.name not in self.masks:
                remove(folder)
        create_mask_arrays(zarr.open_group(self.path, mode="r+", use_consolidated=False), name, self.layout, attributes)
        seal(self.path)

    @property
    def texts_name(self) -> str:
        """The name of the prompts."""
        return next(name for name, _ in self.group["text"].groups())

    def texts(self) -> Texts:
        """The text features (the only set there is yet)."""
        name = self.texts_name
        self._check_files(self.journal(f"text/{name}").records())
        strings = {key: tuple(str(s) for s in self.read(f"text/{name}/{key}")) for key in ("name", "template")}
        return Texts(name, strings["name"], strings["template"], self.read(f"text/{name}/features"))

    # -- shards -----------------------------------------------------------------------------------------------

    def pending(self, masks: str) -> list[int]:
        """The shards whose features or whose masks are not done, or that have grown since."""
        return [i for i, both in enumerate(zip(*self._both_records(masks), strict=True)) if None in both]

    def failed(self) -> list[int]:
        """The shards in which an image failed."""
        return [record.shard for record in self.records() if record.failed]

    def rows_to_do(self, shard: int, retry: bool = False) -> list[int]:
        """Which images of a shard, counted from its first, are to be encoded.

        All of them, unless it was done: then those it has grown by, and with `retry` those that failed.
        """
        span = self.layout.span(shard)
        record = self.journal("").record(shard)
        if record is None or not self.journal(f"masks/{MASKS}").record(shard):
            return list(range(span.stop - span.start))
        there = record.ok + record.failed
        failed = np.flatnonzero(self.read("image/status", span)[:there] != OK) if retry else []
        return [*map(int, failed), *range(there, span.stop - span.start)]

    def read_shard(self, shard: int) -> Shard:
        """A shard as it is stored, without its dense tokens."""
        span = self.layout.span(shard)
        values = {name: self.read(key, span) for name, key in SHARD.items()}
        strings = {name: [str(text) for text in values[name]] for name in ("content_hash", "label_hash", "status")}
        return Shard(**(values | strings), dense=None)

    def undeclare(self, shard: int) -> None:
        """Call a shard not done, in every mask set, before it is changed."""
        for part in ("", *(f"masks/{name}" for name in self.masks)):
            self.journal(part).erase(shard)

    def records(self) -> list[Record]:
        """The records of all shards whose features are done."""
        return [record for record in self.journal("").records() if record]

    def write_shard(self, shard: int, data: Shard, masks: str, rows: Sequence[int] | None = None) -> Record:
        """Write one shard and declare it done; of dense tokens only `rows`, if given. Only one writer may hold it."""
        span = self.layout.span(shard)
        for name, key in SHARD.items():
            if not key.startswith("masks/"):
                value = getattr(data, name)
                self.group[key][span] = np.array(value, dtype=object) if isinstance(value, list) else value
        if data.dense is not None:
            for name in self._chunks(shard, ("dense",)) if rows is None else ():
                # zarr looks into the shard file that is there even when all of it is replaced, damaged or not
                (self.path / name).unlink(missing_ok=True)
            try:
                self._write_dense(span, data.dense, rows)
            except (ValueError, RuntimeError) as error:  # of the others, which share a file
                raise UserError(f"{self.path / 'dense'}: damaged ({error}); run `verify --repair`") from None
        ok = sum(status == OK for status in data.status)
        done = (shard, ok, len(data.status) - ok)
        self.write_masks(shard, data.label, data.count, masks, done)
        return self.journal("").commit(*done, self._chunks(shard, (*FEATURES, *self._arrays())))

    def write_masks(
        self,
        shard: int,
        label: Shaped[np.ndarray, "image view y x"],
        count: Int[np.ndarray, "image view"],
        masks: str,
        done: tuple[int, int, int] | None = None,
    ) -> Record:
        """Write one shard of a mask set whole and declare it done; `done` is (shard, ok, failed) if it is known."""
        span, names = self.layout.span(shard), (f"masks/{masks}/label", f"masks/{masks}/count")
        self.group[names[0]][span], self.group[names[1]][span] = label, count
        if done is None:
            record = self.journal("").record(shard)
            assert record, "masks follow features"
            done = (shard, record.ok, record.failed)
        return self.journal(f"masks/{masks}").commit(*done, self._chunks(shard, names))

    def _write_dense(
        self, span: slice, dense: Float16[np.ndarray, "image view y x channel"], rows: Sequence[int] | None
    ) -> None:
        for part in [slice(None)] if rows is None else [slice(row, row + 1) for row in rows]:
            start, stop, _ = part.indices(span.stop - span.start)
            where, values = slice(span.start + start, span.start + stop), dense[part]
            if self.layout.dense == "int8":
                values, self.group["dense_scale"][where] = quantised(values)
            # a view at a time: that much is assembled in memory for a shard file
            for view in range(self.layout.views):
                self.group["dense"][where, view : view + 1] = values[:, view : view + 1]

    def sweep(self) -> None:
        """Remove what a killed writer left half written. Only for whoever is the cache's one writer."""
        for left in [*self.path.rglob("*.partial"), *drafts_of(self.path)]:
            remove(left)

    # -- reading ----------------------------------------------------------------------------------------------

    def load(self, masks: str, shard: int | None = None) -> Loaded:
        """What training needs, in memory: of all images, or of one shard's.

        Raises UserError if shards are unfinished, lost or damaged.
        """
        features, clustered = self._both_records(masks, shard)
        if pending := sum(None in both for both in zip(features, clustered, strict=True)):
            done = masks != MASKS and None not in features
            cure = f"run `cluster` with --name {masks} again" if done else "run the same `precompute` command again"
            missing = f"{pending} of {self.layout.shards} shards are" if shard is None else f"shard {shard} is"
            raise UserError(f"{self.path}: {missing} not done; {cure} to finish them")
        self._check_files([*features, *clustered])
        span = slice(None) if shard is None else self.layout.span(shard)
        return Loaded(
            ids=self.ids(span),
            digest=self.digests(span),
            ok=np.array([status == OK for status in self.read("image/status", span)]),
            box=self.read("view/box", span),
            flip=self.read("view/flip", span),
            cls=self.read("cls", span),
            label=self.read(f"masks/{masks}/label", span),
            count=self.read(f"masks/{masks}/count", span),
        )

    def require_files(self, masks: str) -> None:
        """Raise UserError if a file of the features or of a mask set is lost."""
        features, clustered = self._both_records(masks)
        self._check_files([*self.journal("image").records(), *features, *clustered])

    def counts(self, masks: str) -> Int[np.ndarray, "image view"]:
        """How many pseudo labels each view has in a mask set; 0 where it failed or is not done."""
        self._check_files(self.journal(f"masks/{masks}").records())
        return self.read(f"masks/{masks}/count")

    def ids(self, span: slice = slice(None)) -> list[str]:
        """The names of images, in the order of every array."""
        self._check_files(self.journal("image").records())
        return [str(name) for name in self.read("image/id", span)]

    def digests(self, span: slice = slice(None)) -> list[tuple[str, str]]:
        """(image hash, label hash) of images; both empty if one failed. True of done shards only."""
        return [(str(a), str(b)) for a, b in zip(*(self.read(name, span) for name in HASHES), strict=True)]

    def dense(self, image: int) -> Float[np.ndarray, "view y x channel"]:
        """The dense tokens of an image: float16 as CLIP's were rounded, or float32 from int8 and its scales."""
        try:
            values = self.group["dense"][image]
            if self.layout.dense != "int8":
                return values
            return values.astype(np.float32) * self.group["dense_scale"][image][..., None]
        except (ValueError, RuntimeError) as error:
            where = f"{self.path / 'dense'}: damaged at image {image}"
            raise UserError(f"{where} ({error}); `verify --repair` mends it") from None

    def statuses(self) -> list[tuple[str, str]]:
        """(id, status) of every image: "ok", the reason of the failure, or "" while not done."""
        self._check_files(self.journal("").records(), "image/")
        return [(name, str(status)) for name, status in zip(self.ids(), self.read("image/status"), strict=True)]

    def bytes(self) -> dict[str, int]:
        """Bytes on disk of the three payloads."""
        arrays = {"cls": ["cls"], "dense": ["dense", "dense_scale"], "masks": ["masks"]}
        files = {part: [f for name in names for f in (self.path / name).rglob("*")] for part, names in arrays.items()}
        return {part: sum(f.stat().st_size for f in found if f.is_file()) for part, found in files.items()}

    def read(self, name: str, span: slice = slice(None)) -> np.ndarray:
        """An array by its name, or some of its images. Raises UserError if it is damaged."""
        try:
            return self.group[name][span]
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{self.path / name}: damaged ({error}); `verify --repair` mends it") from None

    def _check_files(self, records: Sequence[Record | None], below: str = "") -> None:
        if lost := missing_files(self.path, records, below):
            raise UserError(f"{lost[0]}: missing or truncated ({len(lost)} such files); `verify --repair` mends it")

    def _both_records(self, masks: str, shard: int | None = None) -> tuple[list[Record | None], list[Record | None]]:
        return self.whole_records("", shard), self.whole_records(f"masks/{masks}", shard)

    def whole_records(self, part: str, shard: int | None = None) -> list[Record | None]:
        """The records of a part, or of one shard; none for a shard with more images than when it was recorded."""
        shards = range(self.layout.shards) if shard is None else [shard]
        counts = [self.layout.images_in([shard]) for shard in shards]
        records = self.journal(part).records() if shard is None else [self.journal(part).record(shard)]
        for one in filter(None, records):
            self.check_files_of(one, part)
        return [one if one and one.ok + one.failed == n else None for one, n in zip(records, counts, strict=True)]

    def check_files_of(self, record: Record, part: str) -> None:
        """Raise UserError for a record that names other files than its shard has: what it leaves out nobody checks."""
        names = (f"{part}/label", f"{part}/count") if part else (*FEATURES, *self._arrays())
        if record.files.keys() != set(self._chunks(record.shard, names)):
            raise UserError(
                f"{self.path / part / 'journal'}: a damaged journal record (of shard {record.shard}: names other "
                "files); `verify --repair` mends it"
            )

    def journal(self, part: str) -> Journal:
        """The journal of features (""), of a mask set, of the image names or of the texts."""
        return Journal(self.path, self.group[part] if part else self.group)

    def _arrays(self) -> tuple[str, ...]:
        more = {"none": (), "float16": ("dense",), "int8": ("dense", "dense_scale")}
        return ("cls", *more[self.layout.dense])

    def _chunks(self, shard: int, names: tuple[str, ...]) -> list[str]:
        views = {"dense": self.layout.views}
        indices = ((name, (shard, view, 0, 0, 0)) for name in names for view in range(views.get(name, 1)))
        return [f"{name}/c/" + "/".join(map(str, i[: self._ndim[name]])) for name, i in indices]


def _compared(attributes: Mapping[str, Any]) -> dict[str, Any]:
    # backends give the same labels: which one did is told, and may change
    return {name: value for name, value in attributes.items() if name != "backend"}


def _frame(
    layout: Layout, ids: Sequence[str], sets: Mapping[str, Mapping[str, Any]], texts: Texts
) -> Callable[[Any, Path], None]:
    """What makes a cache without shards: its arrays, its images' names, which serve as paths too, and its texts."""

    def fill(root: Any, draft: Path) -> None:
        create_feature_arrays(root, layout)
        for name, attributes in sets.items():
            create_mask_arrays(root, name, layout, attributes)
        create_text_arrays(root, texts.name, len(texts.classes), len(texts.templates), layout.channels)
        for name in ("id", "path"):
            root[f"image/{name}"][:] = np.array(ids, dtype=object)
        Journal(draft, root["image"]).commit(
            0, layout.images, 0, [f"image/{name}/c/{i}" for name in ("id", "path") for i in range(layout.shards)]
        )
        group = root[f"text/{texts.name}"]
        group["features"][:] = texts.features
        group["name"][:] = np.array(texts.classes, dtype=object)
        group["template"][:] = np.array(texts.templates, dtype=object)
        chunks = ("features/c/0/0", "name/c/0", "template/c/0")
        Journal(draft, group).commit(0, len(texts.classes), 0, [f"text/{texts.name}/{key}" for key in chunks])

    return fill
