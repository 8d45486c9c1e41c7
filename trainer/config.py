"""The settings of a training run: one dataclass, the source of the command line's help and of config.json."""

import json
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from data_cache.errors import UsageError, UserError
from data_cache.limits import read_json

Pooling = Literal["attention", "max", "mean", "off"]
Adapters = Literal["transformer", "mlp", "identity"]
Logits = Literal["cosine", "dot"]
Scope = Literal["image", "batch"]
NELIgnore = Literal["negative", "masked"]
StudentPrecision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


def _option(default: Any, help: str, minimum: float | None = None) -> Any:
    return field(default=default, metadata={"help": help, "minimum": minimum})


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `train`. Defaults are the paper's where it gives them (facts: `docs/decisions.md`)."""

    cache: str | None = _option(None, "The cache to train from; the only one in ./data_cache by default.")
    root: str | None = _option(None, "Root of the dataset; where precompute found it by default.")
    masks: str | None = _option(None, "Name of the mask set; the one precompute made by default.")
    arch: str = _option("segformer", "Student: segnext, or an architecture of segmentation_models_pytorch.")
    encoder: str = _option("mit_b0", "Its encoder (timm's as tu-NAME; mscan_t to mscan_l).")
    encoder_weights: str = _option("imagenet", "Encoder weights: imagenet, none, or the path of a state dict.")
    size: int | None = _option(
        None,
        "Side in pixels at which the student sees a view; the cache's image size by default.",
        minimum=32,
    )
    photometric: bool = _option(True, "Change brightness, contrast, saturation and hue of what the student sees.")
    iterations: int = _option(20000, "Parameter updates.", minimum=1)
    batch_size: int = _option(16, "Images an update.", minimum=1)
    lr: float = _option(6e-5, "Peak learning rate of the encoder (AdamW).", minimum=0)
    head_lr: float = _option(10.0, "Factor on the learning rate of everything but the encoder.", minimum=0)
    weight_decay: float = _option(0.01, "AdamW's weight decay; none on norms and position parameters.", minimum=0)
    warmup: int = _option(1500, "Linear warm-up in updates, at most a tenth of the run.", minimum=0)
    max_grad_norm: float = _option(0.0, "Gradients of a greater norm are scaled down to it; 0: never.", minimum=0)
    poly_power: float = _option(1.0, "Exponent of the polynomial decay to zero.", minimum=0)
    glm: Pooling = _option("attention", "Pooling of global learning.")
    bank: int = _option(24, "Earlier batches whose CLS tokens are negatives (n).", minimum=0)
    tau: float = _option(0.07, "Temperature of InfoNCE and of cosine logits.", minimum=1e-6)
    vla: Adapters = _option("transformer", "Vision-language adapter.")
    logits: Logits = _option("cosine", "Pixel logits: cosine / tau, or the plain product of eq. 9.")
    pseudo_scope: Scope = _option("batch", "A pixel competes with pseudo labels of its own image or of the batch.")
    nel_ignore: NELIgnore = _option("negative", "Pixels without a seen label are negatives in NEL, or masked.")
    ce: bool = _option(True, "Cross-entropy over seen and pseudo labels (eq. 10).")
    nel: bool = _option(True, "Focal and dice loss on seen classes (NEL).")
    generate: bool = _option(True, "Generate loss (eq. 8).")
    weight_global: float = _option(1.0, "Weight of L_global.", minimum=0)
    weight_ce: float = _option(1.0, "Weight of cross-entropy.", minimum=0)
    weight_focal: float = _option(100.0, "Weight of focal loss.", minimum=0)
    weight_dice: float = _option(1.0, "Weight of dice loss.", minimum=0)
    weight_generate: float = _option(1.0, "Weight of L_generate.", minimum=0)
    loss_stride: int = _option(1, "Pixel losses see every n-th pixel: 1 is the paper's, 4 is faster.", minimum=1)
    seed: int = _option(0, "Seed of initial weights and sampling order.", minimum=0)
    device: str = _option("auto", "auto, cpu, cuda or cuda:N.")
    devices: int = _option(
        1, "Processes that train together on a batch, each on a GPU of its own (or on the CPU).", minimum=1
    )
    precision: StudentPrecision = _option("auto", "Student's precision.")
    workers: int = _option(2, "Processes a device that decode images; 0 decodes in the training process.", minimum=0)
    log_every: int = _option(10, "Updates between log lines.", minimum=1)
    checkpoint_every: int = _option(2000, "Updates between checkpoints.", minimum=1)

    def __post_init__(self) -> None:
        """Raise UsageError, one line, for a value out of range."""
        hints = get_type_hints(type(self))
        for entry in fields(self):
            value, flag = getattr(self, entry.name), "--" + entry.name.replace("_", "-")
            _check_type(flag, value, hints[entry.name])
            minimum = entry.metadata["minimum"]
            if minimum is not None and value is not None and not value >= minimum:
                raise UsageError(f"{flag} {value}: must be at least {minimum}")
        if self.seed >= 2**63:
            raise UsageError(f"--seed {self.seed}: must be below 2**63")
        if self.batch_size % self.devices:
            raise UsageError(f"--devices {self.devices}: must divide --batch-size {self.batch_size}; change either")
        if self.glm == "off" and not (self.ce or self.nel or self.generate):
            raise UsageError("--glm off with --no-ce --no-nel --no-generate: nothing is left to train on")

    @property
    def warmup_updates(self) -> int:
        """Updates of linear warm-up: a tenth of the run at most, so that short runs train at all."""
        return min(self.warmup, self.iterations // 10)

    def save(self, path: Path) -> None:
        """Write as JSON, to be read back by `train --config`."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


def read_config(path: Path | None, **given: Any) -> TrainConfig:
    """A config from a JSON file (or the defaults), overridden by every given value that is not None."""
    stored: dict[str, Any] = {}
    if path:
        try:
            stored = read_json(path)
            if unknown := sorted(name for name, _ in stored.items() if not is_setting(name)):
                raise UsageError(f"--config {path}: unknown setting {unknown[0]!r}")
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"--config {path}: cannot be read as JSON ({error})") from None
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    return TrainConfig(**(stored | {name: value for name, value in plain.items() if value is not None}))


def is_setting(name: str) -> bool:
    """Whether a setting of this name exists."""
    return name in {entry.name for entry in fields(TrainConfig)}


def help_of(name: str) -> str:
    """The help of one setting, with its choices."""
    choices = _choices(get_type_hints(TrainConfig)[name])
    return _field(name).metadata["help"] + (f" One of: {', '.join(choices)}." if choices else "")


def default_of(name: str) -> Any:
    """The default of one setting."""
    return _field(name).default


def _field(name: str) -> Field:
    return next(entry for entry in fields(TrainConfig) if entry.name == name)


def _choices(hint: Any) -> tuple[str, ...]:
    return get_args(hint) if get_origin(hint) is Literal else ()


def _check_type(flag: str, value: Any, hint: Any) -> None:
    if value is None and not isinstance(hint, UnionType):
        raise UsageError(f"{flag}: a value is missing")
    if choices := _choices(hint):
        if value not in choices:
            raise UsageError(f"{flag} {value}: choose {', '.join(choices)}")
        return
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    accepted = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in kinds):
        name = next(kind for kind in kinds if kind is not NoneType).__name__
        raise UsageError(f"{flag} {value!r}: must be {name}")
