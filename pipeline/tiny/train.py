"""Trains the tiny CLIP on captioned scenes: `python -m pipeline.tiny.train`; 36 minutes on two cores.

Captions name all classes, including those that are unseen in segmentation, as web captions do. Patches are dropped at
random (FLIP, arXiv 2212.00794) so that an image costs 64 tokens at any size. At first all images have 256 px, then
their size varies, and the last updates use all patches. CLIP's contrastive loss over captions is combined with a
sigmoid loss (SigLIP, arXiv 2303.15343) for whether each class name is in the caption. Training starts with the latter
(docs/decisions/method.md#the-tiny-clip).
"""

import json
import math
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import open_clip
import torch
import typer
from jaxtyping import Float, Int, UInt8
from open_clip.transformer import PatchDropout  # not exported by open_clip itself
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from data_cache.datasets.captions import caption
from data_cache.datasets.scenes import SPLITS, STUFF, THINGS, Scenes
from data_cache.system.atomic import atomic_write
from pipeline.teacher.clip import FrozenCLIP
from pipeline.teacher.weights import TINY_CONFIG, TINY_WEIGHTS, CLIPSource
from pipeline.tiny.retrieval import mean_average_precision, retrieval

SIZES = (128, 160, 192, 224, 256)
TOKENS = 64
WARM_UP = 50
CONTRASTIVE_START, SIZES_START, ALL_PATCHES_START = 0.2, 0.5, 0.93
"""Shares of the updates after which the contrastive loss starts, sizes vary, and all patches are used."""
NAME_WEIGHT, NAME_SCALE, NAME_BIAS = 10.0, 10.0, -2.0
"""The weight of the sigmoid loss; the scale and the bias that turn its cosines into logits."""
NAME_POSITION = 5
"""Index of the name among the tokens of "a photo of a NAME"; each name is one token."""
PROJECTION_SCALE = 0.25
"""Scale of the saved image projection. CLIP's cosines do not depend on the norm of a CLS token, GLM's attention does
(docs/decisions/method.md#length-of-the-tiny-clips-cls-tokens)."""


def main(
    steps: Annotated[int, typer.Option(help="Updates.")] = 2400,
    batch_size: Annotated[int, typer.Option(help="Pairs of scene and caption per update.")] = 64,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of weights, captions and order; the scenes are fixed.")] = 0,
    scenes: Annotated[int, typer.Option(help="Scenes to train on.")] = SPLITS["captioned"],
    scored: Annotated[int, typer.Option(help="Fresh scenes for the final evaluation.")] = 1000,
    weights: Annotated[Path, typer.Option(help="Output file of the weights.")] = TINY_WEIGHTS,
    save_every: Annotated[int, typer.Option(help="Updates between evaluations on fresh scenes.")] = 200,
) -> None:
    """Train, and write weights, training curve (.jsonl) and scores (.json) next to each other."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    images, labels = _load_scenes(scenes)
    config = json.loads(TINY_CONFIG.read_text())
    model = open_clip.CLIP(**config["model_cfg"])
    mean, std = (torch.tensor(config["preprocess_cfg"][key]).view(3, 1, 1) for key in ("mean", "std"))
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    caption_tokens = tokenizer([caption(rng, label) for label in labels]).unique()
    name_prompts = tokenizer([f"a photo of a {name}" for name in (*STUFF, *THINGS)])
    optimizer = torch.optim.AdamW(_groups(model), lr=lr, betas=(0.9, 0.98))
    order = np.empty(0, np.int64)
    start = time.perf_counter()
    with weights.with_suffix(".jsonl").open("w") as curve:
        for step in range(steps):
            if len(order) < batch_size:
                order = rng.permutation(scenes)
            chosen, order = order[:batch_size], order[batch_size:]
            tokens = tokenizer([caption(rng, labels[i]) for i in chosen])
            size = int(rng.choice(SIZES)) if step >= SIZES_START * steps else max(SIZES)
            pixels = (_resized(images[chosen], size, bool(rng.integers(2))) - mean) / std
            contrast, name = _losses(model, pixels, tokens, name_prompts, step / steps)
            loss = contrast + NAME_WEIGHT * name
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            model.logit_scale.data.clamp_(max=math.log(100))
            line: dict[str, Any] = {"step": step + 1, "size": size}
            line |= {"contrast": round(contrast.item(), 4), "name": round(name.item(), 4)}
            if (step + 1) % save_every == 0 or step + 1 == steps:
                _save(model, caption_tokens, weights)
                line["retrieval_256"] = round(mean_average_precision(_score(weights, 256, min(scored, 300))), 4)
            line["seconds"] = round(time.perf_counter() - start, 1)
            if (step + 1) % 10 == 0 or step + 1 == steps:
                curve.write(json.dumps(line) + "\n")
                curve.flush()
    card: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed, "scenes": scenes}
    card["minutes"] = round((time.perf_counter() - start) / 60, 1)
    card["retrieval"] = {str(size): _score(weights, size, scored) for size in (128, 192, 256)}
    card["mean_average_precision"] = {size: mean_average_precision(found) for size, found in card["retrieval"].items()}
    with atomic_write(weights.with_suffix(".json")) as draft:
        draft.write_text(json.dumps(card, indent=2) + "\n")


def _load_scenes(count: int) -> tuple[UInt8[np.ndarray, "scene 128 128 3"], UInt8[np.ndarray, "scene 128 128"]]:
    scenes = Scenes("captioned", count)
    first = scenes.load(0)
    images = np.empty((count, *first.image.shape), np.uint8)
    labels = np.empty((count, *first.label.shape), np.uint8)
    for i in range(count):
        images[i], labels[i] = scenes.load(i)
    return images, labels


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
    pixels: Float[Tensor, "batch 3 size size"],
    tokens: Int[Tensor, "batch token"],
    name_prompts: Int[Tensor, "name token"],
    progress: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Contrastive loss over images and captions (zero at first), and sigmoid loss over images and class names."""
    image = F.normalize(_encode(model.visual, pixels, whole=progress >= ALL_PATCHES_START), dim=1)
    names = model.encode_text(name_prompts, normalize=True)
    in_caption = (tokens[:, None, :] == name_prompts[:, NAME_POSITION, None]).any(dim=2).float()
    name = F.binary_cross_entropy_with_logits(NAME_SCALE * image @ names.T + NAME_BIAS, in_caption)
    if progress < CONTRASTIVE_START:
        return torch.zeros(()), name
    return open_clip.ClipLoss()(image, model.encode_text(tokens, normalize=True), model.logit_scale.exp()), name


def _encode(visual: Any, pixels: Float[Tensor, "batch 3 size size"], whole: bool) -> Float[Tensor, "batch channel"]:
    """CLS tokens; position embeddings are resized to the input as open_clip does when it loads a model."""
    grid = pixels.shape[2] // visual.patch_size[0]
    visual.patch_dropout = nn.Identity() if whole or grid**2 <= TOKENS else PatchDropout(1 - TOKENS / grid**2)
    positions = visual.positional_embedding
    if grid != visual.grid_size[0]:
        patches = positions[1:].T.unflatten(1, visual.grid_size)[None]
        resized = F.interpolate(patches, (grid, grid), mode="bicubic", antialias=True, align_corners=False)
        positions = torch.cat([positions[:1], resized[0].flatten(1).T])
    return functional_call(visual, {"positional_embedding": positions}, (pixels,))


def _save(model: open_clip.CLIP, caption_tokens: Int[Tensor, "word"], path: Path) -> None:
    # words that occur in no caption were never trained: zeros compress well in the repository
    state = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    kept = torch.zeros(model.vocab_size, 1).index_fill_(0, caption_tokens, 1.0).half()
    state["token_embedding.weight"] = state["token_embedding.weight"] * kept
    state["visual.proj"] = (PROJECTION_SCALE * model.visual.proj.detach()).half().contiguous()
    with atomic_write(path) as draft:
        save_file(state, draft)


def _score(weights: Path, size: int, scenes: int) -> dict[str, float]:
    clip = FrozenCLIP(CLIPSource(str(TINY_CONFIG), str(weights), size), "fp32", torch.device("cpu"))
    return retrieval(clip, Scenes("fresh", scenes))


if __name__ == "__main__":
    typer.run(main)
