"""A vision model other than CLIP whose tokens are clustered: DINOv2, DINOv3, PE-Spatial, or any other ViT of timm."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import torch
from jaxtyping import Float16, UInt8
from timm.data import resolve_model_data_config

from data_cache.errors import UsageError, UserError
from data_cache.system.devices import resolve_device
from pipeline.masks.source import TIMM, ModelSource
from pipeline.teacher.clip import BATCH, DTYPES, Precision, hash_weights, normalized
from pipeline.teacher.towers.timm_vit import VIT_TRUNKS

_LOADING = Lock()


class TokenModel:
    """A frozen ViT of timm that gives patch tokens after its final norm.

    Its input is square: the multiple of its patch that is nearest to `near`. It has the mean and standard deviation
    of its weights; position embeddings are resized by timm.

    Args:
        source: architecture and weights.
        near: side of CLIP's input in pixels.
        precision: number format of its weights.
        device: where it runs.

    Raises:
        UsageError, UserError: it does not load, or is no ViT with a square patch.

    """

    def __init__(self, source: ModelSource, near: int, precision: Precision, device: torch.device) -> None:
        model = source.load()
        self.source, self.precision, self.device = source, precision, device
        if type(model) not in VIT_TRUNKS:  # a subclass may compute something else
            known = " and ".join(trunk.__name__ for trunk in VIT_TRUNKS)
            raise UsageError(
                f"--masks-from {source.spec}: timm implements it as {type(model).__name__}, and only models of its "
                f"classes {known} work; choose a ViT such as timm:vit_small_patch14_dinov2"
            )
        height, width = model.patch_embed.feat_ratio(as_scalar=False)
        if height != width:
            raise UsageError(f"--masks-from {source.spec}: its patches are not square; choose another ViT")
        self.weights_hash = hash_weights(model)
        side = max(1, round(near / height))
        self.image_size, self.grid, self.channels = side * height, (side, side), model.num_features
        model.set_input_size(img_size=(self.image_size, self.image_size))
        data = resolve_model_data_config(model)
        self.mean, self.std = tuple(data["mean"]), tuple(data["std"])
        self._model = model.requires_grad_(False).eval().to(device, DTYPES[precision])
        self._mean, self._std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (self.mean, self.std))
        self._running = Lock()  # two shards at once would share the cores

    @torch.inference_mode()
    def tokens(self, images: UInt8[np.ndarray, "view size size 3"]) -> Float16[np.ndarray, "view y x channel"]:
        """Tokens of RGB images of its input size, rounded to float16; all zero for a view where one is not finite."""
        size = BATCH[self.device.type]
        parts = [self._batch(images[start : start + size], size) for start in range(0, len(images), size)]
        tokens = np.concatenate(parts)
        tokens[~np.isfinite(tokens).all(axis=(1, 2, 3))] = 0
        return tokens

    def _batch(
        self, images: UInt8[np.ndarray, "view size size 3"], size: int
    ) -> Float16[np.ndarray, "view y x channel"]:
        # always the same batch: rounding may depend on its size
        padded = np.zeros((size, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        with self._running:
            pixels = normalized(padded, self._mean, self._std)
            found = self._model.forward_features(pixels.to(DTYPES[self.precision]))
            # models that average their tokens have their final norm after the average, others before
            patches = self._model.fc_norm(found[: len(images), self._model.num_prefix_tokens :])
            return patches.unflatten(1, self.grid).half().numpy(force=True)

    def fingerprint(self) -> dict[str, Any]:
        """Everything about the model that changes its tokens."""
        return {
            "name": self.source.name,
            "weights_sha256": self.weights_hash,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "precision": self.precision,
        }


@dataclass(frozen=True)
class ModelSettings:
    """A resolved model, small enough to be sent to other processes; each loads it once.

    Args:
        source: architecture and weights.
        near: side of CLIP's input in pixels, or of the model's own.
        precision: number format of its weights, resolved.
        device: where it runs; a process resolves `auto`.
        fingerprint: what the model that is found must be, if it is known.

    """

    source: ModelSource
    near: int
    precision: Precision
    device: str
    fingerprint: Mapping[str, Any] | None = None

    @classmethod
    def of_masks(cls, attributes: Mapping[str, Any], spec: str | None, device: torch.device) -> "ModelSettings":
        """The model of a mask set: from `spec`, else from where it was loaded then, else as timm publishes it."""
        model = attributes["tokens"]["model"]
        source = ModelSource(spec or attributes.get("origin") or f"{TIMM}{model['name']}")
        return cls(source, model["image_size"], model["precision"], str(device), model)

    def load(self) -> TokenModel:
        """The model of this process, for all its threads. Raises UserError if it is not the one that is known."""
        with _LOADING:
            model = _load(self.source, self.near, self.precision, str(resolve_device(self.device)))
        found = model.fingerprint()
        for name, value in (self.fingerprint or {}).items():
            if name != "name" and found.get(name) != value:  # the same weights may have another name
                raise UserError(
                    f"--masks-from {self.source.spec}: {name} is {str(found.get(name))[:60]}, and {str(value)[:60]} in "
                    "the cache; use the model that the masks were clustered from (`verify --masks-from`)"
                )
        return model


@lru_cache(maxsize=1)
def _load(source: ModelSource, near: int, precision: Precision, device: str) -> TokenModel:
    return TokenModel(source, near, precision, torch.device(device))
