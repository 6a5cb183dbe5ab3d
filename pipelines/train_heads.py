"""Train a small network for every kind of output, and write it with its images: what the heads are tried on.

Usage: ``python pipelines/train_heads.py MNIST.npz FOLDER [--tasks NAME …] [--epochs N]``, where MNIST.npz holds
``x_train, y_train, x_test, y_test`` as uint8 images and their digits. Writes FOLDER/NAME.keras and FOLDER/NAME.npz;
then ``lrfgraph run FOLDER/NAME.keras --data FOLDER/NAME.npz --scale 1/255``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What a network learns.

    head : the row of HEADS that lrfgraph must come to.  sample : images, digits, random numbers → images of each input
    by name (``""`` for a single one) and targets.  network : shapes of the inputs by name → model.
    loss : for `fit`.  policy : dtype policy of the network.
    """

    head: str
    sample: Callable[[Any, Any, np.random.Generator], tuple[Arrays, Any]]
    network: Callable[[dict[str, tuple[int, ...]]], Any]
    loss: Any
    policy: str = "float32"


# Images and targets -------------------------------------------------------------------------------------------------


def _parity(x: Any, y: Any, random: np.random.Generator) -> tuple[Arrays, Any]:
    return {"": x}, (y % 2).astype(np.uint8)


def _digits(x: Any, y: Any, random: np.random.Generator) -> tuple[Arrays, Any]:
    return {"": x}, y


def _pairs(x: Any, y: Any, random: np.random.Generator) -> tuple[Arrays, Any]:
    """Two digits side by side; which of the ten are there."""
    other = random.permutation(len(x))
    there = np.zeros((len(x), 10), np.uint8)
    for numbers in (y, y[other]):
        there[np.arange(len(x)), numbers] = 1
    return {"": np.concatenate([x, x[other]], axis=2)}, there


def _noisy(x: Any, random: np.random.Generator) -> Any:
    return np.clip(x + random.normal(0, 60, x.shape), 0, 255).astype(np.uint8)


def _ink(x: Any, y: Any, random: np.random.Generator) -> tuple[Arrays, Any]:
    """Where there is ink under the noise."""
    return {"": _noisy(x, random)}, (x > 96).astype(np.uint8)


def _regions(x: Any, y: Any, random: np.random.Generator) -> tuple[Arrays, Any]:
    """Paper, ink of an even digit, ink of an odd one."""
    return {"": _noisy(x, random)}, np.where(x > 96, 1 + y[:, None, None] % 2, 0).astype(np.uint8)


def _turned(x: Any, y: Any, random: np.random.Generator) -> tuple[Arrays, Any]:
    """By which part of a quarter each image is turned."""
    from scipy.ndimage import rotate

    angles = random.uniform(-1, 1, len(x)).astype(np.float32)
    turned = [rotate(image, 45 * angle, reshape=False, order=1) for image, angle in zip(x, angles, strict=True)]
    return {"": np.stack(turned)}, angles


def _halves(x: Any, y: Any, random: np.random.Generator) -> tuple[Arrays, Any]:
    middle = x.shape[1] // 2
    return {"top": x[:, :middle], "bottom": x[:, middle:]}, y


def _itself(x: Any, y: Any, random: np.random.Generator) -> tuple[Arrays, Any]:
    """No targets: the network is to give back what it is given."""
    return {"": x}, None


# Networks -----------------------------------------------------------------------------------------------------------


def _classifier(units: int, activation: str | None) -> Callable[[dict[str, tuple[int, ...]]], Any]:
    def make(shapes: dict[str, tuple[int, ...]]) -> Any:
        import keras
        from keras import layers

        inputs = [keras.Input(shape, name=name or "image") for name, shape in shapes.items()]
        branches = []
        for tensor in inputs:
            y = layers.Conv2D(12, 3, strides=2, padding="same", activation="relu")(tensor)
            y = layers.Conv2D(24, 3, strides=2, padding="same", use_bias=False)(y)
            y = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(y))
            branches.append(layers.Flatten()(y))
        y = branches[0] if len(branches) == 1 else layers.Concatenate()(branches)
        y = layers.Dense(48, "relu")(y)
        outputs = layers.Dense(units, activation)(y)
        named = {tensor.name: tensor for tensor in inputs}
        return keras.Model(named if len(inputs) > 1 else inputs[0], outputs)

    return make


def _mapper(channels: int, activation: str | None) -> Callable[[dict[str, tuple[int, ...]]], Any]:
    """Down, up, and over the shortcut: an output at every position."""

    def make(shapes: dict[str, tuple[int, ...]]) -> Any:
        import keras
        from keras import layers

        image = keras.Input(shapes[""])
        fine = layers.Conv2D(12, 3, padding="same", activation="relu")(image)
        coarse = layers.Conv2D(24, 3, strides=2, padding="same", activation="relu")(fine)
        coarse = layers.Conv2D(24, 3, padding="same", activation="relu")(coarse)
        back = layers.Conv2DTranspose(12, 3, strides=2, padding="same", activation="relu")(coarse)
        y = layers.Conv2D(16, 3, padding="same", activation="relu")(layers.Concatenate()([fine, back]))
        return keras.Model(image, layers.Conv2D(channels, 1, activation=activation)(y))

    return make


def _open_regressor(shapes: dict[str, tuple[int, ...]]) -> Any:
    """Takes images of any size."""
    import keras
    from keras import layers

    image = keras.Input((None, None, 1))
    y = layers.Conv2D(16, 3, padding="same", activation="relu")(image)
    y = layers.Conv2D(24, 3, strides=2, padding="same", activation="relu")(y)
    y = layers.Conv2D(32, 3, strides=2, padding="same", activation="relu")(y)
    y = layers.Concatenate()([layers.GlobalAveragePooling2D()(y), layers.GlobalMaxPooling2D()(y)])
    return keras.Model(image, layers.Dense(1)(layers.Dense(32, "relu")(y)))


def _binary_loss(targets: Any, logits: Any) -> Any:
    import keras

    targets = keras.ops.reshape(keras.ops.cast(targets, "float32"), keras.ops.shape(logits))
    return keras.losses.binary_crossentropy(targets, keras.ops.cast(logits, "float32"), from_logits=True)


CLASSES = "sparse_categorical_crossentropy"
TASKS: dict[str, Task] = {
    "classes": Task("softmax", _digits, _classifier(10, "softmax"), CLASSES),
    "binary": Task("binary", _parity, _classifier(1, "sigmoid"), "binary_crossentropy"),
    "binary_logit": Task("binary", _parity, _classifier(1, None), _binary_loss),
    "multilabel": Task("multilabel", _pairs, _classifier(10, "sigmoid"), "binary_crossentropy"),
    "mask": Task("pixels", _ink, _mapper(1, "sigmoid"), "binary_crossentropy"),
    "regions": Task("pixels", _regions, _mapper(3, "softmax"), CLASSES),
    "open_regression": Task("values", _turned, _open_regressor, "mse"),
    "autoencoder": Task("values", _itself, _mapper(1, None), "mse"),
    "two_inputs": Task("softmax", _halves, _classifier(10, "softmax"), CLASSES),
    "bfloat16": Task("softmax", _digits, _classifier(10, "softmax"), CLASSES, "mixed_bfloat16"),
    "float16": Task("softmax", _digits, _classifier(10, "softmax"), CLASSES, "mixed_float16"),
}


def make(name: str, mnist: Arrays, folder: Path, epochs: int, batch: int = 64) -> tuple[Path, Path]:
    """Train a task's network and write ``NAME.keras`` and ``NAME.npz``; returns both paths."""
    import keras

    task, random = TASKS[name], np.random.default_rng(0)
    arrays: Arrays = {}
    for part in ("train", "test"):
        images, targets = task.sample(mnist[f"x_{part}"], mnist[f"y_{part}"], random)
        arrays |= {f"x_{part}.{own}" if own else f"x_{part}": array for own, array in images.items()}
        arrays |= {} if targets is None else {f"y_{part}": targets}
    names = [name.removeprefix("x_train").removeprefix(".") for name in arrays if name.startswith("x_train")]

    def inputs(part: str) -> list[Any]:
        raws = (arrays[f"x_{part}.{own}" if own else f"x_{part}"] for own in names)
        return [raw[..., None].astype(np.float32) / 255 for raw in raws]

    keras.utils.set_random_seed(1)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(task.policy)
    x = inputs("train")
    model = task.network(dict(zip(names, (array.shape[1:] for array in x), strict=True)))
    keras.config.set_dtype_policy(policy)
    schedule = keras.optimizers.schedules.CosineDecay(4e-3, max(epochs * (len(x[0]) // batch), 1))
    model.compile(keras.optimizers.Adam(schedule), task.loss)
    given = dict(zip(names, x, strict=True)) if len(names) > 1 else x[0]
    model.fit(given, arrays.get("y_train", x[0]), batch_size=batch, epochs=epochs, verbose=0)
    paths = folder / f"{name}.keras", folder / f"{name}.npz"
    model.save(paths[0])
    np.savez(paths[1], **arrays)
    return paths


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mnist", type=Path, help="MNIST.npz")
    parser.add_argument("folder", type=Path, help="where models and images go")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, help="use only the first of the training images")
    given = parser.parse_args(arguments)
    with np.load(given.mnist, allow_pickle=False) as loaded:
        mnist = {name: loaded[name] for name in loaded.files}
    if given.images:
        mnist |= {name: mnist[name][: given.images] for name in ("x_train", "y_train")}
    given.folder.mkdir(parents=True, exist_ok=True)
    for name in given.tasks:
        model, data = make(name, mnist, given.folder, given.epochs)
        print(f"{name}: {model} {data}", flush=True)


if __name__ == "__main__":
    main()
