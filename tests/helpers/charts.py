"""Charts read back from their SVG."""

import math
import re
from html import unescape


def read_back(chart, logarithmic=False):
    """The points of every line of a chart, in units of its axes, and the texts of the chart."""
    texts = re.findall(r'<text x="([-\d.]+)" y="([-\d.]+)" text-anchor="(\w+)">([^<]*)</text>', chart)
    number = re.compile(r"-?[\d.]+(e-?\d+)?[kM]?")
    value = lambda t: float(t.rstrip("kM")) * {"k": 1e3, "M": 1e6}.get(t[-1], 1)  # noqa: E731
    up = [(float(y) - 4, value(t)) for _, y, anchor, t in texts if anchor == "end" and number.fullmatch(t)]
    across = [(float(x), value(t)) for x, _, anchor, t in texts if anchor == "middle" and number.fullmatch(t)][:2]
    (p0, v0), (p1, v1) = up[0], up[-1]
    (q0, u0), (q1, u1) = across
    scale, back = (math.log, math.exp) if logarithmic else (float, float)
    lines = []
    for points in re.findall(r'<polyline class="line s\d" points="([^"]*)"', chart):
        pairs = [tuple(map(float, pair.split(","))) for pair in points.split()]
        xs = [u0 + (x - q0) / (q1 - q0) * (u1 - u0) for x, _ in pairs]
        ys = [back(scale(v0) + (y - p0) / (p1 - p0) * (scale(v1) - scale(v0))) for _, y in pairs]
        lines.append(list(zip(xs, ys, strict=True)))
    return lines, [unescape(t) for *_, t in texts]
