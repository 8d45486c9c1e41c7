"""The command line: parses, calls one function, prints. `python cli.py --help`, or `clipteacher --help`."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from data_cache.errors import UserError
from data_cache.places import only_cache, run_folder
from experiments import commands, looking_commands, seeing_commands
from experiments.console import bar, progress, say, say_note, say_plan, show
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
    Failures,
    ImageSize,
    Json,
    Limit,
    Preset,
    Prompts,
    Root,
    Scheduler,
    Student,
    Unseen,
    Views,
    ViewSeed,
    Weights,
    Workers,
    given_of,
    setting,
)
from trainer.config import is_setting, read_config

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
    unseen: Unseen = None,
    preset: Preset = None,
    views: Views = None,
    view_seed: ViewSeed = None,
    view_scale: Annotated[
        str | None,
        typer.Option(metavar="LOW,HIGH", help="Share of a crop in the image's area; 0.25,1.", rich_help_panel=DATA),
    ] = None,
    view_ratio: Annotated[
        str | None, typer.Option(metavar="LOW,HIGH", help="Width / height of a crop; 0.75,1.33.", rich_help_panel=DATA)
    ] = None,
    prompts: Prompts = None,
    clip: CLIP = None,
    clip_weights: Weights = None,
    image_size: ImageSize = None,
    precision: Annotated[
        str | None, typer.Option(help="auto (the default), fp32, bf16 or fp16.", rich_help_panel=TEACHER)
    ] = None,
    kmeans: Annotated[
        str | None, typer.Option(help="auto (the default), faiss, faiss-gpu or torch.", rich_help_panel=TEACHER)
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option("--compile", help="Compile CLIP: a minute before the first batch.", rich_help_panel=TEACHER),
    ] = None,
    dense: Dense = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Where; ./data_cache/<dataset>.zarr by default.", rich_help_panel=CACHE),
    ] = None,
    shard: Annotated[
        int | None, typer.Option(help="Images in a unit of work and resume; 64 by default.", rich_help_panel=CACHE)
    ] = None,
    extend: Annotated[
        bool, typer.Option("--extend", help="Add images that are new in the dataset.", rich_help_panel=CACHE)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the cache that is there.", rich_help_panel=CACHE)
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try images again that failed.", rich_help_panel=CACHE)
    ] = False,
    max_failures: Failures = 0.01,
    workers: Workers = 0,
    scheduler: Scheduler = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Ask CLIP once an image and cache what it says. Interrupted, it goes on where it was."""
    given = given_of(locals(), "preset", "max_failures", "as_json")
    from experiments.presets import preset_named, settings_from
    from pipeline.precompute import execute, plan
    from pipeline.weights import RANDOM

    settings = settings_from(preset_named(preset).precompute(given) if preset else given)
    if preset:
        say(f"preset {preset}: {settings}")
    if settings.clip.weights == RANDOM:
        say("random CLIP weights: masks and all that is trained on them are meaningless", "warning: ", "yellow")
    work = plan(settings, say)
    say_plan(work)
    with progress("encoding", work.images, "images", "finished shards are kept, the same command goes on") as advance:
        summary = execute(work, advance, say)
    done = summary.images - len(summary.failures)
    rate = summary.encoded / summary.seconds
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in summary.stages.items())
    stages = f"; of all threads: {stages}" if stages else ""
    say(f"{summary.encoded} images in {summary.seconds:.1f} s ({rate:.2f} images/s{stages})")
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
    devices: Annotated[int | None, setting("devices", RUN)] = None,
    workers: Annotated[int | None, setting("workers", RUN)] = None,
    glm: Annotated[str | None, setting("glm", LOSSES)] = None,
    vla: Annotated[str | None, setting("vla", LOSSES)] = None,
    no_ce: Annotated[bool, typer.Option("--no-ce", help="Without cross-entropy.", rich_help_panel=LOSSES)] = False,
    no_nel: Annotated[bool, typer.Option("--no-nel", help="Without focal and dice.", rich_help_panel=LOSSES)] = False,
    no_generate: Annotated[
        bool, typer.Option("--no-generate", help="Without the generate loss.", rich_help_panel=LOSSES)
    ] = False,
    loss_stride: Annotated[int | None, setting("loss_stride", LOSSES)] = None,
    online: Annotated[
        bool, typer.Option("--online", help="Ask CLIP and cluster anew for each batch.", rich_help_panel=RUN)
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Compare all images with the cache before training.", rich_help_panel=RUN)
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a student from a cache. All settings are printed and saved; config.json holds the rest of them."""
    given = {name: value for name, value in locals().items() if is_setting(name)}
    given |= {"ce": False if no_ce else None, "nel": False if no_nel else None}
    given |= {"generate": False if no_generate else None}
    from experiments.presets import cache_of, train_options

    given = train_options(preset, student) | {name: value for name, value in given.items() if value is not None}
    if resume and config is None:
        config = run_folder(out, cache) / "config.json"
        if not config.is_file():
            raise UserError(f"--resume: no run in {config.parent}; pass its folder with --out, or leave --resume out")
    settings = read_config(config, **given)
    if settings.cache is None:
        settings = replace(settings, cache=str(cache_of(preset) if preset else only_cache()))
    from experiments.online import live_for
    from experiments.stages import updates
    from trainer.loop import train as run

    out = run_folder(out, Path(settings.cache))
    say(" ".join(f"{name}={value}" for name, value in asdict(settings).items()))
    say(f"run {out}, warm-up {settings.warmup_updates} updates")
    with progress("training", settings.iterations, "updates", "the newest checkpoint, if any, is kept") as advance:
        last = run(settings, out, resume, strict, updates(advance), live_for(settings) if online else None)
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
            min=0,
        ),
    ] = 0,
    sliding: Annotated[
        bool | None,
        typer.Option(
            "--sliding/--whole", help="Sliding window, or the whole image (the default).", rich_help_panel=RUN
        ),
    ] = None,
    prompts: Prompts = None,
    clip: CLIP = None,
    clip_weights: Weights = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure pAcc, mIoU(S), mIoU(U) and hIoU of a trained student, on any dataset."""
    given = given_of(locals(), "checkpoint", "preset", "as_json")
    from experiments.evaluation import Asked, measure

    asked = Asked.of(checkpoint, given, preset)
    if preset:
        say(f"preset {preset}: {asked}")
    result = measure(asked, bar("nothing was written"), say_note)
    show(result.as_json() if as_json else str(result))


@app.command()
def cluster(
    cache: Annotated[Path, typer.Argument(help="A finished cache with dense tokens.")],
    name: Annotated[str, typer.Option(help="Name of the new mask set.", rich_help_panel=CACHE)],
    root: Root = None,
    unseen: Unseen = None,
    windows: Annotated[
        str | None, typer.Option(metavar="N,N", help="Sides of k-means windows, in tokens.", rich_help_panel=TEACHER)
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Similarity above which masks are fused (lambda).", rich_help_panel=TEACHER)
    ] = None,
    updates: Annotated[int | None, typer.Option(help="Lloyd updates.", rich_help_panel=TEACHER)] = None,
    kmeans: Annotated[str, typer.Option(help="auto, faiss, faiss-gpu or torch.", rich_help_panel=TEACHER)] = "auto",
    workers: Workers = 0,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """Cluster the cached dense tokens anew, without CLIP, into another mask set. What is not given stays as it was."""
    from pipeline.recluster import Clustering, recluster, window_sizes

    sides = None if windows is None else window_sizes(windows)
    wanted = Clustering(cache, name, root, unseen, sides, threshold, updates, kmeans, workers, scheduler)
    with progress("clustering", wanted.images, "images", "finished shards are kept") as advance:
        done = recluster(wanted, advance, say)
    show({"cache": str(cache), "masks": name, "clustered": done} if as_json else f"{cache}: {done} images in {name}")


@app.command()
def verify(
    cache: Annotated[Path, typer.Argument(help="A cache.")],
    live: Annotated[
        int, typer.Option(metavar="K", min=0, help="Also ask CLIP about K random views again.", rich_help_panel=RUN)
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the choice of views.", min=0, rich_help_panel=RUN)] = 0,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make damaged shards again, and only those.", rich_help_panel=CACHE)
    ] = False,
    masks: Annotated[str | None, setting("masks", CACHE)] = None,
    root: Root = None,
    clip: CLIP = None,
    clip_weights: Weights = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Read every file of a cache again and name what is bad; compare views with the live teacher."""
    from experiments import verification

    shown = bar("shards that were being mended count as not done" if repair else "nothing was written")
    teacher = (root, clip, clip_weights, device or "auto")
    told = verification.verify(cache, live, masks, *teacher, seed=seed, mend=repair, progress=shown)
    show(told.as_json() if as_json else str(told))
    if told.bad:
        raise UserError(
            f"{cache}: {len(told.bad)} findings; --repair makes damaged shards again, `precompute` (or `cluster`, for "
            "masks of another name than default) finishes what is not done"
        )


app.command()(commands.demo)
app.command()(commands.reproduce)
app.command()(commands.ablate)
app.command()(looking_commands.show)
app.command()(looking_commands.report)
app.command()(seeing_commands.predict)
app.command()(seeing_commands.export)


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
        # a file where a folder should be, and the like: the system's words name the path
        say(str(error), "error: ", "red")
        sys.exit(1)


if __name__ == "__main__":
    main()
