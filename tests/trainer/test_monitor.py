"""What one can watch of a training: timings, the estimate, text."""

import json

import pytest
import torch

from experiments.stages import updates
from trainer import monitor
from trainer.config import TrainConfig
from trainer.monitor import DAY, TIMINGS, Monitor, brief, describe, estimate, is_logged
from trainer.run import LOG

CPU = torch.device("cpu")
LOSSES = {"lr": 1e-3, "total": 3.21, "global": 1.0, "ce": 0.5, "focal": 0.0, "dice": 0.25, "generate": 0.4}


class Clock:
    """A clock that the tests advance."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(monitor, "time", clock)
    return clock


def lines_of(clock, updates, config, first=0, start_up=0.0):
    """The lines of updates, each given as (seconds waiting for data, seconds of computation)."""
    watched = Monitor(config, CPU, first, lambda _: None)

    def loader():
        for wait, _ in updates:
            clock.now += wait
            yield "batch"

    lines = []
    for number, _ in enumerate(watched.timed(loader())):
        clock.now += updates[number][1] + (start_up if number == 0 else 0)
        lines.append(watched.update(first + number + 1, LOSSES))
    return lines


def test_speed_share_of_waiting_and_time_left_follow_from_the_clock(clock):
    config = TrainConfig(iterations=100, batch_size=8)
    lines = lines_of(clock, [(0.5, 1.5)] * 10, config, start_up=30)
    assert lines[-1]["seconds"] == pytest.approx(50)
    assert lines[-1]["images_per_second"] == pytest.approx(8 * 10 / 50)
    assert lines[-1]["data_share"] == pytest.approx(5 / 50)
    # the first update is not counted: it also warms up
    assert lines[-1]["eta_seconds"] == pytest.approx(90 * 2)
    assert lines[0]["eta_seconds"] == pytest.approx(99 * 32)


def test_speed_is_that_of_the_last_updates_only(clock):
    config = TrainConfig(iterations=1000, batch_size=1)
    slow, fast = [(3.0, 1.0)] * 60, [(0.0, 1.0)] * monitor.WINDOW
    line = lines_of(clock, slow + fast, config)[-1]
    assert (line["images_per_second"], line["data_share"]) == (1.0, 0.0)


def test_a_resumed_run_estimates_from_its_own_updates(clock):
    line = lines_of(clock, [(0.0, 2.0)] * 5, TrainConfig(iterations=100), first=50)[-1]
    assert (line["step"], line["eta_seconds"]) == (55, 90)


def test_the_log_has_timings_in_every_line(tiny_config, tmp_path):
    from trainer.loop import train

    train(tiny_config(iterations=3), tmp_path / "run")
    for text in (tmp_path / "run" / LOG).read_text().splitlines():
        line = json.loads(text)
        assert line.keys() > {*TIMINGS} - {"gpu_bytes"}
        assert 0 <= line["data_share"] <= 1
        assert line["images_per_second"] > 0


def test_a_line_names_the_losses_in_use_and_the_time_left():
    line = {"step": 20, **LOSSES, "images_per_second": 85.3, "eta_seconds": 3753.2, "data_share": 0.031}
    config = TrainConfig(iterations=400)
    assert describe(line, config) == (
        "update 20/400: loss 3.21 (global 1, ce 0.5, dice 0.25, generate 0.4), lr 0.001, 85.3 images/s, ETA 1:02:33, "
        "waiting for data 3%"
    )
    assert "GPU 11.5 GiB" in describe(line | {"gpu_bytes": 11.5 * 2**30}, config)
    assert brief(line | {"gpu_bytes": 11.5 * 2**30}) == "loss 3.21 11.5G data 3%"


def test_a_run_longer_than_a_day_is_warned_about():
    line = {"step": 20, "eta_seconds": DAY - 1}
    text, warning = estimate(line, TrainConfig(iterations=120))
    assert (text, warning) == ("estimate: 23:59:59 for the remaining 100 updates (863.99 s each)", "")
    _, warning = estimate(line | {"eta_seconds": 3.2 * DAY}, TrainConfig(iterations=120))
    assert "3.2 days" in warning


def test_the_estimate_is_given_once_after_twenty_updates_of_a_run(clock):
    config, shown = TrainConfig(iterations=100, log_every=7), []
    on_update = updates(lambda amount, **more: shown.append((amount, more)), config)
    for line in lines_of(clock, [(0.0, 1.0)] * 60, config, first=30):
        on_update(line)
    assert [step for step, more in shown if any(more["notices"])] == [50]
    assert [step for step, more in shown if more["line"]] == [35, 42, 49, 56, 63, 70, 77, 84]
    assert is_logged({"step": 1}, config)
    assert is_logged({"step": 100}, config)
