"""A student and its text features as one module that the ONNX exporter can trace."""

from copy import deepcopy

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.checkpoint import Checkpoint
from trainer.segmenter import Vocabulary


class Graph(nn.Module):
    """Network, text features and gamma of a student.

    Args:
        checkpoint: the trained student; its network is copied.
        vocabulary: the classes.
        gamma: added to the logits of classes that had no labels in training.

    """

    def __init__(self, checkpoint: Checkpoint, vocabulary: Vocabulary, gamma: float = 0.0) -> None:
        super().__init__()
        self.network = deepcopy(checkpoint.network)
        _replace_adaptive_pooling(self.network)
        self.cosine = checkpoint.config.logits == "cosine"
        text = F.normalize(vocabulary.text, dim=1) / (checkpoint.config.tau if self.cosine else 1)
        self.register_buffer("text", text[:, :, None, None])
        self.register_buffer("bonus", gamma * torch.from_numpy(~vocabulary.labelled).float())

    def forward(self, image: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch class y x"]:
        """Logits of RGB images in 0..255 at the student's stride (eq. 9, as `trainer.losses.pixel.pixel_logits`)."""
        features = self.network(image)
        return F.conv2d(F.normalize(features, dim=1) if self.cosine else features, self.text, self.bonus)


class BinMeans(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two matrix products, since the exporter fixes the bins of the original to one size.

    Args:
        rows, columns: number of bins. Bin i of n covers cells floor(i l / n) to ceil((i + 1) l / n) of length l.

    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Float[Tensor, "batch channel y x"]) -> Float[Tensor, "batch channel rows columns"]:
        """The mean of each bin."""
        return _weights(self.rows, x.shape[2], x) @ x @ _weights(self.columns, x.shape[3], x).T


def _weights(bins: int, length: int, like: Tensor) -> Float[Tensor, "bin cell"]:
    number, cell = torch.arange(bins, device=like.device)[:, None], torch.arange(length, device=like.device)
    inside = (cell >= number * length // bins) & (cell < ((number + 1) * length + bins - 1) // bins)
    return inside.to(like.dtype) / inside.sum(dim=1, keepdim=True)


def _replace_adaptive_pooling(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d):
            size = child.output_size
            rows, columns = size if isinstance(size, tuple) else (size, size)
            # global means are traced correctly
            if rows and columns and (rows, columns) != (1, 1):
                setattr(module, name, BinMeans(rows, columns))
        else:
            _replace_adaptive_pooling(child)
