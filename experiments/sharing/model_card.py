"""The pages (README.md) of a published run and of a published cache, with the metadata that the Hugging Face Hub reads.

A license is never invented: it is what the user states, or the page says that none is stated.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import CardData, DatasetCardData, EvalResult, ModelCardData

from data_cache.messages import count, printable
from data_cache.reader import Cache
from experiments.sharing.manifest import ARCHIVE
from experiments.sharing.terms import Terms
from trainer.metrics import Metrics

PAPER = "[CLIPTeacher](https://arxiv.org/abs/2310.02296)"
LICENSES = "https://huggingface.co/docs/hub/repositories-licenses"
TASK = "image-segmentation"
SETTINGS = {
    "arch": "Student: architecture",
    "encoder": "Student: encoder",
    "encoder_weights": "Initial weights of the encoder",
    "size": "Training size (pixels)",
    "iterations": "Training updates",
    "batch_size": "Batch size",
    "lr": "Learning rate of the encoder",
    "head_lr": "Factor on it for everything else",
    "weight_decay": "Weight decay",
    "glm": "GLM pooling",
    "weight_global": "Weight of the GLM loss",
    "vla": "Vision-language adapter",
    "logits": "Pixel logits",
    "transductive": "Names of unseen classes known in training",
    "seed": "Seed",
}
"""The settings of a training that the card lists, with their names; config.json has all of them."""
_METRIC_TYPES = {"mIoU": "mean_iou", "pAcc": "accuracy", "mIoU_S": "mean_iou", "mIoU_U": "mean_iou", "hIoU": "hiou"}


def model_card(card: Mapping[str, Any], result: Mapping[str, Any] | None, name: str, url: str, terms: Terms) -> str:
    """The page of a run.

    Args:
        card: the checkpoint's (`trainer.card`).
        result: the saved evaluation, if any (`experiments.sharing.run_bundle`).
        name: what the run is called.
        url: where it is published.
        terms: what the user states.

    """
    clip, dataset, unseen = card["clip"], card["dataset"], card["unseen"]
    seen = [each for each in card["classes"] if each not in set(unseen)]
    data = ModelCardData(
        **terms.license,
        library_name="clipteacher",
        pipeline_tag=TASK,
        tags=["clipteacher", "semantic-segmentation", "zero-shot", "clip", clip["model"], dataset["name"]],
        datasets=[terms.hub_dataset] if terms.hub_dataset else None,
        metrics=["mean_iou", "accuracy"] if result else None,
        model_name=name if result else None,
        eval_results=_eval_results(result) if result else None,
    )
    classes = ",".join(_quoted(each) for each in [*seen[:2], *unseen[:2]])
    return _page(
        data,
        f"# {_text(name)}",
        f"A zero-shot semantic segmenter, trained with clipteacher, an independent implementation of {PAPER}. It "
        f"predicts {len(seen)} classes that had pixel labels in training (seen) and {len(unseen)} that had none "
        "(unseen). CLIP's image encoder is not needed for prediction.",
        "## Use",
        f"    clipteacher pull {url} --out runs/{name}\n    clipteacher predict runs/{name} photo.jpg\n"
        f'    clipteacher predict runs/{name} photo.jpg --classes "{classes}"',
        "In Python:",
        f'    import clipteacher\n\n    segmenter = clipteacher.load("runs/{name}")\n'
        '    segmenter.predict("photo.jpg").overlay().save("overlay.png")',
        "Without `--classes`, it chooses among the training classes and needs no CLIP. Other class names need the "
        "text encoder of the CLIP below. The weights are in safetensors format; nothing is unpickled.",
        "## Results",
        *_results(result),
        "## Training",
        _table(("Setting", "Value"), _settings(card, clip, dataset)),
        "`config.json` has all settings, and `log.jsonl` the losses.",
        f"**Seen classes ({len(seen)})**: {_names(seen)}",
        f"**Unseen classes ({len(unseen)})**: {_names(unseen)}",
        "## What is not claimed",
        "- These are not the weights of the paper's authors, and the paper's numbers are not claimed for them.\n"
        '- "Unseen" means without pixel labels in this training. CLIP was trained on images and texts that may well '
        "contain these classes.\n"
        "- Nothing is claimed about other datasets, other class names or other kinds of images. The metrics above, if "
        "any, come from a single training and have no error bars.\n"
        "- The model inherits the biases of CLIP and of the training images. It has not been tested for uses that "
        "affect people's safety or rights.",
        "## Licenses",
        f"- **These weights**: {terms.line}\n"
        f"- **Training images and labels** (`{_text(dataset['name'])}`): not part of this repository. The terms of the "
        "dataset apply.\n"
        f"- **CLIP** (`{_text(clip['model'])}`): not part of this repository. The terms of its publisher apply.",
    )


def cache_card(cache: Cache, name: str, url: str, terms: Terms) -> str:
    """The page of a cache. The arguments are those of `model_card`."""
    fingerprint, texts = cache.fingerprint, cache.texts()
    clip, dataset, layout = fingerprint["clip"], fingerprint["dataset"], cache.layout
    data = DatasetCardData(
        **terms.license,
        pretty_name=name,
        task_categories=[TASK],
        tags=["clipteacher", "zarr", "clip", "features", clip["model"], dataset["name"]],
        size_categories=[_size_category(layout.images)],
        viewer=False,
    )
    failed = sum(record.failed for record in cache.records())
    rows = {
        "Dataset": f"{dataset['name']}, split {dataset['split']}",
        "Images": f"{layout.images} ({failed} could not be read)",
        "Views per image": layout.views,
        "CLIP": f"{clip['model']}, {clip['image_size']} px, {clip['precision']}",
        "SHA-256 of CLIP's weights": clip["weights_sha256"],
        "Prompts": texts.name,
        "Tokens per view": " x ".join(map(str, layout.grid)),
        "Channels": layout.channels,
    }
    splits = []
    for masks in cache.masks:
        unseen = cache.mask_attributes(masks)["unseen"]
        seen = [each for each in texts.classes if each not in set(unseen)]
        splits.append(
            f"**Mask set `{masks}`**{_model_of(cache, masks)}\n\n- Seen classes ({len(seen)}): {_names(seen)}\n"
            f"- Unseen classes ({len(unseen)}): {_names(unseen)}"
        )
    return _page(
        data,
        f"# {_text(name)}",
        f"CLIP features and pseudo labels of images, precomputed with clipteacher, an independent implementation of "
        f"{PAPER}. A zero-shot semantic segmenter can be trained from them without running CLIP.",
        "## Use",
        f"    clipteacher pull {url} --out data_cache/{name}.zarr\n"
        f"    clipteacher train --cache data_cache/{name}.zarr --root DIR",
        f"`DIR` is your own copy of the dataset. `{ARCHIVE}` is a Zarr group in an uncompressed zip file, which "
        "`zarr.storage.ZipStore` opens, too.",
        "## What it contains",
        "- **Contained**: CLIP's image embedding of each view (`cls`), fused pseudo labels (`masks`), text features "
        "of the class names (`text`), the crop of each view (`view`), and for each image its name, its path below the "
        "dataset's folder, its size, and hashes of its file and of its label map (`image`).\n"
        "- **Not contained**: pixels, label maps, dense tokens, and CLIP's weights. Without dense tokens, masks cannot "
        "be clustered again.",
        _table(("Setting", "Value"), rows),
        *splits,
        "## What is not claimed",
        "- The pseudo labels come from clustering. They have no class names and contain errors.\n"
        '- "Unseen" means that no pixel label of the class was used. CLIP was trained on images and texts that may '
        "well contain these classes.\n"
        "- Names and paths of images are published here. Check that they reveal nothing that should stay private.",
        "## Licenses",
        f"- **These features**: {terms.line}\n"
        f"- **Images and labels** (`{_text(dataset['name'])}`): not part of this repository. The terms of the dataset "
        "apply, and they may also restrict what is derived from it.\n"
        f"- **CLIP** (`{_text(clip['model'])}`): not part of this repository. The terms of its publisher apply.",
    )


def _model_of(cache: Cache, masks: str) -> str:
    """The model that a mask set is clustered from, unless it is CLIP."""
    model = cache.tokens_model(masks)
    if "name" not in model:
        return ""
    return f", from the tokens of timm's {_text(model['name'])} at {model['image_size']} px, whose own terms apply"


def _eval_results(result: Mapping[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=result["dataset"],
            dataset_name=result["dataset"],
            dataset_split=result["split"],
            dataset_args={"gamma": result["gamma"]},
            metric_type=_METRIC_TYPES[key],
            metric_name=title,
            metric_value=round(100 * result[key], 2),
        )
        for key, title in Metrics.ALL_COLUMNS.items()
        if result[key] is not None
    ]


def _results(result: Mapping[str, Any] | None) -> list[str]:
    if result is None:
        return ["No evaluation has been published with this run."]
    split = f", split {result['split']}" if result["split"] else ""
    values = {
        title: "-" if result[key] is None else f"{100 * result[key]:.1f}" for key, title in Metrics.ALL_COLUMNS.items()
    }
    return [
        f"On `{_text(result['dataset'])}`{split}, in percent; {result['gamma']:g} (gamma) was added to the logits of "
        "the unseen classes:",
        _table(tuple(values), {values["pAcc"]: [*values.values()][1:]}),
        "pAcc is the pixel accuracy, mIoU(S) and mIoU(U) are the mean IoU of the seen and unseen classes, and hIoU is "
        "their harmonic mean. The author of this repository reported these values.",
    ]


def _settings(card: Mapping[str, Any], clip: Mapping[str, Any], dataset: Mapping[str, Any]) -> dict[str, Any]:
    weights = (card["recorded"].get("clip") or {}).get("weights")
    return {
        "Dataset": f"{dataset['name']}, split {dataset['split']}, {count(dataset['images'], 'image')}",
        "CLIP": f"{clip['model']}{f', weights {weights}' if weights else ''}, {clip['image_size']} px",
        "SHA-256 of CLIP's weights": clip["weights_sha256"],
        "Prompts": card["prompts"]["name"],
        **{title: card["config"][name] for name, title in SETTINGS.items() if name in card["config"]},
        "Training size (pixels)": card["size"],
        "Checkpoint after update": card["step"],
    }


def _page(data: CardData, *blocks: str) -> str:
    metadata = data.to_yaml()
    if data.get("license") is None:
        metadata = f"# license: add one, see {LICENSES}\n{metadata}"
    return f"---\n{metadata}\n---\n\n" + "\n\n".join(blocks) + "\n"


def _table(header: Sequence[str], rows: Mapping[str, Any]) -> str:
    lines = [header, ["---"] * len(header)]
    lines += [[key, *(value if isinstance(value, list) else [value])] for key, value in rows.items()]
    return "\n".join(f"| {' | '.join(_text(cell) for cell in line)} |" for line in lines)


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(_text, names)) or "none"


def _text(value: Any) -> str:
    """Text in a line or a cell: untrusted names cannot start markup of their own."""
    text = printable(str(value)).replace("\\", "\\\\")
    for mark in "|`*_<[":
        text = text.replace(mark, f"\\{mark}") if mark != "_" else text
    return text


def _quoted(name: str) -> str:
    return "".join(letter for letter in printable(name) if letter not in '"`$\\')


def _size_category(images: int) -> str:
    for limit, name in ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if images < limit:
            return name
    return "1M<n<10M"
