"""The commands of the two stages: precompute, train and evaluate."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from commands.console import bar, echo, echo_failures, echo_note, echo_plan, echo_warnings, progress, show
from commands.options import Given, Json, Preset, Some, Student, options
from data_cache.options import default_of
from data_cache.paths import only_cache, run_folder
from experiments.config import EvaluateConfig
from experiments.presets import PRESETS, cache_of, train_options
from experiments.reproduce_config import ReproduceConfig
from pipeline.config import PrecomputeConfig
from trainer.config import TrainConfig, read_config

TRAINING = (
    *("cache", "root", "masks", "arch", "encoder", "encoder_weights", "size", "iterations", "batch_size", "lr"),
    *("seed", "device", "devices", "workers", "glm", "vla", "ce", "nel", "generate", "loss_stride"),
)
"""The training settings that are options; config.json has all of them."""


@options(PrecomputeConfig, Some(ReproduceConfig, ("max_failures",)))
def precompute(given: Given, preset: Preset = None, as_json: Json = False) -> None:
    """Run CLIP once per view of each image and cache its features. Rerun the command to resume unfinished shards."""
    max_failures = given.pop("max_failures", default_of(ReproduceConfig, "max_failures"))
    config = PrecomputeConfig(**(PRESETS[preset].precompute(given) if preset else given))
    from pipeline.plan import plan
    from pipeline.precompute import execute
    from pipeline.teacher.weights import RANDOM

    if preset:
        echo(f"preset {preset}: {config}")
    if config.clip_weights == RANDOM:
        echo_warnings(["random CLIP weights: masks, and students trained on them, are meaningless"])
    work = plan(config, echo)
    echo_plan(work)
    with progress("encoding", work.images, "images", "finished shards are kept, rerun to resume") as advance:
        summary = execute(work, advance, echo)
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in summary.stages.items())
    stages = f"; summed over threads: {stages}" if stages else ""
    rate = summary.encoded / summary.seconds
    echo(f"{summary.encoded} images in {summary.seconds:.1f} s ({rate:.2f} images/s{stages})")
    warnings = summary.survey.warnings(work.texts.classes)
    echo_warnings(warnings)
    report = {
        "cache": str(summary.cache),
        "images": summary.images,
        "done": summary.images - len(summary.failures),
        "labelled": work.labelled,
        "failed": len(summary.failures),
        "failures": dict(summary.failures),
        "encoded": summary.encoded,
        "seconds": summary.seconds,
        "stages": summary.stages,
        "warnings": [*work.texts.warnings, *warnings],
    }
    show(report if as_json else f"{summary.cache}: {report['done']} of {summary.images} images cached")
    echo_failures(dict(summary.failures))
    summary.check(max_failures)


@options(Some(TrainConfig, TRAINING))
def train(
    given: Given,
    preset: Preset = None,
    student: Student = None,
    config: Annotated[Path | None, typer.Option(help="A config.json to start from; options override it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/<name of the cache> by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the newest checkpoint in --out.")] = False,
    online: Annotated[
        bool, typer.Option("--online", help="Run CLIP and clustering for each batch instead of reading the cache.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Compare all images with the cache before training.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a student from a cache. All settings are printed and saved in config.json, which --config reads."""
    settings = _training(train_options(preset, student) | given, preset, config, out, resume)
    from data_cache.reader import Cache
    from experiments.stages import live_for, updates
    from trainer.loop import train as run

    out = out or run_folder(Path(settings.cache or ""))
    echo_warnings(Cache(Path(settings.cache or "")).texts().warnings)
    echo(" ".join(f"{name}={value}" for name, value in asdict(settings).items()))
    echo(f"run {out}, warm-up {settings.warmup_updates} updates")
    with progress("training", settings.iterations, "images", "the newest checkpoint, if any, is kept") as advance:
        teacher = live_for(settings) if online else None
        last = run(settings, out, resume, strict, updates(advance, settings), teacher, echo)
    peak = f"{last['peak_bytes'] / 2**30:.2f} GiB at peak"
    show({"out": str(out), **last} if as_json else f"{out}: trained {settings.iterations} updates, {peak}")


def _training(
    given: dict[str, Any], preset: str | None, config: Path | None, out: Path | None, resume: bool
) -> TrainConfig:
    """The training settings from options, config file and preset, with the cache filled in."""
    cache = Path(given["cache"]) if "cache" in given else None
    if resume and config is None:
        from trainer.run import run_config

        settings = run_config(out or run_folder(cache or only_cache()), echo, **given)
    else:
        settings = read_config(config, **given)
    if settings.cache is None:
        return replace(settings, cache=str(cache_of(preset) if preset else only_cache()))
    return settings


@options(EvaluateConfig)
def evaluate(given: Given, preset: Preset = None, as_json: Json = False) -> None:
    """Evaluate a student on any dataset: pAcc, mIoU(S), mIoU(U) and hIoU."""
    config = EvaluateConfig(**((PRESETS[preset].evaluate if preset else {}) | given))
    if preset:
        echo(f"preset {preset}: {config}")
    from experiments.evaluation import evaluate_checkpoint

    report = evaluate_checkpoint(config, bar("nothing was written"), echo_note)
    echo_warnings(report.warnings)
    show(report.as_json() if as_json else report.lines)
    echo_failures(report.evaluation.failures)
    report.evaluation.check()
