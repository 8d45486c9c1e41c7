"""The feeder: the order in which images reach the decoders."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Lock, Semaphore, Thread

import numpy as np
import pytest

from data_cache.datasets.base import Digest, Sample
from data_cache.views import Cropping
from pipeline.feeder import Feeder
from pipeline.shard_job import StageTimes

SIZE, SLOTS = 4, 2


class Recorder:
    """A dataset that records the order in which its images are decoded."""

    ids = tuple(map(str, range(20)))

    def __init__(self):
        self.decoded = []

    def sample(self, index):
        self.decoded.append(index)
        return Sample(np.full((SIZE, SIZE, 3), index, np.uint8), None, Digest(str(index), ""), None)


class Turn:
    """A lock that counts who has requested it."""

    def __init__(self):
        self.lock, self.requests = Lock(), Semaphore(0)

    def __enter__(self):
        self.requests.release()
        self.lock.acquire()

    def __exit__(self, *_):
        self.lock.release()


@pytest.fixture
def turn():
    return Turn()


@pytest.fixture
def feeder():
    return Feeder(Recorder(), Cropping(), lambda _label, _values: np.zeros((1, 1), bool), SIZE, SLOTS)


def test_images_of_a_shard_are_decoded_before_those_of_the_next(feeder, turn):
    values = {}

    def feed(first, count, wait=lambda: None):
        with feeder.batches(pool, turn, range(count), first, 1, StageTimes()) as batches:
            found = [next(batches)]
            wait()
            found += batches
            values[first] = [batch.pixels[0, slot, 0, 0, 0].item() for batch in found for slot in batch.readable]

    def wait_for_other():
        other.start()
        for _ in range(2):
            assert turn.requests.acquire(timeout=60)
        time.sleep(0.1)

    with ThreadPoolExecutor(1) as pool:
        other = Thread(target=feed, args=(6, 4))
        feed(0, 6, wait_for_other)
        other.join()
    assert feeder.dataset.decoded == list(range(10))
    assert values == {0: [*range(6)], 6: [*range(6, 10)]}


@pytest.mark.parametrize("ahead", [1, 2, 3, 4])
def test_the_next_shard_may_start_once_a_batch_was_requested_and_the_last_image_is_queued(feeder, turn, ahead):
    with ThreadPoolExecutor(1) as pool, feeder.batches(pool, turn, range(5), 0, ahead, StageTimes()) as batches:
        for taken in range(4):  # of three batches
            queued = ahead + taken - 1  # a batch is replaced when the next one is requested
            assert turn.lock.locked() == (queued < 3 or not taken)
            next(batches, None)
        assert not turn.lock.locked()


def test_a_shard_that_fails_gives_up_its_turn(feeder, turn):
    def fail():
        with (
            ThreadPoolExecutor(1) as pool,
            feeder.batches(pool, turn, range(20), 0, 1, StageTimes()) as batches,
        ):
            next(batches)
            assert turn.lock.locked()
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert not turn.lock.locked()
    assert len(feeder.dataset.decoded) <= SLOTS
