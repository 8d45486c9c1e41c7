"""How much memory training took, and about how much it will take on a GPU."""

import resource
import sys
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import TrainConfig

ADAM_BYTES = 16
"""A parameter in float32, its gradient, and AdamW's two moments."""
PSEUDO_LABELS = 32
"""Masks a photograph is assumed to have."""
CE_TENSORS, NEL_TENSORS = 4, 9
"""Tensors of the size of the logits alive at once in one image's cross-entropy; focal and dice, on seen channels."""


def peak_memory(device: torch.device) -> int:
    """The most bytes this process has held so far: of a GPU's memory, or of the machine's for the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def estimated_memory(config: TrainConfig, segmenter: nn.Module, size: int, seen: int, mixed: bool) -> int:
    """Bytes of memory that training needs on each GPU, about: parameters, what backward keeps, one image's losses.

    Nothing is computed: the student runs on tensors without content, and what autograd keeps of them is counted.

    Args:
        config: batch size, loss stride and scope of pseudo labels.
        segmenter: the student; it comes back on the meta device.
        size: side of its input in pixels.
        seen: seen classes.
        mixed: whether activations take two bytes (bf16) instead of four.

    """
    parameters = list(segmenter.parameters())
    weights = sum(parameter.numel() for parameter in parameters) * ADAM_BYTES
    number = torch.bfloat16 if mixed else torch.float32
    meta: Any = segmenter.to("meta", number).train()
    own = {_storage(tensor) for tensor in (*meta.parameters(), *meta.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        batch = config.batch_size // config.devices
        features = meta.network(torch.empty(batch, 3, size, size, device="meta", dtype=number))
        activations = sum(kept.values())
    side = -(-size // config.loss_stride)
    rows = seen + PSEUDO_LABELS * (config.batch_size if config.pseudo_scope == "batch" else 1)
    losses = 4 * side * side * (rows * CE_TENSORS + seen * NEL_TENSORS)
    return weights + activations + 2 * 4 * features.numel() + losses


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
