"""Small models with random weights: every layer kind, stride, padding, dilation, and every shape of graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lrfgraph.network.graph import input_structure


def randomize(model: Any, seed: int = 0) -> Any:
    """Give every weight random values, variances positive ones."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.dtype != "float32":
            continue
        spread = 1.0 / np.sqrt(max(1, int(np.prod(variable.shape[:-1]))))
        value = rng.normal(0, spread, variable.shape)
        variable.assign(rng.uniform(0.5, 1.5, variable.shape) if "variance" in variable.name else value)
    return model


def inputs_for(model: Any, seed: int = 1, images: int = 3) -> Any:
    import keras

    rng = np.random.default_rng(seed)
    return keras.tree.map_structure(
        lambda tensor: rng.normal(size=(images, *(size or 10 for size in tensor.shape[1:]))).astype("float32"),
        input_structure(model),
    )


def outputs_of(model: Any, x: Any) -> list[np.ndarray]:
    import keras

    return [np.asarray(y) for y in keras.tree.flatten(model(x, training=False))]


def one_layer(shape: tuple[int, ...], make: Callable[[Any], Any]) -> Callable[[], Any]:
    def build() -> Any:
        import keras

        x = keras.Input(shape)
        return randomize(keras.Model(x, make(keras.layers)(x)))

    return build


LAYERS: dict[str, Callable[[], Any]] = {
    name: one_layer(shape, make)
    for name, shape, make in (
        ("conv1d", (12, 3), lambda k: k.Conv1D(4, 3, strides=2, padding="same", activation="relu")),
        ("conv1d_causal", (12, 3), lambda k: k.Conv1D(4, 3, padding="causal", dilation_rate=2)),
        ("conv1d_valid", (12, 3), lambda k: k.Conv1D(4, 3, dilation_rate=3, use_bias=False)),
        ("conv1d_grouped", (12, 4), lambda k: k.Conv1D(6, 3, groups=2, padding="same")),
        ("conv2d", (9, 8, 3), lambda k: k.Conv2D(5, 3, padding="same", activation="tanh")),
        ("conv2d_strided", (9, 8, 3), lambda k: k.Conv2D(5, (3, 2), strides=2, padding="same")),
        ("conv2d_unequal_strides", (9, 8, 3), lambda k: k.Conv2D(5, 3, strides=(1, 2))),
        ("conv2d_even_kernel", (9, 8, 3), lambda k: k.Conv2D(5, (4, 2), strides=(2, 1), padding="same")),
        ("conv2d_dilated", (11, 11, 3), lambda k: k.Conv2D(5, 3, dilation_rate=(2, 3), use_bias=False)),
        ("conv2d_pointwise", (6, 6, 4), lambda k: k.Conv2D(5, 1, strides=2, activation="relu")),
        ("conv2d_grouped", (8, 8, 4), lambda k: k.Conv2D(6, 3, groups=2, strides=2, padding="same")),
        ("conv2d_one_input_a_group", (8, 8, 3), lambda k: k.Conv2D(6, 3, groups=3, strides=(2, 1), padding="same")),
        ("conv3d", (5, 6, 7, 2), lambda k: k.Conv3D(3, (3, 2, 3), strides=(1, 2, 1), padding="same")),
        ("conv3d_valid", (5, 6, 7, 2), lambda k: k.Conv3D(3, 3, activation="relu", use_bias=False)),
        ("conv1d_transpose", (7, 3), lambda k: k.Conv1DTranspose(4, 3, strides=2, padding="same")),
        (
            "conv2d_transpose",
            (5, 6, 3),
            lambda k: k.Conv2DTranspose(4, 3, strides=2, padding="same", activation="relu"),
        ),
        ("conv2d_transpose_valid", (5, 6, 3), lambda k: k.Conv2DTranspose(4, (2, 3), strides=(1, 2))),
        ("conv2d_transpose_padded", (5, 6, 3), lambda k: k.Conv2DTranspose(4, 3, strides=2, output_padding=1)),
        ("conv3d_transpose", (3, 4, 4, 2), lambda k: k.Conv3DTranspose(3, 3, strides=(1, 2, 2), padding="same")),
        ("depthwise_conv1d", (12, 3), lambda k: k.DepthwiseConv1D(3, strides=2, padding="same")),
        ("depthwise_conv2d", (9, 8, 3), lambda k: k.DepthwiseConv2D(3, padding="same", activation="relu")),
        ("depthwise_multiplier", (9, 8, 3), lambda k: k.DepthwiseConv2D((3, 2), strides=2, depth_multiplier=2)),
        ("depthwise_dilated", (9, 8, 3), lambda k: k.DepthwiseConv2D(3, dilation_rate=2, use_bias=False)),
        ("separable_conv1d", (12, 3), lambda k: k.SeparableConv1D(5, 3, padding="same", activation="relu")),
        ("separable_conv2d", (9, 8, 3), lambda k: k.SeparableConv2D(5, 3, strides=2, depth_multiplier=2)),
        ("dense", (6,), lambda k: k.Dense(4, activation="softmax")),
        ("dense_prime", (7,), lambda k: k.Dense(5, use_bias=False)),
        ("dense_rank3", (5, 6), lambda k: k.Dense(4, activation="relu")),
        ("dense_rank4", (2, 3, 6), lambda k: k.Dense(4)),
    )
}


def channels_first() -> Any:
    import keras

    x = keras.Input((3, 8, 9))
    y = keras.layers.Conv2D(4, 3, padding="same", data_format="channels_first")(x)
    y = keras.layers.BatchNormalization(axis=1)(y)
    y = keras.layers.Conv2D(6, 3, strides=2, groups=2, data_format="channels_first")(y)
    return randomize(keras.Model(x, keras.layers.Dense(3)(keras.layers.Flatten()(y))))


def sequential() -> Any:
    import keras

    k = keras.layers
    return randomize(
        keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                k.Conv2D(6, 3, padding="same", use_bias=False, name="first"),
                k.BatchNormalization(name="norm"),
                k.ReLU(max_value=6, name="act"),
                k.Dropout(0.5, seed=3),
                k.Flatten(),
                k.Dense(4, activation="softmax", name="head"),
            ],
            name="plain",
        )
    )


def sequential_without_input() -> Any:
    import keras

    model = keras.Sequential([keras.layers.Conv2D(4, 3, name="first"), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.build((None, 7, 7, 2))
    return randomize(model)


def residual() -> Any:
    import keras

    k = keras.layers
    x = keras.Input((8, 8, 3), name="image")
    a = k.Conv2D(4, 3, padding="same", name="stem")(x)
    b = keras.ops.relu(k.BatchNormalization(name="norm")(k.Conv2D(4, 3, padding="same", name="inner")(a)))
    y = k.Concatenate()([k.Add()([a, b]), a * 0.5])
    y = k.GlobalAveragePooling2D()(y)
    return randomize(keras.Model(x, k.Dense(3, name="logits")(y), name="net"))


def shared_with_nested() -> Any:
    """One convolution called three times, once through a nested model; Keras' own files lose such sharing."""
    import keras

    k = keras.layers
    conv = k.Conv2D(4, 3, padding="same", name="shared")
    z = keras.Input((8, 8, 4))
    nested = keras.Model(z, k.ReLU()(conv(z)), name="nested")
    x = keras.Input((8, 8, 3))
    y = conv(conv(k.Conv2D(4, 1, name="lift")(x)))
    return randomize(keras.Model(x, k.Flatten()(nested(y))))


def shared() -> Any:
    import keras

    k = keras.layers
    x = keras.Input((8, 8, 3))
    conv = k.Conv2D(3, 3, padding="same", name="shared")
    return randomize(keras.Model(x, k.Flatten()(k.Add()([conv(k.ReLU()(conv(x))), conv(x)]))))


def nested() -> Any:
    """A Sequential model, called twice, and a Functional one with another inside."""
    import keras

    k = keras.layers

    def block(name: str) -> Any:
        layers = [keras.Input((8, 8, 3)), k.Conv2D(3, 3, padding="same", name=f"{name}_conv"), k.ReLU()]
        return keras.Sequential(layers, name=name)

    z = keras.Input((8, 8, 3))
    deep = keras.Model(z, k.Add()([z, k.Conv2D(3, 3, padding="same", name="conv")(block("inner")(z))]), name="deep")
    x = keras.Input((8, 8, 3))
    twice = block("block")
    return randomize(keras.Model(x, k.Dense(2, name="head")(k.Flatten()(deep(twice(twice(x)))))))


def many() -> Any:
    """Inputs and outputs as dictionaries."""
    import keras

    k = keras.layers
    left, right = keras.Input((6,), name="left"), keras.Input((8, 2), name="right")
    a = k.Dense(5, activation="relu", name="a")(left)
    b = k.Conv1D(3, 3, name="b")(right)
    both = k.Concatenate()([a, k.Flatten()(b)])
    outputs = {"one": k.Dense(2, name="c")(both), "two": b}
    return randomize(keras.Model({"left": left, "right": right}, outputs))


def two_lists() -> Any:
    import keras

    a, b = keras.Input((6,)), keras.Input((6,))
    dense = keras.layers.Dense(4, name="twin")
    return randomize(keras.Model([a, b], [keras.layers.Subtract()([dense(a), dense(b)]), dense(a)]))


def open_size() -> Any:
    import keras

    x = keras.Input((None, None, 3))
    y = keras.layers.Conv2D(4, 3, strides=2, name="conv")(x)
    return randomize(keras.Model(x, keras.layers.GlobalMaxPooling2D()(y)))


def frozen_mixed() -> Any:
    import keras

    model = sequential()
    model.get_layer("first").trainable = False
    x = keras.Input((8, 8, 3))
    y = keras.layers.Conv2D(3, 3, padding="same", dtype="mixed_bfloat16", name="half")(x)
    return randomize(keras.Model(x, model(keras.ops.cast(y, "float32"))))


def sliced() -> Any:
    """A model whose calls take parts of tensors in every way of writing it."""
    import keras

    x = inputs = keras.Input((6, 6, 4))
    x = keras.layers.Conv2D(6, 3, padding="same")(x[..., 1:])
    parts = [x[:, 1:5, 1:5, :3], x[:, 1:5, 1:5, 3:], x[:, :4, 2:][..., 2:5]]
    x = keras.layers.Concatenate()([*parts, x[:, 0, ..., :1][:, None, :4] * 0.5 + parts[0][..., :1]])
    x = keras.layers.Dense(3)(keras.layers.Flatten()(x))
    return randomize(keras.Model(inputs, x[..., :2]))


GRAPHS: dict[str, Callable[[], Any]] = {
    make.__name__: make
    for make in (
        channels_first, sequential, sequential_without_input, residual, shared, shared_with_nested, nested, many,
        two_lists, open_size, frozen_mixed, sliced,
    )
}  # fmt: skip
MODELS = LAYERS | GRAPHS
