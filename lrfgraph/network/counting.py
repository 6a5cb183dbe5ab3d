"""Parameters and multiply–accumulates counted on a Keras model as it stands, whatever a plan declared."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from lrfgraph.layers.kinds import KINDS_BY_CLASS, Family
from lrfgraph.layers.pieces import Cost
from lrfgraph.network.graph import Call, Graph, flatten, run

__all__ = ["ASSUMED_SIZE", "count", "operation_macs", "static_shapes"]

Shape = tuple[int, ...]
ASSUMED_SIZE = 64  # of a spatial axis whose length the model leaves open


def count(model: Any, image_shape: Shape | None = None) -> Cost:
    """Count all parameters of a model and the MACs of one input: convolutions, dense and einsum layers."""
    graph = flatten(model)
    shapes = static_shapes(graph, model, image_shape)
    macs = sum(operation_macs(c, shapes[c.inputs[0]], shapes[c.outputs[0]]) for c in graph.calls if c.inputs)
    return Cost(int(model.count_params()), macs)


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


def operation_macs(call: Call, before: Shape, after: Shape) -> int:
    """Count one call from its layer's weights and the shapes around it; 0 for what multiplies no kernel."""
    class_name = type(call.operation).__name__
    if class_name in KINDS_BY_CLASS:
        return _kernel_macs(KINDS_BY_CLASS[class_name].family, call.operation, before, after)
    counter = _COUNTERS.get(class_name)
    return counter(call.operation, before, after) if counter else 0


def _kernel_macs(family: Family, layer: Any, before: Shape, after: Shape) -> int:
    """Count a layer that applies its kernels once at every position."""
    shape = before if family.positions == "inputs" else after
    positions = shape[2:] if getattr(layer, "data_format", "") == "channels_first" else shape[1:-1]
    kernels = [getattr(layer, name) for name in (family.kernel, family.depthwise) if name]
    return prod(positions) * sum(_size(kernel) for kernel in kernels)


def _size(kernel: Any) -> int:
    return int(prod(kernel.shape))


def _einsum(layer: Any, before: Shape, after: Shape) -> int:
    terms = layer.equation.replace(" ", "").split("->")[0]
    inputs, kernel = terms.split(",")
    head, _, tail = inputs.partition("...")
    elided = len(before) - len(head) - len(tail)
    letters = [*head, *[""] * elided, *tail]
    # axes of the input that the kernel does not have: it is multiplied once for each of their positions
    free = [size for letter, size in zip(letters[1:], before[1:], strict=True) if not letter or letter not in kernel]
    return prod(free) * _size(layer.kernel)


_COUNTERS: dict[str, Callable[[Any, Shape, Shape], int]] = {"EinsumDense": _einsum}
