"""Chains of small layers that a factorized layer becomes, as shapes and arrays; their parameters and MACs.

A method returns a chain of pieces and knows no layer kind; `keras_layers` turns a piece into a Keras layer and
knows no method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from lrfgraph.layers.kinds import Array, Form
from lrfgraph.layers.spec import LayerSpec

__all__ = ["Cost", "Piece", "compose", "cost", "layer_cost", "native_kernel", "whole"]


@dataclass(frozen=True)
class Piece:
    """The shape of one link of the chain.

    form : ``mix`` has weights ``(groups, *spatial, inputs, outputs)`` (a convolution, or a 1×1 one or a dense
        layer where the spatial sizes are 1 or absent); ``channelwise`` has ``(groups, *spatial, channels)``
        (a depthwise convolution); ``core`` has ``(r, inputs, outputs, r')``, a core of a TT-matrix.
    axes : the spatial axes whose stride, dilation and padding this piece carries; each axis belongs to
        exactly one piece of a chain.
    """

    form: Form
    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()

    @property
    def parameters(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Cost:
    """Parameters (bias apart) and multiply–accumulates of one input."""

    parameters: int
    macs: int


def compose(pieces: Sequence[Piece], weights: Sequence[Array]) -> Array:
    """Multiply a chain out to the kernel it stands for, ``(groups, *spatial, inputs, outputs)``.

    No two pieces of a chain have an extent along the same spatial axis, so their product is a matrix product
    over channels with the spatial axes broadcast.
    """
    if pieces[0].form == "core":
        return _compose_cores(weights)
    result = weights[0]
    for piece, weight in zip(pieces[1:], weights[1:], strict=True):
        result = result * weight[..., None, :] if piece.form == "channelwise" else result @ weight
    return result


def native_kernel(layer: LayerSpec, pieces: Sequence[Piece], weights: Sequence[Array]) -> Array:
    """Multiply a chain out to the float32 kernel that the layer itself would keep."""
    kernel = compose(pieces, [np.asarray(w, np.float64) for w in weights]).reshape(layer.kernel)
    return layer.family.order.native(kernel).astype(np.float32)


def _compose_cores(cores: Sequence[Array]) -> Array:
    # (I, O, r) grows core by core; index order is i1 i2 … and o1 o2 …, the first slowest.
    result: Array = np.ones((1, 1, 1), dtype=cores[0].dtype)
    for core in cores:
        grown = np.einsum("abr,rijs->aibjs", result, core)
        rows, i, columns, o, rank = grown.shape
        result = grown.reshape(rows * i, columns * o, rank)
    return result[None, :, :, 0]


def cost(layer: LayerSpec, pieces: Sequence[Piece]) -> Cost:
    """Count a chain's parameters and MACs in place of `layer`, each piece at the resolution it runs at.

    Raises nothing; an unknown input size (``layer.input_shapes`` empty) counts one position.
    """
    macs = sum(
        _chain_macs(layer, pieces, in_shape, out_shape)
        for in_shape, out_shape in zip(layer.input_shapes, layer.output_shapes, strict=True)
    )
    extra = prod(layer.depthwise) if layer.family.depthwise else 0
    return Cost(sum(p.parameters for p in pieces) + extra, macs)


def layer_cost(layer: LayerSpec) -> Cost:
    """Count the layer itself, as the single piece it is."""
    return cost(layer, [whole(layer)])


def whole(layer: LayerSpec) -> Piece:
    """Return the layer as the single piece it is."""
    return Piece("mix", layer.kernel, tuple(range(len(layer.spatial))))


def _chain_macs(
    layer: LayerSpec, pieces: Sequence[Piece], in_shape: tuple[int, ...], out_shape: tuple[int, ...]
) -> int:
    if pieces[0].form == "core":
        return prod(in_shape[:-1]) * _core_macs(pieces)
    size, macs = list(in_shape[:-1]), 0
    if layer.family.depthwise:
        size = list(out_shape[:-1])
        macs = prod(size) * prod(layer.depthwise)
    for piece in pieces:
        before = prod(size)
        for axis in piece.axes:
            size[axis] = out_shape[axis]
        applied_to_inputs = piece.axes and layer.family.positions == "inputs"
        macs += (before if applied_to_inputs else prod(size)) * piece.parameters
    return macs


def _core_macs(pieces: Sequence[Piece]) -> int:
    """Contract left to right: core k sees the outputs of the cores before it and the inputs of those after."""
    macs, outputs = 0, 1
    for index, piece in enumerate(pieces):
        inputs = prod(p.shape[1] for p in pieces[index + 1 :])
        macs += outputs * inputs * piece.parameters
        outputs *= piece.shape[2]
    return macs
