"""open_clip's own vision transformers with a CLS token."""

import torch
from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor

from pipeline.teacher.attention import attend, queries_keys_values, with_residual_and_mlp
from pipeline.teacher.recipes import last_block
from pipeline.teacher.towers.base import Tower, UnfitError


class OpenCLIPViT(Tower):
    """The tower itself: patch tokens of the last block. Raises UnfitError if there is no CLS token."""

    def __init__(self, visual: VisionTransformer) -> None:
        if visual.attn_pool is not None or visual.pool_type != "tok" or visual.final_ln_after_pool:
            raise UnfitError("its image embedding is pooled, not a CLS token")
        if visual.proj is None:
            raise UnfitError("it has no visual projection")
        super().__init__(visual, visual.image_size, visual.patch_size, visual.proj.shape[0])
        visual.output_tokens = True

    def forward(
        self, pixels: Float[Tensor, "batch 3 size size"]
    ) -> tuple[Float[Tensor, "batch channel"], Float[Tensor, "batch token width"]]:
        """CLS tokens, and patch tokens after the final LayerNorm."""
        return self.visual(pixels)

    def project(self, tokens: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token channel"]:
        """The visual projection."""
        return tokens @ self.visual.proj


class RecipeViT(OpenCLIPViT):
    """The same with dense tokens from a recipe. Raises UnfitError if the recipe does not fit the last block."""

    def __init__(self, tower: OpenCLIPViT, recipe: str) -> None:
        super().__init__(tower.visual)
        blocks = self.visual.transformer.resblocks
        if len(blocks) < 2:
            raise UnfitError("has a single block")
        if not isinstance(blocks[-1], ResidualAttentionBlock):
            raise UnfitError("has an attention layer of another kind")
        self.last_block = last_block(recipe)

    def forward(
        self, pixels: Float[Tensor, "batch 3 size size"]
    ) -> tuple[Float[Tensor, "batch channel"], Float[Tensor, "batch token width"]]:
        """CLS tokens as from the tower itself, up to rounding, and tokens of the recipe after the final LayerNorm."""
        blocks = self.visual.transformer.resblocks
        found = self.visual.forward_intermediates(
            pixels,
            indices=[len(blocks) - 2],
            stop_early=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        x = torch.cat([found["image_intermediates_prefix"][0], found["image_intermediates"][0]], dim=1)
        block = blocks[-1]
        q, k, v = queries_keys_values(block.attn, block.ln_1(x))
        # in the block as trained, the CLS token needs one query, and the MLP of one token
        cls = with_residual_and_mlp(block, x[:, :1], attend(q[:, :, :1], k, v))
        tokens = self.last_block(block, x, q, k, v, self.grid)[:, 1:]
        return self.visual.ln_post(cls[:, 0]) @ self.visual.proj, self.visual.ln_post(tokens)
