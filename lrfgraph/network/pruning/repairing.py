"""Repair of a pruned network: every layer refitted, in order, to what it now receives (METHODS §5.6).

The original network and its narrower twin are run side by side, call by call. Where a layer of the twin receives
something else than the original's, its kernel and bias are solved for so that it gives the original's outputs on the
channels that are left: the solver, its targets behind a residual addition and its rounds behind a ReLU are repair's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np

from lrfgraph.layers.pieces import whole
from lrfgraph.layers.spec import Array, LayerSpec
from lrfgraph.methods.refit import refit
from lrfgraph.network.describing import describe
from lrfgraph.network.graph import Call, Graph, feed, run
from lrfgraph.network.operations import exchange_weights, kernel_variable
from lrfgraph.network.pruning.narrowing import Narrower
from lrfgraph.network.pruning.walking import Walk
from lrfgraph.network.repair.fit import FitOptions, Refit, Substitute, refit_layer
from lrfgraph.network.repair.streams import BATCH
from lrfgraph.pruning.channels import Kernel

__all__ = ["Repair", "repair"]

LIVE_BYTES = 2_000_000_000
"""Bytes that the live values of both networks may take."""

INPUT = -1
"""The slot under which a layer finds its own input: the original's is wider than that which a shortcut compares."""


@dataclass(frozen=True)
class Repair:
    """model : the repaired network.  errors : by layer of the original, the held-out error before and after.
    images : that it was made from."""

    model: Any
    errors: dict[str, tuple[float, float]]
    images: int


def repair(
    model: Any,
    walk: Walk,
    removed: Iterable[int],
    refits: Mapping[str, Mapping[str, Array]],
    images: Any,
    options: FitOptions,
    curvatures: Mapping[str, Array] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Repair:
    """Return the narrower model, repaired.

    refits : of `narrow`, for layers that cannot be refitted to what they receive.  images : (n, …), array-like; as
    many as keep live values within `LIVE_BYTES` are used, whatever the machine: the result depends on them.
    curvatures : by path, the Fisher factor of the layer's output gradient.  Eight parameters: what is pruned, what it
    is repaired from, and how.
    """
    narrower = Narrower(walk, removed, {})
    small = narrower.build(model)
    size = walk.shapes[walk.graph.inputs[0]][1:]
    twins = _Twins(narrower, {layer.name: layer for layer in describe(small, size).layers})
    twins.assign({path: refits[path] for path in refits if path not in twins.refittable})
    count = min(len(images), max(LIVE_BYTES // _bytes_per_image(walk), 1))
    stream = _Streams(walk.graph, twins.graph, images[:count])
    errors: dict[str, tuple[float, float]] = {}
    for place, (call, own) in enumerate(zip(walk.graph.calls, twins.graph.calls, strict=True)):
        if call.path in twins.refittable and stream.differs(call):
            fitted = _refit(twins, stream, call, own, options, (curvatures or {}).get(call.path))
            errors[call.path] = fitted.before, fitted.after
        stream.advance(call, own)
        if progress:
            progress(place + 1, len(walk.graph.calls), "calls")
    return Repair(small, errors, count)


def _bytes_per_image(walk: Walk) -> int:
    """Bytes of what is alive at the widest place of both networks, for one image."""
    last, alive, most = walk.graph.last_use(), set(walk.graph.inputs), 1
    size = {slot: 4 * prod(shape[1:]) for slot, shape in walk.shapes.items()}
    for call in walk.graph.calls:
        alive |= set(call.outputs)
        most = max(most, sum(size[slot] for slot in alive))
        alive = {slot for slot in alive if last.get(slot, -1) > call.index}
    return 2 * most


class _Twins:
    """The narrower network as the same calls with the same slots.

    refittable : paths of the original's layers that can be refitted to what they receive.
    """

    def __init__(self, narrower: Narrower, specs: Mapping[str, LayerSpec]) -> None:
        self.narrower, walk = narrower, narrower.walk
        calls = [self._own(call) for call in walk.graph.calls]
        self.graph = replace(walk.graph, calls=tuple(calls))
        times: dict[int, int] = {}
        for call in walk.graph.calls:
            times[id(call.operation)] = times.get(id(call.operation), 0) + 1
        self.specs = {call.path: specs[own.path] for call, own in zip(walk.graph.calls, calls, strict=True)}
        self.refittable = {
            call.path
            for call in walk.graph.calls
            if times[id(call.operation)] == 1
            and self.specs[call.path].kind
            and not self.specs[call.path].kept
            and not self.specs[call.path].unrefittable
            and not self.specs[call.path].family.depthwise
        }

    def _own(self, call: Call) -> Call:
        twin = self.narrower.twins[id(call.operation)][2]
        return replace(call, operation=twin, path=twin.name)

    def kernel(self, call: Call) -> Kernel:
        return self.narrower.walk.kernels[id(call.operation)]

    def assign(self, refits: Mapping[str, Mapping[str, Array]]) -> None:
        """Give layers other weights, in the original's shapes."""
        for path, operation, twin in self.narrower.twins.values():
            carried = self.narrower.walk.weights(operation)
            for number, variable in enumerate(getattr(twin, "weights", ()) if path in refits else ()):
                if variable.name in refits[path]:
                    value = refits[path][variable.name]
                    for axis, numbers in carried[number].axes.items():
                        value = np.compress(self.narrower.kept(numbers), value, axis)
                    variable.assign(value)

    def normalization(self, spec: LayerSpec) -> Any:
        """Return the twin of the BatchNormalization behind a layer."""
        return next(call.operation for call in self.graph.calls if call.path == spec.batchnorm)


class _Streams:
    """Values of both networks by slot, the original's first, as far as they are alive."""

    def __init__(self, graph: Graph, own: Graph, images: Any) -> None:
        self.graphs, self.uses = (graph, own), graph.last_use()
        self.values: dict[int, tuple[Array, Array]] = {slot: (x, x) for slot, x in feed(graph, images).items()}

    def differs(self, call: Call) -> bool:
        return any(self.values[slot][0] is not self.values[slot][1] for slot in call.inputs)

    def advance(self, call: Call, own: Call) -> None:
        """Run one call in both networks and drop what nobody reads any more."""
        pair = [self._run(self.graphs[which], each, which) for which, each in enumerate((call, own))]
        for place, slot in enumerate(call.outputs):
            first, second = pair[0][place], pair[1][place]
            same = first.shape == second.shape and not self.differs(call) and np.array_equal(first, second)
            self.values[slot] = (first, first) if same else (first, second)
        for slot in {*call.inputs, *call.outputs}:
            if self.uses.get(slot, -1) <= call.index:
                self.values.pop(slot, None)

    def _run(self, graph: Graph, call: Call, which: int) -> list[Array]:
        parts: list[list[Array]] = [[] for _ in call.outputs]
        count = len(self.values[call.inputs[0]][which]) if call.inputs else 0
        for start in range(0, count, BATCH):
            values: dict[int, Any] = {slot: self.values[slot][which][start : start + BATCH] for slot in call.inputs}
            run(graph, values, calls=[call])
            for part, slot in zip(parts, call.outputs, strict=True):
                part.append(np.asarray(values[slot]))
        return [np.concatenate(part) for part in parts]


def _refit(
    twins: _Twins, stream: _Streams, call: Call, own: Call, options: FitOptions, curvature: Array | None
) -> Refit:
    """Refit one layer and assign what comes out."""
    kernel, spec, narrower = twins.kernel(call), twins.specs[call.path], twins.narrower
    original, received = stream.values[call.inputs[0]]
    if kernel.inputs is None:  # every channel for itself: those that are left do what they did
        teacher, original = own.operation, _left(narrower, call.inputs[0], original)
    else:
        teacher = _teacher(narrower, call.operation)
    view: dict[int, tuple[Array, Array]] = {
        slot: (_left(narrower, slot, pair[0]), pair[1]) for slot, pair in _beside(twins.graph, call, stream)
    }
    view[INPUT] = original, received
    weights = np.asarray(kernel_variable(own.operation))
    canonical = spec.family.order.canonical(weights, getattr(own.operation, "groups", 1))
    substitute = Substitute(spec, (whole(spec),), (canonical,), _left_curvature(narrower, kernel, curvature))
    place = replace(own, operation=teacher, inputs=(INPUT,))
    fitted = refit_layer(twins.graph, place, substitute, _View(view), partial(refit, steps=1), options)
    bias = fitted.bias
    if bias is not None and not spec.bias:
        twins.normalization(spec).moving_mean.assign_sub(bias)
        bias = None
    exchange_weights(own.operation, spec.family.order.native(fitted.weights[0]), bias)
    return fitted


@dataclass(frozen=True)
class _View:
    """Both streams' values by slot, as a refit asks for them (`repair.fit.Activations`)."""

    values: dict[int, tuple[Array, Array]]

    @property
    def count(self) -> int:
        return len(self.values[INPUT][0])

    @property
    def slots(self) -> frozenset[int]:
        return frozenset(self.values)

    def batches(self, slots: Sequence[int]) -> Iterator[tuple[int, int, dict[int, tuple[Array, Array]]]]:
        for start in range(0, self.count, BATCH):
            stop = min(start + BATCH, self.count)
            pairs = {slot: self.values[slot] for slot in slots}
            yield (
                start,
                stop,
                {slot: (first[start:stop], second[start:stop]) for slot, (first, second) in pairs.items()},
            )


def _beside(graph: Graph, call: Call, stream: _Streams) -> Iterator[tuple[int, tuple[Array, Array]]]:
    """Values that an addition behind the layer may read besides: those of the layer's own output's shape."""
    for slot, pair in stream.values.items():
        if graph.shapes[slot] == graph.shapes[call.outputs[0]]:
            yield slot, pair


def _left(narrower: Narrower, slot: int, value: Array) -> Array:
    """The original's value on the channels that are left."""
    for axis, numbers in narrower.walk.known(slot).items():
        kept = narrower.kept(numbers)
        value = value if kept.all() else np.compress(kept, value, axis)
    return value


def _left_curvature(narrower: Narrower, kernel: Kernel, curvature: Array | None) -> Array | None:
    if curvature is None:
        return None
    kept = [narrower.kept(numbers) for numbers in kernel.outputs]
    return np.stack([each[np.ix_(own, own)] for each, own in zip(curvature, kept, strict=True) if own.any()])


def _teacher(narrower: Narrower, operation: Any) -> Any:
    """The original layer with all its inputs, and those of its outputs that are left."""
    carried = {id(operation.weights[number]): weight for number, weight in narrower.walk.weights(operation).items()}
    kernel = carried[id(kernel_variable(operation))]
    outputs = kernel.axes[len(kernel.shape) - 1]  # of all layers that can be refitted, the last axis
    kept = narrower.kept(outputs)
    config = operation.get_config()
    config["filters" if "filters" in config else "units"] = int(np.count_nonzero(kept))
    teacher = type(operation).from_config(config)
    call = next(call for call in narrower.walk.graph.calls if call.operation is operation)
    teacher.build((None, *narrower.walk.shapes[call.inputs[0]][1:]))
    for variable, value in zip(teacher.weights, operation.weights, strict=True):
        variable.assign(np.compress(kept, np.asarray(value), len(value.shape) - 1))
    return teacher
