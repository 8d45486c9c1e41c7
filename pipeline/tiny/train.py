"""Trains a tiny CLIP on captioned scenes: `python -m pipeline.tiny.train`; 36 minutes on two cores.

The one of the crowded world starts from the demo's and has a second round: `--world crowd --tokens 96 --bf16` with
`--start pipeline/tiny/scenes.safetensors --scenes 7000 --minutes 30`, then with `--start` the result of the first round
and `--scenes 14000 --minutes 55`. Its card and its curve are those of both rounds.

Captions name all classes, including those that are unseen in segmentation, as web captions do. Patches are dropped at
random (FLIP, arXiv 2212.00794) so that an image costs the same at any size (`--tokens`). At first all images have 256
px, then their size varies, and the last updates use all patches. CLIP's contrastive loss over captions is combined with
a sigmoid loss (SigLIP, arXiv 2303.15343) for whether each class name is in the caption. Training starts with the latter
(docs/decisions/method.md#the-tiny-clip).
"""

import json
import math
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import open_clip
import torch
import typer
from jaxtyping import Float, Int, UInt8
from open_clip.transformer import PatchDropout  # not exported by open_clip itself
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from data_cache.datasets import WORLDS
from data_cache.datasets.captions import caption
from data_cache.datasets.worlds import Scenes, World
from data_cache.system.atomic import atomic_write
from pipeline.teacher.clip import FrozenCLIP
from pipeline.teacher.weights import TINY_CONFIG, TINY_WEIGHTS, CLIPSource
from pipeline.tiny.retrieval import mean_average_precision, retrieval

SIZES = (128, 160, 192, 224, 256)
"""Sides of the input in training; those below the side of a scene are omitted."""
SCORED_SIZES = (128, 192, 256)
WARM_UP = 50
ATTENTION = ([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], [SDPBackend.MATH])
"""Kernels of attention in float32 and in bfloat16, in which PyTorch's fused kernel is slow on a CPU."""
CONTRASTIVE_START, SIZES_START, ALL_PATCHES_START = 0.2, 0.5, 0.93
"""Shares of the updates after which the contrastive loss starts, sizes vary, and all patches are used."""
NAME_WEIGHT, NAME_SCALE, NAME_BIAS = 10.0, 10.0, -2.0
"""The weight of the sigmoid loss; the scale and the bias that turn its cosines into logits."""
NAME_POSITION = 5
"""Index of the name among the tokens of "a photo of a NAME"; each name is one token."""
CLS_NORM, TRAINED_NORM = 4.9, 19.6
"""Mean norm of the CLS tokens of the saved weights, and about that during training. CLIP's cosines do not depend on it,
GLM's attention does (docs/decisions/method.md#length-of-the-tiny-clips-cls-tokens)."""


def main(
    steps: Annotated[int, typer.Option(help="Updates.")] = 2400,
    batch_size: Annotated[int, typer.Option(help="Pairs of scene and caption per update.")] = 64,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of weights, captions and order; the scenes are fixed.")] = 0,
    scenes: Annotated[int, typer.Option(help="Scenes to train on.")] = 16000,
    scored: Annotated[int, typer.Option(help="Fresh scenes for the final evaluation.")] = 1000,
    weights: Annotated[Path | None, typer.Option(help="Output file; by default the bundled weights.")] = None,
    world: Annotated[str, typer.Option(help=f"The scenes: {' or '.join(WORLDS)}.")] = "scenes",
    start: Annotated[Path | None, typer.Option(help="Weights to start from, such as those of another world.")] = None,
    tokens: Annotated[int, typer.Option(help="Patches per image, except in the last updates.")] = 64,
    bf16: Annotated[
        bool, typer.Option(help="Compute the image tower in bfloat16, where the CPU is faster at it.")
    ] = False,
    minutes: Annotated[float | None, typer.Option(help="Follow the clock instead of --steps, and end then.")] = None,
    save_every: Annotated[int, typer.Option(help="Updates between evaluations on fresh scenes.")] = 200,
) -> None:
    """Train, and write weights, training curve (.jsonl) and scores (.json) next to each other."""
    settings = {name: value for name, value in locals().items() if name not in ("weights", "scored", "save_every")}
    settings["start"] = start and start.stem
    weights, drawn = weights or TINY_WEIGHTS[world], WORLDS[world]
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    images, labels = _load_scenes(drawn, scenes)
    sizes = [size for size in SIZES if size >= images.shape[1]]
    config = json.loads(TINY_CONFIG.read_text())
    model = _create_model(config["model_cfg"], start)
    mean, std = (torch.tensor(config["preprocess_cfg"][key]).view(3, 1, 1) for key in ("mean", "std"))
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    caption_tokens = tokenizer([caption(rng, drawn, label) for label in labels]).unique()
    name_prompts = tokenizer([f"a photo of a {name}" for name in drawn.classes])
    optimizer = torch.optim.AdamW(_groups(model), lr=lr, betas=(0.9, 0.98))
    order, step, progress = np.empty(0, np.int64), 0, 0.0
    begun = time.perf_counter()
    with weights.with_suffix(".jsonl").open("w") as curve:
        while progress < 1:
            if len(order) < batch_size:
                order = rng.permutation(scenes)
            chosen, order = order[:batch_size], order[batch_size:]
            words = tokenizer([caption(rng, drawn, labels[i]) for i in chosen])
            size = int(rng.choice(sizes)) if progress >= SIZES_START else max(sizes)
            pixels = (_resized(images[chosen], size, bool(rng.integers(2))) - mean) / std
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16), sdpa_kernel(ATTENTION[bf16]):
                image = _encode(model.visual, pixels, tokens if progress < ALL_PATCHES_START else None).float()
            contrast, name = _losses(model, image, words, name_prompts, progress)
            rate = lr * min(1, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * progress))
            update(model, optimizer, contrast + NAME_WEIGHT * name, rate)
            step += 1
            progress = (time.perf_counter() - begun) / 60 / minutes if minutes else step / steps
            line: dict[str, Any] = {"step": step, "size": size}
            line |= {"contrast": round(contrast.item(), 4), "name": round(name.item(), 4)}
            if step % save_every == 0 or progress >= 1:
                _save(model, caption_tokens, CLS_NORM / image.norm(dim=1).mean().item(), weights)
                line["retrieval_256"] = round(mean_average_precision(_score(drawn, weights, 256, min(scored, 300))), 4)
            line["seconds"] = round(time.perf_counter() - begun, 1)
            if step % 10 == 0 or progress >= 1:
                curve.write(json.dumps(line) + "\n")
                curve.flush()
    card = settings | {"steps": step, "minutes": round((time.perf_counter() - begun) / 60, 1)}
    _save_card(card, drawn, weights, [size for size in SCORED_SIZES if size >= images.shape[1]], scored)


def _save_card(card: dict[str, Any], world: World, weights: Path, sizes: Sequence[int], scored: int) -> None:
    """Write settings, and average precision by input size and class."""
    found = {str(size): _score(world, weights, size, scored) for size in sizes}
    card |= {"retrieval": found, "mean_average_precision": {s: mean_average_precision(f) for s, f in found.items()}}
    with atomic_write(weights.with_suffix(".json")) as draft:
        draft.write_text(json.dumps(card, indent=2) + "\n")


def _load_scenes(world: World, count: int) -> tuple[UInt8[np.ndarray, "scene y x 3"], UInt8[np.ndarray, "scene y x"]]:
    scenes = Scenes(world, "captioned", count).uncached()
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        drawn = pool.imap(scenes.load, range(count), chunksize=50)
        first = next(drawn)
        images = np.empty((count, *first.image.shape), np.uint8)
        labels = np.empty((count, *first.label.shape), np.uint8)
        images[0], labels[0] = first
        for i, scene in enumerate(drawn, 1):
            images[i], labels[i] = scene
    return images, labels


def _create_model(config: dict[str, Any], start: Path | None) -> open_clip.CLIP:
    """A new model, or that of saved weights. Words that these do not know keep their random embeddings."""
    model = open_clip.CLIP(**config)
    if start:
        state = {name: value.float() for name, value in load_file(start).items()}
        words, fresh = state["token_embedding.weight"], model.token_embedding.weight.detach()
        state["token_embedding.weight"] = torch.where(words.any(dim=1, keepdim=True), words, fresh)
        state["visual.proj"] *= TRAINED_NORM / CLS_NORM
        model.load_state_dict(state)
    return model


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    with_decay = [p for p in model.parameters() if p.ndim >= 2]
    without_decay = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": with_decay, "weight_decay": 0.05}, {"params": without_decay, "weight_decay": 0.0}]


def _resized(images: UInt8[np.ndarray, "batch y x 3"], size: int, mirror: bool) -> Float[Tensor, "batch 3 size size"]:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    pixels = pixels.flip(3) if mirror else pixels
    if pixels.shape[3] == size:
        return pixels
    return F.interpolate(pixels, (size, size), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def _losses(
    model: open_clip.CLIP,
    image: Float[Tensor, "batch channel"],
    tokens: Int[Tensor, "batch token"],
    name_prompts: Int[Tensor, "name token"],
    progress: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Contrastive loss over images and captions (zero at first), and sigmoid loss over images and class names."""
    image = F.normalize(image, dim=1)
    names = model.encode_text(name_prompts, normalize=True)
    in_caption = (tokens[:, None, :] == name_prompts[:, NAME_POSITION, None]).any(dim=2).float()
    name = F.binary_cross_entropy_with_logits(NAME_SCALE * image @ names.T + NAME_BIAS, in_caption)
    if progress < CONTRASTIVE_START:
        return torch.zeros(()), name
    return open_clip.ClipLoss()(image, model.encode_text(tokens, normalize=True), model.logit_scale.exp()), name


def update(model: open_clip.CLIP, optimizer: torch.optim.Optimizer, loss: Float[Tensor, ""], rate: float) -> None:
    """Update the model once at a learning rate, with clipped gradients and CLIP's limit on the logit scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    model.logit_scale.data.clamp_(max=math.log(100))


def _encode(
    visual: Any, pixels: Float[Tensor, "batch 3 size size"], kept: int | None
) -> Float[Tensor, "batch channel"]:
    """CLS tokens of all patches or of `kept` random ones; positions are resized as open_clip does on loading."""
    grid = pixels.shape[2] // visual.patch_size[0]
    visual.patch_dropout = PatchDropout(1 - kept / grid**2) if kept and kept < grid**2 else nn.Identity()
    positions = visual.positional_embedding
    if grid != visual.grid_size[0]:
        patches = positions[1:].T.unflatten(1, visual.grid_size)[None]
        resized = F.interpolate(patches, (grid, grid), mode="bicubic", antialias=True, align_corners=False)
        positions = torch.cat([positions[:1], resized[0].flatten(1).T])
    return functional_call(visual, {"positional_embedding": positions}, (pixels,))


def _save(model: open_clip.CLIP, caption_tokens: Int[Tensor, "word"], scale: float, path: Path) -> None:
    # words that occur in no caption were never trained: zeros compress well in the repository
    state = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    kept = torch.zeros(model.vocab_size, 1).index_fill_(0, caption_tokens, 1.0).half()
    state["token_embedding.weight"] = state["token_embedding.weight"] * kept
    state["visual.proj"] = (scale * model.visual.proj.detach()).half().contiguous()
    with atomic_write(path) as draft:
        save_file(state, draft)


def _score(world: World, weights: Path, size: int, scenes: int) -> dict[str, float]:
    clip = FrozenCLIP(CLIPSource(str(TINY_CONFIG), str(weights), size), "fp32", torch.device("cpu"))
    return retrieval(clip, Scenes(world, "fresh", scenes))


if __name__ == "__main__":
    typer.run(main)
