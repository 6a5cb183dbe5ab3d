"""A network whose layers are dense or two factors: plain Keras layers whose kernels come from U, s, V at every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrfgraph.layers.spec import Array
from lrfgraph.methods import METHODS
from lrfgraph.network.graph import flatten
from lrfgraph.network.operations import depthwise_variable, kernel_variable
from lrfgraph.network.rebuilding import Chain, rebuild_fresh
from lrfgraph.selection.shrinking import Form

__all__ = ["Student", "others_of", "values_of"]


class Student:
    """A model of the original's architecture with some layers in other forms.

    model : the Keras model.  kernels : per form, the layers whose kernels its factors make.
    others : every other variable, in an order that no form changes: the original's.  trainable : those that learn.
    moving : those that do not.
    """

    def __init__(self, original: Any, forms: Sequence[Form], fixed_statistics: bool = False) -> None:
        chains = {form.layer.name: _chain(form) for form in forms if not form.dense}
        self.forms = list(forms)
        self.model, stand_ins = rebuild_fresh(original, chains)
        self._flags = [(layer, layer.trainable) for layer in self.model._flatten_layers()]
        for layer, _ in self._flags:
            layer.trainable = True  # frozen layers learn, too
        named = {form.layer.name for form in forms}
        self.kernels = [stand_ins[form.layer.name] for form in forms]
        self.others, seen = [], set()
        for call in flatten(original).calls:
            if id(call.operation) not in seen:
                seen.add(id(call.operation))
                self.others += _others(call.operation, stand_ins[call.path], call.path in named)
        self.trainable = [variable for variable in self.others if variable.trainable]
        self.moving = [variable for variable in self.others if not variable.trainable]
        if fixed_statistics:
            for layer in self.model._flatten_layers():
                if type(layer).__name__ == "BatchNormalization":
                    layer.trainable = False  # inference mode; its scale and shift are learned all the same

    @property
    def kernel_variables(self) -> list[Any]:
        """The variables that the factors' kernels take the place of."""
        return [kernel_variable(layer) for layers in self.kernels for layer in layers]

    @property
    def seeds(self) -> list[Any]:
        return [variable for variable in self.others if "seed_generator" in variable.path]

    def finish(self) -> Any:
        """Return the model, its layers as frozen as the original's."""
        for layer, flag in self._flags:  # outer ones first: a flag is handed down
            layer.trainable = flag
        return self.model

    def assign(self, values: Sequence[Array]) -> None:
        """Set all other variables."""
        for variable, value in zip(self.others, values, strict=True):
            variable.assign(value)


def _chain(form: Form) -> Chain:
    pieces = METHODS[form.method].pieces(form.layer, (form.rank,))
    return Chain(form.method, pieces, tuple(np.zeros(piece.shape, np.float32) for piece in pieces))


def _others(operation: Any, layers: tuple[Any, ...], factorized: bool) -> list[Any]:
    """The variables of a layer's stand-ins but for kernels that factors make, in the order of the layer's own."""
    if not factorized:
        return list(getattr(layers[0], "variables", ()))
    depthwise = depthwise_variable(operation)
    others = [] if depthwise is None else [depthwise_variable(layers[0])]
    return others + ([layers[-1].bias] if operation.use_bias else [])


def values_of(variables: Sequence[Any]) -> list[Array]:
    """Return variables as arrays."""
    import keras

    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def others_of(model: Any, forms: Sequence[Form]) -> list[Array]:
    """Return the values of `Student.others` in a model of the original's own layers."""
    named: Mapping[str, Form] = {form.layer.name: form for form in forms}
    others, seen = [], set()
    for call in flatten(model).calls:
        if id(call.operation) not in seen:
            seen.add(id(call.operation))
            others += _others(call.operation, (call.operation,), call.path in named)
    return values_of(others)


def fresh(model: Any, seed: int) -> Any:
    """Return a model of the same architecture whose weights are drawn anew by its initializers."""
    import keras

    keras.utils.set_random_seed(seed)
    return rebuild_fresh(model, {})[0]
