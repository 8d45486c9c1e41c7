"""A vision tower with a dense recipe."""

import torch
from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from data_cache.errors import UsageError
from pipeline.teacher.recipes import OUTPUT, last_block


class RecipeTower(nn.Module):
    """A vision tower whose dense tokens come from a recipe, and whose image embedding is unchanged.

    Raises UsageError if the recipe does not fit the tower of the CLIP called `name`.
    """

    def __init__(self, visual: VisionTransformer, recipe: str, name: str) -> None:
        super().__init__()
        if reason := _unfit(visual):
            raise UsageError(f"--dense-recipe {recipe}: {name} {reason}; use {OUTPUT}")
        self.visual, self.last_block = visual, last_block(recipe)
        self.grid = (visual.grid_size[0], visual.grid_size[1])

    def forward(
        self, pixels: Float[Tensor, "batch 3 size size"]
    ) -> tuple[Float[Tensor, "batch channel"], Float[Tensor, "batch token width"]]:
        """CLS tokens, and dense tokens before the projection, as from the tower itself."""
        blocks = self.visual.transformer.resblocks
        found = self.visual.forward_intermediates(
            pixels, indices=[len(blocks) - 2], output_fmt="NLC", output_extra_tokens=True
        )
        x = torch.cat([found["image_intermediates_prefix"][0], found["image_intermediates"][0]], dim=1)
        tokens = self.visual.ln_post(self.last_block(blocks[-1], x, self.grid))
        return found["image_features"], tokens[:, 1:]


def _unfit(visual: VisionTransformer) -> str | None:
    blocks = visual.transformer.resblocks
    if len(blocks) < 2:
        return "has a single block"
    if not isinstance(blocks[-1], ResidualAttentionBlock):
        return "has an attention layer of another kind"
    return None
