"""Where a CLIP comes from: an open_clip name or JSON config, and a pretrained tag, a local file, or `random`."""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import load_state_dict
from safetensors.torch import save_file

from data_cache.errors import FULL, UsageError, UserError, explain_os_error, one_line
from data_cache.messages import did_you_mean

RANDOM = "random"
RANDOM_SEED = 0
PAPER_IMAGE_SIZE = 512
OPENAI = "openai"
TINY = "tiny"
TINY_TAG = "scenes"
TINY_CONFIG = Path(__file__).parents[1] / "tiny" / "open_clip_config.json"
TINY_WEIGHTS = TINY_CONFIG.with_name("tiny.safetensors")


@dataclass(frozen=True)
class CLIPSource:
    """Names a CLIP completely.

    Args:
        clip: an open_clip architecture, the path of an open_clip JSON config, or `tiny`: the bundled one.
        weights: a pretrained tag of that architecture, the path of a checkpoint, or `random` (fixed seed). By
            default `openai`, and for `tiny` its own.
        image_size: side of the square input in pixels; by default the config file's own (256 for `tiny`), else 512.

    """

    clip: str
    weights: str = ""
    image_size: int | None = None

    def __post_init__(self) -> None:
        if not self.weights:
            object.__setattr__(self, "weights", TINY_TAG if self.clip == TINY else OPENAI)

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
        local = self._checkpoint and self.clip != TINY
        return {"clip": clip, "weights": str(Path(self.weights).absolute()) if local else self.weights}

    def load(self) -> tuple[Any, Callable[..., torch.Tensor]]:
        """The model in float32 on the CPU, and its tokenizer. Raises UsageError or UserError in one line."""
        if self.image_size is not None and self.image_size < 1:
            raise UsageError(f"--image-size {self.image_size}: must be a positive number of pixels")
        self._check_weights()
        size = self.image_size or (None if self._path else PAPER_IMAGE_SIZE)
        with tempfile.TemporaryDirectory() as folder, _quiet_logging(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            name = self.clip
            if self._path:
                # open_clip reads configs from a registry, by name, or from a folder: a folder causes no name clashes
                content = {"model_cfg": self._config, "preprocess_cfg": self._preprocess}
                Path(folder, "open_clip_config.json").write_text(json.dumps(content))
                name = f"local-dir:{folder}"
            try:
                tokenizer = open_clip.get_tokenizer(name)
                model = open_clip.create_model(name, pretrained=self._tag, force_image_size=size)
                if self._checkpoint:
                    open_clip.load_checkpoint(model, str(_in_float32(self._checkpoint, Path(folder))))
            except Exception as error:
                raise UserError(self._load_error(error)) from None
        return model, tokenizer

    @property
    def _path(self) -> Path | None:
        if self.clip == TINY:
            return TINY_CONFIG
        return Path(self.clip) if self.clip.endswith(".json") else None

    @property
    def _tag(self) -> str | None:
        return None if self.weights == RANDOM or self._checkpoint else self.weights

    @property
    def _checkpoint(self) -> Path | None:
        if (self.clip, self.weights) == (TINY, TINY_TAG):
            return TINY_WEIGHTS
        path = Path(self.weights)
        return path if self.weights != RANDOM and path.is_file() else None

    @cached_property
    def _config(self) -> dict[str, Any]:
        if not self._path:
            if config := open_clip.get_model_config(self.clip):
                return config
            hint = did_you_mean(self.clip, [*open_clip.list_models(), TINY])
            hint = hint or "; pass an open_clip name or a JSON config"
            raise UsageError(f"--clip: open_clip has no model named {self.clip!r}{hint}")
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
        if self.clip == TINY:
            tags = [TINY_TAG]
        else:
            tags = [] if self._path else open_clip.list_pretrained_tags_by_model(self.clip)
        if self.weights not in tags:
            known = f"its tags are {', '.join(tags)}" if tags else "it has no published weights"
            raise UsageError(
                f"--clip-weights {self.weights}: neither a file nor a tag of {self.name} ({known}); "
                "pass the path of a checkpoint, or `random` for untrained weights"
            )
        if open_clip.get_pretrained_cfg(self.clip, self.weights).get("quick_gelu", False) != config.get(
            "quick_gelu", False
        ):
            raise UsageError(f"--clip {self.name} with --clip-weights {self.weights}: {_NEEDS_QUICKGELU}")

    def _load_error(self, error: Exception) -> str:
        if isinstance(error, OSError) and error.errno in FULL:
            return f"--clip-weights {self.weights}: {explain_os_error(error)}"
        reason = one_line(error, 300)
        if "TorchScript" in str(error):
            reason = "a TorchScript archive; for OpenAI's own weights pass --clip-weights openai, or save a state dict"
        if self._tag:
            return (
                f"--clip-weights {self.weights}: could not be downloaded ({reason}); download them on a machine "
                "with internet access and pass the file's path, or `random` for untrained weights"
            )
        return f"--clip {self.name} with --clip-weights {self.weights}: does not load ({reason})"


_NEEDS_QUICKGELU = (
    "these weights were trained with another activation function and would silently give wrong features; "
    "for OpenAI weights name the -quickgelu architecture, e.g. --clip ViT-B-16-quickgelu"
)


def _in_float32(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint, or a float32 copy: open_clip cannot resize half-precision position embeddings on a CPU."""
    if checkpoint.suffix == ".npz":
        return checkpoint
    # not exported by open_clip itself: it unwraps all kinds of checkpoints that `load_checkpoint` reads
    state = load_state_dict(str(checkpoint), weights_only=True)
    if not any(getattr(value, "dtype", None) in (torch.float16, torch.bfloat16) for value in state.values()):
        return checkpoint
    copy = folder / "float32.safetensors"
    save_file({name: value.float().clone() for name, value in state.items()}, copy)
    return copy


@contextmanager
def _quiet_logging() -> Iterator[None]:
    # open_clip also logs what our error message says; `logging` has no public getter for the level
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(previous)
