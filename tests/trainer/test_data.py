"""The input of a training step: targets, sampling order, replayed views, the cached teacher."""

import pickle
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import draw_targets
from PIL import Image
from refusals import refused
from training_scenes import UNSEEN, draw_scenes

from data_cache.content import CachedArrays
from data_cache.datasets import open_dataset
from data_cache.errors import UserError
from data_cache.reader import Cache
from data_cache.splits import make_split
from trainer.data import Batch, ViewDataset, load_training_data
from trainer.loader import batches
from trainer.photometric import distort
from trainer.sampler import Draw, Stream
from trainer.teacher import CachedTeacher, joint_target, present_labels, teacher_targets

SEEN = 3


def draw(item: int, view: int = 0, position: int = 0) -> Draw:
    return Draw(item, view, position)


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
@settings(max_examples=50, deadline=None)
def test_pixel_targets_are_seen_labels_else_pseudo_labels_else_ignored(seed, size, grid):
    rng = np.random.default_rng(seed)
    seen, pseudo = rng.integers(-1, SEEN, (2, *size)), rng.integers(-1, 4, (2, *grid))
    target = joint_target(torch.tensor(seen), torch.tensor(pseudo), SEEN).numpy()
    for b, y, x in np.ndindex(seen.shape):
        token = pseudo[b, y * grid[0] // size[0], x * grid[1] // size[1]]
        expected = seen[b, y, x] if seen[b, y, x] >= 0 else (SEEN + token if token >= 0 else -1)
        assert target[b, y, x] == expected


@given(items=st.integers(1, 20), batch=st.integers(1, 7), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_each_item_is_drawn_once_per_epoch(items, batch, seed):
    stream = Stream(items, 1, batch, seed)
    order = [draw.item for step in range(items * 3) for draw in stream.batch(step)]
    assert all(len(stream.batch(step)) == batch for step in range(3))
    for epoch in range(len(order) // items):
        assert sorted(order[epoch * items : (epoch + 1) * items]) == list(range(items))


def test_order_depends_only_on_seed_and_step():
    stream = Stream(50, 1, 8, 3)
    batch = stream.batch(17)
    assert [stream.batch(step) for step in (3, 17, 0)][1] == batch == Stream(50, 1, 8, 3).batch(17)
    assert Stream(50, 1, 8, 4).batch(17) != batch
    assert stream.batch(0) != Stream(50, 1, 50, 3).batch(1)[:8]


def test_each_epoch_has_a_new_order():
    stream = Stream(30, 1, 30, 0)
    first, second = ([draw.item for draw in stream.batch(step)] for step in (0, 1))
    assert first != second


@pytest.fixture(scope="module")
def data(scenes):
    dataset = open_dataset("folder", scenes.root, "train")
    return dataset, make_split("folder", dataset.classes, UNSEEN), Cache(scenes.cache).load("default")


def with_failed(loaded: CachedArrays, *indices: int) -> CachedArrays:
    ok = loaded.ok.copy()
    ok[list(indices)] = False
    return CachedArrays(**(vars(loaded) | {"ok": ok}))


def test_batches_resumed_at_a_step_continue_the_same_sequence(data):
    views = ViewDataset(*data, 32)
    stream = Stream(len(views), 1, 3, 1)
    complete, resumed = list(batches(views, stream, 0, 6, 0)), list(batches(views, stream, 4, 6, 0))
    assert (len(complete), len(resumed)) == (6, 2)
    for expected, batch in zip(complete[4:], resumed, strict=True):
        for tensor, other in zip(expected, batch, strict=True):
            assert torch.equal(tensor, other)


def test_decoding_processes_yield_the_same_batches(data):
    views = ViewDataset(*data, 32)
    stream = Stream(len(views), 1, 4, 1)
    for one, other in zip(batches(views, stream, 0, 3, 0), batches(views, stream, 0, 3, 2), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.image, other.image)


def test_failed_images_are_skipped_and_indices_stay_aligned(data):
    dataset, split, loaded = data
    views = ViewDataset(dataset, split, with_failed(loaded, 0, 3), 32)
    assert [views[draw(item)][2] for item in range(len(views))] == [1, 2, 4, 5, 6, 7]
    pixels, _, index, view = views[draw(1)]
    expected = Image.fromarray(dataset.image(2)).resize((32, 32), Image.Resampling.BICUBIC)
    assert (index, view) == (2, 0)
    # Pillow uses the same filter but rounds differently
    np.testing.assert_allclose(pixels.permute(1, 2, 0).numpy(), np.array(expected), atol=2)


def test_labels_are_ranks_among_seen_classes_and_all_others_are_unlabelled(data):
    dataset, split, loaded = data
    # cow and house are hidden; sky, grass and road keep their order
    rank = {0: 0, 1: 1, 2: 2, 3: -1, 4: -1, 255: -1}
    views = ViewDataset(dataset, split, loaded, 64)
    label = dataset.label(0)
    assert label.shape == (64, 64)
    np.testing.assert_array_equal(views[draw(0)][1].numpy(), np.vectorize(rank.get)(label))


def test_hiding_the_first_class_shifts_the_ranks_of_the_others(data):
    dataset, _, loaded = data
    views = ViewDataset(dataset, make_split("folder", dataset.classes, "sky,road"), loaded, 64)
    rank = {0: -1, 1: 0, 2: -1, 3: 1, 4: 2, 255: -1}
    np.testing.assert_array_equal(views[draw(0)][1].numpy(), np.vectorize(rank.get)(dataset.label(0)))


def test_an_image_without_a_label_map_is_unlabelled_everywhere(tmp_path, data):
    root = draw_scenes(tmp_path / "dataset")
    (root / "labels/1.png").unlink()
    dataset, (_, split, loaded) = open_dataset("folder", root, "train"), data
    digest = [dataset.digest(index) for index in range(len(dataset))]
    views = ViewDataset(dataset, split, CachedArrays(**(vars(loaded) | {"digest": digest})), 32)
    assert (views[draw(1)][1] == -1).all()
    assert (views[draw(0)][1] >= 0).any()


def test_a_flipped_crop_is_replayed_on_image_and_label(data):
    dataset, split, loaded = data
    box, flip = loaded.box.copy(), loaded.flip.copy()
    box[0, 0], flip[0, 0] = (8, 16, 40, 48), True
    pixels, seen, *_ = ViewDataset(dataset, split, CachedArrays(**(vars(loaded) | {"box": box, "flip": flip})), 32)[
        draw(0)
    ]
    image, label = dataset.load(0)
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), image[8:40, 16:48][:, ::-1])
    np.testing.assert_array_equal(seen.numpy(), np.where(label < 3, label.astype(int), -1)[8:40, 16:48][:, ::-1])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_reported_in_one_line(tmp_path, data, workers):
    root = draw_scenes(tmp_path / "dataset")
    dataset = open_dataset("folder", root, "train")
    (root / "images/2.png").write_bytes(b"not an image")
    views = ViewDataset(dataset, *data[1:], 32)
    with pytest.raises(UserError, match=r"2\.png") as error:
        list(batches(views, Stream(8, 1, 8, 0), 0, 1, workers))
    assert "\n" not in str(error.value)


def test_cached_teacher_returns_the_stored_cls_tokens_exactly(scenes, data):
    loaded = data[2]
    stored = Cache(scenes.cache).group["cls"][:]
    image = torch.tensor([5, 0, 5])
    batch = Batch(torch.zeros(3, 3, 64, 64), torch.full((3, 64, 64), -1), image, torch.zeros(3, dtype=torch.long))
    targets = teacher_targets(CachedTeacher(loaded), batch, SEEN)
    assert targets.cls.dtype == torch.float32
    np.testing.assert_array_equal(targets.cls.numpy(), stored[[5, 0, 5], 0].astype(np.float32))
    assert torch.equal(targets.image, image)


@pytest.mark.parametrize(("dtype", "reserved"), [("uint8", 255), ("uint16", 65535)])
def test_cached_teacher_reads_pseudo_labels_of_either_dtype(dtype, reserved):
    label = np.array([[[[0, 254], [reserved, 1]]]], dtype)
    loaded = SimpleNamespace(cls=np.zeros((1, 1, 2), np.float16), label=label)
    batch = Batch(torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), -1), torch.tensor([0]), torch.tensor([0]))
    target = teacher_targets(CachedTeacher(loaded), batch, SEEN).target
    assert target.tolist() == [[[SEEN, SEEN + 254], [-1, SEEN + 1]]]


@given(
    seed=st.integers(0, 2**32 - 1),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    void=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_labels_present_are_those_of_the_joint_target_at_any_size(seed, grid, size, void):
    label = draw_targets(seed, 2, size, SEEN, 0, void).astype(np.int16)
    pseudo_label = draw_targets(seed + 1, 2, grid, 0, 4, void)
    target = joint_target(torch.tensor(label), torch.tensor(pseudo_label), SEEN).numpy()
    present = present_labels(label, pseudo_label, SEEN)
    assert present.shape[1] >= SEEN
    for image, one in enumerate(target):
        assert set(np.flatnonzero(present[image])) == set(np.unique(one)) - {-1}


def test_each_image_is_drawn_once_per_epoch_in_a_random_view():
    stream = Stream(40, 4, 40, 0)
    epochs = [stream.batch(step) for step in range(12)]
    for epoch in epochs:
        assert sorted(draw.item for draw in epoch) == list(range(40))
    counts = np.zeros((40, 4), int)
    for epoch in epochs:
        for draw in epoch:
            counts[draw.item, draw.view] += 1
    assert ((counts > 0).sum(axis=1) > 1).all()
    assert (counts.sum(axis=0) > 80).all()
    assert [draw.position for draw in epochs[1]] == list(range(40, 80))


def test_order_with_one_view_never_changes():
    order = np.random.default_rng((3, 0)).permutation(10)
    assert [(draw.item, draw.view) for draw in Stream(10, 1, 10, 3).batch(0)] == [(int(i), 0) for i in order]


def test_colors_vary_with_the_stream_position_and_geometry_never_does(data):
    dataset, split, loaded = data
    plain, distorted = ViewDataset(dataset, split, loaded, 64), ViewDataset(dataset, split, loaded, 64, photometric=7)
    views = [distorted[draw(0, position=position)] for position in range(12)]
    assert len({pixels.numpy().tobytes() for pixels, *_ in views}) > 6
    for pixels, label, *_ in views:
        assert torch.equal(label, plain[draw(0)][1])
        assert pixels.shape == plain[draw(0)][0].shape
    assert torch.equal(distorted[draw(0, position=5)][0], views[5][0])


@pytest.mark.parametrize("seed", range(30))
def test_photometric_distortion_is_pixelwise(seed):
    rng = np.random.default_rng(100 + seed)
    images = torch.tensor(rng.integers(0, 256, (2, 3, 16, 16), dtype=np.uint8))
    images[1, :, :8] = images[0, :, :8]
    distorted = [distort(image, np.random.default_rng(seed)) for image in images]
    assert torch.equal(distorted[0][:, :8], distorted[1][:, :8])
    assert distorted[0].dtype == torch.uint8


def test_each_distortion_is_applied_about_half_of_the_time():
    gray = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    changed = [not torch.equal(distort(gray, np.random.default_rng(seed)), gray) for seed in range(200)]
    # only brightness and contrast show on a gray image: three out of four draws apply at least one of them
    assert 0.65 < np.mean(changed) < 0.85


@pytest.mark.parametrize("view", [1, 2])
def test_a_cached_crop_is_replayed_on_pixels_and_labels(data, view):
    dataset, split, loaded = data
    box, flip = np.repeat(loaded.box, 3, axis=1), np.repeat(loaded.flip, 3, axis=1)
    box[0, view], flip[0, view] = (4, 10, 36, 42), view == 2
    views = ViewDataset(dataset, split, CachedArrays(**(vars(loaded) | {"box": box, "flip": flip})), 32)
    pixels, target, *ids = views[draw(0, view)]
    image, label = (array[4:36, 10:42] for array in dataset.load(0))
    step = -1 if view == 2 else 1
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), image[:, ::step])
    np.testing.assert_array_equal(target.numpy(), np.where(label < 3, label.astype(int), -1)[:, ::step])
    assert ids == [0, view]


def test_decoding_processes_share_the_memory_of_cls_tokens_and_masks(data):
    dataset, split, loaded = data
    cls = np.ones((8, 1, 2**24), np.float16)
    large = CachedArrays(**(vars(loaded) | {"cls": cls}))
    views = ViewDataset(dataset, split, large, 32)
    # where processes are not forked, the dataset is pickled
    assert len(pickle.dumps(views)) < 2**20
    before = set(psutil.Process().children())
    loader = batches(views, Stream(8, 1, 4, 0), 0, 50, 2)
    teacher = CachedTeacher(large)
    for _ in range(4):
        teacher_targets(teacher, next(loader), SEEN)
    workers = set(psutil.Process().children()) - before
    assert len(workers) == 2
    unshared = [worker.memory_full_info().uss for worker in workers]
    assert max(unshared) < cls.nbytes / 2, unshared
    loader.close()


def test_a_cache_resampled_with_another_filter_is_refused(scenes, tiny_config, monkeypatch):
    monkeypatch.setattr("data_cache.views.RESIZE_FILTER", "another")
    refused(
        lambda: load_training_data(tiny_config()), scenes.cache, "resampled by 'torch bicubic-antialias'", "precompute"
    )


@pytest.mark.parametrize(
    "error", [ConnectionResetError(), EOFError(), RuntimeError("DataLoader worker (pid 7) exited")]
)
def test_a_dead_decoding_process_is_reported_as_killed(data, monkeypatch, error):
    dataset, split, loaded = data

    def die(*_: object) -> None:
        raise error

    monkeypatch.setattr("torch.utils.data.dataloader._SingleProcessDataLoaderIter._next_data", die)
    stream = Stream(len(loaded.ok), 1, 2, 0)
    refused(
        lambda: next(batches(ViewDataset(dataset, split, loaded, 32), stream, 0, 1, 0)), "decoding process was killed"
    )
