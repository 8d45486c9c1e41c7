"""A report as one HTML page that needs nothing else: no network, no script; pictures and charts are part of it."""

import base64
import io
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from data_cache.colours import colour_of
from experiments.plots import POINTS, Series, line_chart
from experiments.report import Figures, Measured, Report
from trainer.config import help_of
from trainer.evaluate import GAMMA
from trainer.metrics import Metrics

JPEG_QUALITY = 88
TABLE_ROWS = 30
FEW = 256
"""A picture of at most so many colours is stored exactly, any other as a photograph."""
TERMS = {
    "total": ("Total loss (eq. 11)", "weighted sum"),
    "global": ("Global loss (eq. 3)", "nats, unweighted"),
    "ce": ("Cross-entropy (eq. 10)", "nats, unweighted"),
    "focal": ("Focal loss", "sum over classes, unweighted"),
    "dice": ("Dice loss", "mean over classes, unweighted"),
    "generate": ("Generate loss (eq. 8)", "squared distance, unweighted"),
    "entropy": ("Entropy of GLM's attention", "nats"),
    "lr": ("Learning rate of the encoder", "AdamW"),
}
"""Title and unit of what the log tells."""


def page(report: Report) -> str:
    """The page of a report."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": percent,
        "uri": data_uri,
        "hex": hexadecimal,
        "setting": setting,
        "breakable": breakable,
    }
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        history=report.history,
        measured=report.measured,
        columns=Metrics.COLUMNS,
        class_tables=class_tables(report.measured) if report.measured else [],
        rows=figures_table(report),
        gamma_chart=gamma_chart(report.measured) if report.measured else None,
        charts=charts(report),
        merged=len(report.history.lines) > POINTS,
        unused=[TERMS[name][0] for name in _unused(report)],
        method=method(report),
        settings=asdict(report.history.config),
        help_of=help_of,
        made=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
    )


def percent(share: float | None) -> str:
    """A share in per cent, a dash where there is none."""
    return "-" if share is None or np.isnan(share) else f"{100 * share:.1f}"


def data_uri(panel: UInt8[np.ndarray, "height width 3"]) -> str:
    """A picture as a URI that holds it."""
    picture, stream = Image.fromarray(panel), io.BytesIO()
    drawn = picture.getcolors(FEW) is not None
    if drawn:
        picture.save(stream, "PNG", optimize=True)
    else:
        picture.save(stream, "JPEG", quality=JPEG_QUALITY)
    kind = "png" if drawn else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def hexadecimal(label: int) -> str:
    """The colour of a label, as CSS has it."""
    return "#" + bytes(colour_of(label)).hex()


def setting(value: Any) -> str:
    """The value of a setting as the command line has it."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"


def breakable(name: str) -> Markup:
    """The name of a setting, which may go on in another line behind each underscore."""
    return Markup("_<wbr>").join(name.split("_"))


def class_tables(measured: Measured) -> list[tuple[str, bool, list[tuple[str, float]]]]:
    """Tables of at most `TABLE_ROWS` classes: caption, whether they are unseen, IoU by name, the greatest first."""
    occurring = [(name, share) for name, share in measured.per_class.items() if share is not None]
    ranked = sorted(occurring, key=lambda item: -item[1])
    kinds = {"Seen classes": False, "Unseen classes": True} if measured.unseen else {"Classes": False}
    tables = []
    for kind, unseen in kinds.items():
        items = [item for item in ranked if (item[0] in measured.unseen) == unseen]
        for start in range(0, len(items), TABLE_ROWS):
            told = f"{kind} ({len(items)})" if not start else f"{kind}, from place {start + 1} on"
            tables.append((told, unseen, items[start : start + TABLE_ROWS]))
    return tables


def figures_table(report: Report) -> list[tuple[str, Figures]]:
    """The rows of the table of metrics, by what they are."""
    rows: list[tuple[str, Figures]] = []
    if report.measured:
        wanted = dict.fromkeys((report.measured.gamma, 0.0, GAMMA))
        sweep = report.measured.sweep
        rows += [(f"gamma {gamma:g}", sweep[gamma]) for gamma in wanted if gamma in sweep]
        if told := report.measured.familiar:
            rows.append((f"gamma {report.measured.gamma:g}, S: what had labels in training", told))
    if told := report.reproduced:
        gamma = f"gamma {told['metrics'].get('gamma', GAMMA):g}"
        rows.append((f"reproduce on {told['dataset']}, {gamma}", told["metrics"]))
        if told["paper"]:
            rows.append((f"the paper on {told['dataset']}", told["paper"]))
    return rows


def gamma_chart(measured: Measured) -> Markup | None:
    """Three of the figures against gamma; None if there are fewer than three gammas."""
    if len(measured.sweep) < 3:
        return None
    names = ("hIoU", "mIoU_S", "mIoU_U")
    lines = [
        Series(Metrics.COLUMNS[name], [*measured.sweep], [_per_cent(one[name]) for one in measured.sweep.values()])
        for name in names
    ]
    marks = {GAMMA: "the paper's"}
    return line_chart("Metrics by gamma", "gamma", "per cent", lines, marks, (0.0, 100.0))


def charts(report: Report) -> list[tuple[str, str, Markup]]:
    """Title, weight and chart of everything the log tells."""
    found, unused = [], _unused(report)
    for name, (title, unit) in TERMS.items():
        lines = [line for line in report.history.lines if name in line]
        series = Series(name, [line["step"] for line in lines], [line[name] for line in lines])
        # a rate that falls to nothing would be all tail on the logarithmic axis of a steep curve
        room = (0.0, max(series.y)) if name == "lr" and any(series.y) else None
        chart = None if name in unused else line_chart(title, "update", unit, [series], y_range=room)
        if chart is not None:
            weight = getattr(report.history.config, f"weight_{name}", None)
            found.append((title, "" if weight is None else f"weight {weight:g} in the total", chart))
    return found


def method(report: Report) -> Mapping[str, str]:
    """The method in words, as far as it is known."""
    config, origin = report.history.config, report.origin
    told: dict[str, str] = {}
    if origin:
        clip, masks, unseen = origin["clip"], origin["masks"], origin["unseen"]
        data, prompts = origin["dataset"], origin["prompts"]
        known = len(origin["classes"]) - len(unseen)
        told["Data"] = f"{data['name']}, split {data['split']}, {data['images']} images"
        told["Classes"] = f"{known} with labels in training, {len(unseen)} without: {', '.join(unseen) or 'none'}"
        told["Teacher"] = f"{clip['model']} at {clip['image_size']} px in {clip['precision']}"
        told["Prompts"] = f"{prompts['name']}, {len(prompts['templates'])} templates"
        told["Masks"] = (
            f"windows of {' and '.join(map(str, masks['windows']))} tokens, {masks['updates']} Lloyd updates, fused "
            f"above similarity {masks['threshold']:g}"
        )
    told["Student"] = f"{config.arch} with {config.encoder}, encoder weights {config.encoder_weights}"
    parts = {"cross-entropy": config.ce, "focal and dice": config.nel, "generate": config.generate}
    told["Losses"] = ", ".join(name for name, on in parts.items() if on) or "no pixel loss"
    told["Losses"] += f"; global learning by {config.glm}" if config.glm != "off" else "; no global learning"
    told["Adapter"], told["Logits"] = config.vla, f"{config.logits}, pseudo labels within one {config.pseudo_scope}"
    told["Training"] = (
        f"{config.iterations} updates of {config.batch_size} images, {config.warmup_updates} of them warm-up, "
        f"learning rate {config.lr:g}, times {config.head_lr:g} outside the encoder, seed {config.seed}"
    )
    if report.history.lines and (seconds := report.history.lines[-1].get("seconds")):
        told["Time"] = f"{seconds / 60:.1f} minutes in the last call, up to update {report.history.step}"
    return told


def _unused(report: Report) -> list[str]:
    lines = report.history.lines
    return [name for name in TERMS if lines and name != "lr" and not any(line.get(name) for line in lines)]


def _per_cent(share: float | None) -> float:
    return float("nan") if share is None else 100 * share
