"""Makes the teacher of a cache again from its fingerprint."""

from collections.abc import Mapping
from typing import Any

import torch

from data_cache.errors import UserError
from pipeline.teacher.clip import FrozenCLIP
from pipeline.teacher.protocol import Teacher
from pipeline.teacher.recipes import RECIPES
from pipeline.teacher.weights import CLIPSource


def rebuild_teacher(
    fingerprint: Mapping[str, Any],
    origin: Mapping[str, str] | None,
    clip: str | None,
    weights: str | None,
    device: torch.device,
) -> Teacher:
    """The teacher with this fingerprint, from where it was loaded then (`origin`) or as named by `clip` and `weights`.

    Raises UserError if its weights or anything else that changes its features differ.
    """
    origin, recipe = origin or {}, fingerprint["dense_recipe"]
    if recipe not in RECIPES:
        raise UserError(f"the cache has dense tokens by {recipe}, which this version lacks; update clipteacher")
    clip = clip or origin.get("clip") or fingerprint["model"]
    weights = weights or origin.get("weights") or ""
    source = CLIPSource(clip, weights, fingerprint["image_size"], tuple(fingerprint["mean"]), tuple(fingerprint["std"]))
    loaded = FrozenCLIP(source, fingerprint["precision"], device, recipe=recipe)
    named = f"--clip {clip}{f' --clip-weights {weights}' if weights else ''}"
    if loaded.weights_hash != fingerprint["weights_sha256"]:
        raise UserError(
            f"{named}: not the CLIP of the cache "
            f"({fingerprint['model']}, weights {fingerprint['weights_sha256'][:12]}); pass that one"
        )
    found = loaded.fingerprint()
    for name in fingerprint.keys() & found.keys() - {"model"}:  # a file may have been renamed
        if found[name] != fingerprint[name]:
            raise UserError(f"{named}: {name} is {found[name]}, and {fingerprint[name]} in the cache; pass its CLIP")
    return loaded
