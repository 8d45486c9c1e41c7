"""Image towers: how CLS tokens and dense tokens are read from each kind of model. Each kind is a file here."""

from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from data_cache.errors import UsageError
from pipeline.teacher.recipes import OUTPUT
from pipeline.teacher.towers.base import Tower, UnfitError
from pipeline.teacher.towers.open_clip_vit import OpenCLIPViT, RecipeViT
from pipeline.teacher.towers.timm_conv import CONV_TRUNKS, TimmConv
from pipeline.teacher.towers.timm_vit import VIT_TRUNKS, TimmViT


def open_tower(visual: nn.Module, recipe: str, name: str) -> Tower:
    """The tower of open_clip's model called `name`.

    Raises UsageError if dense tokens cannot be read from it, or not with this recipe.
    """
    try:
        tower = _plain(visual)
    except UnfitError as reason:
        raise UsageError(f"--clip {name}: {reason}; choose a ViT such as ViT-B-16-quickgelu") from None
    if recipe == OUTPUT:
        return tower
    try:
        if not isinstance(tower, OpenCLIPViT):
            raise UnfitError("has an image tower from timm, and recipes are for open_clip's own")
        return RecipeViT(tower, recipe)
    except UnfitError as reason:
        raise UsageError(f"--dense-recipe {recipe}: {name} {reason}; use {OUTPUT}") from None


def _plain(visual: nn.Module) -> Tower:
    if isinstance(visual, VisionTransformer):
        return OpenCLIPViT(visual)
    if not isinstance(visual, TimmModel):
        raise UnfitError(f"its image tower is a {type(visual).__name__}, not a vision transformer")
    kind = type(visual.trunk)  # a subclass may compute something else
    if kind in VIT_TRUNKS:
        return TimmViT(visual)
    if kind in CONV_TRUNKS:
        return TimmConv(visual)
    known = ", ".join(trunk.__name__ for trunk in (*VIT_TRUNKS, *CONV_TRUNKS))
    raise UnfitError(f"its image tower is timm's {kind.__name__}, and dense tokens are known for {known}")
