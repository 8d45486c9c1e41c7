"""Where a CLIP comes from: an open_clip name or JSON config, and a pretrained tag, a local file, or `random`."""

import json
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_cache.errors import FULL, UsageError, UserError, explain_os_error, one_line
from data_cache.messages import did_you_mean
from data_cache.system.downloads import hub_downloads
from data_cache.system.process_state import quiet_logging, quiet_warnings, seeded
from pipeline.teacher.names import TINY, TINY_TAGS, check_clip, clip_configs, pretrained_tags
from pipeline.teacher.tokenizer import TOKENIZER, load_tokenizer

if TYPE_CHECKING:
    import torch

RANDOM = "random"
RANDOM_SEED = 0
LOCAL_DIR = "local-dir:"
"""How open_clip names a folder with config, weights and tokenizer."""
PAPER_IMAGE_SIZE = 512
OPENAI = "openai"
TINY_CONFIG = Path(__file__).parents[1] / "tiny" / "open_clip_config.json"
TINY_WEIGHTS = {tag: TINY_CONFIG.with_name(f"{tag}.safetensors") for tag in TINY_TAGS}


@dataclass(frozen=True)
class CLIPSource:
    """Names a CLIP completely.

    Args:
        clip: an open_clip architecture, the path of an open_clip JSON config, or `tiny`: the bundled one.
        weights: a pretrained tag of that architecture, the path of a checkpoint, or `random` (fixed seed). By
            default the only tag of the architecture (for `tiny` that of the demo's scenes), else `openai`.
        image_size: side of the square input in pixels; by default the config file's own (256 for `tiny`), else 512.
        mean: mean of the input by channel; by default as published with the weights.
        std: its standard deviation.

    """

    clip: str
    weights: str = ""
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.weights:
            tags = TINY_TAGS[:1] if self.clip == TINY else pretrained_tags().get(self.clip, ())
            object.__setattr__(self, "weights", next(iter(tags)) if len(tags) == 1 else OPENAI)

    @property
    def name(self) -> str:
        """Name of the architecture; for a config file, its stem."""
        return self._path.stem if self._path and self.clip != TINY else self.clip

    @property
    def quick_gelu(self) -> bool:
        """Whether the towers use QuickGELU; without it, the same weights give other features."""
        return bool(self._config.get("quick_gelu", False))

    @property
    def origin(self) -> dict[str, str]:
        """The options that load the same CLIP from any working directory."""
        clip = str(self._path.absolute()) if self._path and self.clip != TINY else self.clip
        if clip.startswith(LOCAL_DIR):
            clip = LOCAL_DIR + str(Path(clip.removeprefix(LOCAL_DIR)).absolute())
        local = self._checkpoint and self.clip != TINY
        return {"clip": clip, "weights": str(Path(self.weights).absolute()) if local else self.weights}

    def check(self) -> None:
        """Raise UsageError for an unknown name or tag, or weights of another activation, without importing open_clip.

        A name from a hub (`hf-hub:`, `local-dir:`) is checked when it is loaded.
        """
        if self.image_size is not None and self.image_size < 1:
            raise UsageError(f"--image-size {self.image_size}: must be a positive number of pixels")
        if not self._from_hub:
            self._check_weights()

    def load(self) -> "tuple[Any, Callable[..., torch.Tensor]]":
        """The model in float32 on the CPU, and its tokenizer. Raises UsageError or UserError in one line."""
        import open_clip
        from open_clip.timm_model import TimmModel

        self.check()
        size = self.image_size or (None if self._path else PAPER_IMAGE_SIZE)
        hub = self._tag or self._from_hub or self._config.get("text_cfg", {}).get(TOKENIZER)
        downloads = hub_downloads() if hub else nullcontext("")
        with (
            tempfile.TemporaryDirectory() as folder,
            quiet_logging(),
            downloads as offline,
            seeded(RANDOM_SEED),
        ):
            name = self.clip
            if self._path:
                # open_clip reads configs from a registry, by name, or from a folder: a folder causes no name clashes
                content = {"model_cfg": self._config, "preprocess_cfg": self._preprocess}
                Path(folder, "open_clip_config.json").write_text(json.dumps(content))
                name = f"local-dir:{folder}"
            try:
                tokenizer = load_tokenizer(self.name, name, self._config.get("text_cfg", {}), offline)
                model = open_clip.create_model(
                    name,
                    pretrained=self._tag,
                    # position embeddings from timm are resized after the weights are loaded
                    force_image_size=None if "timm_model_name" in self._config.get("vision_cfg", {}) else size,
                    force_preprocess_cfg=self._normalization,
                )
                if self._checkpoint:
                    open_clip.load_checkpoint(model, str(_in_float32(self._checkpoint, Path(folder))))
                if isinstance(model.visual, TimmModel):
                    with quiet_warnings():  # of timm's use of torch
                        model.visual.set_input_size(size or model.visual.image_size)
            except UserError:
                raise
            except Exception as error:
                raise UserError(self._load_error(error, offline)) from None
        return model, tokenizer

    @property
    def _path(self) -> Path | None:
        if self.clip == TINY:
            return TINY_CONFIG
        return Path(self.clip) if self.clip.endswith(".json") else None

    @property
    def _from_hub(self) -> bool:
        return not self._path and ":" in self.clip

    @property
    def _tag(self) -> str | None:
        return None if self.weights == RANDOM or self._checkpoint else self.weights

    @property
    def _checkpoint(self) -> Path | None:
        if self.clip == TINY and self.weights in TINY_WEIGHTS:
            return TINY_WEIGHTS[self.weights]
        path = Path(self.weights)
        return path if self.weights != RANDOM and path.is_file() else None

    @cached_property
    def _config(self) -> dict[str, Any]:
        if self._from_hub:
            return {}
        if not self._path:
            check_clip(self.clip)
            return json.loads(clip_configs()[self.clip].read_text(encoding="utf-8"))
        try:
            config = self._file.get("model_cfg", self._file)
            if {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
                return config
        except OSError as error:
            raise UsageError(f"--clip {self.clip}: cannot be read ({error.strerror})") from None
        except (ValueError, AttributeError) as error:
            raise UsageError(f"--clip {self.clip}: cannot be read as JSON ({error})") from None
        raise UsageError(f"--clip {self.clip}: an open_clip config has embed_dim, vision_cfg and text_cfg")

    @property
    def _preprocess(self) -> dict[str, Any]:
        # configs published with weights contain the mean and standard deviation they were trained with
        return self._file.get("preprocess_cfg", {})

    @property
    def _normalization(self) -> dict[str, Any]:
        """Mean and standard deviation, unless open_clip finds them with the weights."""
        if self.mean and self.std:
            return {"mean": self.mean, "std": self.std}
        if self._path or self._from_hub or self._tag:
            return {}
        import open_clip

        tags = open_clip.list_pretrained_tags_by_model(self.clip)
        published = [open_clip.get_pretrained_cfg(self.clip, tag) for tag in tags]
        found = [{name: config.get(name) for name in ("mean", "std")} for config in published]
        return found[0] if found and all(one == found[0] for one in found) else {}

    @cached_property
    def _file(self) -> dict[str, Any]:
        assert self._path
        return json.loads(self._path.read_text())

    def _check_weights(self) -> None:
        config = self._config
        if self.weights == RANDOM:
            return
        if self._checkpoint:
            if "openai" in self._checkpoint.name.lower() and not self.quick_gelu:
                raise UsageError(f"--clip {self.name}: {_NEEDS_QUICKGELU}")
            return
        tags = dict.fromkeys(TINY_TAGS, False) if self.clip == TINY else pretrained_tags().get(self.clip, {})
        if self.weights not in tags:
            known = f"its tags are {', '.join(tags)}" if tags else "it has no published weights"
            raise UsageError(
                f"--clip-weights {self.weights}: neither a file nor a tag of {self.name} ({known}); "
                f"pass the path of a checkpoint, or `random` for untrained weights{did_you_mean(self.weights, tags)}"
            )
        if tags[self.weights] != config.get("quick_gelu", False):
            raise UsageError(f"--clip {self.name} with --clip-weights {self.weights}: {_NEEDS_QUICKGELU}")

    def _load_error(self, error: Exception, offline: str) -> str:
        if isinstance(error, OSError) and error.errno in FULL:
            return f"--clip-weights {self.weights}: {explain_os_error(error)}"
        reason = one_line(error, 300)
        if "TorchScript" in str(error):
            reason = "a TorchScript archive; for OpenAI's own weights pass --clip-weights openai, or save a state dict"
        if self._tag:
            import open_clip

            repository = open_clip.get_pretrained_cfg(self.clip, self.weights).get("hf_hub", "").strip("/")
            return (
                f"--clip-weights {self.weights}: could not be downloaded ({offline or reason}); on another machine, "
                f"get open_clip_model.safetensors from https://huggingface.co/{repository}, and pass its path as "
                "--clip-weights"
            )
        return f"--clip {self.name} with --clip-weights {self.weights}: does not load ({reason})"


_NEEDS_QUICKGELU = (
    "these weights were trained with another activation function and would silently give wrong features; "
    "for OpenAI weights name the -quickgelu architecture, e.g. --clip ViT-B-16-quickgelu"
)


def _in_float32(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint, or a float32 copy: open_clip cannot resize half-precision position embeddings on a CPU."""
    import torch
    from open_clip.factory import load_state_dict
    from safetensors.torch import save_file

    if checkpoint.suffix == ".npz":
        return checkpoint
    # not exported by open_clip itself: it unwraps all kinds of checkpoints that `load_checkpoint` reads
    state = load_state_dict(str(checkpoint), weights_only=True)
    if not any(getattr(value, "dtype", None) in (torch.float16, torch.bfloat16) for value in state.values()):
        return checkpoint
    copy = folder / "float32.safetensors"
    save_file({name: value.float().clone() for name, value in state.items()}, copy)
    return copy
