"""What is done to images before the network sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lrfgraph.errors import DataError
from lrfgraph.images.preprocessing import Images, guesses, prepare, preprocessing, preprocessings
from lrfgraph.options.recipe import DataOptions

RANDOM = np.random.default_rng(0)
X = RANDOM.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)


def test_prepare_formula_and_channels() -> None:
    options = DataOptions(scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3), channels="bgr")
    expected = (X[..., ::-1] / 255 - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.3]
    prepared = prepare(X, options, (8, 8, 3))
    assert prepared.dtype == np.float32
    np.testing.assert_allclose(prepared, expected, rtol=1e-5, atol=1e-5)


def test_prepare_channels_first() -> None:
    x = np.moveaxis(X, -1, 1)
    prepared = prepare(x, DataOptions(mean=(1.0, 2.0, 3.0)), (3, 8, 8))
    np.testing.assert_allclose(prepared, np.moveaxis(X - [1.0, 2.0, 3.0], -1, 1))


def test_prepare_adds_the_channel_axis_and_leaves_the_input_alone() -> None:
    before = X.copy()
    assert prepare(X[..., 0], DataOptions(scale=2), (8, 8, 1)).shape == (60, 8, 8, 1)
    np.testing.assert_array_equal(before, X)
    x = np.ones((2, 3, 1), np.float32)
    prepare(x, DataOptions(scale=2), (3, 1))
    assert x.max() == 1


def test_statistics_per_pixel(tmp_path: Path) -> None:
    mean, std = RANDOM.random((8, 8, 3)), RANDOM.random((8, 8, 3)) + 1
    np.savez(tmp_path / "s.npz", mean=mean, std=std)
    np.testing.assert_allclose(
        prepare(X, DataOptions(stats="s.npz"), (8, 8, 3), tmp_path), (X - mean) / std, rtol=1e-4, atol=1e-4
    )


def test_statistics_that_do_not_fit(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", mean=np.zeros((4, 4, 3)), std=np.ones(3))
    with pytest.raises(DataError, match=r"mean has shape \(4, 4, 3\), the model takes images \(8, 8, 3\)"):
        preprocessing(DataOptions(stats="s.npz"), (8, 8, 3), tmp_path)
    np.savez(tmp_path / "s.npz", mean=0)
    with pytest.raises(DataError, match="must hold arrays mean and std; received mean"):
        preprocessing(DataOptions(stats="s.npz"), (8, 8, 3), tmp_path)
    with pytest.raises(DataError, match=r"mean has shape \(1, 1, 2\)"):
        preprocessing(DataOptions(mean=(0, 1)), (8, 8, 3))


def test_images_of_another_shape() -> None:
    with pytest.raises(DataError, match=r"images have shape \(28, 28, 1\), the model takes \(32, 32, 3\)"):
        prepare(np.zeros((2, 28, 28, 1)), DataOptions(), (32, 32, 3))


@pytest.mark.parametrize("images", [X, (X / 255).astype(np.float32), X[..., 0]])
def test_guesses_bring_either_range_to_the_same_values(images: np.ndarray) -> None:
    shape = images.shape[1:] if images.ndim == 4 else (*images.shape[1:], 1)
    tried = {name: prepare(images, options, shape) for name, options in guesses(images, DataOptions()).items()}
    assert tried["pixels 0..255"].max() > 200
    assert 0.9 < tried["--scale 1/255"].max() <= 1 + 1e-6
    assert tried["--scale 1/127.5 --mean 1"].min() < -0.9
    assert abs(tried["mean 0, deviation 1"].std() - 1) < 1e-2
    assert ("ImageNet mean and std" in tried) == (shape[-1] == 3)


def test_of_several_inputs_the_pictures_alone_are_preprocessed() -> None:
    options = DataOptions(scale=0.5, channels="bgr")
    picture, numbers = preprocessings(options, {"picture": (8, 8, 3), "numbers": (3,)})
    np.testing.assert_array_equal(picture.apply(X), X[..., ::-1] * np.float32(0.5))
    np.testing.assert_array_equal(numbers.apply(X[:, 0, 0]), X[:, 0, 0])
    (alone,) = preprocessings(options, {"numbers": (3,)})
    np.testing.assert_array_equal(alone.apply(X[:, 0, 0]), X[:, 0, 0, ::-1] * np.float32(0.5))


def test_images_of_several_inputs_come_together() -> None:
    hows = preprocessings(DataOptions(scale=2), {"picture": (8, 8, 3), "numbers": (3,)})
    images = Images((X, X[:, 0, 0]), hows, np.array([7, 2, 5]))
    assert (len(images), images.several, images.shape) == (3, True, (3, 8, 8, 3))
    pictures, numbers = images[1:]
    np.testing.assert_array_equal(pictures, 2.0 * X[[2, 5]])
    np.testing.assert_array_equal(numbers, X[[2, 5], 0, 0])
    first = images.first(2)
    np.testing.assert_array_equal(first[:][1], X[[7, 2], 0, 0])
    whole = Images((X,), hows[:1])
    assert (len(whole), whole.several, whole.first(4).shape) == (60, False, (4, 8, 8, 3))
    np.testing.assert_array_equal(whole.first(4)[:], 2.0 * X[:4])


def test_guesses_leave_out_what_the_options_said_and_know_the_constants_of_imagenet() -> None:
    tried = guesses(X, DataOptions(scale=3.0, mean=(1.0,), std=(2.0,), channels="bgr"))
    assert tried["pixels 0..255"] == DataOptions(scale=1.0)
    assert tried["--scale 1/255 --channels bgr"] == DataOptions(scale=1 / 255, channels="bgr")
    imagenet = tried["ImageNet mean and std"]
    assert (imagenet.mean, imagenet.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    caffe = tried["--channels bgr, ImageNet mean"]
    assert (caffe.scale, caffe.mean, caffe.channels) == (1.0, (103.939, 116.779, 123.68), "bgr")
    unit = guesses((X / 255).astype(np.float32), DataOptions())
    assert (unit["pixels 0..255"].scale, unit["--scale 1/255"].scale) == (255.0, 1.0)


@pytest.mark.parametrize(
    ("shape", "coloured"), [((5, 8, 8, 3), True), ((5, 3, 8, 8), True), ((5, 8, 8, 1), False), ((5, 8, 3), False)]
)
def test_guesses_about_colours_are_for_pictures_that_have_them(shape: tuple[int, ...], coloured: bool) -> None:
    assert ("ImageNet mean and std" in guesses(np.ones(shape, np.uint8), DataOptions())) == coloured


def test_a_black_picture_can_be_brought_to_deviation_one() -> None:
    assert guesses(np.zeros((4, 8, 8, 1), np.uint8), DataOptions())["mean 0, deviation 1"].std == (1e-6,)


@pytest.mark.parametrize(
    ("value", "shape", "fitting"),
    [
        ((3,), (8, 8, 3), True),
        ((8, 1, 3), (8, 8, 3), True),
        ((1, 8, 8, 3), (8, 8, 3), False),
        ((3,), (None, None, 3), True),
        ((5, 8, 3), (None, 8, 3), True),
        ((8, 3), (4, 3), False),
    ],
)
def test_statistics_broadcast_as_arrays_do(
    value: tuple[int, ...], shape: tuple[int | None, ...], fitting: bool, tmp_path: Path
) -> None:
    np.savez(tmp_path / "s.npz", mean=np.zeros(value), std=np.ones(3))
    if fitting:
        assert preprocessing(DataOptions(stats="s.npz"), shape, tmp_path).mean is not None
        return
    with pytest.raises(DataError, match="mean has shape"):
        preprocessing(DataOptions(stats="s.npz"), shape, tmp_path)
