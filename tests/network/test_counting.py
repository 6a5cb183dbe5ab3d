"""MACs of one input against numbers derived by hand; what cannot be counted is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lrfgraph.network.counting import count
from lrfgraph.network.describing import describe

T, D = 7, 6
"""Positions and channels of the input."""


def counted(make: Callable[[Any, Any], Any], *shapes: tuple[int, ...]) -> Any:
    import keras

    inputs = [keras.Input(shape) for shape in shapes or ((T, D),)]
    return count(keras.Model(inputs, make(keras, *inputs)))


LSTM_STEP = D * 4 * 5 + 5 * 4 * 5

MACS: dict[str, tuple[Callable[..., Any], int] | tuple[Callable[..., Any], int, tuple[int, ...]]] = {
    "attention to itself": (
        lambda k, x: k.layers.MultiHeadAttention(2, 3)(x, x),
        3 * T * D * 6 + T * T * 2 * (3 + 3) + T * 6 * D,
    ),
    "attention to another, with a value size and an output size": (
        lambda k, x: k.layers.MultiHeadAttention(2, 3, value_dim=4, output_shape=9)(x, x[:, :4, :5]),
        T * D * 6 + 4 * 5 * (6 + 8) + T * 4 * 2 * (3 + 4) + T * 8 * 9,
    ),
    "attention along one of two axes": (
        lambda k, x: k.layers.MultiHeadAttention(2, 3, attention_axes=(2,))(x, x),
        4 * 15 * D * 6 + 3 * 5 * 5 * 2 * (3 + 3),
        (3, 5, D),
    ),
    "attention with shared keys": (
        lambda k, x: k.layers.GroupQueryAttention(4, 6, 2)(x, x),
        T * D * 24 + 2 * T * D * 8 + T * T * 6 * (4 + 4) + T * 24 * D,
    ),
    "attention layer": (lambda k, x: k.layers.Attention()([x, x[:, :4]]), T * 4 * (D + D)),
    "additive attention": (lambda k, x: k.layers.AdditiveAttention()([x, x[:, :4]]), T * 4 * (D + D)),
    "attention operation": (
        lambda k, x: k.ops.dot_product_attention(*(k.ops.reshape(x, (-1, T, 2, 3)) for _ in range(3))),
        T * T * 2 * (3 + 3),
    ),
    "simple recurrence": (lambda k, x: k.layers.SimpleRNN(5)(x), T * (D * 5 + 5 * 5)),
    "lstm": (lambda k, x: k.layers.LSTM(5, return_sequences=True)(x), T * LSTM_STEP),
    "gru": (lambda k, x: k.layers.GRU(5)(x), T * (D * 15 + 5 * 15)),
    "both directions": (lambda k, x: k.layers.Bidirectional(k.layers.LSTM(5))(x), 2 * T * LSTM_STEP),
    "cells on each other": (
        lambda k, x: k.layers.RNN([k.layers.LSTMCell(5), k.layers.GRUCell(4)])(x),
        T * (LSTM_STEP + 5 * 12 + 4 * 12),
    ),
    "recurrent convolution": (
        lambda k, x: k.layers.ConvLSTM2D(4, 3, strides=2, padding="same")(x),
        5 * (4 * 3) * (9 * 2 * 16 + 9 * 4 * 16),
        (5, 8, 6, 2),
    ),
    "recurrent convolution over one axis": (
        lambda k, x: k.layers.ConvLSTM1D(4, 3, return_sequences=True)(x),
        5 * 6 * (3 * 2 * 16 + 3 * 4 * 16),
        (5, 8, 2),
    ),
    "a dense layer at every time": (lambda k, x: k.layers.TimeDistributed(k.layers.Dense(5))(x), T * D * 5),
    "a convolution at every time": (
        lambda k, x: k.layers.TimeDistributed(k.layers.Conv2D(4, 3))(x),
        5 * 6 * 4 * 9 * 2 * 4,
        (5, 8, 6, 2),
    ),
    "a model at every time": (
        lambda k, x: k.layers.TimeDistributed(
            k.Sequential([k.Input((D,)), k.layers.Dense(5), k.layers.ReLU(), k.layers.Dense(3)])
        )(x),
        T * (D * 5 + 5 * 3),
    ),
    "spectral normalization": (lambda k, x: k.layers.SpectralNormalization(k.layers.Dense(5))(x), T * D * 5),
    "einsum layer": (lambda k, x: k.layers.EinsumDense("abc,cde->abde", (None, 2, 3))(x), T * D * 2 * 3),
    "einsum layer with an ellipsis": (lambda k, x: k.layers.EinsumDense("...c,cd->...d", 5)(x), T * D * 5),
    "product": (lambda k, x: k.ops.matmul(x, k.ops.transpose(x, (0, 2, 1))), T * T * D),
    "product with a constant": (lambda k, x: x @ np.ones((D, 5), "float32"), T * D * 5),
    "einsum": (lambda k, x: k.ops.einsum("btd,bsd->bts", x, x), T * T * D),
    "einsum with an ellipsis": (lambda k, x: k.ops.einsum("...td,de->...te", x, np.ones((D, 5), "f")), T * D * 5),
    "einsum of one": (lambda k, x: k.ops.einsum("btd->bdt", x), 0),
    "tensordot": (lambda k, x: k.ops.tensordot(x, np.ones((T, D, 3), "f"), 2), T * D * 3),
    "tensordot along axes": (lambda k, x: k.ops.tensordot(x, np.ones((3, D), "f"), [[2], [1]]), T * D * 3),
    "dot": (lambda k, x: k.ops.dot(x, np.ones((D, 5), "f")), T * D * 5),
    "dot layer": (lambda k, x: k.layers.Dot(axes=(2, 2))([x, x[:, :4]]), T * 4 * D),
    "dot layer of vectors": (lambda k, x: k.layers.Dot(axes=1)([x[:, 0], x[:, 1]]), D),
    "convolution operation": (
        lambda k, x: k.ops.conv(x, np.ones((3, D, 4), "f"), padding="same"),
        T * 3 * D * 4,
    ),
    "depthwise convolution operation": (
        lambda k, x: k.ops.depthwise_conv(x, np.ones((3, D, 2), "f")),
        (T - 2) * 3 * D * 2,
    ),
    "transposed convolution operation": (
        lambda k, x: k.ops.conv_transpose(x, np.ones((3, 4, D), "f"), strides=2),
        T * 3 * D * 4,
    ),
    "nothing that multiplies sums": (
        lambda k, x: k.layers.LayerNormalization()(k.ops.softmax(k.layers.PReLU()(x) * 2.0 + x)),
        0,
    ),
    "embedding": (lambda k, x: k.layers.Embedding(10, 4)(x), 0, (T,)),
}


@pytest.mark.parametrize("what", MACS)
def test_macs_are_those_by_hand(what: str) -> None:
    make, macs, *shape = MACS[what]
    received = counted(make, *shape)
    assert received.macs == macs
    assert received.uncounted == ()


def custom(keras: Any) -> Any:
    class Mine(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    return Mine(name="mine")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda k, x: custom(k)(x), ("mine", "Mine")),
        (lambda k, x: k.layers.TimeDistributed(custom(k), name="each")(x), ("each", "TimeDistributed")),
        (lambda k, x: k.layers.Lambda(lambda y: y @ y, output_shape=(T, D), name="code")(x[:, :D]), ("code", "Lambda")),
        (lambda k, x: k.ops.einsum("btd,bsd,bsd->bts", x, x, x), ("einsum", "Einsum")),
        (lambda k, x: k.ops.rfft(x)[0], ("rfft", "RFFT")),
        (lambda k, x: k.layers.STFTSpectrogram(frame_length=4, frame_step=2, fft_length=4, name="s")(x),
         ("s", "STFTSpectrogram")),
    ],
)  # fmt: skip
def test_what_is_not_counted_is_named(make: Callable[..., Any], name: tuple[str, str]) -> None:
    import keras

    x = keras.Input((T, D))
    model = keras.Model(x, keras.layers.Dense(3)(make(keras, x)))
    received = count(model)
    assert [(path.rstrip("_0123456789"), cls) for path, cls in received.uncounted] == [name]
    described = describe(model)
    assert [tuple(each) for each in described.structure["uncounted"]] == list(received.uncounted)
    assert sum(layer.macs for layer in described.layers) == received.macs > 0


def test_a_shared_layer_is_counted_at_every_call_and_named_once() -> None:
    import keras

    x = keras.Input((T, D))
    dense, mine = keras.layers.Dense(D), custom(keras)
    received = count(keras.Model(x, mine(dense(mine(dense(x))))))
    assert received.macs == 2 * T * D * D
    assert received.uncounted == (("mine", "Mine"),)
