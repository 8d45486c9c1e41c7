"""Names of pseudo labels in the transductive setting: against numpy loops, on a real cache, and as targets."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from folders import make_cache
from refusals import refused
from safetensors.torch import load_file
from training_scenes import CLASSES

from data_cache.errors import UsageError
from data_cache.reader import Cache
from data_cache.splits import Split
from pipeline.teacher.names import TINY
from trainer import naming
from trainer.card import MODEL, read_card
from trainer.checkpoint_folders import latest
from trainer.data import Batch, load_training_data
from trainer.loop import train
from trainer.naming import ANONYMOUS, label_centroids, name_pseudo_labels, regressed_names
from trainer.teacher import CachedTeacher, NamedTeacher, cached_teacher, teacher_targets

SEEN, UNSEEN = 3, 2


def unit(row):
    return row / np.sqrt(sum(float(value) ** 2 for value in row))


def standardized(values):
    """The values of one name, one view at a time."""
    mean = sum(values) / len(values)
    return [(v - mean) / (sum((w - mean) ** 2 for w in values) / len(values)) ** 0.5 for v in values]


def names_by_loops(cache, loaded, text):
    """The rule of docs/decisions/method.md: loops over pseudo labels and names, and least squares over stacked rows."""
    views = [(i, v) for i in range(len(loaded.ok)) if loaded.ok[i] for v in range(loaded.cls.shape[1])]
    cosine = {at: [unit(loaded.cls[at].astype(float)) @ row for row in text] for at in views}
    columns = [standardized([cosine[at][u] for at in views]) for u in range(len(text))]
    similarity = {at: [column[row] for column in columns] for row, at in enumerate(views)}
    owners, points, tokens = [], [], []
    for i, v in views:
        dense = cache.dense(i)[v].astype(float)
        for label in range(loaded.count[i, v]):
            members = [unit(token) for token in dense[loaded.label[i, v] == label]]
            owners.append((i, v, label))
            points.append(unit(np.mean(members, axis=0)))
            tokens.append(len(members))
    shown = np.array([similarity[at[:2]] for at in owners])
    tokens, mean = np.array(tokens), np.average(points, axis=0, weights=tokens)
    points, target, channels = np.array(points) - mean, shown, len(mean)
    variance = sum(w * point @ point for w, point in zip(tokens, points, strict=True)) / channels
    penalty = np.sqrt(0.05 * variance) * np.eye(channels)
    root = np.sqrt(tokens)[:, None]
    for _ in range(6):
        level = (tokens[:, None] * target).sum(axis=0) / tokens.sum()
        stacked = np.vstack([root * (target - level), np.zeros((channels, len(text)))])
        slope = np.linalg.lstsq(np.vstack([root * points, penalty]), stacked, rcond=None)[0]
        found = []
        for point, similar in zip(points, shown, strict=True):
            expected = level + point @ slope
            name = int(np.argmax(expected))
            found.append(name if expected[name] > 0.6 and similar[name] > 0.3 else ANONYMOUS)
        target = np.array([[float(name == u) for u in range(len(text))] for name in found])
    return dict(zip(owners, found, strict=True))


def inputs(path, **given):
    """A cache of synthetic scenes with two views, and what naming reads of it."""
    settings = {"dataset": "scenes", "clip": TINY, "clip_weights": None, "limit": 10, "views": 2, "shard": 4}
    cache = Cache(make_cache(None, path, **settings, **given))
    loaded, texts = cache.load("default"), cache.texts()
    return cache, loaded, Split(texts.classes, tuple(cache.mask_attributes("default")["unseen"])), texts.features


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    return inputs(tmp_path_factory.mktemp("named") / "c.zarr")


def test_names_are_those_of_loops_over_pseudo_labels(cached):
    cache, loaded, split, text = cached
    names = name_pseudo_labels(*cached)
    expected = names_by_loops(cache, loaded, text[split.unseen_index].astype(float))
    assert len({*expected.values()}) > 2
    assert ANONYMOUS in expected.values()
    assert {at: int(names[at]) for at in expected} == expected
    assert (names[np.arange(names.shape[2]) >= loaded.count[:, :, None]] == ANONYMOUS).all()


def world(rng, images, kinds):
    """Images with three masks each of different kinds, of which the first two have names that images show, noisily."""
    directions = np.linalg.qr(rng.normal(size=(16, kinds)))[0].T
    true = np.array([rng.permutation(kinds)[:3] for _ in range(images)])
    shows = np.stack([(true == name).any(axis=1) for name in range(2)], axis=1)
    similarity = shows + 0.4 * rng.normal(size=shows.shape)
    shown = (similarity - similarity.mean(axis=0)) / similarity.std(axis=0)
    centroids = directions[true.ravel()] + 0.1 * rng.normal(size=(true.size, 16))
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    return true.ravel(), centroids.astype(np.float32), np.repeat(shown, 3, axis=0)


def test_only_the_masks_that_images_with_a_name_have_in_common_get_it():
    true, centroids, shown = world(np.random.default_rng(0), images=300, kinds=8)
    names = regressed_names(centroids, np.full(len(true), 5), shown)
    assert (names == true)[true < 2].mean() > 0.8
    assert (names == ANONYMOUS)[true >= 2].mean() > 0.99  # although a third of them are in images that show a name


def test_a_mask_has_no_name_if_its_image_does_not_show_it():
    true, centroids, shown = world(np.random.default_rng(0), images=300, kinds=8)
    shown[:3] = -1.0
    names = regressed_names(centroids, np.full(len(true), 5), shown)
    assert (names[:3] == ANONYMOUS).all()


def test_a_cache_without_dense_tokens_is_refused_with_the_fix(tmp_path):
    without = inputs(tmp_path / "c.zarr", dense="none")
    refused(lambda: name_pseudo_labels(*without), "--transductive: ", "holds no dense tokens", "--dense float16")


def test_a_cache_without_pseudo_labels_has_no_names(cached):
    cache, loaded, split, text = cached
    empty = type(loaded)(**{**vars(loaded), "count": np.zeros_like(loaded.count)})
    assert (name_pseudo_labels(cache, empty, split, text) == ANONYMOUS).all()


def test_a_vocabulary_without_unseen_classes_is_refused(cached):
    cache, loaded, _, text = cached
    refused(
        lambda: name_pseudo_labels(cache, loaded, Split(CLASSES, ()), text),
        "--transductive",
        "no unseen classes",
        kind=UsageError,
    )


@pytest.mark.parametrize(("dtype", "reserved"), [("uint8", 255), ("uint16", 65535)])
def test_pixels_of_a_named_pseudo_label_have_the_row_of_its_class(dtype, reserved):
    label = np.array([[[0, 1], [reserved, 2]], [[reserved, 0], [1, 1]]], dtype)
    names = np.array([[[1, -1, 0]], [[-1, 1, -1]]], np.int16)

    def teacher(image, _view):
        return np.zeros((len(image), 4), np.float16), label[image]

    pixels = torch.full((2, 2, 2), -1)
    pixels[0, 0, 1] = 2
    batch = Batch(torch.zeros(2, 3, 2, 2), pixels, torch.tensor([1, 0]), torch.tensor([0, 0]))
    targets = teacher_targets(NamedTeacher(teacher, names, UNSEEN), batch, SEEN)
    first = SEEN + UNSEEN
    assert targets.target.tolist() == [[[-1, 2], [SEEN + 1, SEEN + 1]], [[SEEN + 1, first + 1], [-1, SEEN]]]
    assert [np.flatnonzero(one).tolist() for one in targets.present] == [[2, SEEN + 1], [SEEN, SEEN + 1, first + 1]]


def test_only_named_pixels_change_their_target(cached, tiny_config):
    plain, named_too = (
        load_training_data(tiny_config(cache=str(cached[0].path), transductive=option)) for option in (False, True)
    )
    seen, unseen = len(plain.split.seen), len(plain.split.unseen)
    assert plain.names is None
    assert plain.text_classes.tolist() == plain.split.seen_index.tolist()
    assert named_too.text_classes.tolist() == [*plain.split.seen_index, *plain.split.unseen_index]
    images = torch.arange(10)
    batch = Batch(torch.zeros(10, 3, 8, 8), torch.full((10, 24, 24), -1), images, images % 2)
    before, target = (teacher_targets(cached_teacher(data), batch, seen).target for data in (plain, named_too))
    named_pixels = (target >= seen) & (target < seen + unseen)
    assert named_pixels.any()
    assert torch.equal(target[~named_pixels], torch.where(before < 0, before, before + unseen)[~named_pixels])


def test_masks_on_another_grid_have_the_nearest_tokens():
    dense = np.random.default_rng(0).normal(size=(1, 2, 3, 4)).astype(np.float16)
    cache = SimpleNamespace(layout=SimpleNamespace(grid=(2, 3), channels=4), dense=lambda _image: dense)
    label = np.full((1, 1, 4, 6), 255, np.uint8)
    label[0, 0, :2, :2], label[0, 0, 3, 1:5] = 0, 1
    loaded = SimpleNamespace(label=label, count=np.array([[2]]))
    centroids, tokens = label_centroids(cache, loaded, np.array([0]))
    nearest = [unit(dense[0, 1, x].astype(float)) for x in (0, 1, 1, 2)]
    assert tokens.tolist() == [4, 4]
    np.testing.assert_allclose(centroids[0], unit(dense[0, 0, 0].astype(float)), rtol=1e-5)
    np.testing.assert_allclose(centroids[1], unit(np.mean(nearest, axis=0)), rtol=1e-5)


def test_a_transductive_training_resumes_bit_for_bit(cached, tiny_config, tmp_path):
    config = tiny_config(cache=str(cached[0].path), transductive=True, iterations=4, checkpoint_every=2)
    train(config, tmp_path / "whole")

    def kill(line):
        if line["step"] == 3:
            raise KeyError

    with pytest.raises(KeyError):
        train(config, tmp_path / "halves", on_update=kill)
    train(config, tmp_path / "halves", resume=True)
    whole, halves = (load_file(tmp_path / run / "step_00000004" / MODEL) for run in ("whole", "halves"))
    assert all(torch.equal(value, halves[name]) for name, value in whole.items())
    refused(
        lambda: train(replace(config, transductive=False), tmp_path / "halves", resume=True),
        "--resume: --transductive differs",
        kind=UsageError,
    )


def test_a_resumed_run_with_other_names_is_refused(cached, tiny_config, tmp_path, monkeypatch):
    config = tiny_config(cache=str(cached[0].path), transductive=True, iterations=1)
    train(config, tmp_path / "run")
    monkeypatch.setattr(naming, "EXPECTED", 10.0)
    refused(
        lambda: train(config, tmp_path / "run", resume=True),
        "--resume: the cache's pseudo_label_names differs",
        kind=UsageError,
    )


@pytest.mark.slow
def test_two_processes_find_the_same_names_as_one(cached, tiny_config, tmp_path):
    config = tiny_config(cache=str(cached[0].path), transductive=True, iterations=1, batch_size=2)
    messages = []
    for devices in (1, 2):
        train(replace(config, devices=devices), tmp_path / str(devices), log=messages.append)
    one, two = (read_card(latest(tmp_path / devices))["pseudo_label_names"] for devices in "12")
    assert one == two
    assert len(messages) == 2
    assert "reads all dense tokens" in messages[0]


def test_a_live_teacher_is_refused_in_transductive_training(cached, tiny_config, tmp_path):
    config = tiny_config(cache=str(cached[0].path), transductive=True)
    live = CachedTeacher(cached[1])
    refused(lambda: train(config, tmp_path / "run", teacher=live), "--online", "omit --transductive", kind=UsageError)
