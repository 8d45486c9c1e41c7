"""Writes docs/settings.md from the settings' dataclass: `python docs/settings.py`."""

import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from commands.stage_commands import TRAINING
from data_cache.options import default_of, flag_of, help_of
from trainer.config import TrainConfig

PAGE = Path(__file__).with_name("settings.md")
LEAD = """# Settings of training

`python cli.py train --print-config` prints this table as JSON, with the values that the other options give them. A run
keeps its settings in `config.json`; `train --config FILE` starts from such a file, which may have any of them. Those
with an option can also be set on the command line. `docs/settings.py` writes this page from
`trainer/config.py::TrainConfig`.

| setting | option | default | meaning |
|---|---|---|---|
"""


def page() -> str:
    """The page."""
    rows = []
    for entry in fields(TrainConfig):
        name, default = entry.name, default_of(TrainConfig, entry.name)
        flag = f"`--no-{flag_of(entry)[2:]}`" if default is True else f"`{flag_of(entry)}`"
        shown = "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        rows.append(f"| `{name}` | {flag if name in TRAINING else ''} | {shown} | {help_of(TrainConfig, name)} |")
    return LEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
