"""The settings of a training run: one dataclass, from which the command line's options and config.json follow."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from data_cache.errors import UsageError, UserError
from data_cache.limits import read_json
from data_cache.options import check_options, default_of, option
from data_cache.system.atomic import atomic_write
from trainer.students.names import ARCHITECTURES

Pooling = Literal["attention", "max", "mean", "off"]
Adapters = Literal["transformer", "mlp", "identity"]
Logits = Literal["cosine", "dot"]
Scope = Literal["image", "batch"]
NELIgnore = Literal["negative", "masked"]
StudentPrecision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
LOGGERS = ("tensorboard", "trackio", "wandb")
CONFIG, LOG = "config.json", "log.jsonl"
GAMMA = 1.5
"""The paper's value: added to the logits of unseen classes, against the bias towards seen classes.

Students that were trained with `transductive` have no such bias (`TrainConfig.gamma`)."""
MAX_UPDATES = 10**8 - 1
"""The name of a checkpoint folder has eight digits."""
MAX_SIDE, MAX_BATCH, MAX_PROCESSES = 2**15, 2**16, 2**10
"""More than fits into any memory, yet small enough to be refused quickly."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `train`. Defaults are the paper's where it gives them (else `docs/decisions/`)."""

    cache: str | None = option(None, "Cache to train from; by default the only one in ./data_cache.")
    root: str | None = option(None, "Root of the dataset; by default where precompute found it.")
    masks: str | None = option(
        None, "Name of the mask set; by default the one that `precompute` makes from CLIP's tokens."
    )
    arch: str = option(
        "segformer", "Student: segnext, or a decoder of segmentation_models_pytorch.", choices=ARCHITECTURES
    )
    encoder: str = option("mit_b0", "Its encoder (timm's as tu-NAME; mscan_t to mscan_l).")
    encoder_weights: str = option("imagenet", "Encoder weights: imagenet, none, or the path of a state dict.")
    size: int | None = option(
        None,
        "Side of the student's input in pixels; by default the cache's image size.",
        minimum=32,
        maximum=MAX_SIDE,
    )
    photometric: bool = option(True, "Vary brightness, contrast, saturation and hue of the student's input.")
    iterations: int = option(20000, "Parameter updates.", minimum=1, maximum=MAX_UPDATES)
    batch_size: int = option(16, "Images per update.", minimum=1, maximum=MAX_BATCH)
    lr: float = option(6e-5, "Peak learning rate of the encoder (AdamW).", minimum=0)
    head_lr: float = option(10.0, "Factor on the learning rate of everything but the encoder.", minimum=0)
    weight_decay: float = option(0.01, "AdamW's weight decay; none on norms and position parameters.", minimum=0)
    warmup: int = option(1500, "Linear warm-up in updates, at most a tenth of the run.", minimum=0, maximum=MAX_UPDATES)
    max_grad_norm: float = option(0.0, "Gradients are clipped to this norm; 0 disables clipping.", minimum=0)
    poly_power: float = option(1.0, "Exponent of the polynomial decay to zero.", minimum=0)
    glm: Pooling = option("attention", "Pooling of global learning.")
    bank: int = option(24, "Earlier batches whose CLS tokens are negatives (n).", minimum=0, maximum=MAX_BATCH)
    tau: float = option(0.07, "Temperature of InfoNCE and of cosine logits.", minimum=1e-6)
    vla: Adapters = option("transformer", "Vision-language adapter.")
    logits: Logits = option("cosine", "Pixel logits: cosine / tau, or the plain dot product of eq. 9.")
    pseudo_scope: Scope = option("batch", "A pixel competes with pseudo labels of its own image or of the batch.")
    nel_ignore: NELIgnore = option("negative", "Pixels without a seen label are negatives in NEL, or masked.")
    ce: bool = option(True, "Cross-entropy over seen and pseudo labels (eq. 10).")
    nel: bool = option(True, "Focal and dice loss on seen classes (NEL).")
    generate: bool = option(True, "Generate loss (eq. 8).")
    weight_global: float = option(1.0, "Weight of L_global.", minimum=0)
    weight_ce: float = option(1.0, "Weight of cross-entropy.", minimum=0)
    weight_focal: float = option(100.0, "Weight of focal loss.", minimum=0)
    weight_dice: float = option(1.0, "Weight of dice loss.", minimum=0)
    weight_generate: float = option(1.0, "Weight of L_generate.", minimum=0)
    loss_stride: int = option(
        1, "Pixel losses use every n-th pixel: 1 as in the paper, 4 is faster.", minimum=1, maximum=MAX_SIDE
    )
    transductive: bool = option(
        False, "Names of unseen classes are known, their labels are not: pseudo labels are named."
    )
    seed: int = option(0, "Seed of initial weights and sampling order.", minimum=0, maximum=2**63 - 1)
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    devices: int = option(
        1,
        "Processes that share each batch, one per GPU (or all on the CPU).",
        minimum=1,
        maximum=MAX_PROCESSES,
    )
    precision: StudentPrecision = option("auto", "Student's precision.")
    compile: bool = option(False, "Compile the student: the first update takes a minute longer.")
    workers: int = option(
        2, "Decoding processes per device; 0 decodes in the training process.", minimum=0, maximum=MAX_PROCESSES
    )
    log_every: int = option(10, "Updates between log lines.", minimum=1, maximum=MAX_UPDATES)
    log: str | None = option(None, "A logger besides log.jsonl.", choices=LOGGERS)
    log_images: int = option(
        0, "Updates between pictures of predictions for training images; 0 draws none.", minimum=0, maximum=MAX_UPDATES
    )
    val_every: int = option(
        0,
        "Updates between validations on training images that are then hidden from the student; 0 hides none.",
        minimum=0,
        maximum=MAX_UPDATES,
    )
    val_images: int = option(
        64, "Images hidden for validation, at most a tenth of the labeled ones.", minimum=1, maximum=MAX_BATCH
    )
    checkpoint_every: int = option(2000, "Updates between checkpoints.", minimum=1, maximum=MAX_UPDATES)

    def __post_init__(self) -> None:
        """Raise UsageError if a value is out of range."""
        check_options(self)
        if self.batch_size % self.devices:
            raise UsageError(
                f"--devices {self.devices}: must divide --batch-size {self.batch_size}; change one of them"
            )
        if self.glm == "off" and not (self.ce or self.nel or self.generate):
            raise UsageError("--glm off with --no-ce --no-nel --no-generate: no loss is left; enable at least one")

    @property
    def warmup_updates(self) -> int:
        """Updates of linear warm-up: at most a tenth of the run, so that short runs are trained at full rate, too."""
        return min(self.warmup, self.iterations // 10)

    @property
    def setting(self) -> str:
        """The setting of zero-shot segmentation: whether training knows the names of unseen classes."""
        return "transductive" if self.transductive else "inductive"

    @property
    def gamma(self) -> float:
        """What is added to the logits of unseen classes: the paper's value, or 0 if training knew their names."""
        return 0.0 if self.transductive else GAMMA

    @property
    def changed(self) -> dict[str, tuple[Any, Any]]:
        """The settings that differ from the defaults: (value, default) by name."""
        pairs = {name: (value, default_of(type(self), name)) for name, value in asdict(self).items()}
        return {name: (value, default) for name, (value, default) in pairs.items() if value != default}

    def save(self, path: Path) -> None:
        """Write as JSON that `train --config` reads."""
        with atomic_write(path) as draft:
            draft.write_text(json.dumps(asdict(self), indent=2) + "\n")


def read_config(path: Path | None, **overrides: Any) -> TrainConfig:
    """A config from a JSON file (or the defaults), overridden by every override that is not None."""
    stored: dict[str, Any] = {}
    if path:
        try:
            stored = read_json(path)
            if unknown := sorted(name for name, _ in stored.items() if not is_setting(name)):
                raise UsageError(f"--config {path}: unknown setting {unknown[0]!r}")
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"--config {path}: cannot be read as JSON ({error})") from None
    return overridden(stored, **overrides)


def without_folders(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which paths are reduced to names: they would lead nowhere on another machine."""
    names = {name: Path(settings[name]).name for name in ("cache", "encoder_weights") if settings.get(name)}
    return {**settings, **names, "root": None}


def overridden(stored: Mapping[str, Any], **overrides: Any) -> TrainConfig:
    """A config from stored settings (or the defaults), overridden by every override that is not None."""
    overrides = {name: str(value) if isinstance(value, Path) else value for name, value in overrides.items()}
    return TrainConfig(**({**stored} | {name: value for name, value in overrides.items() if value is not None}))


def is_setting(name: str) -> bool:
    """Whether a setting of this name exists."""
    return name in {entry.name for entry in fields(TrainConfig)}
