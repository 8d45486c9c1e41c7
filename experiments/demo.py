"""The demo: the whole method on the drawn world with the tiny CLIP, in minutes, and the proof that it works."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_cache.datasets import open_dataset
from data_cache.errors import InterruptError, UserError
from data_cache.splits import Split
from data_cache.views import Cropping
from experiments.dense_clip import DenseCLIP
from experiments.sheet import demo_figure
from experiments.stages import Clock, Progress, cached, measured, trained
from pipeline.precompute import Settings, load_clip
from pipeline.weights import TINY, CLIPSource
from trainer.config import TrainConfig
from trainer.evaluate import GAMMA, Predictor, Segments
from trainer.metrics import Metrics

SCENES = "scenes"
CLIP = CLIPSource(TINY)
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
its weight (docs/decisions.md)."""
FULL = "clipteacher"
WITHOUT_GLM, WITHOUT_PLM, DENSE_CLIP = "without GLM", "without PLM", "CLIP alone"
SWITCHES: Mapping[str, Mapping[str, Any]] = {
    FULL: {},
    WITHOUT_GLM: {"glm": "off"},
    WITHOUT_PLM: {"ce": False, "nel": False, "generate": False},
}
ALL_VARIANTS = (WITHOUT_GLM, WITHOUT_PLM, DENSE_CLIP)
SHOWN = 24


@dataclass(frozen=True)
class Demo:
    """What the demo is to do.

    Args:
        out: folder of caches, runs and the picture.
        student: settings of training; the cache is set by the demo.
        images: training scenes.
        views: of each of them; tests see whole scenes.
        tested: test scenes.
        variants: what to compare with, of `ALL_VARIANTS`.

    """

    out: Path
    student: TrainConfig = STUDENT
    images: int = 2000
    views: int = 1
    tested: int = 200
    variants: Sequence[str] = ()

    def settings(self, split: str, images: int) -> Settings:
        """How a split of the scenes is cached."""
        cropping = Cropping(self.views if split == "train" else 1)
        return Settings(
            SCENES,
            self.out / f"{split}.zarr",
            split=split,
            clip=CLIP,
            precision="fp32",
            limit=images,
            cropping=cropping,
        )

    def run(self, variant: str) -> Path:
        """Where a student is trained: students of several seeds share a cache."""
        return self.out / f"{variant.replace(' ', '_')}_{self.student.seed}"


@dataclass(frozen=True)
class Report:
    """What came out. Seconds are those of this call."""

    metrics: Metrics
    seconds: Mapping[str, float]
    split: Split
    run: Path
    picture: Path
    compared: Mapping[str, Metrics] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints: metrics as `evaluate` prints them, and seconds a stage."""
        compared = {name: found.as_json(_gamma(name), self.split.classes) for name, found in self.compared.items()}
        return {
            "metrics": self.metrics.as_json(GAMMA, self.split.classes),
            "seconds": dict(self.seconds),
            **({"compared": compared} if compared else {}),
            "picture": str(self.picture),
        }

    def __str__(self) -> str:
        """A table, where to look, and the commands to go on with."""
        lines = ["%".ljust(14) + "".join(f"{name:>9}" for name in (*Metrics.COLUMNS.values(), "gamma"))]
        for name, found in {FULL: self.metrics, **self.compared}.items():
            figures = "".join(f"{100 * value:9.1f}" for value in found.summary.values())
            lines.append(f"{name:14}{figures}{_gamma(name):9g}")
        seconds = ", ".join(f"{stage} {value:.0f} s" for stage, value in self.seconds.items())
        lines += [
            f"{seconds}; U: {', '.join(self.split.unseen)}",
            f"look at {self.picture}, and go on with",
            *self.next,
        ]
        return "\n".join(lines)

    @property
    def next(self) -> tuple[str, ...]:
        """Commands to go on with."""
        config, cache = (
            shlex.quote(str(path)) for path in (self.run / "config.json", self.picture.parent / "train.zarr")
        )
        return (
            f"  python cli.py info {cache}",
            f"  python cli.py train --config {config} --iterations 2000 --out runs/longer",
            "  python cli.py evaluate runs/longer --dataset scenes",
            f"  python cli.py report {shlex.quote(str(self.run))}",
            '  python cli.py precompute --dataset folder --root DIR --unseen "NAME,NAME"',
        )


def run(demo: Demo, progress: Progress) -> Report:
    """Precompute, train, evaluate, draw. Interrupted, it goes on where it was.

    Raises UserError if `out` holds a demo with other settings, or cannot be written.
    """
    clock = Clock()
    with _same_demo(demo.out):
        cache = cached(demo.settings("train", demo.images), progress, clock)
        # the picture shows scenes the student never saw, so they need a cache of their own
        shown = cached(demo.settings("val", min(SHOWN, demo.tested)), progress, Clock())
        students = {
            name: trained(
                replace(demo.student, cache=str(cache), **switches),
                demo.run(name),
                progress,
                clock if name == FULL else Clock(),
            )
            for name, switches in SWITCHES.items()
            if name in (FULL, *demo.variants)
        }
    images = open_dataset(SCENES, None, "val", demo.tested)
    segmenters: dict[str, Segments] = {name: Predictor(student) for name, student in students.items()}
    if DENSE_CLIP in demo.variants:
        segmenters[DENSE_CLIP] = DenseCLIP(load_clip(CLIP, "fp32", "cpu"), students[FULL].split, SCENES)
    found = {
        name: measured(segmenter, images, [_gamma(name)], progress, clock if name == FULL else Clock()).at(_gamma(name))
        for name, segmenter in segmenters.items()
    }
    picture = demo.out / "sheet.png"
    demo_figure(Predictor(students[FULL]), shown).draw().save(picture)
    return Report(found.pop(FULL), clock.seconds, students[FULL].split, demo.run(FULL), picture, found)


@contextmanager
def _same_demo(out: Path) -> Iterator[None]:
    there = out.exists()
    try:
        yield
    except InterruptError:
        raise
    except UserError as error:
        if not there:
            raise
        raise type(error)(f"{error} (if {out} holds another demo, delete it or pass another --out)") from None


def _gamma(name: str) -> float:
    # gamma answers a student's bias towards the classes it had labels for; CLIP alone has none
    return 0.0 if name == DENSE_CLIP else GAMMA
