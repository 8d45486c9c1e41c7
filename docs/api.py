"""Writes docs/api.md, the reference of the Python interface, from its docstrings: `python docs/api.py`."""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import clipteacher  # noqa: E402
from data_cache.options import choices_of  # noqa: E402

PAGE = ROOT / "docs/api.md"
WIDTH = 100
PACKAGES = {file.parent.name for file in ROOT.glob("*/__init__.py")}
SECTIONS = {
    "Functions": ("precompute", "train", "evaluate", "load", "open_cache"),
    "Settings": ("PrecomputeConfig", "TrainConfig", "EvaluateConfig"),
    "Results": ("ZeroShotSegmenter", "Segmentation", "ClassArea", "EvaluationReport", "CacheReader"),
    "Errors": ("UserError", "UsageError", "InterruptError"),
}
EXAMPLE = """\
import clipteacher
from clipteacher import EvaluateConfig, PrecomputeConfig, TrainConfig

cache = clipteacher.precompute(PrecomputeConfig(dataset="scenes", clip="tiny", limit=16))
settings = TrainConfig(encoder_weights="none", size=64, iterations=5, batch_size=2, loss_stride=4)
student = clipteacher.train(settings, out="runs/scenes")
report = clipteacher.evaluate(EvaluateConfig("runs/scenes", dataset="scenes", limit=4))
print(report)  # pAcc, mIoU(S), mIoU(U), hIoU

student = clipteacher.load("runs/scenes")
result = student.predict(cache[0].sample.image, classes=["sky", "sand", "tiger"], gamma=1.5)
result.label_map, result.scores  # numpy, height x width
result.areas  # pixels, share and score of each class
result.overlay().save("overlay.png")  # PIL; `result` alone shows it in a notebook
"""
INTRODUCTION = f"""\
# Python interface

<!-- Written by `python docs/api.py` from the docstrings; do not edit. -->

`import clipteacher` takes a fraction of a second; torch is imported on first use. The calls do what the commands of the
same names do, and show the same progress and messages on stderr. A mistake raises `UserError`, whose message is one
line; nothing ends the process. `python -m clipteacher` is the command line.

The following example trains on synthetic scenes with the bundled CLIP, offline and in less than a minute on a CPU. Five
updates only show that it works; for results, see `demo`.

```python
{EXAMPLE}```
"""


def page() -> str:
    """The content of docs/api.md."""
    parts = [INTRODUCTION]
    for title, names in SECTIONS.items():
        parts.append(f"## {title}\n")
        parts += ["\n".join(_entry(name, getattr(clipteacher, name))) for name in names]
    return "\n".join(parts)


def _entry(name: str, entry: Any) -> Iterator[str]:
    yield f"### {name}\n"
    if inspect.isfunction(entry):
        yield _code(_signature(name, entry))
    yield _markdown(inspect.getdoc(entry) or "")
    if not inspect.isclass(entry) or issubclass(entry, Exception):
        return
    if is_dataclass(entry) and any(field.metadata for field in fields(entry)):
        yield _settings(entry)
        return
    for member, value in _members(entry):
        if isinstance(value, property | cached_property):
            getter = value.fget if isinstance(value, property) else value.func
            yield f"`{name}.{member}`: `{_type(_definition(getter).returns)}`\n"
            yield _markdown(inspect.getdoc(value) or "")
        else:
            yield _code(_signature(f"{name}.{member}", value))
            yield _markdown(inspect.getdoc(value) or "")


def _members(entry: type) -> Iterator[tuple[str, Any]]:
    """Public properties and methods, also those of base classes of ours."""
    seen: set[str] = set()
    for owner in inspect.getmro(entry):
        if owner.__module__.split(".")[0] not in PACKAGES:
            continue
        for name, value in vars(owner).items():
            is_member = inspect.isfunction(value) or isinstance(value, property | cached_property)
            if is_member and not name.startswith("_") and name not in seen:
                seen.add(name)
                yield name, value


def _definition(function: Any) -> ast.FunctionDef:
    """The definition of a function in its source, where types have short names."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def _type(annotation: ast.expr | None) -> str:
    """An annotation, without the quotes of one that is evaluated later."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return annotation.value
    return ast.unparse(annotation) if annotation else "Any"


def _signature(name: str, function: Any) -> str:
    definition = _definition(function)
    keywords = {one.arg for one in definition.args.kwonlyargs}
    values = [*definition.args.defaults, *(value for value in definition.args.kw_defaults if value)]
    arguments = [one for one in (*definition.args.args, *definition.args.kwonlyargs) if one.arg not in ("self", "cls")]
    required = len(arguments) - len(values)
    parts = []
    for index, argument in enumerate(arguments):
        if argument.arg in keywords and "*" not in parts:
            parts.append("*")
        default = f" = {ast.unparse(values[index - required])}" if index >= required else ""
        parts.append(f"{argument.arg}: {_type(argument.annotation)}{default}")
    line = f"{name}({', '.join(parts)}) -> {_type(definition.returns)}"
    if len(line) <= WIDTH:
        return line
    listed = "".join(f"    {part},\n" for part in parts)
    return f"{name}(\n{listed}) -> {_type(definition.returns)}"


def _settings(config: type) -> str:
    """The fields of a dataclass of options as a table."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for field in fields(config):
        if not field.metadata:
            continue
        default = "required" if field.default is MISSING else f"`{field.default!r}`"
        choices = choices_of(config, field.name)
        listed = f" One of: {', '.join(choices)}." if choices else ""
        text = (field.metadata["help"] + listed).replace("|", "\\|").replace("<", "&lt;")
        rows.append(f"| `{field.name}` | {default} | {text} |")
    return "\n".join(rows) + "\n"


def _markdown(doc: str) -> str:
    """A Google-style docstring as Markdown: its sections become lists."""
    lines = []
    for line in doc.splitlines():
        if re.fullmatch(r"(Args|Returns|Raises):", line):
            lines += [f"{line.removesuffix(':')}:", ""]
        elif match := re.fullmatch(r" {4}([\w, ]+): (.*)", line):
            lines.append(f"- `{match[1]}`: {match[2]}".replace(", ", "`, `", match[1].count(", ")))
        elif line.startswith("    "):
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line)
    return "\n".join(lines).rstrip() + "\n"


def _code(text: str) -> str:
    return f"```python\n{text}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
