"""Parameters and multiply–accumulates counted on a Keras model as it stands, whatever a plan declared.

MACs are those of one input, of every layer and operation that multiplies sums: kernels, attention, recurrent cells,
matrix products. Scalings, normalizations and activations count nothing. What multiplies in a way that is not known here
is named.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from lrfgraph.layers.kinds import KINDS_BY_CLASS, Family
from lrfgraph.network.graph import Call, Graph, Slot, flatten, run
from lrfgraph.network.sources import is_library

__all__ = ["ASSUMED_SIZE", "Count", "count", "operation_macs", "static_shapes", "uncounted"]

Shape = tuple[int, ...]
Arguments = Mapping[str, Any]
"""What an operation is called with by name: shapes in place of tensors, lists of them, other values as they are."""

ASSUMED_SIZE = 64  # of a spatial axis whose length the model leaves open

UNCOUNTED = {
    "Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "Map", "Scan", "AssociativeScan",
    "VectorizedMap", "WhileLoop", "ForiLoop", "Cond", "Switch", "Correlate", "FFT", "FFT2", "IFFT2", "RFFT", "IRFFT",
    "STFT", "ISTFT", "Inv", "Solve", "SolveTriangular", "Cholesky", "CholeskyInverse", "Det", "Eig", "Eigh", "Lstsq",
    "LuFactor", "Qr", "SVD", "Pinv", "MatrixRank", "Logdet", "Slogdet", "CDist", "Corrcoef", "JVP",
}  # fmt: skip
"""Keras' own that multiply, hold no kernel and are not counted."""

ELEMENTWISE = {
    "Embedding", "PReLU", "BatchNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization",
    "Normalization",
}  # fmt: skip
"""Layers whose weights, whatever their shape, multiply no sums."""


@dataclass(frozen=True)
class Count:
    """A model's parameters, the MACs of one input, and path and class of what multiplies but is not counted."""

    parameters: int
    macs: int
    uncounted: tuple[tuple[str, str], ...] = ()


def count(model: Any, image_shape: Shape | None = None) -> Count:
    """Count a model as it stands; open axes take their lengths from `image_shape` (without the batch axis)."""
    graph = flatten(model)
    shapes = static_shapes(graph, model, image_shape)
    macs = sum(operation_macs(call, shapes) or 0 for call in graph.calls)
    return Count(int(model.count_params()), macs, uncounted(graph, shapes))


def uncounted(graph: Graph, shapes: Mapping[int, Shape]) -> tuple[tuple[str, str], ...]:
    """Return path and class of what multiplies in a way that is not known."""
    calls = [call for call in graph.calls if operation_macs(call, shapes) is None]
    return tuple(dict.fromkeys((call.path, type(call.operation).__name__) for call in calls))


def static_shapes(graph: Graph, model: Any, image_shape: Shape | None = None) -> dict[int, Shape]:
    """Return the shape of every slot for one input, batch axis first and 1, open axes filled in.

    An open axis takes its length from `image_shape` (without the batch axis), else `ASSUMED_SIZE`.
    """
    import keras

    known = (1, *(image_shape or ()))
    values = {}
    for slot, tensor in zip(graph.inputs, model.inputs, strict=True):
        shape = tuple(
            size or (known[axis] if axis < len(known) else ASSUMED_SIZE) for axis, size in enumerate(tensor.shape)
        )
        values[slot] = keras.KerasTensor((1, *shape[1:]), dtype=tensor.dtype)

    def spec(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outputs = call.operation.compute_output_spec(*args, **kwargs)
        if any(None in tensor.shape for tensor in keras.tree.flatten(outputs)):
            # a layer may repeat an open axis of its configuration although its input is known: trace the call
            outputs = keras.Operation.compute_output_spec(call.operation, *args, **kwargs)
        return outputs

    return {slot: tuple(tensor.shape) for slot, tensor in run(graph, values, spec).items()}


def operation_macs(call: Call, shapes: Mapping[int, Shape]) -> int | None:
    """Count one call from its operation's weights and the shapes around it.

    Returns 0 for what multiplies no sums, ``None`` for what does in a way that is not known.
    """

    def shape_of(value: Any) -> Any:
        if isinstance(value, Slot):
            return shapes[value.index]
        if isinstance(value, list | tuple) and any(isinstance(item, Slot) for item in value):
            return [shape_of(item) for item in value]
        return tuple(value.shape) if hasattr(value, "shape") else value

    args = tuple(shape_of(value) for value in call.args)
    kwargs = {name: shape_of(value) for name, value in call.kwargs.items()}
    return _macs(call.operation, args, kwargs, shapes[call.outputs[0]])


def _macs(operation: Any, args: Sequence[Any], kwargs: Arguments, after: Shape) -> int | None:
    class_name = type(operation).__name__
    if not is_library(type(operation)):
        return None
    if class_name in KINDS_BY_CLASS:
        return _kernel_macs(KINDS_BY_CLASS[class_name].family, operation, _first(args, kwargs), after)
    if class_name in _COUNTERS:
        bound = inspect.signature(operation.call).bind_partial(*args, **kwargs).arguments
        return _COUNTERS[class_name](operation, bound, after)
    kernels = any(len(weight.shape) > 1 for weight in getattr(operation, "weights", ()))
    return None if class_name in UNCOUNTED or (kernels and class_name not in ELEMENTWISE) else 0


def _first(args: Sequence[Any], kwargs: Arguments) -> Shape:
    first: Shape = args[0] if args else next(iter(kwargs.values()))
    return first


def _sum(parts: Iterable[int | None]) -> int | None:
    counts = list(parts)
    return None if None in counts else sum(each for each in counts if each is not None)


def _size(kernel: Any) -> int:
    return int(prod(kernel if isinstance(kernel, tuple) else kernel.shape))


# Kernels ------------------------------------------------------------------------------------------------------------


def _positions(operation: Any, shape: Shape) -> int:
    return prod(shape[2:] if getattr(operation, "data_format", None) == "channels_first" else shape[1:-1])


def _kernel_macs(family: Family, layer: Any, before: Shape, after: Shape) -> int:
    """Count a layer that applies its kernels once at every position."""
    kernels = [getattr(layer, name) for name in (family.kernel, family.depthwise) if name]
    positions = _positions(layer, before if family.positions == "inputs" else after)
    return positions * sum(_size(kernel) for kernel in kernels)


def _convolution(operation: Any, arguments: Arguments, after: Shape) -> int:
    """``keras.ops.conv`` and its kin, whose kernels are arguments."""
    kernels = [value for name, value in arguments.items() if name.endswith("kernel")]
    return _positions(operation, after) * sum(_size(kernel) for kernel in kernels)


def _transposed(operation: Any, arguments: Arguments, after: Shape) -> int:
    return _positions(operation, arguments["inputs"]) * _size(arguments["kernel"])


def _einsum_dense(layer: Any, arguments: Arguments, after: Shape) -> int:
    before = arguments["inputs"]
    terms = layer.equation.replace(" ", "").split("->")[0]
    inputs, kernel = terms.split(",")
    letters = _letters(inputs, len(before))
    # axes of the input that the kernel does not have: it is multiplied once for each of their positions
    free = [size for letter, size in zip(letters[1:], before[1:], strict=True) if letter not in kernel]
    return int(prod(free)) * _size(layer.kernel)


def _letters(term: str, rank: int) -> list[str]:
    """The index of every axis, those of an ellipsis written ``.0``, ``.1`` … from the last."""
    head, _, tail = term.partition("...")
    elided = rank - len(head) - len(tail)
    return [*head, *(f".{place}" for place in reversed(range(elided))), *tail]


# Products of tensors ------------------------------------------------------------------------------------------------


def _matmul(operation: Any, arguments: Arguments, after: Shape) -> int:
    first, _ = _pair(arguments)
    return int(prod(after) * first[-1])


def _pair(arguments: Arguments) -> tuple[Shape, Shape]:
    first, second = [value for value in arguments.values() if isinstance(value, tuple)][:2]
    return first, second


def _tensordot(operation: Any, arguments: Arguments, after: Shape) -> int:
    first, _ = _pair(arguments)
    axes = operation.axes
    contracted = first[len(first) - axes :] if isinstance(axes, int) else [first[axis] for axis in _axes(axes[0])]
    return prod(after) * prod(contracted)


def _axes(axes: Any) -> Sequence[int]:
    return [axes] if isinstance(axes, int) else axes


def _einsum(operation: Any, arguments: Arguments, after: Shape) -> int | None:
    """Two operands meet once for every value of all indices; the order of more is not known."""
    operands = next(iter(arguments.values()))
    shapes = [tuple(shape) for shape in (operands if isinstance(operands, list | tuple) else [operands])]
    terms = operation.subscripts.replace(" ", "").split("->")[0].split(",")
    if len(terms) != 2:
        return 0 if len(terms) == 1 else None
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(_letters(term, len(shape)), shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))  # an axis of 1 is broadcast
    return prod(sizes.values())


def _dot(operation: Any, arguments: Arguments, after: Shape) -> int:
    """The layer ``Dot``, which contracts an axis of each of its inputs, or ``keras.ops.dot``."""
    if "inputs" not in arguments:
        return _matmul(operation, arguments, after)
    return prod(after) * int(arguments["inputs"][0][_axes(operation.axes)[0]])


def _vdot(operation: Any, arguments: Arguments, after: Shape) -> int:
    return prod(_pair(arguments)[0])


# Attention ----------------------------------------------------------------------------------------------------------


def _multi_head(layer: Any, arguments: Arguments, after: Shape) -> int:
    """Four projections, and for every pair of positions a product of keys and one of values, in every head."""
    query, value = arguments["query"], arguments["value"]
    key = arguments.get("key") or value
    asked = prod(query[axis] for axis in layer._attention_axes)
    attended = prod(value[axis] for axis in layer._attention_axes)
    apart = prod(query[1:-1]) // asked
    pairs = apart * asked * attended * layer._num_heads
    return _projections(layer, query, key, value) + int(pairs * (layer._key_dim + layer._value_dim))


def _grouped_query(layer: Any, arguments: Arguments, after: Shape) -> int:
    query, value = arguments["query"], arguments["value"]
    key = arguments.get("key") or value
    pairs = query[1] * value[1] * layer.num_query_heads
    return _projections(layer, query, key, value) + int(pairs * 2 * layer.head_dim)


def _projections(layer: Any, query: Shape, key: Shape, value: Shape) -> int:
    denses = layer._query_dense, layer._key_dense, layer._value_dense, layer._output_dense
    return sum(
        prod(shape[1:-1]) * _size(dense.kernel) for shape, dense in zip((query, key, value, query), denses, strict=True)
    )


def _attention_layer(layer: Any, arguments: Arguments, after: Shape) -> int:
    query, value, *key = arguments["inputs"]
    return int(query[1] * value[1] * ((key[0] if key else value)[-1] + value[-1]))


def _attention(operation: Any, arguments: Arguments, after: Shape) -> int:
    query, value = arguments["query"], arguments["value"]
    return int(query[1] * value[1] * query[2] * (query[3] + value[3]))


# Recurrence and wrappers --------------------------------------------------------------------------------------------


def _recurrent(layer: Any, arguments: Arguments, after: Shape) -> int | None:
    """Every step multiplies the cell's input and its state."""
    before = _first((), arguments)
    cells = getattr(layer.cell, "cells", [layer.cell])
    return _sum(
        before[1] * (_size(cell.kernel) + _size(cell.recurrent_kernel))
        if type(cell).__name__ in _CELLS and is_library(type(cell))
        else None
        for cell in cells
    )


_CELLS = {"SimpleRNNCell", "LSTMCell", "GRUCell"}


def _recurrent_convolution(layer: Any, arguments: Arguments, after: Shape) -> int:
    """Both convolutions of a step run at the resolution of its output."""
    rank, steps = layer.cell.rank, _first((), arguments)[1]
    spatial = after[-rank:] if layer.cell.data_format == "channels_first" else after[-1 - rank : -1]
    return int(steps * prod(spatial) * (_size(layer.cell.kernel) + _size(layer.cell.recurrent_kernel)))


def _bidirectional(layer: Any, arguments: Arguments, after: Shape) -> int | None:
    before = _first((), arguments)
    return _sum(_macs(each, (before,), {}, after) for each in (layer.forward_layer, layer.backward_layer))


def _time_distributed(layer: Any, arguments: Arguments, after: Shape) -> int | None:
    before = _first((), arguments)
    once = _inner_macs(layer.layer, (1, *before[2:]), (1, *after[2:]))
    return None if once is None else before[1] * once


def _wrapped(layer: Any, arguments: Arguments, after: Shape) -> int | None:
    return _inner_macs(layer.layer, _first((), arguments), after)


def _inner_macs(layer: Any, before: Shape, after: Shape) -> int | None:
    """Count a layer inside another, which may be a model."""
    if not hasattr(layer, "_nodes_by_depth") and getattr(layer, "_functional", None) is None:
        return _macs(layer, (before,), {}, after)
    counted = count(layer, before[1:])
    return None if counted.uncounted else counted.macs


_COUNTERS: dict[str, Callable[[Any, Arguments, Shape], int | None]] = {
    "EinsumDense": _einsum_dense,
    "MultiHeadAttention": _multi_head,
    "GroupedQueryAttention": _grouped_query,
    **dict.fromkeys(("Attention", "AdditiveAttention"), _attention_layer),
    "DotProductAttention": _attention,
    **dict.fromkeys(("SimpleRNN", "LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"), _recurrent_convolution),
    "Bidirectional": _bidirectional,
    "TimeDistributed": _time_distributed,
    "SpectralNormalization": _wrapped,
    "Dot": _dot,
    "Vdot": _vdot,
    **dict.fromkeys(("Matmul", "Inner"), _matmul),
    "Tensordot": _tensordot,
    "Einsum": _einsum,
    **dict.fromkeys(("Conv", "DepthwiseConv", "SeparableConv"), _convolution),
    "ConvTranspose": _transposed,
}
