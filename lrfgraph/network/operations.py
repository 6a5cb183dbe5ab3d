"""What several rooms of the network do with one Keras layer: its kernel, its linear output, its input as rows see it.

One copy of each, for describing, recording, curvature, probing and repair alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lrfgraph.layers.kinds import KINDS_BY_CLASS, Array
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.network.graph import Call, Graph

__all__ = [
    "assign_weights",
    "depthwise_variable",
    "exchange_weights",
    "first_call",
    "fold_batchnorm",
    "kernel_variable",
    "layer_at",
    "layer_input",
    "linear_output",
    "numbers_of",
    "only_reader",
    "output_call",
    "shift_batchnorm",
]


RESHAPING = frozenset({"Flatten", "Reshape", "Dropout", "Identity", "Permute"})


def first_call(graph: Graph, path: str) -> Call:
    """Return the first call of the layer at `path`."""
    return next(call for call in graph.calls if call.path == path)


def only_reader(graph: Graph, slot: int) -> Call | None:
    """Return the call that alone reads `slot`, or ``None`` where several do or it leaves the network."""
    readers = [call for call in graph.calls if slot in call.inputs]
    return readers[0] if len(readers) == 1 and slot not in graph.outputs else None


def output_call(graph: Graph) -> Call | None:
    """Return the call that makes the values of the first output, before what only reshapes them."""
    slot = graph.outputs[0]
    for call in reversed(graph.calls):
        if slot in call.outputs and type(call.operation).__name__ not in RESHAPING:
            return call
        slot = call.inputs[0] if slot in call.outputs else slot
    return None


def layer_at(model: Any, path: str) -> Any:
    """Return a layer of a model by its path, ``outer/inner`` inside nested models."""
    for name in path.split("/"):
        model = model.get_layer(name)
    return model


# Kernels ------------------------------------------------------------------------------------------------------------


def kernel_variable(operation: Any) -> Any:
    """Return the variable of a layer that factorization replaces."""
    return getattr(operation, KINDS_BY_CLASS[type(operation).__name__].family.kernel)


def depthwise_variable(operation: Any) -> Any:
    """Return the variable of the depthwise kernel that a layer applies before that one, or ``None``."""
    name = KINDS_BY_CLASS[type(operation).__name__].family.depthwise
    return getattr(operation, name) if name else None


def numbers_of(variable: Any) -> Array:
    """Return a variable's numbers, read-only and without a copy where NumPy knows their type.

    What is assigned to the variable later leaves them as they are: TensorFlow writes into memory of its own then.
    """
    import tensorflow as tf

    try:
        numbers: Array = np.asarray(memoryview(tf.convert_to_tensor(getattr(variable, "value", variable))))
    except (TypeError, ValueError):
        numbers = np.asarray(variable)
    return numbers


def exchange_weights(operation: Any, kernel: Array, bias: Array | None) -> tuple[Array, Array | None]:
    """Put another kernel and bias into a layer, whose outputs are then those of the chain; return the old ones.

    bias : ``None`` leaves the layer's own; dropped where the layer has none.
    """
    variable = kernel_variable(operation)
    before = np.asarray(variable), (np.asarray(operation.bias) if operation.bias is not None else None)
    variable.assign(kernel)
    if bias is not None and operation.bias is not None:
        operation.bias.assign(bias)
    return before


def assign_weights(model: Any, path: str, kernel: Array, bias: Array | None) -> None:
    """Give a layer that is kept its refitted kernel, in Keras' order, and bias."""
    exchange_weights(layer_at(model, path), kernel, bias)


# Inputs and outputs -------------------------------------------------------------------------------------------------


def layer_input(operation: Any, layer: LayerSpec, x: Any) -> Any:
    """Return a layer's input as rows are cut from it: channels last, a separable one's after its depthwise part."""
    import keras

    depthwise = depthwise_variable(operation)
    if depthwise is not None:
        x = keras.ops.depthwise_conv(
            x,
            depthwise,
            strides=operation.strides,
            padding=operation.padding,
            data_format=operation.data_format,
            dilation_rate=operation.dilation_rate,
        )
    return keras.ops.moveaxis(x, 1, -1) if layer.data_format == "channels_first" else x


def linear_output(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Callable[[Any], Any]]:
    """Call a layer without its fused activation; return its linear output and what finishes the call."""
    import keras

    if not hasattr(operation, "activation"):
        return operation(*args, **kwargs), keras.activations.linear
    # a twin with the same variables: the layer itself may be running in another thread, and keeps its activation
    twin = object.__new__(type(operation))
    vars(twin).update(vars(operation) | {"activation": keras.activations.linear})
    return twin(*args, **kwargs), operation.activation


# BatchNormalization -------------------------------------------------------------------------------------------------


def fold_batchnorm(norm: Any, bias: Array | None) -> tuple[Array, Array]:
    """Return the scale γ/√(σ²+ε) and the shift (bias−μ)·scale+β of a BatchNorm behind a layer, float64."""
    mean, variance = (np.asarray(v, dtype=np.float64) for v in (norm.moving_mean, norm.moving_variance))
    gamma = np.asarray(norm.gamma, dtype=np.float64) if norm.scale else 1.0
    beta = np.asarray(norm.beta, dtype=np.float64) if norm.center else 0.0
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return scale, ((0.0 if bias is None else bias) - mean) * scale + beta


def shift_batchnorm(model: Any, path: str, bias: Array) -> None:
    """Let a BatchNorm take up a bias that the layer before it has no variable for: its moving mean falls by it."""
    layer_at(model, path).moving_mean.assign_sub(bias)
