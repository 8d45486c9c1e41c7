"""The commands that run all stages: demo, reproduce and ablate."""

from dataclasses import fields, replace
from typing import Annotated

import typer

from commands.console import bar, echo, echo_failures, echo_note, echo_warnings, show
from commands.options import Given, Json, Some, options
from experiments.ablate_config import AblateConfig
from experiments.demo_config import ALL_VARIANTS, STUDENT, DemoConfig
from experiments.presets import PRESETS
from experiments.reproduce_config import ReproduceConfig
from pipeline.config import PrecomputeConfig
from trainer.config import TrainConfig, read_config

PRECOMPUTE = ("clip", "clip_weights", "image_size", "views", "view_seed", "dense", "cache", "device")
TRAIN = (
    *("transductive", "encoder_weights", "logits", "size", "iterations", "batch_size", "loss_stride"),
    *("checkpoint_every", "seed", "workers"),
)
OF_PRESET = dict.fromkeys({**PRESETS["coco"].precompute({}), **PRESETS["coco"].train()}, "the preset's")
RESUMED = "rerun the same command to resume"


@options(Some(DemoConfig, ("out", "limit")), Some(TrainConfig, ("iterations", "seed"), STUDENT))
def demo(
    given: Given,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also evaluate without GLM, without PLM, and CLIP alone.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the whole method on synthetic scenes, offline, in minutes: precompute, train, evaluate."""
    student = replace(STUDENT, **{name: given.pop(name) for name in ("iterations", "seed") if name in given})
    config = DemoConfig(**given, student=student, variants=ALL_VARIANTS if compare else ())
    from experiments.demo import run

    report = run(config, bar(RESUMED))
    show(report.as_json() if as_json else report.lines)


@options(ReproduceConfig, Some(PrecomputeConfig, PRECOMPUTE, OF_PRESET), Some(TrainConfig, TRAIN, OF_PRESET))
def reproduce(
    given: Given,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the plan.")] = False,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Only print the plan, with hours from a measurement of some minutes (no data)."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Precompute, train and evaluate a row of the paper's tables, and print it next to the paper's."""
    own = {entry.name for entry in fields(ReproduceConfig)}
    changed = {name: value for name, value in given.items() if name not in own}
    config = ReproduceConfig(**{name: given[name] for name in given.keys() & own}, changed=changed)
    from experiments import reproduce as rows

    if dry_run or probe:
        _show_plan(config, probe, as_json)
        return
    report = rows.reproduce(config, bar(RESUMED), echo_note, echo_warnings)
    for row in report.rows:
        echo_warnings(row.evaluation.warnings)
    show(report.as_json() if as_json else report.lines)
    for row in report.rows:
        echo_failures(row.evaluation.failures)
    for row in report.rows:
        row.evaluation.check()


def _show_plan(config: ReproduceConfig, probe: bool, as_json: bool) -> None:
    from experiments.reproduce_plan import dry_run

    plan = dry_run(config, echo_note)
    report, lines = plan.as_json(), plan.lines
    if probe:
        from experiments.probe import probe as measure

        measured = measure(plan, bar("nothing was written"))
        echo_warnings(measured.warnings)
        report, lines = report | {"probe": measured.as_json()}, [*lines, "", *measured.lines]
    show(report if as_json else lines)


@options(AblateConfig, Some(TrainConfig, ("iterations",), {"iterations": "the full method's"}))
def ablate(given: Given, as_json: Json = False) -> None:
    """Train and evaluate the rows of the paper's ablation tables, and our own variants, with several seeds."""
    iterations = given.pop("iterations", None)
    config = AblateConfig(**given)
    from experiments import ablate as ablations
    from experiments.stages import StageTimer, precompute_stage

    cache = config.cache
    if cache is None:
        demo_config = DemoConfig(config.out)
        cache = precompute_stage(demo_config.precompute("train", demo_config.limit), bar(RESUMED), StageTimer())
    if config.cache or config.config:
        full = read_config(config.config, cache=cache)
    else:
        full = replace(STUDENT, cache=str(cache))
    full = replace(full, iterations=full.iterations if iterations is None else iterations)
    results = ablations.ablate(config, full, echo)
    show(results if as_json else ablations.markdown(results).split("\n"))
