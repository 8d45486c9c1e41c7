"""Settings of `demo`: its student and the variants it compares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_cache.options import option
from data_cache.paths import RUNS
from pipeline.config import PrecomputeConfig
from trainer.config import TrainConfig

SCENES = "scenes"
STUDENT = TrainConfig(
    arch="segformer",
    encoder="mit_b0",
    encoder_weights="none",
    size=96,
    iterations=400,
    lr=3e-3,
    head_lr=1.0,
    max_grad_norm=1.0,
    photometric=False,  # classes are recognized by color
    weight_global=0.3,
    weight_focal=20.0,
    loss_stride=4,
    workers=0,  # scenes are drawn once and kept in memory, so workers would only compete for cores
    checkpoint_every=200,
)
"""The demo's student: trained from scratch in minutes, with a high learning rate and a third of GLM's weight
(docs/decisions/method.md#settings-of-the-demo)."""
FULL = "clipteacher"
WITHOUT_GLM, WITHOUT_PLM, DENSE_CLIP = "without GLM", "without PLM", "CLIP alone"
SWITCHES: Mapping[str, Mapping[str, Any]] = {
    FULL: {},
    WITHOUT_GLM: {"glm": "off"},
    WITHOUT_PLM: {"ce": False, "nel": False, "generate": False},
}
ALL_VARIANTS = (WITHOUT_GLM, WITHOUT_PLM, DENSE_CLIP)


@dataclass(frozen=True)
class DemoConfig:
    """Settings of `demo`.

    Args:
        out: folder of the caches, the runs and the sheet.
        student: training settings; the demo sets the cache.
        limit: number of training scenes.
        views: views per training scene; test scenes have one, the whole image.
        tested: number of test scenes.
        variants: names from `ALL_VARIANTS` to compare with.

    """

    out: Path = option(RUNS / "demo", "Folder of the caches, runs and the sheet.")
    student: TrainConfig = STUDENT
    limit: int = option(2000, "Number of training scenes.")
    views: int = 1
    tested: int = 200
    variants: Sequence[str] = ()

    def precompute(self, split: str, images: int) -> PrecomputeConfig:
        """Settings of stage 1 for the first `images` scenes of a split."""
        return PrecomputeConfig(
            SCENES,
            self.out / f"{split}.zarr",
            split=split,
            clip="tiny",
            precision="fp32",
            limit=images,
            views=self.views if split == "train" else 1,
        )

    def run(self, variant: str) -> Path:
        """The run folder of a variant. Runs of different seeds share a cache."""
        return self.out / f"{variant.replace(' ', '_')}_{self.student.seed}"
