"""The teacher: a frozen CLIP that gives the CLS token and the dense tokens of an image."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from threading import Lock, Semaphore
from typing import Any, Literal

import numpy as np
import open_clip
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from data_cache.errors import UsageError
from data_cache.system.devices import compile_errors, resolve_device
from pipeline.teacher.protocol import DeviceFeatures, Features
from pipeline.teacher.recipes import OUTPUT
from pipeline.teacher.towers import open_tower
from pipeline.teacher.weights import CLIPSource

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BATCH = {"cpu": 4, "cuda": 32}
"""Views per forward pass, by device. Fixed, because rounding may depend on the size of the batch."""
MAX_CONCURRENT_BATCHES = 4
"""Batches that a CPU encodes at once, at most: each takes memory, and a small shard holds no more."""


class FrozenCLIP:
    """Any open_clip model whose image tower has a square grid (`pipeline.teacher.towers`): a `Teacher`.

    Args:
        source: architecture, weights and image size (`pipeline.teacher.weights`).
        precision: number format of the vision tower's weights; the text tower stays in float32.
        device: where it runs.
        compiled: compile the vision tower: the first batch takes a minute, all others less than before.
        recipe: how dense tokens are computed, one of `RECIPES`.

    Raises:
        UsageError: the architecture or the weights do not exist or do not fit (one line each).

    """

    def __init__(
        self,
        source: CLIPSource,
        precision: Precision,
        device: torch.device,
        compiled: bool = False,
        recipe: str = OUTPUT,
    ) -> None:
        self.model, self.tokenizer = source.load()
        self.source, self.precision, self.device, self.recipe = source, precision, device, recipe
        self.origin = source.origin
        tower = open_tower(self.model.visual, recipe, source.name)
        self.image_size, self.patch, self.grid = tower.image_size, tower.patch, tower.grid
        self.channels = tower.channels
        if self.image_size % self.patch:
            raise UsageError(
                f"--image-size {self.image_size}: not a multiple of the {self.patch} px patches of {source.name}"
            )
        self.weights_hash = hash_weights(self.model)
        preprocess = open_clip.get_model_preprocess_cfg(self.model)
        self.mean, self.std = tuple(preprocess["mean"]), tuple(preprocess["std"])
        self.model.requires_grad_(False).eval().to(device)
        self.visual: nn.Module = self.model.visual
        self.visual.to(DTYPES[precision])
        if device.type == "cuda":
            self.visual.to(memory_format=torch.channels_last)  # the layout of the images
        self._tower = tower
        self._forward = _compiled(tower) if compiled else tower
        self.threads = torch.get_num_threads()
        """How many cores this process may use."""
        self.max_concurrent_batches = concurrent_batches(self.threads) if device.type == "cpu" else 1
        """How many threads may hold a `compute_slot` at once."""
        self._compute_slots = Semaphore(self.max_concurrent_batches)
        self._text_lock = Lock()
        self._mean, self._std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (self.mean, self.std))

    @contextmanager
    def compute_slot(self) -> Iterator[None]:
        """Call `forward` inside: at most `max_concurrent_batches` threads at once, which share the cores of a CPU.

        Threads that compute one batch wait for the slowest at every layer, which on a CPU is the one whose core also
        decodes or clusters. The fewer threads share a batch, the less they wait.
        """
        with self._compute_slots:
            if self.max_concurrent_batches == 1:
                yield
                return
            torch.set_num_threads(self.threads // self.max_concurrent_batches)
            try:
                yield
            finally:
                torch.set_num_threads(self.threads)  # also the default of threads that start later

    @property
    def batch(self) -> int:
        """Views per forward pass on its device; equal batches give equal features."""
        return BATCH[self.device.type]

    @torch.inference_mode()
    def encode(self, images: UInt8[np.ndarray, "batch size size 3"]) -> Features:
        """CLS tokens (un-normalized) and dense tokens of RGB images of the CLIP input size.

        Features beyond float16 are infinite; the caller must check (`DeviceFeatures.finite`).
        """
        features = self.forward(images)
        return Features(features.cls.numpy(force=True), features.dense.numpy(force=True))

    @torch.inference_mode()
    def forward(
        self, images: UInt8[np.ndarray, "batch size size 3"] | UInt8[Tensor, "batch size size 3"]
    ) -> DeviceFeatures:
        """The same as tensors on the device; with pinned images this does not wait for a GPU."""
        cls, tokens = self._forward(normalized(images, self._mean, self._std).to(DTYPES[self.precision]))
        dense = self._tower.project(tokens).unflatten(1, self.grid)
        return DeviceFeatures(cls.half(), dense.half())

    @torch.inference_mode()
    def encode_text(self, classes: Sequence[str], templates: Sequence[str]) -> Float[np.ndarray, "class channel"]:
        """One feature per class: each prompt's feature L2-normalized, their mean, L2-normalized again."""
        rows = []
        for name in classes:
            prompts = self.tokenizer([template.format(name) for template in templates]).to(self.device)
            with self._text_lock:
                features = _encode_prompts(self.model, prompts).mean(dim=0)
            rows.append(torch.nn.functional.normalize(features, dim=-1))
        return torch.stack(rows).cpu().numpy()

    def unknown_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """Names with a word that this CLIP never learned: the embedding of one of its tokens is zero.

        `tiny` keeps only the tokens of its captions; CLIPs with a full vocabulary know every word.
        """
        embedding = getattr(self.model, "token_embedding", None)
        if embedding is None:
            return ()
        learned = embedding.weight.any(dim=1).cpu()
        tokens = self.tokenizer(list(names))
        # the end token has the greatest id; zeros pad what follows
        inside = torch.arange(tokens.shape[1]) < tokens.argmax(dim=1, keepdim=True)
        unknown = (inside & ~learned[tokens]).any(dim=1)
        return tuple(name for name, missing in zip(names, unknown.tolist(), strict=True) if missing)

    def fingerprint(self) -> dict[str, Any]:
        """Everything about the teacher that changes its features."""
        return {
            "model": self.source.name,
            "weights_sha256": self.weights_hash,
            "quick_gelu": self.source.quick_gelu,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "precision": self.precision,
            "dense_recipe": self.recipe,
        }


def concurrent_batches(threads: int) -> int:
    """How many batches a CPU encodes at once, with equally many threads each, so that the fewest threads are idle."""
    return max(
        range(min(2, threads), min(MAX_CONCURRENT_BATCHES, threads) + 1),
        key=lambda count: (threads // count * count, count),
    )


def resolve_precision(precision: str, device: torch.device) -> Precision:
    """`auto` is bf16 where the device has bf16 arithmetic, else fp32: emulated bf16 is slower."""
    if precision == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older versions of torch
        return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "fp32"
    if precision not in DTYPES:
        raise UsageError(f"--precision {precision}: choose auto, {', '.join(DTYPES)}")
    return precision  # type: ignore[return-value]


def device_and_precision(device: str, precision: str) -> tuple[str, Precision]:
    """`--device` and `--precision` as this process resolves them."""
    resolved = resolve_device(device)
    return str(resolved), resolve_precision(precision, resolved)


def _encode_prompts(model: Any, tokens: Int[Tensor, "prompt token"]) -> Float[Tensor, "prompt channel"]:
    """L2-normalized features of tokenized prompts. One thread at a time: it exchanges parameters of the model."""
    # CLIP's text tower is causal and its feature is that of the end token (the greatest id): what pads a prompt to 77
    # tokens cannot change it. Without the padding it is 5 times as fast (benchmarks/prompts_vs_encode_text.py).
    if not isinstance(model, open_clip.CLIP) or model.attn_mask is None or model.text_pool_type != "argmax":
        return model.encode_text(tokens, normalize=True)
    length = int(tokens.argmax(dim=1).max()) + 1
    cut = {
        "positional_embedding": model.positional_embedding[:length],
        "attn_mask": model.attn_mask[:length, :length],
    }
    return torch.func.functional_call(model, cut, kwargs={"text": tokens[:, :length]})[1]


def _compiled(visual: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    forward, first = torch.compile(visual), Lock()
    ready = False

    def call(pixels: Float[Tensor, "batch 3 size size"]) -> tuple[Tensor, Tensor]:
        nonlocal ready
        with (
            compile_errors("CLIP"),
            nullcontext() if ready else first,
        ):  # otherwise each of several threads would compile
            features = forward(pixels)
            ready = True
            return features

    return call


def normalized(
    images: UInt8[np.ndarray, "batch size size 3"] | UInt8[Tensor, "batch size size 3"],
    mean: Float[Tensor, "3 1 1"],
    std: Float[Tensor, "3 1 1"],
) -> Float[Tensor, "batch 3 size size"]:
    """RGB images as the input of a vision model, on the device of `mean`; pinned ones do not wait for a GPU."""
    pixels = torch.as_tensor(images).to(mean.device, non_blocking=True).permute(0, 3, 1, 2).float()
    return pixels.div_(255).sub_(mean).div_(std)


def hash_weights(model: torch.nn.Module) -> str:
    """SHA-256 of all weights with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
