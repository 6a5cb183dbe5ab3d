"""Make the small models and images that ship with the project: ``lrfgraph/demo`` and ``tests/data``.

Usage: ``python pipelines/train_demo.py MNIST.npz [--demo lrfgraph/demo] [--tests tests/data]``, where MNIST.npz holds
``x_train, y_train, x_test, y_test`` of MNIST as uint8 (28, 28) images. Takes a few minutes on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, Any]


def digits_network() -> Any:
    """Convolutions as wide as an untuned first try would have them, so that there is something to remove."""
    from keras import Sequential, layers

    def block(channels: int, stride: int, number: int) -> list[Any]:
        return [
            layers.Conv2D(channels, 3, stride, padding="same", use_bias=False, name=f"conv{number}"),
            layers.BatchNormalization(name=f"norm{number}", momentum=0.9),
            layers.ReLU(name=f"relu{number}"),
        ]

    return Sequential(
        [
            layers.Input((28, 28, 1)),
            *block(32, 1, 1),
            *block(48, 2, 2),
            *block(64, 2, 3),
            *block(64, 2, 4),
            layers.Flatten(name="flatten"),
            layers.Dense(128, "relu", name="hidden"),
            layers.Dropout(0.3, name="dropout"),
            layers.Dense(10, "softmax", name="digit"),
        ],
        name="digits_cnn",
    )


def tiny_network() -> Any:
    """The least network with a convolution, a strided one, BatchNorm and a dense layer."""
    from keras import Sequential, layers

    return Sequential(
        [
            layers.Input((14, 14, 1)),
            layers.Conv2D(8, 3, 2, padding="same", activation="relu", name="conv1"),
            layers.Conv2D(16, 3, 2, padding="same", name="conv2"),
            layers.BatchNormalization(name="norm2", momentum=0.9),
            layers.ReLU(name="relu2"),
            layers.Flatten(name="flatten"),
            layers.Dense(20, "relu", name="hidden"),
            layers.Dense(10, "softmax", name="digit"),
        ],
        name="tiny_cnn",
    )


def trained(model: Any, mnist: Arrays, epochs: int, batch: int) -> Any:
    """Train by cross-entropy with shifts of up to two pixels, Adam from 2e-3 to 0."""
    import keras

    x = shifted(mnist["x_train"], np.random.default_rng(0))
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, epochs * (len(x) // batch))
    model.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(prepared(x), mnist["y_train"], batch_size=batch, epochs=epochs, verbose=2)
    loss, accuracy = model.evaluate(prepared(mnist["x_test"]), mnist["y_test"], batch_size=256, verbose=0)
    print(f"{model.name}: {model.count_params()} parameters, loss {loss:.4f}, accuracy {accuracy:.4f} on the test set")
    return model


def shifted(x: Any, random: np.random.Generator) -> Any:
    """Shift half of the images by up to two pixels."""
    result = x.copy()
    for index in np.flatnonzero(random.random(len(x)) < 0.5):
        result[index] = np.roll(x[index], random.integers(-2, 3, 2), (0, 1))
    return result


def prepared(x: Any) -> Any:
    return x[..., None].astype("float32") / 255


def halved(x: Any) -> Any:
    """Average 2×2 pixels."""
    n, height, width = x.shape
    return np.round(x.reshape(n, height // 2, 2, width // 2, 2).mean((2, 4))).astype(np.uint8)


def first_of_each(x: Any, y: Any, count: int) -> tuple[Any, Any]:
    """Return `count` images with all classes alike, in the set's own order."""
    chosen = np.sort(np.concatenate([np.flatnonzero(y == digit)[: count // 10] for digit in range(10)]))
    return x[chosen], y[chosen].astype(np.uint8)


def write(folder: Path, name: str, mnist: Arrays, train: int, test: int) -> None:
    x_train, y_train = first_of_each(mnist["x_train"], mnist["y_train"], train)
    x_test, y_test = first_of_each(mnist["x_test"], mnist["y_test"], test)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / name, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("--demo", type=Path, default=Path("lrfgraph/demo"))
    parser.add_argument("--tests", type=Path, default=Path("tests/data"))
    asked = parser.parse_args()

    import keras

    keras.utils.set_random_seed(0)
    mnist = dict(np.load(asked.mnist, allow_pickle=False))
    small = mnist | {name: halved(mnist[name]) for name in ("x_train", "x_test")}
    for network, arrays, folder, images, model, counts, epochs in (
        (tiny_network(), small, asked.tests, "tiny_digits.npz", "tiny_cnn.keras", (200, 100), 3),
        (digits_network(), mnist, asked.demo, "digits.npz", "digits_cnn.keras", (6000, 2000), 3),
    ):
        write(folder, images, arrays, *counts)
        done = trained(network, arrays, epochs, batch=128)
        bare = network.__class__.from_config(done.get_config())  # without the optimizer's state
        bare.set_weights(done.get_weights())
        bare.save(folder / model)


if __name__ == "__main__":
    main()
