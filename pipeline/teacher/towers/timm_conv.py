"""timm's convolutional towers that average their last feature map: MobileCLIP S (FastViT), ConvNeXt."""

from jaxtyping import Float
from open_clip.timm_model import TimmModel
from timm.models.convnext import ConvNeXt
from timm.models.fastvit import FastVit
from torch import Tensor

from pipeline.teacher.towers.base import Tower, UnfitError

CONV_TRUNKS = (FastVit, ConvNeXt)


class TimmConv(Tower):
    """Cells of the last feature map, each through the head that makes the image embedding.

    Raises UnfitError if the map is not averaged.
    """

    def __init__(self, visual: TimmModel) -> None:
        trunk = visual.trunk
        pooling = getattr(trunk.head, "global_pool", None)
        if getattr(pooling, "pool_type", None) != "avg":
            raise UnfitError("its feature map is not averaged, so its head does not fit a single cell")
        stride = int(trunk.feature_info[-1]["reduction"])
        super().__init__(visual, visual.image_size, (stride, stride), trunk.num_features)

    def forward(
        self, pixels: Float[Tensor, "batch 3 size size"]
    ) -> tuple[Float[Tensor, "batch channel"], Float[Tensor, "batch token width"]]:
        """Image embeddings, and the cells of the last feature map."""
        features = self.visual.trunk.forward_features(pixels)
        return self.visual.head(self.visual.trunk.forward_head(features)), features.flatten(2).transpose(1, 2)

    def project(self, tokens: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token channel"]:
        """The head, on maps of one cell."""
        cells = self.visual.trunk.forward_head(tokens.flatten(0, 1)[:, :, None, None])
        return self.visual.head(cells).unflatten(0, tokens.shape[:2])
