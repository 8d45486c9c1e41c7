"""Charts: points lie where the ticks say, and whatever there is to draw is drawn."""

import math
import re
from html import unescape

import numpy as np
import pytest

from experiments.plots import POINTS, Series, line_chart


def read_back(chart, logarithmic=False):
    """The points of every line of a chart, by what its ticks say, and its texts."""
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


def test_a_chart_draws_its_points_where_its_ticks_say():
    x = np.arange(0, 5.25, 0.25)
    series = [Series("a", x.tolist(), (20 + 10 * np.sin(x)).tolist()), Series("b", x.tolist(), (40 - 3 * x).tolist())]
    lines, texts = read_back(line_chart("t", "gamma", "per cent", series, {1.5: "the paper's"}, (0, 100)))
    for line, one in zip(lines, series, strict=False):
        np.testing.assert_allclose(line, np.stack([one.x, one.y], axis=1), atol=0.15)
    assert {"gamma", "per cent", "the paper's", "a", "b", "100", "0"} <= set(texts)


def test_a_steep_curve_is_drawn_logarithmically_and_says_so():
    x, y = np.arange(1, 101.0), np.geomspace(300, 0.02, 100)
    lines, texts = read_back(line_chart("t", "update", "nats", [Series("a", x.tolist(), y.tolist())]), True)
    np.testing.assert_allclose([v for _, v in lines[0]], y, rtol=0.02)
    assert "nats, logarithmic" in texts


def test_a_long_log_becomes_means_with_a_band_from_least_to_greatest():
    y = np.random.default_rng(0).normal(5, 1, 8000)
    y[4321] = 11
    chart = line_chart("t", "update", "nats", [Series("a", list(range(8000)), y.tolist())])
    lines, texts = read_back(chart)
    assert len(lines[0]) == POINTS
    np.testing.assert_allclose([v for _, v in lines[0]], y.reshape(POINTS, -1).mean(axis=1), atol=0.1)
    assert len(chart) < 20000
    band = re.search(r'<polygon class="band s0" points="([^"]*)"', chart)[1]
    assert len(band.split()) == 2 * POINTS
    assert min(float(pair.split(",")[1]) for pair in band.split()) == pytest.approx(24, abs=0.1)
    assert "5000" in texts or "5k" in texts or "2000" in texts


@pytest.mark.parametrize("y", [[3.0], [2.0, 2.0, 2.0], [0.0, 0.0], [1e-9, 2e-9], [-5.0, 7.0], [6e-5, 0.0]])
def test_few_flat_and_tiny_values_have_a_chart_too(y):
    chart = line_chart("t", "update", "nats", [Series("a", list(range(1, len(y) + 1)), y)])
    assert "nan" not in chart
    assert re.search('class="(line|dot) s0"', chart)


def test_what_is_not_finite_is_left_out_and_nothing_at_all_is_no_chart():
    lines, _ = read_back(line_chart("t", "x", "y", [Series("a", [1, 2, 3, 4], [1, math.nan, 3, math.inf])]))
    assert len(lines[0]) == 2
    assert line_chart("t", "x", "y", [Series("a", [1], [math.nan])]) is None
    assert "<b>" not in line_chart("<b>", "<b>", "<b>", [Series("<b>", [1, 2], [1, 2])])
