"""Digests of a network: two networks that can give different outputs never share one, whatever their layers are called.

An operation's digest covers its class, its whole configuration, its weights and, where the class or a function in it
is not Keras' own, the source; a slot's digest covers the operation that writes it and what that is called with. What
cannot be written down exactly is refused, never abbreviated to its type.
"""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lrfgraph.engine.nodes import digest
from lrfgraph.errors import ModelError
from lrfgraph.network.graph import Call, Graph, Slot, input_structure
from lrfgraph.network.operations import numbers_of
from lrfgraph.network.sources import is_library, source_of

__all__ = ["arguments", "operation_digest", "signature", "slot_digests"]

PASSING = {"name", "trainable", "build_config", "seed", "shared_object_id"}
"""Of the configuration of Keras' own layers: what says nothing about the outputs in inference …"""

PASSING_ENDS = ("_initializer", "_regularizer", "_constraint")
"""… and what weights and training are made with."""

PASSING_ANYWHERE = {"name", "build_config", "shared_object_id"}
"""Of a custom class: all else may act."""

Writer = Callable[[Any], Any]


def slot_digests(graph: Graph, model: Any) -> dict[int, str]:
    """Return the digest of every slot: of an input its place, shape and dtype, of a result what computes it."""
    digests = {
        slot: digest(["input", place, list(tensor.shape), str(tensor.dtype)])
        for place, (slot, tensor) in enumerate(zip(graph.inputs, model.inputs, strict=True))
    }
    operations: dict[int, str] = {}
    for call in graph.calls:
        key = id(call.operation)
        if key not in operations:
            operations[key] = operation_digest(call.operation, call.path)
        result = digest([operations[key], arguments(call, digests)])
        digests.update({slot: digest([result, place]) for place, slot in enumerate(call.outputs)})
    return digests


def arguments(call: Call, digests: Mapping[int, str]) -> Any:
    """Return what a call is called with as JSON, digests in place of tensors; raises ModelError."""

    def slots(value: Any) -> Any:
        return ["slot", digests[value.index]] if isinstance(value, Slot) else None

    return [_exact(each, call.path, slots) for each in (call.args, call.kwargs)]


def operation_digest(operation: Any, path: str) -> str:
    """Return the digest of a layer's class, configuration without names, weights and code; raises ModelError."""
    weights = [digest(numbers_of(weight)) for weight in getattr(operation, "weights", ())]
    return digest([_class_of(operation), _configuration(operation, path), weights, _code(operation, path)])


def signature(model: Any, graph: Graph) -> str:
    """Return the digest of all that a rebuilt model carries on besides: names, and configurations with what trains."""
    import keras

    layers: dict[int, Any] = {}
    for call in graph.calls:
        layers.setdefault(id(call.operation), [call.path, _exact(_serialized(call.operation), call.path)])
    outputs = model.output_names if hasattr(model, "output_names") else []
    ends = input_structure(model), model.outputs if isinstance(model, keras.Sequential) else model.output
    structure = [keras.tree.map_structure(lambda tensor: None, end) for end in ends]
    inputs = [[tensor.name, list(tensor.shape), str(tensor.dtype)] for tensor in model.inputs]
    return digest([model.name, inputs, list(outputs), _exact(structure, model.name), list(layers.values())])


# Configurations -----------------------------------------------------------------------------------------------------


def _class_of(operation: Any) -> str:
    return type(operation).__name__


def _serialized(operation: Any) -> Any:
    import keras

    try:
        return keras.saving.serialize_keras_object(operation)["config"]
    except (NotImplementedError, TypeError, ValueError):  # custom objects inside that nobody registered with Keras
        pass
    try:
        return operation.get_config()
    except NotImplementedError:  # an operation made with values that Keras itself cannot write
        return {key: value for key, value in vars(operation).items() if not key.startswith("_")}


def _configuration(operation: Any, path: str) -> Any:
    return _exact(_acting(_serialized(operation), is_library(type(operation))), path)


def _acting(config: Any, keras_own: bool) -> Any:
    """Drop from a layer's configuration, and from those of objects inside it, what does not act in inference."""
    if isinstance(config, list | tuple):
        items = [_acting(item, keras_own) for item in config]
        return tuple(items) if isinstance(config, tuple) else items
    if not isinstance(config, dict):
        return config
    if isinstance(config.get("class_name"), str) and isinstance(config.get("config"), dict):
        inner, own = config["config"], str(config.get("module")).split(".")[0] == "keras"
        if not config["class_name"].endswith("DTypePolicy"):  # whose name is what it says
            inner = _acting(inner, own)
        module = {} if own else {"module": config.get("module")}
        return {"class_name": config["class_name"], "config": inner, **module, **_wiring(config)}
    dropped = PASSING if keras_own else PASSING_ANYWHERE
    return {
        key: _acting(value, keras_own)
        for key, value in config.items()
        if key not in dropped and not (keras_own and str(key).endswith(PASSING_ENDS))
    }


def _wiring(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a layer inside a serialized graph says about its place in it."""
    return {key: config[key] for key in ("name", "inbound_nodes") if key in config}


# Code ---------------------------------------------------------------------------------------------------------------


def _code(operation: Any, path: str) -> Any:
    """The sources of all classes and functions in a layer, and in layers inside it, that are not Keras' own."""
    layers = list(operation._flatten_layers()) if hasattr(operation, "_flatten_layers") else [operation]
    sources = set()
    for layer in layers:
        for value in (type(layer), *vars(layer).values()):
            item = value if isinstance(value, type | types.FunctionType) else type(value)
            if not is_library(item):
                sources.add(_source(item, path))
    return sorted(sources)


def _source(item: Any, path: str) -> str:
    try:
        return digest(source_of(item))
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{path}: the code of {getattr(item, '__name__', item)} cannot be read ({error}), so that nothing could "
            "tell whether it changed; define it in a module"
        ) from error


# Values -------------------------------------------------------------------------------------------------------------


def _exact(value: Any, path: str, special: Writer = lambda value: None) -> Any:
    """Write any value that a call or a configuration holds as JSON that no other value gives.

    special : what stands for values that mean something here, ``None`` for all others.  Raises ModelError.
    """

    def write(value: Any) -> Any:
        own = special(value)
        if own is not None:
            return own
        if value is None or (isinstance(value, bool | int | str) and not isinstance(value, enum.Enum)):
            return value
        for kind, types_of_kind, writer in _WRITERS:
            if isinstance(value, types_of_kind):
                return [kind, writer(value, write)]
        written = _library_value(value, write)
        if written is not None:
            return written
        raise ModelError(
            f"{path}: holds a {type(value).__name__} ({str(value)[:40]!r}), which cannot be written down exactly, so "
            "that nothing could tell it from another; replace it by numbers, text or a tensor, or make it a layer"
        )

    return write(value)


def _mapping(value: Mapping[Any, Any], write: Writer) -> Any:
    return sorted(([write(key), write(item)] for key, item in value.items()), key=lambda pair: digest(pair[0]))


def _array(value: Any) -> Any:
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise TypeError("holds Python objects")
    return [array.dtype.str, list(array.shape), digest(array)]


_WRITERS: tuple[tuple[str, Any, Callable[[Any, Writer], Any]], ...] = (
    ("enum", enum.Enum, lambda value, write: [type(value).__name__, value.name, write(value.value)]),
    ("float", float, lambda value, write: value.hex()),
    ("complex", complex, lambda value, write: [value.real.hex(), value.imag.hex()]),
    ("bytes", bytes, lambda value, write: value.hex()),
    ("slice", slice, lambda value, write: [write(each) for each in (value.start, value.stop, value.step)]),
    ("range", range, lambda value, write: [value.start, value.stop, value.step]),
    ("ellipsis", type(Ellipsis), lambda value, write: []),
    ("array", np.ndarray | np.generic, lambda value, write: _array(value)),
    ("dtype", np.dtype, lambda value, write: value.str),
    ("tuple", tuple, lambda value, write: [write(item) for item in value]),
    ("list", list, lambda value, write: [write(item) for item in value]),
    ("set", set | frozenset, lambda value, write: sorted((write(item) for item in value), key=digest)),
    ("dict", Mapping, _mapping),
    (
        "partial",
        functools.partial,
        lambda value, write: [write(each) for each in (value.func, value.args, value.keywords)],
    ),
)


def _library_value(value: Any, write: Writer) -> Any:
    """Write what TensorFlow, Keras or Python code gives: variables, tensors, shapes, dtypes, objects with a
    configuration, functions and classes."""
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        name = f"{value.__module__}.{value.__qualname__}"
        return ["code", name] if is_library(value) else ["code", value.__name__, digest(source_of(value))]
    if hasattr(value, "as_numpy_dtype"):
        return ["dtype", value.name]
    if hasattr(value, "get_config"):
        own = is_library(type(value))
        config = value.get_config()
        return ["object", type(value).__name__, write(config if _is_policy(value) else _acting(config, own))]
    if hasattr(value, "as_list"):
        return ["shape", write(value.as_list())]
    return ["array", _array(value)] if hasattr(value, "shape") and hasattr(value, "dtype") else None


def _is_policy(value: Any) -> bool:
    return type(value).__name__.endswith("DTypePolicy")
