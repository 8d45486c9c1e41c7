"""What is exported: a student and its text features as one module whose every step the ONNX exporter can trace."""

from copy import deepcopy

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.checkpoint import Checkpoint
from trainer.segmenter import Vocabulary


class Graph(nn.Module):
    """Student, text features, and gamma if it is given.

    Args:
        student: what was trained; it is left as it is.
        vocabulary: the classes.
        gamma: added to the logits of those that had no labels in training.

    """

    def __init__(self, student: Checkpoint, vocabulary: Vocabulary, gamma: float = 0.0) -> None:
        super().__init__()
        self.segmenter = deepcopy(student.network)
        _spell_out_pooling(self.segmenter)
        self.cosine = student.config.logits == "cosine"
        text = F.normalize(vocabulary.text, dim=1) / (student.config.tau if self.cosine else 1)
        self.register_buffer("text", text[:, :, None, None])
        self.register_buffer("bonus", gamma * torch.from_numpy(~vocabulary.labelled).float())

    def forward(self, image: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch class y x"]:
        """Logits at the student's stride (eq. 9, as `trainer.losses.pixel.pixel_logits`) of RGB images in 0..255."""
        features = self.segmenter(image)
        return F.conv2d(F.normalize(features, dim=1) if self.cosine else features, self.text, self.bonus)


class BinMeans(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two matrix products: the exporter freezes the bins of the original at one size.

    Args:
        rows, columns: number of bins. Bin i of n covers cells floor(i l / n) to ceil((i + 1) l / n) of a side l.

    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Float[Tensor, "batch channel y x"]) -> Float[Tensor, "batch channel rows columns"]:
        """The means."""
        return _weights(self.rows, x.shape[2], x) @ x @ _weights(self.columns, x.shape[3], x).T


def _weights(bins: int, length: int, like: Tensor) -> Float[Tensor, "bin cell"]:
    number, cell = torch.arange(bins, device=like.device)[:, None], torch.arange(length, device=like.device)
    inside = (cell >= number * length // bins) & (cell < ((number + 1) * length + bins - 1) // bins)
    return inside.to(like.dtype) / inside.sum(dim=1, keepdim=True)


def _spell_out_pooling(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d):
            size = child.output_size
            rows, columns = size if isinstance(size, tuple) else (size, size)
            # means over the whole map are traced as they are
            if rows and columns and (rows, columns) != (1, 1):
                setattr(module, name, BinMeans(rows, columns))
        else:
            _spell_out_pooling(child)
