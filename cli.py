"""The command line: parses, calls one function, prints. `python cli.py --help`, or `clipteacher --help`."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_cache.errors import InterruptError, UsageError, UserError
from trainer.config import default_of, help_of, is_setting, read_config

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

DATA, TEACHER, CACHE, RUN, LOSSES = "Data", "Teacher", "Cache", "Run", "Losses"
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=RUN)]
Limit = Annotated[int | None, typer.Option(help="Only the first N images.", rich_help_panel=DATA)]
Root = Annotated[
    Path | None,
    typer.Option(
        help="Root of the dataset; else $CLIPTEACHER_DATA/<dataset>, else data/<dataset>. None for scenes.",
        rich_help_panel=DATA,
    ),
]


@app.command()
def precompute(
    dataset: Annotated[str, typer.Option(help="coco, camvid, folder or scenes.", rich_help_panel=DATA)],
    root: Root = None,
    split: Annotated[str, typer.Option(help="train, val, or another the dataset has.", rich_help_panel=DATA)] = "train",
    limit: Limit = None,
    unseen: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help='Classes without labels in training, as "cow,road"; the published split by default.',
            rich_help_panel=DATA,
        ),
    ] = None,
    clip: Annotated[
        str,
        typer.Option(
            help="open_clip ViT, the path of an open_clip JSON config, or tiny (for scenes).", rich_help_panel=TEACHER
        ),
    ] = "ViT-B-16-quickgelu",
    clip_weights: Annotated[
        str,
        typer.Option(
            help="A pretrained tag, the path of a checkpoint, or 'random'; openai by default, tiny's own for tiny.",
            show_default=False,
            rich_help_panel=TEACHER,
        ),
    ] = "",
    image_size: Annotated[
        int | None,
        typer.Option(
            help="CLIP's input side in pixels; 512, or a config file's own size, by default (256 for tiny).",
            rich_help_panel=TEACHER,
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.", rich_help_panel=TEACHER)] = "auto",
    kmeans: Annotated[str, typer.Option(help="auto, faiss or faiss-gpu.", rich_help_panel=TEACHER)] = "auto",
    dense: Annotated[str, typer.Option(help="Store dense tokens: float16 or none.", rich_help_panel=CACHE)] = "float16",
    cache: Annotated[
        Path | None,
        typer.Option(help="Where; ./data_cache/<dataset>.zarr by default.", rich_help_panel=CACHE),
    ] = None,
    shard: Annotated[int, typer.Option(help="Images in a unit of work and resume.", rich_help_panel=CACHE)] = 64,
    max_failures: Annotated[
        float, typer.Option(help="Share of failed images that still counts as success.", rich_help_panel=RUN)
    ] = 0.01,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=RUN)] = "auto",
    as_json: Json = False,
) -> None:
    """Ask CLIP once an image and cache what it says. Interrupted, it goes on where it was."""
    from pipeline.precompute import Settings, execute, plan
    from pipeline.weights import RANDOM, CLIPSource

    if clip_weights == RANDOM:
        _say("random CLIP weights: masks and all that is trained on them are meaningless", "warning: ", "yellow")
    settings = Settings(
        dataset=dataset,
        cache=cache or _default_cache(dataset),
        root=root,
        split=split,
        clip=CLIPSource(clip, clip_weights, image_size),
        precision=precision,
        dense=dense,
        kmeans=kmeans,
        shard=shard,
        limit=limit,
        device=device,
        unseen=unseen,
    )
    work = plan(settings)
    _say_plan(work)
    with _progress("encoding", work.images, "images", "finished shards are kept, the same command goes on") as advance:
        summary = execute(work, advance)
    done = summary.images - len(summary.failures)
    rate = summary.encoded / summary.seconds
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in summary.stages.items())
    _say(f"{summary.encoded} images in {summary.seconds:.1f} s ({rate:.2f} images/s{': ' + stages if stages else ''})")
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
    _print(report if as_json else f"{summary.cache}: {done} of {summary.images} images cached")
    for name, reason in summary.failures:
        _say(f"{name}: {reason}", "failed ", "red")
    summary.check(max_failures)


def _setting(name: str, panel: str) -> Any:
    default = default_of(name)
    return typer.Option(
        help=help_of(name) + (f" [dim](default: {default})[/]" if default is not None else ""),
        show_default=False,
        rich_help_panel=panel,
    )


@app.command()
def train(
    cache: Annotated[Path | None, _setting("cache", DATA)] = None,
    root: Annotated[Path | None, _setting("root", DATA)] = None,
    masks: Annotated[str | None, _setting("masks", DATA)] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Start from the settings of a config.json; options override it.", rich_help_panel=RUN),
    ] = None,
    arch: Annotated[str | None, _setting("arch", "Student")] = None,
    encoder: Annotated[str | None, _setting("encoder", "Student")] = None,
    encoder_weights: Annotated[str | None, _setting("encoder_weights", "Student")] = None,
    size: Annotated[int | None, _setting("size", "Student")] = None,
    iterations: Annotated[int | None, _setting("iterations", RUN)] = None,
    batch_size: Annotated[int | None, _setting("batch_size", RUN)] = None,
    lr: Annotated[float | None, _setting("lr", RUN)] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; runs/<cache name> by default.", rich_help_panel=RUN),
    ] = None,
    seed: Annotated[int | None, _setting("seed", RUN)] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.", rich_help_panel=RUN)
    ] = False,
    device: Annotated[str | None, _setting("device", RUN)] = None,
    workers: Annotated[int | None, _setting("workers", RUN)] = None,
    glm: Annotated[str | None, _setting("glm", LOSSES)] = None,
    vla: Annotated[str | None, _setting("vla", LOSSES)] = None,
    no_ce: Annotated[bool, typer.Option("--no-ce", help="Without cross-entropy.", rich_help_panel=LOSSES)] = False,
    no_nel: Annotated[bool, typer.Option("--no-nel", help="Without focal and dice.", rich_help_panel=LOSSES)] = False,
    no_generate: Annotated[
        bool, typer.Option("--no-generate", help="Without the generate loss.", rich_help_panel=LOSSES)
    ] = False,
    loss_stride: Annotated[int | None, _setting("loss_stride", LOSSES)] = None,
    as_json: Json = False,
) -> None:
    """Train a student from a cache. All settings are printed and saved; config.json holds the rest of them."""
    given = {name: value for name, value in locals().items() if is_setting(name)}
    given |= {"ce": False if no_ce else None, "nel": False if no_nel else None}
    given |= {"generate": False if no_generate else None}
    if resume and config is None:
        config = _run_folder(out, cache) / "config.json"
        if not config.is_file():
            raise UserError(f"--resume: no run in {config.parent}; pass its folder with --out, or leave --resume out")
    settings = read_config(config, **given)
    if settings.cache is None:
        settings = replace(settings, cache=str(_only_cache()))
    from trainer.loop import train as run

    out = _run_folder(out, Path(settings.cache))
    _say(" ".join(f"{name}={value}" for name, value in asdict(settings).items()))
    _say(f"run {out}, warm-up {settings.warmup_updates} updates")
    with _progress("training", settings.iterations, "updates", "the newest checkpoint, if any, is kept") as advance:

        def tell(line: dict[str, float]) -> None:
            advance(line["step"], absolute=True, note=f"loss {line['total']:.3f}")

        last = run(settings, out, resume, tell)
    _print({"out": str(out), **last} if as_json else f"{out}: trained {settings.iterations} updates")


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A run's folder, or a file in it.")],
    dataset: Annotated[str, typer.Option(help="coco, camvid, folder or scenes.", rich_help_panel=DATA)],
    root: Root = None,
    split: Annotated[str, typer.Option(help="train, val, or another the dataset has.", rich_help_panel=DATA)] = "val",
    limit: Limit = None,
    gamma: Annotated[float, typer.Option(help="Added to the logits of unseen classes.", rich_help_panel=RUN)] = 1.5,
    sliding: Annotated[
        bool,
        typer.Option("--sliding", help="Sliding window instead of the whole image.", rich_help_panel=RUN),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=RUN)] = "auto",
    as_json: Json = False,
) -> None:
    """Measure pAcc, mIoU(S), mIoU(U) and hIoU of a trained student."""
    from data_cache.datasets import open_dataset
    from data_cache.devices import resolve_device
    from trainer.checkpoint import load
    from trainer.evaluate import Predictor
    from trainer.evaluate import evaluate as run

    if not math.isfinite(gamma):
        raise UsageError(f"--gamma {gamma}: must be a number")
    images = open_dataset(dataset, root, split, limit)
    predictor = Predictor(load(checkpoint, resolve_device(device)), gamma, sliding)
    with _progress("evaluating", len(images), "images", "nothing was written") as advance:
        result = run(predictor, images, advance)
    _print(result.as_json(gamma, predictor.split.classes) if as_json else f"{result}  (%, gamma {gamma:g})")


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

    bars = partial(_progress, interrupted="the same command goes on")
    student = replace(STUDENT, seed=seed, iterations=STUDENT.iterations if iterations is None else iterations)
    images = Demo.images if limit is None else limit
    report = run(Demo(out, student, images, variants=ALL_VARIANTS if compare else ()), bars)
    _print(report.as_json() if as_json else str(report))


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
        _print(about)
        return
    for key, value in about.items():
        _print(f"{key}: {json.dumps(value, ensure_ascii=False)}")


def main() -> None:
    """Run the command line; a user's mistake becomes one line on stderr and exit status 1 or 2."""
    try:
        app()
    except UserError as error:
        _say(str(error), "error: ", "red")
        sys.exit(error.exit_code)
    except OSError as error:
        # a full or read-only disk, a file where a folder should be: the system's words name the path
        _say(str(error), "error: ", "red")
        sys.exit(1)


# -- what is printed -------------------------------------------------------------------------------------------


def _say(text: str, lead: str = "", style: str = "") -> None:
    from rich.console import Console
    from rich.text import Text

    # assembled, not marked up: a file name may hold brackets
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text.assemble((lead, style), text))


def _print(value: Any) -> None:
    print(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


@contextmanager
def _progress(verb: str, total: int, unit: str, interrupted: str) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    columns = (
        TextColumn(verb, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn(f"{{task.fields[rate]}} {unit}/s, ETA", table_column=Column(no_wrap=True)),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(verb, total=total, rate="-", note="")

        def advance(amount: int, absolute: bool = False, note: str = "") -> None:
            bar.update(task, completed=amount if absolute else bar.tasks[0].completed + amount, note=note)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:.2f}" if speed else "-")

        try:
            yield advance
        except KeyboardInterrupt:
            raise InterruptError(f"interrupted; {interrupted}") from None


def _say_plan(work: "Plan") -> None:
    job, size = work.job, work.bytes
    total = sum(size.values()) / 2**20
    _say(
        f"{job.source.name} ({job.source.weights}) on {job.device} in {job.precision}, k-means by "
        f"{job.masker.attributes()['backend']}; {work.images} of {job.layout.images} images to do in "
        f"{len(work.pending)} shards; about {total:.1f} MiB "
        f"({', '.join(f'{part} {b / 2**20:.1f}' for part, b in size.items())}) into {job.cache}"
    )


# -- where things are ------------------------------------------------------------------------------------------


def _cache_folder() -> Path:
    return Path(os.environ.get("CLIPTEACHER_CACHE", "data_cache"))


def _default_cache(dataset: str) -> Path:
    return _cache_folder() / f"{dataset}.zarr"


def _only_cache() -> Path:
    found = sorted(_cache_folder().glob("*.zarr"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"no cache in {_cache_folder()}: run `precompute` first, or pass --cache PATH")
    raise UsageError(f"several caches: pass --cache with one of {', '.join(map(str, found))}")


def _run_folder(out: Path | None, cache: Path | None) -> Path:
    return out or Path("runs") / (cache or _only_cache()).name.removesuffix(".zarr")


if __name__ == "__main__":
    main()
