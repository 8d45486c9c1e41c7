"""The loss of a batch: L = L_global + L_pixel + L_generate (eq. 10-12), every term with a weight and a switch."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.config import TrainConfig
from trainer.distributed.ranks import all_gather, all_reduce_mean
from trainer.losses.glm import CLSBank, info_nce, pool
from trainer.losses.pixel import pixel_losses
from trainer.losses.plm import Adapter, classifiers, generate_loss, prototypes


class TeacherTargets(NamedTuple):
    """The teacher's CLS tokens and pixel targets of a batch, and which image each row belongs to."""

    cls: Float[Tensor, "batch channel"]
    target: Int[Tensor, "batch height width"]
    image: Int[Tensor, "batch"]


class TeacherLoss(nn.Module):
    """All terms of eq. 11 with what they need: the CLS bank, the adapter, the text features of seen classes."""

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

    def forward(self, features: Float[Tensor, "own channel y x"], targets: TeacherTargets) -> dict[str, Tensor]:
        """The weighted `total` and each unweighted term; `entropy` is the attention's (not a loss).

        With several processes each passes its own part of a batch and gets the terms of the whole batch
        (`trainer.distributed.ranks`).
        """
        config, zero = self.config, features.new_zeros(())
        cls, image = all_gather(targets.cls), all_gather(targets.image)
        terms = {"global": zero, "ce": zero, "focal": zero, "dice": zero, "generate": zero}
        extra: dict[str, Tensor] = {}
        if config.glm != "off":
            pooled, entropy = pool(targets.cls, features, config.glm)
            extra = {"entropy": all_reduce_mean(entropy)} if config.glm == "attention" else {}
            terms["global"] = info_nce(pooled, cls, image, self.bank, config.tau)
            self.bank.push(cls, image)
        if config.ce or config.nel or config.generate:
            found = prototypes(features, targets.target, len(self.text))
            generated = self.adapter(found.features, cls)
            if config.generate:
                terms["generate"] = generate_loss(generated, found, self.text)
            if config.ce or config.nel:
                rows = classifiers(generated, found, self.text, targets.target, config.pseudo_scope)
                terms |= pixel_losses(features, rows, len(self.text), config)
        weighted = {name: getattr(config, f"weight_{name}") * term for name, term in terms.items()}
        pixel = weighted["ce"] + weighted["focal"] + weighted["dice"]
        whole = weighted["global"] + pixel + weighted["generate"]
        return {"total": whole, "pixel": pixel.detach(), **terms, **extra}
