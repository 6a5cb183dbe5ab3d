"""Small networks with random weights, one for every way in which channels are coupled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.network.models import randomize

SHAPE = (8, 8, 3)
COUPLINGS: dict[str, Callable[[], Any]] = {}


def coupling(make: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Register a network: `make` gets the layers and the input, and gives the output."""

    def build() -> Any:
        import keras

        x = keras.Input(SHAPE)
        return randomize(keras.Model(x, make(keras.layers, x)))

    COUPLINGS[make.__name__] = build
    return make


def conv(k: Any, x: Any, filters: int = 6, **options: Any) -> Any:
    return k.Conv2D(filters, 3, padding="same", activation="relu", **options)(x)


def head(k: Any, x: Any) -> Any:
    return k.Dense(3, activation="softmax")(k.GlobalAveragePooling2D()(x))


@coupling
def batch_normalization(k: Any, x: Any) -> Any:
    for _ in range(2):
        x = k.ReLU()(k.BatchNormalization()(k.Conv2D(6, 3, use_bias=False)(x)))
    return head(k, x)


@coupling
def residual_addition(k: Any, x: Any) -> Any:
    x = conv(k, x)
    y = k.BatchNormalization()(conv(k, x, 4))
    return head(k, k.Activation("sigmoid")(k.Add()([x, conv(k, y)])))


@coupling
def residual_of_operations(k: Any, x: Any) -> Any:
    import keras

    x = conv(k, x)
    return head(k, keras.ops.relu(x + 0.5 * conv(k, x)) - 1.0)


@coupling
def depthwise(k: Any, x: Any) -> Any:
    x = k.DepthwiseConv2D(3, depth_multiplier=2, activation="relu")(conv(k, x))
    return head(k, k.Conv2D(5, 1)(x))


@coupling
def grouped(k: Any, x: Any) -> Any:
    x = k.Conv2D(8, 3, groups=2, activation="relu")(conv(k, x, 6))
    return head(k, conv(k, x, 4))


@coupling
def grouped_channel_by_channel(k: Any, x: Any) -> Any:
    x = k.Conv2D(12, 3, groups=6, strides=2, padding="same")(conv(k, x))
    return head(k, conv(k, x))


@coupling
def separable(k: Any, x: Any) -> Any:
    return head(k, k.SeparableConv2D(7, 3, depth_multiplier=2, activation="relu")(conv(k, x)))


@coupling
def transposed(k: Any, x: Any) -> Any:
    x = k.Conv2DTranspose(6, 3, strides=2, padding="same", activation="relu")(conv(k, x, 5))
    return k.Conv2DTranspose(3, 3)(x)


@coupling
def concatenation(k: Any, x: Any) -> Any:
    x = conv(k, x, 4)
    joined = k.Concatenate()([x, conv(k, x, 5), k.BatchNormalization()(conv(k, x, 3))])
    return head(k, conv(k, k.Concatenate()([joined, conv(k, joined, 4)])))


@coupling
def addition_across_a_concatenation(k: Any, x: Any) -> Any:
    joined = k.Concatenate()([conv(k, x, 4), conv(k, x, 3)])
    return head(k, k.Add()([joined, conv(k, x, 7)]))


@coupling
def flatten_and_dense(k: Any, x: Any) -> Any:
    x = k.Flatten()(k.MaxPooling2D()(conv(k, x)))
    return k.Dense(3)(k.BatchNormalization()(k.Dense(9, activation="relu")(x)))


@coupling
def dense_and_picture(k: Any, x: Any) -> Any:
    x = k.Dense(4 * 4 * 5, activation="relu")(k.Flatten()(conv(k, x)))
    return k.Conv2D(2, 3)(k.UpSampling2D()(k.Reshape((4, 4, 5))(x)))


@coupling
def squeeze_and_excitation(k: Any, x: Any) -> Any:
    x = conv(k, x, 8)
    gate = k.Reshape((1, 1, 8))(k.GlobalAveragePooling2D()(x))
    gate = k.Conv2D(8, 1, activation="sigmoid")(k.Conv2D(4, 1, activation="relu")(gate))
    return head(k, conv(k, k.Multiply()([x, gate])))


@coupling
def gate_of_one_channel(k: Any, x: Any) -> Any:
    x = conv(k, x)
    return head(k, conv(k, x * k.Conv2D(1, 1, activation="sigmoid")(x)))


@coupling
def shared_layer(k: Any, x: Any) -> Any:
    twice = k.Conv2D(6, 3, padding="same")
    x = conv(k, x, 6)
    return head(k, k.Concatenate()([twice(x), twice(k.ReLU()(twice(x)))]))


@coupling
def nested_models(k: Any, x: Any) -> Any:
    import keras

    z = keras.Input((8, 8, 6))
    inner = keras.Model(z, k.Add()([z, k.Conv2D(6, 3, padding="same", name="conv")(z)]), name="block")
    outer = keras.Sequential([keras.Input((8, 8, 6)), inner, k.BatchNormalization(name="norm")], name="outer")
    return head(k, outer(outer(k.Conv2D(6, 3, padding="same", name="conv")(x))))


@coupling
def shuffle(k: Any, x: Any) -> Any:
    x = k.Reshape((8, 8, 2, 4))(conv(k, x, 8))
    return head(k, conv(k, k.Reshape((8, 8, 8))(k.Permute((1, 2, 4, 3))(x))))


@coupling
def shapes_of_operations(k: Any, x: Any) -> Any:
    import keras

    x = keras.ops.transpose(conv(k, x), (0, 2, 1, 3))[:, ::2]
    x = keras.ops.mean(x, axis=(1, 2), keepdims=True)
    return k.Dense(3)(keras.ops.reshape(conv(k, x, 5), (-1, 5)))


@coupling
def activations_pools_and_pads(k: Any, x: Any) -> Any:
    x = k.ZeroPadding2D()(k.LeakyReLU()(conv(k, x)))
    x = k.PReLU(shared_axes=[1, 2])(k.AveragePooling2D(2)(k.Dropout(0.5)(x)))
    x = k.Activation("softplus")(k.Cropping2D()(k.SpatialDropout2D(0.5)(x)))
    return head(k, conv(k, k.Rescaling(0.5, 0.1)(k.GaussianNoise(0.1)(x))))


@coupling
def instances_normalized(k: Any, x: Any) -> Any:
    return head(k, k.ReLU()(k.GroupNormalization(groups=6)(k.Conv2D(6, 3)(x))))


@coupling
def channels_first(k: Any, x: Any) -> Any:
    x = k.Permute((3, 1, 2))(conv(k, x))
    x = k.BatchNormalization(axis=1)(k.Conv2D(4, 3, data_format="channels_first")(x))
    return k.Dense(3)(k.Flatten()(k.MaxPooling2D(data_format="channels_first")(x)))


@coupling
def sequences(k: Any, x: Any) -> Any:
    x = k.Reshape((64, 3))(x)
    x = k.MaxPooling1D()(k.Conv1D(6, 3, padding="causal", dilation_rate=2, activation="relu")(x))
    x = k.DepthwiseConv1D(3)(k.SeparableConv1D(5, 3)(x))
    return k.Dense(2)(k.GlobalMaxPooling1D()(k.Dense(7, activation="tanh")(x)))
