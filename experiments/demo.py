"""The demo: the whole method on the drawn world with the tiny CLIP, in minutes, and the proof that it works."""

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_cache.callbacks import ProgressBar
from data_cache.datasets import open_dataset
from data_cache.errors import InterruptError, UserError
from data_cache.splits import Split
from data_cache.system.atomic import atomic_write
from experiments.demo_config import DENSE_CLIP, FULL, SCENES, SWITCHES, DemoConfig
from experiments.dense_clip import DenseCLIP
from experiments.figures import demo_figure
from experiments.stages import Clock, cached, measured, trained
from pipeline.encode_job import load_clip
from pipeline.teacher.weights import TINY, CLIPSource
from trainer.config import CONFIG, GAMMA
from trainer.metrics import Metrics
from trainer.predictor import Predictor
from trainer.segmenter import Segmenter

CLIP = CLIPSource(TINY)
SHOWN = 24


@dataclass(frozen=True)
class DemoReport:
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

    @property
    def lines(self) -> list[str]:
        """A table, where to look, and the commands to continue with."""
        lines = ["%".ljust(14) + "".join(f"{name:>9}" for name in (*Metrics.COLUMNS.values(), "gamma"))]
        for name, found in {FULL: self.metrics, **self.compared}.items():
            figures = "".join(f"{100 * value:9.1f}" for value in found.summary.values())
            lines.append(f"{name:14}{figures}{_gamma(name):9g}")
        seconds = ", ".join(f"{stage} {value:.0f} s" for stage, value in self.seconds.items())
        lines += [
            f"{seconds}; U: {', '.join(self.split.unseen)}",
            f"look at {self.picture}, and continue with",
            *self.next,
        ]
        return lines

    @property
    def next(self) -> tuple[str, ...]:
        """Commands to continue with."""
        config, cache = (shlex.quote(str(path)) for path in (self.run / CONFIG, self.picture.parent / "train.zarr"))
        return (
            f"  python cli.py info {cache}",
            f"  python cli.py train --config {config} --iterations 2000 --out runs/longer",
            "  python cli.py evaluate runs/longer --dataset scenes",
            f"  python cli.py report {shlex.quote(str(self.run))}",
            '  python cli.py precompute --dataset folder --root DIR --unseen "NAME,NAME"',
        )


def run(config: DemoConfig, progress_bar: ProgressBar) -> DemoReport:
    """Precompute, train, evaluate, draw. An interrupted call resumes where it stopped.

    Raises UserError if `out` holds a demo with other settings, or cannot be written.
    """
    clock = Clock()
    with _same_demo(config.out):
        cache = cached(config.precompute("train", config.limit), progress_bar, clock)
        # the picture shows scenes the student never saw, so they need a cache of their own
        shown = cached(config.precompute("val", min(SHOWN, config.tested)), progress_bar, Clock())
        students = {
            name: trained(
                replace(config.student, cache=str(cache), **switches),
                config.run(name),
                progress_bar,
                clock if name == FULL else Clock(),
            )
            for name, switches in SWITCHES.items()
            if name in (FULL, *config.variants)
        }
    images = open_dataset(SCENES, None, "val", config.tested)
    segmenters: dict[str, Segmenter] = {name: Predictor(student) for name, student in students.items()}
    if DENSE_CLIP in config.variants:
        segmenters[DENSE_CLIP] = DenseCLIP(load_clip(CLIP, "fp32", "cpu"), students[FULL].split, SCENES)
    found = {
        name: measured(segmenter, images, [_gamma(name)], progress_bar, clock if name == FULL else Clock()).at(
            _gamma(name)
        )
        for name, segmenter in segmenters.items()
    }
    picture = config.out / "sheet.png"
    with atomic_write(picture) as draft:
        demo_figure(Predictor(students[FULL]), shown).to_image().save(draft, "PNG")
    return DemoReport(found.pop(FULL), clock.seconds, students[FULL].split, config.run(FULL), picture, found)


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
