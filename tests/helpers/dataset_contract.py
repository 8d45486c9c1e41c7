"""Tests that every dataset must pass."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from drawing import HEIGHT, WIDTH

from data_cache.datasets import open_dataset


class DatasetContract:
    """Base class of dataset tests: a subclass draws a tree and declares the values of its first label map."""

    name: str
    values: set[int] | None

    def draw(self, root: Path) -> None:
        raise NotImplementedError

    @pytest.fixture
    def dataset(self, tmp_path):
        self.draw(tmp_path)
        return open_dataset(self.name, tmp_path, "train")

    def test_name_root_split_and_classes(self, dataset, tmp_path):
        assert (dataset.name, dataset.root, dataset.split) == (self.name, tmp_path, "train")
        assert isinstance(dataset.classes, tuple)
        assert len(set(dataset.classes)) == len(dataset.classes)

    def test_ids_are_sorted_unique_paths_below_the_root(self, dataset):
        assert len(dataset) == len(dataset.ids) > 1
        assert dataset.ids == sorted(set(dataset.ids))
        for i, name in enumerate(dataset.ids):
            assert dataset.path(i) == dataset.root / name
            assert dataset.path(i).is_file()

    def test_images_are_uint8_rgb(self, dataset):
        for i in range(len(dataset)):
            assert dataset.image(i).shape == (HEIGHT, WIDTH, 3)
            assert dataset.image(i).dtype == np.uint8

    def test_label_maps_hold_class_indices_and_the_largest_value_for_void(self, dataset):
        label = dataset.label(0)
        if self.values is None:
            assert label is None
        else:
            assert set(np.unique(label)) == self.values
            assert label.shape == (HEIGHT, WIDTH)
            assert label.dtype == (np.uint8 if len(dataset.classes) <= 254 else np.uint16)

    def test_load_returns_image_and_label_map(self, dataset):
        image, label = dataset.load(1)
        np.testing.assert_array_equal(image, dataset.image(1))
        np.testing.assert_equal(label, dataset.label(1))

    def test_digest_is_the_sha256_of_both_files(self, dataset):
        image, label = dataset.digest(0)
        assert image == hashlib.sha256(dataset.path(0).read_bytes()).hexdigest()
        assert (label == "") == (self.values is None)
        if label:
            assert label == hashlib.sha256(dataset.label_path(0).read_bytes()).hexdigest()

    def test_limit_keeps_the_first_images(self, dataset):
        assert dataset.subset([1, 0]).ids == dataset.ids[1::-1]
        assert len(open_dataset(self.name, dataset.root, "train", limit=1000)) == len(dataset)
        assert open_dataset(self.name, dataset.root, "train", limit=1).ids == dataset.ids[:1]

    def test_dataset_survives_pickling(self, dataset):
        unpickled = pickle.loads(pickle.dumps(dataset))
        assert unpickled.ids == dataset.ids
        np.testing.assert_array_equal(unpickled.image(0), dataset.image(0))
        np.testing.assert_equal(unpickled.label(0), dataset.label(0))

    def test_ids_do_not_depend_on_the_root(self, dataset, tmp_path):
        elsewhere = tmp_path / "elsewhere"
        self.draw(elsewhere)
        assert open_dataset(self.name, elsewhere, "train").ids == dataset.ids
