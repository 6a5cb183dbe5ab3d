"""A Keras model as plain data: its layers, their weights, and digests of what feeds them.

Two equal networks get equal digests whatever their layers are called; a weight that changes changes the digest of
every layer downstream of it and of no other.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.errors import ModelError
from lrfgraph.layers.kinds import KINDS_BY_CLASS as KINDS
from lrfgraph.layers.kinds import LayerKind
from lrfgraph.layers.pieces import layer_cost
from lrfgraph.layers.spec import LayerSpec
from lrfgraph.network.counting import Shape, operation_macs, static_shapes
from lrfgraph.network.graph import Call, Graph, Slot, flatten, input_names
from lrfgraph.network.heads import propose
from lrfgraph.network.opening.archive import digest, one_line
from lrfgraph.network.operations import depthwise_variable, fold_batchnorm, kernel_variable, only_reader, output_call

__all__ = ["Description", "describe"]

Array = NDArray[Any]
Arrays = dict[str, Array]
IGNORED = ("_initializer", "_regularizer", "_constraint")  # of a configuration: nothing that acts in inference
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
    structure : as JSON: ``inputs`` and ``outputs`` (slots), ``names`` (of the inputs), ``shapes`` (by slot, one
        input), ``activation`` (the last one of the first output) and ``head`` (what the graph alone says of the output,
        a row of HEADS).
    digest : of the whole network.
    """

    layers: list[LayerSpec]
    arrays: Arrays
    structure: dict[str, Any]
    digest: str


@dataclass
class _View:
    """What every layer's description is read from."""

    program: Graph
    shapes: dict[int, Shape]
    assumed: bool
    digests: dict[int, str] = field(default_factory=dict)
    calls_of: dict[int, list[Call]] = field(default_factory=dict)


def describe(model: Any, image_shape: Shape | None = None) -> Description:
    """Describe a Functional or Sequential model.

    `image_shape` (without the batch axis) fills in axes whose length the model leaves open; without it they count as
    64 and the layers say so in ``extra["assumed_size"]``.  Raises ModelError where the network does not take that size.
    """
    program = flatten(model)
    is_open = any(None in tuple(tensor.shape)[1:] for tensor in model.inputs)
    try:
        shapes = static_shapes(program, model, image_shape)
    except Exception as error:  # whatever a layer raises that its input is too small for
        raise ModelError(f"the network does not take inputs of this size ({one_line(error)}); give the size") from error
    view = _View(program, shapes, is_open and image_shape is None)
    for call in program.calls:
        view.calls_of.setdefault(id(call.operation), []).append(call)
    own = {key: _operation_digest(calls[0].operation) for key, calls in view.calls_of.items()}
    _digest_slots(view, model, own)
    layers, arrays = [], {}
    for number, calls in enumerate(view.calls_of.values()):
        spec, own_arrays = _describe_layer(view, calls)
        layers.append(spec)
        arrays.update({f"layers/{number}/{name}": value for name, value in own_arrays.items()})
    outputs = [view.digests[slot] for slot in program.outputs]
    return Description(layers, arrays, _structure(view, input_names(model)), digest(["network", outputs]))


# digests ----------------------------------------------------------------------------------------------------------


def _digest_slots(view: _View, model: Any, own: dict[int, str]) -> None:
    for position, (slot, tensor) in enumerate(zip(view.program.inputs, model.inputs, strict=True)):
        view.digests[slot] = digest(["input", position, list(tensor.shape), str(tensor.dtype)])
    for call in view.program.calls:
        result = digest([own[id(call.operation)], _arguments(view, call)])
        view.digests.update({slot: digest([result, place]) for place, slot in enumerate(call.outputs)})


def _arguments(view: _View, call: Call) -> Any:
    """What a call is called with: digests in place of tensors."""

    def plain(value: Any) -> Any:
        if isinstance(value, Slot):
            return {"slot": view.digests[value.index]}
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return _jsonable(value)

    return plain([call.args, call.kwargs])


def _jsonable(value: Any) -> Any:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return digest(np.asarray(value))
    return value if value is None or isinstance(value, bool | int | float | str) else type(value).__name__


def _operation_digest(operation: Any) -> str:
    """Digest of a layer's class, configuration without names, and weights."""
    import keras

    try:
        config = keras.saving.serialize_keras_object(operation)["config"]
    except (NotImplementedError, TypeError, ValueError):  # custom objects inside that nobody registered with Keras
        config = operation.get_config()
    weights = [digest(np.asarray(weight)) for weight in getattr(operation, "weights", ())]
    plain = json.loads(json.dumps(_without_names(config), default=_jsonable))
    return digest([type(operation).__name__, plain, weights])


def _without_names(config: Any) -> Any:
    """Drop from a layer's configuration, and from those of layers inside it, what does not act in inference."""
    if not isinstance(config, dict):
        return config
    kept = {}
    for key, value in config.items():
        if key in {"name", "trainable", "build_config", "seed", "shared_object_id"} or key.endswith(IGNORED):
            continue
        inner = isinstance(value, dict) and isinstance(value.get("config"), dict) and "DTypePolicy" not in str(value)
        kept[key] = {"class_name": value["class_name"], "config": _without_names(value["config"])} if inner else value
    return kept


# layers -----------------------------------------------------------------------------------------------------------


def _describe_layer(view: _View, calls: list[Call]) -> tuple[LayerSpec, Arrays]:
    import keras

    operation, path = calls[0].operation, calls[0].path
    class_name = type(operation).__name__
    kind = KINDS.get(class_name)
    spec = LayerSpec(
        name=path,
        class_name=class_name,
        parameters=int(operation.count_params()) if hasattr(operation, "count_params") else 0,
        upstream=digest(["upstream", [_arguments(view, call) for call in calls]]),
        extra={"assumed_size": True} if view.assumed else {},
    )
    first = getattr(operation, "data_format", None) == "channels_first"
    spec = replace(
        spec,
        input_shapes=tuple(_channels_last(view.shapes[c.inputs[0]], first) for c in calls if c.inputs),
        output_shapes=tuple(_channels_last(view.shapes[c.outputs[0]], first) for c in calls if c.inputs),
        macs=sum(operation_macs(c, view.shapes[c.inputs[0]], view.shapes[c.outputs[0]]) for c in calls if c.inputs),
    )
    if kind is None or type(operation) is not getattr(keras.layers, class_name):
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
    kernel = np.asarray(kernel_variable(operation), dtype=np.float32)
    kernel = kind.family.order.canonical(kernel, getattr(operation, "groups", 1))
    arrays = {"kernel": np.ascontiguousarray(kernel)}
    depthwise = depthwise_variable(operation)
    if depthwise is not None:
        arrays["depthwise"] = np.asarray(depthwise, dtype=np.float32)
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
    reader = only_reader(view.program, slot)
    if reader is None or type(reader.operation).__name__ != "BatchNormalization" or reader.kwargs.get("training"):
        return None
    if len(view.calls_of[id(reader.operation)]) != 1:
        return None
    rank = len(view.shapes[slot])
    first = getattr(calls[0].operation, "data_format", None) == "channels_first"
    return reader if reader.operation.axis % rank == (1 if first else rank - 1) else None


def _tail_after(view: _View, call: Call, times: int) -> str:
    """The activation that alone reads a call's output, ``linear`` where there is none or it has no name."""
    reader = only_reader(view.program, call.outputs[0]) if times == 1 else None
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
    program = view.program
    activation = _last_activation(program)
    shapes = [view.shapes[slot][1:] for slot in (program.outputs[0], *program.inputs)]
    return {
        "inputs": list(program.inputs),
        "names": names,
        "outputs": list(program.outputs),
        "shapes": {str(slot): list(shape) for slot, shape in view.shapes.items()},
        "activation": activation,
        "head": propose(activation, shapes[0], shapes[1:]),
    }


def _last_activation(graph: Graph) -> str:
    """The activation that made the first output."""
    import keras

    call = output_call(graph)
    if call is None:
        return "linear"
    fused = getattr(call.operation, "activation", None)
    if type(call.operation).__name__ in KINDS and callable(fused):
        return _function_name(keras.activations.serialize(fused))
    return _activation_of(call.operation)
