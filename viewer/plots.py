"""Line charts as inline SVG, in the colors of the surrounding page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

WIDTH, HEIGHT = 340, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 24, 36
POINTS = 200
"""A longer series is drawn as means of this many groups, with a band from minimum to maximum."""
STEEP = 20.0
"""Above this ratio of maximum to minimum, the y axis is logarithmic."""
LETTER = 6.6
"""Approximate width of a letter in the chart's text."""


@dataclass(frozen=True)
class Series:
    """A line of a chart; non-finite points are skipped."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Axis:
    """Maps values from `low` to `high` to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers between `low` and `high`."""
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if len(powers) <= 4 else (1,)
            values = [step * 10.0**power for power in powers for step in steps]
            return [value for value in values if self.low <= value <= self.high]
        rough = (self.high - self.low) / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(number * step, 12) for number in range(first, last + 1)]


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    marks: Mapping[float, str] | None = None,
    y_range: tuple[float, float] | None = None,
) -> Markup | None:
    """A line chart with labelled axes; None if it has no finite point.

    Args:
        title: read by screen readers.
        x_label: label of the x axis.
        y_label: label of the y axis, with its unit.
        series: up to three lines; dashes distinguish them as well as colors.
        marks: labelled positions on the x axis.
        y_range: range of the y axis; by default that of the values, on a logarithmic axis if their ratio exceeds STEEP.

    """
    drawn = [line for line in map(_finite, series) if len(line.x)]
    if not drawn:
        return None
    x, y = _axes(drawn, y_range)
    if y.logarithmic:
        y_label += ", logarithmic"
    parts = [_frame(x, y, x_label, y_label)]
    for value, text in (marks or {}).items():
        if x.low <= value <= x.high:
            parts.append(_line(x(value), TOP, x(value), HEIGHT - BOTTOM, "mark") + _text(x(value) + 3, TOP + 11, text))
    for number, line in enumerate(drawn):
        parts.append(_band(line, x, y, number) + _path(*_means(line), x, y, number))
    if len(drawn) > 1:
        parts.append(_legend([line.name for line in drawn]))
    label = escape(f"{title}: {y_label} against {x_label}")
    height = HEIGHT + (22 if len(drawn) > 1 else 0)
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def _finite(series: Series) -> Series:
    pairs = [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    return Series(series.name, [x for x, _ in pairs], [y for _, y in pairs])


def _axes(series: Sequence[Series], y_range: tuple[float, float] | None) -> tuple[Axis, Axis]:
    xs, ys = (np.concatenate([getattr(line, axis) for line in series]) for axis in "xy")
    x = Axis(*_non_empty(xs.min(), xs.max()), LEFT, WIDTH - RIGHT)
    low, high = y_range or _non_empty(ys.min(), ys.max())
    low = 0.0 if 0 <= low < high / 2 else low
    steep = y_range is None and ys.min() > 0 and ys.max() / ys.min() > STEEP
    y = Axis(ys.min() if steep else low, ys.max() if steep else high, HEIGHT - BOTTOM, TOP, steep)
    return x, y


def _non_empty(low: float, high: float) -> tuple[float, float]:
    if low < high:
        return float(low), float(high)
    margin = abs(float(low)) / 10 or 1.0
    return low - margin, high + margin


def _frame(x: Axis, y: Axis, x_label: str, y_label: str) -> str:
    bottom = HEIGHT - BOTTOM
    parts = [_line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis"), _text(2, 12, y_label)]
    for value in y.ticks():
        parts.append(_line(LEFT, y(value), WIDTH - RIGHT, y(value), "grid"))
        parts.append(_text(LEFT - 4, y(value) + 4, number(value), "end"))
    for value in x.ticks():
        label = number(value)
        # keeps the last number inside the chart
        middle = min(x(value), WIDTH - LETTER * len(label) / 2)
        parts.append(
            _line(x(value), bottom, x(value), bottom + 4, "axis") + _text(middle, bottom + 16, label, "middle")
        )
    return "".join(parts) + _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_label, "middle")


def _means(series: Series) -> tuple[Float[np.ndarray, "point"], Float[np.ndarray, "point"]]:
    count = min(POINTS, len(series.x))
    groups = [np.array_split(np.asarray(values, float), count) for values in (series.x, series.y)]
    x, y = ([group.mean() for group in axis] for axis in groups)
    return np.array(x), np.array(y)


def _band(series: Series, x: Axis, y: Axis, number: int) -> str:
    if len(series.x) <= POINTS:
        return ""
    groups = np.array_split(np.asarray(series.y, float), POINTS)
    centers = _means(series)[0]
    upper = [(a, group.max()) for a, group in zip(centers, groups, strict=True)]
    lower = [(a, group.min()) for a, group in zip(centers, groups, strict=True)]
    points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in upper + lower[::-1])
    return f'<polygon class="band s{number}" points="{points}"/>'


def _path(xs: Float[np.ndarray, "point"], ys: Float[np.ndarray, "point"], x: Axis, y: Axis, number: int) -> str:
    points = [f"{x(a):.1f},{y(b):.1f}" for a, b in zip(xs, ys, strict=True)]
    if len(points) == 1:
        a, b = points[0].split(",")
        return f'<circle class="dot s{number}" cx="{a}" cy="{b}" r="3"/>'
    return f'<polyline class="line s{number}" points="{" ".join(points)}"/>'


def _legend(names: Sequence[str]) -> str:
    parts, left = [], LEFT
    for number, name in enumerate(names):
        parts.append(f'<polyline class="line s{number}" points="{left},{HEIGHT + 12} {left + 26},{HEIGHT + 12}"/>')
        parts.append(_text(left + 31, HEIGHT + 16, name))
        left += 48 + round(LETTER * len(name))
    return "".join(parts)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def number(value: float) -> str:
    """A number in short notation for an axis: 6e-05, 0.25, 20k, 1.5M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size * (10 if unit == "k" else 1):
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.4g}"
