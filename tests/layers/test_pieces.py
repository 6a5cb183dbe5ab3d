"""Chains of pieces: what they stand for, and the parameters and MACs that a convolution of that shape needs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lrfgraph.layers.pieces import Cost, Piece, compose, cost, layer_cost, native_kernel, whole
from lrfgraph.layers.spec import LayerSpec


def conv(
    kind: str, kernel: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...], **more: object
) -> LayerSpec:
    return LayerSpec("a", "", kind, kernel, input_shapes=(before,), output_shapes=(after,), **more)  # type: ignore[arg-type]


STRIDED = conv("conv2d", (1, 3, 3, 8, 16), (12, 10, 8), (6, 5, 16))
TRANSPOSED = conv("conv2d_transpose", (1, 3, 3, 8, 16), (6, 5, 8), (12, 10, 16))
GROUPED = conv("conv1d", (2, 5, 4, 6), (20, 8), (10, 12))
DENSE = conv("dense", (1, 12, 10), (7, 12), (7, 10))
SEPARABLE = conv("separable_conv2d", (1, 1, 1, 16, 12), (12, 10, 8), (6, 5, 12), depthwise=(3, 3, 8, 2))
TUCKER = (Piece("mix", (1, 1, 1, 8, 3)), Piece("mix", (1, 3, 3, 3, 5), (0, 1)), Piece("mix", (1, 1, 1, 5, 16)))
SPATIAL = (Piece("mix", (1, 3, 1, 8, 4), (0,)), Piece("mix", (1, 1, 3, 4, 16), (1,)))
CP = (Piece("mix", (1, 1, 1, 8, 4)), Piece("channelwise", (1, 3, 3, 4), (0, 1)), Piece("mix", (1, 1, 1, 4, 16)))
CORES = (Piece("core", (1, 3, 5, 4)), Piece("core", (4, 4, 2, 1)))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (STRIDED, Cost(9 * 8 * 16, 30 * 9 * 8 * 16)),
        (TRANSPOSED, Cost(9 * 8 * 16, 30 * 9 * 8 * 16)),
        (GROUPED, Cost(2 * 5 * 4 * 6, 10 * 2 * 5 * 4 * 6)),
        (DENSE, Cost(120, 7 * 120)),
        (SEPARABLE, Cost(16 * 12 + 9 * 16, 30 * (16 * 12 + 9 * 16))),
    ],
)
def test_what_a_layer_costs(layer: LayerSpec, expected: Cost) -> None:
    assert layer_cost(layer) == expected


@pytest.mark.parametrize(
    ("layer", "pieces", "macs"),
    [
        (STRIDED, TUCKER, 120 * 24 + 30 * 135 + 30 * 80),
        (STRIDED, SPATIAL, 60 * 96 + 30 * 192),
        (STRIDED, CP, 120 * 32 + 30 * 36 + 30 * 64),
        (TRANSPOSED, TUCKER, 30 * 24 + 30 * 135 + 120 * 80),
        (TRANSPOSED, SPATIAL, 30 * 96 + 60 * 192),
        (DENSE, CORES, 7 * (60 * 4 + 5 * 32)),
        (SEPARABLE, (Piece("mix", (1, 1, 1, 16, 2), (0, 1)), Piece("mix", (1, 1, 1, 2, 12))), 30 * (144 + 32 + 24)),
    ],
)
def test_each_piece_is_counted_at_the_resolution_it_runs_at(
    layer: LayerSpec, pieces: tuple[Piece, ...], macs: int
) -> None:
    extra = 144 if layer is SEPARABLE else 0
    assert cost(layer, pieces) == Cost(sum(piece.parameters for piece in pieces) + extra, macs)


def test_every_call_of_a_shared_layer_multiplies_and_its_weights_count_once() -> None:
    twice = replace(STRIDED, input_shapes=STRIDED.input_shapes * 2, output_shapes=STRIDED.output_shapes * 2)
    assert cost(twice, TUCKER) == Cost(cost(STRIDED, TUCKER).parameters, 2 * cost(STRIDED, TUCKER).macs)
    assert cost(replace(STRIDED, input_shapes=(), output_shapes=()), TUCKER).macs == 0


def test_a_whole_layer_is_the_piece_that_carries_all_axes() -> None:
    assert whole(STRIDED) == Piece("mix", (1, 3, 3, 8, 16), (0, 1))
    assert whole(DENSE) == Piece("mix", (1, 12, 10), ())


@pytest.mark.parametrize("pieces", [TUCKER, SPATIAL, CP])
def test_a_chain_stands_for_what_its_pieces_do_one_after_the_other(pieces: tuple[Piece, ...]) -> None:
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=piece.shape) for piece in pieces]
    kernel, x = compose(pieces, weights), rng.normal(size=(3, 3, 8))
    assert kernel.shape == (1, 3, 3, 8, 16)
    state = np.broadcast_to(x, (3, 3, 8))
    for piece, weight in zip(pieces, weights, strict=True):
        over = tuple(axis for axis, size in enumerate(piece.shape[1:3]) if size > 1)
        full = np.broadcast_to(weight[0], (*state.shape[:2], *weight.shape[3:]))
        each = state * full if piece.form == "channelwise" else np.einsum("hwi,hwio->hwo", state, full)
        state = each.sum(over, keepdims=True)
    np.testing.assert_allclose(np.einsum("hwi,hwio->o", x, kernel[0]), state[0, 0], rtol=1e-9)


def test_cores_stand_for_a_matrix_whose_first_index_is_the_slowest() -> None:
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=piece.shape) for piece in CORES]
    expected = np.einsum("air,rbo->abio", weights[0][0], weights[1][..., 0])
    np.testing.assert_allclose(compose(CORES, weights)[0], expected.reshape(12, 10))


def test_the_kernel_of_a_chain_has_the_layers_own_order() -> None:
    rng = np.random.default_rng(2)
    weights = [rng.normal(size=piece.shape) for piece in TUCKER]
    kernel = compose(TUCKER, weights)
    np.testing.assert_allclose(native_kernel(STRIDED, TUCKER, weights), kernel[0], rtol=1e-5)
    swapped = native_kernel(TRANSPOSED, TUCKER, weights)
    assert swapped.dtype == np.float32
    np.testing.assert_allclose(swapped, kernel[0].swapaxes(-1, -2), rtol=1e-5)
