"""The paper's settings by name, as options of `precompute`, `train` and `evaluate`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from data_cache.paths import cache_folder

STUDENTS: Mapping[str, Mapping[str, Any]] = {
    "segformer-b4": {"arch": "segformer", "encoder": "mit_b4"},
    # mmsegmentation trains Swin with one learning rate for encoder and head
    "swin-b": {"arch": "upernet", "encoder": "tu-swin_base_patch4_window7_224.ms_in1k", "head_lr": 1.0},
    "segnext-b": {"arch": "segnext", "encoder": "mscan_b"},
    "segformer-b0": {"arch": "segformer", "encoder": "mit_b0"},
}
"""The paper's three students and that of its ablations. Swin's decoder and SegNeXt's size are our reading."""

READINGS: Mapping[str, str] = {"dot": "the plain product as printed", "cosine": "cosine / tau"}
"""The two readings of eq. 9, by the name of the logits."""
TEACHER: Mapping[str, Any] = {
    "clip": "ViT-B-16-quickgelu",
    "clip_weights": "openai",
    "image_size": 512,
    # training reads only CLS tokens and masks; COCO's dense tokens would take 116 GiB
    "dense": "none",
    "views": 4,
}
_TRAINING = {
    "size": 512,
    "batch_size": 16,
    "lr": 6e-5,
    "head_lr": 10.0,
    "weight_decay": 0.01,
    "warmup": 1500,
    "poly_power": 1.0,
    "bank": 24,
    "tau": 0.07,
    "logits": "dot",  # eq. 9 as printed, for which gamma 1.5 was chosen
    "encoder_weights": "imagenet",
}
_EVALUATION = {"split": "val", "sliding": False}


@dataclass(frozen=True)
class Preset:
    """The settings of one benchmark: those that define its protocol or differ from the commands' defaults."""

    name: str
    dataset: str
    prompts: str
    iterations: int
    student: str = "segformer-b4"

    def precompute(self, changed: Mapping[str, Any]) -> dict[str, Any]:
        """Options of `precompute`, overridden by `changed`. Another CLIP uses its own default weights and size."""
        of_clip = ("clip", "clip_weights", "image_size")
        teacher = {k: v for k, v in TEACHER.items() if k not in of_clip} if "clip" in changed else TEACHER
        return {"dataset": self.dataset, "split": "train", "prompts": self.prompts, **teacher, **changed}

    def train(self, student: str | None = None) -> dict[str, Any]:
        """Options of `train` for one of `STUDENTS`, the preset's by default."""
        return {**_TRAINING, "iterations": self.iterations, **STUDENTS[student or self.student]}

    @property
    def evaluate(self) -> dict[str, Any]:
        """Options of `evaluate`. Gamma is the paper's; which one is best depends on the student."""
        return {"dataset": self.dataset, **_EVALUATION}


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("voc", "voc", "single", 20000),
        Preset("context", "context", "zegclip15", 40000),
        Preset("coco", "coco", "zegclip15", 80000),
        Preset("context-ablation", "context", "zegclip15", 20000, "segformer-b0"),
    )
}


def train_options(preset: str | None, student: str | None) -> dict[str, Any]:
    """Options of `train` for the names of a preset and a student."""
    if preset:
        return PRESETS[preset].train(student)
    return dict(STUDENTS[student]) if student else {}


def cache_of(preset: str) -> Path:
    """The cache that `precompute --preset` writes."""
    return cache_folder() / f"{PRESETS[preset].dataset}.zarr"


@cache
def paper() -> Mapping[str, Any]:
    """The paper's tables."""
    return json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
