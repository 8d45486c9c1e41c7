"""The command line: parses, calls one function, prints. `python cli.py --help`, or `clipteacher --help`."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_cache.errors import UsageError, UserError
from data_cache.places import cache_folder
from experiments.console import bar, progress, say, say_note, show
from experiments.options import (
    CACHE,
    CLIP,
    DATA,
    KNOWN,
    LOSSES,
    RUN,
    TEACHER,
    Dense,
    Device,
    ImageSize,
    Json,
    Limit,
    Preset,
    Root,
    Student,
    Weights,
    setting,
)
from trainer.config import is_setting, read_config

if TYPE_CHECKING:
    from pipeline.precompute import Plan

app = typer.Typer(
    name="clipteacher",
    help="Train zero-shot semantic segmenters from a frozen CLIP, offline (CLIPTeacher, arXiv 2310.02296).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.command()
def precompute(
    dataset: Annotated[str | None, typer.Option(help=KNOWN, rich_help_panel=DATA)] = None,
    root: Root = None,
    split: Annotated[
        str | None, typer.Option(help="train (the default), val, or another the dataset has.", rich_help_panel=DATA)
    ] = None,
    limit: Limit = None,
    unseen: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help='Classes without labels in training, as "cow,road"; the published split by default.',
            rich_help_panel=DATA,
        ),
    ] = None,
    preset: Preset = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="single, zegclip15 or maskclip85, with -clean for cleaned class names; single for voc, else "
            "zegclip15, by default.",
            rich_help_panel=TEACHER,
        ),
    ] = None,
    clip: CLIP = None,
    clip_weights: Weights = None,
    image_size: ImageSize = None,
    precision: Annotated[
        str | None, typer.Option(help="auto (the default), fp32, bf16 or fp16.", rich_help_panel=TEACHER)
    ] = None,
    kmeans: Annotated[
        str | None, typer.Option(help="auto (the default), faiss or faiss-gpu.", rich_help_panel=TEACHER)
    ] = None,
    dense: Dense = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Where; ./data_cache/<dataset>.zarr by default.", rich_help_panel=CACHE),
    ] = None,
    shard: Annotated[
        int | None, typer.Option(help="Images in a unit of work and resume; 64 by default.", rich_help_panel=CACHE)
    ] = None,
    max_failures: Annotated[
        float, typer.Option(help="Share of failed images that still counts as success.", rich_help_panel=RUN)
    ] = 0.01,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Ask CLIP once an image and cache what it says. Interrupted, it goes on where it was."""
    given = _given(locals(), "preset", "max_failures", "as_json")
    from experiments.presets import preset_named, settings_from
    from pipeline.precompute import execute, plan
    from pipeline.weights import RANDOM

    settings = settings_from(preset_named(preset).precompute(given) if preset else given)
    if preset:
        say(f"preset {preset}: {settings}")
    if settings.clip.weights == RANDOM:
        say("random CLIP weights: masks and all that is trained on them are meaningless", "warning: ", "yellow")
    work = plan(settings)
    _say_plan(work)
    with progress("encoding", work.images, "images", "finished shards are kept, the same command goes on") as advance:
        summary = execute(work, advance)
    done = summary.images - len(summary.failures)
    rate = summary.encoded / summary.seconds
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in summary.stages.items())
    say(f"{summary.encoded} images in {summary.seconds:.1f} s ({rate:.2f} images/s{': ' + stages if stages else ''})")
    report = {
        "cache": str(summary.cache),
        "images": summary.images,
        "done": done,
        "failed": len(summary.failures),
        "failures": dict(summary.failures),
        "encoded": summary.encoded,
        "seconds": summary.seconds,
        "stages": summary.stages,
    }
    show(report if as_json else f"{summary.cache}: {done} of {summary.images} images cached")
    for name, reason in summary.failures:
        say(f"{name}: {reason}", "failed ", "red")
    summary.check(max_failures)


@app.command()
def train(
    cache: Annotated[Path | None, setting("cache", DATA)] = None,
    root: Annotated[Path | None, setting("root", DATA)] = None,
    masks: Annotated[str | None, setting("masks", DATA)] = None,
    preset: Preset = None,
    student: Student = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Start from the settings of a config.json; options override it.", rich_help_panel=RUN),
    ] = None,
    arch: Annotated[str | None, setting("arch", "Student")] = None,
    encoder: Annotated[str | None, setting("encoder", "Student")] = None,
    encoder_weights: Annotated[str | None, setting("encoder_weights", "Student")] = None,
    size: Annotated[int | None, setting("size", "Student")] = None,
    iterations: Annotated[int | None, setting("iterations", RUN)] = None,
    batch_size: Annotated[int | None, setting("batch_size", RUN)] = None,
    lr: Annotated[float | None, setting("lr", RUN)] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; runs/<cache name> by default.", rich_help_panel=RUN),
    ] = None,
    seed: Annotated[int | None, setting("seed", RUN)] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.", rich_help_panel=RUN)
    ] = False,
    device: Annotated[str | None, setting("device", RUN)] = None,
    workers: Annotated[int | None, setting("workers", RUN)] = None,
    glm: Annotated[str | None, setting("glm", LOSSES)] = None,
    vla: Annotated[str | None, setting("vla", LOSSES)] = None,
    no_ce: Annotated[bool, typer.Option("--no-ce", help="Without cross-entropy.", rich_help_panel=LOSSES)] = False,
    no_nel: Annotated[bool, typer.Option("--no-nel", help="Without focal and dice.", rich_help_panel=LOSSES)] = False,
    no_generate: Annotated[
        bool, typer.Option("--no-generate", help="Without the generate loss.", rich_help_panel=LOSSES)
    ] = False,
    loss_stride: Annotated[int | None, setting("loss_stride", LOSSES)] = None,
    as_json: Json = False,
) -> None:
    """Train a student from a cache. All settings are printed and saved; config.json holds the rest of them."""
    given = {name: value for name, value in locals().items() if is_setting(name)}
    given |= {"ce": False if no_ce else None, "nel": False if no_nel else None}
    given |= {"generate": False if no_generate else None}
    given = _preset_of_student(preset, student) | {name: value for name, value in given.items() if value is not None}
    if resume and config is None:
        config = _run_folder(out, cache) / "config.json"
        if not config.is_file():
            raise UserError(f"--resume: no run in {config.parent}; pass its folder with --out, or leave --resume out")
    settings = read_config(config, **given)
    if settings.cache is None:
        settings = replace(settings, cache=str(_only_cache()))
    from trainer.loop import train as run

    out = _run_folder(out, Path(settings.cache))
    say(" ".join(f"{name}={value}" for name, value in asdict(settings).items()))
    say(f"run {out}, warm-up {settings.warmup_updates} updates")
    with progress("training", settings.iterations, "updates", "the newest checkpoint, if any, is kept") as advance:

        def tell(line: dict[str, float]) -> None:
            advance(line["step"], absolute=True, note=f"loss {line['total']:.3f}")

        last = run(settings, out, resume, tell)
    peak = f"{last['peak_bytes'] / 2**30:.2f} GiB at the most"
    show({"out": str(out), **last} if as_json else f"{out}: trained {settings.iterations} updates, {peak}")


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A run's folder, or a file in it.")],
    dataset: Annotated[str | None, typer.Option(help=KNOWN, rich_help_panel=DATA)] = None,
    root: Root = None,
    split: Annotated[
        str | None, typer.Option(help="val (the default), train, or another the dataset has.", rich_help_panel=DATA)
    ] = None,
    limit: Limit = None,
    unseen: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="What counts as unseen in a dataset of other classes than the training's; its published split by "
            "default.",
            rich_help_panel=DATA,
        ),
    ] = None,
    preset: Preset = None,
    gamma: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER,...",
            help="Added to the logits of classes without labels in training; 1.5 by default. Several in one pass.",
            rich_help_panel=RUN,
        ),
    ] = None,
    pick_gamma: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Also at the greatest gamma that costs seen classes next to nothing on the first N training images.",
            rich_help_panel=RUN,
        ),
    ] = 0,
    sliding: Annotated[
        bool | None,
        typer.Option("--sliding/--whole", help="Sliding window, or the whole image.", rich_help_panel=RUN),
    ] = None,
    clip: CLIP = None,
    clip_weights: Weights = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure pAcc, mIoU(S), mIoU(U) and hIoU of a trained student, on any dataset."""
    given = _given(locals(), "checkpoint", "preset", "as_json")
    from experiments.evaluation import Asked, measure

    asked = Asked.of(checkpoint, given, preset)
    if preset:
        say(f"preset {preset}: {asked}")
    result = measure(asked, bar("nothing was written"), say_note)
    show(result.as_json() if as_json else str(result))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where caches, runs and the picture go.", rich_help_panel=RUN)] = Path(
        "runs/demo"
    ),
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Also without GLM, without PLM, and CLIP alone.", rich_help_panel=RUN),
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Training scenes; 2000 by default.", rich_help_panel=DATA)] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Parameter updates; some minutes' worth by default.", rich_help_panel=RUN)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the student.", rich_help_panel=RUN)] = 0,
    as_json: Json = False,
) -> None:
    """Show the whole method at work on drawn scenes, offline, in minutes: precompute, train, evaluate."""
    from experiments.demo import ALL_VARIANTS, STUDENT, Demo, run

    bars = bar("the same command goes on")
    student = replace(STUDENT, seed=seed, iterations=STUDENT.iterations if iterations is None else iterations)
    images = Demo.images if limit is None else limit
    report = run(Demo(out, student, images, variants=ALL_VARIANTS if compare else ()), bars)
    show(report.as_json() if as_json else str(report))


@app.command()
def reproduce(
    benchmark: Annotated[str, typer.Argument(help="voc, context, coco or context-ablation.")],
    student: Student = None,
    root: Root = None,
    test_on: Annotated[
        str | None,
        typer.Option(help="Evaluate on voc or context instead: a row of Table 2.", rich_help_panel=DATA),
    ] = None,
    test_root: Annotated[Path | None, typer.Option(help="Root of that dataset.", rich_help_panel=DATA)] = None,
    limit: Limit = None,
    clip: CLIP = None,
    clip_weights: Weights = None,
    image_size: ImageSize = None,
    dense: Dense = None,
    encoder_weights: Annotated[str | None, setting("encoder_weights", "Student")] = None,
    size: Annotated[int | None, setting("size", "Student")] = None,
    iterations: Annotated[int | None, setting("iterations", RUN)] = None,
    batch_size: Annotated[int | None, setting("batch_size", RUN)] = None,
    loss_stride: Annotated[int | None, setting("loss_stride", LOSSES)] = None,
    checkpoint_every: Annotated[int | None, setting("checkpoint_every", RUN)] = None,
    seed: Annotated[int | None, setting("seed", RUN)] = None,
    workers: Annotated[int | None, setting("workers", RUN)] = None,
    device: Device = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", rich_help_panel=RUN)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the plan.", rich_help_panel=RUN)] = False,
    as_json: Json = False,
) -> None:
    """Precompute, train and evaluate a row of the paper's tables, and print the paper's row beside it."""
    ours = ("benchmark", "student", "root", "test_on", "test_root", "limit", "out", "dry_run", "as_json")
    given = _given(locals(), *ours, "ours")
    from experiments import reproduce as rows

    wanted = rows.Reproduction(benchmark, student, root, out, test_on, test_root, limit, given)
    if dry_run:
        told = rows.dry_run(wanted)
        show(told if as_json else "\n".join(f"{name}: {json.dumps(value)}" for name, value in told.items()))
        return
    row = rows.reproduce(wanted, bar("the same command goes on"), say_note)
    show(row.as_json() if as_json else str(row))


@app.command()
def info(
    cache: Annotated[Path, typer.Argument(help="A cache directory.")],
    as_json: Json = False,
) -> None:
    """Tell what a cache holds, how far it is, and what failed."""
    from data_cache.info import describe
    from data_cache.store import Cache

    about = describe(Cache(cache))
    if as_json:
        show(about)
        return
    for key, value in about.items():
        show(f"{key}: {json.dumps(value, ensure_ascii=False)}")


def main() -> None:
    """Run the command line; a user's mistake becomes one line on stderr and exit status 1 or 2."""
    try:
        app()
    except UserError as error:
        say(str(error), "error: ", "red")
        sys.exit(error.exit_code)
    except OSError as error:
        # a full or read-only disk, a file where a folder should be: the system's words name the path
        say(str(error), "error: ", "red")
        sys.exit(1)


# -- what is printed -------------------------------------------------------------------------------------------


def _say_plan(work: "Plan") -> None:
    job, size = work.job, work.bytes
    say_note(job.dataset)
    total = sum(size.values()) / 2**20
    say(
        f"{job.source.name} ({job.source.weights}) on {job.device} in {job.precision}, k-means by "
        f"{job.masker.attributes()['backend']}; {work.images} of {job.layout.images} images to do in "
        f"{len(work.pending)} shards; about {total:.1f} MiB "
        f"({', '.join(f'{part} {b / 2**20:.1f}' for part, b in size.items())}) into {job.cache}"
    )


# -- what was given --------------------------------------------------------------------------------------------


def _given(options: Mapping[str, Any], *without: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None and name not in without}


def _preset_of_student(preset: str | None, student: str | None) -> dict[str, Any]:
    from experiments.presets import preset_named, student_named

    if preset:
        return preset_named(preset).train(student)
    return dict(student_named(student)) if student else {}


# -- where things are ------------------------------------------------------------------------------------------


def _only_cache() -> Path:
    found = sorted(cache_folder().glob("*.zarr"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"no cache in {cache_folder()}: run `precompute` first, or pass --cache PATH")
    raise UsageError(f"several caches: pass --cache with one of {', '.join(map(str, found))}")


def _run_folder(out: Path | None, cache: Path | None) -> Path:
    return out or Path("runs") / (cache or _only_cache()).name.removesuffix(".zarr")


if __name__ == "__main__":
    main()
