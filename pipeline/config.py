"""The settings of stage 1: the options of `precompute` and `cluster`, their defaults and their help.

Nothing heavy is imported here: the command line imports this file even if it only prints help.
"""

import re
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from data_cache.datasets import DATASETS
from data_cache.errors import UsageError
from data_cache.layout import DEFAULT_MASKS, Dense
from data_cache.limits import SHARD_IMAGES
from data_cache.options import argument, check_options, option
from data_cache.paths import cache_folder
from data_cache.views import Cropping
from pipeline.masks.source import ModelSource
from pipeline.teacher.prompts import CLEAN, Prompts, prompt_sets
from pipeline.teacher.recipes import OUTPUT, RECIPES
from pipeline.teacher.weights import CLIPSource

SHARD, GPU_SHARD = 64, 256
"""Images per shard by default; the second on a GPU, unless several views have dense tokens. A shard takes Dask and Zarr
about 50 ms of a core, in which a GPU encodes 75 images. Dense tokens of two shards are in memory at once."""
PrecisionChoice = Literal["auto", "fp32", "bf16", "fp16"]
KMeansChoice = Literal["auto", "faiss", "faiss-gpu", "torch"]

_UNSEEN = 'Classes without labels in training, such as "cow,road"; by default those of the published split.'
_ROOT = "Root of the dataset; by default $CLIPTEACHER_DATA/<dataset>, else data/<dataset>. scenes and crowd have none."
_KMEANS = "Implementation of the assignment step of k-means."
_WORKERS = "Worker processes, which share the cores; by default none, or one per GPU if there are several."
_SCHEDULER = "Address of an existing Dask cluster to run on, e.g. tcp://host:8786. See docs/clusters.md."


@dataclass(frozen=True)
class PrecomputeConfig:
    """The settings of `precompute`: its options, defaults and help.

    Raises UsageError, one line, for an invalid value.
    """

    dataset: str = option(None, "Name of the dataset.", choices=tuple(DATASETS))
    cache: Path = option(None, "Where the cache is written; ./data_cache/<dataset>.zarr by default.")
    root: Path | None = option(None, _ROOT)
    split: str = option("train", "Split of the dataset: train, val, or any other it has.")
    limit: int | None = option(None, "Only the first N images.")
    unseen: str | None = option(None, _UNSEEN, metavar="NAMES")
    views: int = option(1, "Views per image: the whole image and V - 1 crops.")
    view_seed: int = option(0, "Seed of the crops.")
    view_scale: tuple[float, float] = option(
        (0.25, 1.0), "Range of a crop's area, as a share of the image's.", metavar="LOW,HIGH"
    )
    view_ratio: tuple[float, float] = option((3 / 4, 4 / 3), "Range of a crop's width / height.", metavar="LOW,HIGH")
    prompts: str | None = option(
        None,
        f"Prompt templates: {', '.join(prompt_sets())}, each also with {CLEAN} for cleaned class names; by default "
        "single for voc, else zegclip15.",
    )
    clip: str = option(
        "ViT-B-16-quickgelu",
        "An open_clip model (docs/teachers.md), the path of its JSON config, or tiny (bundled; tags scenes and crowd).",
    )
    clip_weights: str | None = option(
        None, "A pretrained tag, the path of a checkpoint, or random; by default the model's only tag, else openai."
    )
    image_size: int | None = option(
        None, "CLIP's input side in pixels; 512, or a config file's own size, by default (256 for tiny)."
    )
    precision: PrecisionChoice = option("auto", "Number format of CLIP's vision tower.")
    kmeans: KMeansChoice = option("auto", _KMEANS)
    compile: bool = option(False, "Compile CLIP: the first batch takes a minute longer.")
    dense: Dense = option("float16", "How dense tokens are stored.")
    masks_from: str | None = option(
        None,
        "Also cluster another vision model's tokens, into a mask set of its own: timm:NAME[.TAG], timm:NAME@FILE with "
        "weights from a file, or a folder with timm's config.json and weights.",
        metavar="MODEL",
    )
    masks_name: str | None = option(None, "Name of that mask set; by default that of the model.", metavar="NAME")
    masks_dense: Dense = option("none", "How the tokens of --masks-from are stored; `cluster --masks` needs them.")
    dense_recipe: str = option(
        OUTPUT,
        "How dense tokens are computed: the last block's output as in the paper, or a published change to that block.",
        choices=RECIPES,
    )
    shard: int | None = option(
        None,
        f"Images per shard, the unit of work and resume; by default {SHARD}, on a GPU {GPU_SHARD} (fewer with "
        "several views and dense tokens), or as in an existing cache.",
        minimum=1,
        maximum=SHARD_IMAGES,
    )
    extend: bool = option(False, "Add images that are new in the dataset.")
    overwrite: bool = option(False, "Delete an existing cache first.")
    retry_failed: bool = option(False, "Encode failed images again.")
    workers: int = option(0, _WORKERS, minimum=0)
    scheduler: str | None = option(None, _SCHEDULER, metavar="ADDRESS")
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")

    def __post_init__(self) -> None:
        if not self.dataset:
            raise UsageError(f"--dataset: name one of {', '.join(DATASETS)}, or pass --preset")
        if self.cache is None:
            object.__setattr__(self, "cache", cache_folder() / f"{self.dataset}.zarr")
        check_options(self)
        _ = self.cropping, self.prompt_set  # raise for invalid settings
        self.clip_source.check()
        self._check_masks()
        if self.overwrite and (self.extend or self.retry_failed):
            other = "--extend" if self.extend else "--retry-failed"
            raise UsageError(f"--overwrite: replaces the whole cache; leave {other} out")

    def shard_on(self, device: str) -> int:
        """Images per shard of a new cache that a device encodes."""
        if self.shard:
            return self.shard
        if not device.startswith("cuda"):
            return SHARD
        return GPU_SHARD if self.dense == self.masks_dense == "none" else max(SHARD, GPU_SHARD // self.views)

    @property
    def clip_source(self) -> CLIPSource:
        """The CLIP that these settings select."""
        return CLIPSource(self.clip, self.clip_weights or "", self.image_size)

    @property
    def model_source(self) -> ModelSource | None:
        """The vision model whose tokens are clustered into a mask set of its own, if any."""
        return ModelSource(self.masks_from) if self.masks_from else None

    def _check_masks(self) -> None:
        if source := self.model_source:
            source.check()
            check_mask_name("--masks-name", self.masks_name or source.mask_name)
            if self.masks_name == DEFAULT_MASKS:
                raise UsageError(f"--masks-name {DEFAULT_MASKS}: is the name of CLIP's own masks; choose another")
        elif self.masks_name or self.masks_dense != "none":
            flag = "--masks-name" if self.masks_name else "--masks-dense"
            raise UsageError(f"{flag}: only with --masks-from, which names another vision model")

    @property
    def cropping(self) -> Cropping:
        """The views of an image."""
        return Cropping(self.views, self.view_seed, self.view_scale, self.view_ratio)

    @property
    def prompt_set(self) -> Prompts:
        """The prompt set; by default that of the dataset's protocol. Raises UsageError for an unknown set."""
        return Prompts(self.prompts) if self.prompts else Prompts.default_for(self.dataset)


@dataclass(frozen=True)
class ClusterConfig:
    """The settings of `cluster`: its options, defaults and help. None stands for the value of the mask set `masks`.

    Raises UsageError, one line, for an invalid value.
    """

    cache: Path = argument("A finished cache with dense tokens.")
    name: str = option(MISSING, "Name of the new mask set.")
    root: Path | None = option(None, _ROOT)
    masks: str | None = option(None, "Mask set whose tokens and settings are the starting point; by default stage 1's.")
    unseen: str | None = option(None, _UNSEEN, metavar="NAMES")
    windows: tuple[int, ...] | None = option(None, "Sides of k-means windows, in tokens.", minimum=1, metavar="N,N")
    threshold: float | None = option(None, "Cosine similarity above which masks are fused (lambda).")
    updates: int | None = option(None, "Lloyd updates.")
    kmeans: KMeansChoice = option("auto", _KMEANS)
    workers: int = option(0, _WORKERS, minimum=0)
    scheduler: str | None = option(None, _SCHEDULER, metavar="ADDRESS")

    def __post_init__(self) -> None:
        check_options(self)
        check_mask_name("--name", self.name)


def check_mask_name(flag: str, name: str) -> None:
    """Raise UsageError for a name that no mask set may have."""
    if not re.fullmatch(r"\w{1,60}", name):
        raise UsageError(f"{flag} {name!r}: only letters, digits and _ are allowed, at most 60")
