"""A Keras model as a flat list of calls, nested models inlined, and an interpreter for it.

Everything that must see inside a network (describing, recording, curvature, repair) walks this list; only this
file knows how Keras keeps its graph.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Call", "Graph", "Handler", "Slot", "feed", "flatten", "input_names", "input_structure", "is_graph", "run"]


@dataclass(frozen=True)
class Slot:
    """A value that flows between calls."""

    index: int


@dataclass(frozen=True)
class Call:
    """One call of one operation.

    path : ``outer/inner`` name of the layer (the same for every call of a shared layer).  operation : the Keras
    layer or operation.  args, kwargs : what it is called with, tensors replaced by `Slot`.
    inputs, outputs : slot numbers, flat, in order.
    """

    index: int
    path: str
    operation: Any
    args: Any
    kwargs: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """Calls in an order in which they can run; slots of the model's inputs and outputs, flat.

    shapes : static shape of every slot, batch axis first, ``None`` where unknown.
    """

    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes: dict[int, tuple[int | None, ...]]

    def last_use(self) -> dict[int, int]:
        """Return for each slot the index of the last call that reads it (a model output is never let go)."""
        last = {slot: call.index for call in self.calls for slot in call.inputs}
        return last | dict.fromkeys(self.outputs, len(self.calls))


Handler = Callable[[Call, tuple[Any, ...], dict[str, Any]], Any]


def flatten(model: Any) -> Graph:
    """Return the calls of a Functional or Sequential model, those of nested models in their place."""
    import keras

    calls: list[Call] = []
    shapes: dict[int, tuple[int | None, ...]] = {}

    def new_slot(tensor: Any) -> Slot:
        slot = Slot(len(shapes))
        shapes[slot.index] = tuple(tensor.shape)
        return slot

    def walk(model: Any, values: list[Slot], prefix: str) -> list[Slot]:
        function = model._functional if isinstance(model, keras.Sequential) else model
        known = {id(tensor): slot for tensor, slot in zip(function._inputs, values, strict=True)}
        for depth in sorted(function._nodes_by_depth, reverse=True):
            for node in function._nodes_by_depth[depth]:
                if node.is_input or any(id(x) not in known for x in node.input_tensors):
                    continue
                args, kwargs = node.arguments.fill_in(known)
                inputs = [known[id(x)] for x in node.input_tensors]
                path = prefix + node.operation.name
                if isinstance(node.operation, keras.Sequential | keras.models.Model) and is_graph(node.operation):
                    outputs = walk(node.operation, inputs, path + "/")
                else:
                    outputs = [new_slot(x) for x in node.outputs]
                    numbers = (tuple(s.index for s in slots) for slots in (inputs, outputs))
                    args = _written_out(args, shapes) if is_index(node.operation) else args
                    calls.append(Call(len(calls), path, node.operation, args, kwargs, *numbers))
                known.update((id(x), slot) for x, slot in zip(node.outputs, outputs, strict=True))
        return [known[id(x)] for x in function._outputs]

    inputs = [new_slot(x) for x in model.inputs]
    outputs = walk(model, inputs, "")
    return Graph(tuple(calls), tuple(s.index for s in inputs), tuple(s.index for s in outputs), shapes)


def is_index(operation: Any) -> bool:
    """Return whether an operation takes a part of a tensor: ``x[…]``."""
    return type(operation).__name__ == "GetItem" and type(operation).__module__.startswith("keras.")


def _written_out(args: Any, shapes: Mapping[int, Sequence[int | None]]) -> Any:
    """Write an ellipsis in an index as the slices that it stands for: an HDF5 file cannot hold it."""
    if len(args) != 2 or not isinstance(args[0], Slot):
        return args
    index = tuple(args[1]) if isinstance(args[1], list | tuple) else (args[1],)
    places = [place for place, item in enumerate(index) if item is Ellipsis]
    if places:
        taken = sum(item is not None for item in index) - 1  # by all but the ellipsis and new axes
        whole = (slice(None),) * (len(shapes[args[0].index]) - taken)
        index = index[: places[0]] + whole + index[places[0] + 1 :]
    return (args[0], index)


def input_structure(model: Any) -> Any:
    """Return the model's symbolic inputs in the structure it takes: a tensor, a list or a dictionary."""
    import keras

    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def input_names(model: Any) -> list[str]:
    """Return what a model's inputs are called, in order."""
    import keras

    structure = input_structure(model)
    if isinstance(structure, dict):
        return [str(name) for name in keras.tree.flatten({name: name for name in structure})]
    return [str(tensor.name) for tensor in model.inputs]


def feed(graph: Graph, batch: Any) -> dict[int, Any]:
    """Return the values that a run of the graph starts from: a batch, of several inputs a tuple of them."""
    return dict(zip(graph.inputs, batch if isinstance(batch, tuple) else (batch,), strict=True))


def is_graph(operation: Any) -> bool:
    """Whether a model has a graph to walk or to inline (a subclassed one has none)."""
    return hasattr(operation, "_nodes_by_depth") or getattr(operation, "_functional", None) is not None


def run(
    graph: Graph,
    values: dict[int, Any],
    handler: Handler | None = None,
    calls: Iterable[Call] | None = None,
    keep: Collection[int] | None = None,
) -> dict[int, Any]:
    """Run `calls` (default: all) on `values` and return `values`, filled in; inference mode.

    `handler(call, args, kwargs)` makes a call's outputs in place of the operation itself. Works on eager tensors,
    inside a ``tf.function`` and on Keras' symbolic tensors alike.
    keep : slots whose values are asked for; any other is dropped as soon as none of these calls reads it. All by
    default.
    """
    import keras

    calls = list(graph.calls if calls is None else calls)
    dead = {} if keep is None else _last_reads(calls, values, keep)
    for call in calls:
        args, kwargs = keras.tree.map_structure(
            lambda x: values[x.index] if isinstance(x, Slot) else x, (call.args, call.kwargs)
        )
        outputs = handler(call, args, kwargs) if handler else call.operation(*args, **kwargs)
        values.update(zip(call.outputs, keras.tree.flatten(outputs), strict=True))
        del args, kwargs, outputs  # else they would live on while the next call runs
        for slot in dead.get(call.index, ()):
            del values[slot]
    return values


def _last_reads(calls: Sequence[Call], values: Iterable[int], keep: Collection[int]) -> dict[int, list[int]]:
    """By the index of a call, the slots that nobody reads once it has run."""
    last = {slot: call.index for call in calls for slot in (*call.outputs, *call.inputs)}
    dead: dict[int, list[int]] = {}
    for slot in {*values, *last}.difference(keep):
        dead.setdefault(last.get(slot, calls[0].index), []).append(slot)
    return dead
