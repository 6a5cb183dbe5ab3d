"""What follows a layer as far as it goes alone: its bias, a BatchNorm, a residual addition, a ReLU."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np

from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.network.graph import Call, Graph
from lrfgraph.network.operations import fold_batchnorm, only_reader

__all__ = ["Tail", "tail_of"]


@dataclass(frozen=True)
class Tail:
    """A layer's own bias and what follows it.

    bias : (channels,), zeros where the layer has none.
    scale, shift : (groups, 1, outputs), a folded BatchNorm, the bias in its shift.
    shortcut : slot of the other input of the addition that follows, where it is at hand.
    interval : what a ReLU lets through, or ``None``.
    """

    bias: Array
    scale: Array
    shift: Array
    shortcut: int | None
    interval: tuple[float, float] | None


def tail_of(graph: Graph, call: Call, layer: LayerSpec, fold: bool, available: Container[int]) -> Tail:
    """Follow the layer's output through BatchNorm and addition to the activation, as far as it goes alone.

    fold : whether a BatchNorm may be folded.  available : slots whose values are at hand.
    """
    shape = (layer.groups, 1, layer.outputs)
    slot, reader = call.outputs[0], only_reader(graph, call.outputs[0])
    bias = (
        np.asarray(call.operation.bias, np.float64)
        if call.operation.bias is not None
        else np.zeros(layer.groups * layer.outputs)
    )
    if reader is not None and layer.batchnorm == reader.path and fold:
        scale, shift = _folded(reader, bias, shape)
        slot, reader = reader.outputs[0], only_reader(graph, reader.outputs[0])
    else:
        scale, shift = np.ones(shape), bias.reshape(shape)
    shortcut = None
    if (
        layer.activation == "linear"
        and reader is not None
        and type(reader.operation).__name__ == "Add"
        and len(reader.inputs) == 2
    ):
        shortcut = _shortcut(graph, reader, slot, available)
        reader = None if shortcut is None else only_reader(graph, reader.outputs[0])
    return Tail(bias, scale, shift, shortcut, _interval(call, reader))


def _folded(norm: Call, bias: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Fold a BatchNorm; channels that it all but switches off have scale 0."""
    scale, shift = fold_batchnorm(norm.operation, bias)
    scale = np.broadcast_to(scale, bias.shape)
    return np.where(np.abs(scale) < 1e-6 * np.abs(scale).max(), 0.0, scale).reshape(shape), shift.reshape(shape)


def _shortcut(graph: Graph, addition: Call, slot: int, available: Container[int]) -> int | None:
    """Return the addition's other input, where it is at hand and of the same shape."""
    other = addition.inputs[1] if addition.inputs[0] == slot else addition.inputs[0]
    usable = other != slot and other in available and graph.shapes[other] == graph.shapes[slot]
    return other if usable else None


def _interval(call: Call, reader: Call | None) -> tuple[float, float] | None:
    """Return what interval the activation lets through, for the ReLU family, else ``None``."""
    name = getattr(getattr(call.operation, "activation", None), "__name__", "linear")
    if name == "linear" and reader is not None:
        operation = reader.operation
        name = getattr(getattr(operation, "activation", None), "__name__", type(operation).__name__.lower())
        if type(operation).__name__ == "ReLU":
            plain = operation.negative_slope == 0 and operation.threshold == 0
            high = np.inf if operation.max_value is None else float(operation.max_value)
            return (0.0, high) if plain else None
    return {"relu": (0.0, np.inf), "relu6": (0.0, 6.0)}.get(name)
