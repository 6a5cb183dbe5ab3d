"""How channels pass through layers that have a kernel: which it reads, which are new, and which weights carry them."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import numpy as np

from lrfgraph.network.graph import Call
from lrfgraph.network.pruning.walking import Axes, Rule, Walk
from lrfgraph.network.sources import is_library
from lrfgraph.pruning.channels import Kernel, Numbers

__all__ = ["across", "channel_axis", "convolution", "dense", "depthwise", "separable", "transposed"]

ACROSS = {"softmax", "log_softmax", "sparsemax", "glu"}
"""Activations in which a channel's value depends on the others."""


def channel_axis(walk: Walk, call: Call) -> int:
    """Return the axis on which a layer has its input's channels."""
    first = getattr(call.operation, "data_format", None) == "channels_first"
    return 1 if first else len(walk.shapes[call.inputs[0]]) - 1


def convolution(walk: Walk, call: Call, inwards: int = -2, outwards: int = -1) -> None:
    layer, axis = call.operation, channel_axis(walk, call)
    walk.keep(call, "runs along this axis", lambda other: other != axis)
    inputs, groups = walk.numbers(call.inputs[0], axis), getattr(layer, "groups", 1)
    count = layer.filters // groups
    per_group = inputs.reshape(groups, -1)
    axes: Axes
    if groups > 1 and per_group.shape[1] == 1:  # every channel is filtered for itself
        outputs = np.repeat(inputs, count)
        walk.set(call, "groups", inputs)
        axes = {outwards: outputs}
        kernel = Kernel(call.path, None, outputs.reshape(groups, count))
    else:  # groups stay equally wide: what leaves one leaves all at the same place
        for other in per_group[1:]:
            walk.channels.join(per_group[0], other)
        outputs = np.tile(_outputs(walk, call, count), groups)
        axes = {inwards: per_group[0], outwards: outputs}
        kernel = Kernel(call.path, per_group, outputs.reshape(groups, count))
    walk.kernels.setdefault(id(layer), kernel)
    walk.carry(call, layer.kernel, axes, walk.macs(call))
    _finish_kernel(walk, call, outputs, "filters", {axis: outputs})


def _outputs(walk: Walk, call: Call, count: int) -> Numbers:
    """New channels; of a layer that was called before, those it had then."""
    earlier = walk.kernels.get(id(call.operation))
    return walk.channels.new(count) if earlier is None else earlier.outputs[0]


def _finish_kernel(walk: Walk, call: Call, outputs: Numbers, key: str, axes: Axes) -> None:
    """Bias and configuration of a layer with a kernel, and what its own activation does to its channels."""
    layer = call.operation
    walk.set(call, key, outputs)
    if getattr(layer, "bias", None) is not None:
        walk.carry(call, layer.bias, {0: outputs})
    reason = across(layer.activation)
    if reason:
        walk.channels.keep(outputs, f"{call.path}: {reason}")
    walk.write(call, axes)


def across(activation: Any) -> str:
    """Say that an activation does not act on every value for itself, or return ``""``."""
    import keras

    name = keras.activations.serialize(activation)
    if not isinstance(name, str) or not is_library(activation):
        return "its activation is not Keras' own"
    return f"{name} runs over all of them" if name in ACROSS else ""


def depthwise(walk: Walk, call: Call) -> None:
    layer, axis = call.operation, channel_axis(walk, call)
    walk.keep(call, "runs along this axis", lambda other: other != axis)
    inputs = walk.numbers(call.inputs[0], axis)
    outputs = np.repeat(inputs, layer.depth_multiplier)
    walk.kernels.setdefault(id(layer), Kernel(call.path, None, outputs.reshape(len(inputs), -1)))
    walk.carry(call, layer.kernel, {-2: inputs}, walk.macs(call))
    if layer.bias is not None:
        walk.carry(call, layer.bias, {0: outputs})
    reason = across(layer.activation)
    if reason:
        walk.channels.keep(outputs, f"{call.path}: {reason}")
    walk.write(call, {axis: outputs})


def separable(walk: Walk, call: Call) -> None:
    layer, axis = call.operation, channel_axis(walk, call)
    walk.keep(call, "runs along this axis", lambda other: other != axis)
    inputs = walk.numbers(call.inputs[0], axis)
    between, outputs = np.repeat(inputs, layer.depth_multiplier), _outputs(walk, call, layer.filters)
    walk.kernels.setdefault(id(layer), Kernel(call.path, between[None], outputs[None]))
    sizes = [prod(variable.shape) for variable in (layer.depthwise_kernel, layer.pointwise_kernel)]
    positions = walk.macs(call) // sum(sizes)
    walk.carry(call, layer.depthwise_kernel, {-2: inputs}, positions * sizes[0])
    walk.carry(call, layer.pointwise_kernel, {-2: between, -1: outputs}, positions * sizes[1])
    _finish_kernel(walk, call, outputs, "filters", {axis: outputs})


def dense(walk: Walk, call: Call) -> None:
    layer, last = call.operation, len(walk.shapes[call.inputs[0]]) - 1
    inputs, outputs = walk.numbers(call.inputs[0], last), _outputs(walk, call, layer.units)
    walk.kernels.setdefault(id(layer), Kernel(call.path, inputs[None], outputs[None]))
    walk.carry(call, layer.kernel, {0: inputs, 1: outputs}, walk.macs(call))
    others = {axis: numbers for axis, numbers in walk.known(call.inputs[0]).items() if axis != last}
    _finish_kernel(walk, call, outputs, "units", {**others, last: outputs})


transposed: Rule = partial(convolution, inwards=-1, outwards=-2)
