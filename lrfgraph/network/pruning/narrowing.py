"""Channels removed for real: a new model whose layers are narrower and of the same plain Keras classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfgraph.errors import ModelError
from lrfgraph.layers.spec import Array
from lrfgraph.network.graph import Call, feed, input_structure, run
from lrfgraph.network.pruning.walking import Setting, Walk
from lrfgraph.pruning.channels import Numbers

__all__ = ["Narrower", "masked_outputs", "narrow"]


def narrow(
    model: Any, walk: Walk, removed: Iterable[int], refits: Mapping[str, Mapping[str, Array]] | None = None
) -> Any:
    """Return a new model without some channels of `walk`, which is that of `model`.

    Nested models are inlined, ``outer/inner`` becomes ``outer_inner``; shared layers stay shared, inputs and outputs
    keep their structure.  refits : by path, weights by name, in the original's shapes, that take the place of
    the layer's own before its channels are removed.
    """
    return Narrower(walk, removed, refits or {}).build(model)


class Narrower:
    """Makes a narrower twin of every operation, once however often it is called, and fills it with weights.

    twins : by the original's id, its path, itself and its twin.
    """

    def __init__(self, walk: Walk, removed: Iterable[int], refits: Mapping[str, Mapping[str, Array]]) -> None:
        self.walk, self.refits = walk, refits
        self.gone = walk.channels.roots(np.fromiter(removed, np.int64))
        self.twins: dict[int, tuple[str, Any, Any]] = {}
        self.names: set[str] = {call.path for call in walk.graph.calls if "/" not in call.path}

    def build(self, model: Any) -> Any:
        """Return the narrower model; see `narrow`."""
        import keras

        inputs = [
            keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name.partition("/")[0])
            for tensor in model.inputs
        ]
        values = run(self.walk.graph, dict(zip(self.walk.graph.inputs, inputs, strict=True)), self._call)
        self._fill()
        outputs = [values[slot] for slot in self.walk.graph.outputs]
        structure = model.outputs[0] if isinstance(model, keras.Sequential) else model.output
        return keras.Model(
            keras.tree.pack_sequence_as(input_structure(model), inputs),
            keras.tree.pack_sequence_as(structure, outputs),
            name=model.name,
        )

    def kept(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Say which positions of an axis stay."""
        return np.asarray(~np.isin(self.walk.channels.roots(numbers), self.gone))

    def _call(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = id(call.operation)
        if key not in self.twins:
            self.twins[key] = call.path, call.operation, self._twin(call)
        return self.twins[key][2](*args, **kwargs)

    def _twin(self, call: Call) -> Any:
        config = call.operation.get_config()
        for setting in self.walk.settings.get(id(call.operation), ()):
            self._set(config, setting)
        twin = type(call.operation).from_config(config)
        if "/" in call.path:
            name = call.path.replace("/", "_")
            while name in self.names:
                name += "_"
            self.names.add(name)
            twin.name = name
        return twin

    def _set(self, config: dict[str, Any], setting: Setting) -> None:
        count = int(np.count_nonzero(self.kept(setting.numbers)))
        if setting.index is None:
            config[setting.key] = count
        else:
            sizes = list(config[setting.key])
            sizes[setting.index] = count
            config[setting.key] = tuple(sizes)

    def _fill(self) -> None:
        for path, operation, twin in self.twins.values():
            carried = self.walk.weights(operation)
            pairs = zip(getattr(operation, "variables", ()), getattr(twin, "variables", ()), strict=True)
            numbers = {id(variable): number for number, variable in enumerate(getattr(operation, "weights", ()))}
            for source, target in pairs:
                value = self.refits.get(path, {}).get(source.name, np.asarray(source))
                weight = carried.get(numbers.get(id(source), -1))
                for axis, channels in weight.axes.items() if weight else ():
                    value = np.compress(self.kept(channels), value, axis)
                if tuple(value.shape) != tuple(target.shape):
                    raise ModelError(
                        f"{path}: {source.name} would be {value.shape}, its layer has {tuple(target.shape)}; "
                        "leave the layer out with prune.skip, and please report this"
                    )
                target.assign(value)


def masked_outputs(walk: Walk, removed: Iterable[int], batch: Any) -> list[Any]:
    """Return the original's outputs where no sum reads a removed channel: what `narrow` must agree with."""
    import keras

    gone = walk.channels.roots(np.fromiter(removed, np.int64))
    summing = {operation for operation, kernel in walk.kernels.items() if kernel.inputs is not None}

    def call_masked(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if id(call.operation) in summing:
            x = args[0]
            for axis, numbers in walk.known(call.inputs[0]).items():
                along = [-1 if place == axis else 1 for place in range(len(x.shape))]
                alive = ~np.isin(walk.channels.roots(numbers), gone)
                x = x * keras.ops.cast(alive.reshape(along), x.dtype)
            args = (x, *args[1:])
        return call.operation(*args, **kwargs)

    values = run(walk.graph, feed(walk.graph, batch), call_masked)
    return [values[slot] for slot in walk.graph.outputs]
