"""Settings of `ablate`: the rows of the paper's ablation tables, and our own variants."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_cache.options import check_choice, option, same_option
from data_cache.paths import RUNS
from experiments.config import CheckedConfig
from pipeline.config import PrecomputeConfig

FULL, DOT = "full", "logits-dot"
"""The full method with cosine logits, and with the plain product of eq. 9 as printed."""


@dataclass(frozen=True)
class Variant:
    """The settings in which a row differs from the full method.

    Args:
        table: the paper's table, or `ours`.
        train: training settings.
        cluster: clustering settings; masks are then recomputed from the cached dense tokens.
        paper: the row of the paper's tables that it repeats, if any.
        baseline: the row that it is compared with.

    """

    table: str
    train: Mapping[str, Any] = field(default_factory=dict)
    cluster: Mapping[str, Any] = field(default_factory=dict)
    paper: str | None = None
    baseline: str = FULL


_TABLES: Mapping[str, Variant] = {
    "no-nel": Variant("Table 3", {"nel": False}),
    "no-ce": Variant("Table 3", {"ce": False}),
    "no-glm": Variant("Table 3", {"glm": "off"}),
    "no-generate": Variant("Table 3", {"generate": False}),
    "glm-max": Variant("Table 4", {"glm": "max"}),
    "glm-mean": Variant("Table 4", {"glm": "mean"}),
    "vla-mlp": Variant("Table 5", {"vla": "mlp"}),
    "vla-identity": Variant("Table 5", {"vla": "identity"}),
}
VARIANTS: Mapping[str, Variant] = {
    FULL: Variant("full method", paper=FULL),
    **{row: replace(variant, paper=row) for row, variant in _TABLES.items()},
    DOT: Variant("full method", {"logits": "dot"}, paper=FULL),
    **{
        f"{row}-dot": replace(variant, train={**variant.train, "logits": "dot"}, paper=row, baseline=DOT)
        for row, variant in _TABLES.items()
    },
    "pseudo-scope-image": Variant("ours", {"pseudo_scope": "image"}),
    "nel-masked": Variant("ours", {"nel_ignore": "masked"}),
    "loss-stride-1": Variant("ours", {"loss_stride": 1}),
    "loss-stride-4": Variant("ours", {"loss_stride": 4}),
    "bank-0": Variant("ours", {"bank": 0}),
    "bank-4": Variant("ours", {"bank": 4}),
    "weight-global-1": Variant("ours", {"weight_global": 1.0}),
    "lambda-0.7": Variant("ours", cluster={"threshold": 0.7}),
    "lambda-0.9": Variant("ours", cluster={"threshold": 0.9}),
    "windows-3": Variant("ours", cluster={"windows": (3,)}),
    "windows-7": Variant("ours", cluster={"windows": (7,)}),
}


@dataclass(frozen=True)
class AblateConfig(CheckedConfig):
    """Settings of `ablate`."""

    cache: Path | None = option(None, "A cache with dense tokens; the demo's by default.")
    root: Path | None = same_option(PrecomputeConfig, "root")
    config: Path | None = option(
        None, "The full method's config.json; by default the demo's settings, or with --cache those of `train`."
    )
    start: Path | None = option(
        None, "Students begin from the encoder of this run, or from an encoder's state dict; by default as configured."
    )
    rows: str | None = option(
        None, "Rows to run; by default all, and of those ending in -dot only logits-dot.", metavar="ROW,..."
    )
    seeds: int = option(3, "Runs per row, with seeds 0, 1, ...", minimum=1)
    tested: int | None = option(None, "Only the first N test images.")
    jobs: int = option(1, "Parallel trainings, one thread each.", minimum=1)
    out: Path = option(RUNS / "ablate", "Folder of all runs.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for row in self.names:
            check_choice("--rows", row, VARIANTS)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the rows, keys of `VARIANTS`."""
        if self.rows is None:
            return tuple(row for row, variant in VARIANTS.items() if variant.baseline == FULL)
        return tuple(row.strip() for row in self.rows.split(","))
