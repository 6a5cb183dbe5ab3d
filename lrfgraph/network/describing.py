"""A Keras model as plain data: its layers, their weights, and digests of what feeds them.

Two equal networks get equal digests whatever their layers are called; a weight that changes changes the digest of
every layer downstream of it and of no other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.engine.nodes import digest
from lrfgraph.errors import ModelError
from lrfgraph.layers.kinds import KINDS_BY_CLASS, LayerKind
from lrfgraph.layers.pieces import layer_cost
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.network.counting import Shape, operation_macs, static_shapes, uncounted
from lrfgraph.network.digests import arguments, signature, slot_digests
from lrfgraph.network.graph import Call, Graph, flatten, input_names
from lrfgraph.network.heads import propose
from lrfgraph.network.opening.archive import one_line
from lrfgraph.network.operations import (
    depthwise_variable,
    fold_batchnorm,
    kernel_variable,
    numbers_of,
    only_reader,
    output_call,
)

__all__ = ["Description", "describe"]

Array = NDArray[Any]
Arrays = dict[str, Array]
REASONS = {
    "EinsumDense": "EinsumDense is kept: its kernel has no fixed order of axes",
    "TimeDistributed": "TimeDistributed is kept: the layer inside it is not opened",
    "Embedding": "Embedding looks rows up and multiplies nothing",
}
ACTIVATION_CLASSES = {  # layers and operations that are an activation and nothing else
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Softmax": "softmax",
    "Silu": "silu",
    "Selu": "selu",
    "Softplus": "softplus",
    "HardSigmoid": "hard_sigmoid",
    "HardSilu": "hard_silu",
}


@dataclass(frozen=True)
class Description:
    """A network as plain data.

    layers : one per distinct layer, in program order.
    arrays : of layer number n: ``layers/n/kernel`` (canonical), ``bias``, ``scale`` and ``shift`` (BatchNorm folded:
        scale = γ/√(σ²+ε), shift = (bias−μ)·scale+β) and ``depthwise`` (of a separable convolution), float32.
    structure : as JSON: ``calls`` (number of the layer, slots it reads and writes), ``inputs`` and ``outputs`` (slots),
        ``names`` (of the inputs), ``shapes`` (by slot, one input), ``activation`` (the last one of the first output),
        ``head`` (what the graph alone says about what the output means, a row of HEADS), ``signature`` (digest of names
        and configurations that a rebuilt model carries on) and ``uncounted`` (path and class of what multiplies but
        enters no ``macs``).
    digest : of the whole network.
    """

    layers: list[LayerSpec]
    arrays: Arrays
    structure: dict[str, Any]
    digest: str


@dataclass
class _View:
    """What every layer's description is read from."""

    graph: Graph
    shapes: dict[int, Shape]
    assumed: bool
    digests: dict[int, str] = field(default_factory=dict)
    calls_of: dict[int, list[Call]] = field(default_factory=dict)


def describe(model: Any, image_shape: Shape | None = None) -> Description:
    """Describe a Functional or Sequential model.

    `image_shape` (without the batch axis) fills in axes whose length the model leaves open; without it they count as
    64 and the layers say so in ``extra["assumed_size"]``.  Raises ModelError where the network does not take that size.
    """
    graph = flatten(model)
    is_open = any(None in tuple(tensor.shape)[1:] for tensor in model.inputs)
    try:
        shapes = static_shapes(graph, model, image_shape)
    except Exception as error:  # whatever a layer raises that its input is too small for
        raise ModelError(f"the network does not take inputs of this size ({one_line(error)}); give the size") from error
    view = _View(graph, shapes, is_open and image_shape is None)
    for call in graph.calls:
        view.calls_of.setdefault(id(call.operation), []).append(call)
    view.digests.update(slot_digests(graph, model))
    layers, arrays = [], {}
    for number, calls in enumerate(view.calls_of.values()):
        spec, own_arrays = _describe_layer(view, calls)
        layers.append(spec)
        arrays.update({f"layers/{number}/{name}": value for name, value in own_arrays.items()})
    outputs = [view.digests[slot] for slot in graph.outputs]
    structure = _structure(view, input_names(model)) | {"signature": signature(model, graph)}
    return Description(layers, arrays, structure, digest(["network", outputs]))


# layers -----------------------------------------------------------------------------------------------------------


def _describe_layer(view: _View, calls: list[Call]) -> tuple[LayerSpec, Arrays]:
    import keras

    operation, path = calls[0].operation, calls[0].path
    class_name = type(operation).__name__
    kind = KINDS_BY_CLASS.get(class_name)
    spec = LayerSpec(
        name=path,
        class_name=class_name,
        parameters=int(operation.count_params()) if hasattr(operation, "count_params") else 0,
        upstream=digest(["upstream", [arguments(call, view.digests) for call in calls]]),
        extra={"assumed_size": True} if view.assumed else {},
    )
    first = getattr(operation, "data_format", None) == "channels_first"
    spec = replace(
        spec,
        input_shapes=tuple(_channels_last(view.shapes[c.inputs[0]], first) for c in calls if c.inputs),
        output_shapes=tuple(_channels_last(view.shapes[c.outputs[0]], first) for c in calls if c.inputs),
        macs=sum(operation_macs(call, view.shapes) or 0 for call in calls),
    )
    if kind is None or type(operation) is not getattr(keras.layers, class_name, None):
        return replace(spec, kept=_no_kernel(operation, class_name)), {}
    reason = _unusual(operation)
    if reason:
        return replace(spec, kept=reason), {}
    return _describe_kernel(view, calls, kind, spec)


def _no_kernel(operation: Any, class_name: str) -> str:
    if class_name in REASONS:
        return REASONS[class_name]
    if getattr(operation, "weights", ()):
        return f"{class_name} has weights but no kernel that a method takes"
    return "has no weights"


def _unusual(operation: Any) -> str:
    if getattr(operation, "quantization_mode", None):
        return f"is quantized ({operation.quantization_mode})"
    return "has LoRA weights" if getattr(operation, "lora_enabled", False) else ""


def _describe_kernel(view: _View, calls: list[Call], kind: LayerKind, spec: LayerSpec) -> tuple[LayerSpec, Arrays]:
    import keras

    operation = calls[0].operation
    kernel = np.asarray(numbers_of(kernel_variable(operation)), dtype=np.float32)
    kernel = kind.family.order.canonical(kernel, getattr(operation, "groups", 1))
    arrays = {"kernel": np.ascontiguousarray(kernel)}
    depthwise = depthwise_variable(operation)
    if depthwise is not None:
        arrays["depthwise"] = np.asarray(depthwise, dtype=np.float32)
    rows_of = None if depthwise is None else digest(arrays["depthwise"])
    bias = getattr(operation, "bias", None) if operation.use_bias else None
    if bias is not None:
        arrays["bias"] = np.asarray(bias, dtype=np.float32)
    activation = _function_name(keras.activations.serialize(operation.activation))
    norm = _batchnorm_after(view, calls) if activation == "linear" else None
    if norm is not None:
        folded = fold_batchnorm(norm.operation, arrays.get("bias"))
        arrays["scale"], arrays["shift"] = (each.astype(np.float32) for each in folded)
    tail = activation if activation != "linear" else _tail_after(view, norm or calls[0], len(calls))
    spec = replace(
        spec,
        kind=kind.name,
        kernel=arrays["kernel"].shape,
        depthwise=() if depthwise is None else tuple(depthwise.shape),
        bias=bias is not None,
        activation=activation,
        batchnorm=norm.path if norm is not None else "",
        tail=tail,
        identity=digest([[name, digest(arrays[name])] for name in sorted(arrays)]),
        upstream=digest(["rows", spec.upstream, str(getattr(operation, "data_format", "")), rows_of]),
        **_geometry(operation, kind.spatial),
    )
    return replace(spec, macs=layer_cost(spec).macs), arrays


def _geometry(operation: Any, spatial: int) -> dict[str, Any]:
    if not spatial:
        return {}

    def pair(value: Any) -> tuple[int, ...]:
        return (int(value),) * spatial if isinstance(value, int) else tuple(int(item) for item in value)

    output_padding = getattr(operation, "output_padding", None)
    return {
        "strides": pair(operation.strides),
        "dilation": pair(operation.dilation_rate),
        "padding": str(operation.padding),
        "data_format": str(operation.data_format),
        "output_padding": () if output_padding is None else pair(output_padding),
    }


def _channels_last(shape: Shape, channels_first: bool) -> Shape:
    shape = shape[1:]
    return (*shape[1:], shape[0]) if channels_first else shape


def _batchnorm_after(view: _View, calls: list[Call]) -> Call | None:
    """The BatchNormalization over channels that alone reads the layer's only output, and nothing else."""
    if len(calls) != 1:
        return None
    slot = calls[0].outputs[0]
    reader = only_reader(view.graph, slot)
    if reader is None or type(reader.operation).__name__ != "BatchNormalization" or reader.kwargs.get("training"):
        return None
    if len(view.calls_of[id(reader.operation)]) != 1:
        return None
    rank = len(view.shapes[slot])
    first = getattr(calls[0].operation, "data_format", None) == "channels_first"
    return reader if reader.operation.axis % rank == (1 if first else rank - 1) else None


def _tail_after(view: _View, call: Call, times: int) -> str:
    """The activation that alone reads a call's output, ``linear`` where there is none or it has no name."""
    reader = only_reader(view.graph, call.outputs[0]) if times == 1 else None
    return _activation_of(reader.operation) if reader is not None else "linear"


def _activation_of(operation: Any) -> str:
    class_name = type(operation).__name__
    reader = _READERS.get(class_name)
    return reader(operation) if reader else ACTIVATION_CLASSES.get(class_name, "linear")


def _function_name(serialized: Any) -> str:
    name = serialized if isinstance(serialized, str) else str(serialized.get("config", "unknown"))
    return {"leaky_relu": "leaky_relu:0.2", "elu": "elu", "swish": "silu"}.get(name, name)


def _of_activation(layer: Any) -> str:
    import keras

    return _function_name(keras.activations.serialize(layer.activation))


def _of_relu(layer: Any) -> str:
    maximum, slope, threshold = layer.max_value, float(layer.negative_slope), float(layer.threshold)
    if threshold == 0 and maximum is None:
        return f"leaky_relu:{slope:g}" if slope else "relu"
    return "relu6" if threshold == 0 and slope == 0 and maximum == 6 else "linear"


def _of_elu(layer: Any) -> str:
    return "elu" if float(layer.alpha) == 1.0 else f"elu:{float(layer.alpha):g}"


_READERS: dict[str, Callable[[Any], str]] = {
    "Activation": _of_activation,
    "ReLU": _of_relu,
    "LeakyReLU": lambda layer: f"leaky_relu:{float(layer.negative_slope):g}",
    "LeakyRelu": lambda operation: f"leaky_relu:{float(operation.negative_slope):g}",
    "ELU": _of_elu,
    "Elu": _of_elu,
}


# structure --------------------------------------------------------------------------------------------------------


def _structure(view: _View, names: list[str]) -> dict[str, Any]:
    graph = view.graph
    activation = _last_activation(graph)
    shapes = [view.shapes[slot][1:] for slot in (graph.outputs[0], *graph.inputs)]
    numbers = {operation: number for number, operation in enumerate(view.calls_of)}
    return {
        "calls": [[numbers[id(c.operation)], list(c.inputs), list(c.outputs)] for c in graph.calls],
        "inputs": list(graph.inputs),
        "names": names,
        "outputs": list(graph.outputs),
        "shapes": {str(slot): list(shape) for slot, shape in view.shapes.items()},
        "activation": activation,
        "head": propose(activation, shapes[0], shapes[1:]),
        "uncounted": [list(each) for each in uncounted(graph, view.shapes)],
    }


def _last_activation(graph: Graph) -> str:
    """The activation that made the first output."""
    import keras

    call = output_call(graph)
    if call is None:
        return "linear"
    fused = getattr(call.operation, "activation", None)
    if type(call.operation).__name__ in KINDS_BY_CLASS and callable(fused):
        return _function_name(keras.activations.serialize(fused))
    return _activation_of(call.operation)
