"""Tensors on their way into this machine's memory."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor


class Arriving:
    """Named tensors to be read here: of all that a GPU was given to do, only what came before them is waited for.

    A plain copy would wait for what was queued since, too, and leave the GPU idle until it is given more.
    """

    def __init__(self, tensors: Mapping[str, Shaped[Tensor, "..."]]) -> None:
        self._here = {name: _on_its_way(tensor) for name, tensor in tensors.items()}
        devices = {tensor.device for tensor in tensors.values() if tensor.is_cuda}
        self._copied = [torch.cuda.current_stream(device).record_event() for device in devices]

    def arrays(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """What has arrived."""
        for event in self._copied:
            event.synchronize()
        return {name: tensor.numpy() for name, tensor in self._here.items()}


def _on_its_way(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
