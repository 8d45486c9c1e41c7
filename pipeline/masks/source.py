"""Where a vision model comes from whose tokens are clustered: a name in timm, or a folder of timm's form."""

import json
import re
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_cache.errors import UsageError, UserError, one_line
from data_cache.limits import read_json
from data_cache.messages import did_you_mean
from data_cache.system.downloads import hub_downloads
from data_cache.system.process_state import quiet_logging, seeded
from pipeline.teacher.weights import RANDOM, RANDOM_SEED

if TYPE_CHECKING:
    from torch import nn

TIMM = "timm:"
CONFIG = "config.json"


@dataclass(frozen=True)
class ModelSource:
    """Names a vision model completely.

    Args:
        spec: `timm:NAME[.TAG]` for weights that timm has published, `timm:NAME[.TAG]@FILE` for weights in a file
            (`random` for untrained ones, with a fixed seed), or the path of a folder with `config.json` and weights, as
            in timm's repositories on the Hugging Face Hub.

    """

    spec: str

    @property
    def name(self) -> str:
        """Name of the architecture in timm, and the tag of its weights if it has one."""
        if self.spec.startswith(TIMM):
            return self.spec.removeprefix(TIMM).partition("@")[0]
        tag = self._config.get("pretrained_cfg", {}).get("tag")
        return self._config["architecture"] + (f".{tag}" if tag else "")

    @property
    def mask_name(self) -> str:
        """The name of its mask set, unless the user chooses one: that of the architecture."""
        return re.sub(r"\W", "_", self.name.partition(".")[0])[:60]

    @property
    def is_random(self) -> bool:
        """Whether the weights are untrained."""
        return self._weights == RANDOM

    @property
    def origin(self) -> str:
        """The spec that loads the same model from any working directory."""
        if not self.spec.startswith(TIMM):
            return str(Path(self.spec).absolute())
        return f"{TIMM}{self.name}@{Path(self._weights).absolute()}" if self._is_file else self.spec

    def check(self) -> None:
        """Raise UsageError for a folder or a file that does not exist, without importing timm."""
        if not self.name:
            raise UsageError(f"--masks-from {self.spec}: names no model; pass timm:NAME or a folder")
        if self.spec.startswith(TIMM) and self.spec.endswith("@"):
            raise UsageError(f"--masks-from {self.spec}: names no weights after @; pass a file, or omit the @")
        if self._is_file and not Path(self._weights).is_file():
            raise UsageError(f"--masks-from {self.spec}: no file {self._weights}")

    def resolved(self) -> "ModelSource":
        """The same source with the tag that no tag stands for: another version of timm may have another default.

        Raises UsageError if timm has no such model or weights.
        """
        import timm

        self.check()
        architecture, _, tag = self.name.partition(".")
        if not timm.is_model(architecture):
            nearest = did_you_mean(architecture, timm.list_models())
            raise UsageError(f"--masks-from {self.spec}: timm has no model named {architecture!r}{nearest}")
        if not self._is_published:
            return self
        published = (name.partition(".") for name in timm.list_pretrained(f"{architecture}*"))
        tags = [tag for name, _, tag in published if name == architecture]
        if not tags:
            raise UsageError(f"--masks-from {self.spec}: timm has no weights for it; pass {self.spec}@FILE")
        if tag and tag not in tags:
            raise UsageError(f"--masks-from {self.spec}: timm has no weights named {tag!r}; choose {', '.join(tags)}")
        default = timm.get_pretrained_cfg(architecture).tag
        return self if tag or not default else ModelSource(f"{self.spec}.{default}")

    def load(self) -> "nn.Module":
        """The model in float32 on the CPU, without a classifier. Raises UsageError or UserError in one line."""
        import timm

        tagged, published = self.resolved().name, self._is_published
        name = tagged if self.spec.startswith(TIMM) else f"local-dir:{self.spec}"
        file = {"file": self._weights} if self._is_file else None
        with (
            quiet_logging(),
            hub_downloads() if published else nullcontext("") as offline,
            seeded(RANDOM_SEED),
        ):
            try:
                return timm.create_model(name, not self.is_random, pretrained_cfg_overlay=file, num_classes=0)
            except Exception as error:
                reason = offline or one_line(error, 300)
                elsewhere = (
                    f"; on another machine, download all files of https://huggingface.co/timm/{tagged}, and pass "
                    "their folder as --masks-from FOLDER"
                )
                problem = f"does not load ({reason}){elsewhere if published else ''}"
                raise UserError(f"--masks-from {self.spec}: {problem}") from None

    @property
    def _is_published(self) -> bool:
        return self.spec.startswith(TIMM) and not self._weights

    @property
    def _weights(self) -> str:
        """What follows `@`: a file, or `random`; empty for published weights and for a folder."""
        return self.spec.partition("@")[2] if self.spec.startswith(TIMM) else ""

    @property
    def _is_file(self) -> bool:
        return self._weights not in ("", RANDOM)

    @cached_property
    def _config(self) -> dict[str, Any]:
        file = Path(self.spec) / CONFIG
        try:
            config = read_json(file)
            if isinstance(config["architecture"], str) and isinstance(config.get("pretrained_cfg", {}), dict):
                return config
            problem = "is not that of a timm model"
        except OSError:
            problem = f"cannot be read; pass timm:NAME, or a folder with {CONFIG} and weights"
        except (ValueError, KeyError, TypeError, json.JSONDecodeError):
            problem = "is not that of a timm model"
        raise UsageError(f"--masks-from {self.spec}: {CONFIG} {problem}")
