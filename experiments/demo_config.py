"""The settings of `demo`: its student, and the variants it compares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_cache.options import option
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
    photometric=False,  # a thing's colours say what it is
    weight_global=0.3,
    weight_focal=20.0,
    loss_stride=4,
    workers=0,  # scenes are drawn once and remembered: processes would only take the student's cores
    checkpoint_every=200,
)
"""The demo's student: from scratch, not at a pretrained one's rate, small enough for minutes, GLM at a third of
its weight (docs/decisions/method.md#settings-of-the-demo)."""
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
        out: folder of caches, runs and the picture.
        student: settings of training; the demo sets the cache.
        limit: number of training scenes.
        views: views of each training scene; test scenes are seen whole.
        tested: number of test scenes.
        variants: what to compare with, of `ALL_VARIANTS`.

    """

    out: Path = option(Path("runs/demo"), "Folder of the caches, runs and the picture.")
    student: TrainConfig = STUDENT
    limit: int = option(2000, "Training scenes.")
    views: int = 1
    tested: int = 200
    variants: Sequence[str] = ()

    def precompute(self, split: str, images: int) -> PrecomputeConfig:
        """How a split of the scenes is cached."""
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
        """Where a student is trained: students of several seeds share a cache."""
        return self.out / f"{variant.replace(' ', '_')}_{self.student.seed}"
