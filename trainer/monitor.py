"""What one can watch of a training: its speed and the time left, in log.jsonl, in a logger, and as text."""

import json
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import torch
from PIL.Image import Image

from data_cache.callbacks import OnUpdate
from data_cache.errors import disk_errors
from data_cache.messages import count, duration
from data_cache.paths import figure_file
from data_cache.system.atomic import atomic_write
from trainer.config import CONFIG, TrainConfig
from trainer.data import Batch
from trainer.distributed import ranks
from trainer.loggers import Logger, open_logger
from trainer.memory import peak_memory
from trainer.metrics import Metrics
from trainer.run import LOG, full_disk_advice, reopen_log

WINDOW = 50
"""Updates over which speed is averaged."""
ESTIMATED_AFTER = 20
"""Updates after which the length of the run is estimated. The first update also warms up, so it is not counted."""
DAY = 24 * 60 * 60
VALIDATION = "val_"
"""How the names of metrics on held-out images begin."""
TIMINGS = ("seconds", "images_per_second", "eta_seconds", "data_share", "gpu_bytes")
"""The entries of a log line that differ between two equal trainings."""
LOSSES = ("global", "ce", "focal", "dice", "generate")


class Monitor:
    """Meters of a training. All times are the host's, so no meter ever waits for the GPU."""

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        first_step: int,
        on_update: OnUpdate,
        out: Path = Path(),
        log: TextIO | None = None,
        logger: Logger | None = None,
    ) -> None:
        self._config, self._device, self._on_update = config, device, on_update
        self._out, self._log, self._logger = out, log, logger
        self._first_step, self._start = first_step, time.perf_counter()
        self._last = self._after_first = self._start
        self._waiting = 0.0
        self._window: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def timed(self, loader: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches, and measure how long each keeps the training waiting."""
        while True:
            start = time.perf_counter()
            batch = next(loader, None)
            self._waiting += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block out of the speed, but not out of the time left."""
        start = time.perf_counter()
        yield
        self._last += time.perf_counter() - start

    def update(self, step: int, values: Mapping[str, float], picture: Image | None = None) -> dict[str, float]:
        """Report an update (counted from 1): its learning rate, losses and metrics, with the timings added.

        Call it once per update. What `is_logged` selects goes into log.jsonl and to the logger.
        """
        line = {"step": step, **values, **self._timings(step)}
        self._on_update(line)
        if self._log and is_logged(line, self._config):
            self._log.write(json.dumps(line) + "\n")
            self._log.flush()
            if self._logger:
                self._logger.scalars(step, {_tag(name): line[name] for name in line if name != "step"})
        if picture:
            self._save(step, picture)
        return line

    def _save(self, step: int, picture: Image) -> None:
        with atomic_write(figure_file(self._out, f"step_{step:08d}")) as draft:
            picture.save(draft, "PNG")
        if self._logger:
            self._logger.picture(step, picture)

    def _timings(self, step: int) -> dict[str, float]:
        now = time.perf_counter()
        if step == self._first_step + 1:
            self._after_first = now
        self._window.append((now - self._last, self._waiting))
        self._last, self._waiting = now, 0.0
        passed, waited = (sum(column) for column in zip(*self._window, strict=True))
        counted = step - self._first_step - 1
        mean = (now - self._after_first) / counted if counted else now - self._start
        timings = {
            "seconds": round(now - self._start, 3),
            "images_per_second": round(self._config.batch_size * len(self._window) / passed, 2),
            "eta_seconds": round(mean * (self._config.iterations - step), 1),
            "data_share": round(waited / passed, 4),
        }
        return timings | ({"gpu_bytes": peak_memory(self._device)} if self._device.type == "cuda" else {})


@contextmanager
def monitored(
    config: TrainConfig, out: Path, step: int, device: torch.device, on_update: OnUpdate
) -> Iterator[Monitor]:
    """Save the config and open the logs, on rank 0 only. A full disk is reported as a one-line error."""
    with disk_errors(out, lambda: full_disk_advice(out)):
        if ranks.rank():
            yield Monitor(config, device, step, on_update)
            return
        config.save(out / CONFIG)
        with reopen_log(out / LOG, step) as log, open_logger(config.log, out, asdict(config), step) as logger:
            yield Monitor(config, device, step, on_update, out, log, logger)


def is_logged(line: Mapping[str, float], config: TrainConfig) -> bool:
    """Whether the line of an update is logged: every `log_every`-th, the first, the last, and those with metrics."""
    regular = line["step"] % config.log_every == 0 or line["step"] in (1, config.iterations)
    return regular or any(name.startswith(VALIDATION) for name in line)


def _tag(name: str) -> str:
    """The name of a value in a logger, which shows values with the same prefix together."""
    if name.startswith(VALIDATION):
        return f"val/{name.removeprefix(VALIDATION)}"
    return f"{'speed' if name in TIMINGS else 'train' if name in ('lr', 'entropy') else 'loss'}/{name}"


def brief(line: Mapping[str, float]) -> str:
    """The part of a line that a progress bar of 80 columns has room for."""
    gpu = f" {line['gpu_bytes'] / 2**30:.1f}G" if "gpu_bytes" in line else ""
    return f"loss {line['total']:.3g}{gpu} data {100 * line['data_share']:.0f}%"


def describe(line: Mapping[str, float], config: TrainConfig) -> str:
    """A line of the log as text, with the losses that are in use."""
    terms = ", ".join(f"{name} {line[name]:.3g}" for name in LOSSES if line.get(name))
    parts = [
        f"update {line['step']:.0f}/{config.iterations}: loss {line['total']:.3g} ({terms})",
        f"lr {line['lr']:.3g}",
        f"{line['images_per_second']:.1f} images/s",
        f"ETA {duration(line['eta_seconds'])}",
        *([f"GPU {line['gpu_bytes'] / 2**30:.1f} GiB"] if "gpu_bytes" in line else []),
        f"waiting for data {100 * line['data_share']:.0f}%",
    ]
    return ", ".join(parts)


def validated(line: Mapping[str, float]) -> str:
    """The metrics of a line as text; "" if it has none."""
    names = {f"{VALIDATION}{name}": title for name, title in Metrics.COLUMNS.items()}
    values = [f"{title} {100 * line[name]:.1f}" for name, title in names.items() if name in line]
    return f"update {line['step']:.0f}: {', '.join(values)} on held-out training images" if values else ""


def estimate(line: Mapping[str, float], config: TrainConfig) -> tuple[str, str]:
    """How long the rest of a run takes, and a warning if that is more than a day; "" where there is none to give."""
    seconds, rest = line["eta_seconds"], config.iterations - int(line["step"])
    if not rest:
        return "", ""
    text = f"estimate: {duration(seconds)} for the remaining {count(rest, 'update')} ({seconds / rest:.2f} s each)"
    if seconds <= DAY:
        return text, ""
    return text, (
        f"this run takes about {seconds / DAY:.1f} days, during which it can be interrupted and resumed; a GPU, a "
        "smaller --size, --loss-stride 4 or fewer --iterations make it shorter"
    )
