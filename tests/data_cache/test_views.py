import numpy as np
import pytest
from PIL import Image

from data_cache.errors import UsageError
from data_cache.sample import crop_image, crop_label
from data_cache.views import Cropping, View, whole


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_view_0_is_the_whole_unflipped_image():
    assert whole(30, 40) == View((0, 0, 30, 40), flip=False)


def test_image_of_the_target_size_is_unchanged():
    image = random_image(32, 32)
    np.testing.assert_array_equal(crop_image(image, whole(32, 32), 32), image)


def test_crop_contains_the_pixels_of_its_box():
    image = random_image(50, 60)
    np.testing.assert_array_equal(crop_image(image, View((7, 9, 39, 41)), 32), image[7:39, 9:41])


def test_flip_mirrors_image_and_label():
    image, label = random_image(32, 32), random_image(32, 32)[..., 0]
    view = View((0, 0, 32, 32), flip=True)
    np.testing.assert_array_equal(crop_image(image, view, 32), image[:, ::-1])
    np.testing.assert_array_equal(crop_label(label, view, 32), label[:, ::-1])


def test_label_crops_equal_pillows_nearest_resampling():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(1, 900, 2)
        top, left = int(rng.integers(height)), int(rng.integers(width))
        bottom, right = int(rng.integers(top, height)) + 1, int(rng.integers(left, width)) + 1
        label, size = rng.integers(0, 256, (height, width), np.uint8), int(rng.integers(1, 600))
        box = (left, top, right, bottom)
        expected = np.array(Image.fromarray(label).resize((size, size), Image.Resampling.NEAREST, box=box))
        for flip in (False, True):
            found = crop_label(label, View((top, left, bottom, right), flip), size)
            np.testing.assert_array_equal(found, expected[:, ::-1] if flip else expected)


def test_labels_are_resampled_by_nearest_neighbor():
    label = np.random.default_rng(1).choice(np.array([0, 7, 255], np.uint8), (45, 33))
    size = 20
    rows = ((np.arange(size) + 0.5) * 45 / size).astype(int)
    columns = ((np.arange(size) + 0.5) * 33 / size).astype(int)
    np.testing.assert_array_equal(crop_label(label, whole(45, 33), size), label[np.ix_(rows, columns)])


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel with a = -1/2, as in Pillow's and torch's antialiased bicubic filters."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def resampling(length: int, size: int) -> np.ndarray:
    """Weight of each input pixel in each output pixel; the kernel widens with the downsampling factor."""
    scale = max(1, length / size)
    centers = (np.arange(size) + 0.5) * length / size
    weights = cubic((np.arange(length) + 0.5 - centers[:, None]) / scale)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(48, 64, 51), (20, 9, 32), (150, 61, 32), (1, 3, 16), (400, 2, 8)]
)
@pytest.mark.parametrize("flip", [False, True])
def test_crops_are_resampled_by_antialiased_bicubic(height, width, size, flip):
    image = random_image(height + 9, width + 5)
    crop = image[4 : 4 + height, 3 : 3 + width]
    # each pass, horizontal first, rounds to integers
    horizontal = np.einsum("xj,ijc->ixc", resampling(width, size), crop.astype(float)).round().clip(0, 255)
    expected = np.einsum("yi,ixc->yxc", resampling(height, size), horizontal).round().clip(0, 255)
    view = View((4, 3, 4 + height, 3 + width), flip)
    actual = crop_image(image, view, size)
    assert abs(actual - (expected[:, ::-1] if flip else expected)).max() <= 1
    read_only = image.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(crop_image(read_only, view, size), actual)


@pytest.mark.parametrize("size", [16, 64])
def test_image_and_label_stay_aligned_in_any_view(size):
    # a bright square on a dark background: the image must be bright where the label is 1
    image, label = np.zeros((80, 100, 3), np.uint8), np.zeros((80, 100), np.uint8)
    image[20:60, 30:70], label[20:60, 30:70] = 255, 1
    view = View((10, 20, 70, 90), flip=True)
    bright = crop_image(image, view, size)[..., 0] > 127
    agreement = (bright == (crop_label(label, view, size) == 1)).mean()
    assert agreement > 1 - 8 / size  # only the border of the square may differ, by the filter's width


def test_downsampling_averages_pixels():
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 255
    image = np.repeat(checks[..., None], 3, axis=2).astype(np.uint8)
    small = crop_image(image, whole(64, 64), 8)
    assert abs(small.astype(int) - 127).max() <= 2


def test_crops_respect_scale_and_ratio():
    cropping = Cropping(count=200, scale=(0.25, 0.8), ratio=(0.5, 2.0))
    views = cropping.views("a.jpg", 300, 400)
    assert views[0] == whole(300, 400)
    boxes = np.array([view.box for view in views[1:]])
    heights, widths = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= 300).all()
    assert (boxes[:, 3] <= 400).all()
    area, ratio = heights * widths / (300 * 400), widths / heights
    assert area.min() > 0.24
    assert area.max() < 0.81
    assert area.max() - area.min() > 0.4
    assert ratio.min() > 0.49
    assert ratio.max() < 2.02
    assert 0.3 < np.mean([view.flip for view in views[1:]]) < 0.7
    assert len({view.box for view in views}) > 190


def test_views_depend_only_on_seed_image_and_number():
    four, eight = Cropping(count=4).views("a.jpg", 90, 120), Cropping(count=8).views("a.jpg", 90, 120)
    assert eight[:4] == four
    assert Cropping(count=4).views("b.jpg", 90, 120)[1:] != four[1:]
    assert Cropping(count=4, seed=1).views("a.jpg", 90, 120)[1:] != four[1:]


@pytest.mark.parametrize(("height", "width"), [(4, 400), (400, 4), (1, 1), (1, 50)])
def test_very_long_images_are_cropped_at_their_center(height, width):
    for view in Cropping(count=5, scale=(0.9, 1.0)).views("long", height, width):
        top, left, bottom, right = view.box
        assert 0 <= top < bottom <= height
        assert 0 <= left < right <= width
        assert crop_image(random_image(height, width), view, 8).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"count": 0}, "--views 0"),
        ({"seed": -1}, "--view-seed"),
        ({"scale": (0.5, 1.5)}, "--view-scale"),
        ({"scale": (0.0, 1.0)}, "--view-scale"),
        ({"ratio": (2.0, 1.0)}, "--view-ratio"),
    ],
)
def test_invalid_view_settings_are_usage_errors(given, word):
    with pytest.raises(UsageError, match=word):
        Cropping(**given)
