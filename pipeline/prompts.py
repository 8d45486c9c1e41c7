"""Prompt templates that turn class names into sentences for CLIP's text tower (facts: ZegCLIP's two sets)."""

PROMPTS: dict[str, tuple[str, ...]] = {
    "single": ("a photo of a {}",),
    "zegclip15": (
        "a photo of a {}.",
        "a photo of a small {}.",
        "a photo of a medium {}.",
        "a photo of a large {}.",
        "This is a photo of a {}.",
        "This is a photo of a small {}.",
        "This is a photo of a medium {}.",
        "This is a photo of a large {}.",
        "a {} in the scene.",
        "a photo of a {} in the scene.",
        "There is a {} in the scene.",
        "There is the {} in the scene.",
        "This is a {} in the scene.",
        "This is the {} in the scene.",
        "This is one {} in the scene.",
    ),
}


def prompts_for(dataset: str) -> tuple[str, tuple[str, ...]]:
    """Name and templates of a dataset's default prompts: `single` for VOC (the paper's protocol), else 15."""
    name = "single" if dataset == "voc" else "zegclip15"
    return name, PROMPTS[name]
