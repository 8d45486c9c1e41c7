"""Prepares a folder of your own images: lists what it contains, converts annotations, and writes classes.txt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_cache.annotations.convert import Converted, convert
from data_cache.annotations.export import open_annotations
from data_cache.callbacks import ProgressBar
from data_cache.datasets.base import VOID
from data_cache.datasets.folder import CLASSES, has_classes, placeholder
from data_cache.datasets.folder_listing import FolderListing, list_folder
from data_cache.errors import UsageError, UserError
from data_cache.messages import program
from data_cache.system.atomic import atomic_write
from data_cache.system.files import is_folder
from experiments.config import InitConfig
from viewer.class_colors import class_colors
from viewer.palette import BLANK, mask_colors


@dataclass(frozen=True)
class InitReport:
    """What a folder contains, and what was written into it."""

    listing: FolderListing
    converted: Converted | None = None
    placeholders: int = 0
    """Number of placeholders written into classes.txt."""

    @property
    def lines(self) -> list[str]:
        """What was written, then what the folder contains."""
        file, done = self.listing.root / CLASSES, self.converted
        lines = [f"{file}: placeholders written: {self.placeholders}"] if self.placeholders else []
        if done:
            unchanged = f", unchanged: {done.unchanged}" if done.unchanged else ""
            lines.append(f"{self.listing.root / 'labels'}: label maps written: {done.written}{unchanged}")
            lines += [f"{file}: class names written: {done.classes}"] if done.classes else []
        return [*lines, *self.listing.lines]

    @property
    def skipped(self) -> dict[str, str]:
        """The annotations that were skipped, by image of the export."""
        return {
            name: "; ".join(problems) for name, problems in (self.converted.problems if self.converted else {}).items()
        }

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        wrote = {"labels": self.converted.written if self.converted else 0}
        wrote |= {"classes": self.converted.classes if self.converted else 0, "placeholders": self.placeholders}
        return {**self.listing.as_json(), "wrote": wrote, "skipped": self.skipped}

    @property
    def next_step(self) -> str:
        """What the user does next."""
        root, names = self.listing.root, self.listing.root / CLASSES
        command = f'{program()} precompute --dataset folder --root {root} --unseen "NAME,NAME"'
        if self.listing.classes:
            return command
        if names.exists():
            return f"write a class name in place of each placeholder in {names}, then run {command}"
        return f"write one class name per line into {names}, then run {command}"

    def check(self) -> None:
        """Raise UserError if there are images that cannot be used."""
        if failures := self.listing.failures:
            images = self.listing.survey.images + len(failures)
            raise UserError(f"{len(failures)} of {images} images would fail in precompute; fix or remove them")


def init(config: InitConfig, progress_bar: ProgressBar) -> InitReport:
    """Convert annotations if there are any, list a folder, and write its classes.txt if that is missing.

    Raises:
        UserError, UsageError: the folder has no images, or its files cannot be used.

    """
    root = config.folder.expanduser()
    if not is_folder(root):
        raise UserError(f"{root}: no such folder; name the folder that contains images/")
    if config.colors and not config.annotations:
        raise UsageError(f"--colors {config.colors}: also pass --from with the folder of the color-coded PNG files")
    file = root / CLASSES
    converted = _convert(config, root, progress_bar) if config.annotations else None
    overwrite = config.overwrite and not converted
    listing = list_folder(root, has_classes(root) and not overwrite, progress_bar)
    if converted or (file.exists() and not overwrite) or not listing.values:
        return InitReport(listing, converted)
    names = [placeholder(value) for value in range(max(listing.values) + 1)]
    with atomic_write(file) as draft:
        draft.write_text("\n".join(names) + "\n", encoding="utf-8")
    return InitReport(listing, None, len(names))


def _convert(config: InitConfig, root: Path, progress_bar: ProgressBar) -> Converted:
    annotations = open_annotations(config.annotations, config.colors)
    return convert(annotations, root, config.overwrite, _palette_of, progress_bar)


def _palette_of(classes: Sequence[str]) -> UInt8[np.ndarray, "256 3"]:
    """The colors of the classes, then others that are not all gray: a gray palette could mean its gray values."""
    colors = class_colors(classes)
    palette = np.resize(mask_colors(colors), (VOID + 1, 3))
    palette[: len(colors)], palette[VOID] = colors, BLANK
    return palette
