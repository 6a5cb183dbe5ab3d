"""Rows times the kernel's matrix are the layer's own outputs, for every kind, stride, padding and dilation."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest

from lrfgraph.layers.kinds import LAYER_KINDS
from lrfgraph.layers.rows import Sampler, add_moments, cut, grouped, positions_of
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.network.describing import describe
from lrfgraph.network.graph import Call, flatten
from lrfgraph.network.operations import layer_input
from tests.network.models import LAYERS, channels_first, inputs_for, one_layer

MORE = {
    "conv1d_causal_strided": one_layer((13, 3), lambda k: k.Conv1D(4, 4, strides=3, padding="causal")),
    "conv1d_causal_grouped": one_layer(
        (12, 4), lambda k: k.Conv1D(4, 2, padding="causal", groups=2, dilation_rate=3, activation="relu")
    ),
    "conv2d_same_dilated": one_layer((9, 10, 2), lambda k: k.Conv2D(3, 3, padding="same", dilation_rate=(2, 1))),
    "conv2d_same_grouped_even": one_layer((7, 8, 4), lambda k: k.Conv2D(4, (2, 4), groups=2, padding="same")),
    "depthwise_strided_same": one_layer((9, 9, 3), lambda k: k.DepthwiseConv2D(3, strides=2, padding="same")),
    "separable_valid_dilated": one_layer((9, 9, 3), lambda k: k.SeparableConv2D(4, 3, dilation_rate=2)),
}
NAMES = [*LAYERS, *MORE]


def build(name: str) -> tuple[Any, LayerSpec, Call, np.ndarray]:
    """Return a model of one layer, the layer, its call and its canonical kernel in float64."""
    model = (LAYERS | MORE)[name]()
    found = describe(model)
    index = next(i for i, layer in enumerate(found.layers) if layer.kind)
    layer = found.layers[index]
    call = next(call for call in flatten(model).calls if call.path == layer.name)
    return model, layer, call, found.arrays[f"layers/{index}/kernel"].astype(np.float64)


def linear(call: Call, x: np.ndarray) -> np.ndarray:
    """A layer's outputs without bias and activation."""
    import keras

    call.operation.activation = keras.activations.linear
    bias = 0.0 if call.operation.bias is None else np.asarray(call.operation.bias)
    return np.asarray(call.operation(x)) - bias


def every(layer: LayerSpec, images: int) -> tuple[np.ndarray, np.ndarray]:
    positions = prod(positions_of(layer))
    return np.repeat(np.arange(images), positions), np.tile(np.arange(positions), images)


def test_every_kind_is_among_the_layers() -> None:
    assert {build(name)[1].kind for name in NAMES} == set(LAYER_KINDS)


@pytest.mark.parametrize("name", NAMES)
def test_rows_times_matrix_are_the_layers_outputs(name: str) -> None:
    model, layer, call, kernel = build(name)
    x = inputs_for(model)
    image, position = every(layer, len(x))
    seen = np.asarray(layer_input(call.operation, layer, x))
    rows = grouped(layer, cut(layer, seen, image, position)).astype(np.float64)
    assert rows.shape == (layer.groups, len(image), layer.width)
    made = rows @ layer.matrix(kernel)
    if layer.family.scatters:
        wanted = linear(call, x)
        np.testing.assert_allclose(scattered(layer, made[0], wanted.shape), wanted, atol=2e-5)
        return
    wanted = linear(call, x).reshape(len(image), layer.groups, layer.outputs)
    np.testing.assert_allclose(np.moveaxis(made, 0, 1), wanted, atol=2e-5)


def scattered(layer: LayerSpec, contributions: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Add up what each input position gives to the output positions under the kernel, one by one."""
    images, grid = shape[0], layer.input_shapes[0][:-1]
    per = contributions.reshape(images, *grid, *layer.spatial, layer.outputs)
    low = [
        max(k - s, 0) // 2 if layer.padding == "same" else 0 for k, s in zip(layer.spatial, layer.strides, strict=True)
    ]
    out = np.zeros(shape)
    for at, offset in product(np.ndindex(*grid), np.ndindex(*layer.spatial)):
        to = [a * s + o - b for a, s, o, b in zip(at, layer.strides, offset, low, strict=True)]
        if all(0 <= t < size for t, size in zip(to, shape[1:-1], strict=True)):
            out[(slice(None), *to)] += per[(slice(None), *at, *offset)]
    return out


def test_channels_first_rows_are_cut_channels_last() -> None:
    model = channels_first()
    found, x = describe(model), inputs_for(model)
    layer, kernel = found.layers[0], found.arrays["layers/0/kernel"].astype(np.float64)
    call = flatten(model).calls[0]
    image, position = every(layer, len(x))
    rows = grouped(layer, cut(layer, np.asarray(layer_input(call.operation, layer, x)), image, position))
    wanted = np.zeros((len(image), layer.outputs))
    padded = np.pad(np.moveaxis(x, 1, -1), [(0, 0), (1, 1), (1, 1), (0, 0)])
    height, width = positions_of(layer)
    for n, (i, p) in enumerate(zip(image, position, strict=True)):
        top, left = divmod(p, width)
        wanted[n] = np.einsum("hwi,hwio->o", padded[i, top : top + 3, left : left + 3], kernel[0])
    assert height * width == len(image) // len(x)
    np.testing.assert_allclose((rows @ layer.matrix(kernel))[0], wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["conv2d_grouped", "conv1d_causal", "dense_rank3", "depthwise_conv2d"])
def test_moments_are_the_mean_of_outer_products_with_the_constant_last(name: str) -> None:
    model, layer, call, _ = build(name)
    x = inputs_for(model, images=5)
    rows = cut(layer, np.asarray(layer_input(call.operation, layer, x)), *every(layer, 5))
    total = np.zeros((layer.groups, layer.width + 1, layer.width + 1))
    for part in np.array_split(rows, 3):
        add_moments(total, layer, part)
    one = np.concatenate([grouped(layer, rows), np.ones((layer.groups, len(rows), 1))], axis=2).astype(np.float64)
    np.testing.assert_allclose(total, one.swapaxes(1, 2) @ one, rtol=1e-5, atol=1e-4)
    assert np.all(total[:, -1, -1] == len(rows))


@pytest.mark.parametrize("rows", [1, 7, 40, 10_000])
@pytest.mark.parametrize("calls", [1, 2])
def test_the_sample_is_the_same_whatever_the_batch(rows: int, calls: int) -> None:
    layer = build("conv2d")[1]
    layer = replace(layer, input_shapes=layer.input_shapes * calls, output_shapes=layer.output_shapes * calls)
    images, samplers = 11, [Sampler(layer, 11, rows, 2 * rows, 1 << 30, seed) for seed in (3, 3, 4)]

    def drawn(sampler: Sampler, size: int) -> list[tuple[int, int, int, bool]]:
        found = []
        for call in range(calls):
            for start in range(0, images, size):
                image, position, stored = sampler.batch(call, start, min(start + size, images))
                found += [
                    (call, start + int(i), int(p), bool(s)) for i, p, s in zip(image, position, stored, strict=True)
                ]
        return found

    first = drawn(samplers[0], 11)
    assert first == drawn(samplers[1], 4) == drawn(samplers[0], 1)
    kept = [row for row in first if row[-1]]
    assert 1 <= len(kept) <= max(rows, calls)
    assert len(set(first)) == len(first)
    assert {row[1] for row in first} == set(range(images))
    assert rows > 7 or first != drawn(samplers[2], 11)


@pytest.mark.parametrize(
    ("images", "rows", "kept"),
    [(14, 14, 14), (14, 7, 7), (15, 7, 5), (14, 13, 7), (14, 27, 14), (14, 28, 28), (3, 1000, 300)],
)
def test_as_many_rows_are_kept_as_all_images_can_give_alike(images: int, rows: int, kept: int) -> None:
    """At most what is asked for, the same number of each image or of every second, third, … image."""
    sampler = Sampler(dense(positions=100), images, rows, 10 * rows, 1 << 30, 0)
    image, _, stored = sampler.batch(0, 0, images)
    assert int(stored.sum()) == kept
    assert len(set(np.bincount(image[stored]).tolist()) - {0}) == 1


@pytest.mark.parametrize(("limit", "kept"), [(320, 20), (319, 10), (160, 10), (159, 5)])
def test_rows_are_four_bytes_a_number(limit: int, kept: int) -> None:
    """Of ten images with four numbers a row."""
    sampler = Sampler(dense(positions=100), 10, 1000, 10_000, limit, 0)
    assert int(sampler.batch(0, 0, 10)[2].sum()) == kept


@pytest.mark.parametrize(
    ("images", "moment_rows", "each"),
    [(10, 100, 10), (10, 101, 11), (10, 99, 10), (10, 5, 1), (10, 2000, 100), (10, 990, 99)],
)
def test_as_many_rows_enter_the_moments_as_are_asked_for(images: int, moment_rows: int, each: int) -> None:
    sampler = Sampler(dense(positions=100), images, 10, moment_rows, 1 << 30, 0)
    image, position, _ = sampler.batch(0, 0, images)
    assert np.bincount(image).tolist() == [each] * images
    for number in range(images):
        assert len(set(position[image == number].tolist())) == each
    assert 0 <= position.min() <= position.max() < 100


def dense(positions: int) -> LayerSpec:
    """A dense layer that is applied at many positions."""
    shape = ((positions, 4),)
    return LayerSpec("a", "Dense", "dense", (1, 4, 3), input_shapes=shape, output_shapes=((positions, 3),))


def test_stored_rows_keep_to_their_bytes() -> None:
    layer = build("conv2d")[1]
    limit = 4 * layer.width * 30
    sampler = Sampler(layer, 100, 8192, 32768, limit, 0)
    stored = sum(int(sampler.batch(0, i, i + 1)[2].sum()) for i in range(100))
    assert 0 < stored * 4 * layer.width <= limit
