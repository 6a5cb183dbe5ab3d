"""Files as Keras 1 and 2 wrote them, made here, open and compute what they computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lrfgraph.errors import ModelError
from lrfgraph.network.opening.legacy import modernize
from lrfgraph.network.opening.loading import load_model

RNG = np.random.default_rng(0)


def write(
    path: Path, config: Any, weights: dict[str, list[np.ndarray]], version: str = "2.2.4", **attributes: str
) -> Path:
    """Write a file the way Keras 1 and 2 did: JSON in an attribute, weights by layer, in order."""
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config).encode()
        file.attrs["keras_version"] = version.encode()
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in weights]
        for key, value in attributes.items():
            group.attrs[key] = value.encode()
        for name, arrays in weights.items():
            inner = group.create_group(name)
            inner.attrs["weight_names"] = [f"{name}/w{i}:0".encode() for i in range(len(arrays))]
            for i, array in enumerate(arrays):
                inner[f"{name}/w{i}:0"] = array
    return path


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype("float32")


def layer(class_name: str, **config: Any) -> dict[str, Any]:
    return {"class_name": class_name, "config": config}


def test_a_sequential_of_keras_1(tmp_path: Path) -> None:
    kernel, bias, matrix, offset = normal(3, 3, 2, 4), normal(4), normal(36, 3), normal(3)
    norm = [np.abs(normal(4)) + 0.5 for _ in range(4)]
    config = {
        "class_name": "Sequential",
        "config": [
            layer(
                "Convolution2D", name="c", nb_filter=4, nb_row=3, nb_col=3, border_mode="same", subsample=[2, 2],
                dim_ordering="tf", init="glorot_uniform", bias=True, batch_input_shape=[None, 6, 6, 2],
                W_regularizer=None, b_regularizer=None, W_constraint=None, b_constraint=None, input_dtype="float32",
                activity_regularizer=None, trainable=True, activation="relu",
            ),
            layer("BatchNormalization", name="n", mode=0, axis=-1, epsilon=1e-3, momentum=0.9, gamma_init="one"),
            layer("Dropout", name="d", p=0.3),
            layer("Flatten", name="f"),
            layer("Dense", name="o", output_dim=3, input_dim=36, init="uniform", bias=True, activation="softmax"),
        ],
    }  # fmt: skip
    path = write(
        tmp_path / "m.h5", config, {"c": [kernel, bias], "n": norm, "d": [], "f": [], "o": [matrix, offset]}, "1.2.1"
    )
    model = load_model(path)
    assert [type(one).__name__ for one in model.layers] == [
        "Conv2D",
        "BatchNormalization",
        "Dropout",
        "Flatten",
        "Dense",
    ]
    assert model.get_layer("c").strides == (2, 2)
    assert model.get_layer("d").rate == 0.3
    np.testing.assert_array_equal(model.get_layer("c").kernel, kernel)
    np.testing.assert_array_equal(model.get_layer("n").moving_variance, norm[3])
    assert model.output_shape == (None, 3)


def test_the_width_that_keras_1_gave_to_conv1d(tmp_path: Path) -> None:
    kernel = normal(3, 1, 2, 4)
    config = {
        "class_name": "Sequential",
        "config": [
            layer(
                "Convolution1D", name="c", nb_filter=4, filter_length=3, border_mode="valid", subsample_length=1,
                bias=False, batch_input_shape=[None, 6, 2],
            )
        ],
    }  # fmt: skip
    model = load_model(write(tmp_path / "m.h5", config, {"c": [kernel]}, "1.2.1"))
    np.testing.assert_array_equal(model.get_layer("c").kernel, kernel[:, 0])


def test_a_sequential_without_input_layer(tmp_path: Path) -> None:
    stale = {
        "class_name": "VarianceScaling",
        "config": {"scale": 1.0, "mode": "fan_avg", "distribution": "normal", "dtype": "x"},
    }
    config = {
        "class_name": "Sequential",
        "config": {
            "name": "s",
            "layers": [
                layer(
                    "Dense", name="a", units=3, batch_input_shape=[None, 2], dtype="float32", kernel_initializer=stale
                ),
                layer("LeakyReLU", name="l", alpha=0.25),
            ],
        },
    }
    matrix, bias = normal(2, 3), normal(3)
    model = load_model(write(tmp_path / "m.h5", config, {"a": [matrix, bias], "l": []}))
    x = normal(4, 2)
    y = x @ matrix + bias
    np.testing.assert_allclose(np.asarray(model(x)), np.where(y > 0, y, y * 0.25), atol=1e-5)


def functional(**depthwise: Any) -> dict[str, Any]:
    """A graph as TensorFlow 2 wrote it."""

    def node(entry: dict[str, Any], *sources: str) -> dict[str, Any]:
        nodes = [[[source, 0, 0, {}] for source in sources]] if sources else []
        return entry | {"name": entry["config"]["name"], "inbound_nodes": nodes}

    image = layer(
        "InputLayer", name="i", batch_input_shape=[None, 6, 6, 3], dtype="float32", sparse=False, ragged=False
    )
    conv = layer(
        "DepthwiseConv2D", name="w", kernel_size=[3, 3], strides=[1, 1], padding="same", depth_multiplier=1,
        use_bias=False, activation="linear", dtype={"class_name": "Policy", "config": {"name": "float32"}}, **depthwise,
    )  # fmt: skip
    norm = layer(
        "BatchNormalizationV1", name="n", axis=[3], epsilon=1e-3, momentum=0.99, fused=None, virtual_batch_size=None
    )
    layers = [node(image), node(conv, "i"), node(norm, "w"), node(layer("Add", name="a"), "n", "i")]
    ends = {"input_layers": [["i", 0, 0]], "output_layers": [["a", 0, 0]]}
    return {"class_name": "Model", "config": {"name": "m", "layers": layers, **ends}}


def test_a_graph_of_keras_2(tmp_path: Path) -> None:
    weights = {"i": [], "w": [normal(3, 3, 3, 1)], "n": [np.abs(normal(3)) + 0.5 for _ in range(4)], "a": []}
    model = load_model(write(tmp_path / "m.h5", functional(groups=1), weights, "2.14.0"))
    assert model.get_layer("n").axis == 3
    assert model.input.shape == (None, 6, 6, 3)
    assert model.output.shape == (None, 6, 6, 3)
    np.testing.assert_array_equal(model.get_layer("w").kernel, weights["w"][0])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (functional(groups=2), "w: groups=2"),
        (layer("Convolution2D", name="c", dim_ordering="th", nb_filter=2, nb_row=3, nb_col=3), "dim_ordering 'th'"),
        (layer("Convolution2D", name="c", dim_ordering="tf", border_mode="full"), "border_mode 'full'"),
        (layer("Merge", name="m", mode="cos"), "Merge with mode 'cos'"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        modernize({"class_name": "Sequential", "config": [config]} if config["class_name"] != "Model" else config)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (layer("Merge", name="m", mode="concat", concat_axis=3), ("Concatenate", {"name": "m", "axis": 3})),
        (layer("Merge", name="m", mode="sum", layers=None), ("Add", {"name": "m"})),
        (layer("Conv2DTranspose", name="t", filters=2, groups=1), ("Conv2DTranspose", {"name": "t", "filters": 2})),
        (layer("LSTM", name="r", units=2, time_major=False), ("LSTM", {"name": "r", "units": 2})),
        (layer("AtrousConvolution1D", name="c", atrous_rate=2), ("Conv1D", {"name": "c", "dilation_rate": 2})),
    ],
)
def test_single_changes(before: dict[str, Any], after: tuple[str, dict[str, Any]]) -> None:
    (found,) = modernize({"class_name": "Sequential", "config": [before]})["config"]["layers"]
    assert (found["class_name"], found["config"]) == after


def test_what_keras_3_wrote_is_left_alone() -> None:
    config = {
        "class_name": "Sequential",
        "module": "keras",
        "config": {
            "name": "s",
            "layers": [
                layer("InputLayer", name="i", batch_shape=[None, 4], dtype="float32"),
                layer("Dense", name="d", units=3, kernel_initializer=layer("Zeros")),
            ],
        },
    }
    assert modernize(config, "3.15.1") == config
    del config["config"]["layers"][1]["config"]["kernel_initializer"]
    assert modernize(config, "2.9.0") == config


def test_kernels_flipped_by_theano_are_refused(tmp_path: Path) -> None:
    config = {"class_name": "Sequential", "config": [layer("Dense", name="a", units=1, batch_input_shape=[None, 2])]}
    path = write(tmp_path / "m.h5", config, {"a": [normal(2, 1), normal(1)]}, backend="theano")
    with pytest.raises(ModelError, match="Theano"):
        load_model(path)


def test_operations_of_tensorflow_are_refused_by_name(tmp_path: Path) -> None:
    config = functional()
    config["config"]["layers"][1] |= {"class_name": "TFOpLambda", "config": {"name": "w", "function": "math.tanh"}}
    with pytest.raises(ModelError, match=r"layer w is the TensorFlow operation math\.tanh"):
        load_model(write(tmp_path / "m.h5", config, {"n": [normal(3)] * 4}, "2.14.0"))
