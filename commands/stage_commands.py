"""The commands of the two stages: precompute, train and evaluate."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from commands.console import echo, show
from commands.options import Given, Json, Preset, Some, Student, options
from commands.stages import run_evaluate, run_precompute, run_train
from data_cache.messages import count
from data_cache.options import default_of, described
from data_cache.paths import only_cache, run_folder
from experiments.config import EvaluateConfig
from experiments.presets import PRESETS, cache_of, train_options
from experiments.reproduce_config import ReproduceConfig
from pipeline.config import PrecomputeConfig
from trainer.config import TrainConfig, read_config

TRAINING = (
    *("cache", "root", "masks", "transductive", "arch", "encoder", "encoder_weights", "size", "iterations"),
    *("batch_size", "lr", "seed", "device", "devices", "workers", "compile", "glm", "vla", "logits", "ce", "nel"),
    *("generate", "loss_stride", "log", "log_every", "log_images", "val_every"),
)
"""The training settings that are options; config.json has all of them."""


@options(PrecomputeConfig, Some(ReproduceConfig, ("max_failures",)))
def precompute(given: Given, preset: Preset = None, as_json: Json = False) -> None:
    """Run CLIP once per view of each image and cache its features. Rerun the command to resume unfinished shards."""
    max_failures = given.pop("max_failures", default_of(ReproduceConfig, "max_failures"))
    config = PrecomputeConfig(**(PRESETS[preset].precompute(given) if preset else given))
    if preset:
        echo(f"preset {preset}: {config}")
    work, summary = run_precompute(config)
    report = {
        "cache": str(summary.cache),
        "images": summary.images,
        "done": summary.images - len(summary.failures),
        "labelled": work.labelled,
        "failed": len(summary.failures),
        "failures": dict(summary.failures),
        "encoded": summary.encoded,
        "masked": summary.masked,
        "overflowed": summary.overflowed,
        "seconds": summary.seconds,
        "stages": summary.stages,
        "warnings": [*work.warnings, *summary.survey.warnings(work.texts.classes)],
    }
    show(report if as_json else f"{summary.cache}: {report['done']} of {summary.images} images cached")
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
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Only print every setting with its value and help, as JSON.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a student from a cache. All settings are saved in config.json, which --config reads."""
    settings = _training(train_options(preset, student) | given, config, out, resume)
    if print_config:
        show(json.dumps(described(settings), indent=2).split("\n"))
        return
    if settings.cache is None:
        settings = replace(settings, cache=str(cache_of(preset) if preset else only_cache()))
    out = out or run_folder(Path(settings.cache or ""))
    last = run_train(settings, out, resume, strict, online)
    peak = f"{last['peak_bytes'] / 2**30:.2f} GiB at peak"
    show({"out": str(out), **last} if as_json else f"{out}: trained {count(settings.iterations, 'update')}, {peak}")


def _training(given: dict[str, Any], config: Path | None, out: Path | None, resume: bool) -> TrainConfig:
    """The training settings from options and config file, or those of the run that is resumed."""
    cache = Path(given["cache"]) if "cache" in given else None
    if resume and config is None:
        from trainer.run import run_config

        return run_config(out or run_folder(cache or only_cache()), echo, **given)
    return read_config(config, **given)


@options(EvaluateConfig)
def evaluate(given: Given, preset: Preset = None, as_json: Json = False) -> None:
    """Evaluate a student on any dataset: pAcc, mIoU(S), mIoU(U) and hIoU."""
    config = EvaluateConfig(**((PRESETS[preset].evaluate if preset else {}) | given))
    if preset:
        echo(f"preset {preset}: {config}")
    report = run_evaluate(config)
    show(report.as_json() if as_json else report.lines)
    report.evaluation.check()
