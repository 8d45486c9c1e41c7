"""How long a row of the paper's tables takes here: its stages run for a moment, on drawn images and random weights."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from data_cache.callbacks import ProgressBar
from data_cache.class_list import class_lists
from data_cache.errors import UserError
from data_cache.messages import count, duration
from data_cache.splits import Split
from data_cache.system.devices import resolve_device
from experiments.drawn_images import draw_images
from experiments.reproduce_plan import ReproducePlan
from pipeline.config import PrecomputeConfig
from pipeline.plan import plan
from pipeline.precompute import Summary, execute
from pipeline.teacher.clip import BATCH, concurrent_batches
from pipeline.teacher.weights import RANDOM
from trainer.checkpoint import Checkpoint
from trainer.config import TrainConfig
from trainer.data import load_training_data
from trainer.evaluate import evaluate
from trainer.loop import train
from trainer.monitor import ESTIMATED_AFTER, estimate
from trainer.predictor import Predictor
from trainer.students.network import StudentNetwork

GPU_IMAGES = 256
"""Images that stage 1 encodes on a GPU, after as many to warm up. On a CPU, it encodes one batch per group of cores."""
TESTED = 8
"""Images that are tested at most."""
SECONDS = 180.0
"""Training and testing each end after this time, but not before the second update and image: the first warms up."""
WIDTH = 12
"""Columns of a title, as in the plan."""


class _EnoughError(Exception):
    """Raised by a callback to end a stage."""


@dataclass(frozen=True)
class Probe:
    """What was measured, and the hours that follow from it.

    Args:
        plan: the row.
        device: where it was measured.
        encoded: number of views that stage 1 encoded.
        view: seconds per view.
        last: the log entry of the last update.
        tested: number of test images.
        image: seconds per test image.

    """

    plan: ReproducePlan
    device: str
    encoded: int
    view: float
    last: Mapping[str, float]
    tested: int
    image: float

    @property
    def update(self) -> float:
        """Seconds per update; the first one counts only if no others are left (`trainer.monitor`)."""
        rest = self.plan.config.train.iterations - self.last["step"]
        return self.last["eta_seconds"] / rest if rest else self.last["seconds"] / self.last["step"]

    @property
    def seconds(self) -> dict[str, float]:
        """Of the whole row, by stage. Nothing of it is taken to be there already."""
        config = self.plan.config
        return {
            "precompute": self.plan.images * config.precompute.views * self.view,
            "train": config.train.iterations * self.update,
            "evaluate": self.plan.tested * self.image,
        }

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        hours = {stage: seconds / 3600 for stage, seconds in self.seconds.items()}
        return {
            "device": self.device,
            "torch": torch.__version__,
            "measured": {"views": self.encoded, "updates": int(self.last["step"]), "images": self.tested},
            "seconds": {"view": self.view, "update": self.update, "image": self.image},
            "hours": hours | {"total": sum(hours.values())},
            **({"gpu_bytes": self.last["gpu_bytes"]} if "gpu_bytes" in self.last else {}),
        }

    @property
    def lines(self) -> list[str]:
        """What was measured, and the time of each stage in hours, minutes and seconds."""
        config, seconds, updates = self.plan.config, self.seconds, int(self.last["step"])
        short = f" (no more, because they took over {SECONDS:g} s)" if updates < _updates(config.train) else ""
        memory = f", {self.last['gpu_bytes'] / 2**30:.1f} GiB of GPU memory" if "gpu_bytes" in self.last else ""
        measured = f"{count(self.encoded, 'view')}, {count(updates, 'update')}{short}"
        views = count(self.plan.images * config.precompute.views, "view")
        iterations = count(config.train.iterations, "update")
        rows = {
            "measured": f"{measured} and {count(self.tested, 'test image')}{memory}",
            "on": f"{self.device}, torch {torch.__version__}; drawn images of 640 x 480 pixels, random weights",
            "stage 1": f"{duration(seconds['precompute'])} for {views} ({self.view:.3g} s each)",
            "training": f"{duration(seconds['train'])} for {iterations} ({self.update:.3g} s)",
            "evaluation": f"{duration(seconds['evaluate'])} for {count(self.plan.tested, 'image')} "
            f"({self.image:.3g} s)",
            "in all": f"{duration(sum(seconds.values()))} (h:mm:ss), extrapolated from this measurement; a slow disk "
            "adds to it",
        }
        return [f"{name:{WIDTH}}{value}" for name, value in rows.items()]

    @property
    def warnings(self) -> list[str]:
        """A warning if the training takes more than a day."""
        _, warning = estimate(self.last, self.plan.config.train)
        return [warning] if warning else []


def probe(row: ReproducePlan, progress_bar: ProgressBar) -> Probe:
    """Run the stages of a row for a moment in a temporary folder. Neither data nor downloads are needed.

    Raises UserError if the training does not fit into memory.
    """
    device = resolve_device(row.config.train.device)
    with TemporaryDirectory() as folder:
        settings = _precompute_settings(row.config.precompute, Path(folder), device)
        # a GPU needs time to warm up
        for _ in range(2 if device.type == "cuda" else 1):
            summary = _precompute(settings, progress_bar)
        changed = {"cache": str(settings.cache), "root": None, "encoder_weights": "none"}
        student = replace(row.config.train, **changed)
        last = _train(student, Path(folder) / "run", device, progress_bar)
        times = _evaluate(student, row.config.preset.evaluate, device, progress_bar)
    encoded = summary.encoded * settings.views
    image = (times[-1] - times[1]) / (len(times) - 2)
    return Probe(row, _name(device), encoded, summary.seconds / encoded, last, len(times) - 1, image)


def _precompute_settings(config: PrecomputeConfig, folder: Path, device: torch.device) -> PrecomputeConfig:
    """The row's settings on drawn images with the classes of its dataset."""
    on_gpu, classes = device.type == "cuda", class_lists()[config.dataset]
    images = GPU_IMAGES if on_gpu else BATCH["cpu"] * concurrent_batches(torch.get_num_threads())
    root = draw_images(folder / "images", images, Split(classes.classes, classes.unseen))
    changed = {
        "dataset": "folder",
        "root": root,
        "cache": folder / "probe.zarr",
        "unseen": ",".join(classes.unseen),
        "limit": None,
        "clip_weights": RANDOM,
        "prompts": "single",  # encoding 15 prompts per class would take longer than the images
        "views": config.views if on_gpu else 1,
        "device": f"cuda:{device.index or 0}" if on_gpu else "cpu",  # one of several GPUs
        "workers": 0,  # processes share the cores, and take long to start
        "overwrite": True,
    }
    return replace(config, **changed)


def _precompute(config: PrecomputeConfig, progress_bar: ProgressBar) -> Summary:
    work = plan(config)
    with progress_bar("probing stage 1", work.images, "images") as advance:
        return execute(work, advance)


def _train(config: TrainConfig, run: Path, device: torch.device, progress_bar: ProgressBar) -> dict[str, float]:
    """Train for a moment and return the last log entry."""
    line: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with progress_bar("probing training", _updates(config), "updates") as advance, suppress(_EnoughError):

        def on_update(latest: dict[str, float]) -> None:
            line.update(latest)
            advance(1)
            if line["step"] == _updates(config) or (line["step"] > 1 and line["seconds"] > SECONDS):
                raise _EnoughError

        try:
            train(config, run, on_update=on_update)
        except torch.OutOfMemoryError:
            raise UserError(
                f"--batch-size {config.batch_size}: does not fit into the GPU's memory; pass a smaller one or "
                "--loss-stride 4"
            ) from None
    return line


def _evaluate(
    config: TrainConfig, options: Mapping[str, Any], device: torch.device, progress_bar: ProgressBar
) -> list[float]:
    """Test an untrained student for a moment; the time at the start and after each image."""
    data = load_training_data(config)
    text = torch.from_numpy(data.texts.features).to(device)
    network = StudentNetwork(config.arch, config.encoder, "none", text.shape[1]).to(device).eval()
    segmenter = Predictor(Checkpoint(config, network, data.split, text, data.size, 0, {}), options["sliding"])
    images = data.dataset.subset(range(min(TESTED, len(data.dataset))))
    times = [time.perf_counter()]
    with progress_bar("probing evaluation", len(images), "images") as advance, suppress(_EnoughError):
        evaluate(segmenter, images, (config.gamma,), _timed(times, advance))
    return times


def _timed(times: list[float], advance: Callable[..., None]) -> Callable[[int], None]:
    def progress(done: int) -> None:
        times.append(time.perf_counter())
        advance(done)
        if len(times) > 2 and times[-1] - times[0] > SECONDS:
            raise _EnoughError

    return progress


def _updates(config: TrainConfig) -> int:
    """How many updates are measured if there is time for them."""
    return min(ESTIMATED_AFTER, config.iterations)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({torch.get_num_threads()} threads)"
