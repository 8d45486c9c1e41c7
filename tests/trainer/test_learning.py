"""Training reduces every loss, even on eight images."""

import numpy as np
import pytest

from trainer.loop import train

STEPS = 200


def losses(config, out) -> dict[str, np.ndarray]:
    """Each logged value over all updates of a run."""
    lines: list[dict[str, float]] = []
    train(config, out, on_update=lines.append)
    return {name: np.array([line[name] for line in lines]) for name in lines[0]}


def reduction(loss: np.ndarray, window: int = 5) -> float:
    """The mean of the first updates over the mean of the last."""
    return loss[:window].mean() / loss[-window:].mean()


@pytest.fixture(scope="module")
def learner(tiny_config):
    """A small SegFormer. The bank holds two batches of four: 24 batches would hold each image a dozen times."""

    def build(**settings: object):
        defaults = {"lr": 1e-3, "head_lr": 1.0, "bank": 2}
        return tiny_config(iterations=STEPS, **(defaults | settings))

    return build


@pytest.mark.slow
def test_pixel_learning_alone_reduces_its_loss_tenfold(learner, tmp_path):
    history = losses(learner(glm="off"), tmp_path)
    assert history["pixel"][-5:].mean() < history["pixel"][0] / 10
    assert (history["global"] == 0).all()


@pytest.mark.slow
def test_the_full_method_reduces_pixel_loss_fivefold_and_global_loss_threefold(learner, tmp_path):
    history = losses(learner(), tmp_path)
    assert reduction(history["pixel"]) > 5
    assert reduction(history["global"]) > 3
    assert 0 < history["entropy"][-1] < np.log(16 * 16)
