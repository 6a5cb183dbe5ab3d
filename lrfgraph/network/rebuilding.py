"""A configuration turned into a model of plain Keras layers, everything it does not name untouched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lrfgraph.errors import LayerError
from lrfgraph.network.graph import flatten
from lrfgraph.network.keras_layers import Chain, Replacement, make_layers

__all__ = ["Chain", "rebuild", "rebuild_fresh"]


def rebuild(model: Any, chains: Mapping[str, Chain]) -> Any:
    """Return a new model in which every layer that `chains` names (by its path) is its chain.

    Nested models stay nested, shared layers shared, inputs and outputs keep their structure.  Raises LayerError where
    a path is unknown or a chain does not fit its layer.
    """
    rebuilt, cloner = _cloned(model, chains)
    cloner.fill()
    return rebuilt


def rebuild_fresh(model: Any, chains: Mapping[str, Chain]) -> tuple[Any, dict[str, tuple[Any, ...]]]:
    """Return the same without the weights, which are fresh, and by path the layers that stand in for each layer."""
    rebuilt, cloner = _cloned(model, chains)
    return rebuilt, {call.path: cloner.stand_ins(call.operation) for call in flatten(model).calls}


def _cloned(model: Any, chains: Mapping[str, Chain]) -> tuple[Any, _Cloner]:
    graph = flatten(model)
    paths = {call.path: call.operation for call in graph.calls}
    unknown = [path for path in chains if path not in paths]
    if unknown:
        raise LayerError(f"{unknown[0]}: the model has no such layer; choose from {', '.join(list(paths)[:8])} …")
    names = {name for path in paths for name in path.split("/")}
    replacements = {}
    for path, chain in chains.items():
        operation = paths[path]
        shape = next(graph.shapes[c.inputs[0]] for c in graph.calls if c.operation is operation)
        replacements[id(operation)] = make_layers(operation, chain, shape, names)
    cloner = _Cloner(replacements)
    return cloner.clone(model), cloner


class _Cloner:
    """Clones graphs of layers, each layer once however often it is used, and fills the clones with weights."""

    def __init__(self, replacements: Mapping[int, Replacement]) -> None:
        self.replacements = replacements
        self.clones: dict[int, Any] = {}
        self.pairs: list[tuple[Any, Any]] = []

    def clone(self, model: Any) -> Any:
        import keras

        if isinstance(model, keras.Sequential):
            return self._sequential(model)
        rebuilt = keras.models.clone_model(model, call_function=_call, clone_function=self.operation)
        rebuilt.trainable = model.trainable if not model.trainable else rebuilt.trainable
        return rebuilt

    def _sequential(self, model: Any) -> Any:
        import keras

        layers: list[Any] = []
        first = model._layers[0]
        if isinstance(first, keras.layers.InputLayer):
            layers.append(keras.Input(batch_shape=first.batch_shape, dtype=first.dtype, name=first.name))
        for layer in model.layers:
            clone = self.operation(layer)
            layers += clone.layers if isinstance(clone, Replacement) else [clone]
        rebuilt = keras.Sequential(layers, name=model.name)
        if not rebuilt.built:
            rebuilt.build(model.input_shape)
        return rebuilt

    def operation(self, operation: Any) -> Any:
        import keras

        key = id(operation)
        if key in self.replacements:
            return self.replacements[key]
        if key not in self.clones:
            if isinstance(operation, keras.Sequential) or hasattr(operation, "_nodes_by_depth"):
                self.clones[key] = self.clone(operation)
            else:
                self.clones[key] = type(operation).from_config(operation.get_config())
                self.pairs.append((operation, self.clones[key]))
        return self.clones[key]

    def stand_ins(self, operation: Any) -> tuple[Any, ...]:
        """The layers in place of one: its chain, or its clone alone."""
        clone = self.operation(operation)
        return clone.layers if isinstance(clone, Replacement) else (clone,)

    def fill(self) -> None:
        for old, new in self.pairs:
            for source, target in zip(getattr(old, "variables", ()), getattr(new, "variables", ()), strict=True):
                target.assign(source)
        for replacement in self.replacements.values():
            for layer, weights in zip(replacement.layers, replacement.weights, strict=True):
                if weights:
                    layer.set_weights(weights)


def _call(operation: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(operation, Replacement):
        return operation(*args, **kwargs)
    value = args[0] if args else kwargs["inputs"]
    for layer in operation.layers:
        value = layer(value)
    return value
