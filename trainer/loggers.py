"""Loggers besides log.jsonl: TensorBoard, Trackio and Weights & Biases. Each is optional and imported on first use."""

import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from data_cache.errors import UsageError, UserError, one_line
from trainer.config import LOGGERS

if TYPE_CHECKING:  # the command line imports this file at start-up
    from PIL.Image import Image

PROJECT = "clipteacher"
PICTURES = "predictions"
RUN_ID = "wandb-id.txt"
"""Holds the identity of a run at Weights & Biases, so that a resumed training continues it."""


class Logger(Protocol):
    """Receives what a training logs."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of an update by name."""

    def picture(self, step: int, picture: "Image") -> None:
        """Log a picture of predictions."""

    def close(self, failed: bool) -> None:
        """Write what is pending."""


def check_logger(name: str | None) -> None:
    """Raise UsageError if the package of a logger is not installed."""
    if name in LOGGERS and find_spec(name) is None:
        raise UsageError(f"--log {name}: is not installed; run `pip install 'clipteacher[{name}]'`")


@contextmanager
def open_logger(name: str | None, out: Path, settings: Mapping[str, Any], step: int) -> Iterator[Logger | None]:
    """Open the logger of a run that is at update `step`. Yields None without a name.

    Raises UserError if it cannot be started, for example without an account.
    """
    if name is None:
        yield None
        return
    try:
        logger = _LOGGERS[name](out, settings, step)
    except Exception as error:
        raise UserError(f"--log {name}: cannot be started ({one_line(error)}); fix that, or omit --log") from None
    try:
        yield logger
    except BaseException:
        logger.close(failed=True)
        raise
    logger.close(failed=False)


class TensorBoard:
    """Event files in OUT/tensorboard. Those of a resumed run hide events after the update that it continues from."""

    def __init__(self, out: Path, settings: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None, flush_secs=20)
        self._writer.add_text("settings", "\n".join(f"    {name}: {value}" for name, value in settings.items()), step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of an update by name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, picture: "Image") -> None:
        """Log a picture of predictions."""
        import numpy as np

        self._writer.add_image(PICTURES, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self, failed: bool) -> None:
        """Write what is pending."""
        self._writer.close()


class Trackio:
    """A run of the local Trackio project `clipteacher`, named after the run's folder."""

    def __init__(self, out: Path, settings: Mapping[str, Any], step: int) -> None:
        import trackio

        self._trackio = trackio
        with redirect_stdout(sys.stderr):  # stdout is for results
            trackio.init(PROJECT, out.resolve().name, config={**settings}, resume="allow" if step else "never")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of an update by name."""
        self._trackio.log({**values}, step=step)

    def picture(self, step: int, picture: "Image") -> None:
        """Log a picture of predictions."""
        self._trackio.log({PICTURES: self._trackio.Image(picture.convert("RGB"))}, step=step)

    def close(self, failed: bool) -> None:
        """Write what is pending."""
        with redirect_stdout(sys.stderr):
            self._trackio.finish()


class WandB:
    """A run of the Weights & Biases project `clipteacher`; its local files are in OUT/wandb."""

    def __init__(self, out: Path, settings: Mapping[str, Any], step: int) -> None:
        import wandb

        self._image, file = wandb.Image, out / RUN_ID
        if not step or not file.is_file():
            file.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            project=PROJECT,
            name=out.resolve().name,
            id=file.read_text().strip(),
            dir=out,
            config={**settings},
            resume="allow",
            settings=wandb.Settings(console="off"),
        )
        # W&B's own counter cannot go back to the checkpoint from which a killed run continues
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of an update by name."""
        self._run.log({"step": step, **values})

    def picture(self, step: int, picture: "Image") -> None:
        """Log a picture of predictions."""
        self._run.log({"step": step, PICTURES: self._image(picture.convert("RGB"))})

    def close(self, failed: bool) -> None:
        """Write what is pending."""
        self._run.finish(exit_code=int(failed))


_LOGGERS = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": WandB}
