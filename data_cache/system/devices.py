"""The torch device that `--device` selects, and what a device may fail to compile."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from data_cache.errors import UsageError, UserError, one_line
from data_cache.system.environment import keep_freed_memory

if TYPE_CHECKING:
    import torch


def check_device(name: str) -> None:
    """Raise UsageError for a device that no machine has. Does not import torch."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", name):
        raise UsageError(f"--device {name}: choose auto, cpu, cuda or cuda:N")


def resolve_device(name: str) -> "torch.device":
    """The device of this name; `auto` is the GPU if available. Raises UsageError if this machine does not have it.

    For the CPU, the memory allocator is tuned for network activations (`keep_freed_memory`).
    """
    if (device := _device(name)).type == "cpu":
        keep_freed_memory()
    return device


@contextmanager
def compile_errors(what: str) -> Iterator[None]:
    """Raise UserError, one line, if torch.compile fails within."""
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException  # private, and the base of all its errors

        if not isinstance(error, TorchDynamoException):
            raise
        raise UserError(f"--compile: {what} cannot be compiled here ({one_line(error)}); leave it out") from None


def _device(name: str) -> "torch.device":
    import torch

    check_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: {torch.cuda.device_count()} CUDA GPUs are visible; pass --device cpu")
    return device
