"""Charts: points agree with the axis ticks, and every finite point is drawn."""

import math
import re

import numpy as np
import pytest
from charts import read_back

from viewer.plots import POINTS, Series, line_chart


def test_points_are_drawn_where_the_ticks_say():
    x = np.arange(0, 5.25, 0.25)
    series = [Series("a", x.tolist(), (20 + 10 * np.sin(x)).tolist()), Series("b", x.tolist(), (40 - 3 * x).tolist())]
    lines, texts = read_back(line_chart("t", "gamma", "per cent", series, {1.5: "the paper's"}, (0, 100)))
    for line, one in zip(lines, series, strict=False):
        np.testing.assert_allclose(line, np.stack([one.x, one.y], axis=1), atol=0.15)
    assert {"gamma", "per cent", "the paper's", "a", "b", "100", "0"} <= set(texts)


def test_steep_curves_have_a_labelled_logarithmic_axis():
    x, y = np.arange(1, 101.0), np.geomspace(300, 0.02, 100)
    lines, texts = read_back(line_chart("t", "update", "nats", [Series("a", x.tolist(), y.tolist())]), True)
    np.testing.assert_allclose([v for _, v in lines[0]], y, rtol=0.02)
    assert "nats, logarithmic" in texts


def test_long_series_become_means_with_a_min_max_band():
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
def test_short_flat_and_tiny_series_are_drawn(y):
    chart = line_chart("t", "update", "nats", [Series("a", list(range(1, len(y) + 1)), y)])
    assert "nan" not in chart
    assert re.search('class="(line|dot) s0"', chart)


def test_non_finite_values_are_skipped():
    lines, _ = read_back(line_chart("t", "x", "y", [Series("a", [1, 2, 3, 4], [1, math.nan, 3, math.inf])]))
    assert len(lines[0]) == 2
    assert line_chart("t", "x", "y", [Series("a", [1], [math.nan])]) is None
    assert "<b>" not in line_chart("<b>", "<b>", "<b>", [Series("<b>", [1, 2], [1, 2])])
