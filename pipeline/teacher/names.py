"""The architectures of open_clip and the tags of their published weights.

They are read from the files of the installed package: importing it takes seconds.
"""

import ast
from functools import cache
from pathlib import Path
from typing import Any

from data_cache.errors import UsageError
from data_cache.messages import did_you_mean
from data_cache.system.environment import package_files

TINY = "tiny"
TINY_TAGS = ("scenes", "crowd")
"""The tags of the bundled weights: the synthetic dataset on whose captions they were trained; the first is default."""


def check_clip(name: str) -> None:
    """Raise UsageError for an architecture that open_clip does not have. Files and hubs are not looked up."""
    if name.endswith(".json") or ":" in name or name in (TINY, *clip_configs()):
        return
    nearest = did_you_mean(name, [*clip_configs(), TINY]) or "; pass an open_clip name or a JSON config"
    raise UsageError(f"--clip: open_clip has no model named {name!r}{nearest}")


@cache
def clip_configs() -> dict[str, Path]:
    """The config files of open_clip's architectures by name."""
    return {file.stem: file for file in package_files("open_clip", "model_configs/*.json")}


@cache
def pretrained_tags() -> dict[str, dict[str, bool]]:
    """The pretrained tags of each architecture, and whether they need QuickGELU, from open_clip's source file."""
    known: dict[str, Any] = {}

    def tags(node: ast.expr) -> dict[str, bool]:
        # a table of tags is a variable, a dict display, or a call dict(tag=_pcfg(.., quick_gelu=True), ..)
        if isinstance(node, ast.Name):
            return known.get(node.id, {})
        if isinstance(node, ast.Call):
            return {entry.arg: _needs_quick_gelu(entry.value) for entry in node.keywords if entry.arg}
        return {key.value: _needs_quick_gelu(value) for key, value in _items(node)}

    for file in package_files("open_clip", "pretrained.py"):
        for statement in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                name = statement.targets[0].id
                models = {key.value: tags(value) for key, value in _items(statement.value)}
                known[name] = models if name == "_PRETRAINED" else tags(statement.value)
    models = known.get("_PRETRAINED", {})
    # open_clip adds these itself: weights that need QuickGELU in the architecture that has it
    quick = {f"{name}-quickgelu": {t: q for t, q in entry.items() if q} for name, entry in models.items()}
    return models | {name: entry for name, entry in quick.items() if entry}


def _items(node: ast.expr) -> list[tuple[ast.Constant, ast.expr]]:
    """The items of a dict display with constant keys."""
    pairs = zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ()
    return [(key, value) for key, value in pairs if isinstance(key, ast.Constant)]


def _needs_quick_gelu(entry: ast.expr) -> bool:
    options = {option.arg: option.value for option in entry.keywords} if isinstance(entry, ast.Call) else {}
    return ast.unparse(options["quick_gelu"]) == "True" if "quick_gelu" in options else False
