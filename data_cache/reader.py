"""Read a cache: its settings, the records of its shards, and its arrays."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import zarr
from jaxtyping import Float, Int

from data_cache.arrays import SHARD_FIELDS, Owner, chunk_files, symbol_sizes
from data_cache.content import OK, CachedArrays, Texts
from data_cache.errors import UsageError, UserError
from data_cache.fingerprint import Fingerprint
from data_cache.journal import Journal, Record, missing_files
from data_cache.layout import DEFAULT_MASKS, Dense, Layout
from data_cache.limits import check_arrays, check_attributes
from data_cache.messages import did_you_mean
from data_cache.metadata import check_metadata
from data_cache.moved import ExistingStore
from data_cache.system.files import is_folder, read_errors, stat_or_none


class Cache:
    """A cache directory, opened for reading (for writing: `data_cache.writer.CacheWriter`).

    Raises UserError if `path` is not a cache of this version or its metadata was altered.
    """

    _mode: ClassVar[Literal["r", "r+"]] = "r"

    def __init__(self, path: Path) -> None:
        if not is_folder(path):
            problem = "a file, not a cache" if stat_or_none(path) else "no such cache"
            raise UserError(f"{path}: {problem}; run `precompute` first or pass --cache PATH")
        check_metadata(path)
        self.path = path
        with read_errors(path):
            # Any: zarr types every member as array or group
            self.group: Any = zarr.open_group(ExistingStore(path), mode=self._mode)
        self.attributes: Mapping[str, Any] = self.group.attrs.asdict()
        members = dict(self.group.members(max_depth=None))
        arrays = {name: node for name, node in members.items() if isinstance(node, zarr.Array)}
        groups = [name for name in members if name.startswith("masks/") and name not in arrays]
        sets = {name.removeprefix("masks/"): members[name].attrs.asdict() for name in groups}
        if not {"cls", "journal", f"masks/{DEFAULT_MASKS}/label"} <= arrays.keys():
            raise UserError(f"{path}: lacks arrays that every cache has; it is not trusted")
        check_arrays(path, arrays, sets)
        self.layout = Layout.of(arrays)
        check_attributes(path, self.attributes, sets)
        self._layouts = {"": self.layout, **{f"masks/{name}": self.layout.of_masks(s) for name, s in sets.items()}}

    @property
    def fingerprint(self) -> Fingerprint:
        """All settings that change the numbers in this cache."""
        return self.attributes["fingerprint"]

    # -- mask sets and text features ---------------------------------------------------------------------------

    @property
    def masks(self) -> list[str]:
        """The names of the mask sets."""
        return sorted(name for name, _ in self.group["masks"].groups())

    def mask_name(self, name: str | None) -> str:
        """The name itself, or that of stage 1's mask set if None. Raises UsageError for an unknown name."""
        if name is None:
            return DEFAULT_MASKS
        if name not in self.masks:
            known = f"{', '.join(self.masks)}{did_you_mean(name, self.masks)}"
            raise UsageError(f"{self.path}: no mask set named {name!r}; pass --masks with one of: {known}")
        return name

    def mask_attributes(self, name: str) -> dict[str, Any]:
        """Settings of a mask set: unseen classes, threshold (lambda), windows, updates, backend, dtype, tokens."""
        return self.group[f"masks/{name}"].attrs.asdict()

    def mask_layout(self, name: str) -> Layout:
        """The sizes of the arrays of a mask set; `dense` is how it stores tokens of a model of its own."""
        return self._layouts[f"masks/{name}"]

    def tokens_owner(self, masks: str) -> str:
        """The mask set whose model's tokens a mask set is clustered from, such as itself; "" for CLIP's tokens."""
        tokens = self.mask_attributes(masks).get("tokens")
        return tokens.get("masks", masks) if tokens else ""

    def tokens_part(self, masks: str) -> str:
        """The part of the cache that has the tokens of a mask set: "" for CLIP's, else that of their owner."""
        owner = self.tokens_owner(masks)
        return f"masks/{owner}" if owner else ""

    def tokens_model(self, masks: str) -> Mapping[str, Any]:
        """The fingerprint of the model whose tokens a mask set is clustered from: CLIP's, or that of another model."""
        part = self.tokens_part(masks)
        return self.group[part].attrs["tokens"]["model"] if part else self.fingerprint["clip"]

    def mask_recipe(self, masks: str) -> dict[str, Any]:
        """What a checkpoint records of a mask set: its settings and its model, but not where that was loaded from."""
        recipe = {
            name: value for name, value in self.mask_attributes(masks).items() if name not in ("tokens", "origin")
        }
        if self.tokens_part(masks):
            recipe["tokens"] = {"grid": list(self.mask_layout(masks).grid), "model": self.tokens_model(masks)}
        return recipe

    def dense_stored(self, masks: str = DEFAULT_MASKS) -> Dense:
        """How the tokens that a mask set is clustered from are stored."""
        return self._layouts[self.tokens_part(masks)].dense

    @property
    def texts_name(self) -> str:
        """The name of the text features: that of their prompts."""
        return next(name for name, _ in self.group["text"].groups())

    def texts(self) -> Texts:
        """The text features, of which a cache has one set."""
        name = self.texts_name
        self._check_present(self.journal(f"text/{name}").records())
        strings = {key: tuple(str(s) for s in self.read(f"text/{name}/{key}")) for key in ("name", "template")}
        return Texts(name, strings["name"], strings["template"], self.read(f"text/{name}/features"))

    # -- records of shards -------------------------------------------------------------------------------------

    def journal(self, part: str) -> Journal:
        """The journal of a group: of the features (""), a mask set, the image names ("image") or the texts."""
        return Journal(self.path, self.group[part] if part else self.group)

    def records(self) -> list[Record]:
        """The records of all shards whose features are done."""
        return [record for record in self.journal("").records() if record]

    def complete_records(self, part: str, shard: int | None = None) -> list[Record | None]:
        """The records of a part, or of one of its shards; None for a shard that is not done or has grown since."""
        shards = range(self.layout.shards) if shard is None else [shard]
        counts = [self.layout.images_in([shard]) for shard in shards]
        records = self.journal(part).records() if shard is None else [self.journal(part).record(shard)]
        for record in filter(None, records):
            self.check_record(record, part)
        return [r if r and r.ok + r.failed == n else None for r, n in zip(records, counts, strict=True)]

    def check_record(self, record: Record, part: str) -> None:
        """Raise UserError unless a record lists exactly the files of its shard: others would not be verified."""
        if record.files.keys() != set(self._chunk_files(record.shard, part)):
            raise UserError(
                f"{self.path / part / 'journal'}: a damaged journal record (of shard {record.shard}: names other "
                "files); `verify --repair` repairs it"
            )

    def check_files(self, masks: str) -> None:
        """Raise UserError if a file of the features or of a mask set is missing or truncated."""
        features, clustered = self._records_with_masks(masks)
        self._check_present([*self.journal("image").records(), *features, *clustered])

    def check_dense(self, masks: str = DEFAULT_MASKS) -> None:
        """Raise UserError if the tokens of a mask set, by default CLIP's, are not stored."""
        if self.dense_stored(masks) != "none":
            return
        if not (part := self.tokens_part(masks)):
            raise UserError(f"{self.path}: holds no dense tokens; run `precompute` with --dense float16 or int8")
        raise UserError(
            f"{self.path / part}: holds no dense tokens; run `precompute` with --masks-dense float16 or int8 and "
            "another --masks-name"
        )

    def check_done(self, masks: str, shard: int | None = None) -> None:
        """Raise UserError if shards, or this one, are unfinished, or a file of theirs is missing or truncated."""
        features, clustered = self._records_with_masks(masks, shard)
        if pending := sum(None in both for both in zip(features, clustered, strict=True)):
            fix = "rerun the same `precompute` command"
            if masks != DEFAULT_MASKS and None not in features:
                own = self.tokens_owner(masks) == masks
                options = f"--masks-from and --masks-name {masks}" if own else f"--name {masks}"
                fix = f"rerun `{'precompute' if own else 'cluster'}` with {options}"
            unfinished = f"{pending} of {self.layout.shards} shards are" if shard is None else f"shard {shard} is"
            raise UserError(f"{self.path}: {unfinished} not done; {fix} to finish")
        self._check_present([*features, *clustered])

    def pending_shards(self, masks: str) -> list[int]:
        """The shards that have grown or whose features or masks are not done."""
        return [i for i, both in enumerate(zip(*self._records_with_masks(masks), strict=True)) if None in both]

    def failed_shards(self) -> list[int]:
        """The shards in which an image failed."""
        return [record.shard for record in self.records() if record.failed]

    # -- arrays ------------------------------------------------------------------------------------------------

    def load(self, masks: str, shard: int | None = None) -> CachedArrays:
        """What training needs, in memory: of all images, or of one shard.

        Raises UserError if shards are unfinished, missing or damaged.
        """
        self.check_done(masks, shard)
        span = slice(None) if shard is None else self.layout.span(shard)
        return CachedArrays(
            ids=self.ids(span),
            digest=self.digests(span),
            ok=np.array([status == OK for status in self.read("image/status", span)]),
            box=self.read("view/box", span),
            flip=self.read("view/flip", span),
            cls=self.read("cls", span),
            label=self.read(f"masks/{masks}/label", span),
            count=self.read(f"masks/{masks}/count", span),
        )

    def read_fields(self, shard: int, fields: Iterable[str]) -> dict[str, Any]:
        """Fields of a shard (`data_cache.arrays.SHARD_FIELDS`), masks from stage 1's set; strings as lists."""
        span, values = self.layout.span(shard), {}
        for name in fields:
            array = self.read(SHARD_FIELDS[name].path(DEFAULT_MASKS), span)
            values[name] = [str(text) for text in array] if SHARD_FIELDS[name].dtype == "string" else array
        return values

    def label_counts(self, masks: str) -> Int[np.ndarray, "image view"]:
        """Number of pseudo labels per view in a mask set; 0 if the image failed or is not done."""
        self._check_present(self.journal(f"masks/{masks}").records())
        return self.read(f"masks/{masks}/count")

    def ids(self, span: slice = slice(None)) -> list[str]:
        """The ids of images, in the order of every array."""
        shards = range((span.start or 0) // self.layout.shard, self.layout.shards)
        if span.stop is not None:
            shards = range(shards.start, -(-span.stop // self.layout.shard))
        # only the files of these images: a caller that iterates over shards must not stat every file each time
        self._check_present([self._names.subset([f"image/id/c/{shard}" for shard in shards])] if self._names else [])
        return [str(name) for name in self.read("image/id", span)]

    @cached_property
    def _names(self) -> Record | None:
        return self.journal("image").record(0)

    def digests(self, span: slice = slice(None)) -> list[tuple[str, str]]:
        """(image hash, label hash) of images; both empty if the image failed. Only valid in finished shards."""
        hashes = (self.read(f"image/{name}", span) for name in ("content_hash", "label_hash"))
        return [(str(content), str(label)) for content, label in zip(*hashes, strict=True)]

    def statuses(self) -> list[tuple[str, str]]:
        """(id, status) of every image: "ok", the reason for its failure, or "" while it is not done."""
        self._check_present(self.journal("").records(), "image/")
        return [(name, str(status)) for name, status in zip(self.ids(), self.read("image/status"), strict=True)]

    def dense(self, image: int, masks: str = DEFAULT_MASKS) -> Float[np.ndarray, "view y x channel"]:
        """The dense tokens of an image, by default CLIP's: rounded to float16, or float32 dequantized from int8."""
        part = self.tokens_part(masks)
        path, group = self.path / part / "dense", self.group[part] if part else self.group
        try:
            with read_errors(path):
                values = group["dense"][image]
                if self.dense_stored(masks) != "int8":
                    return values
                return values.astype(np.float32) * group["dense_scale"][image][..., None]
        except (ValueError, RuntimeError) as error:
            where = f"{path}: damaged at image {image}"
            raise UserError(f"{where} ({error}); `verify --repair` repairs it") from None

    def read(self, name: str, span: slice = slice(None)) -> np.ndarray:
        """An array by name, or its rows in `span`. Raises UserError if it is damaged."""
        try:
            with read_errors(self.path / name):
                return self.group[name][span]
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{self.path / name}: damaged ({error}); `verify --repair` repairs it") from None

    def _check_present(self, records: Sequence[Record | None], below: str = "") -> None:
        if missing := missing_files(self.path, records, below):
            raise UserError(
                f"{missing[0]}: missing or truncated ({len(missing)} such files); `verify --repair` repairs it"
            )

    def _records_with_masks(
        self, masks: str, shard: int | None = None
    ) -> tuple[list[Record | None], list[Record | None]]:
        return self.complete_records("", shard), self.complete_records(f"masks/{masks}", shard)

    def _chunk_files(self, shard: int, part: str) -> list[str]:
        """The chunk files that a shard's record lists, for the features ("") or a mask set."""
        owner: Owner = "masks" if part else "features"
        layout = self._layouts[part]
        return chunk_files(owner, layout, symbol_sizes(layout), part.removeprefix("masks/"), shard)
