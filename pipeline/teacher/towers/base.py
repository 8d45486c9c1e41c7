"""What an image tower gives."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn


class UnfitError(Exception):
    """A model has no dense tokens on a square grid; the message says why."""


class Tower(nn.Module, ABC):
    """Reads image embeddings and dense tokens from an image tower.

    Args:
        visual: the image tower.
        image_size: height and width of its input in pixels.
        patch: height and width of the patch that a token stands for.
        width: length of a token before the projection.

    Raises:
        UnfitError: the input or the patches are not square.

    """

    @torch.no_grad()
    def __init__(self, visual: nn.Module, image_size: tuple[int, int], patch: tuple[int, int], width: int) -> None:
        super().__init__()
        if image_size[0] != image_size[1] or patch[0] != patch[1]:
            raise UnfitError("its input or its patches are not square")
        self.visual, self.image_size, self.patch = visual, int(image_size[0]), int(patch[0])
        self.channels = self.project(torch.zeros(1, 1, width)).shape[-1]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of dense tokens."""
        return (self.image_size // self.patch,) * 2

    @abstractmethod
    def forward(
        self, pixels: Float[Tensor, "batch 3 size size"]
    ) -> tuple[Float[Tensor, "batch channel"], Float[Tensor, "batch token width"]]:
        """Image embeddings as `encode_image` gives them, and tokens before the projection, row by row."""

    @abstractmethod
    def project(self, tokens: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token channel"]:
        """Tokens in the space of image embeddings: each as the model would project it if the image had no other."""
