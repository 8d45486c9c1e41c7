"""timm's vision transformers: EVA-02, SigLIP and SigLIP 2, PE-Core, MobileCLIP B and L, ViTamin."""

from jaxtyping import Float
from open_clip.timm_model import TimmModel
from timm.layers import AttentionPoolLatent
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from pipeline.teacher.towers.base import Tower, UnfitError

VIT_TRUNKS = (VisionTransformer, Eva)


class TimmViT(Tower):
    """Patch tokens after the final norm, each through the head that makes the image embedding.

    Raises UnfitError if the head cannot be applied to one token.
    """

    def __init__(self, visual: TimmModel) -> None:
        trunk = visual.trunk
        pool = trunk.attn_pool
        if pool is not None and (not isinstance(pool, AttentionPoolLatent) or pool.pos_embed is not None):
            raise UnfitError("its attention pooling depends on positions or is of another kind")
        if pool is None and trunk.global_pool not in ("token", "avg"):
            raise UnfitError(f"its pooling is {trunk.global_pool!r}, which no single token follows")
        embed = trunk.patch_embed
        super().__init__(visual, embed.img_size, embed.feat_ratio(as_scalar=False), trunk.num_features)

    def forward(
        self, pixels: Float[Tensor, "batch 3 size size"]
    ) -> tuple[Float[Tensor, "batch channel"], Float[Tensor, "batch token width"]]:
        """Image embeddings, and patch tokens after the final norm."""
        trunk = self.visual.trunk
        tokens = trunk.forward_features(pixels)
        return self.visual.head(trunk.forward_head(tokens)), tokens[:, trunk.num_prefix_tokens :]

    def project(self, tokens: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token channel"]:
        """The pooling of a single token, and the head."""
        trunk = self.visual.trunk
        if trunk.attn_pool is not None:
            tokens = attend_to_one(trunk.attn_pool, tokens)
        return self.visual.head(trunk.head(trunk.head_drop(trunk.fc_norm(tokens))))


def attend_to_one(
    pool: AttentionPoolLatent, tokens: Float[Tensor, "batch token width"]
) -> Float[Tensor, "batch token width"]:
    """What attention pooling gives for each token alone: all attention is on it, whatever the query."""
    _, weight = pool.kv.weight.chunk(2)
    bias = None if pool.kv.bias is None else pool.kv.bias.chunk(2)[1]
    x = pool.proj(F.linear(tokens, weight, bias))
    return x if pool.mlp is None else x + pool.mlp(pool.norm(x))
