"""The demo: the whole method on synthetic scenes with the tiny CLIP, in minutes."""

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_cache.callbacks import ProgressBar
from data_cache.datasets import open_dataset
from data_cache.errors import InterruptError, UserError
from data_cache.messages import program
from data_cache.splits import Split
from data_cache.system.atomic import atomic_write
from experiments.demo_config import DENSE_CLIP, FULL, SCENES, SWITCHES, DemoConfig
from experiments.dense_clip import DenseCLIP
from experiments.figures import demo_figure
from experiments.stages import StageTimer, evaluate_stage, precompute_stage, train_stage
from pipeline.encode_job import load_clip
from pipeline.teacher.names import TINY
from pipeline.teacher.weights import CLIPSource
from trainer.config import CONFIG, GAMMA
from trainer.metrics import Metrics
from trainer.predictor import Predictor
from trainer.segmenter import Segmenter

CLIP = CLIPSource(TINY)
SHEET_CANDIDATES = 24
"""The sheet shows test scenes chosen among this many."""


@dataclass(frozen=True)
class DemoReport:
    """The results. `seconds` has the time of each stage in this call."""

    metrics: Metrics
    seconds: Mapping[str, float]
    split: Split
    run: Path
    picture: Path
    compared: Mapping[str, Metrics] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints: metrics as `evaluate` prints them, and seconds per stage."""
        compared = {name: metrics.as_json(_gamma(name), self.split.classes) for name, metrics in self.compared.items()}
        return {
            "metrics": self.metrics.as_json(GAMMA, self.split.classes),
            "seconds": dict(self.seconds),
            **({"compared": compared} if compared else {}),
            "picture": str(self.picture),
        }

    @property
    def lines(self) -> list[str]:
        """A table of metrics, the path of the sheet, and commands to try next."""
        lines = ["%".ljust(14) + "".join(f"{name:>9}" for name in (*Metrics.COLUMNS.values(), "gamma"))]
        for name, metrics in {FULL: self.metrics, **self.compared}.items():
            figures = "".join(f"{100 * value:9.1f}" for value in metrics.summary.values())
            lines.append(f"{name:14}{figures}{_gamma(name):9g}")
        seconds = ", ".join(f"{stage} {value:.0f} s" for stage, value in self.seconds.items())
        lines += [
            f"{seconds}; U: {', '.join(self.split.unseen)}",
            f"see {self.picture}, and try next:",
            *self.next,
        ]
        return lines

    @property
    def next(self) -> tuple[str, ...]:
        """Commands to try next."""
        config, cache = (shlex.quote(str(path)) for path in (self.run / CONFIG, self.picture.parent / "train.zarr"))
        return (
            f"  {program()} info {cache}",
            f"  {program()} train --config {config} --iterations 2000 --out runs/longer",
            f"  {program()} evaluate runs/longer --dataset scenes",
            f"  {program()} report {shlex.quote(str(self.run))}",
            f'  {program()} precompute --dataset folder --root DIR --unseen "NAME,NAME"',
        )


def run(config: DemoConfig, progress_bar: ProgressBar) -> DemoReport:
    """Precompute, train, evaluate and draw the sheet. Rerun to resume.

    Raises UserError if `out` holds a demo with other settings, or cannot be written.
    """
    timer = StageTimer()
    with _hint_at_other_demo(config.out):
        cache = precompute_stage(config.precompute("train", config.limit), progress_bar, timer)
        # the sheet shows test scenes, which need a cache of their own
        candidates = min(SHEET_CANDIDATES, config.tested)
        sheet_cache = precompute_stage(config.precompute("val", candidates), progress_bar, StageTimer())
        checkpoints = {
            name: train_stage(
                replace(config.student, cache=str(cache), **switches),
                config.run(name),
                progress_bar,
                timer if name == FULL else StageTimer(),
            )
            for name, switches in SWITCHES.items()
            if name in (FULL, *config.variants)
        }
    images = open_dataset(SCENES, None, "val", config.tested)
    segmenters: dict[str, Segmenter] = {name: Predictor(checkpoint) for name, checkpoint in checkpoints.items()}
    if DENSE_CLIP in config.variants:
        segmenters[DENSE_CLIP] = DenseCLIP(load_clip(CLIP, "fp32", "cpu"), checkpoints[FULL].split, SCENES)
    metrics = {}
    for name, segmenter in segmenters.items():
        gamma, stage_timer = _gamma(name), timer if name == FULL else StageTimer()
        metrics[name] = evaluate_stage(segmenter, images, [gamma], progress_bar, stage_timer).at(gamma)
    picture = config.out / "sheet.png"
    with atomic_write(picture) as draft:
        demo_figure(Predictor(checkpoints[FULL]), sheet_cache).to_image().save(draft, "PNG")
    return DemoReport(metrics.pop(FULL), timer.seconds, checkpoints[FULL].split, config.run(FULL), picture, metrics)


@contextmanager
def _hint_at_other_demo(out: Path) -> Iterator[None]:
    existed = out.exists()
    try:
        yield
    except InterruptError:
        raise
    except UserError as error:
        if not existed:
            raise
        raise type(error)(f"{error} (if {out} holds another demo, delete it or pass another --out)") from None


def _gamma(name: str) -> float:
    # gamma corrects a student's bias towards labelled classes; CLIP alone has no such bias
    return 0.0 if name == DENSE_CLIP else GAMMA
