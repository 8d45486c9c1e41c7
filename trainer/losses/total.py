"""The loss of a batch: L = L_global + L_pixel + L_generate (eq. 10-12). Every term has a weight and a switch."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.config import TrainConfig
from trainer.distributed.ranks import all_gather, all_reduce_mean
from trainer.losses.glm import CLSBank, info_nce, pool
from trainer.losses.pixel import pixel_losses
from trainer.losses.plm import Adapter, build_classifiers, generate_loss, label_prototypes


class TeacherTargets(NamedTuple):
    """The teacher's CLS tokens and pixel targets of a batch, and the index of each image.

    `present` says which labels occur in each target. It is in host memory, where it decides the shapes of the losses.
    """

    cls: Float[Tensor, "batch channel"]
    target: Int[Tensor, "batch height width"]
    image: Int[Tensor, "batch"]
    present: Bool[np.ndarray, "batch label"]


class TeacherLoss(nn.Module):
    """All terms of eq. 11 and their state: the CLS bank, the adapter, and the text features of the seen classes.

    In transductive training, `text` has those of the unseen classes, too: what has a name counts as seen in all terms.
    """

    text: Float[Tensor, "seen channel"]

    def __init__(self, config: TrainConfig, text: Float[Tensor, "seen channel"]) -> None:
        super().__init__()
        self.config = config
        channels = text.shape[1]
        self.register_buffer("text", F.normalize(text, dim=1), persistent=False)
        self.bank = CLSBank(config.bank, config.batch_size, channels)
        self.adapter = Adapter(config.vla, channels)
        if not (config.ce or config.generate):
            self.adapter.requires_grad_(False)

    def forward(self, features: Float[Tensor, "local channel y x"], targets: TeacherTargets) -> dict[str, Tensor]:
        """The weighted `total` and `pixel` losses, each unweighted term, and the attention's `entropy` (not a loss).

        With several processes, each passes its own slice of the batch and gets the terms of the whole batch
        (`trainer.distributed.ranks`).
        """
        config, zero, num_seen = self.config, features.new_zeros(()), len(self.text)
        cls, image = all_gather(targets.cls), all_gather(targets.image)
        terms = {"global": zero, "ce": zero, "focal": zero, "dice": zero, "generate": zero}
        metrics: dict[str, Tensor] = {}
        if config.glm != "off":
            pooled, entropy = pool(targets.cls, features, config.glm)
            if config.glm == "attention":
                metrics["entropy"] = all_reduce_mean(entropy)
            terms["global"] = info_nce(pooled, cls, image, self.bank, config.tau)
            self.bank.push(cls, image)
        if config.ce or config.nel or config.generate:
            prototypes = label_prototypes(features, targets.target, targets.present, num_seen)
            generated = self.adapter(prototypes.features, cls)
            if config.generate:
                terms["generate"] = generate_loss(generated, prototypes, self.text)
            if config.ce or config.nel:
                classifiers = build_classifiers(
                    generated, prototypes, self.text, targets.target, targets.present, config.pseudo_scope
                )
                terms |= pixel_losses(features, classifiers, num_seen, config)
        weighted = {name: getattr(config, f"weight_{name}") * term for name, term in terms.items()}
        pixel = weighted["ce"] + weighted["focal"] + weighted["dice"]
        total = weighted["global"] + pixel + weighted["generate"]
        return {"total": total, "pixel": pixel.detach(), **terms, **metrics}
