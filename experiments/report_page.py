"""The HTML page of a report: its tables, charts and texts, filled into the viewer's template."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from functools import partial
from math import ceil

from markupsafe import Markup

from data_cache.messages import count
from data_cache.options import help_of
from experiments.report import Measured, MetricValues, RunReport
from trainer.config import GAMMA, TrainConfig
from trainer.metrics import Metrics
from viewer.page import render_page
from viewer.plots import POINTS, Series, line_chart

TABLE_ROWS = 30
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
"""Title and unit of each curve of the log."""


def page(report: RunReport) -> str:
    """The HTML page of a report."""
    return render_page(
        report=report,
        history=report.history,
        measured=report.measured,
        columns=Metrics.ALL_COLUMNS,
        departures=list(dict.fromkeys(line for row in report.reproduced for line in row["departures"])),
        class_tables=class_tables(report.measured) if report.measured else [],
        rows=metrics_table(report),
        gamma_chart=gamma_chart(report.measured) if report.measured else None,
        charts=charts(report),
        merged=len(report.history.lines) > POINTS,
        unused=[TERMS[name][0] for name in _unused(report)],
        method=method(report),
        settings=asdict(report.history.config),
        help_of=partial(help_of, TrainConfig),
        created=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
    )


def class_tables(measured: Measured) -> list[tuple[str, bool, list[tuple[str, float]]]]:
    """Tables of at most `TABLE_ROWS` classes: caption, whether they are unseen, IoU by name in descending order.

    The tables of a group have equal lengths, so that side by side they fill the width.
    """
    occurring = [(name, share) for name, share in measured.per_class.items() if share is not None]
    ranked = sorted(occurring, key=lambda item: -item[1])
    groups = {"Seen classes": False, "Unseen classes": True} if measured.unseen else {"Classes": False}
    tables = []
    for title, unseen in groups.items():
        items = [item for item in ranked if (item[0] in measured.unseen) == unseen]
        rows = ceil(len(items) / ceil(len(items) / TABLE_ROWS)) if items else 1
        for start in range(0, len(items), rows):
            caption = f"{title} ({len(items)})" if not start else f"{title}, from rank {start + 1}"
            tables.append((caption, unseen, items[start : start + rows]))
    return tables


def metrics_table(report: RunReport) -> list[tuple[str, MetricValues]]:
    """Name and metrics of each row."""
    rows: list[tuple[str, MetricValues]] = []
    if report.measured:
        gammas = dict.fromkeys((report.measured.gamma, 0.0, GAMMA))
        sweep = report.measured.sweep
        rows += [(f"gamma {gamma:g}", sweep[gamma]) for gamma in gammas if gamma in sweep]
        if metrics := report.measured.by_training_vocabulary:
            rows.append((f"gamma {report.measured.gamma:g}, S: classes with labels in training", metrics))
    for reproduced in report.reproduced:
        gamma = f"gamma {reproduced['metrics'].get('gamma', GAMMA):g}"
        rows.append((f"reproduce on {reproduced['dataset']}, {gamma}", reproduced["metrics"]))
        if reproduced["paper"]:
            rows.append((f"the paper on {reproduced['dataset']}", reproduced["paper"]))
    return rows


def gamma_chart(measured: Measured) -> Markup | None:
    """hIoU, mIoU(S) and mIoU(U) against gamma; None if there are fewer than three gammas."""
    if len(measured.sweep) < 3:
        return None
    names = ("hIoU", "mIoU_S", "mIoU_U")
    series = [
        Series(
            Metrics.COLUMNS[name], [*measured.sweep], [_percent(metrics[name]) for metrics in measured.sweep.values()]
        )
        for name in names
    ]
    return line_chart("Metrics by gamma", "gamma", "percent", series, {GAMMA: "the paper's"}, (0.0, 100.0))


def charts(report: RunReport) -> list[tuple[str, str, Markup]]:
    """Title, weight and chart of each curve of the log."""
    rows, unused = [], _unused(report)
    for name, (title, unit) in TERMS.items():
        lines = [line for line in report.history.lines if name in line]
        series = Series(name, [line["step"] for line in lines], [line[name] for line in lines])
        # on a logarithmic axis, the end of a learning rate that decays to 0 would dominate
        y_range = (0.0, max(series.y)) if name == "lr" and any(series.y) else None
        chart = None if name in unused else line_chart(title, "update", unit, [series], y_range=y_range)
        if chart is not None:
            weight = getattr(report.history.config, f"weight_{name}", None)
            rows.append((title, "" if weight is None else f"weight {weight:g} in the total", chart))
    return rows


def method(report: RunReport) -> Mapping[str, str]:
    """A summary in words of the known settings of teacher and student."""
    config, origin = report.history.config, report.origin
    text: dict[str, str] = {}
    if origin:
        clip, masks, unseen = origin["clip"], origin["masks"], origin["unseen"]
        data, prompts = origin["dataset"], origin["prompts"]
        seen = len(origin["classes"]) - len(unseen)
        text["Data"] = f"{data['name']}, split {data['split']}, {count(data['images'], 'image')}"
        text["Classes"] = f"{seen} with labels in training, {len(unseen)} without: {', '.join(unseen) or 'none'}"
        text["Teacher"] = f"{clip['model']} at {clip['image_size']} px in {clip['precision']}"
        text["Prompts"] = f"{prompts['name']}, {len(prompts['templates'])} templates"
        text["Masks"] = (
            f"windows of {' and '.join(map(str, masks['windows']))} tokens, {masks['updates']} Lloyd updates, fused "
            f"above similarity {masks['threshold']:g}"
        )
        if tokens := masks.get("tokens"):
            text["Masks"] += f"; from the tokens of {tokens['model']['name']}"
    known = "transductive: the names of the classes without labels were known"
    text["Setting"] = known if config.transductive else "inductive: nothing of the classes without labels was known"
    text["Student"] = f"{config.arch} with {config.encoder}, encoder weights {config.encoder_weights}"
    terms = {"cross-entropy": config.ce, "focal and dice": config.nel, "generate": config.generate}
    text["Losses"] = ", ".join(name for name, enabled in terms.items() if enabled) or "no pixel loss"
    text["Losses"] += f"; global learning by {config.glm}" if config.glm != "off" else "; no global learning"
    text["Adapter"], text["Logits"] = config.vla, f"{config.logits}, pseudo labels within one {config.pseudo_scope}"
    text["Training"] = (
        f"{count(config.iterations, 'update')} of {count(config.batch_size, 'image')}, {config.warmup_updates:,} of "
        f"them warm-up, learning rate {config.lr:g}, times {config.head_lr:g} outside the encoder, seed {config.seed}"
    )
    if report.history.lines and (seconds := report.history.lines[-1].get("seconds")):
        text["Time"] = f"{seconds / 60:.1f} minutes in the last run, up to update {report.history.step}"
    return text


def _unused(report: RunReport) -> list[str]:
    lines = report.history.lines
    return [name for name in TERMS if lines and name != "lr" and not any(line.get(name) for line in lines)]


def _percent(share: float | None) -> float:
    return float("nan") if share is None else 100 * share
