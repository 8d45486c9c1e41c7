"""The cache: open it, write a shard, read what training needs."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from jaxtyping import Bool, Float, Float16, Int, Shaped

from data_cache.errors import UsageError, UserError
from data_cache.fingerprint import Fingerprint, difference
from data_cache.journal import Journal, Record, bad_files, missing_files
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

FEATURES = ("image/size", "image/content_hash", "image/label_hash", "image/status", "view/box", "view/flip")
HASHES = ("image/content_hash", "image/label_hash")
OK = "ok"
MASKS = "default"
"""The mask set that stage 1 makes."""


@dataclass(frozen=True)
class Texts:
    """Text features of a class list: one L2-normalised row a class, and the prompts they were made from."""

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    features: Float[np.ndarray, "class channel"]


@dataclass(frozen=True)
class Shard:
    """What stage 1 knows of some consecutive images; failed images carry zeros and their reason in `status`."""

    size: Int[np.ndarray, "image 2"]
    content_hash: list[str]
    label_hash: list[str]
    status: list[str]
    box: Int[np.ndarray, "image view 4"]
    flip: Bool[np.ndarray, "image view"]
    cls: Float16[np.ndarray, "image view channel"]
    dense: Float16[np.ndarray, "image view y x channel"] | None
    label: Shaped[np.ndarray, "image view y x"]
    count: Int[np.ndarray, "image view"]


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
        """Create an empty cache, all or nothing, with its text features and image ids, which serve as paths too."""

        def fill(root: Any, draft: Path) -> None:
            create_feature_arrays(root, layout)
            create_mask_arrays(root, masks[0], layout, masks[1])
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

        build(path, fill, attributes)
        return cls(path, mode="r+")

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
                shutil.rmtree(folder)
        create_mask_arrays(zarr.open_group(self.path, mode="r+", use_consolidated=False), name, self.layout, attributes)
        seal(self.path)

    def texts(self) -> Texts:
        """The text features (the only set there is yet)."""
        name, group = next(iter(self.group["text"].groups()))
        self._check_files(self._journal(f"text/{name}").records())
        strings = {key: tuple(str(s) for s in group[key][:]) for key in ("name", "template")}
        return Texts(name, strings["name"], strings["template"], self._read(f"text/{name}/features"))

    # -- shards -----------------------------------------------------------------------------------------------

    def pending(self, masks: str) -> list[int]:
        """The shards whose features or whose masks are not done."""
        return _unfinished(*self._both_records(masks))

    def records(self) -> list[Record]:
        """The records of all shards whose features are done."""
        return [record for record in self._journal("").records() if record]

    def write_shard(self, shard: int, data: Shard, masks: str) -> Record:
        """Write one shard whole and declare it done. Only one writer may hold a shard."""
        span = self.layout.span(shard)
        values: dict[str, Any] = {
            "image/size": data.size,
            "view/box": data.box,
            "view/flip": data.flip,
            "cls": data.cls,
            **{
                f"image/{key}": np.array(getattr(data, key), dtype=object)
                for key in ("content_hash", "label_hash", "status")
            },
        }
        for key, value in values.items():
            self.group[key][span] = value
        if data.dense is not None:
            self._write_dense(span, data.dense)
        ok = sum(status == OK for status in data.status)
        done = (shard, ok, len(data.status) - ok)
        self.write_masks(shard, data.label, data.count, masks, done)
        return self._journal("").commit(*done, self._chunks(shard, (*FEATURES, *self._arrays())))

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
            record = self._journal("").records()[shard]
            assert record, "masks follow features"
            done = (shard, record.ok, record.failed)
        return self._journal(f"masks/{masks}").commit(*done, self._chunks(shard, names))

    def _write_dense(self, span: slice, dense: Float16[np.ndarray, "image view y x channel"]) -> None:
        values: np.ndarray = dense
        if self.layout.dense == "int8":
            values, self.group["dense_scale"][span] = quantised(dense)
        # a view at a time: that much is assembled in memory for a shard file
        for view in range(self.layout.views):
            self.group["dense"][span, view : view + 1] = values[:, view : view + 1]

    def sweep(self) -> None:
        """Remove what a killed writer left half written. Only for whoever is the cache's one writer."""
        for file in self.path.rglob("*.partial"):
            file.unlink(missing_ok=True)

    # -- reading ----------------------------------------------------------------------------------------------

    def load(self, masks: str, shard: int | None = None) -> "Loaded":
        """What training needs, in memory: of all images, or of one shard's.

        Raises UserError if shards are unfinished, lost or damaged.
        """
        features, clustered = self._both_records(masks, shard)
        if pending := _unfinished(features, clustered):
            done = masks != MASKS and None not in features
            cure = f"run `cluster` with --name {masks} again" if done else "run the same `precompute` command again"
            missing = f"{len(pending)} of {self.layout.shards} shards are" if shard is None else f"shard {shard} is"
            raise UserError(f"{self.path}: {missing} not done; {cure} to finish them")
        self._check_files([*self._journal("image").records(), *features, *clustered])
        span = slice(None) if shard is None else self.layout.span(shard)
        return Loaded(
            ids=[str(name) for name in self._read("image/id", span)],
            digest=[(str(a), str(b)) for a, b in zip(*(self._read(name, span) for name in HASHES), strict=True)],
            ok=np.array([status == OK for status in self._read("image/status", span)]),
            box=self._read("view/box", span),
            flip=self._read("view/flip", span),
            cls=self._read("cls", span),
            label=self._read(f"masks/{masks}/label", span),
            count=self._read(f"masks/{masks}/count", span),
        )

    def require_files(self, masks: str) -> None:
        """Raise UserError if a file of the features or of a mask set is lost."""
        features, clustered = self._both_records(masks)
        self._check_files([*self._journal("image").records(), *features, *clustered])

    def dense(self, image: int) -> Float[np.ndarray, "view y x channel"]:
        """The dense tokens of an image: float16 as CLIP's were rounded, or float32 from int8 and its scales."""
        try:
            values = self.group["dense"][image]
            if self.layout.dense != "int8":
                return values
            return values.astype(np.float32) * self.group["dense_scale"][image][..., None]
        except (ValueError, RuntimeError) as error:
            where = f"{self.path / 'dense'}: damaged at image {image}"
            raise UserError(f"{where} ({error}); delete the cache and run `precompute` again") from None

    def check_files(self) -> tuple[int, list[str]]:
        """Read every file that any record promises; returns how many, and what is wrong with which, or not done."""
        sets = [f"{kind}/{name}" for kind in ("masks", "text") for name, _ in self.group[kind].groups()]
        stamps, found = {}, []
        for part in ("", "image", *sets):
            try:
                records = self._journal(part).records()
            except UserError as error:
                found.append(str(error))
                continue
            if None in records:
                found.append(f"{self.path / part}: {records.count(None)} of {len(records)} shards are not done")
            stamps |= {key: stamp for record in records if record for key, stamp in record.files.items()}
        return len(stamps), found + bad_files(self.path, stamps)

    def statuses(self) -> list[tuple[str, str]]:
        """(id, status) of every image: "ok", the reason of the failure, or "" while not done."""
        self._check_files([*self._journal("image").records(), *self._journal("").records()], "image/")
        return [(str(i), str(s)) for i, s in zip(self._read("image/id"), self._read("image/status"), strict=True)]

    def counts(self, masks: str) -> Int[np.ndarray, "image view"]:
        """How many pseudo labels each view has in a mask set; 0 where it failed or is not done."""
        self._check_files(self._journal(f"masks/{masks}").records())
        return self._read(f"masks/{masks}/count")

    def bytes(self) -> dict[str, int]:
        """Bytes on disk of the three payloads."""
        arrays = {"cls": ["cls"], "dense": ["dense", "dense_scale"], "masks": ["masks"]}
        files = {part: [f for name in names for f in (self.path / name).rglob("*")] for part, names in arrays.items()}
        return {part: sum(f.stat().st_size for f in found if f.is_file()) for part, found in files.items()}

    def _read(self, name: str, span: slice = slice(None)) -> np.ndarray:
        try:
            return self.group[name][span]
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"{self.path / name}: damaged ({error}); delete the cache and run `precompute` again"
            ) from None

    def _check_files(self, records: Sequence[Record | None], below: str = "") -> None:
        if lost := missing_files(self.path, records, below):
            raise UserError(
                f"{lost[0]}: missing or truncated ({len(lost)} such files); delete the cache and run `precompute` again"
            )

    def _both_records(self, masks: str, shard: int | None = None) -> tuple[list[Record | None], list[Record | None]]:
        return self._journal("").records(shard), self._journal(f"masks/{masks}").records(shard)

    def _journal(self, part: str) -> Journal:
        return Journal(self.path, self.group[part] if part else self.group)

    def _arrays(self) -> tuple[str, ...]:
        more = {"none": (), "float16": ("dense",), "int8": ("dense", "dense_scale")}
        return ("cls", *more[self.layout.dense])

    def _chunks(self, shard: int, names: tuple[str, ...]) -> list[str]:
        views = {"dense": self.layout.views}
        indices = ((name, (shard, view, 0, 0, 0)) for name in names for view in range(views.get(name, 1)))
        return [f"{name}/c/" + "/".join(map(str, i[: self.group[name].ndim])) for name, i in indices]


def quantised(
    dense: Float16[np.ndarray, "*token channel"],
) -> tuple[Int[np.ndarray, "*token channel"], Float[np.ndarray, "*token"]]:
    """Tokens in 8 bits: each divided by a scale of its own, so that its greatest number becomes 127."""
    scale = np.abs(dense).max(axis=-1).astype(np.float32) / 127
    return np.rint(dense / np.maximum(scale, 1e-30)[..., None]).astype(np.int8), scale


def _compared(attributes: Mapping[str, Any]) -> dict[str, Any]:
    # backends give the same labels: which one did is told, and may change
    return {name: value for name, value in attributes.items() if name != "backend"}


def _unfinished(features: list[Record | None], clustered: list[Record | None]) -> list[int]:
    return [shard for shard, records in enumerate(zip(features, clustered, strict=True)) if None in records]


@dataclass(frozen=True)
class Loaded:
    """The part of a cache that training keeps in memory (about 2 KiB a view)."""

    ids: list[str]
    digest: list[tuple[str, str]]
    ok: Bool[np.ndarray, "image"]
    box: Int[np.ndarray, "image view 4"]
    flip: Bool[np.ndarray, "image view"]
    cls: Float16[np.ndarray, "image view channel"]
    label: Shaped[np.ndarray, "image view y x"]
    count: Int[np.ndarray, "image view"]
