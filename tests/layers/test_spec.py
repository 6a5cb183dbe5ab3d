"""A layer as plain data: what its kernel's shape says, and that it is read back as written."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lrfgraph.layers.spec import LayerSpec

GROUPED = LayerSpec(
    "a/b", "Conv2D", "conv2d", (2, 3, 5, 4, 6), (1, 2), (1, 1), input_shapes=((9, 9, 8),), extra={"k": [1]}
)
DENSE = LayerSpec("d", "Dense", "dense", (1, 12, 10))
TRANSPOSED = LayerSpec("t", "Conv1DTranspose", "conv1d_transpose", (1, 3, 4, 6))


def test_a_kernels_shape_says_it_all() -> None:
    assert (GROUPED.groups, GROUPED.spatial, GROUPED.positions) == (2, (3, 5), 15)
    assert (GROUPED.inputs, GROUPED.outputs, GROUPED.weights, GROUPED.width) == (4, 6, 720, 60)
    assert (DENSE.groups, DENSE.spatial, DENSE.positions, DENSE.width) == (1, (), 1, 12)
    assert (TRANSPOSED.rows, TRANSPOSED.positions, TRANSPOSED.width) == ("vector", 3, 4)


@pytest.mark.parametrize("layer", [GROUPED, DENSE, TRANSPOSED])
def test_a_layer_is_read_back_as_written(layer: LayerSpec) -> None:
    again = LayerSpec.from_json(json.loads(json.dumps(layer.to_json())))
    assert again.to_json() == layer.to_json()
    assert again.input_shapes == layer.input_shapes
    assert again.kernel == layer.kernel


def test_a_layer_of_which_nothing_is_said_adds_nothing() -> None:
    """No bias, no weights, no activation, nothing after it."""
    plain = LayerSpec("a", "Flatten")
    assert (plain.parameters, plain.macs, plain.bias) == (0, 0, False)
    assert (plain.activation, plain.tail, plain.batchnorm, plain.kind, plain.kept) == ("linear", "linear", "", "", "")
    assert (plain.padding, plain.data_format) == ("valid", "channels_last")


@pytest.mark.parametrize("layer", [GROUPED, DENSE, TRANSPOSED])
def test_every_entry_of_a_kernel_is_in_its_matrix_where_its_row_meets_it(layer: LayerSpec) -> None:
    kernel = np.arange(float(layer.weights)).reshape(layer.kernel)
    matrix = layer.matrix(kernel)
    for index in np.ndindex(*layer.kernel):
        group, *place, channel, output = index
        position = int(np.ravel_multi_index(place, layer.spatial)) if place else 0
        patch = layer.rows == "patch"
        row = position * layer.inputs + channel if patch else channel
        column = output if patch else position * layer.outputs + output
        assert matrix[group, row, column] == kernel[index]
