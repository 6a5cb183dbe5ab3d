"""RULES: how the channels of an operation's inputs become those of its outputs, by its class.

An operation that the table does not have, or that is not Keras' own, keeps the channels around it, and says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lrfgraph.network.graph import Call
from lrfgraph.network.pruning.kernels import (
    across,
    channel_axis,
    convolution,
    dense,
    depthwise,
    separable,
    transposed,
)
from lrfgraph.network.pruning.walking import Axes, Rule, Walk
from lrfgraph.network.sources import is_library

__all__ = ["RULES", "rule_of"]


def rule_of(call: Call) -> tuple[Rule | None, str]:
    """Return the rule of a call, or ``None`` and why there is none."""
    operation = call.operation
    name = type(operation).__name__
    if not is_library(type(operation)):
        return None, f"{name} is not Keras' own"
    if getattr(operation, "quantization_mode", None) or getattr(operation, "lora_enabled", False):
        return None, f"{name} is quantized or has LoRA weights"
    if len(call.outputs) != 1 or not call.inputs:
        return None, f"{name} has {len(call.outputs)} outputs here"
    return RULES.get(name), f"{name} is not followed"


# Normalizations and scales ------------------------------------------------------------------------------------------


def _batch_normalization(walk: Walk, call: Call) -> None:
    layer, slot = call.operation, call.inputs[0]
    axis = layer.axis % len(walk.shapes[slot])
    numbers = walk.numbers(slot, axis)
    for variable in layer.weights:
        walk.carry(call, variable, {0: numbers})
    walk.write(call, walk.known(slot))


def _normalization(walk: Walk, call: Call) -> None:
    """Statistics over the channels of one value: with fewer channels they are others."""
    layer, slot = call.operation, call.inputs[0]
    rank = len(walk.shapes[slot])
    axes = [axis % rank for axis in ([layer.axis] if isinstance(layer.axis, int) else layer.axis)]
    for place, axis in enumerate(axes):
        if axis in walk.known(slot) or len(axes) == 1:
            numbers = walk.numbers(slot, axis)
            walk.channels.note(numbers, f"{call.path} takes its statistics over fewer channels")
            for variable in layer.weights:
                walk.carry(call, variable, {place: numbers})
    walk.write(call, walk.known(slot))


def _group_normalization(walk: Walk, call: Call) -> None:
    layer, slot = call.operation, call.inputs[0]
    axis = layer.axis % len(walk.shapes[slot])
    numbers = walk.numbers(slot, axis)
    groups = len(numbers) if layer.groups == -1 else layer.groups
    if groups == len(numbers):
        if layer.groups != -1:
            walk.set(call, "groups", numbers)
    else:
        per_group = numbers.reshape(groups, -1)
        for other in per_group[1:]:
            walk.channels.join(per_group[0], other)
        walk.channels.note(numbers, f"{call.path} takes its statistics over fewer channels")
    for variable in layer.weights:
        walk.carry(call, variable, {0: numbers})
    walk.write(call, walk.known(slot))


def _prelu(walk: Walk, call: Call) -> None:
    known, alpha = walk.known(call.inputs[0]), call.operation.alpha
    axes = {axis - 1: numbers for axis, numbers in known.items() if alpha.shape[axis - 1] > 1}
    walk.carry(call, alpha, axes)
    walk.write(call, known)


def _layer_scale(walk: Walk, call: Call) -> None:
    slot = call.inputs[0]
    last = len(walk.shapes[slot]) - 1
    numbers = walk.numbers(slot, last)
    walk.carry(call, call.operation.gamma, {0: numbers})
    walk.set(call, "projection_dim", numbers)
    walk.write(call, walk.known(slot))


# Value by value, and along the other axes ---------------------------------------------------------------------------


def _elementwise(walk: Walk, call: Call) -> None:
    if walk.shapes[call.inputs[0]] != walk.shapes[call.outputs[0]]:
        walk.follow_not(call, f"{type(call.operation).__name__} changes the shape")
    else:
        walk.write(call, walk.known(call.inputs[0]))


def _activation(walk: Walk, call: Call) -> None:
    reason = across(call.operation.activation)
    if reason:
        walk.keep(call, reason)
    _elementwise(walk, call)


def _softmax(walk: Walk, call: Call) -> None:
    rank = len(walk.shapes[call.inputs[0]])
    axis = getattr(call.operation, "axis", -1)
    over = {each % rank for each in ([axis] if isinstance(axis, int) else axis)}
    walk.keep(call, "softmax runs over all of them", lambda other: other in over)
    _elementwise(walk, call)


def _rescaling(walk: Walk, call: Call) -> None:
    if np.ndim(call.operation.scale) or np.ndim(call.operation.offset):
        walk.follow_not(call, "has a number for every channel")
    else:
        _elementwise(walk, call)


def _spatial(walk: Walk, call: Call) -> None:
    """Pooling, padding, cropping, resizing: each channel for itself; axes that are pooled away are gone."""
    axis = channel_axis(walk, call)
    walk.keep(call, "runs along this axis", lambda other: other != axis)
    numbers = walk.known(call.inputs[0]).get(axis)
    rank, after = len(walk.shapes[call.inputs[0]]), len(walk.shapes[call.outputs[0]])
    if numbers is not None:
        walk.write(call, {axis if after == rank else after - 1: numbers})


def _reduction(walk: Walk, call: Call) -> None:
    """Mean, sum or maximum over some axes."""
    slot, rank = call.inputs[0], len(walk.shapes[call.inputs[0]])
    axis = call.operation.axis
    over = {each % rank for each in (range(rank) if axis is None else [axis] if isinstance(axis, int) else axis)}
    walk.keep(call, "runs over all of them", lambda other: other in over)
    left = [each for each in range(rank) if each not in over or call.operation.keepdims]
    known = {axis: numbers for axis, numbers in walk.known(slot).items() if axis not in over}
    walk.write(call, {left.index(axis): numbers for axis, numbers in known.items()})


def _slices(walk: Walk, call: Call) -> None:
    """A part of a value; channels stay unless all of them are taken."""
    key = call.args[1] if len(call.args) > 1 else call.kwargs["key"]
    key = tuple(key) if isinstance(key, list | tuple) else (key,)
    slot, rank = call.inputs[0], len(walk.shapes[call.inputs[0]])
    if any(not isinstance(each, slice) and each is not Ellipsis for each in key):
        walk.follow_not(call, "takes a part of it")
        return
    if Ellipsis in key:
        at = key.index(Ellipsis)
        key = (*key[:at], *(slice(None),) * (rank - len(key) + 1), *key[at + 1 :])
    whole = {axis for axis in range(rank) if axis >= len(key) or key[axis] == slice(None)}
    walk.keep(call, "takes a part of it", lambda other: other not in whole)
    walk.write(call, {axis: numbers for axis, numbers in walk.known(slot).items() if axis in whole})


# Shapes -------------------------------------------------------------------------------------------------------------


def _reshape(walk: Walk, call: Call, key: str = "", first: int = 0) -> None:
    """Any change of shape. Where one axis of channels becomes several, the last of them has the channels: what goes
    there goes at all positions of the others (a dense layer before a picture, the groups of a shuffle).

    key : entry of the configuration that has the new shape, whose place 0 is axis `first`.
    """
    known, target = walk.known(call.inputs[0]), walk.shapes[call.outputs[0]][1:]
    if len(known) > 1:
        walk.follow_not(call, "has channels on several axes")
    if len(known) != 1:
        return
    ((axis, numbers),) = known.items()
    source = walk.shapes[call.inputs[0]][1:]
    along = [len(numbers) if place == axis - 1 else 1 for place in range(len(source))]
    numbers = np.broadcast_to(numbers.reshape(along), source).reshape(target)
    varies = [place for place in range(len(target)) if (numbers != np.take(numbers, [0], place)).any()]
    last = varies[-1] if varies else len(target) - 1
    rows = np.moveaxis(numbers, last, -1).reshape(-1, target[last])
    if len(varies) > 1:
        for row in rows[1:]:
            walk.channels.join(rows[0], row)
    walk.write(call, {last + 1: rows[0].copy()})
    if key:
        shape = call.operation.get_config()[key]
        if shape[last + 1 - first] not in (-1, None):
            walk.set(call, key, rows[0], last + 1 - first)


def _permute(walk: Walk, call: Call) -> None:
    axes = (0, *call.operation.dims)
    walk.write(call, {axes.index(axis): numbers for axis, numbers in walk.known(call.inputs[0]).items()})


def _transpose(walk: Walk, call: Call) -> None:
    rank = len(walk.shapes[call.inputs[0]])
    axes = [axis % rank for axis in (call.operation.axes or reversed(range(rank)))]
    if axes[0] != 0:
        walk.follow_not(call, "moves the batch axis")
    else:
        walk.write(call, {axes.index(axis): numbers for axis, numbers in walk.known(call.inputs[0]).items()})


def _repeat(walk: Walk, call: Call) -> None:
    walk.write(call, {axis + 1: numbers for axis, numbers in walk.known(call.inputs[0]).items()})


# Several values -----------------------------------------------------------------------------------------------------


def _merge(walk: Walk, call: Call) -> None:
    """Sums, products and the like of values, or of a value and a constant, axes of length 1 repeated."""
    import keras

    rank = len(walk.shapes[call.outputs[0]])
    operands = list(call.inputs)
    constants = [value for value in keras.tree.flatten((call.args, call.kwargs)) if hasattr(value, "shape")]
    if any(len(walk.shapes[slot]) > rank or np.ndim(value) > rank for slot in operands for value in constants):
        walk.follow_not(call, "changes the shape")
        return
    axes: Axes = {}
    for axis in range(1, rank):
        length = walk.shapes[call.outputs[0]][axis]
        along = [(slot, axis - rank + len(walk.shapes[slot])) for slot in operands]
        along = [(slot, own) for slot, own in along if own > 0]
        if not any(own in walk.known(slot) for slot, own in along):
            continue
        whole = [walk.numbers(slot, own) for slot, own in along if walk.shapes[slot][own] == length]
        for slot, own in along:
            if walk.shapes[slot][own] != length and own in walk.known(slot):
                walk.channels.keep(walk.known(slot)[own], f"{call.path}: is repeated for all channels")
        if not whole:
            continue
        for other in whole[1:]:
            walk.channels.join(whole[0], other)
        if any(_length(constant, axis - rank) > 1 for constant in constants):
            walk.channels.keep(whole[0], f"{call.path}: goes with a constant for every channel")
        axes[axis] = whole[0]
    walk.write(call, axes)


def _length(constant: Any, axis: int) -> int:
    return int(constant.shape[axis]) if len(constant.shape) >= -axis else 1


def _concatenate(walk: Walk, call: Call) -> None:
    rank = len(walk.shapes[call.outputs[0]])
    joint = call.operation.axis % rank
    axes: Axes = {}
    for axis in {axis for slot in call.inputs for axis in walk.known(slot)}:
        parts = [walk.numbers(slot, axis) for slot in call.inputs]
        for part in parts[1:] if axis != joint else ():
            walk.channels.join(parts[0], part)
        axes[axis] = np.concatenate(parts) if axis == joint else parts[0]
    walk.write(call, axes)


# The table ----------------------------------------------------------------------------------------------------------


def _named(rule: Rule, names: str, numbered: str = "") -> dict[str, Rule]:
    """One rule for several classes; those of `numbered` come for one, two and three axes."""
    layers = [f"{name.strip()}{axes}D" for name in numbered.split() for axes in (1, 2, 3)]
    return dict.fromkeys([*names.split(), *layers], rule)


RULES: dict[str, Rule] = {
    **_named(convolution, "", "Conv"),
    **_named(transposed, "Conv1DTranspose Conv2DTranspose Conv3DTranspose"),
    **_named(depthwise, "DepthwiseConv1D DepthwiseConv2D"),
    **_named(separable, "SeparableConv1D SeparableConv2D"),
    "Dense": dense,
    "BatchNormalization": _batch_normalization,
    **_named(_normalization, "LayerNormalization RMSNormalization"),
    "GroupNormalization": _group_normalization,
    "PReLU": _prelu,
    "LayerScale": _layer_scale,
    "Activation": _activation,
    **_named(_softmax, "Softmax LogSoftmax"),
    "Rescaling": _rescaling,
    **_named(
        _elementwise,
        "ReLU LeakyReLU ELU Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D GaussianNoise GaussianDropout "
        "AlphaDropout ActivityRegularization Identity StochasticDepth Relu Relu6 Sigmoid Tanh Silu Gelu HardSigmoid "
        "HardSilu HardTanh Selu Elu Celu Softplus Softsign LeakyRelu Mish LogSigmoid Cast Abs Absolute Negative Exp "
        "Square Sqrt Rsqrt Sin Cos Clip StopGradient",
    ),
    **_named(
        _spatial,
        "Resizing",
        "MaxPooling AveragePooling GlobalMaxPooling GlobalAveragePooling AdaptiveMaxPooling AdaptiveAveragePooling "
        "ZeroPadding Cropping UpSampling",
    ),
    **_named(_reduction, "Mean Sum Max Min"),
    "GetItem": _slices,
    **_named(_reshape, "Flatten ExpandDims Squeeze"),
    "Reshape": lambda walk, call: _reshape(walk, call, *_shape_entry(call)),
    "Permute": _permute,
    "Transpose": _transpose,
    "RepeatVector": _repeat,
    **_named(
        _merge,
        "Add Subtract Multiply Average Maximum Minimum Divide TrueDivide DivideNoNan CustomScaleLayer",
    ),
    "Concatenate": _concatenate,
}
"""Layers and operations by class name."""


def _shape_entry(call: Call) -> tuple[str, int]:
    """Where a layer, or the operation of that name, has its new shape: without the batch axis, or with it."""
    return ("target_shape", 1) if hasattr(call.operation, "target_shape") else ("newshape", 0)
