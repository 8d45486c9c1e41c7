"""The teacher: a frozen CLIP that is asked once an image for its CLS token and its dense tokens."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from threading import Lock, Semaphore
from typing import Any, Literal

import numpy as np
import open_clip
import torch
from jaxtyping import Bool, Float, Float16, Int, UInt8
from open_clip.transformer import VisionTransformer
from torch import Tensor

from data_cache.devices import resolve_device
from data_cache.errors import UsageError, UserError, one_line
from pipeline.weights import CLIPSource

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BATCH = {"cpu": 4, "cuda": 32}
"""Views a forward, by device. Fixed, because the rounding of a product may depend on how many travel in it."""
ASKERS = 4
"""Batches a CPU works on at once, at the most: each takes memory, and a small shard has no more to give."""
DENSE_RECIPE = "output"
"""Dense tokens are the last block's patch tokens after the final LayerNorm and the visual projection."""


@dataclass(frozen=True)
class Features:
    """What CLIP says of a batch, already rounded to float16: all later steps start from these numbers."""

    cls: Float16[np.ndarray, "batch channel"]
    dense: Float16[np.ndarray, "batch y x channel"]


@dataclass(frozen=True)
class Pending:
    """Features where CLIP computed them. A GPU may still be at it: whoever reads them waits."""

    cls: Float16[Tensor, "batch channel"]
    dense: Float16[Tensor, "batch y x channel"]

    def finite(self) -> Bool[Tensor, "batch"]:
        """Per image: are all its numbers finite in float16?"""
        # an exponent of all ones is infinity or nan; asking for it bit by bit is 14 times as fast as `isfinite`
        largest = [(part.view(torch.int16) & 0x7FFF).flatten(1).amax(dim=1) for part in (self.cls, self.dense)]
        return torch.maximum(*largest) < 0x7C00


class FrozenCLIP:
    """Any open_clip vision transformer with a CLS token.

    Args:
        source: architecture, weights and image size (`pipeline.weights`).
        precision: number format of the vision tower's weights; the text tower stays in float32.
        device: where it runs.
        compiled: compile the vision tower; its first batch then takes a minute, all others less than before.

    Raises:
        UsageError: the architecture or the weights do not exist or do not fit (one line each).

    """

    def __init__(self, source: CLIPSource, precision: Precision, device: torch.device, compiled: bool = False) -> None:
        self.model, self.tokenizer = source.load()
        self.source, self.precision, self.device = source, precision, device
        if reason := _unfit(self.model.visual):
            raise UsageError(f"--clip {source.name}: {reason}; choose a ViT such as ViT-B-16-quickgelu")
        visual: VisionTransformer = self.model.visual
        self.visual = visual
        self.image_size, self.patch = int(visual.image_size[0]), int(visual.patch_size[0])
        if self.image_size % self.patch:
            raise UsageError(
                f"--image-size {self.image_size}: not a multiple of the {self.patch} px patches of {source.name}"
            )
        self.grid: tuple[int, int] = (visual.grid_size[0], visual.grid_size[1])
        self.channels = int(visual.output_dim)
        self.weights_hash = _hash_weights(self.model)
        preprocess = open_clip.get_model_preprocess_cfg(self.model)
        self.mean, self.std = tuple(preprocess["mean"]), tuple(preprocess["std"])
        visual.output_tokens = True
        self.model.requires_grad_(False).eval().to(device)
        visual.to(DTYPES[precision])
        if device.type == "cuda":
            visual.conv1.to(memory_format=torch.channels_last)  # as the images come
        self._forward = _compiled(visual) if compiled else visual
        self._threads = torch.get_num_threads()
        self.askers = askers(self._threads) if device.type == "cpu" else 1
        """How many threads may be inside `turn` at once."""
        self._turns = Semaphore(self.askers)
        self._mean, self._std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (self.mean, self.std))

    @contextmanager
    def turn(self) -> Iterator[None]:
        """For `ask` to be called inside, by `askers` threads at once, which share the cores of a CPU.

        Threads that work on one batch wait for the slowest at every layer, which on a CPU is the one whose core has
        to decode or cluster meanwhile. The fewer share a batch, the less they wait.
        """
        with self._turns:
            if self.askers == 1:
                yield
                return
            torch.set_num_threads(self._threads // self.askers)
            try:
                yield
            finally:
                torch.set_num_threads(self._threads)  # torch also keeps it for threads that are yet to start

    @property
    def batch(self) -> int:
        """Views a forward on its device, for whoever wants equal answers each time."""
        return BATCH[self.device.type]

    @torch.inference_mode()
    def encode(self, images: UInt8[np.ndarray, "batch size size 3"]) -> Features:
        """CLS tokens (un-normalised) and dense tokens of RGB images of the CLIP input size.

        Features beyond float16 come back as infinities; the caller must look (`finite`).
        """
        answer = self.ask(images)
        return Features(answer.cls.numpy(force=True), answer.dense.numpy(force=True))

    @torch.inference_mode()
    def ask(self, images: UInt8[np.ndarray, "batch size size 3"] | UInt8[Tensor, "batch size size 3"]) -> Pending:
        """The same as tensors on the device; a GPU is given the work and, if the images are pinned, not waited for."""
        pixels = torch.as_tensor(images).to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()
        pixels.div_(255).sub_(self._mean).div_(self._std)
        cls, tokens = self._forward(pixels.to(DTYPES[self.precision]))
        dense = (tokens @ self.visual.proj).unflatten(1, self.grid)
        return Pending(cls.half(), dense.half())

    @torch.inference_mode()
    def encode_text(self, classes: Sequence[str], templates: Sequence[str]) -> Float[np.ndarray, "class channel"]:
        """One feature a class: each prompt's feature L2-normalised, their mean, L2-normalised again."""
        rows = []
        for name in classes:
            prompts = self.tokenizer([template.format(name) for template in templates]).to(self.device)
            features = _encode_prompts(self.model, prompts).mean(dim=0)
            rows.append(torch.nn.functional.normalize(features, dim=-1))
        return torch.stack(rows).cpu().numpy()

    def fingerprint(self) -> dict[str, Any]:
        """What of the teacher changes the numbers it gives."""
        return {
            "model": self.source.name,
            "weights_sha256": self.weights_hash,
            "quick_gelu": self.source.quick_gelu,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "precision": self.precision,
            "dense_recipe": DENSE_RECIPE,
        }


def askers(threads: int) -> int:
    """How many batches a CPU works on at once, with equally many threads each: so that the fewest are idle."""
    return max(range(min(2, threads), min(ASKERS, threads) + 1), key=lambda count: (threads // count * count, count))


def resolve_precision(precision: str, device: torch.device) -> Precision:
    """`auto` is bf16 where the device multiplies in it, else fp32: others would only convert to and fro."""
    if precision == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        able = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot tell
        return "bf16" if able.get("amx_bf16") or able.get("avx512_bf16") else "fp32"
    if precision not in DTYPES:
        raise UsageError(f"--precision {precision}: choose auto, {', '.join(DTYPES)}")
    return precision  # type: ignore[return-value]


def device_and_precision(device: str, precision: str) -> tuple[str, Precision]:
    """What `--device` and `--precision` are to the process that calls this."""
    found = resolve_device(device)
    return str(found), resolve_precision(precision, found)


def _unfit(visual: torch.nn.Module) -> str | None:
    if not isinstance(visual, VisionTransformer):
        return "not one of open_clip's own vision transformers"
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.final_ln_after_pool:
        return "its image embedding is pooled, not a CLS token"
    if visual.proj is None:
        return "it has no visual projection"
    if visual.image_size[0] != visual.image_size[1] or visual.patch_size[0] != visual.patch_size[1]:
        return "its input or its patches are not square"
    return None


def _encode_prompts(model: Any, tokens: Int[Tensor, "prompt token"]) -> Float[Tensor, "prompt channel"]:
    """L2-normalised features of tokenised prompts."""
    # CLIP's text tower is causal and reads its answer at the end token (the greatest id): what pads a prompt to 77
    # tokens cannot change it. Cutting the padding off is 5 times as fast (benchmarks/prompts_vs_encode_text.py).
    if not isinstance(model, open_clip.CLIP) or model.attn_mask is None or model.text_pool_type != "argmax":
        return model.encode_text(tokens, normalize=True)
    length = int(tokens.argmax(dim=1).max()) + 1
    cut = {
        "positional_embedding": model.positional_embedding[:length],
        "attn_mask": model.attn_mask[:length, :length],
    }
    return torch.func.functional_call(model, cut, kwargs={"text": tokens[:, :length]})[1]


def _compiled(visual: VisionTransformer) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    from torch._dynamo.exc import TorchDynamoException

    forward, first = torch.compile(visual), Lock()
    ready = False

    def call(pixels: Float[Tensor, "batch 3 size size"]) -> tuple[Tensor, Tensor]:
        nonlocal ready
        try:
            with nullcontext() if ready else first:  # or each of several threads would compile
                answer = forward(pixels)
            ready = True
            return answer
        except TorchDynamoException as error:
            raise UserError(f"--compile: CLIP cannot be compiled here ({one_line(error)}); leave it out") from None

    return call


def _hash_weights(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
