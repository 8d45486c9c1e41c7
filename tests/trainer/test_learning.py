"""It learns: eight pictures are enough to see every loss fall."""

import numpy as np
import pytest

from trainer.loop import train

STEPS = 200


def losses(config, out) -> dict[str, np.ndarray]:
    """Each logged column over the run's updates."""
    lines: list[dict[str, float]] = []
    train(config, out, on_update=lines.append)
    return {name: np.array([line[name] for line in lines]) for name in lines[0]}


def fall(column: np.ndarray, few: int = 5) -> float:
    return column[:few].mean() / column[-few:].mean()


@pytest.fixture(scope="module")
def learner(tiny_config):
    """The paper's smallest student. The bank is two batches of four: 24 would hold each picture a dozen times."""

    def build(**given: object):
        settings = {"lr": 1e-3, "head_lr": 1.0, "bank": 2}
        return tiny_config(iterations=STEPS, **(settings | given))

    return build


@pytest.mark.slow
def test_pixel_learning_alone_brings_its_loss_down_tenfold(learner, tmp_path):
    found = losses(learner(glm="off"), tmp_path)
    print(f"pixel falls {found['pixel'][0] / found['pixel'][-1]:.1f}x, mean of five {fall(found['pixel']):.1f}x")
    assert found["pixel"][-5:].mean() < found["pixel"][0] / 10
    assert (found["global"] == 0).all()


@pytest.mark.slow
def test_the_full_method_brings_pixel_loss_down_fivefold_and_global_loss_threefold(learner, tmp_path):
    found = losses(learner(), tmp_path)
    print(f"pixel falls {fall(found['pixel']):.1f}x, global {fall(found['global']):.1f}x")
    assert fall(found["pixel"]) > 5
    assert fall(found["global"]) > 3
    assert 0 < found["entropy"][-1] < np.log(16 * 16)
