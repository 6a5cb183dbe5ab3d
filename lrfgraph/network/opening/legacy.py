"""Configurations written by Keras 1 and 2, turned into what Keras 3 reads, where their meaning is unambiguous.

Plain JSON in, plain JSON out; neither Keras nor the file is needed. Each table below names what changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from lrfgraph.errors import ModelError

__all__ = ["modernize"]

Config = dict[str, Any]

CLASSES = {  # Keras 1 names, and names that TensorFlow gave the same class later
    "Convolution1D": "Conv1D",
    "Convolution2D": "Conv2D",
    "Convolution3D": "Conv3D",
    "AtrousConvolution1D": "Conv1D",
    "AtrousConvolution2D": "Conv2D",
    "Deconvolution2D": "Conv2DTranspose",
    "Convolution2DTranspose": "Conv2DTranspose",
    "Convolution3DTranspose": "Conv3DTranspose",
    "SeparableConvolution1D": "SeparableConv1D",
    "SeparableConvolution2D": "SeparableConv2D",
    "DepthwiseConvolution2D": "DepthwiseConv2D",
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "SyncBatchNormalization": "BatchNormalization",
    "MaxPool1D": "MaxPooling1D",
    "MaxPool2D": "MaxPooling2D",
    "MaxPool3D": "MaxPooling3D",
    "AvgPool2D": "AveragePooling2D",
    "GlobalMaxPool2D": "GlobalMaxPooling2D",
    "GlobalAvgPool2D": "GlobalAveragePooling2D",
    "Model": "Functional",
}
MERGES = {"sum": "Add", "mul": "Multiply", "concat": "Concatenate", "ave": "Average", "max": "Maximum"}
KEYS = {  # Keras 1 argument -> Keras 3 argument, wherever it occurs
    "nb_filter": "filters",
    "output_dim": "units",
    "border_mode": "padding",
    "subsample": "strides",
    "subsample_length": "strides",
    "filter_length": "kernel_size",
    "atrous_rate": "dilation_rate",
    "pool_length": "pool_size",
    "stride": "strides",
    "bias": "use_bias",
    "p": "rate",
    "input_dtype": "dtype",
    "batch_input_shape": "batch_shape",
}
KERAS1_DROPPED = ("W_regularizer", "b_regularizer", "W_constraint", "b_constraint", "init", "weights", "input_dim")
SIZES = (("nb_row", "nb_col"), ("kernel_dim1", "kernel_dim2", "kernel_dim3"))
ORDERINGS = {"tf": "channels_last", "default": "channels_last"}
SEPARABLE_STALE = ("kernel_initializer", "kernel_regularizer", "kernel_constraint")
NEUTRAL: dict[str, tuple[Any, ...]] = {  # arguments Keras 3 no longer takes; a value that changes nothing is dropped
    "time_major": (False, None),
    "ragged": (False, None),
    "fused": (True, False, None),
    "renorm": (False, None),
    "renorm_clipping": (None, {}),
    "renorm_momentum": (0.99, None),
    "virtual_batch_size": (None,),
    "adjustment": (None,),
    "implementation": (0, 1, 2, None),
    "mode": (0, "auto", None),
    "input_length": (None,),
    "lr": (None,),
}


def modernize(original: Mapping[str, Any], keras_version: str = "") -> Config:
    """Return a model's configuration as Keras 3 reads it; one that needs nothing comes back equal.

    Raises ModelError, naming the layer, where an old argument has no counterpart.
    """
    config: Config = deepcopy(dict(original))
    version = keras_version or str(config.pop("keras_version", ""))
    config.pop("backend", None)
    config.pop("compile_config", None)
    _modernize_layer(config, stale_initializers=not version.startswith("3"))
    for key in ("input_layers", "output_layers"):  # Keras 2 meant the tensor itself by a list of one
        ends = config["config"].get(key) if isinstance(config.get("config"), dict) else None
        if isinstance(ends, list) and len(ends) == 1 and isinstance(ends[0], list):
            config["config"][key] = ends[0]
    config.setdefault("module", "keras.src.models.functional" if config["class_name"] == "Functional" else "keras")
    return config


def _modernize_layer(layer: Config, stale_initializers: bool) -> None:
    class_name: str = CLASSES.get(str(layer["class_name"]), str(layer["class_name"]))
    layer["class_name"] = class_name
    if class_name == "Sequential" and isinstance(layer.get("config"), list):
        layer["config"] = {"name": layer.get("name", "sequential"), "layers": layer["config"]}
    config = layer.get("config")
    if not isinstance(config, dict):
        return
    _modernize_module(layer)
    if isinstance(config.get("layers"), list) and class_name != "Merge":
        _modernize_graph(class_name, config, stale_initializers)
        return
    if class_name == "Merge":
        class_name = layer["class_name"] = _modernize_merge(config)
    _modernize_keras1(class_name, config)
    for fix in _FIXES:
        fix(class_name, config)
    if stale_initializers:  # the weights come from the file, so how they once began does not matter
        for key in [key for key in config if key.endswith("_initializer")]:
            del config[key]
    for key in ("layer", "forward_layer", "backward_layer", "cell"):  # wrappers
        if isinstance(config.get(key), dict) and isinstance(config[key].get("class_name"), str):
            _modernize_layer(config[key], stale_initializers)


def _modernize_graph(class_name: str, config: Config, stale_initializers: bool) -> None:
    for inner in config["layers"]:
        if not isinstance(inner, dict) or not isinstance(inner.get("class_name"), str):
            raise ModelError(f"{config.get('name', class_name)}: its list of layers holds something that is no layer")
        _modernize_layer(inner, stale_initializers)
        if class_name == "Functional" and isinstance(inner.get("config"), dict):
            inner.setdefault("name", inner["config"].get("name"))
    if class_name == "Sequential":
        config.setdefault("name", "sequential")
        _give_input(config)


def _modernize_module(layer: Config) -> None:
    """Keras 2.13 to 2.15 wrote the modules of their time."""
    module = layer.get("module")
    if not isinstance(module, str):
        return
    if module.startswith(
        ("tensorflow.keras", "tensorflow.python.keras", "tf_keras", "keras.engine", "keras.src.engine")
    ):
        is_graph = layer["class_name"] == "Functional"
        layer["module"] = "keras.src.models.functional" if is_graph else "keras.layers"
    if layer["class_name"] == "Sequential" and str(layer["module"]).startswith("keras"):
        layer["module"] = "keras"


def _give_input(config: Config) -> None:
    """Turn the input shape that a Sequential's first layer carries into an InputLayer; drop it from the others."""
    layers = config["layers"]
    shape, dtype = None, None
    for position, layer in enumerate(layers):
        if layer["class_name"] == "InputLayer" or not isinstance(layer.get("config"), dict):
            continue
        held = layer["config"].pop("batch_shape", None)
        if position == 0 and held is not None:
            shape, dtype = held, layer["config"].get("dtype")
    if shape is not None:
        name = f"{layers[0]['config'].get('name', 'layer')}_input"
        dtype = dtype if isinstance(dtype, str) else "float32"
        first: Config = {"class_name": "InputLayer", "config": {"batch_shape": shape, "dtype": dtype, "name": name}}
        if "module" in layers[0]:
            first |= {"module": "keras.layers", "registered_name": None}
        layers.insert(0, first)


def _modernize_merge(config: Config) -> str:
    """Turn the configuration of Keras 1's Merge into that of the layer its mode names, and return that class."""
    name, mode = config.get("name"), config.get("mode")
    if mode not in MERGES or config.get("layers"):
        raise ModelError(f"{name}: Merge with mode {mode!r} has no counterpart in Keras 3; use a Functional model")
    axis: Config = {"axis": config.get("concat_axis", -1)} if mode == "concat" else {}
    config.clear()
    config.update({"name": name}, **axis)
    return MERGES[mode]


def _modernize_keras1(class_name: str, config: Config) -> None:
    name = config.get("name", class_name)
    for keys in SIZES:
        if all(key in config for key in keys):
            config["kernel_size"] = [config.pop(key) for key in keys]
    if "dim_ordering" in config:
        ordering = config.pop("dim_ordering")
        if ordering not in ORDERINGS:
            raise ModelError(
                f"{name}: dim_ordering {ordering!r} of Keras 1 does not say whether kernels are flipped; convert the "
                "file to TensorFlow's ordering ('tf') with the Keras that wrote it"
            )
        config["data_format"] = ORDERINGS[ordering]
    for old, new in KEYS.items():
        if old in config and not (old == "bias" and not isinstance(config[old], bool)):
            value = config.pop(old)
            config.setdefault(new, value)
    for key in [key for key in config if key in KERAS1_DROPPED or key.endswith("_init")]:
        del config[key]
    if class_name == "LeakyReLU" and "alpha" in config:
        config.setdefault("negative_slope", config.pop("alpha"))
    if class_name == "Embedding" and "units" in config:
        config["output_dim"] = config.pop("units")
    if config.get("padding") == "full":
        raise ModelError(f"{name}: border_mode 'full' has no counterpart in Keras 3")


def _drop_groups(class_name: str, config: Config) -> None:
    if class_name.startswith(("DepthwiseConv", "SeparableConv")) or class_name.endswith("Transpose"):
        groups = config.get("groups", 1)
        if groups != 1:
            raise ModelError(
                f"{config.get('name', class_name)}: groups={groups} is not known to Keras 3's {class_name}"
            )
        config.pop("groups", None)
    if class_name.startswith("SeparableConv"):
        for key in SEPARABLE_STALE:
            config.pop(key, None)


def _drop_neutral(class_name: str, config: Config) -> None:
    for key, values in NEUTRAL.items():
        if key in config and any(config[key] is v or config[key] == v for v in values):
            del config[key]


def _unpack_axis(class_name: str, config: Config) -> None:
    axis = config.get("axis")
    if class_name == "BatchNormalization" and isinstance(axis, list) and len(axis) == 1:
        config["axis"] = axis[0]


def _name_policy(class_name: str, config: Config) -> None:
    """TensorFlow wrote dtype policies of its own; their name says all."""
    dtype = config.get("dtype")
    if isinstance(dtype, dict) and dtype.get("class_name") in {"Policy", "PolicyV1"}:
        config["dtype"] = dtype.get("config", {}).get("name", "float32")


_FIXES: tuple[Callable[[str, Config], None], ...] = (_drop_groups, _drop_neutral, _unpack_axis, _name_policy)
