"""Published figures of open-vocabulary segmenters on the datasets without a zero-shot split, next to ours."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from trainer.metrics import Metrics


class Method(NamedTuple):
    """A method: its mIoU in percent by dataset, and where it is published."""

    figures: Mapping[str, float]
    source: str


@cache
def _published() -> Mapping[str, Any]:
    return json.loads(Path(__file__).with_name("open_vocabulary.json").read_text(encoding="utf-8"))


def methods() -> dict[str, Method]:
    """The published methods by name."""
    return {name: Method(entry["figures"], entry["source"]) for name, entry in _published()["methods"].items()}


def compared_datasets() -> tuple[str, ...]:
    """The datasets for which there are published figures."""
    return tuple(dict.fromkeys(dataset for method in methods().values() for dataset in method.figures))


def comparison(measured: Mapping[str, Metrics], ours: str) -> list[str]:
    """The published mIoU of each method and ours, a column per dataset, and the sources.

    Args:
        measured: our metrics on each dataset.
        ours: the name of our student.

    """
    rows = {name: [method.figures.get(dataset) for dataset in measured] for name, method in methods().items()} | {
        f"ours ({ours})": [100 * metrics.miou for metrics in measured.values()],
        "  with labels in training (S)": [100 * metrics.miou_seen for metrics in measured.values()],
        "  without (U)": [100 * metrics.miou_unseen for metrics in measured.values()],
    }
    lines = [f"{'mIoU':32}" + "".join(f"{name:>12}" for name in measured)]
    lines += [f"{name:32}" + "".join(map(_figure, row)) for name, row in rows.items()]
    lines += [f"{name}: {method.source}" for name, method in methods().items()]
    return [*lines, _published()["note"]]


def _figure(value: float | None) -> str:
    return f"{'-':>12}" if value is None else f"{value:12.1f}"
