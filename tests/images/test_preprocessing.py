"""What is done to images before the network sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lrfgraph.errors import DataError
from lrfgraph.images.preprocessing import guesses, prepare, preprocessing
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
